"""The replay of a step: the same bits, the poisoned record, and clear refusals."""

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support import tiny_runs
from support.paths import ROOT
from support.tiny_models import tiny_clip_config

from clipa_eqx import cli
from clipa_eqx.errors import CheckpointError, ConfigError, NonFiniteError
from clipa_eqx.experiment import CheckpointConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.programs import replayed_step
from clipa_eqx.programs.replay import main
from clipa_eqx.saved.model import save_model
from clipa_eqx.saved.provenance import TRAINED_HERE, Provenance, Source
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.flight import bits, recorded_steps
from clipa_eqx.training.inputs import open_sources, train_batches
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.replay import replay
from clipa_eqx.training.run_folder import read_record

pytestmark = pytest.mark.usefixtures("quick_compile")


def again(config, run, step, **options):
    return replay(
        config,
        run,
        step,
        record=read_record(run),
        devices=tiny_runs.one_device(),
        compiler=tiny_runs.compile_once,
        **options,
    )


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A finished run that keeps the checkpoints 8 and 12."""
    config = tiny_runs.run_config(
        model=tiny_clip_config(**tiny_runs.STOCHASTIC), checkpoint=CheckpointConfig(every_steps=4, keep=2)
    )
    run = tmp_path_factory.mktemp("healthy") / "run"
    tiny_runs.train_on_one_device(config, run)
    return config, run


def test_a_step_of_a_healthy_run_is_replayed_bit_for_bit(healthy):
    config, run = healthy
    found = again(config, run, 10)
    assert (found.start, found.is_equal, found.is_reproduced, found.is_finite) == (8, True, True, True)
    assert len(found.recorded) >= 15
    assert (found.bad_rows, found.bad_leaves, found.same_samples) == ((), (), None)


def test_a_replay_needs_no_kernel_of_the_devices_of_the_run(healthy):
    config, run = healthy
    chosen = []

    def compiler(config, *rest):
        chosen.append(config.attention)
        return tiny_runs.compile_once(config, *rest)

    devices = tiny_runs.one_device()
    there = dataclasses.replace(config, attention="xla")
    replay(there, run, 9, record=read_record(run), devices=devices, compiler=compiler)
    assert chosen == ["auto"]


def test_a_step_without_an_older_checkpoint_names_what_can_be_replayed(healthy):
    config, run = healthy
    with pytest.raises(CheckpointError, match=r"no checkpoint from before step 3; steps 9 and later can be replayed"):
        again(config, run, 3)
    with pytest.raises(ConfigError, match="the run has no step 13; it has steps 1 to 12"):
        again(config, run, 13)
    found = again(config, run, 3, is_from_start=True)
    assert (found.start, found.is_equal) == (0, True)


def test_a_run_that_kept_only_its_last_step_offers_none_to_replay(healthy, tmp_path):
    config, run = healthy
    last = tmp_path / "run"
    shutil.copytree(run, last)
    shutil.rmtree(last / "checkpoints" / "8")
    with pytest.raises(CheckpointError, match=r"no checkpoint from before step 3\. Compute the 3 steps from the first"):
        again(config, last, 3)


@pytest.fixture
def command(monkeypatch, capsys, logging_as_before):
    """Calls the command; gives exit code, report and error. The step is compiled once for all tests."""
    shared = functools.partial(replay, compiler=tiny_runs.compile_once)
    monkeypatch.setattr(replayed_step, "replay", shared)

    def call(*arguments):
        code = cli.run(functools.partial(main, [*map(str, arguments)]))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_exit_code_of_the_command_says_whether_the_step_is_as_recorded(healthy, command, tmp_path):
    _, run = healthy
    code, report, _ = command(run, 9)
    assert (code, report.splitlines()[0]) == (0, "step 9, replayed from checkpoint 8")
    assert report.splitlines()[-1] == "reproduced bit for bit"
    changed = tmp_path / "run"
    shutil.copytree(run, changed)
    lines = [json.loads(line) for line in (changed / "metrics.jsonl").read_text().splitlines()]
    lines[8]["loss"] *= 1.01
    (changed / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, report, _ = command(changed, 9)
    assert code == 1
    assert "not reproduced: loss or gradient differ from the record by more than rounding" in report
    for arguments, message in {
        (run, 3): "has no checkpoint from before step 3",
        (run, 13): "the run has no step 13",
        (run, 9, "--devices", 0): "--devices is 0; it must be at least 1",
        (tmp_path / "none", 9): "does not exist; expected a run folder",
        (run, 9, "--optim.peak-lr", 1): "peak_lr",
    }.items():
        code, report, error = command(*arguments)
        assert (code, report) == (2, ""), error
        assert message in error
        assert "Traceback" not in error


@pytest.mark.slow
def test_the_program_replays_in_a_process_of_its_own(healthy, tmp_path):
    _, run = healthy
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/replay.py"), str(run), "9"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("reproduced "), done.stdout


def test_other_numbers_than_those_recorded_are_not_reproduced(healthy):
    found = again(*healthy, 10)
    changed = dataclasses.replace(found, recorded={**found.recorded, "loss": found.values["loss"] * 1.01})
    assert (changed.is_equal, changed.is_reproduced) == (False, False)
    rounded = dataclasses.replace(found, recorded={**found.recorded, "loss": found.values["loss"] * (1 + 1e-5)})
    assert (rounded.is_equal, rounded.is_reproduced) == (False, True)
    assert "up to rounding" in replayed_step.verdict(rounded)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A run whose weights give one record a text embedding that is not finite, and the step and row that meet it."""
    root = tmp_path_factory.mktemp("poisoned")
    config = tiny_runs.run_config(model=tiny_clip_config(**tiny_runs.STOCHASTIC))
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    with train_batches(config, open_sources(config), tokenizer, start_step=0) as batches:
        rows = [next(batches) for _ in range(12)]
    seen = np.stack([np.isin(np.arange(64), batch["tokens"]) for batch in rows])
    # A word that some later step meets in one row only.
    step, token = next(
        (step, token)
        for step in range(5, 12)
        for token in range(64)
        if seen[step, token] and not seen[:step, token].any() and (rows[step]["tokens"] == token).any(axis=1).sum() == 1
    )
    row = int(np.flatnonzero((rows[step]["tokens"] == token).any(axis=1))[0])
    start = CLIP.init(config.model, key=jr.key(0))
    weight = start.text.token.weight
    model = eqx.tree_at(lambda m: m.text.token.weight, start, weight.at[token].set(jnp.float32(3e38)))
    provenance = Provenance(source=Source(name=TRAINED_HERE), steps=0, run={})
    save_model(root / "model", model, tokenizer=tokenizer, preprocess=config.eval_image, provenance=provenance)
    config = dataclasses.replace(config, init=InitConfig(source=str(root / "model")))
    with pytest.raises(NonFiniteError, match=f"step {step + 1} gave"):
        tiny_runs.train_on_one_device(config, root / "run")
    return config, root / "run", step + 1, row, int(rows[step]["sample_id"][row])


def test_the_replay_of_a_poisoned_step_has_its_bits_and_names_the_record(poisoned, capsys):
    config, run, step, row, sample = poisoned
    found = again(config, run, step)
    line = recorded_steps(run / "flight")[step][0]
    assert not found.is_finite
    assert (found.same_samples, found.is_equal, found.is_reproduced) == (True, True, True)
    assert line["bits"]["loss"] == bits(found.values)["loss"]
    assert [(one.row, one.sample_id, one.towers) for one in found.bad_rows] == [(row, sample, ("text",))]
    assert re.search(r"key '\d+'", found.bad_rows[0].place)
    assert found.bad_leaves
    text = "\n".join(replayed_step.lines(found))
    assert f"row {row}: text embedding not finite, sample {sample}" in text
    assert f"first leaf with a gradient that is not finite: {found.bad_leaves[0]}" in text
    assert text.endswith("reproduced bit for bit")


def test_the_flight_record_has_the_last_steps_with_their_samples(poisoned):
    config, run, step, _, _ = poisoned
    recorded = recorded_steps(run / "flight")
    # The numbers of a step are read while the next one runs.
    assert sorted(recorded) == list(range(1, step + 2))
    assert [line["is_finished"] for (line,) in recorded.values()] == [True] * step + [False]
    by_step = {line["step"]: line for line in read_metrics(run / "metrics.jsonl")}
    for number, (line,) in recorded.items():
        assert (line["key"], len(line["sample_id"]), line["process"]) == ([config.seed, number - 1], 16, 0)
        if number < step:
            assert line["loss"] == by_step[number]["loss"]
