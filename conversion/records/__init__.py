"""Conversion of dumps of images and texts into record folders, with every row accounted for.

- The command: ``__main__`` parses (``arguments``), calls ``convert``, ``verify`` or ``diff``, prints (``printing``).
- ``convert`` is the story: a plan of parts (``sources``), workers that convert parts (``part``, ``checks``), a search
  for duplicate keys (``keys``), the manifest (``account``), and the folder it is written to (``destination``).
- Files anywhere: addresses in ``places``, then ``listing``, ``reading`` and ``writing``.
"""
