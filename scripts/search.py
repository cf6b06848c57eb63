"""Search photos or embeddings: the command ``clipa-search``, run from a clone."""

import sys

from clipa_eqx.programs.search import program

if __name__ == "__main__":
    sys.exit(program())
