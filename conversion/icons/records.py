"""Record folders of the quickstart: train, validation and test sets of drawings that different designers made."""

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
    Part,
    list_icons,
    name_key,
    render,
    shared_names,
    similarity,
    split_name,
)

Drawing = UInt8[np.ndarray, "size size"]

EMPTY = "empty glyph"
ALIAS = "another name of a glyph already counted"
TWIN_OF_HELD_OUT = "pixel-near twin of a held-out drawing"
TWIN_OF_VALIDATION = "pixel-near twin of a validation drawing"
NO_CLASS = "name not shared with the training families"


@dataclass(frozen=True, kw_only=True)
class IconManifests:
    """What was written: folders `train`, `validation` and `test`."""

    train: Manifest
    validation: Manifest
    test: Manifest


def build_icon_records(folder: str | Path, *, size: int = 64, overwrite: bool = False) -> IconManifests:
    """Write `train/`, `validation/` and `test/` under `folder`: gray PNG drawings of `size` pixels, dark on light.

    Train: Material Design 6, Phosphor and Remix without the twins (`similarity` >= `TWIN_SIMILARITY`) of any Font
    Awesome, Codicon or Elusive drawing. Validation: Codicon and Elusive, for choosing hyper-parameters. Test: Font
    Awesome 6 solid. The labels of the latter two are the names each shares with train; other drawings are dropped.
    A caption is the words of the name, as `arrow left`; `extra` holds family, name and style (`fill`, `line`, ...).
    Rows read are names in the fonts' character maps. The same wheel gives the same bytes (with one Pillow version).

    Raises:
        DataError: `qtawesome` is missing, or a folder exists and not `overwrite`.
    """
    folder = Path(folder)
    existing = [name for name in ("train", "validation", "test") if (folder / name).exists()]
    if existing and not overwrite:
        raise DataError(f"{folder} exists already and holds {existing}; choose another folder or ask to overwrite it")
    drawn = {family.name: _draw(family, size) for family in FAMILIES}
    held_out, validation, train = (_joined(drawn, part) for part in ("held-out", "validation", "train"))
    kept = _without_twins(train, held_out=held_out, validation=validation)
    info: dict[str, object] = {"source": "icon fonts of the package qtawesome", "size": size}
    return IconManifests(
        train=write_records(
            (_record(icon, ink) for icon, ink in kept.drawings),
            folder / "train",
            dropped=kept.dropped,
            info={**info, "families": _counts(kept), "twin_similarity": TWIN_SIMILARITY},
            overwrite=overwrite,
        ),
        validation=_write_labeled(validation, kept, folder / "validation", info=info, overwrite=overwrite),
        test=_write_labeled(drawn[SCORED_FAMILY], kept, folder / "test", info=info, overwrite=overwrite),
    )


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Drawings, and why the other names of their fonts have none."""

    drawings: list[tuple[Icon, Drawing]]
    dropped: dict[str, int]


def _draw(family: Family, size: int) -> _Drawn:
    icons = list_icons(family)
    drawings = [(icon, ink) for icon, ink in zip(icons, render(icons, size=size), strict=True) if ink.any()]
    aliases = sum(len(icon.names) - 1 for icon in icons)
    return _Drawn(drawings=drawings, dropped={ALIAS: aliases, EMPTY: len(icons) - len(drawings)})


def _joined(drawn: dict[str, _Drawn], part: Part) -> _Drawn:
    members = [drawn[family.name] for family in FAMILIES if family.part == part]
    return _Drawn(
        drawings=[drawing for member in members for drawing in member.drawings],
        dropped={reason: sum(member.dropped[reason] for member in members) for reason in (ALIAS, EMPTY)},
    )


def _without_twins(train: _Drawn, *, held_out: _Drawn, validation: _Drawn) -> _Drawn:
    own = [ink for _, ink in train.drawings]
    is_tested = _has_twin(own, [ink for _, ink in held_out.drawings])
    is_tuned = _has_twin(own, [ink for _, ink in validation.drawings]) & ~is_tested
    keep = ~(is_tested | is_tuned)
    return _Drawn(
        drawings=[drawing for drawing, is_kept in zip(train.drawings, keep, strict=True) if is_kept],
        dropped={**train.dropped, TWIN_OF_HELD_OUT: int(is_tested.sum()), TWIN_OF_VALIDATION: int(is_tuned.sum())},
    )


def _has_twin(drawings: Sequence[Drawing], others: Sequence[Drawing]) -> Bool[np.ndarray, " drawings"]:
    return np.any(similarity(drawings, others) >= TWIN_SIMILARITY, axis=1)


def _write_labeled(
    scored: _Drawn, trained: _Drawn, folder: Path, *, info: dict[str, object], overwrite: bool
) -> Manifest:
    shared = shared_names([icon for icon, _ in scored.drawings], [icon for icon, _ in trained.drawings])
    # A glyph with several shared names is scored by the first; names that no glyph is scored by are no classes.
    keys = [
        next((k for n in icon.names if (k := name_key(n, icon.family)) in shared), None) for icon, _ in scored.drawings
    ]
    classes = {key: name for key, name in shared.items() if key in keys}
    labels = {key: label for label, key in enumerate(classes)}
    records = [
        _record(icon, ink, label=labels[key])
        for (icon, ink), key in zip(scored.drawings, keys, strict=True)
        if key is not None
    ]
    return write_records(
        records,
        folder,
        dropped={**scored.dropped, NO_CLASS: len(scored.drawings) - len(records)},
        class_names=classes.values(),
        info={**info, "families": _counts(scored)},
        overwrite=overwrite,
    )


def _record(icon: Icon, ink: Drawing, *, label: int | None = None) -> Record:
    words, style = split_name(icon.names[0], icon.family)
    file = io.BytesIO()
    Image.fromarray(255 - ink).save(file, format="PNG")
    return Record(
        key=icon.key,
        image=file.getvalue(),
        captions=(" ".join(words),),
        label=label,
        extra={"family": icon.family.name, "name": icon.names[0], "style": style},
    )


def _counts(drawn: _Drawn) -> dict[str, int]:
    return dict(Counter(icon.family.name for icon, _ in drawn.drawings))
