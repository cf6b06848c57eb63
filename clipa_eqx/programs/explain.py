"""Say how two results of evaluate.py differ in what decides a score, and how much each difference explains."""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.errors import ConfigError
from clipa_eqx.programs.results import Differences, differences, read_result, scores_of

if TYPE_CHECKING:
    from clipa_eqx.programs.rescore import Rescored

EPILOG = """Without --data, the scores and the differences of the two passports are listed. With --data, the first model
is scored on these records once as it was, once with each difference taken from the second result alone, and once with
all of them; this needs both models. If the second result has other records, they are looked for in the folder that it
names; if --data has those of the second result, so are those of the first. Exit codes: 0 no difference, 1 there are
some, 2 a mistake in the arguments or files."""

_MOST = 120  # characters of a value that are shown
# What this version cannot take from a result, because it has only one way.
_FIXED = ("code/", "image/interpolation", "image/antialias", "model/matmul_precision")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the differences; the exit code. Raises ClipaError for a mistake of the user."""
    arguments = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    if arguments.data is None and any((arguments.train, arguments.first_model, arguments.second_model)):
        raise ConfigError("--train, --first-model and --second-model are for scoring again; give --data too")
    first, second = read_result(arguments.first), read_result(arguments.second)
    if first["suite"] != second["suite"]:
        raise ConfigError(
            f"{arguments.first} is of the suite {first['suite']}, {arguments.second} of {second['suite']}; compare two "
            "results of one suite"
        )
    found = differences(first, second)
    scores = scores_of(first), scores_of(second)
    print("\n".join([*_score_lines(*scores), *_difference_lines(found)]))
    if not found.deciding and scores[0] != scores[1]:
        print("the scores differ all the same: by rounding on other devices or versions, or one was changed by hand")
    if arguments.data is not None:
        # The work needs jax; the list of differences does not.
        from clipa_eqx.programs.rescore import Folders, rescore

        folders = Folders(
            data=arguments.data, train=arguments.train, models=(arguments.first_model, arguments.second_model)
        )
        for line in _rescored_lines(rescore(first, second, folders, workers=arguments.workers), scores):
            print(line, flush=True)
        if fixed := _not_measured(found):
            print(f"not measured, because this version cannot be set to it: {', '.join(fixed)}")
    return 1 if found.deciding or scores[0] != scores[1] else 0


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


def _parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    parser.add_argument("--data", metavar="DIR", help="records to score again, one difference at a time")
    parser.add_argument("--train", metavar="DIR", help="records that a classifier is fitted to; default: as scored")
    parser.add_argument("--first-model", type=Path, metavar="DIR", help="the model of A.json, if it was moved")
    parser.add_argument("--second-model", type=Path, metavar="DIR", help="the model of B.json, if it was moved")
    parser.add_argument("--workers", type=int, default=0, help="extra processes that decode images; default: 0")
    return parser


def _score_lines(first: Mapping[str, float], second: Mapping[str, float]) -> list[str]:
    """The scores that both results have, and by how much the second is higher."""
    return [
        f"{name}: {value:.4f} and {second[name]:.4f} ({second[name] - value:+.4f})"
        for name, value in first.items()
        if name in second
    ]


def _difference_lines(found: Differences) -> list[str]:
    """The differences as lines for the terminal."""
    lines = [f"{name}: {_shown(a)} and {_shown(b)}" for name, (a, b) in found.deciding.items()]
    lines = lines or ["no difference in what decides the score"]
    if found.others:
        lines.append(f"different without effect on the score, except by rounding: {', '.join(found.others)}")
    if found.recorded_once:
        lines.append(f"recorded in one of the results only: {', '.join(found.recorded_once)}")
    return lines


def _not_measured(found: Differences) -> list[str]:
    names = [name for name in found.deciding if name.startswith(_FIXED)]
    # Each mode has its own rounding.
    is_rounding_alone = "image/rounding" in found.deciding and "image/mode" not in found.deciding
    return [*names, "image/rounding"] if is_rounding_alone else names


def _rescored_lines(
    rescored: "Iterator[Rescored]", recorded: tuple[Mapping[str, float], Mapping[str, float]]
) -> Iterator[str]:
    """Each scoring as a line: its scores, and by how much they are higher than those of the first result."""
    start: Mapping[str, float] = {}
    ends = {"first": ("as the first result", recorded[0]), "second": ("with all of the second", recorded[1])}
    for one in rescored:
        name, expected = ends.get(one.name, (f"with {one.name} of the second", None))
        scores = scores_of(one.scores)
        start = start or scores
        if not scores:
            yield f"{name}: not scored: {one.note}"
            continue
        shown = ", ".join(
            f"{score} {value:.4f}"
            + (f" ({value - start[score]:+.4f})" if one.name != "first" and score in start else "")
            for score, value in scores.items()
        )
        yield f"{name}: {shown}" + (f"; {one.note}" if one.note else "")
        if expected is not None and any(
            abs(expected.get(score, value) - value) > 5e-5 for score, value in scores.items()
        ):
            yield "  the result has " + ", ".join(
                f"{score} {expected[score]:.4f}" for score in scores if score in expected
            )


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
