"""Devices in words, accelerators that are not used, and processes that do not find each other: one message each."""

import os
import socket
import subprocess
import sys

import pytest
from support.paths import ROOT

from clipa_eqx import devices as module
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.devices import (
    Accelerators,
    Coordinator,
    connect,
    coordinator,
    in_words,
    installed_plugins,
    open_devices,
    unused_accelerator,
    visible_accelerators,
)
from clipa_eqx.errors import ConfigError


class FakeDevice:
    def __init__(self, kind, process=0):
        self.device_kind, self.process_index = kind, process


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([FakeDevice("cpu")], "1 x cpu"),
        ([FakeDevice("NVIDIA H100")] * 8, "8 x NVIDIA H100"),
        ([FakeDevice("TPU v5 lite", n // 8) for n in range(16)], "16 x TPU v5 lite on 2 hosts"),
        ([FakeDevice("NVIDIA H100"), FakeDevice("NVIDIA A100")], "1 x NVIDIA H100 + 1 x NVIDIA A100"),
    ],
)
def test_devices_are_named_by_kind_and_number(devices, expected):
    assert in_words(devices) == expected


def files(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("0x1ae0\n" if name.endswith("vendor") else "")
    return visible_accelerators(root)


@pytest.mark.parametrize(
    ("names", "nvidia", "tpu"),
    [
        ((), 0, 0),
        (("dev/nvidia0", "dev/nvidia1", "dev/nvidiactl", "dev/nvidia-uvm"), 2, 0),
        (("dev/accel0", "dev/accel1"), 0, 2),
        (("dev/vfio/0", "dev/vfio/vfio", "sys/bus/pci/devices/0000:00:04.0/vendor"), 0, 1),
        (("dev/vfio/0", "dev/vfio/vfio"), 0, 0),
    ],
)
def test_accelerators_are_seen_by_their_device_files(names, nvidia, tpu, tmp_path):
    found = files(tmp_path, *names)
    assert (len(found.nvidia), len(found.tpu)) == (nvidia, tpu)


GPU, TPU = Accelerators(nvidia=("/dev/nvidia0", "/dev/nvidia1")), Accelerators(tpu=("/dev/accel0",))


@pytest.mark.parametrize(
    ("visible", "plugins", "words"),
    [
        (GPU, (), ["2 x NVIDIA GPU (/dev/nvidia0)", "runs on the CPU", "pip install 'jax[cuda12]'"]),
        (GPU, ("libtpu 0.0.42",), ["pip install 'jax[cuda12]'"]),
        (GPU, ("jax-cuda12-plugin 0.10.2",), ["jax-cuda12-plugin 0.10.2 is installed", "check the driver"]),
        (TPU, (), ["1 x TPU (/dev/accel0)", "pip install 'jax[tpu]'"]),
        (TPU, ("libtpu 0.0.42",), ["libtpu 0.0.42 is installed"]),
    ],
)
@pytest.mark.parametrize("asked", [None, "", "cuda"])
def test_an_accelerator_that_is_not_used_is_a_warning_with_the_command_that_helps(visible, plugins, words, asked):
    warning = unused_accelerator(visible, plugins, asked=asked)
    assert [word for word in words if word not in warning] == [], warning


def test_no_warning_without_an_accelerator_or_where_the_cpu_was_asked_for():
    assert unused_accelerator(Accelerators(), ("libtpu 0.0.42",), asked=None) is None
    assert unused_accelerator(GPU, (), asked="cpu") is None
    assert unused_accelerator(GPU, (), asked="cuda,cpu") is None


def test_the_warning_is_printed_once_when_the_devices_are_opened(monkeypatch, caplog):
    monkeypatch.setattr(module, "visible_accelerators", lambda: GPU)
    monkeypatch.setattr(module, "_asked", lambda: None)
    open_devices.cache_clear()
    found = open_devices()
    assert open_devices() == found
    assert {device.platform for device in found} == {"cpu"}
    (record,) = caplog.records
    assert "2 x NVIDIA GPU" in record.getMessage()


def test_packages_are_named_with_their_versions(monkeypatch):
    monkeypatch.setattr(module, "_PLUGINS", ("jaxlib", "no-such-plugin"))
    (one,) = installed_plugins()
    assert one.startswith("jaxlib 0.")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("h:1", None, None), "--coordinator-address without --num-processes and --process-index; give all three"),
        ((None, 2, 0), "--num-processes and --process-index without --coordinator-address"),
        (("host", 2, 0), "give host and port of process 0"),
        (("host:0", 2, 0), "give host and port"),
        ((":1", 2, 0), "give host and port"),
        (("host:x", 2, 0), "give host and port"),
        (("host:1", 0, 0), "--num-processes is 0; it must be at least 1"),
        (("host:1", 2, 2), "--process-index is 2; with --num-processes 2 give 0 to 1"),
        (("host:1", 2, -1), "--process-index is -1"),
    ],
)
def test_a_place_that_cannot_be_is_refused_by_its_flag(flags, message):
    with pytest.raises(ConfigError, match=message):
        coordinator(*flags)


def test_all_three_flags_or_none_are_accepted():
    assert coordinator(None, None, None) is None
    assert coordinator("[::1]:12", 2, 1) == Coordinator(address="[::1]:12", processes=2, index=1)


def test_outside_of_a_cluster_the_flags_are_named():
    with pytest.raises(
        ConfigError, match=r"JAX found no cluster .* --coordinator-address HOST:PORT, --num-processes N"
    ):
        connect(None)


def start(script, *arguments, **environment):
    path = {"PYTHONPATH": os.pathsep.join((str(ROOT / "tests"), str(ROOT)))}
    command = [sys.executable, f"scripts/{script}.py", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | path | environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def run_file(folder):
    config = folder / "run.py"
    config.write_text("from support import tiny_runs\n\n\ndef config():\n    return tiny_runs.run_config()\n")
    return config


def test_training_on_a_platform_that_is_not_there_ends_with_one_message(tmp_path):
    error = start("train", run_file(tmp_path), "--workdir", tmp_path / "run", JAX_PLATFORMS="cuda")
    assert error.startswith("error: JAX_PLATFORMS is 'cuda', which JAX cannot use here (")
    assert "pip install 'jax[cuda12]'" in error
    assert not (tmp_path / "run").exists()


def test_scoring_on_a_platform_that_is_not_there_ends_with_one_message(tmp_path):
    write_records([Record(key="a", image=b"", label=0)], tmp_path / "data", class_names=("cat",))
    flags = ("--suite", "zero-shot", "--data", tmp_path / "data", "--out", tmp_path / "out.json")
    error = start("evaluate", tmp_path / "model", *flags, JAX_PLATFORMS="bogus")
    assert error.startswith("error: JAX_PLATFORMS is 'bogus', which JAX cannot use here (")


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_is_alone_ends_in_time_with_one_message(index, tmp_path):
    address = f"localhost:{free_port()}"
    place = ("--distributed", "--coordinator-address", address, "--num-processes", "2", "--process-index", index)
    flags = ("--workdir", tmp_path / "run", "--coordinator-timeout", "1")
    error = start("train", run_file(tmp_path), *place, *flags, JAX_PLATFORMS="cpu")
    assert error.startswith(f"error: not all processes of the run reached the coordinator {address} within 1 s. ")
    assert not (tmp_path / "run").exists()
