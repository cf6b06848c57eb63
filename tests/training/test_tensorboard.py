"""Event files for TensorBoard: they hold the metric log, each step once, however often the run was interrupted."""

import functools
import importlib
import struct
import sys

import numpy as np
import pytest
from support.tiny_runs import compile_once, run_config, train_on_one_device

from clipa_eqx.config_files import apply_overrides
from clipa_eqx.durations import Duration
from clipa_eqx.errors import ConfigError
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.tensorboard import EventLog

pytestmark = pytest.mark.usefixtures("quick_compile")

SHORT = functools.partial(run_config, duration=Duration(steps=8), tensorboard=True)


def checksum(data):
    """CRC-32C, masked as in record files of TensorFlow."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_events(folder):
    """All events of the only file in a folder, with its checksums verified."""
    [path] = folder.iterdir()
    data, events = path.read_bytes(), []
    parse = importlib.import_module("tensorboardX.proto.event_pb2").Event.FromString
    while data:
        [size, crc] = struct.unpack("<QI", data[:12])
        content, data, [crc_of_content] = (
            data[12 : 12 + size],
            data[16 + size :],
            struct.unpack("<I", data[12 + size :][:4]),
        )
        assert (crc, crc_of_content) == (checksum(struct.pack("<Q", size)), checksum(content))
        events.append(parse(content))
    return events


def numbers(line):
    """The numbers of a line of the metric log that an event has, as it has them."""
    kept = {name: value for name, value in line.items() if not isinstance(value, list) and name not in ("step", "time")}
    return {name: float(np.float32(value)) for name, value in kept.items()}


def check_events(workdir, *, steps):
    version, start, *events = read_events(workdir / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (0, 1)
    lines = read_metrics(workdir / "metrics.jsonl")
    assert [event.step for event in events] == [line["step"] for line in lines] == list(range(1, steps + 1))
    for event, line in zip(events, lines, strict=True):
        assert {value.tag: value.simple_value for value in event.summary.value} == numbers(line)
        assert event.wall_time == line["time"]
    assert {"loss", "lr", "grad_norm/image", "images_per_second"} <= set(numbers(lines[0]))


class Killed(Exception):
    pass


def test_an_interrupted_run_has_each_step_once(tmp_path):
    """Steps 5 and 6 are logged, then the run is killed: it resumes after the checkpoint of step 4."""

    def killed_at_8(step):
        count = iter(range(1, 100))

        def wrapped(state, batch):
            if next(count) == 8:
                raise Killed
            return step(state, batch)

        return wrapped

    with pytest.raises(Killed):
        train_on_one_device(SHORT(), tmp_path / "run", compiler=lambda *given: killed_at_8(compile_once(*given)))
    former = [event.step for event in read_events(tmp_path / "run" / "tensorboard")]
    assert former[-2:] == [5, 6]
    train_on_one_device(SHORT(), tmp_path / "run")
    check_events(tmp_path / "run", steps=8)
    # A finished run that is started again writes no step.
    train_on_one_device(SHORT(), tmp_path / "run")
    check_events(tmp_path / "run", steps=8)


def test_a_resumed_run_may_start_to_write_events(tmp_path):
    train_on_one_device(SHORT(tensorboard=False), tmp_path / "run")
    assert not (tmp_path / "run" / "tensorboard").exists()
    train_on_one_device(SHORT(), tmp_path / "run")
    check_events(tmp_path / "run", steps=8)


def test_a_later_file_follows_in_the_order_of_names_and_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "events.out.tfevents.1000000000.elsewhere").write_text("mine")
    old = tmp_path / "events.out.tfevents.3000000000.elsewhere.clipa_eqx"
    old.write_bytes(b"")
    log = EventLog(tmp_path, [{"step": 3, "loss": 1.5, "time": 2.0}])
    log.write(4, {"loss": float("nan"), "norm/blocks": [1.0], "time": 3.0})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name[:31] for name in names] == [
        "events.out.tfevents.1000000000.",
        "events.out.tfevents.3000000001.",
        "notes.txt",
    ]
    # What is written is there at once, before the file is closed.
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "events.out.tfevents.1000000000.elsewhere").unlink()
    *_, third, fourth = read_events(tmp_path)
    log.close()
    assert (third.step, third.wall_time, third.summary.value[0].simple_value) == (3, 2.0, 1.5)
    assert np.isnan(fourth.summary.value[0].simple_value)
    assert len(fourth.summary.value) == 1


def test_a_missing_package_is_found_before_anything_is_compiled_or_claimed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)

    def no_compiler(*given):
        raise AssertionError("compiled")

    with pytest.raises(ConfigError, match=r"tensorboardX is not installed; install it with `pip install tensorboardX`"):
        train_on_one_device(SHORT(), tmp_path / "run", compiler=no_compiler)
    assert not (tmp_path / "run").exists()


def test_it_is_a_flag():
    assert apply_overrides(run_config(), ["--tensorboard", "True"], program="train.py").tensorboard
