"""Score a model: the command ``clipa-evaluate``, run from a clone."""

import sys

from clipa_eqx.programs.evaluate import program

if __name__ == "__main__":
    sys.exit(program())
