"""Config files are loaded and overridden by flags; a mistake in either is reported with its place."""

import pytest
from support.tiny_models import tiny_run

from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.errors import ConfigError

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
        (["--optim.peak-lrr", "3"], "--optim.peak-lrr.*[Pp]erhaps you meant: --optim.peak-lr"),
        (["--batch-size", "x"], "Error parsing --batch-size: invalid literal"),
        (["--batch-size", "12", "--mesh.fsdp", "8"], "multiple of 8"),
        (["--init.source", "x"], "the config file sets no init"),
        (["--precision.compute", "float16"], "float32"),
        (["--data.stream.workers"], "Missing value"),
    ],
)
def test_a_bad_flag_is_one_message(flags, words, capsys):
    with pytest.raises(ConfigError, match=f"command line: .*{words}") as caught:
        apply_overrides(tiny_run(), flags)
    assert "│" not in str(caught.value)
    assert capsys.readouterr().err == ""


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
