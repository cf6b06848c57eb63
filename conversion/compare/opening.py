"""Opening of a model folder, a Flax npz or an open_clip model as one side of a comparison."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.saved.kinds import expect_kind, kind_of
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.leaf_hashes import check_file
from clipa_eqx.saved.leaf_shapes import check_leaves
from clipa_eqx.saved.model_folder import open_model_folder
from clipa_eqx.tokenizer.vocabulary import bert_pieces
from conversion.compare.side import Side
from conversion.compare.side_leaves import foreign_leaves, log_temperature, model_folder_leaves, with_tables
from conversion.compare.text_settings import ReplayTokenizer, TextSettings
from conversion.flax_clipa.files import open_flax
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.shapes import flax_facts
from conversion.open_clip.config import CONFIG_FILE, OpenClipConfig
from conversion.open_clip.files import OpenedModel, open_model
from conversion.open_clip.mapping import BERT_NAME
from conversion.open_clip.names import open_clip_rules, temperature_shape
from conversion.open_clip.pixels import FAST_NOTE, OUR_SHORTEST, ImageSettings, our_pixels, pillow_pixels
from conversion.open_clip.resolving import resolve, to_config
from conversion.open_clip.shapes import open_clip_facts
from conversion.open_clip.tokenizer import JSON_FILE, folder_pieces, json_tokenizer
from conversion.weights.choices import Choices
from conversion.weights.facts import Fact
from conversion.weights.infer import resolve_config
from conversion.weights.rules import RuleTable
from conversion.weights.tower_options import image_options, text_options


def is_described(path: str) -> bool:
    """True if a model's folder records its complete config."""
    return kind_of(path) == "model folder" or (Path(path) / CONFIG_FILE).is_file()


def open_side(path: str, choices: Choices, stack: ExitStack, *, other: CLIPConfig | None = None) -> Side:
    """Open one side.

    Args:
        path: a model folder, a Flax npz, or an open_clip file, folder or ``hf-hub:REPO``.
        choices: the flags, for settings that the file does not record.
        stack: the side stays open until the stack is closed.
        other: the other side's config, for settings that neither file nor flags determine.

    Raises:
        ConversionError: it is none of the three kinds, is damaged, or its config cannot be determined.
        CheckpointError: a model folder is damaged, or ``path`` is a folder of another kind.
    """
    kind = kind_of(path)
    if kind in ("run folder", "record folder", "folder of adapters"):
        expect_kind(path, "model folder", other="a model of another format")
    if kind == "model folder":
        return _model_folder(path, stack)
    if ".npz" in Path(path).name:
        return _flax(path, choices, stack, other)
    return _open_clip(path, choices, stack, other)


def _filled(choices: Choices, facts: Mapping[str, Fact], other: CLIPConfig | None) -> Choices:
    """The flags, completed from the other side where the file leaves a choice; what the file records is compared."""
    if other is None or choices.config is not None or choices.preset is not None or choices.released is not None:
        return choices
    size = other.image.image_size
    theirs: dict[str, tuple[str, Any]] = {
        "image_pool": ("image.pool", other.image.pool),
        "text_pool": ("text.pool", other.text.pool),
        "image_heads": ("image.blocks.heads", other.image.blocks.heads),
        "text_heads": ("text.blocks.heads", other.text.blocks.heads),
        "image_size": ("image.image_size", size[0] if size[0] == size[1] else None),
    }
    filled: dict[str, Any] = {}
    for name, (field, value) in theirs.items():
        fact = facts.get(field)
        if getattr(choices, name) is None and (fact is None or (len(fact.values) > 1 and value in fact.values)):
            filled[name] = value
    return replace(choices, **filled)


def _model_folder(folder: str, stack: ExitStack) -> Side:
    opened = open_model_folder(folder)
    config, tokenizer, preprocess = opened.config, opened.tokenizer, opened.preprocess
    leaves = stack.enter_context(LeafReader(opened.weights))
    check_leaves(leaves.leaves, config, where=str(leaves.path))
    check_file(leaves, Path(folder))
    return Side(
        name=folder,
        kind="model folder",
        config=config,
        image=image_options(config.image),
        text=text_options(config.text),
        read=model_folder_leaves(leaves, config),
        log_temperature=float(leaves.read("log_temperature")),
        tokenize=lambda texts: tokenizer(texts, length=config.text.length).ids,
        pieces=tokenizer.pieces,
        prepare=lambda image: our_pixels(image, preprocess),
        image_settings=_our_settings(preprocess),
        notes=(FAST_NOTE,) if preprocess.mode == "fast" else (),
    )


def _flax(path: str, choices: Choices, stack: ExitStack, other: CLIPConfig | None) -> Side:
    source = stack.enter_context(open_flax(path))
    if choices.image_position is None and choices.config is None and "img/pos_embedding" not in source.params.tensors:
        # A wrong guess is harmless here: it shows as a divergence.
        choices = replace(choices, image_position="sincos2d")
    facts = flax_facts(source.params.tensors)
    resolved = resolve_config(facts, _filled(choices, facts, other), format_profile="flax")
    config = resolved.config
    read = foreign_leaves(source.params, RuleTable(flax_rules(config, source.layout), config), bias_end="/bias")
    return Side(
        name=path,
        kind="Flax npz",
        config=config,
        image=image_options(config.image),
        text=text_options(config.text),
        read=with_tables(read, config),
        log_temperature=log_temperature(read),
        notes=resolved.notes,
    )


def _open_clip(path: str, choices: Choices, stack: ExitStack, other: CLIPConfig | None) -> Side:
    opened = stack.enter_context(open_model(path))
    if opened.config is None:
        filled = _filled(choices, open_clip_facts(opened.tensors.tensors, None), other)
        resolved = resolve(opened, filled, where=path)
        config, notes = resolved.config, resolved.notes
        image, text = image_options(config.image), text_options(config.text)
    else:
        config, notes = to_config(opened.config, where=path), ()
        image, text = opened.config.image.options, opened.config.text.options
    # Position tables are read as they are stored, whatever their formula.
    config = replace(
        config, image=replace(config.image, position="learned"), text=replace(config.text, position="learned")
    )
    rules = open_clip_rules(config, temperature_shape(opened.tensors.tensors))
    read = foreign_leaves(opened.tensors, RuleTable(rules, config), bias_end="bias")
    settings = None if opened.config is None else opened.config.preprocess
    side = Side(
        name=path,
        kind="open_clip",
        config=config,
        image=image,
        text=text,
        read=read,
        log_temperature=log_temperature(read),
        prepare=None if settings is None else (lambda image: pillow_pixels(image, settings)),
        image_settings=settings,
        notes=notes,
    )
    return side if opened.config is None else _with_texts(side, opened, opened.config)


def _with_texts(side: Side, opened: OpenedModel, config: OpenClipConfig) -> Side:
    folder, tokenizer = opened.source.folder, config.tokenizer
    if tokenizer.unsupported:
        return replace(side, notes=(*side.notes, *tokenizer.unsupported))
    pieces = folder_pieces(folder)
    if pieces is None and tokenizer.name != BERT_NAME:
        return replace(side, notes=(*side.notes, f"no vocabulary of {tokenizer.name} in {folder}"))
    pieces = bert_pieces() if pieces is None else pieces
    if (folder / JSON_FILE).is_file():
        tokenize = json_tokenizer(folder / JSON_FILE, length=config.length, strips_sep=tokenizer.strips_sep)
    else:
        settings = TextSettings(normalizer="bert", sep="stripped" if tokenizer.strips_sep else "kept", cleans=True)
        tokenize = ReplayTokenizer(pieces=pieces, length=config.length, settings=settings)
    return replace(side, tokenize=tokenize, pieces=pieces)


def _our_settings(config: EvalImageConfig) -> ImageSettings:
    mode = "squash" if config.resize == "squash" else OUR_SHORTEST
    return ImageSettings(
        size=config.size, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", resize_mode=mode
    )
