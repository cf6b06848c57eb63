"""Checkpoints of the reference's t5x branch: `python -m conversion.t5x import CHECKPOINT_DIR DIR`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipa_eqx.cli import exit_on_sigterm, run
from conversion.weights.arguments import EPILOG, TERMINATED, add_import_arguments

if TYPE_CHECKING:
    pass


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m conversion.t5x", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    importer = commands.add_parser(
        "import",
        help="a checkpoint_STEP folder to a model folder, with the optimizer state",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    importer.add_argument("source", metavar="CHECKPOINT_DIR", type=Path)
    add_import_arguments(importer)
    # The second spelling is that of version 0.1.0.
    importer.add_argument("--no-optimizer", "--no-optimiser", action="store_true", help="take the parameters alone")
    arguments = parser.parse_args(argv)
    exit_on_sigterm(TERMINATED)
    # Nothing here needs an accelerator, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from conversion.t5x.importing import import_t5x

    import_t5x(arguments)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
