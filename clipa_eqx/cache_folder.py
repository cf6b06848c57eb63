"""The folder for files that can be made again: indexes of photos and converted weights."""

import os
from pathlib import Path


def cache_folder(*names: str) -> Path:
    """A place in the cache: in ``CLIPA_EQX_CACHE`` if that is set, else in ``clipa_eqx`` of the user's cache folder.

    The user's cache folder is ``XDG_CACHE_HOME``, or ``~/.cache`` without it. Nothing is created.
    """
    own = os.environ.get("CLIPA_EQX_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else Path(shared or Path.home() / ".cache") / "clipa_eqx"
    return root.expanduser().joinpath(*names)
