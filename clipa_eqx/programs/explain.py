"""Say how two results of ``evaluate.py`` differ in what decides a score, and how much each difference explains."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError

EPILOG = """Without --data, the differences of the two passports are listed. With --data, the first model is scored on
these records once as it was, once with each difference taken from the second result alone, and once with all of them;
this needs both model folders. Exit codes: 0 no difference, 1 there are some, 2 a mistake in the arguments or files."""

_MOST = 120  # characters of a value that are shown


def main(argv: Sequence[str] | None = None) -> int:
    """Print the differences; the exit code. Raises ClipaError for a mistake of the user."""
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    parser.add_argument("--data", metavar="DIR", help="records to score again, one difference at a time")
    parser.add_argument("--workers", type=int, default=0, help="extra processes that decode images; default: 0")
    arguments = parser.parse_args(sys.argv[1:] if argv is None else argv)
    first, second = read_result(arguments.first), read_result(arguments.second)
    if first["suite"] != second["suite"]:
        raise ConfigError(
            f"{arguments.first} is of the suite {first['suite']}, {arguments.second} of {second['suite']}; compare two "
            "results of one suite"
        )
    found = differences(first["passport"], second["passport"])
    print("\n".join(difference_lines(found)))
    if arguments.data is not None:
        # The work needs jax; the list of differences does not.
        from clipa_eqx.programs.rescore import rescore

        for name, scores in rescore(first, second, data=arguments.data, workers=arguments.workers):
            print(f"{name}: " + ", ".join(f"{score} {value:.4f}" for score, value in scores.items()))
    return 1 if found else 0


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def read_result(path: Path) -> dict[str, Any]:
    """A result of ``evaluate.py``.

    Raises:
        ConfigError: the file cannot be read, is no result, or has no passport.
    """
    try:
        content: object = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; give a result of evaluate.py") from error
    if not isinstance(content, dict) or not isinstance(cast("dict[str, Any]", content).get("passport"), dict):
        raise ConfigError(f"{path} has no passport; score the model again with this version of evaluate.py")
    return cast("dict[str, Any]", content)


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The values that differ, by their path in the passports, such as ``image/resize``.

    The devices are left out, and so is what follows from other values: ``set``, and the file or step of equal weights.

    >>> differences({"image": {"size": [2, 2], "mode": "fast"}}, {"image": {"size": [2, 2], "mode": "exact"}})
    {'image/mode': ('fast', 'exact')}
    """
    a, b = dict(_flat(first)), dict(_flat(second))
    leaves = "model/weights/leaves_sha256"
    has_equal_weights = a.get(leaves) is not None and a.get(leaves) == b.get(leaves)
    without = ("devices/", "set/", *(("model/weights/",) if has_equal_weights else ()))
    names = [name for name in dict.fromkeys([*a, *b]) if not f"{name}/".startswith(without)]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def difference_lines(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """The differences as lines for the terminal."""
    if not found:
        return ["no difference in what decides the score"]
    return [f"{name}: {_shown(a)} and {_shown(b)}" for name, (a, b) in found.items()]


def _flat(value: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, one in value.items():
        here = f"{path}/{name}" if path else name
        pairs += _flat(cast("Mapping[str, Any]", one), here) if isinstance(one, Mapping) else [(here, one)]
    return pairs


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
