"""A replayed step as a report in the terminal."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax

from clipa_eqx.buckets.mirror import local_copy, named
from clipa_eqx.cli import FAILED, OK
from clipa_eqx.config_files import apply_overrides
from clipa_eqx.devices import open_devices
from clipa_eqx.errors import ConfigError, counted
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.saved.kinds import CONFIG_FILE, expect_kind
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.training.replay import Replayed, replay
from clipa_eqx.training.run_folder import read_record

_MOST_ROWS = 20


def report(
    run: Path,
    step: int,
    overrides: Sequence[str],
    *,
    devices: int,
    is_from_start: bool,
    program: str,
    program_flags: Sequence[str] = (),
) -> int:
    """Replay a step, print what was found, and return the exit code.

    Args:
        overrides: flags that change the config of the run.
        devices: number of CPU devices that are simulated; with more than one, the mesh is that of the run.
        is_from_start: begin with the first state where no checkpoint is old enough.
        program: what the help of the flags calls the program.
        program_flags: flags of the program itself, which a wrong flag may have meant.

    Raises:
        ClipaError: there is no such run or step, or no state or data from before it.
    """
    with named(run):
        found = _replayed(
            local_copy(run, with_weights=False),
            step,
            overrides,
            devices=devices,
            is_from_start=is_from_start,
            program=program,
            program_flags=program_flags,
        )
    print("\n".join(lines(found)))
    return OK if found.is_reproduced else FAILED


def _replayed(
    run: Path,
    step: int,
    overrides: Sequence[str],
    *,
    devices: int,
    is_from_start: bool,
    program: str,
    program_flags: Sequence[str],
) -> Replayed:
    expect_kind(run, "run folder")
    if devices < 1:
        raise ConfigError(f"--devices is {devices}; it must be at least 1")
    jax.config.update("jax_platforms", "cpu")
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    record = read_record(run)
    config = from_json(ExperimentConfig, record["config"], where=str(run / CONFIG_FILE))
    config = apply_overrides(config, overrides, program=program, program_flags=program_flags)
    if devices == 1:
        config = dataclasses.replace(config, mesh=MeshConfig())
    return replay(config, run, step, record=record, devices=open_devices()[:devices], is_from_start=is_from_start)


def lines(found: Replayed) -> Iterator[str]:
    """The lines of the report."""
    where = f"checkpoint {found.start}" if found.start else "the first state"
    yield f"step {found.step}, replayed from {where}"
    for name, value in found.values.items():
        if isinstance(value, list):
            continue
        old = found.recorded.get(name)
        if old is None:
            yield f"  {name}: {value:.9g}"
        else:
            same = "same bits" if found.equals(name) else "differs"
            yield f"  {name}: {value:.9g}, recorded {old:.9g}, {same}"
    yield f"finite: {'yes' if found.is_finite else 'no'}"
    for row in found.bad_rows[:_MOST_ROWS]:
        yield f"row {row.row}: {' and '.join(row.towers)} embedding not finite, sample {row.sample_id} ({row.place})"
    if len(found.bad_rows) > _MOST_ROWS:
        yield f"... and {counted(len(found.bad_rows) - _MOST_ROWS, 'row')} more"
    if not found.is_finite and not found.bad_rows:
        yield "all embeddings are finite: the cause is in the temperature, the loss or the gradient, not in one row"
    if found.bad_leaves:
        more = len(found.bad_leaves) - 1
        yield f"first leaf with a gradient that is not finite: {found.bad_leaves[0]} (and {counted(more, 'leaf')} more)"
    yield verdict(found)


def verdict(found: Replayed) -> str:
    """The last line of the report: whether the step is as recorded."""
    if found.same_samples is False:
        return "the batch has other records than the flight record: are these the data of the run?"
    if not found.recorded:
        return "nothing is recorded of this step to compare with"
    if found.is_equal:
        return "reproduced bit for bit"
    if found.is_reproduced:
        return "reproduced up to rounding; the same kind of machine, with --devices as the run, gives the same bits"
    return "not reproduced: loss or gradient differ from the record by more than rounding"
