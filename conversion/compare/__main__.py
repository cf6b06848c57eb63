"""Find the first operation in which two models differ, and why: `python -m conversion.compare A B`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import FAILED, OK, program_name, run
from conversion.compare.report import check_destination, report_lines, write_report
from conversion.weights.arguments import add_config_arguments, choices_of

EPILOG = """Both sides get the same images and texts. Every operation is computed in float64 with the weights and
settings of each side on the same inputs, so the first operation that differs is reported, with its error. Each known
mistake of converters is then tried on it; a cause is reported only if it explains the difference except for rounding.
Settings that a file does not record come from the flags, else from the other side.
--recorded-a and --recorded-b replace a side's tokens and pixels by those that your own pipeline made of the fixed
inputs (--write-inputs): an npz with `tokens` (texts, length) and/or `pixels_0`, `pixels_1`, `pixels_2`
(height, width, 3).
Exit codes: 0 no difference, 1 a difference, 2 a mistake in files or flags."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # jax only computes shapes
    if arguments.json is not None:
        check_destination(arguments.json)
    from conversion.compare.comparison import compare_models

    report = compare_models(
        arguments.a,
        arguments.b,
        choices_of(arguments),
        recorded_a=arguments.recorded_a,
        recorded_b=arguments.recorded_b,
        inputs_folder=arguments.write_inputs,
    )
    for line in report_lines(report):
        print(line)
    if arguments.json is not None:
        write_report(report, arguments.json)
    return OK if report.first is None else FAILED


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog=program_name("conversion.compare"),
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for side in ("a", "b"):
        parser.add_argument(
            side, metavar=side.upper(), help="model folder, FILE.npz, or an open_clip file, folder or hf-hub:REPO"
        )
    add_config_arguments(parser)
    for side in ("a", "b"):
        parser.add_argument(
            f"--recorded-{side}", type=Path, metavar="FILE.npz", help=f"tokens and pixels to use for {side.upper()}"
        )
    parser.add_argument("--write-inputs", type=Path, metavar="DIR", help="write the fixed images and texts to DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    return parser.parse_args(argv)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
