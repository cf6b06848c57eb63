"""Config files are loaded and overridden by flags; a mistake in either is reported with its place."""

import dataclasses

import pytest
from support.tiny_models import SIZE, tiny_run

from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.config_flags import flag_names, unknown_flags
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.durations import Duration
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.surgery.init_config import InitConfig

GOOD = "from support.tiny_models import tiny_run\n\n\ndef config():\n    return tiny_run(seed=7)\n"


def write(folder, text):
    path = folder / "run.py"
    path.write_text(text)
    return path


def test_a_file_gives_what_its_function_returns(tmp_path):
    assert load_config(write(tmp_path, GOOD)) == tiny_run(seed=7)


def test_a_file_may_define_its_own_dataclasses(tmp_path):
    text = GOOD.replace(
        "def config", "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 1\ndef config"
    )
    assert load_config(write(tmp_path, text)).seed == 7


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "has no function config"),
        ("def config():\n    return 3\n", "returned int, expected ExperimentConfig"),
        ("def config():\n    y = 1\n    return y / 0\n", "run.py:3: ZeroDivisionError"),
        ("def config(:\n", "run.py:1: SyntaxError"),
        ("import nonsuch_module\n", "run.py:1: ModuleNotFoundError"),
        ("def config(a):\n    return a\n", "run.py: TypeError"),
        (
            "from support.tiny_models import tiny_run\n\ndef config():\n    return tiny_run(seed=-1)\n",
            "run.py:4: experiment: seed",
        ),
        (GOOD.replace("seed=7", "sead=7"), "run.py:5: TypeError.*sead"),
    ],
)
def test_a_bad_file_is_one_message_with_its_line(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing.py does not exist; give the path of a Python file") as missing:
        load_config(tmp_path / "nothing.py")
    assert str(missing.value).count("nothing.py") == 1
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load_config(tmp_path)


def test_no_flags_change_nothing():
    assert apply_overrides(tiny_run(), []) == tiny_run()


def test_flags_change_scalars_at_any_depth():
    flags = "--optim.peak-lr 4e-4 --data.sources.0.folder elsewhere --batch-size 64 --mesh.fsdp 8 --optim.clip-norm 1.0"
    changed = apply_overrides(tiny_run(), [*flags.split(), "--optim.schedules.0.1.min-ratio", "0.5"])
    assert (changed.optim.peak_lr, changed.data.sources[0].folder, changed.batch_size) == (4e-4, "elsewhere", 64)
    assert (changed.mesh.fsdp, changed.optim.clip_norm, changed.optim.schedules[0][1].min_ratio) == (8, 1.0, 0.5)
    assert changed.model == tiny_run().model


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optim.peak-lrr", "3"], r"there is no flag --optim.peak-lrr; did you mean --optim.peak-lr\?$"),
        (["--optim.peak-learning-rate", "3"], r"did you mean --optim.peak-lr\?$"),
        (["--lr", "3"], r"did you mean --optim.peak-lr or --optim.lr-factors\?$"),
        (["--data.folder", "x"], r"did you mean --data.sources.0.folder\?$"),
        (["--work-dir", "x"], r"did you mean --workdir\?$"),
        (["--init_from", "x"], r"did you mean --init-from\?$"),
        (["--resume"], r"--resume; the same command as before resumes a run$"),
        (["--xyzzy", "--lr", "2"], r"no flag --xyzzy; --help-config lists all of them; there is no flag --lr; did you"),
        (["--optim", "none"], "--optim is a part with flags of its own, such as --optim.peak-lr$"),
        (["--data.sources", "none"], "data.sources is empty"),
        (["--duration.steps", "3", "--duration.samples", "4"], "exactly one of .*'steps': 3, 'samples': 4"),
        (["--wandb.project", "x"], r"the config file sets no wandb; write wandb=WandbConfig\(...\) there first$"),
        (["--zero-shot.0.data", "x"], r"sets no zero_shot; write zero_shot=ZeroShotConfig\(...\) there first$"),
        (["--data.image.color.strength", "1"], r"sets no data.image.color; write color=ColorConfig\(...\) there"),
        (["--batch-size", "x"], "Error parsing --batch-size: invalid literal"),
        (["--batch-size", "12", "--mesh.fsdp", "8"], "multiple of 8"),
        (["--init.source", "x"], "the config file sets no init; name the weights to start from with --init-from$"),
        (["--precision.compute", "float16"], "float32"),
        (["--data.stream.workers"], "Missing value"),
    ],
)
def test_a_bad_flag_is_one_message(flags, words, capsys):
    with pytest.raises(ConfigError, match=f"command line: .*{words}") as caught:
        apply_overrides(tiny_run(), flags, program_flags=("--workdir", "--init-from", "--help-config"))
    assert "│" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_none_leaves_out_parts():
    full = dataclasses.replace(
        tiny_run(),
        init=InitConfig(source="x"),
        zero_shot=(ZeroShotConfig(data="a"), ZeroShotConfig(data="b")),
        data=dataclasses.replace(tiny_run().data, image=ImageConfig(size=SIZE, color=ColorConfig())),
    )
    flags = "--zero-shot none --init=None --data.image.color none --mesh.data none --batch-size 64"
    bare = apply_overrides(full, flags.split())
    assert (bare.zero_shot, bare.init, bare.data.image.color, bare.mesh.data) == ((), None, None, None)
    assert bare.batch_size == 64
    assert apply_overrides(bare, flags.split()) == bare
    # A text may be "none".
    assert apply_overrides(full, ["--data.vocab", "none"]).data.vocab == "none"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("--duration.samples 3", Duration(samples=3)),
        ("--duration.epochs=3", Duration(epochs=3.0)),
        ("--duration.steps 3", Duration(steps=3)),
        ("--duration.samples 3 --duration.steps None", Duration(samples=3)),
    ],
)
def test_a_duration_in_another_unit_replaces_that_of_the_file(flags, expected):
    assert apply_overrides(tiny_run(), flags.split()).duration == expected


def test_a_warm_up_is_given_in_any_unit():
    flags = ["--optim.schedules.0.1.warmup.fraction", "0.2"]
    assert apply_overrides(tiny_run(), flags).optim.schedules[0][1].warmup == Duration(fraction=0.2)


def test_every_flag_of_a_config_is_known():
    config = tiny_run()
    for flag in flag_names(config):
        assert unknown_flags(config, [flag, "x"]) == []
    assert unknown_flags(config, ["--batch_size=3", "--Batch-size", "-1"]) == ["--Batch-size"]


def test_help_lists_the_flags_and_is_no_error(capsys):
    with pytest.raises(SystemExit) as stop:
        apply_overrides(tiny_run(), ["--help"])
    assert not stop.value.code
    assert "--optim.peak-lr" in capsys.readouterr().out


def test_flags_of_version_0_1_0_set_the_fields_under_their_current_names(tmp_path):
    path = tmp_path / "run.py"
    path.write_text(
        "import dataclasses\nfrom support.tiny_runs import run_config\nfrom clipa_eqx.experiment import InitConfig\n\n"
        "def config():\n    return dataclasses.replace(run_config(), init=InitConfig(source='x'))\n"
    )
    changed = apply_overrides(load_config(path), ["--init.optimiser", "True"])
    assert changed.init is not None
    assert changed.init.optimizer


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--seed 1 --seed 2", "--seed"),
        ("--optim.peak-lr=1e-3 --batch-size 8 --optim.peak_lr 1e-4", "--optim.peak-lr"),
        ("--zero-shot none --zero-shot none", "--zero-shot"),
    ],
)
def test_a_flag_that_is_given_twice_is_a_mistake(flags, named):
    with pytest.raises(ConfigError, match=rf"command line: {named} is given twice; give it once"):
        apply_overrides(tiny_run(), flags.split())
