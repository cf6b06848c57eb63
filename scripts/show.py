"""Show a config, a model, a run or data: the command ``clipa-show``, run from a clone."""

import sys

from clipa_eqx.programs.show import program

if __name__ == "__main__":
    sys.exit(program())
