"""Compare runs: the command ``clipa-compare-runs``, run from a clone."""

import sys

from clipa_eqx.programs.compare_runs import program

if __name__ == "__main__":
    sys.exit(program())
