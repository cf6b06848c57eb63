"""The config of a foreign model: what its shapes say, checked against a preset, the rest named; nothing is guessed."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import ClipaError, ConversionError, listed
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.pool import ImagePool, TextPool
from clipa_eqx.models.presets import T5X_TEXT, VARIANTS, Size
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from conversion.weights.named_configs import NamedConfig, check_format, named_config
from conversion.weights.numerics import PROFILES, Profile, numerics_of, profile_of

TEXT_TABLES: dict[str, dict[str, Size]] = {
    "master": {letter: variant.text for letter, variant in VARIANTS.items()},
    "t5x models": {"g": Size(1280, 36, 5120, 16)},
    "t5x models_t5x": {"H": Size(1024, 24, 3072, 16), "g": T5X_TEXT, "G": T5X_TEXT},
}
"""The three tables of text towers; the later two where they differ from the first (docs/reference.md F1.1)."""


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
    """A config, its numerics profile and why, how pictures are prepared and who says so, what was chosen or differs."""

    config: CLIPConfig
    profile: str
    profile_why: str
    preprocess: EvalImageConfig
    preprocess_note: str
    notes: tuple[str, ...]


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
_LONGEST_SIDE = 4096
"""Of pictures; more is a slip of the pen, for which the self-check would ask for all memory."""

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
        format_profile: the numerics of the code that writes such files; None if several do. A released model must be
            of this format, unless ``choices`` name the profile.
        misfits: what of the file does not fit a config, a line for each tensor (``rules.check_tensors``); if file and
            named config disagree, these lines say which tensors are to blame.

    Raises:
        ConversionError: lists every field that nobody tells and every contradiction.
    """
    base, flags = named_config(preset=choices.preset, released=choices.released, file=choices.config), _flags(choices)
    if base is not None and format_profile is not None and choices.profile is None:
        check_format(base, format_profile)
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
        untold = None if base is None else _untold(name, base, facts)
        if name in flags:
            value, where = flags[name], str(flag)
        elif fact is not None and len(fact.values) == 1 and not fact.is_hint:
            value, where = fact.values[0], f"the file ({fact.why})"
        elif base is not None and not is_default and untold is None:
            value, where = default, origin
            notes.append(f"{name}: {value} by {origin} ({fact.why if fact else 'shapes do not tell'})")
        elif fact is not None and fact.is_hint:
            value, where = fact.values[0], f"the file ({fact.why})"
            notes.append(f"{name}: {value} by {where}; another needs {f'{flag} or ' if flag else ''}--config")
        elif base is not None and untold is None:
            value, where = default, origin
            notes.append(f"{name}: {value}, the default of {origin}; {flag or '--config'} gives another")
        else:
            why = "; ".join(part for part in (fact.why if fact else "shapes do not tell", untold) if part)
            problems.append(f"{name} is not known ({why}); give {flag or '--config or --preset'}")
            continue
        values[name] = value
        if name == "image.image_size" and max(values[name]) > _LONGEST_SIDE:
            problems.append(f"{name}: {value} by {where}, but no model takes more than {_LONGEST_SIDE} pixels a side")
        if fact is not None and not fact.is_hint and value not in fact.values:
            allowed = " or ".join(map(str, fact.values))
            problems.append(f"{name}: {value} by {where}, but the file has {allowed} ({fact.why})")
        elif base is not None and value != default:
            differs = f"{name}: {value} by {where}, {default} in {origin}"
            if name in flags or is_default or untold is not None:
                notes.append(differs)
            else:
                problems.append(differs + (f"; {flag} overrules" if flag else ""))
    if problems:
        rows = [f"{one.name} ({one.size.heads} heads)" for one in _matching_text(facts)]
        if rows:
            problems.append(f"by the way, the text tower has the sizes of {', '.join(rows)}")
        if base is not None and misfits is not None:
            problems += misfits(base.config)
        raise ConversionError(f"the config cannot be told, {listed(problems)}")
    numerics, profile, why = _profile(choices, base, format_profile)
    try:
        config = _build(values, numerics, base)
        preprocess, note = _preprocess(config, base)
    except ClipaError as error:
        raise ConversionError(f"shapes and flags make no config: {error}") from error
    return Resolved(config, profile, why, preprocess, note, tuple(notes))


def _untold(name: str, base: NamedConfig, facts: Mapping[str, Fact]) -> str | None:
    """Why the named config does not tell a field of this file, or None if it does."""
    length, own = facts.get("text.length"), base.config.text.length
    if name == "image.image_size" and name in base.free and length is not None and own not in length.values:
        # Models of few text tokens are those of few pixels.
        size = base.config.image.image_size[0]
        return f"{base.name} has {size} with {own} text tokens, this file has {length.values[0]}"
    return dict(base.untold).get(name)


def _preprocess(config: CLIPConfig, base: NamedConfig | None) -> tuple[EvalImageConfig, str]:
    """How pictures are prepared, and a line that says who says so."""
    size = config.image.image_size
    if base is not None and base.preprocess is not None:
        made = dataclasses.replace(base.preprocess, size=size)
        return made, f"preprocess: {made.resize}, as {base.name} was scored"
    # Right for released models of 32 tokens, not for those of 8 and the smaller recipes (docs/reference.md F4.2, F5.1).
    return EvalImageConfig(size=size, resize="squash"), (
        "preprocess: squash, a default that no file tells; models of 8 tokens and the reference's S, B and L recipes "
        "were scored with resize_small_crop: --released names such a model, or set resize in preprocess.json"
    )


def _flags(choices: Choices) -> dict[str, Any]:
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
    choices: Choices, base: NamedConfig | None, format_profile: Profile | None
) -> tuple[Mapping[str, dict[str, Any]], str, str]:
    """Numerics of each tower's blocks, the profile's name, and why."""
    if choices.profile is not None:
        chosen, why = choices.profile, "--profile says so"
    elif base is not None and base.profile is not None:
        chosen, why = base.profile, f"{base.name} was published with it"
    elif base is not None and base.is_file:
        numerics = numerics_of(base.config)
        return numerics, profile_of(numerics), f"{base.name} says so"
    elif format_profile is not None:
        chosen, why = format_profile, f"files of this layout are written by {format_profile} code; --profile overrides"
    else:
        raise ConversionError("the numerics profile is not known; give --profile flax or --profile open_clip")
    return dict.fromkeys(("image", "text"), PROFILES[chosen]), chosen, why


def _build(values: Mapping[str, Any], numerics: Mapping[str, dict[str, Any]], base: NamedConfig | None) -> CLIPConfig:
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


def _text_table(facts: Mapping[str, Fact], base: NamedConfig | None) -> "_Row | None":
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
