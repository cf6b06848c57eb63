"""A run may be resumed on another mesh and by another number of processes: same samples, same losses to rounding."""

from dataclasses import dataclass

import numpy as np
import pytest
from support.killed_runs import Run
from support.train_processes import deterministic, write_config

STEPS, EVERY = 20, 5


@dataclass(frozen=True)
class Place:
    """Processes, devices of each, and flags of a part of a run."""

    processes: int
    devices: int
    flags: tuple[str, ...] = ()


ONE = Place(1, 8)
TWO = Place(2, 4)
FSDP_2, FSDP_4 = ("--mesh.fsdp", "2"), ("--mesh.fsdp", "4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("elastic")


@pytest.fixture(scope="module")
def config(folder):
    return write_config(folder / "run.py", steps=STEPS, every=EVERY)


def run_on(places, *, server, config, workdir, steps=EVERY):
    """A run that each place trains so many steps of, and the last one to its end."""
    run = Run(server, config, workdir, is_stored=False)
    for place in places:
        run.processes, run.devices, run.flags = place.processes, place.devices, place.flags
        if place is places[-1]:
            run.finish()
        else:
            run.stop_after(steps)
    return run


def assert_same_losses(run, expected):
    """The losses are equal up to the rounding of a float32: 1e-6 is 8 to 17 units in the last place.

    The limit is relative, because the losses are between 2 and 6, where one unit is 2.4e-7 or 4.8e-7: an absolute limit
    of 1e-6 would be two units.
    """
    np.testing.assert_allclose(losses(run), losses(expected), rtol=1e-6)


def losses(run):
    return np.array([line["loss"] for line in deterministic(run.workdir)])


@pytest.fixture(scope="module")
def whole(server, config, folder):
    """The uninterrupted run of one process with 8 devices."""
    return run_on([ONE], server=server, config=config, workdir=folder / "whole")


CASES = {
    "two": [TWO],
    "two-fsdp-2": [Place(2, 4, FSDP_2)],
    "two-fsdp-4": [Place(2, 4, FSDP_4)],
    "two-one": [TWO, ONE],
    "one-two": [ONE, TWO],
    "all": [Place(2, 4, FSDP_2), Place(1, 8, FSDP_4), Place(1, 1), Place(2, 1, FSDP_2)],
}


def test_two_processes_save_together_and_one_completes_the_same_run(server, tmp_path):
    config = write_config(tmp_path / "run.py", steps=4, every=2)
    plain = ("--zero-shot", "none")
    one, two = Place(1, 4, (*plain, *FSDP_2)), Place(2, 2, (*plain, *FSDP_2))
    expected = run_on([one], server=server, config=config, workdir=tmp_path / "whole")
    run = run_on([two, one], server=server, config=config, workdir=tmp_path / "run", steps=2)
    assert run.trained_on() == expected.trained_on()
    assert [line["step"] for line in deterministic(run.workdir)] == [1, 2, 3, 4]
    assert_same_losses(run, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_any_place_gives_the_same_run(server, config, folder, whole, name):
    run = run_on(CASES[name], server=server, config=config, workdir=folder / name)
    assert [line["step"] for line in deterministic(run.workdir)] == list(range(1, STEPS + 1))
    assert run.trained_on() == whole.trained_on()
    assert_same_losses(run, whole)


@pytest.mark.slow
def test_a_tensor_axis_over_two_processes_gives_the_same_run(server, config, folder, whole):
    run = run_on([Place(2, 1, ("--mesh.tensor", "2"))], server=server, config=config, workdir=folder / "tensor")
    # Each process loads all rows, because its device holds a part of what is computed for each.
    assert run.trained_on() == {step: 2 * ids for step, ids in whole.trained_on().items()}
    assert_same_losses(run, whole)
