"""Explain two scores: the command ``clipa-explain``, run from a clone."""

import sys

from clipa_eqx.programs.explain import program

if __name__ == "__main__":
    sys.exit(program())
