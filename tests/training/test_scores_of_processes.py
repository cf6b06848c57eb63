"""Two processes score every suite in the training loop as one process does."""

from pathlib import Path

import jax
import pytest
from support import tiny_runs
from support.process_groups import run_connected
from support.scored_runs import SUITES, scored_run, scores_of, write_sets

from clipa_eqx.training.loop import train
from clipa_eqx.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("quick_compile")

TRAINED = """
from pathlib import Path
from support import tiny_runs
from support.scored_runs import scored_run
from clipa_eqx.training.loop import train

tiny_runs.folder = lambda: Path(arguments[1])
train(scored_run(Path(arguments[0])), Path(arguments[2]))
"""


def scores(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: found for line in read_metrics(run / "metrics.jsonl") if (found := scores_of(line))}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of one process with 2 devices."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(scored_run(data), folder, devices=jax.devices()[:2], compiler=tiny_runs.compile_once)
    return folder


@pytest.mark.slow
def test_two_processes_score_each_suite_as_one_process_with_one_or_two_devices(data, run, tmp_path):
    ended = run_connected(TRAINED, data, tiny_runs.folder(), tmp_path / "two", folder=tmp_path)
    assert [code for code, _ in ended] == [0, 0], "\n\n".join(said for _, said in ended)
    train(scored_run(data), tmp_path / "single", devices=jax.devices()[:1], compiler=tiny_runs.compile_once)
    expected = scores(run)
    assert list(expected) == [2, 4]
    for folder in (tmp_path / "two", tmp_path / "single"):
        found = scores(folder)
        assert found.keys() == expected.keys()
        for step, values in expected.items():
            assert found[step].keys() == values.keys()
            assert {name.split("/")[0] for name in values} == set(SUITES)
            for name, value in values.items():
                if name.endswith("/loss"):  # the only score that is no count
                    assert found[step][name] == pytest.approx(value, rel=1e-5), name
                else:
                    assert found[step][name] == value, name
