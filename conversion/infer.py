"""The config of a foreign model: what its shapes say, checked against a preset, the rest named; nothing is guessed."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clipa_eqx.data.eval_images import EvalImageConfig
from clipa_eqx.errors import ClipaError, ConversionError
from clipa_eqx.json_config import from_json
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.pool import ImagePool, TextPool
from clipa_eqx.models.presets import T5X_TEXT, VARIANTS, Size, preset
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from conversion.released import RELEASED

Profile = Literal["flax", "open_clip"]
PROFILES: Mapping[Profile, dict[str, Any]] = {
    "flax": {"norm_eps": 1e-6, "gelu": "tanh"},
    "open_clip": {"norm_eps": 1e-5, "gelu": "exact"},
}
"""Numerics that no weight file records (facts 4.4)."""

TEXT_TABLES: dict[str, dict[str, Size]] = {
    "master": {letter: variant.text for letter, variant in VARIANTS.items()},
    "t5x models": {"g": Size(1280, 36, 5120, 16)},
    "t5x models_t5x": {"H": Size(1024, 24, 3072, 16), "g": T5X_TEXT, "G": T5X_TEXT},
}
"""The reference's three tables of text towers; the later two where they differ from the first (facts 1.1)."""


class Fact(NamedTuple):
    """What shapes say of a field of the config.

    ``values`` are those that fit; with several, or with ``is_hint``, someone must say which, or that it is so.
    """

    values: tuple[Any, ...]
    why: str
    is_hint: bool = False


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the user says of a model, by the flags of these names."""

    preset: str | None = None
    released: str | None = None
    config: Path | None = None
    image_pool: ImagePool | None = None
    text_pool: TextPool | None = None
    image_position: Literal["sincos2d", "learned"] | None = None
    image_heads: int | None = None
    text_heads: int | None = None
    image_size: int | None = None
    profile: Profile | None = None


class Resolved(NamedTuple):
    """A config, its numerics profile and why, how pictures are prepared, and what was chosen or differs."""

    config: CLIPConfig
    profile: str
    profile_why: str
    preprocess: EvalImageConfig
    notes: tuple[str, ...]


class _Base(NamedTuple):
    """A whole config to start from; ``free`` are its fields that are mere defaults."""

    name: str
    config: CLIPConfig
    free: tuple[str, ...] = ()
    letter: str | None = None
    profile: Profile | None = None
    preprocess: EvalImageConfig | None = None


# Fields that a weight file or someone must tell, and the flag that tells them.
_FLAGS: dict[str, str | None] = {
    "image.blocks.width": None,
    "image.blocks.depth": None,
    "image.blocks.mlp_dim": None,
    "image.blocks.heads": "--image-heads",
    "image.patch": None,
    "image.patch_size": None,
    "image.position": "--image-position",
    "image.pool": "--image-pool",
    "image.image_size": "--image-size",
    "image.embed": None,
    "text.blocks.width": None,
    "text.blocks.depth": None,
    "text.blocks.mlp_dim": None,
    "text.blocks.heads": "--text-heads",
    "text.vocab": None,
    "text.position": None,
    "text.length": None,
    "text.pool": "--text-pool",
    "text.embed": None,
}
_SHOWN = 100  # misfits: with the wrong preset, every tensor is one
_TEXT_SIZES = tuple(f"text.blocks.{name}" for name in Size._fields)


def resolve_config(
    facts: Mapping[str, Fact],
    choices: Choices,
    *,
    format_profile: Profile | None,
    misfits: Callable[[CLIPConfig], Sequence[str]] | None = None,
) -> Resolved:
    """The config that shapes, preset and flags agree on.

    Args:
        facts: by dotted name of the field, as ``image.blocks.width``.
        format_profile: the numerics of the code that writes such files; None if several do.
        misfits: what of the file does not fit a config, a line for each tensor (``rules.check_tensors``); if file and
            named config disagree, these lines say which tensors are to blame.

    Raises:
        ConversionError: lists every field that nobody tells and every contradiction.
    """
    base, flags = _base(choices), _flag_values(choices)
    table = _text_table(facts, base)
    values: dict[str, Any] = {}
    problems: list[str] = []
    notes: list[str] = []
    for name, flag in _FLAGS.items():
        fact = facts.get(name)
        default, origin = (None, "") if base is None else (_get(base.config, name), base.name)
        if table is not None and name in _TEXT_SIZES:
            expected, default = default, getattr(table.size, name.rsplit(".", 1)[-1])
            if default != expected:
                notes.append(f"{name}: {default}, {expected} in {origin}: the text tower is that of {table.name}")
            origin = table.name
        is_default = base is not None and name in base.free
        if name in flags:
            value, where = flags[name], str(flag)
        elif fact is not None and len(fact.values) == 1 and not fact.is_hint:
            value, where = fact.values[0], f"the file ({fact.why})"
        elif base is not None and not is_default:
            value, where = default, origin
            notes.append(f"{name}: {value} by {origin} ({fact.why if fact else 'shapes do not tell'})")
        elif fact is not None and fact.is_hint:
            value, where = fact.values[0], f"the file ({fact.why})"
        elif base is not None:
            value, where = default, origin
            notes.append(f"{name}: {value}, the default of {origin}; {flag or '--config'} gives another")
        else:
            why = fact.why if fact else "shapes do not tell"
            problems.append(f"{name} is not known ({why}); give {flag or '--config or --preset'}")
            continue
        values[name] = value
        if fact is not None and not fact.is_hint and value not in fact.values:
            allowed = " or ".join(map(str, fact.values))
            problems.append(f"{name}: {value} by {where}, but the file has {allowed} ({fact.why})")
        elif base is not None and value != default:
            is_fine = name in flags or is_default
            (notes if is_fine else problems).append(f"{name}: {value} by {where}, {default} in {origin}")
    if problems:
        rows = [f"{one.name} ({one.size.heads} heads)" for one in _matching_text(facts)]
        if rows:
            problems.append(f"by the way, the text tower has the sizes of {', '.join(rows)}")
        lines = list(misfits(base.config)) if base is not None and misfits is not None else []
        problems += lines[:_SHOWN] + ([f"... and {len(lines) - _SHOWN} tensors more"] if len(lines) > _SHOWN else [])
        raise ConversionError("the config cannot be told:\n  " + "\n  ".join(problems))
    numerics, profile, why = _profile(choices, base, format_profile)
    try:
        config = _build(values, numerics, base)
        preprocess = base.preprocess if base and base.preprocess else None
        if preprocess is None or preprocess.size != config.image.image_size:
            # What every release was scored with (facts 4.2).
            preprocess = EvalImageConfig(size=config.image.image_size, resize="squash")
    except ClipaError as error:
        raise ConversionError(f"shapes and flags make no config: {error}") from error
    return Resolved(config, profile, why, preprocess, tuple(notes))


def _base(choices: Choices) -> _Base | None:
    given = {"--preset": choices.preset, "--released": choices.released, "--config": choices.config}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConversionError(f"{' and '.join(named)} each name a whole config; give one of them")
    if choices.preset is not None:
        letter = choices.preset.split("/")[0].removeprefix("big")
        return _Base(
            f"preset {choices.preset}", preset(choices.preset), free=("image.image_size", "text.length"), letter=letter
        )
    if choices.released is not None:
        if choices.released not in RELEASED:
            raise ConversionError(
                f"no released model is called {choices.released!r}; `python -m conversion.released` lists them"
            )
        row = RELEASED[choices.released]
        return _Base(
            f"released model {choices.released}", row.config(), profile=row.profile, preprocess=row.preprocess()
        )
    if choices.config is not None:
        return _Base(str(choices.config), _read_config(choices.config))
    return None


def _read_config(path: Path) -> CLIPConfig:
    """A model config as ``scripts/show.py`` prints it, a saved model's ``config.json``, or the model of a run's."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConversionError(f"--config {path} cannot be read ({error})") from error
    while isinstance(found, dict) and "image" not in found and ("model" in found or "config" in found):
        found = found.get("model", found.get("config"))
    if not isinstance(found, dict):
        raise ConversionError(f"--config {path} holds no model config; scripts/show.py MODEL prints one")
    return from_json(CLIPConfig, found, where=f"--config {path}")


def _flag_values(choices: Choices) -> dict[str, Any]:
    size = choices.image_size
    values = {
        "image.pool": choices.image_pool,
        "text.pool": choices.text_pool,
        "image.position": choices.image_position,
        "image.blocks.heads": choices.image_heads,
        "text.blocks.heads": choices.text_heads,
        "image.image_size": None if size is None else (size, size),
    }
    return {name: value for name, value in values.items() if value is not None}


def _profile(
    choices: Choices, base: _Base | None, format_profile: Profile | None
) -> tuple[Mapping[str, dict[str, Any]], str, str]:
    """Numerics of each tower's blocks, the profile's name, and why."""
    if choices.profile is not None:
        chosen, why = choices.profile, "--profile says so"
    elif base is not None and base.profile is not None:
        chosen, why = base.profile, f"{base.name} was published with it"
    elif base is not None and choices.config is not None:
        towers = {"image": base.config.image.blocks, "text": base.config.text.blocks}
        numerics = {name: {"norm_eps": one.norm_eps, "gelu": one.gelu} for name, one in towers.items()}
        name = next((n for n, p in PROFILES.items() if all(one == p for one in numerics.values())), "custom")
        return numerics, name, f"{base.name} says so"
    elif format_profile is not None:
        chosen, why = format_profile, f"files of this layout are written by {format_profile} code; --profile overrides"
    else:
        raise ConversionError("the numerics profile is not known; give --profile flax or --profile open_clip")
    return dict.fromkeys(("image", "text"), PROFILES[chosen]), chosen, why


def _build(values: Mapping[str, Any], numerics: Mapping[str, dict[str, Any]], base: _Base | None) -> CLIPConfig:
    def blocks(tower: str) -> BlockConfig:
        sizes = {name: values[f"{tower}.blocks.{name}"] for name in Size._fields}
        if base is not None:
            return dataclasses.replace(getattr(base.config, tower).blocks, **sizes, **numerics[tower])
        return BlockConfig(**sizes, **numerics[tower], init="xavier" if tower == "image" else "scaled")

    def fields(tower: str) -> dict[str, Any]:
        own = (name for name in values if name.startswith(f"{tower}.") and name.count(".") == 1)
        return {name.split(".")[1]: values[name] for name in own}

    if base is not None:
        image = dataclasses.replace(base.config.image, blocks=blocks("image"), **fields("image"))
        text = dataclasses.replace(base.config.text, blocks=blocks("text"), **fields("text"))
        return dataclasses.replace(base.config, image=image, text=text)
    return CLIPConfig(
        image=VisionConfig(blocks=blocks("image"), **fields("image")),
        text=TextConfig(blocks=blocks("text"), **fields("text")),
    )


def _text_table(facts: Mapping[str, Fact], base: _Base | None) -> "_Row | None":
    """Another text tower of the preset's letter that is just what the file holds, or None."""
    if base is None or base.letter is None:
        return None
    rows = [row for row in _matching_text(facts) if row.letter == base.letter]
    own = _size(base.config.text.blocks)
    return None if any(row.size == own for row in rows) else next(iter(rows), None)


def _matching_text(facts: Mapping[str, Fact]) -> "list[_Row]":
    """Rows of the three tables that have the sizes of the text tower of the file."""
    found = [facts.get(name) for name in _TEXT_SIZES]
    rows = [
        _Row(f"the reference's {table}, {letter}", letter, size)
        for table, sizes in TEXT_TABLES.items()
        for letter, size in sizes.items()
    ]
    return [
        row
        for row in rows
        if all(
            s in f.values if f else name.endswith("heads")
            for name, s, f in zip(_TEXT_SIZES, row.size, found, strict=True)
        )
    ]


class _Row(NamedTuple):
    name: str
    letter: str
    size: Size


def _size(blocks: BlockConfig) -> Size:
    return Size(blocks.width, blocks.depth, blocks.mlp_dim, blocks.heads)


def _get(config: CLIPConfig, name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def square_side(count: int) -> int | None:
    """The side of a square of ``count`` cells, or None if there is none."""
    side = math.isqrt(count)
    return side if side * side == count and side else None
