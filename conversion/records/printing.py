"""Results of conversions, verifications and comparisons, as lines for the terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import counted
from conversion.records.class_names import describe_class, describe_classes
from conversion.records.diff import Difference
from conversion.records.join import KEYS_CHECKED, Joined
from conversion.records.rows import DUPLICATE_OTHER, FILTERED, MISSING_IMAGE, NOT_IN_SUBSET, shortened
from conversion.records.sources.kinds import SOURCES
from conversion.records.subset import subset_lines
from conversion.records.unknown_words import unknown_lines

_TEXT_SUFFIXES = {".csv", ".json", ".jsonl", ".ndjson", ".tsv", ".txt"}


def account_lines(target: str, manifest: Manifest) -> Iterator[str]:
    """The account of a finished conversion, with advice."""
    size = int(manifest.table.sizes.sum())
    yield f"{target}: {_contents(manifest)}, {size / 1e6:,.1f} MB"
    yield from _row_lines(manifest)
    damaged = cast(list[dict[str, object]], manifest.info["damaged_sources"])
    for damage in damaged[:5]:
        yield "damaged: {source}: {rows_before} rows, then lost: {rows_lost}; {error}".format(**damage)
    if len(damaged) > 5:
        yield f"damaged: {len(damaged) - 5} more, see manifest.json"
    yield from _captions(manifest)
    if of_lines := cast(int, manifest.info.get("captions_of_lines", 0)):
        yield f"{counted(of_lines, 'caption')} of several lines{_advice_on_lines(manifest)}"
    if layout := cast(str, manifest.info.get("layout", "")):
        yield f"found: {layout}"
    if manifest.class_names:
        own = cast("list[str] | None", manifest.info.get("source_class_names"))
        yield describe_classes(manifest.class_names, own)
        yield from _doubts_on_classes(manifest)
    labels = cast("dict[str, int]", manifest.info.get("labels", {}))
    if labels and not manifest.class_names:
        none = "; none is 0: if the source counts from 1, repeat with --first-label 1 --overwrite"
        yield f"labels: {labels['lowest']:,} to {labels['highest']:,}{none if labels['lowest'] == 1 else ''}"
        yield "the classes have no names, which a score needs: repeat with --class-names FILE --overwrite"
    if templates := cast("list[str]", manifest.info.get("templates", [])):
        shown = f"{counted(len(templates), 'prompt template')} of the source, such as {shortened(templates[0], 60)!r}"
        yield f"{shown}: scoring takes them with --templates manifest"
    if members := cast(int, manifest.info.get("ignored_members", 0)):
        yield f"ignored: {counted(members, 'member')} of tar files (hidden, without a suffix, or named like __about__)"
    if unknown := cast("dict[str, object]", manifest.info.get("unknown_pieces", {})):
        yield from unknown_lines(unknown)
    if ignored := cast("dict[str, int]", manifest.info.get("ignored_files", {})):
        shown = [
            f"{counted(count, f'{suffix} file' if suffix else 'file')}{'' if suffix else ' without a suffix'}"
            for suffix, count in ignored.items()
        ]
        hint = "; if they hold captions, use the source `captions` for a list, `pairs` for texts next to images"
        is_captioned = manifest.class_names is not None and ignored.keys() & _TEXT_SUFFIXES
        yield f"not read: {', '.join(shown)}{hint if is_captioned else ''}"
    if hidden := cast(int, manifest.info.get("hidden_files", 0)):
        yield f"ignored: {counted(hidden, 'hidden file')} (names that start with a dot, and __MACOSX)"
    if scattered := cast(int, manifest.info.get("scattered_tars", 0)):
        yield (
            f"members of one sample are not next to each other in {counted(scattered, 'tar file')}: they were joined "
            "by name; `tar --sort=name` writes them next to each other, which reads faster"
        )
    yield from _missing_images(manifest)
    if unlisted := cast(int, manifest.info.get("images_in_no_list", 0)):
        yield f"images of the source that no list names: {unlisted:,}"
    if DUPLICATE_OTHER in manifest.rows_dropped:
        yield f"different samples share keys: {_advice_on_keys(manifest)}"
    for record in cast("list[dict[str, object]]", manifest.info.get("records", [])):
        yield f"a record: {_shown(record, manifest.class_names)}"
    if manifest.rows_read and not manifest.rows_written:
        hint = _advice_on_images(manifest) if MISSING_IMAGE in manifest.rows_dropped else ""
        is_filtered = set(manifest.rows_dropped) <= set(FILTERED)
        where = "" if is_filtered else "were images, captions or labels looked for in the wrong place? "
        yield f"no row was kept: {where}{_example(manifest)}{hint}"


def _row_lines(manifest: Manifest) -> Iterator[str]:
    """Rows and captions that were read, written and dropped."""
    dropped = "".join(f", {count:,} {reason}" for reason, count in manifest.rows_dropped.items())
    yield f"rows: {manifest.rows_read:,} read, {manifest.rows_written:,} written{dropped}"
    if subset := cast("dict[str, object]", manifest.info.get("subset", {})):
        outside = cast("dict[str, list[dict[str, str]]]", manifest.info.get("examples", {})).get(NOT_IN_SUBSET, [])
        yield from subset_lines(subset, next(iter(outside), None))
    if downloads := cast("dict[str, int]", manifest.info.get("downloads", {})):
        failed = f"{counted(downloads['total'], 'download')}, {downloads['failed']:,} failed"
        yield f"img2dataset reports {failed}, for which the source has no rows"
    if lost := cast("dict[str, int]", manifest.info.get("captions_dropped", {})):
        counts = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
        yield f"captions left out of rows that were kept: {counts}"


def _advice_on_keys(manifest: Manifest) -> str:
    kind = SOURCES.get(_kind(manifest))
    if kind is None or kind.has_prefix:
        return "if several dumps were given, --prefix-keys keeps them apart"
    return "is an image in several lists or file formats, or with several labels? manifest.json has examples"


def _advice_on_lines(manifest: Manifest) -> str:
    kind = SOURCES.get(_kind(manifest))
    if kind is None or not kind.has_texts:
        return ""
    return "; if each line is a caption, repeat with --caption-lines --overwrite"


def _missing_images(manifest: Manifest) -> Iterator[str]:
    """The first missing image, if more than a tenth of the rows lack theirs and others do not."""
    missing = manifest.rows_dropped.get(MISSING_IMAGE, 0)
    wanted = manifest.rows_read - sum(manifest.rows_dropped.get(reason, 0) for reason in FILTERED)
    examples = cast(dict[str, list[dict[str, str]]], manifest.info["examples"]).get(MISSING_IMAGE)
    if examples and manifest.rows_written and missing > wanted / 10:
        detail = f" ({examples[0]['detail']})" if examples[0]["detail"] else ""
        shown = f"the first is {examples[0]['key']}{detail}{_advice_on_images(manifest)}"
        yield f"{missing:,} images are missing, {shown}"


def _advice_on_images(manifest: Manifest) -> str:
    kind = SOURCES.get(_kind(manifest))
    has_images = kind is not None and kind.has_images
    return "; is --images the folder that all paths are relative to?" if has_images else ""


def _doubts_on_classes(manifest: Manifest) -> Iterator[str]:
    """Class folders that are likely no classes, or whose names cannot be scored with."""
    names = manifest.class_names or ()
    if empty := cast("list[str]", manifest.info.get("classes_without_images", [])):
        verb = "has" if len(empty) == 1 else "have"
        shown = ", ".join(shortened(name, 40) for name in empty[:5]) + (", ..." if len(empty) > 5 else "")
        yield f"of these {verb} no images: {shown}; if a folder is no class, remove it and repeat with --overwrite"
    if _kind(manifest) == "folder" and all(name.isascii() and name.isdigit() for name in names):
        yield (
            "the class names are numbers: name the classes with --class-names FILE --overwrite, or use the source "
            "`imagenet` for ImageNetV2"
        )


def _captions(manifest: Manifest) -> Iterator[str]:
    """The number of captions per image, unless there are none, as in labeled sources."""
    ends = cast("dict[str, int]", manifest.info.get("captions_per_record", {}))
    if ends and ends["most"] and "captions_written" in manifest.info:
        mean = cast(int, manifest.info["captions_written"]) / manifest.rows_written
        span = f"{ends['fewest']:,}" if ends["fewest"] == ends["most"] else f"{ends['fewest']:,} to {ends['most']:,}"
        yield f"captions per image: {span}" + ("" if ends["fewest"] == ends["most"] else f", {mean:.2f} on average")


def _shown(record: Mapping[str, object], names: Sequence[str] | None) -> str:
    parts = [str(record["key"])]
    if "label" in record:
        label = record["label"]
        name = f" ({describe_class(names[label])})" if isinstance(label, int) and names else ""
        parts.append(f"label {label}{name}")
    if "caption" in record:
        parts.append(repr(record["caption"]))
    return ", ".join(parts)


def _kind(manifest: Manifest) -> str:
    command = cast("dict[str, object]", manifest.info.get("command", {}))
    return str(command.get("kind"))


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
    if found.changed_extra:
        yield f"{counted(found.changed_extra, 'key')} with equal content and other values in `extra`"
        yield from (f"  {key}" for key in found.examples_extra)
    for name, count, keys, repeats in (
        (a, found.only_a, found.examples_a, found.repeats_a),
        (b, found.only_b, found.examples_b, found.repeats_b),
    ):
        yield f"{counted(count, 'key')} only in {name}" + (
            f"; {counted(repeats, 'record')} with a repeated key" if repeats else ""
        )
        yield from (f"  {key}" for key in keys)


def joined_lines(target: str, joined: Joined) -> Iterator[str]:
    """The account of a joined folder."""
    manifest, repeated = joined.manifest, joined.repeated
    if repeated is not None and repeated.records:
        yield (
            f"{counted(repeated.records, 'record')} with a key that an earlier record has, "
            f"{repeated.differing:,} of them with other content; nothing is written"
        )
        yield from (f"  {example}" for example in repeated.examples)
        yield "leave out folders that share records, or join without --check-keys to keep all of them"
        return
    size, folders = int(manifest.table.sizes.sum()), counted(len(manifest.members), "record folder")
    yield f"{target}: {_contents(manifest)} of {folders}, {size / 1e6:,.1f} MB"
    yield from _row_lines(manifest)
    yield from _captions(manifest)
    if manifest.class_names:
        yield describe_classes(manifest.class_names, None)
    if empty := [member.folder for member in manifest.members if not member.rows]:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        yield f"{counted(len(empty), 'record folder')} without records: {shown}"
    if repeated is not None or manifest.info.get(KEYS_CHECKED):
        yield "no two records have the same key"
    else:
        yield "keys are unique in each folder only: --check-keys, which reads all records, looks for repeated ones"
    if not joined.is_written:
        yield "nothing to do: the folder has this manifest already"
