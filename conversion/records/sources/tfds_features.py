"""Features of a TFDS data set as its ``features.json`` and ``dataset_info.json`` declare them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from conversion.records.sources.columns import CAPTION_COLUMNS, IMAGE_COLUMNS

_LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class DeclaredFeatures:
    """Names of features by their types, as ``tf.Example``s have them: the fields of a feature are ``FEATURE/FIELD``.

    Attributes:
        images: features that hold one image.
        texts: texts, and lists of texts.
        classes: number of classes of each feature that holds a class, or a list of classes, of an image. Classes of
            the objects in an image are not among them.
        supervised: the feature that the data set names as its label.
    """

    images: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    classes: Mapping[str, int] = field(default_factory=dict[str, int])
    supervised: str | None = None

    def image_names(self) -> tuple[str, ...]:
        """Usual names of the image, then the only feature that is one."""
        usual = tuple(name for name in IMAGE_COLUMNS if not self.images or name in self.images)
        return (*usual, *self.images) if len(self.images) == 1 else usual

    def caption_names(self) -> tuple[str, ...]:
        """Usual names of captions, then the only text with such a field, as in ``annotations/caption``."""
        if not self.texts:
            return CAPTION_COLUMNS
        fields = [name for name in self.texts if name.rpartition("/")[2] in {*CAPTION_COLUMNS, "raw"}]
        usual = tuple(name for name in CAPTION_COLUMNS if name in self.texts)
        return (*usual, *fields) if len(fields) == 1 else usual

    def label_names(self, *, has_captions: bool) -> tuple[str, ...]:
        """Names of the label: the declared one, then ``label``, then the only class, if there are no captions.

        A class of a captioned set, such as ``nsfw`` of laion400m, is a property like others.
        """
        declared = (self.supervised,) if self.supervised in self.classes else ()
        only = tuple(self.classes) if len(self.classes) == 1 and not has_captions else ()
        return tuple(name for name in (*declared, _LABEL, *only) if name is not None)


def declared_features(features: object, info: object) -> DeclaredFeatures:
    """The features that the content of ``features.json`` and ``dataset_info.json`` declares; none if it is another."""
    leaves = list(_leaves(features, "", is_listed=False))
    return DeclaredFeatures(
        images=tuple(name for name, kind, _ in leaves if kind == "image"),
        texts=tuple(name for name, kind, _ in leaves if kind == "text"),
        classes={name: count for name, kind, count in leaves if kind == "class"},
        supervised=_supervised(info),
    )


def labels_files(label: str) -> tuple[str, ...]:
    """Possible names of the file with the class names of a feature: TFDS replaces ``/`` in two ways."""
    return tuple(dict.fromkeys(f"{label.replace('/', sign)}.labels.txt" for sign in ".-"))


def _leaves(feature: object, name: str, *, is_listed: bool) -> Iterator[tuple[str, str, int]]:
    """Name, kind and number of classes of the features inside of one.

    Args:
        is_listed: whether the feature is a field of the entries of a list, such as the objects in an image.
    """
    held = _map(feature)
    if "featuresDict" in held:
        for child, one in _map(_map(held["featuresDict"]).get("features")).items():
            yield from _leaves(one, f"{name}/{child}" if name else child, is_listed=is_listed)
    elif "sequence" in held:
        inner = _map(_map(held["sequence"]).get("feature"))
        if "sequence" not in inner and "image" not in inner:  # lists in lists have other names in examples
            yield from _leaves(inner, name, is_listed=is_listed or "featuresDict" in inner)
    elif "image" in held and not is_listed:
        yield name, "image", 0
    elif "text" in held or _map(held.get("tensor")).get("dtype") == "string":
        yield name, "text", 0
    elif "classLabel" in held and not is_listed:
        count = str(_map(held["classLabel"]).get("numClasses", ""))
        yield name, "class", int(count) if count.isdecimal() and len(count) < 10 else 0


def _supervised(info: object) -> str | None:
    items: Any = _map(_map(_map(info).get("supervisedKeys")).get("tuple")).get("items")
    if not isinstance(items, list) or len(cast(list[object], items)) < 2:
        return None
    name = _map(cast(list[object], items)[1]).get("featureKey")
    return name if isinstance(name, str) else None


def _map(value: object) -> Mapping[str, object]:
    return cast(dict[str, object], value) if isinstance(value, dict) else {}
