"""Config of a foreign model: shapes checked against a named config, the rest given by flags, nothing guessed."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import ClipaError, ConversionError, listed
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.presets import Size
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from conversion.weights.choices import Choices
from conversion.weights.config_fields import FIELDS, Default, Row, decide
from conversion.weights.facts import Fact
from conversion.weights.named_configs import NamedConfig, check_format, named_config
from conversion.weights.numerics import PROFILES, Profile, TowerNumerics, numerics_of, with_numerics
from conversion.weights.text_tables import TEXT_SIZES, TextRow, matching_text_rows, other_text_row


class Resolved(NamedTuple):
    """A config and how it was found.

    Attributes:
        config: the config.
        profile: name of its numerics profile, or "custom".
        profile_why: why it has this profile.
        preprocess: the preparation of images.
        preprocess_note: a line that says why they are prepared so.
        prompt_reduction: the shortening of prompts with which a released model was scored; None if that is not known.
        notes: lines on what was chosen and what differs.
    """

    config: CLIPConfig
    profile: str
    profile_why: str
    preprocess: EvalImageConfig
    preprocess_note: str
    prompt_reduction: Literal["truncate", "syntax"] | None
    notes: tuple[str, ...]


def resolve_config(
    facts: Mapping[str, Fact],
    choices: Choices,
    *,
    format_profile: Profile | None,
    misfits: Callable[[CLIPConfig], Sequence[str]] | None = None,
) -> Resolved:
    """The config on which shapes, named config and flags agree; ``config_fields`` has the order of precedence.

    Args:
        facts: by dotted name of the field, such as ``image.blocks.width``.
        format_profile: the numerics of the code that writes such files; None if several programs do. A released model
            must be of this format unless ``choices`` name the profile.
        misfits: lists the tensors of the file that do not fit a config, one line each (``RuleTable.check``). If file
            and named config contradict each other, these lines show which tensors are to blame.

    Raises:
        ConversionError: lists every field that is not determined and every contradiction.
    """
    base = named_config(preset=choices.preset, released=choices.released, file=choices.config)
    if base is not None and format_profile is not None and choices.profile is None:
        check_format(base, format_profile)
    flags, text_row = _flags(choices), _text_row(facts, base)
    decisions = {
        name: decide(Row(name, flag, flags.get(name), facts.get(name), _default(name, base, text_row, facts)))
        for name, flag in FIELDS.items()
    }
    problems = [problem for decision in decisions.values() for problem in decision.problems]
    if problems:
        problems += _hints(facts)
        if base is not None and misfits is not None:
            problems += misfits(base.config)
        raise ConversionError(f"cannot determine the config, {listed(problems)}")
    numerics, profile, why = _profile(choices, base, format_profile)
    try:
        config = _build({name: decision.value for name, decision in decisions.items()}, numerics, base)
        preprocess, preprocess_note = _preprocess(config, base)
    except ClipaError as error:
        raise ConversionError(f"shapes and flags give an invalid config: {error}") from error
    notes = tuple(note for decision in decisions.values() for note in decision.notes)
    reduction = None if base is None else base.prompt_reduction
    return Resolved(config, profile, why, preprocess, preprocess_note, reduction, notes)


def _flags(choices: Choices) -> dict[str, Any]:
    """Values of the flags that are given, by field."""
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


def _default(
    name: str, base: NamedConfig | None, text_row: TextRow | None, facts: Mapping[str, Fact]
) -> Default | None:
    """The value of a field in the named config, with the text tower of ``text_row`` if there is one."""
    if base is None:
        return None
    value: Any = base.config
    for part in name.split("."):
        value = getattr(value, part)
    if text_row is not None and name in TEXT_SIZES:
        size = getattr(text_row.size, name.rsplit(".", 1)[-1])
        note = f"{name}: {size}, {value} in {base.name}: the text tower is that of {text_row.name}"
        return Default(size, text_row.name, note=note if size != value else None)
    return Default(value, base.name, name in base.free, _unsettled(name, base, facts))


def _unsettled(name: str, base: NamedConfig, facts: Mapping[str, Fact]) -> str | None:
    """Why the named config does not determine a field for this file, or None if it does."""
    length, own = facts.get("text.length"), base.config.text.length
    if name == "image.image_size" and name in base.free and length is not None and own not in length.values:
        # Models with few text tokens are also those with few pixels.
        size = base.config.image.image_size[0]
        return f"{base.name} has {size} with {own} text tokens, this file has {length.values[0]}"
    return dict(base.unsettled).get(name)


def _text_row(facts: Mapping[str, Fact], base: NamedConfig | None) -> TextRow | None:
    """Another text tower of the preset's letter that matches the file, if the preset's own does not."""
    if base is None or base.letter is None:
        return None
    blocks = base.config.text.blocks
    own = Size(blocks.width, blocks.depth, blocks.mlp_dim, blocks.heads)
    return other_text_row(facts, letter=base.letter, own=own)


def _hints(facts: Mapping[str, Fact]) -> list[str]:
    rows = [f"{row.name} ({row.size.heads} heads)" for row in matching_text_rows(facts)]
    return [f"hint: the text tower has the sizes of {', '.join(rows)}"] if rows else []


def _profile(
    choices: Choices, base: NamedConfig | None, format_profile: Profile | None
) -> tuple[TowerNumerics, str, str]:
    """Numerics, the name of their profile, and why they were chosen."""
    if choices.profile is not None:
        chosen, why = choices.profile, "--profile says so"
    elif base is not None and base.profile is not None:
        chosen, why = base.profile, f"{base.name} was published with it"
    elif base is not None and base.is_file:
        numerics = numerics_of(base.config)
        return numerics, numerics.profile, f"{base.name} says so"
    elif format_profile is not None:
        chosen, why = format_profile, f"files of this layout are written by {format_profile} code; --profile overrides"
    else:
        raise ConversionError("the numerics profile is not known; give --profile flax or --profile open_clip")
    return TowerNumerics(PROFILES[chosen], PROFILES[chosen]), chosen, why


def _build(values: Mapping[str, Any], numerics: TowerNumerics, base: NamedConfig | None) -> CLIPConfig:
    """A config of these values by field; all other fields come from the named config, or are defaults."""

    def blocks(tower: str) -> BlockConfig:
        sizes = {name: values[f"{tower}.blocks.{name}"] for name in Size._fields}
        if base is not None:
            return dataclasses.replace(getattr(base.config, tower).blocks, **sizes)
        return BlockConfig(**sizes, init="xavier" if tower == "image" else "scaled")

    def fields(tower: str) -> dict[str, Any]:
        own = (name for name in values if name.startswith(f"{tower}.") and name.count(".") == 1)
        return {name.split(".")[1]: values[name] for name in own}

    if base is not None:
        image = dataclasses.replace(base.config.image, blocks=blocks("image"), **fields("image"))
        text = dataclasses.replace(base.config.text, blocks=blocks("text"), **fields("text"))
        return with_numerics(dataclasses.replace(base.config, image=image, text=text), numerics)
    image = VisionConfig(blocks=blocks("image"), **fields("image"))
    text = TextConfig(blocks=blocks("text"), **fields("text"))
    return with_numerics(CLIPConfig(image=image, text=text), numerics)


def _preprocess(config: CLIPConfig, base: NamedConfig | None) -> tuple[EvalImageConfig, str]:
    """The preparation of images, and a line that says why."""
    size = config.image.image_size
    if base is not None and base.preprocess is not None:
        made = dataclasses.replace(base.preprocess, size=size)
        return made, f"preprocess: {made.resize}, as {base.name} was scored"
    # Correct for released models of 32 tokens. Those of 8 tokens and the smaller recipes were scored with a center
    # crop (docs/reference.md F4.2, F5.1).
    return EvalImageConfig(size=size, resize="squash"), (
        "preprocess: squash, a default that no file determines; models of 8 tokens and the reference's S, B and L "
        "recipes were scored with resize_small_crop: --released names such a model, or set resize in preprocess.json"
    )
