"""Checkpoints of the reference's t5x branch: `python -m conversion.t5x import CHECKPOINT_DIR DIR`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.cli import run
from conversion.weights.arguments import import_options, import_parser, parse


def main(argv: Sequence[str] | None = None) -> None:
    command = import_parser(
        "t5x",
        __doc__,
        purpose="a checkpoint_STEP folder to a model folder, with the optimizer state",
        source="CHECKPOINT_DIR",
    )
    # The second spelling is that of version 0.1.0.
    command.importer.add_argument(
        "--no-optimizer", "--no-optimiser", action="store_true", help="import the parameters without optimizer state"
    )
    arguments = parse(command.parser, argv)
    from conversion.t5x.importing import import_t5x

    import_t5x(Path(arguments.source), import_options(arguments), with_optimizer=not arguments.no_optimizer)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
