"""Plan a run: compile its step for a TPU slice, without a TPU, and say whether it fits, how long it takes and costs."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError

EPILOG = """The training step is the real one, compiled by libtpu (the extra `plan`), without a TPU and a network, in a
minute or more. The result has, per device: parameters, optimizer state, temporaries and activations; the collectives
of a step with their bytes; lower bounds of the time of a step; pairs per second, hours and dollars at the stated
utilization. If the step does not fit, changes that give the same results except for rounding are compiled in the order
of what they cost, until one fits. --table prints the published hours and dollars of the reference next to a model of
cost, and needs no compiler.
After the config file come overrides, as for training: --optim.peak-lr 4e-4.
Exit codes: 0 done, also if the step does not fit, 2 a mistake in config, mesh or topology, 1 anything else."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", metavar="CONFIG.py")
    parser.add_argument("--topology", metavar="v3:16x16", help="the slice: chip, and chips along each axis of its grid")
    parser.add_argument(
        "--mesh", metavar="64x8x1", help="sizes of the axes data, fsdp and tensor; default: the config's"
    )
    parser.add_argument("--table", action="store_true", help="print the published costs next to the model of cost")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--as-is", action="store_true", help="compile no changes if the step does not fit")
    parser.add_argument(
        "--utilization",
        type=float,
        metavar="SHARE",
        help="useful operations as a share of the peak; default: 0.27, as the published hours of the reference imply",
    )
    parser.add_argument("--dollars-per-chip-hour", type=float, metavar="PRICE", help="default: the list price of 2025")
    parser.add_argument(
        "--records",
        type=int,
        metavar="N",
        help="pairs of the data, for runs whose length is in epochs; default: 400 million",
    )
    arguments, overrides = parser.parse_known_args(argv)
    if arguments.table:
        _refuse_flags(parser, arguments, overrides)
    elif arguments.config is None or arguments.topology is None:
        raise ConfigError("give a config file and --topology, such as --topology v3:16x16, or --table alone")
    for name in ("utilization", "dollars_per_chip_hour", "records"):
        value = getattr(arguments, name)
        if value is not None and (not 0 < value < float("inf") or (name == "utilization" and value > 1)):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is {value:g}; give a positive number" + (" up to 1" * (name == "utilization")))

    from clipa_eqx.planning.slices import check_compiler, parse_topology, set_environment

    if not arguments.table:
        parse_topology(arguments.topology)
        check_compiler()
    set_environment()
    # The work needs jax; --help does not.
    from clipa_eqx.programs import planned_run

    if arguments.table:
        planned_run.print_table(as_json=arguments.json)
        return
    planned_run.print_plan(
        Path(arguments.config),
        overrides,
        topology=arguments.topology,
        mesh=arguments.mesh,
        as_json=arguments.json,
        as_is=arguments.as_is,
        utilization=arguments.utilization,
        dollars_per_chip_hour=arguments.dollars_per_chip_hour,
        records=arguments.records,
        program=f"{parser.prog} {arguments.config}",
        program_flags=parser.flags,
    )


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _refuse_flags(parser: ArgumentParser, arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Refuse what has no effect on the table."""
    given = [name for name, value in vars(arguments).items() if value not in (None, False) and name not in _OF_TABLE]
    if overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    if given:
        flags = [name if name == "config" else f"--{name.replace('_', '-')}" for name in given]
        raise ConfigError(f"--table is about the published runs; leave out {', '.join(flags)}")


_OF_TABLE = ("table", "json")
