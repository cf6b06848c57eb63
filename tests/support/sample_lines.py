"""Files of samples that lives of a run leave: a step and its ids per line."""

import json
from pathlib import Path


def sample_lines(path: Path) -> list[tuple[int, list[int] | None]]:
    """The lines of a file of samples, except those that a kill interrupted."""
    found: list[tuple[int, list[int] | None]] = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            step, ids = json.loads(line)
        except ValueError:
            continue
        found.append((step, ids))
    return found
