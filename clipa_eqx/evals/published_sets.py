"""The published evaluation sets by their numbers, and the flags of a record folder that is not one of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from clipa_eqx.data.manifest import Manifest
from clipa_eqx.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """Numbers of a published set: images, and either classes (all that are ranked) or captions."""

    name: str
    images: int
    classes: int | None = None
    captions: int | None = None

    @property
    def numbers(self) -> str:
        """The numbers in words."""
        return _numbers(self.images, classes=self.classes, captions=self.captions)


PUBLISHED_SETS = (
    PublishedSet(name="ImageNet validation", images=50_000, classes=1000),
    PublishedSet(name="ImageNetV2", images=10_000, classes=1000),
    PublishedSet(name="ImageNet-A", images=7_500, classes=200),
    PublishedSet(name="ImageNet-R", images=30_000, classes=200),
    PublishedSet(name="ImageNet-Sketch", images=50_889, classes=1000),
    # Without the 3,163 images that have no label.
    PublishedSet(name="ImageNet-ReaL", images=46_837, classes=1000),
    # The 113 classes that ImageNet has are 125 classes of ImageNet.
    PublishedSet(name="ObjectNet with classes of ImageNet", images=18_574, classes=125),
    PublishedSet(name="ObjectNet with its own classes", images=18_574, classes=113),
    PublishedSet(name="COCO, Karpathy's test split", images=5_000, captions=25_010),
    PublishedSet(name="COCO val2017", images=5_000, captions=25_014),
    PublishedSet(name="Flickr30k, Karpathy's test split", images=1_000, captions=5_000),
)
"""The sets of docs/published_sets.md. Their fingerprints are not known here: the numbers are all that is compared."""


def describe_set(
    manifest: Manifest, *, classes: int | None = None, captions: int | None = None, is_expected: bool = False
) -> dict[str, Any]:
    """Name the published set that a record folder is by its numbers, and flag what says that it is another one.

    Args:
        manifest: that of the records.
        classes: number of classes that are ranked, of a set with labels.
        captions: number of captions of a set for retrieval; None if it is not known.
        is_expected: the fingerprint of the records is the one that the user gave.

    Returns:
        ``name`` of the set, or None; ``numbers`` in words; ``flags``, one text for each thing that differs or is not
        known.
    """
    images = manifest.rows_written
    wanted = (images, classes, None) if classes is not None else (images, None, captions)
    name = next((one.name for one in PUBLISHED_SETS if (one.images, one.classes, one.captions) == wanted), None)
    flags = [] if name is not None else [_not_published(images, classes=classes, captions=captions)]
    if name is None and manifest.rows_dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in manifest.rows_dropped.items())
        flags.append(f"the conversion dropped rows: {reasons}")
    command = cast("Mapping[str, Any]", manifest.info.get("command") or {})
    for option, meaning in (("max_side", "re-encoded images that are larger"), ("limit", "read only the first rows")):
        if command.get(option) is not None:
            flags.append(f"the conversion {meaning}: --{option.replace('_', '-')} {command[option]}")
    if not is_expected:
        found = manifest.info.get("content_fingerprint")
        flags.append(
            "the records have no fingerprint: they were not written by conversion.records"
            if found is None
            else f"the fingerprint {found} was not compared with a known one; --expect-fingerprint does"
        )
    return {"name": name, "numbers": _numbers(images, classes=classes, captions=captions), "flags": flags}


def check_fingerprint(manifest: Manifest, expected: str, *, data: str) -> None:
    """Check that records are the ones with a fingerprint.

    Args:
        expected: ``content_fingerprint`` of a manifest, or of the passport of a result.
        data: the record folder, for messages.

    Raises:
        DataError: they have another fingerprint, or none.
    """
    found = manifest.info.get("content_fingerprint")
    if found is None:
        raise DataError(
            f"data folder {data} has no content_fingerprint in its manifest, so that it cannot be compared with "
            f"{expected}; convert the data with conversion.records, or leave --expect-fingerprint out"
        )
    if found != expected.strip().lower():
        raise DataError(
            f"data folder {data} has the fingerprint {found}, expected {expected}: keys, images, captions or labels "
            "are not the same; `diff` of conversion.records lists what differs between two record folders"
        )


def _not_published(images: int, *, classes: int | None, captions: int | None) -> str:
    if classes is None:
        near = [f"{one.name} has {one.numbers}" for one in PUBLISHED_SETS if one.captions is not None]
    else:
        near = [f"{one.name} has {one.images:,} images" for one in PUBLISHED_SETS if one.classes == classes]
        near = near or [
            f"{one.name} has {one.classes:,} classes"
            for one in PUBLISHED_SETS
            if one.classes is not None and one.images == images
        ]
    return "; ".join([f"not a published set: {_numbers(images, classes=classes, captions=captions)}", *near])


def _numbers(images: int, *, classes: int | None, captions: int | None) -> str:
    if classes is not None:
        return f"{images:,} images of {classes:,} classes"
    return f"{images:,} images" + ("" if captions is None else f" with {captions:,} captions")
