"""Plan a run on a TPU slice, without a TPU: the command ``clipa-plan``, run from a clone."""

import sys

from clipa_eqx.programs.plan import program

if __name__ == "__main__":
    sys.exit(program())
