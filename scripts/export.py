"""Export a model for programs without this package: the command ``clipa-export``, run from a clone."""

import sys

from conversion.export.__main__ import program

if __name__ == "__main__":
    sys.exit(program())
