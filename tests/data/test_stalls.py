"""A batch that does not come is reported with the worker, the record and the shard; a dead worker ends the stream."""

import functools
import logging
import os
import re
import signal
import threading
import time
from unittest import mock

import pytest
from support.streams import ON_DEMAND
from support.worker_functions import evaluate_at, leave, random_row

from clipa_eqx.data.open_shards import OpenShards
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.progress import COMPLETE, PREPARING, BatchPosition, BatchProgress
from clipa_eqx.data.stalls import WARN_SECONDS, StallWatch
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.errors import DataError

SOON = 0.2


def messages(caplog, level):
    return [one.getMessage() for one in caplog.records if one.levelno == level and "data" in one.name]


def end_when_warned(caplog, pattern, end):
    """Call ``end`` in a thread as soon as a warning matches; the thread returns at the latest after 60 s."""

    def run():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if any(re.search(pattern, text) for text in messages(caplog, logging.WARNING)):
                break
            time.sleep(0.02)
        end()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("config", "maker"),
    [
        (ON_DEMAND, "this process"),
        (StreamConfig(threads=2), "this process"),
        (StreamConfig(workers=1, threads=1), r"worker process 0 of 0 to 0 \(pid \d+\)"),
        (StreamConfig(workers=2, threads=2), r"worker process 1 of 0 to 1 \(pid \d+\)"),
    ],
    ids=str,
)
def test_a_stalled_transform_is_reported_with_worker_record_and_shard(source, tmp_path, caplog, config, maker):
    """Record 70 of an evaluation in batches of 10 is row 0 of batch 7, which worker 7 % workers makes."""
    caplog.set_level(logging.INFO)
    path = tmp_path / "continue"
    pattern = (
        f"no batch for .* s: {maker} makes batch 7 and has read and now prepares record 70 "
        rf"\({re.escape(str(source.folder))}/\S+00001\S*, record 10\) for row 0 of 10. .*storage"
    )
    transform = functools.partial(evaluate_at, key="70", path=path)
    with eval_stream(source, transform, batch_size=10, config=config, warn_seconds=SOON) as stream:
        helper = end_when_warned(caplog, pattern, path.touch)
        assert [int(batch["sample_id"][0]) for batch in stream] == list(range(0, 200, 10))
        helper.join()
    warnings = messages(caplog, logging.WARNING)
    assert any(re.search(pattern, text) for text in warnings), warnings
    assert [text for text in messages(caplog, logging.INFO) if re.match("batch 7 came after .* s", text)]


def test_a_stalled_read_is_reported_with_its_shard(source, caplog):
    arrived = threading.Event()
    reader = OpenShards.reader

    def wait(self, shard):
        assert arrived.wait(60)
        return reader(self, shard)

    with (
        mock.patch.object(OpenShards, "reader", wait),
        train_stream(source, random_row, batch_size=3, seed=0, start_step=5, warn_seconds=SOON) as stream,
    ):
        pattern = r"this process makes batch 5 and reads record (\d+) \((\S+), record (\d+)\) for row 0 of 3"
        helper = end_when_warned(caplog, pattern, arrived.set)
        ids = next(stream)["sample_id"].tolist()
        helper.join()
    found = re.search(pattern, "\n".join(messages(caplog, logging.WARNING)))
    assert found
    record = int(found[1])
    assert record == ids[0]
    assert source.describe(record) == f"{found[2]}, record {found[3]}"


def test_a_stopped_worker_is_reported_with_the_command_that_continues_it(source, caplog):
    caplog.set_level(logging.INFO)
    config = StreamConfig(workers=1, threads=1)
    with train_stream(source, random_row, batch_size=2, seed=0, config=config, warn_seconds=SOON) as stream:
        pid = int(next(stream)["pid"][0])
        os.kill(pid, signal.SIGSTOP)
        pattern = rf"worker process 0 .*pid {pid}, which a signal stopped: `kill -CONT {pid}` lets it continue"
        helper = end_when_warned(caplog, pattern, lambda: os.kill(pid, signal.SIGCONT))
        for _ in range(2 * config.batches_ahead):
            next(stream)
        helper.join()
    assert re.search(pattern, "\n".join(messages(caplog, logging.WARNING)))


def wait_for_warnings(caplog, number):
    deadline = time.monotonic() + 20
    while len(messages(caplog, logging.WARNING)) < number and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_stall_gives_one_warning_per_interval_and_no_more_when_batches_come(caplog):
    caplog.set_level(logging.INFO)
    watch = StallWatch(lambda batch: f"reason of {batch}", first=3, seconds=0.5)
    watch.start()
    with watch.waiting():
        wait_for_warnings(caplog, 2)
    for _ in range(3):
        with watch.waiting():
            pass
        time.sleep(0.3)
    with watch.waiting():
        wait_for_warnings(caplog, 3)
    watch.end()
    warnings = messages(caplog, logging.WARNING)
    assert [text.split(": ")[1] for text in warnings] == ["reason of 3", "reason of 3", "reason of 7"]
    assert [text.split(" after")[0] for text in messages(caplog, logging.INFO)] == ["batch 3 came", "batch 7 came"]
    assert WARN_SECONDS == 60.0


def test_the_thread_that_warns_ends_with_the_stream(source):
    def watching():
        return {thread for thread in threading.enumerate() if thread.name == "stall-watch"}

    before = watching()
    stream = train_stream(source, random_row, batch_size=2, seed=0)
    assert len(watching() - before) == 1
    del stream
    deadline = time.monotonic() + 20
    while watching() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not watching() - before


def test_a_worker_that_ends_by_itself_ends_the_stream(source):
    config = StreamConfig(workers=1, threads=1)
    stream = train_stream(source, functools.partial(leave, code=3), batch_size=2, seed=0, config=config)
    with pytest.raises(DataError, match=r"ended with exit code 3: the log above.*data.stream.workers 0"), stream:
        next(stream)


def test_a_position_is_that_of_its_batch_only():
    progress = BatchProgress(workers=2, batches=3)
    assert (progress.process(1), progress.position(4)) == (None, None)
    progress.set_position(4, stage=PREPARING, row=2, record=9)
    progress.set_position(5, stage=COMPLETE)
    assert progress.position(4) == BatchPosition(PREPARING, 2, 9)
    assert progress.position(5) == BatchPosition(COMPLETE, 0, 0)
    assert progress.position(1) is None  # the same place in the table as batch 4
    progress.set_process(1)
    assert (progress.process(0), progress.process(1)) == (None, os.getpid())
