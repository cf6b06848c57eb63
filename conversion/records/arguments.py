"""Command line of ``python -m conversion.records``."""

import argparse
import os
from pathlib import Path
from typing import Any

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import program_name
from clipa_eqx.cluster.engine import ENGINE_HELP
from conversion.records.class_names import read_class_names
from conversion.records.options import IngestOptions
from conversion.records.sources.kinds import SOURCES
from conversion.records.sources.source import Source

_DESCRIPTION = """\
Conversion of image-text dumps into record folders: `python -m conversion.records SOURCE SRC DST`, checks of such
folders: `verify DIR`, `diff A B`, and many of them as one: `join DST FOLDER ...`."""
_EPILOG = """\
SRC and DST are local paths or fsspec URLs (gs://, s3://, ...; their driver must be installed).
SRC is a folder, a file, or a pattern in quotes such as 'dir/*.tar' or 'dir/{00000..00041}.tar'. Its columns are chosen
once, by their usual names or --*-column, from its first rows; rows without them are dropped and counted. Repeat the
same command to resume an interrupted conversion.
Exit codes: 0 done, 2 a mistake in source, destination or options, 1 anything else, also if no row was kept; verify:
1 a shard is damaged; diff: 0 the same samples under the same keys, 1 not; join --check-keys: 1 keys are repeated; 130,
143 and 129 after Ctrl-C, SIGTERM and SIGHUP."""
_JOIN = """\
Writes a manifest of manifests into the new folder DST, by which the records of all folders open as one, in their
order. No record is copied. FOLDER is a record folder, a joined folder, or a pattern of folders in quotes such as
'data/part-*', local or gs://. Folders inside DST or next to it are named relative to it, so that all can be moved
together; others by their full path."""


def make_parser() -> argparse.ArgumentParser:
    """The parser: a subcommand for each kind of source, ``verify``, ``diff`` and ``join``."""
    parser = ArgumentParser(
        prog=program_name("conversion.records"),
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tasks = parser.add_subparsers(dest="task", required=True, metavar="SOURCE|verify|diff|join")
    for kind, source in SOURCES.items():
        _add_options(tasks.add_parser(kind, help=source.help, description=source.help), source)
    check = tasks.add_parser("verify", help="hash every shard again")
    check.add_argument("folder", metavar="DIR")
    compare = tasks.add_parser("diff", help="keys that two record folders do not share")
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    compare.add_argument("--examples", type=int, default=10, help="keys to show of each kind (10)")
    one = tasks.add_parser("join", help="open many record folders as one", description=_JOIN)
    one.add_argument("target", metavar="DST")
    one.add_argument("folders", metavar="FOLDER", nargs="*")
    one.add_argument("--folders", dest="list", type=Path, metavar="FILE", help="file with more folders, one a line")
    one.add_argument("--check-keys", action="store_true", help="read all records, and refuse repeated keys (off)")
    one.add_argument("--overwrite", action="store_true", help="replace the manifest of an earlier join in DST")
    one.add_argument("--examples", type=int, default=10, help="repeated keys to show (10)")
    for task in (check, compare, one):
        task.add_argument("--workers", type=int, default=processors(), help="processes (one per processor)")
    return parser


def options_of(arguments: argparse.Namespace) -> IngestOptions:
    """The options of a conversion.

    Raises:
        DataError: the file of class names cannot be read.
    """
    given = vars(arguments)
    chosen: dict[str, Any] = {name: given[name] for name in IngestOptions.__dataclass_fields__ if name in given}
    chosen["keep"] = tuple(given.get("keep", ()))
    chosen["where"] = tuple(given.get("where", ()))
    captions = given.get("caption_column") or ()
    chosen["caption_column"] = tuple(captions) if len(captions) > 1 else next(iter(captions), None)
    if arguments.class_names is not None:
        chosen["class_names"] = read_class_names(arguments.class_names)
    return IngestOptions(**chosen)


def _add_options(parser: argparse.ArgumentParser, source: Source) -> None:
    default = IngestOptions()
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("target", metavar="DST")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes (one per processor); 1: only this one; with --engine ray: most parts at once (all that fit)",
    )
    parser.add_argument("--engine", default="local", help=ENGINE_HELP)
    parser.add_argument("--overwrite", action="store_true", help="start again; records that are in DST are replaced")
    parser.add_argument("--max-side", type=int, help="re-encode images with a longer side to this one, px (off)")
    parser.add_argument(
        "--jpeg-quality",
        type=int,
        default=default.jpeg_quality,
        help=f"quality after --max-side ({default.jpeg_quality})",
    )
    parser.add_argument("--min-side", type=int, default=0, help="drop images with a shorter side than this, px (0)")
    parser.add_argument(
        "--validate", choices=("header", "full"), default=default.validate, help="decode images or not (full)"
    )
    parser.add_argument("--limit", type=int, help="read only this many first rows")
    parser.add_argument(
        "--records-per-shard",
        type=int,
        default=default.records_per_shard,
        help=f"at most ({default.records_per_shard})",
    )
    parser.add_argument(
        "--examples", type=int, default=default.examples, help="keys kept for each reason to drop a row (10)"
    )
    parser.add_argument("--class-names", type=Path, help="file with the name of each label, one a line")
    if source.has_columns:
        _add_columns(parser)
    if source.has_prefix:
        parser.add_argument(
            "--prefix-keys",
            action="store_true",
            help="put the name of the file before every key, for dumps that share keys",
        )
    if source.has_texts:
        parser.add_argument(
            "--caption-lines", action="store_true", help="each line of a .txt is a caption (the text is one caption)"
        )
    if source.split_help:
        parser.add_argument("--split", help=source.split_help)
    if source.has_label_flags:
        parser.add_argument(
            "--labels",
            metavar="FILE",
            help="labels of the validation images instead of the source's: ReaL's real.json (off)",
        )
        parser.add_argument(
            "--own-classes",
            action="store_true",
            help="for ObjectNet: label with its 113 classes instead of ImageNet's (off)",
        )
    if source.has_images:
        parser.add_argument("--images", help="folder that paths are relative to (that of the list)")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-column", help="or feature, or suffix in tars (the usual names)")
    parser.add_argument(
        "--caption-column",
        action="append",
        help="or feature, suffix or field of .json in tars (the usual names); repeat it for several",
    )
    parser.add_argument("--key-column", help="unique name of each row (the usual names)")
    parser.add_argument("--label-column", help="class numbers or names; captions are then optional (none)")
    parser.add_argument("--first-label", type=int, default=0, help="number of the first class in the source (0)")
    parser.add_argument(
        "--keep",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="columns, or suffixes and fields of .json in tars, for `extra`: url sha256 ... (none)",
    )
    parser.add_argument(
        "--subset",
        metavar="FILE",
        help="only rows whose id is in this .npy (DataComp's u8,u8; others) or .parquet (all)",
    )
    parser.add_argument(
        "--subset-column",
        metavar="COLUMN",
        help="column of the source with these ids (uid for u8,u8, otherwise as in FILE, otherwise the key)",
    )
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="EXPRESSION",
        help="only rows for which it holds: \"similarity > 0.3 and lang in ['en']\"; repeat it for several (all)",
    )


def processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
