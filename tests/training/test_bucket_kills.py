"""Runs in buckets whose processes are killed at any moment, stall, or train together as several processes."""

import pytest
from support.bucket_runs import committed_in, downloaded
from support.bucket_servers import bucket_server
from support.fork_server import cpu_server
from support.kill_series import by, interrupt
from support.killed_runs import LONGEST, Fault, Run
from support.train_processes import write_config

from clipa_eqx.cli import STALLED
from clipa_eqx.training.flight import recorded_steps

pytestmark = pytest.mark.slow

STEPS = 12
PARTS = {
    "start": (("start-up", "preparation", "lock"), 5),
    "compile": (("compile", "claim", "first state"), 5),
    "steps": (("state", "step"), 4),
    "reports": (("first batch", "reporting", "evaluation"), 5),
    "saves": (("restore", "saving", "save", "deleting"), 6),
    "end": (("final model", "page", "end"), 5),
}
"""Phases that are interrupted in a part, and the number of its kills. Phases that exclude each other are apart."""

STUCK = """
import time
finish = Reports.finish


def finish_and_stay(self, numbers, **rest):
    finish(self, numbers, **rest)
    if numbers.step == 6:
        time.sleep(600)


Reports.finish = finish_and_stay
"""


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    with bucket_server(request.param) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.variables(patience=300).items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # gcsfs reads the variable when it is imported, see Bucket._driver.
    variables = {"ALSO_IMPORTED": "gcsfs s3fs", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    with cpu_server(tmp_path_factory.mktemp("compiled"), **variables) as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bucket_kills")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "run.py", steps=STEPS, every=3, keep=2)


def in_bucket(server, bucket, config, folder, name, **rest):
    """A run in the bucket; ``folder`` gets its logs."""
    place = folder / f"{bucket.scheme}-{name}"
    return Run(server, config, place, url=bucket.url(place.name), variables=bucket.variables(patience=300), **rest)


@pytest.fixture(scope="module")
def whole(server, config, folder):
    """A local run that nothing interrupted."""
    run = Run(server, config, folder / "whole")
    run.finish()
    return run


@pytest.mark.parametrize("part", PARTS)
def test_thirty_kills_in_all_phases_change_nothing(server, bucket, config, folder, whole, part):
    phases, total = PARTS[part]
    seed = list(PARTS).index(part)
    faults = interrupt(
        lambda number: in_bucket(server, bucket, config, folder, f"{part}-{number}", seed=10 * seed + number),
        whole,
        phases,
        total=total,
        steps=STEPS,
        seed=seed,
        kinds=("SIGKILL", "SIGKILL", "SIGTERM"),
    )
    print(by("kind", faults), by("phase", faults))
    assert faults.total() == total
    assert by("phase", faults).keys() == set(phases)


def test_the_parts_are_thirty_kills_in_all_phases():
    assert {phase for phases, _ in PARTS.values() for phase in phases} == LONGEST.keys()
    assert sum(total for _, total in PARTS.values()) == 30


def test_two_processes_save_together_and_resume_as_in_a_local_folder(server, bucket, config, folder):
    whole = Run(server, config, folder / f"pair-{bucket.scheme}", processes=2)
    whole.finish()
    run = in_bucket(server, bucket, config, folder, "together", processes=2)
    run.stop_after(5)
    assert committed_in(run.url) == [3]
    for fault in (Fault("SIGKILL", "save", 1, most=1), Fault("SIGTERM", "step", 1, most=1)):
        run.live(fault)
    run.finish()
    run.assert_is(whole, steps=STEPS)


def test_a_run_that_stalls_leaves_the_stacks_and_last_steps_of_all_processes_in_the_bucket(server, bucket, folder):
    config = write_config(folder / f"stuck-{bucket.scheme}.py", steps=STEPS, every=3, keep=2, before=STUCK)
    run = in_bucket(server, bucket, config, folder, "stuck", processes=2, flags=("--watchdog", "20"))
    processes = run.start()
    assert [process.wait(300) for process in processes] == [STALLED] * 2, run.said()
    copy = downloaded(run.url, run.workdir)
    for number in range(2):
        text = (copy / f"flight/stacks-{number}.txt").read_text()
        assert "no progress for 20 s" in text
        assert "finish_and_stay" in text
    lines = recorded_steps(copy / "flight")
    assert max(lines) >= 7
    assert [line["process"] for line in lines[6]] == [0, 1]
    assert len((copy / "metrics.jsonl").read_text().splitlines()) >= 5
