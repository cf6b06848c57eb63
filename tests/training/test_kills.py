"""A run that is killed at any moment, without warning and again and again, ends as the run that was not."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.kill_series import by, interrupt
from support.killed_runs import LONGEST, WORKING, Fault, Run
from support.train_processes import write_config

STEPS = 12
ALL = tuple(LONGEST)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "run.py", steps=STEPS, every=3, keep=2)


@pytest.fixture(scope="module")
def whole(server, config, folder):
    run = Run(server, config, folder / "whole")
    run.finish()
    return run


def test_ten_kills_spread_over_all_phases_change_nothing(server, config, folder, whole):
    run = Run(server, config, folder / "ten", seed=3)
    for kind, phase in (
        ("SIGKILL", "lock"),
        ("SIGKILL", "compile"),
        ("SIGTERM", "step"),
        ("SIGKILL", "restore"),
        ("SIGKILL", "first batch"),
        ("SIGTERM", "evaluation"),
        ("SIGKILL", "saving"),
        ("SIGKILL", "deleting"),
        ("SIGKILL", "final model"),
        ("SIGKILL", "page"),
    ):
        run.live(Fault(kind, phase, most=1))
    run.finish()
    assert run.faults.total() >= 8, run.faults  # one that comes at the end may be too late
    run.assert_is(whole, steps=STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("half", [1, 2])
def test_eighty_faults_in_all_phases_with_full_disks_and_damaged_checkpoints_change_nothing(
    server, config, folder, whole, half
):
    def interrupted(part):
        return interrupt(
            lambda number: Run(
                server, config, folder / f"{half}-{part}-{number}", seed=1000 * half + 10 * part + number
            ),
            whole,
            ALL,
            total=40,
            steps=STEPS,
            seed=10 * half + part,
            kinds=("SIGKILL", "SIGKILL", "SIGTERM", "full disk"),
            damage=0.2,
        )

    with ThreadPoolExecutor(2) as pool:  # a process that starts uses one core
        faults = sum(pool.map(interrupted, range(2)), Counter())
    print(by("kind", faults), by("phase", faults))
    assert faults.total() == 80
    assert set(by("kind", faults)) == {"SIGKILL", "SIGTERM", "full disk"}
    assert set(by("phase", faults)) == set(ALL)


@pytest.mark.slow
def test_twenty_kills_of_data_workers_and_their_parents_change_nothing(server, config, folder):
    flags = ("--data.stream.workers", "1", "--zero-shot", "none")
    whole = Run(server, config, folder / "workers", flags=flags)
    whole.finish()
    faults = interrupt(
        lambda number: Run(server, config, folder / f"workers-{number}", seed=number, flags=flags),
        whole,
        ("first batch", *WORKING, "final model"),
        total=20,
        steps=STEPS,
        seed=1,
        kinds=("worker", "worker", "SIGKILL", "SIGTERM"),
    )
    print(by("kind", faults), by("phase", faults))
    assert faults.total() == 20
    assert by("kind", faults)["worker"] >= 6
