"""Compare runs: curves over samples, operations and dollars, scores, and the config fields that differ, as one page."""

import argparse
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError

EPILOG = """The page needs no other file and no network. The runs may be training. Dollars are drawn when a price is
given: seconds per step of the log x devices x price, so compiling, scoring and saving do not count.
--dollars-per-device-hour may be repeated: 3.2 is for all runs, NAME=3.2 for the run of that folder or name.
Exit codes: 0 done, 2 a mistake in the arguments or a run folder, 1 anything else."""


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, at least two")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("compare.html"),
        metavar="FILE.html",
        help="the page, replacing the file; default: compare.html in the current folder",
    )
    parser.add_argument(
        "--dollars-per-device-hour",
        action="append",
        default=[],
        metavar="PRICE|RUN=PRICE",
        help="price of a device, for all runs or for one",
    )
    arguments = parser.parse_args(argv)
    out: Path = arguments.out
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out is {out}; give a name that ends in .html")
    folders = [Path(one) for one in arguments.runs]
    names = run_names(folders)
    prices = run_prices(arguments.dollars_per_device_hour, folders, names)

    # Nothing here computes on a device, and on a TPU host a training run may hold them.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # The work needs jax; --help does not.
    from clipa_eqx.programs.comparing import write_comparison

    write_comparison(dict(zip(names, folders, strict=True)), prices, out)
    print(f"{len(folders)} runs compared in {out}")


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def run_names(folders: Sequence[Path]) -> list[str]:
    """A different name for each run: that of its folder, or the path where two folders have the same name.

    Raises:
        ConfigError: fewer than two runs, or one folder twice.
    """
    if len(folders) < 2:
        raise ConfigError(f"{folders[0]} is a single run; give at least two run folders to compare")
    real = [folder.resolve() for folder in folders]
    for number, one in enumerate(real):
        if one in real[:number]:
            first = folders[real.index(one)]
            also = "" if str(first) == str(folders[number]) else f", which is also {first}"
            raise ConfigError(f"{folders[number]} is given twice{also}; name each run once")
    short = [one.name for one in real]
    return [str(folder) if short.count(name) > 1 else name for folder, name in zip(folders, short, strict=True)]


def run_prices(flags: Sequence[str], folders: Sequence[Path], names: Sequence[str]) -> Mapping[str, float]:
    """The price of each run that has one, by the name of the run. A price for one run comes before that for all.

    Raises:
        ConfigError: no price, or a run that is not compared.
    """
    prices: dict[str, float] = {}
    for flag in flags:
        run_name, is_named, text = flag.rpartition("=")
        price = _price(text, flag)
        if not is_named:
            prices = dict.fromkeys(names, price) | prices
            continue
        known = {str(folder): name for folder, name in zip(folders, names, strict=True)} | {
            name: name for name in names
        }
        found = known.get(run_name) or known.get(run_name.rstrip("/"))
        if found is None:
            raise ConfigError(
                f"--dollars-per-device-hour {flag}: no run is called {run_name!r}; the runs are {', '.join(names)}"
            )
        prices[found] = price
    return prices


def _price(text: str, flag: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not (math.isfinite(price) and price >= 0):
        raise ConfigError(f"--dollars-per-device-hour is {flag!r}; give a price such as 3.2, or RUN=3.2 for one run")
    return price
