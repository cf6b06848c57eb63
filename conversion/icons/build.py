"""Record folders of the quickstart: training, validation and test icons from different designers."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.manifest import Manifest
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError
from conversion.icons.fonts import (
    FAMILIES,
    SCORED_FAMILY,
    TWIN_SIMILARITY,
    Family,
    Icon,
    Split,
    list_icons,
    name_key,
    render,
    shared_names,
    similarity,
    split_name,
)

Ink = UInt8[np.ndarray, "size size"]

EMPTY = "empty glyph"
ALIAS = "another name of a glyph already counted"
TWIN_OF_HELD_OUT = "pixel-near twin of a held-out drawing"
TWIN_OF_VALIDATION = "pixel-near twin of a validation drawing"
NO_CLASS = "name not shared with the training families"

_RENDERED = 64  # pixels of a side at which twins are compared


@dataclass(frozen=True, kw_only=True)
class IconManifests:
    """Manifests of the folders ``train``, ``validation`` and ``test``."""

    train: Manifest
    validation: Manifest
    test: Manifest


def build_icon_records(folder: str | Path, *, size: int = 64, overwrite: bool = False) -> IconManifests:
    """Write ``train/``, ``validation/`` and ``test/`` under ``folder``: gray PNG icons, dark on light.

    - train: Material Design 6, Phosphor and Remix, without the twins (``similarity`` >= ``TWIN_SIMILARITY``) of any
      Font Awesome, Codicon or Elusive icon.
    - validation: Codicon and Elusive, for choosing hyper-parameters.
    - test: Font Awesome 6 solid.

    The labels of validation and test are the names that each shares with train; other icons are dropped. A caption is
    the words of the name, such as ``arrow left``; ``extra`` holds family, name and style (``fill``, ``line``, ...).
    Rows read are the names in the fonts' character maps. The same wheel and Pillow version give the same bytes.

    Args:
        size: pixels of a side, 64 or a half, a quarter, ... of it; it changes neither icons nor classes.

    Raises:
        DataError: another size, ``qtawesome`` is not installed, or a folder exists and ``overwrite`` is not set.
    """
    if size < 1 or _RENDERED % size:
        raise DataError(f"icons are written at {_RENDERED} pixels or a half, a quarter, ... of it, got size={size}")
    folder = Path(folder)
    existing = [name for name in ("train", "validation", "test") if (folder / name).exists()]
    if existing and not overwrite:
        raise DataError(f"{folder} exists already and holds {existing}; choose another folder or ask to overwrite it")
    rendered = {family.name: _render(family) for family in FAMILIES}
    held_out, validation, train = (_joined(rendered, split) for split in ("held-out", "validation", "train"))
    kept = _without_twins(train, held_out=held_out, validation=validation)
    info: dict[str, object] = {"source": "icon fonts of the package qtawesome", "size": size}
    return IconManifests(
        train=write_records(
            (_record(icon, ink, size=size) for icon, ink in kept.icons),
            folder / "train",
            dropped=kept.dropped,
            info={**info, "families": _counts(kept), "twin_similarity": TWIN_SIMILARITY},
            overwrite=overwrite,
        ),
        validation=_write_labeled(validation, kept, folder / "validation", size=size, info=info, overwrite=overwrite),
        test=_write_labeled(rendered[SCORED_FAMILY], kept, folder / "test", size=size, info=info, overwrite=overwrite),
    )


@dataclass(frozen=True, kw_only=True)
class _Rendered:
    """Icons with their ink, and the reasons why other names of their fonts have none."""

    icons: list[tuple[Icon, Ink]]
    dropped: dict[str, int]


def _render(family: Family) -> _Rendered:
    icons = list_icons(family)
    rendered = [(icon, ink) for icon, ink in zip(icons, render(icons, size=_RENDERED), strict=True) if ink.any()]
    aliases = sum(len(icon.names) - 1 for icon in icons)
    return _Rendered(icons=rendered, dropped={ALIAS: aliases, EMPTY: len(icons) - len(rendered)})


def _joined(rendered: dict[str, _Rendered], split: Split) -> _Rendered:
    members = [rendered[family.name] for family in FAMILIES if family.split == split]
    return _Rendered(
        icons=[icon for member in members for icon in member.icons],
        dropped={reason: sum(member.dropped[reason] for member in members) for reason in (ALIAS, EMPTY)},
    )


def _without_twins(train: _Rendered, *, held_out: _Rendered, validation: _Rendered) -> _Rendered:
    own = [ink for _, ink in train.icons]
    is_tested = _has_twin(own, [ink for _, ink in held_out.icons])
    is_tuned = _has_twin(own, [ink for _, ink in validation.icons]) & ~is_tested
    keep = ~(is_tested | is_tuned)
    return _Rendered(
        icons=[icon for icon, is_kept in zip(train.icons, keep, strict=True) if is_kept],
        dropped={**train.dropped, TWIN_OF_HELD_OUT: int(is_tested.sum()), TWIN_OF_VALIDATION: int(is_tuned.sum())},
    )


def _has_twin(own: Sequence[Ink], others: Sequence[Ink]) -> Bool[np.ndarray, " own"]:
    return np.any(similarity(own, others) >= TWIN_SIMILARITY, axis=1)


def _write_labeled(
    scored: _Rendered, trained: _Rendered, folder: Path, *, size: int, info: dict[str, object], overwrite: bool
) -> Manifest:
    shared = shared_names([icon for icon, _ in scored.icons], [icon for icon, _ in trained.icons])
    # A glyph with several shared names is scored by the first. A name that no glyph is scored by is no class.
    keys = [
        next((k for n in icon.names if (k := name_key(n, icon.family)) in shared), None) for icon, _ in scored.icons
    ]
    classes = {key: name for key, name in shared.items() if key in keys}
    labels = {key: label for label, key in enumerate(classes)}
    records = [
        _record(icon, ink, size=size, label=labels[key])
        for (icon, ink), key in zip(scored.icons, keys, strict=True)
        if key is not None
    ]
    return write_records(
        records,
        folder,
        dropped={**scored.dropped, NO_CLASS: len(scored.icons) - len(records)},
        class_names=classes.values(),
        info={**info, "families": _counts(scored)},
        overwrite=overwrite,
    )


def _record(icon: Icon, ink: Ink, *, size: int, label: int | None = None) -> Record:
    words, style = split_name(icon.names[0], icon.family)
    file = io.BytesIO()
    Image.fromarray(255 - ink).reduce(_RENDERED // size).save(file, format="PNG")
    return Record(
        key=icon.key,
        image=file.getvalue(),
        captions=(" ".join(words),),
        label=label,
        extra={"family": icon.family.name, "name": icon.names[0], "style": style},
    )


def _counts(rendered: _Rendered) -> dict[str, int]:
    return dict(Counter(icon.family.name for icon, _ in rendered.icons))
