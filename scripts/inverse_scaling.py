"""Score against tokens for three model sizes under equal compute: the inverse scaling law in miniature."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study, or resume it; returns the exit code. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/inverse_scaling"), help="where all files go")
    parser.add_argument(
        "--seeds",
        type=_seed,
        nargs="+",
        default=[0, 1, 2],
        metavar="SEED",
        help="the first is for all points, the others repeat the full size of each model size (default: 0 1 2)",
    )
    parser.add_argument("--short", action="store_true", help="a few steps per run: shows that it runs, no law")
    arguments = parser.parse_args(argv)
    seeds: list[int] = arguments.seeds
    if repeated := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        parser.error(f"argument --seeds: {', '.join(map(str, repeated))} is given more than once")

    # The work needs jax; --help does not.
    from scripts.inverse_scaling_run import run_study

    return run_study(arguments.folder, seeds=seeds, is_short=arguments.short)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed; give whole numbers from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(run(main))
