"""Print the table of the released models: `python -m conversion.released`."""

import sys
from collections.abc import Sequence

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import program_name, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(
        prog=program_name("conversion.released"),
        description="Print the table of released models; a name is what `import --released NAME` takes.",
    )
    parser.parse_args(argv)
    from conversion.weights.released import plain_table

    print(plain_table())


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
