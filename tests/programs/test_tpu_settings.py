"""The env file and the flags of the TPU scripts: what they refuse, and that nothing else has an influence."""

import re
import shlex
import shutil

import pytest
from support.paths import ROOT
from support.recorded_tpu import SCRIPTS, WHERE


@pytest.mark.parametrize(
    ("changes", "flags", "message"),
    [
        ({"ZONE": ""}, (), "tpu.env: ZONE has no value"),
        ({"WANDB_API_KEY": "secret"}, (), "WANDB_API_KEY is no setting; the settings are: PROJECT ZONE"),
        ({"PRE_TRAINING_RUN": ""}, (), "tpu.env: PRE_TRAINING_RUN has no value"),
        (
            {"PRE_TRAINING_RUN": "az://bucket/run"},
            (),
            "PRE_TRAINING_RUN is az://bucket/run; a run folder is gs://BUCKET",
        ),
        ({"PRE_TRAINING_RUN": "gs://bucket"}, (), "PRE_TRAINING_RUN is gs://bucket; a run folder is gs://BUCKET/NAME"),
        ({"RECORDS": '"gs://bucket/pairs"'}, (), "tpu.env:6: RECORDS has a quotation mark"),
        ({"RECORDS": "data # mine"}, (), "tpu.env:6: RECORDS has a comment; put it on a line of its own"),
        ({"RECORDS": " data"}, (), "tpu.env:6: RECORDS begins with a space"),
        ({"RECORDS": "~/data"}, (), "tpu.env:6: RECORDS begins with ~, which is not replaced"),
        ({"RECORDS": "data\nZONE=zone-b"}, (), "tpu.env:7: ZONE is set twice"),
        ({}, ("-n",), "unknown flag -n; --help lists the flags"),
        ({}, ("--dryrun",), "unknown flag --dryrun; --help lists the flags"),
        ({}, ("other.env",), "two env files: "),
    ],
)
def test_a_mistake_is_one_message_before_any_call(changes, flags, message, pod):
    done = pod("pre_training", *flags, **changes)
    assert (done.returncode, pod.calls()) == (2, [])
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_env_file_and_a_line_that_sets_nothing_are_mistakes(pod):
    assert "the env file is missing" in pod.run("pre_training").stderr
    for path in (pod.folder / "no.env", pod.folder):
        done = pod.run("pre_training", path)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "does not exist or cannot be read; copy scripts/tpu.env.example" in done.stderr
    wrong = pod.folder / "wrong.env"
    wrong.write_text("PROJECT=p\nexport ZONE=z\n")
    done = pod.run("pre_training", wrong)
    assert (done.returncode, pod.calls()) == (2, [])
    assert "wrong.env:2: expected NAME=value, got: export ZONE=z" in done.stderr


def test_settings_are_those_of_the_file_and_not_of_the_shell_that_calls(pod):
    pod("pre_training", "--dry-run")
    env = pod.folder / "tpu.env"
    text = env.read_text().replace("RECORDS=gs://bucket/my pairs\n", "")
    env.write_text(text.replace("ZONE=zone-a\n", "ZONE=zone-a \r\n"))  # as an editor on Windows leaves a line
    foreign = {"RECORDS": "/foreign", "FOLDER": "/foreign", "PYTHON": "/foreign", "FINE_TUNING_RUN": "/foreign"}
    for script in SCRIPTS:
        done = pod.run(script, env, "--dry-run", **foreign)
        assert done.returncode == 0, done.stderr
        assert "foreign" not in done.stdout
        assert shlex.split(done.stdout.splitlines()[-1])[-len(WHERE) :] == WHERE
    env.write_text(text.replace("ZONE=zone-a\n", ""))
    done = pod.run("pre_training", env, ZONE="zone-a")
    assert (done.returncode, pod.calls()) == (2, [])
    assert "tpu.env: ZONE has no value" in done.stderr


def test_run_folders_may_be_in_buckets(pod):
    for stage, run in (("pre_training", "gs://bucket/runs/first"), ("fine_tuning", "s3://bucket/second")):
        done = pod(stage, "--dry-run", **{f"{stage.upper()}_RUN": run})
        assert done.returncode == 0, done.stderr
        assert run in done.stdout


def test_an_empty_setting_that_has_a_default_takes_it(pod):
    done = pod("pre_training", "--dry-run", FOLDER="", PYTHON="")
    assert "--command 'cd clipa_eqx && bash" in done.stdout
    assert pod("set_up_env", "--dry-run", FOLDER="", PYTHON="").stdout.count("install python3.11'") == 1


def test_a_machine_without_gcloud_is_an_error_of_one_line(pod):
    (pod.folder / "bin" / "gcloud").unlink()
    for tool in ("bash", "dirname"):
        (pod.folder / "bin" / tool).symlink_to(shutil.which(tool))
    done = pod("pre_training", variables={"PATH": str(pod.folder / "bin")})
    assert (done.returncode, done.stderr) == (2, "error: there is no gcloud; install the Google Cloud CLI and log in\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_the_flags_of_a_script(script, pod):
    done = pod.run(script, "--help")
    assert done.returncode == 0
    assert f"scripts/{script}.sh tpu.env [--dry-run]" in done.stdout
    for flag in ("--stop", "--status"):
        assert (flag in done.stdout) == (script != "set_up_env")
    if script == "set_up_env":
        assert pod(script, "--stop").returncode == 2


def test_the_example_has_the_settings_and_works(pod):
    example = ROOT / "scripts" / "tpu.env.example"
    names = re.findall(r"^([A-Z_]+)=", example.read_text(encoding="utf-8"), re.MULTILINE)
    common = (ROOT / "scripts" / "tpu_common.sh").read_text(encoding="utf-8")
    listed = re.findall(r'^(?:required|settings\+?)="(?:\$required )?(.*)"$', common, re.MULTILINE)
    assert names == " ".join(listed).split()
    for script in SCRIPTS:
        assert pod.run(script, example, "--dry-run").returncode == 0
