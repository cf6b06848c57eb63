"""From icon fonts to a trained and scored CLIPA model with a report (`make quickstart`)."""

import itertools
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run

_log = logging.getLogger("quickstart")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart, or resume it; returns the exit code. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/quickstart"), help="where all files go")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--baseline", action="store_true", help="spend the same training time at full size only (in its own folder)"
    )
    parser.add_argument(
        "--short", action="store_true", help="a few steps per stage: shows that it runs, not what it learns"
    )
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if arguments.baseline:
        folder = folder.with_name(f"{folder.name}-baseline")
    if (folder / "result.json").exists():
        names = (folder.with_name(f"{folder.name}-previous-{n}") for n in itertools.count(1))
        previous = next(path for path in names if not path.exists())
        folder.rename(previous)
        _log.info("the finished run in %s has been moved to %s", folder, previous)

    # The work needs jax; --help does not.
    from scripts.quickstart_run import run_quickstart

    return run_quickstart(folder, seed=arguments.seed, is_baseline=arguments.baseline, is_short=arguments.short)


if __name__ == "__main__":
    sys.exit(run(main))
