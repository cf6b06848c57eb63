"""Show a config file, a model folder, a run folder or a record folder."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError
from clipa_eqx.programs.mesh_flag import mesh_sizes
from clipa_eqx.similar_flags import similar

EPILOG = """Prints the resolved config as JSON and a table of all parameters: shape, number of values and, with --mesh,
how each is split over the devices. A run folder also gets its saved steps, its last metrics, its progress, and the
curves of loss, accuracy, scores, learning rate and speed: in the terminal, and as NAME-curves.png in the current folder
or the file that --out names. This works while the run trains, and changes nothing in its folder. With --report, only
the report of the run is written: state, curves, scores, facts and samples as one page. A record folder gets
its manifest, and a sheet of its first samples as a model sees them: here random crops of 112 px with color jitter,
captions and 32 tokens. The sheet is NAME-sheet.png in the current folder, NAME being that of the record folder, or the
file that --sheet names. An existing file of that name is replaced. Damaged records are named and replaced by others.
With --sheet a config gets a sheet of its run's samples instead of the table.
After a config file come overrides, as for training: --optim.peak-lr 4e-4.
Exit codes: 0 done, 2 a mistake in what is shown, 1 anything else."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print what the target is. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="CONFIG.py|MODEL|RUN|RECORDS")
    parser.add_argument(
        "--sheet",
        type=Path,
        metavar="FILE.png",
        help="write the sheet here, replacing the file; default for records: NAME-sheet.png in the current folder",
    )
    parser.add_argument("--samples", type=int, default=24, help="number of samples on the sheet (default: 24)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.png",
        help="draw the curves of a run here (.png, .svg or .pdf), replacing the file; "
        "default: NAME-curves.png in the current folder",
    )
    parser.add_argument(
        "--every",
        type=float,
        metavar="SECONDS",
        help="show progress and curves of a run again and again, until it is finished or you press Ctrl-C",
    )
    parser.add_argument(
        "--report",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE.html",
        help="write the report of a run: report.html in its folder, or this file; replaces the file. Runs write it "
        "themselves while they train",
    )
    parser.add_argument("--mesh", metavar="64x8x1", help="sizes of the axes data, fsdp and tensor; needs no devices")
    arguments, overrides = parser.parse_known_args(argv)
    target = Path(arguments.target)
    if overrides and target.suffix != ".py":
        likely = similar(overrides[0].split("=")[0], parser.flags)
        meant = f"; did you mean {' or '.join(likely)}?" if likely else ""
        raise ConfigError(f"unknown arguments {' '.join(overrides)}; only a config file takes overrides{meant}")
    if arguments.every is not None and not 1 <= arguments.every <= 86400:
        raise ConfigError(f"--every is {arguments.every:g}; give seconds, at least 1 and at most a day (86400)")
    mesh = None if arguments.mesh is None else mesh_sizes(arguments.mesh)

    # Nothing here computes on a device, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # The work needs jax; --help does not.
    from clipa_eqx.programs.targets import show

    show(
        target,
        overrides,
        program=f"{parser.prog} {target}",
        program_flags=parser.flags,
        sheet=arguments.sheet,
        samples=arguments.samples,
        mesh=mesh,
        out=arguments.out,
        every_seconds=arguments.every,
        report=arguments.report,
    )


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)
