"""Several processes: different commands are refused on all of them, and the loss of one does not hang the others."""

import time

import jax
import pytest
from support.kill_series import by, interrupt
from support.killed_runs import Fault, Run
from support.train_processes import write_config

from clipa_eqx.agreement import check_same_entries

STEPS = 12
END_SECONDS = 150.0
"""Longest time after which the other processes end, of which JAX takes up to 100 to notice that one sends nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lost")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "run.py", steps=STEPS, every=3, keep=2)


def two(server, config, workdir, *, seed=0):
    return Run(server, config, workdir, seed=seed, flags=("--mesh.fsdp", "2"), processes=2)


@pytest.fixture(scope="module")
def whole(server, config, folder):
    run = two(server, config, folder / "whole")
    run.finish()
    return run


def test_entries_of_a_single_process_agree():
    assert jax.process_count() == 1
    check_same_entries({"seed": 1}, what="configs")


def test_processes_with_different_configs_end_all_and_say_what_differs(server, config, tmp_path):
    run = Run(server, config, tmp_path / "run", processes=2)
    processes = run.start(own=[(), ("--seed", "5", "--optim.peak-lr", "0.5")])
    assert [process.wait(120) for process in processes] == [2, 2], run.said()
    for number in range(2):
        said = run.log(number).read_text()
        assert "error: the processes were given different configs, data or vocabularies; start all of them" in said
        assert f"(this is process {number}), 2 problems:" in said
        assert "config/seed: 5 on process 1, 0 on process 0" in said
        assert "config/optim/peak_lr: 0.5 on process 1, 0.001 on process 0" in said
        assert "Traceback" not in said
    assert not run.workdir.exists()


@pytest.mark.slow
def test_processes_with_other_code_end_all_and_say_so(server, config, tmp_path):
    run = Run(server, config, tmp_path / "run", processes=2)
    processes = run.start(OTHER_CODE="1")
    assert [process.wait(120) for process in processes] == [2, 2], run.said()
    for number in range(2):
        said = run.log(number).read_text()
        assert "error: the processes were given different versions of the code; start all of them" in said
        assert "SHA-256 of clipa_eqx: other on process 1, " in said
    assert not run.workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["compile", "step", "saving"])
@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_process_ends_and_both_resume_bit_exactly(server, config, folder, whole, phase, lost):
    run = two(server, config, folder / f"{phase}-{lost}")
    processes = run.start()
    run.wait_for(Fault("SIGKILL", phase, lost), processes)
    processes[lost].kill()
    since = time.monotonic()
    code = processes[1 - lost].wait(END_SECONDS)
    print(f"{phase}, process {lost}: the other ended with {code} after {time.monotonic() - since:.1f} s")
    assert code != 0, run.said()
    run.finish()
    run.assert_is(whole, steps=STEPS)


@pytest.mark.slow
def test_two_dozen_faults_of_one_of_two_processes_in_all_phases_change_nothing(server, config, folder, whole):
    phases = (
        *("start-up", "preparation", "lock", "compile", "claim", "first state", "restore", "state", "first batch"),
        *("step", "reporting", "evaluation", "saving", "save", "deleting", "final model", "end"),
    )
    faults = interrupt(
        lambda number: two(server, config, folder / f"many-{number}", seed=number),
        whole,
        phases,
        total=24,
        steps=STEPS,
        seed=5,
        kinds=("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM"),
        damage=0.2,
    )
    print(by("kind", faults), by("phase", faults), by("process", faults))
    assert faults.total() == 24
    assert len(by("phase", faults)) >= 12
    assert set(by("process", faults)) == {0, 1}
