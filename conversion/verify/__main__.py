"""Check a model folder: `python -m conversion.verify DIR` checks hashes, parameter counts and norms."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import program_name, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        prog=program_name("conversion.verify"),
        description=__doc__,
        epilog="Exit codes: 0 the folder is valid, 2 it is not (every problem is listed), 1 any other failure.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a model folder")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # on a TPU host a training run may hold the devices
    from conversion.verify.model_folder import verify

    for line in verify(arguments.folder):
        print(line)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
