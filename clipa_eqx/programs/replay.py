"""Replay a step of a run on a CPU: the same numbers again, and which record and which leaf are not finite."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run

EPILOG = """The replay begins with the newest checkpoint before STEP, with optimizer, and repeats the steps up to STEP.
Any field of the config that a resumed run may change is a flag, such as --data.sources.0.folder DIR.
Exit codes: 0 the step is as recorded (or nothing is recorded of it), 1 it differs from the record, 2 a mistake, such as
a step that no checkpoint is left for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a step and print a report; returns the exit code. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("step", metavar="STEP", type=int, help="number of the step, as in metrics.jsonl")
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="simulate N devices with the mesh of the run; default: 1 device",
    )
    parser.add_argument(
        "--from-start", action="store_true", help="begin with the first state where no checkpoint is old enough"
    )
    arguments, overrides = parser.parse_known_args(argv)

    # The work needs jax; --help does not.
    from clipa_eqx.programs import replayed_step

    return replayed_step.report(
        arguments.run,
        arguments.step,
        overrides,
        devices=arguments.devices,
        is_from_start=arguments.from_start,
        program=parser.prog,
        program_flags=parser.flags,
    )


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)
