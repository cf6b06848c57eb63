"""Embed images or texts: the command ``clipa-embed``, run from a clone."""

import sys

from clipa_eqx.programs.embed import program

if __name__ == "__main__":
    sys.exit(program())
