"""Results of conversions, verifications and comparisons, as lines for the terminal."""

from collections.abc import Iterator, Sequence
from typing import cast

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import counted
from conversion.records.diff import Difference
from conversion.records.rows import DUPLICATE_OTHER

_TEXT_SUFFIXES = (".csv", ".json", ".jsonl", ".ndjson", ".tsv", ".txt")


def account_lines(target: str, manifest: Manifest) -> Iterator[str]:
    """The account of a finished conversion, with advice."""
    size = sum(shard.bytes for shard in manifest.shards)
    yield f"{target}: {_contents(manifest)}, {size / 1e6:,.1f} MB"
    dropped = "".join(f", {count:,} {reason}" for reason, count in manifest.rows_dropped.items())
    yield f"rows: {manifest.rows_read:,} read, {manifest.rows_written:,} written{dropped}"
    lost = cast(dict[str, int], manifest.info["captions_dropped"])
    if lost:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
        yield f"captions left out of rows that were kept: {counts}"
    damaged = cast(list[dict[str, object]], manifest.info["damaged_sources"])
    for damage in damaged[:5]:
        yield "damaged: {source}: {rows_before} rows, then lost: {rows_lost}; {error}".format(**damage)
    if len(damaged) > 5:
        yield f"damaged: {len(damaged) - 5} more, see manifest.json"
    if DUPLICATE_OTHER in manifest.rows_dropped:
        yield "different samples share keys: if several dumps were given, --prefix-keys keeps them apart"
    ignored = cast(dict[str, int], manifest.info.get("ignored_files", {})) if manifest.class_names else {}
    texts = [counted(count, f"{suffix} file") for suffix, count in ignored.items() if suffix in _TEXT_SUFFIXES]
    if texts:
        yield f"not read: {', '.join(texts)}; if they hold captions, list them for the source `captions`"
    if manifest.rows_read and not manifest.rows_written:
        yield f"no row was kept: were images, captions or labels looked for in the wrong place? {_example(manifest)}"


def _contents(manifest: Manifest) -> str:
    return f"{counted(manifest.rows_written, 'record')} in {counted(len(manifest.shards), 'shard')}"


def _example(manifest: Manifest) -> str:
    """The most frequent reason to drop a row, with an example."""
    most = max(manifest.rows_dropped, key=lambda reason: manifest.rows_dropped[reason])
    examples = cast(dict[str, list[dict[str, str]]], manifest.info["examples"]).get(most)
    if not examples:
        return most
    detail = f" ({examples[0]['detail']})" if examples[0]["detail"] else ""
    return f"{most}, such as {examples[0]['key']} of {examples[0]['source']}{detail}"


def damage_lines(folder: str, manifest: Manifest, problems: Sequence[str]) -> Iterator[str]:
    """The damaged shards of a record folder."""
    for problem in problems:
        yield f"damaged: {problem}"
    good = len(manifest.shards) - len(problems)
    shards, records = counted(len(manifest.shards), "shard"), counted(manifest.rows_written, "record")
    verb = "is" if 1 in (good, len(manifest.shards)) else "are"
    yield f"{folder}: {good:,} of {shards} {verb} as written, {records}"


def difference_lines(a: str, b: str, found: Difference) -> Iterator[str]:
    """The differences of two record folders."""
    yield f"{counted(found.shared, 'key')} in both, {found.changed:,} of them with other content"
    yield from (f"  {key}" for key in found.examples_changed)
    for name, count, keys, repeats in (
        (a, found.only_a, found.examples_a, found.repeats_a),
        (b, found.only_b, found.examples_b, found.repeats_b),
    ):
        yield f"{counted(count, 'key')} only in {name}" + (
            f"; {counted(repeats, 'record')} with a repeated key" if repeats else ""
        )
        yield from (f"  {key}" for key in keys)
