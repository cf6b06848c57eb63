"""Two processes score every suite with ``evaluate --distributed`` as one process does, and process 0 writes it."""

import json
from functools import partial

import pytest
from support.process_groups import free_port, run_programs
from support.scored_runs import SUITES, write_set, write_sets
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.cli import OK, run
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.programs.evaluate import main
from clipa_eqx.saved.model import save_model

pytestmark = pytest.mark.usefixtures("quick_compile")

PROGRAM = """
import json
import sys
from clipa_eqx.errors import ClipaError
from clipa_eqx.programs.evaluate import main

*commands, distributed = json.loads(sys.argv[1])
for command in commands:
    try:
        main([*command, *distributed])
    except ClipaError as error:
        print("refused:", error)
    distributed = []  # the processes are connected by then
"""
IGNORED = ("passport", "devices", "seconds")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    preprocess = EvalImageConfig(size=(16, 16), resize="squash")
    save_model(folder / "model", tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=preprocess, provenance={})
    return folder


def commands(folder, out):
    """A command for each suite, and those without a classifier on the set of a single image."""
    extra = {
        "zero-shot": ["--templates", "class_name_only", "--predictions"],
        "few-shot": ["--train", folder / "train", "--shots", "1", "3"],
        "linear-probe": ["--train", folder / "train", "--strengths", "0.1", "10"],
    }
    for suite in (name.replace("_", "-") for name in SUITES):
        for data in ("test", "single") if suite in ("zero-shot", "retrieval", "contrastive") else ("test",):
            flags = ["--suite", suite, "--data", folder / data, "--out", out / f"{suite}-{data}.json"]
            yield [str(word) for word in (folder / "model", *flags, "--batch-size", "5", *extra.get(suite, []))]


def flags_of(number, port):
    place = ["--coordinator-address", f"localhost:{port}", "--num-processes", "2", "--process-index", str(number)]
    return ["--distributed", *place]


def start_two(commands_of):
    """Run the commands of each process in two processes; returns exit codes and outputs."""
    port = free_port()
    return run_programs([PROGRAM] * 2, [json.dumps([*commands_of(i), flags_of(i, port)]) for i in range(2)])


def results(out):
    found = {path.name: json.loads(path.read_text()) for path in out.iterdir()}
    return {name: {key: value for key, value in one.items() if key not in IGNORED} for name, one in found.items()}


def test_two_processes_give_the_results_of_one(folder, tmp_path, capfd):
    for name in ("one", "two", "other"):
        (tmp_path / name).mkdir()
    ended = start_two(lambda number: commands(folder, tmp_path / ("two" if number == 0 else "other")))
    assert [code for code, _ in ended] == [0, 0], "\n\n".join(said for _, said in ended)
    assert "refused" not in ended[0][1] + ended[1][1]
    assert not any((tmp_path / "other").iterdir())
    assert "written to" in ended[0][1]
    assert "written to" not in ended[1][1]
    for command in commands(folder, tmp_path / "one"):
        assert run(partial(main, command)) == OK
    expected, found = results(tmp_path / "one"), results(tmp_path / "two")
    assert len(expected) == 8
    for name, result in expected.items():
        loss = result.pop("loss", 0.0)  # the only number that is no count
        assert found[name].pop("loss", 0.0) == pytest.approx(loss, rel=1e-5)
        assert found[name] == result, name
    assert found["zero-shot-test.json"]["sample_id"] == list(range(11))


@pytest.mark.slow
def test_what_one_process_cannot_score_ends_both_with_a_message(folder, tmp_path):
    out = tmp_path / "result.json"
    out.write_text("{}")
    silent = write_set(tmp_path / "silent", first=0, count=6, changes=lambda i: {"captions": ()} if i == 5 else {})
    damaged = write_set(tmp_path / "damaged", first=0, count=6, changes=lambda i: {"image": b"no"} if i == 3 else {})
    data = [write_set(tmp_path / name / "data", first=first, count=6) for name, first in (("a", 0), ("b", 10))]
    models = [tmp_path / name / "model" for name in ("a", "b")]
    for seed, model in enumerate(models):
        preprocess = EvalImageConfig(size=(16, 16), resize="squash")
        save_model(model, tiny_clip(seed=seed), tokenizer=tiny_tokenizer(), preprocess=preprocess, provenance={})
    lost = [folder / "model", tmp_path / "lost"]

    def commands_of(number):
        wanted = [("zero-shot", str(folder / "test"), []), ("retrieval", silent, ["--overwrite"])]
        wanted.append(("contrastive", data[number], ["--overwrite"]))
        wanted += [(suite, damaged, ["--overwrite", "--batch-size", "4"]) for suite in ("retrieval", "zero-shot")]
        for suite, source, flags in wanted:
            yield [str(folder / "model"), "--suite", suite, "--data", source, "--out", str(out), *flags]
        for model in (lost[number], models[number]):
            flags = ["--suite", "zero-shot", "--data", str(folder / "test"), "--out", str(out), "--overwrite"]
            yield [str(model), *flags]

    ended = start_two(commands_of)
    assert [code for code, _ in ended] == [0, 0], "\n\n".join(said for _, said in ended)
    first, second = ([line for line in said.splitlines() if line.startswith("refused:")] for _, said in ended)
    assert first[0] == f"refused: --out {out} exists already; give another name, or --overwrite"
    assert second[0] == "refused: process 0 cannot start; see its message for the reason"
    assert first[1] == f"refused: process 1 cannot score {silent}; see its message for the reason"
    assert second[1].startswith(f"refused: data folder {silent}: record '5' has no caption")
    for line, source in ((first[2], data[0]), (second[2], data[1])):
        words = f"the processes were given different data or settings of the evaluation on {source}"
        assert line.startswith(f"refused: {words}")
    for line, other in zip(first[3:5], second[3:5], strict=True):
        assert line == "refused: process 1 cannot score its images; see its message for the reason"
        assert damaged in other
        assert "key '3'" in other
    assert first[5] == "refused: process 1 cannot read the model; see its message for the reason"
    assert second[5].startswith(f"refused: {lost[1]} does not exist; expected a run folder or a model folder")
    for line, model in ((first[6], models[0]), (second[6], models[1])):
        assert line.startswith(f"refused: the processes were given different weights in {model}; start all of them")
    assert len(first) == len(second) == 7
    assert out.read_text() == "{}"
