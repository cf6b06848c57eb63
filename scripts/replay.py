"""Replay a step of a run: the command ``clipa-replay``, run from a clone."""

import sys

from clipa_eqx.programs.replay import program

if __name__ == "__main__":
    sys.exit(program())
