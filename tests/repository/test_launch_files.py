"""The JobSets: fields that decide when a run starts again, and their commands, which the programs' parsers accept."""

import dataclasses
import re
import shlex
from functools import partial
from string import Template

import pytest
import yaml
from support.paths import ROOT

from clipa_eqx.cli import GUARDED, INTERRUPTED, USAGE, run
from clipa_eqx.config_files import load_config
from clipa_eqx.devices import coordinator
from clipa_eqx.programs import train

LAUNCH = ROOT / "scripts" / "launch"
CHIPS = {"nvidia.com/gpu": 8, "google.com/tpu": 4}


def jobset(kind):
    return yaml.safe_load((LAUNCH / f"jobset_{kind}.yaml").read_text(encoding="utf-8"))


def parts(kind):
    """The specs of the JobSet, its job and its pod, and the container."""
    whole = jobset(kind)["spec"]
    [hosts] = whole["replicatedJobs"]
    job = hosts["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    return whole, job, pod, container


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_mistake_ends_the_job_set_and_all_else_starts_again(kind):
    whole, job, pod, container = parts(kind)
    policy = whole["failurePolicy"]
    assert policy["maxRestarts"] > 10
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    # Only the rule for mistakes gives a job the reason PodFailurePolicy; backoffLimit 0 gives the others another one.
    assert job["backoffLimit"] == 0
    mistake, saved, drained = job["podFailurePolicy"]["rules"]
    for rule, action, codes in ((mistake, "FailJob", [USAGE, GUARDED]), (saved, "Ignore", [INTERRUPTED])):
        assert rule["action"] == action
        assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": codes}
    assert drained["action"] == "Ignore"
    assert drained["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert pod["terminationGracePeriodSeconds"] >= 300


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_each_host_gets_its_number_and_shared_memory(kind):
    whole, job, pod, container = parts(kind)
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"]
    assert whole["network"] == {"enableDNSHostnames": True}
    assert container["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/dev/shm"}]
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory"}


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_command_is_one_that_the_program_accepts(kind, capsys):
    _, job, _, container = parts(kind)
    assert container["command"] == ["python", "scripts/train.py"]
    numbers = {one["name"]: one["valueFrom"]["fieldRef"]["fieldPath"] for one in container.get("env", ())}
    for index in range(job["parallelism"]):
        values = dict.fromkeys(numbers, str(index))
        words = [Template(word.replace("$(", "${").replace(")", "}")).substitute(values) for word in container["args"]]
        if index in (0, job["parallelism"] - 1):
            assert run(partial(train.main, [*words, "--print-config"])) == 0
            assert '"gs://BUCKET/laion2b"' in capsys.readouterr().out
    assert set(numbers.values()) <= {"metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    assert "--distributed" in container["args"]


def flags(kind):
    return dict(word.split("=", 1) for word in parts(kind)[3]["args"] if "=" in word)


def test_gpu_hosts_meet_at_the_name_that_the_job_set_gives_host_0():
    name, job = jobset("gpu")["metadata"]["name"], jobset("gpu")["spec"]["replicatedJobs"][0]
    given = flags("gpu")
    place = coordinator(given["--coordinator-address"], int(given["--num-processes"]), 1)
    assert place is not None
    # <job set>-<replicated job>-<number of the job>-<number of the pod>.<subdomain, by default the job set>
    assert place.address.rsplit(":", 1)[0] == f"{name}-{job['name']}-0-0.{name}"
    assert place.processes == job["template"]["spec"]["parallelism"]


def test_tpu_hosts_are_found_by_jax_and_their_number_is_that_of_the_topology():
    _, job, pod, container = parts("tpu")
    assert not any(word.startswith("--coordinator") for word in container["args"])
    width, height = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert width * height == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_the_devices_divide_the_batch_and_hold_the_mesh(kind):
    _, job, _, container = parts(kind)
    [(name, count)] = container["resources"]["limits"].items()
    assert CHIPS[name] == count
    config = load_config(ROOT / container["args"][0])
    axes = dataclasses.asdict(config.mesh)
    devices = count * job["parallelism"]
    inner = axes["fsdp"] * axes["tensor"]
    assert devices % inner == 0
    assert config.batch_size % (devices // axes["tensor"]) == 0


def commands_of_the_page():
    """The words after the program in each command of docs/scale.md that starts a run."""
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```(?:sh|text)\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    starts = re.compile(r"(?:python scripts/train\.py|scripts/launch/one_host\.sh|sbatch .*scripts/launch/slurm\.sh) ")
    return [line[found.end() :] for line in lines if (found := starts.match(line))]


@pytest.mark.parametrize("words", commands_of_the_page())
def test_a_command_of_the_page_is_one_that_the_program_accepts(words, capsys):
    assert run(partial(train.main, [*shlex.split(words), "--print-config"])) == 0
    assert capsys.readouterr().err == ""


def test_the_page_starts_runs_in_each_way():
    assert len(commands_of_the_page()) == 4


def test_every_launch_file_is_on_the_page():
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert [path.name for path in LAUNCH.iterdir() if f"scripts/launch/{path.name}" not in text] == []
