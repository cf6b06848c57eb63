"""Train a config file or resume its run: the command ``clipa-train``, run from a clone."""

import sys

from clipa_eqx.programs.train import command

if __name__ == "__main__":
    sys.exit(command())
