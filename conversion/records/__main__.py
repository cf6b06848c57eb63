"""Image-text dumps into record folders: `python -m conversion.records SOURCE SRC DST`, `verify DIR`, `diff A B`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast, get_args

from clipa_eqx.cli import FAILED, OK, exit_on_sigterm, run
from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import DataError
from conversion.records.convert import convert
from conversion.records.diff import diff
from conversion.records.rows import IngestOptions, Kind
from conversion.records.verify import verify

EPILOG = """SRC and DST are local paths or fsspec URLs (gs://, s3://, ...; their driver must be installed).
SRC is a folder, a file, or a pattern in quotes. Its columns are chosen once, by their usual names or --*-column, from
its first rows; rows without them are dropped and counted. The same command goes on with an interrupted conversion.
Exit codes: 0 done, 2 a mistake in source, destination or options, 1 anything else, also if no row was kept; verify:
1 a shard is damaged; diff: 0 the same samples under the same keys, 1 not; 130, 143 and 129 after Ctrl-C, SIGTERM and
SIGHUP."""

_HELP: dict[Kind, str] = {
    "img2dataset": "img2dataset's TFRecords (extra tfrecord); gzip too",
    "webdataset": "tars, of img2dataset or others; .tar.gz too",
    "parquet": "tables with pictures inside, beside them (img2dataset's `files`) or at paths (extra parquet)",
    "folder": "a folder per class, ImageNet style",
    "tfds": "a folder of TFDS's TFRecords, such as imagenet2012/5.1.0 (extra tfrecord)",
    "captions": "a list of pictures and captions: COCO or Karpathy JSON, CSV, TSV, JSONL",
}
_READ_ONLY = ("verify", "diff")
_HAS_SPLITS: tuple[Kind, ...] = ("tfds", "captions")
_HAS_PATHS: tuple[Kind, ...] = ("parquet", "captions")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    advice = "" if arguments.task in _READ_ONLY else "; the same command goes on from here"
    exit_on_sigterm(f"terminated{advice}")
    try:
        if arguments.task == "verify":
            return _verify(arguments.folder, arguments.workers)
        if arguments.task == "diff":
            return _diff(arguments)
        return _convert(arguments)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, a folder that is not for this user
        if error.errno is None:  # not of the system: a bug, whose traceback is wanted
            raise
        raise DataError(f"{error}{advice}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.records",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="SOURCE|verify|diff")
    for kind in get_args(Kind):
        _add_options(tasks.add_parser(kind, help=_HELP[kind], description=_HELP[kind], allow_abbrev=False), kind)
    check = tasks.add_parser("verify", help="hash every shard again", allow_abbrev=False)
    check.add_argument("folder", metavar="DIR")
    compare = tasks.add_parser("diff", help="keys that two record folders do not share", allow_abbrev=False)
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--examples", type=int, default=10, help="keys to show of each kind (10)")
    for task in (check, compare):
        task.add_argument("--workers", type=int, default=_processors(), help="processes (one per processor)")
    return parser


def _add_options(parser: argparse.ArgumentParser, kind: Kind) -> None:
    default = IngestOptions()
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument(
        "--workers", type=int, default=_processors(), help="processes (one per processor); 1: no others"
    )
    parser.add_argument("--overwrite", action="store_true", help="begin anew; records that are in DST are replaced")
    parser.add_argument("--max-side", type=int, help="re-encode pictures with a longer side to this one, px (off)")
    parser.add_argument(
        "--jpeg-quality", type=int, default=default.jpeg_quality, help=f"of --max-side ({default.jpeg_quality})"
    )
    parser.add_argument("--min-side", type=int, default=0, help="drop pictures with a shorter side than this, px (0)")
    parser.add_argument(
        "--validate", choices=("header", "full"), default=default.validate, help="decode pictures or not (full)"
    )
    parser.add_argument("--limit", type=int, help="read only this many first rows")
    parser.add_argument(
        "--records-per-shard",
        type=int,
        default=default.records_per_shard,
        help=f"at most ({default.records_per_shard})",
    )
    parser.add_argument("--examples", type=int, default=default.examples, help="keys kept per reason of a drop (10)")
    parser.add_argument("--class-names", type=Path, help="file with the name of each label, one a line")
    if kind == "folder":
        return
    parser.add_argument("--image-column", help="or feature, or suffix in tars (the usual names)")
    parser.add_argument("--caption-column", help="or feature, suffix or field of .json in tars (the usual names)")
    parser.add_argument("--key-column", help="unique name of each row (the usual names)")
    parser.add_argument("--label-column", help="class numbers; captions are then optional (none)")
    parser.add_argument(
        "--keep",
        nargs="+",
        default=(),
        metavar="COLUMN",
        help="columns, or suffixes and fields of .json in tars, for `extra`: url sha256 ... (none)",
    )
    if kind in ("img2dataset", "webdataset", "parquet"):
        parser.add_argument(
            "--prefix-keys", action="store_true", help="put the file's name before every key, for dumps that share keys"
        )
    if kind in _HAS_SPLITS:
        parser.add_argument("--split", help="train, test, ..." + ("; A,B for several" if kind == "captions" else ""))
    if kind in _HAS_PATHS:
        parser.add_argument("--images", help="folder that paths are relative to (that of the list)")


def _convert(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    chosen: dict[str, Any] = {name: given[name] for name in IngestOptions.__dataclass_fields__ if name in given}
    chosen["keep"] = tuple(given.get("keep", ()))
    if arguments.class_names is not None:
        chosen["class_names"] = _read_class_names(arguments.class_names)
    options = IngestOptions(**chosen)
    manifest = convert(
        cast(Kind, arguments.task),
        arguments.source,
        arguments.target,
        options=options,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )
    _print_account(arguments.target, manifest)
    if manifest.rows_read and not manifest.rows_written:
        print("no row was kept: were pictures, captions or labels looked for in the wrong place?", _advice(manifest))
        return FAILED
    return OK


def _advice(manifest: Manifest) -> str:
    most = max(manifest.rows_dropped, key=lambda reason: manifest.rows_dropped[reason])
    examples = cast(dict[str, list[dict[str, str]]], manifest.info["examples"]).get(most)
    if not examples:
        return most
    detail = f" ({examples[0]['detail']})" if examples[0]["detail"] else ""
    return f"{most}, such as {examples[0]['key']} of {examples[0]['source']}{detail}"


def _print_account(target: str, manifest: Manifest) -> None:
    size = sum(shard.bytes for shard in manifest.shards)
    print(f"{target}: {manifest.rows_written:,} records in {len(manifest.shards):,} shards, {size / 1e6:,.1f} MB")
    print(f"rows: {manifest.rows_read:,} read, {manifest.rows_written:,} written", end="")
    print("".join(f", {count:,} {reason}" for reason, count in manifest.rows_dropped.items()))
    lost = cast(dict[str, int], manifest.info["captions_dropped"])
    if lost:
        told = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
        print(f"captions left out of rows that were kept: {told}")
    damaged = cast(list[dict[str, object]], manifest.info["damaged_sources"])
    for damage in damaged[:5]:
        print("damaged: {source}: {rows_before} rows, then lost: {rows_lost}; {error}".format(**damage))
    if len(damaged) > 5:
        print(f"damaged: {len(damaged) - 5} more, see manifest.json")
    if "duplicate key of another sample" in manifest.rows_dropped:
        print("different samples share keys: if several dumps were given, --prefix-keys keeps them apart")


def _verify(folder: str, workers: int) -> int:
    manifest, problems = verify(folder, workers=workers)
    for problem in problems:
        print(f"damaged: {problem}")
    good = f"{len(manifest.shards) - len(problems):,} of {len(manifest.shards):,} shards are as written"
    print(f"{folder}: {good}, {manifest.rows_written:,} records")
    return FAILED if problems else OK


def _diff(arguments: argparse.Namespace) -> int:
    found = diff(arguments.a, arguments.b, workers=arguments.workers, examples=arguments.examples)
    print(f"{found.shared:,} keys in both, {found.changed:,} of them with other content")
    for key in found.examples_changed:
        print(f"  {key}")
    for name, count, keys, repeats in (
        (arguments.a, found.only_a, found.examples_a, found.repeats_a),
        (arguments.b, found.only_b, found.examples_b, found.repeats_b),
    ):
        print(f"{count:,} keys only in {name}" + (f"; {repeats:,} records repeat a key" if repeats else ""))
        for key in keys:
            print(f"  {key}")
    return OK if found.is_same else FAILED


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8")
        names: object = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"--class-names: {path} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[object], names)):
        raise DataError(f"--class-names: {path} must be a list of names, in the order of the labels")
    return tuple(cast(list[str], names))


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
