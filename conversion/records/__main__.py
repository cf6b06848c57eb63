"""Dumps into record folders: ``python -m conversion.records SOURCE SRC DST``, ``verify``, ``diff``, ``join``."""

import argparse
import sys
from collections.abc import Iterable, Sequence

from clipa_eqx.cli import FAILED, OK, exit_on_sigterm, run
from clipa_eqx.cluster.engine import parse_engine
from clipa_eqx.commands import command_line, minimal_config, next_lines
from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import DataError
from conversion.records.arguments import make_parser, options_of, processors
from conversion.records.convert import convert
from conversion.records.diff import diff
from conversion.records.join import join
from conversion.records.members import read_folder_list
from conversion.records.printing import account_lines, damage_lines, difference_lines, joined_lines
from conversion.records.verify import find_damage

_WITHOUT_RESUME = ("verify", "diff", "join")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Raises:
        DataError: a mistake in source, destination or options, or a disk that fails.
    """
    arguments = make_parser().parse_args(argv)
    advice = "" if arguments.task in _WITHOUT_RESUME else "; repeat the same command to resume"
    exit_on_sigterm(f"terminated{advice}")
    try:
        match arguments.task:
            case "verify":
                return _verify(arguments)
            case "diff":
                return _diff(arguments)
            case "join":
                return _join(arguments)
            case _:
                return _convert(arguments)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"interrupted{advice}") from error
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder without permission
        if error.errno is None:  # not from the system: a bug, whose traceback is wanted
            raise
        raise DataError(f"{error}{advice}") from error


def _convert(arguments: argparse.Namespace) -> int:
    engine = parse_engine(arguments.engine)
    workers = processors() if arguments.workers is None and engine.kind == "local" else arguments.workers
    manifest = convert(
        arguments.task,
        arguments.source,
        arguments.target,
        options=options_of(arguments),
        workers=workers,
        engine=engine,
        overwrite=arguments.overwrite,
    )
    _print(account_lines(arguments.target, manifest))
    if not manifest.rows_written:
        return FAILED if manifest.rows_read else OK
    _print(_next_lines(arguments.target, manifest))
    return OK


def _next_lines(folder: str, manifest: Manifest) -> list[str]:
    look = (command_line("show", folder), "the account, and a sheet of samples")
    if manifest.class_names or manifest.info.get("captions_written") == 0:
        names = () if manifest.class_names else ("--class-names", "FILE")
        labels = ("--max-labels", str(manifest.info["most_labels"])) if "most_labels" in manifest.info else ()
        score = command_line(
            "evaluate", "MODEL", "--suite", "zero-shot", "--data", folder, *names, *labels, "--out", "result.json"
        )
        return next_lines(look, (score, "score a model on these records"))
    run = command_line("train", minimal_config(), "--workdir", "RUN", "--data.sources.0.folder", folder)
    return next_lines(look, (run, "train on these records"))


def _verify(arguments: argparse.Namespace) -> int:
    manifest, problems = find_damage(arguments.folder, workers=arguments.workers)
    _print(damage_lines(arguments.folder, manifest, problems))
    return FAILED if problems else OK


def _diff(arguments: argparse.Namespace) -> int:
    found = diff(arguments.a, arguments.b, workers=arguments.workers, examples=arguments.examples)
    _print(difference_lines(arguments.a, arguments.b, found))
    return OK if found.is_same else FAILED


def _join(arguments: argparse.Namespace) -> int:
    listed = [] if arguments.list is None else read_folder_list(arguments.list)
    joined = join(
        arguments.target,
        [*arguments.folders, *listed],
        check_keys=arguments.check_keys,
        overwrite=arguments.overwrite,
        workers=arguments.workers,
        examples=arguments.examples,
    )
    _print(joined_lines(arguments.target, joined))
    if joined.repeated is not None and joined.repeated.records:
        return FAILED
    _print(_next_lines(arguments.target, joined.manifest))
    return OK


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
