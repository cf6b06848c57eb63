"""A training run ends with the commands that may follow; what is no placeholder in them can be pasted."""

import dataclasses
import shlex
from functools import partial

import pytest
from support.paths import ROOT
from support.tiny_models import tiny_run

from clipa_eqx.cli import OK, run
from clipa_eqx.commands import command_line
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.programs import evaluate, show, train, training_run
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import PruneDepth
from clipa_eqx.training.loop import TrainResult


@pytest.fixture
def ending(monkeypatch, capsys, tmp_path):
    """Ends a run with this config in a folder whose name needs quotes; gives the words of each next command."""
    workdir = tmp_path / "my run"
    monkeypatch.setattr(training_run, "train", lambda config, workdir, **_: TrainResult(3, {}, workdir / "model"))

    def end(config):
        assert training_run.start(config, workdir) == OK
        first, *lines = capsys.readouterr().out.splitlines()
        assert first == "next:"
        return [shlex.split(line, comments=True) for line in lines]

    return workdir, end


def test_training_ends_with_commands_for_its_own_folder(ending):
    workdir, end = ending
    look, score, tune = end(tiny_run())
    assert look == shlex.split(command_line("show", workdir))
    assert score[:3] == shlex.split(command_line("evaluate", workdir / "model"))
    assert score[score.index("--data") + 1] == "LABELED_RECORDS"
    assert tune[-2:] == ["--init-from", str(workdir)]


def test_the_next_run_does_not_repeat_the_surgery(ending):
    workdir, end = ending
    init = InitConfig(source="runs/first", surgery=(PruneDepth(text=(0,)),))
    tune = end(dataclasses.replace(tiny_run(), init=init))[2]
    assert tune[-4:] == ["--init-from", str(workdir), "--init.surgery", "none"]


def test_the_data_that_a_run_scores_are_named(ending):
    _, end = ending
    config = dataclasses.replace(tiny_run(), zero_shot=(ZeroShotConfig(data="my data/val"),))
    _, score, _ = end(config)
    assert score[score.index("--data") + 1] == "my data/val"


@pytest.mark.parametrize("name", ["show", "evaluate", "train"])
def test_the_programs_take_the_arguments_that_are_printed(ending, name, capsys):
    """Each command gets as far as its missing folder or placeholder, which is the only thing wrong with it."""
    _, end = ending
    words = dict(zip(("show", "evaluate", "train"), end(tiny_run()), strict=True))[name]
    assert words[1].endswith(f"scripts/{name}.py")
    main = {"show": show, "evaluate": evaluate, "train": train}[name].main
    assert run(partial(main, words[2:])) == 2
    missing = {"show": "my run does not exist", "evaluate": "LABELED_RECORDS", "train": "CONFIG.py does not exist"}
    assert missing[name] in capsys.readouterr().err


def test_the_minimal_config_is_trained_with_the_flags_of_its_docstring(capsys):
    config = ROOT / "configs" / "minimal.py"
    words = ["--data.sources.0.folder", "data/mine", "--duration.samples", "5000", "--print-config"]
    assert run(partial(train.main, [str(config), *words])) == OK
    assert '"folder": "data/mine"' in capsys.readouterr().out
