"""Any model as one side of a comparison: a model folder, a Flax npz, or what open_clip has."""

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConversionError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.saved.kinds import expect_kind, kind_of
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.leaf_shapes import check_leaves, leaf_shapes
from clipa_eqx.saved.model_folder import open_model_folder
from clipa_eqx.tokenizer.vocabulary import bert_pieces
from conversion.compare.replay import Array
from conversion.compare.texts import HabitTokenizer, TextHabits
from conversion.compare.walk import Side
from conversion.open_clip.config import OpenClipConfig
from conversion.open_clip.importing import OpenedClip, open_open_clip, resolve, to_config
from conversion.open_clip.names import image_table, open_clip_rules, temperature_shape, text_table
from conversion.open_clip.pixels import FAST_NOTE, OUR_SHORTEST, Pictures, our_pixels, pillow_pixels
from conversion.open_clip.shapes import open_clip_facts
from conversion.open_clip.tokenizer import folder_pieces, json_tokenizer
from conversion.weights.choices import Choices
from conversion.weights.facts import Fact
from conversion.weights.infer import resolve_config
from conversion.weights.leaf_rule import LeafRule
from conversion.weights.rules import RuleTable, raise_problems
from conversion.weights.tensors import TensorFile
from conversion.weights.tower_options import image_options, text_options

_LAYER = re.compile(r"(.*blocks)/(\d+)/(.*)")

Read = Callable[[str], Array | None]


def is_described(path: str) -> bool:
    """Whether a side says by itself all that there is to know of its config."""
    return kind_of(path) == "model folder" or (Path(path) / "open_clip_config.json").is_file()


def open_side(path: str, choices: Choices, stack: ExitStack, *, other: CLIPConfig | None = None) -> Side:
    """Open one side; it stays open as long as the stack. ``other`` is asked for what neither file nor flags say.

    Raises:
        ConversionError: it is none of the three kinds, is damaged, or its config cannot be told.
        CheckpointError: a model folder is damaged.
    """
    kind = kind_of(path)
    if kind in ("run folder", "record folder"):
        expect_kind(path, "model folder", other="a model of another format")
    if kind == "model folder":
        return _model_folder(path, stack)
    if ".npz" in Path(path).name:
        return _flax(path, choices, stack, other)
    return _open_clip(path, choices, stack, other)


def _filled(choices: Choices, facts: Mapping[str, Fact], other: CLIPConfig | None) -> Choices:
    """What the other side's config tells, where neither file nor flags do; so that what they do tell is compared."""
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

    def read(name: str) -> Array | None:
        found = _LAYER.fullmatch(name)
        path, layer = (f"{found[1]}/{found[3]}", int(found[2])) if found else (name, None)
        return leaves.read(path, layer).astype(np.float64) if path in leaves.leaves else None

    return Side(
        name=folder,
        kind="model folder",
        config=config,
        image=image_options(config.image),
        text=text_options(config.text),
        read=_with_tables(read, config),
        log_temperature=float(leaves.read("log_temperature")),
        tokenize=lambda texts: tokenizer(texts, length=config.text.length).ids,
        pieces=tokenizer.pieces,
        picture=lambda picture: our_pixels(picture, preprocess),
        pictures=_our_pictures(preprocess),
        notes=(FAST_NOTE,) if preprocess.mode == "fast" else (),
    )


def _flax(path: str, choices: Choices, stack: ExitStack, other: CLIPConfig | None) -> Side:
    from conversion.flax_clipa.files import open_flax
    from conversion.flax_clipa.names import flax_rules
    from conversion.flax_clipa.shapes import flax_facts

    source = stack.enter_context(open_flax(path))
    if choices.image_position is None and choices.config is None and "img/pos_embedding" not in source.params.tensors:
        # Nothing is written here: a wrong guess shows as a divergence.
        choices = replace(choices, image_position="sincos2d")
    facts = flax_facts(source.params.tensors)
    resolved = resolve_config(facts, _filled(choices, facts, other), format_profile="flax")
    config = resolved.config
    read = _reader(source.params, RuleTable(flax_rules(config, source.layout), config), bias_end="/bias")
    return Side(
        name=path,
        kind="Flax npz",
        config=config,
        image=image_options(config.image),
        text=text_options(config.text),
        read=_with_tables(read, config),
        log_temperature=_temperature(read),
        notes=resolved.notes,
    )


def _open_clip(path: str, choices: Choices, stack: ExitStack, other: CLIPConfig | None) -> Side:
    opened = stack.enter_context(open_open_clip(path))
    if opened.config is None:
        filled = _filled(choices, open_clip_facts(opened.tensors.tensors, None), other)
        resolved = resolve(opened, filled, where=path)
        config, notes = resolved.config, resolved.notes
        image, text = image_options(config.image), text_options(config.text)
    else:
        config, notes = to_config(opened.config, where=path), ()
        image, text = opened.config.image.options, opened.config.text.options
    # Their tables are read as they are, whatever formula they may be.
    config = replace(
        config, image=replace(config.image, position="learned"), text=replace(config.text, position="learned")
    )
    rules = open_clip_rules(config, temperature_shape(opened.tensors.tensors))
    read = _reader(opened.tensors, RuleTable(rules, config), bias_end="bias")
    pictures = None if opened.config is None else opened.config.pictures
    side = Side(
        name=path,
        kind="open_clip",
        config=config,
        image=image,
        text=text,
        read=read,
        log_temperature=_temperature(read),
        picture=None if pictures is None else (lambda picture: pillow_pixels(picture, pictures)),
        pictures=pictures,
        notes=notes,
    )
    return side if opened.config is None else _with_texts(side, opened, opened.config)


def _with_texts(side: Side, opened: OpenedClip, config: OpenClipConfig) -> Side:
    folder = opened.source.folder
    if config.texts.other:
        return replace(side, notes=(*side.notes, *config.texts.other))
    pieces = folder_pieces(folder)
    if pieces is None and config.texts.tokenizer_name != "bert-base-uncased":
        return replace(side, notes=(*side.notes, f"no vocabulary of {config.texts.tokenizer_name} in {folder}"))
    pieces = bert_pieces() if pieces is None else pieces
    json_file = folder / "tokenizer.json"
    if json_file.is_file():
        tokenize = json_tokenizer(json_file, length=config.length, strips_sep=config.texts.strips_sep)
    else:
        habits = TextHabits(normalizer="bert", sep="stripped" if config.texts.strips_sep else "kept", cleans=True)
        tokenize = HabitTokenizer(pieces=pieces, length=config.length, habits=habits)
    return replace(side, tokenize=tokenize, pieces=pieces)


def _reader(file: TensorFile, table: RuleTable, *, bias_end: str) -> Read:
    """Reads our leaves out of a foreign file, layer by layer; a missing bias is None, all else is an error."""
    problems = [
        problem
        for problem in table.check(file.tensors)
        if not (problem.startswith("missing: ") and problem.split()[1].endswith(bias_end))
    ]
    raise_problems(problems, where=str(file.path))
    shapes = leaf_shapes(table.config)
    where: dict[tuple[str, int | None], tuple[str, LeafRule]] = {
        (rule.path, one.layer): (name, rule) for name, one in table.placed.items() for rule in one.rules
    }

    def read(name: str) -> Array | None:
        found = _LAYER.fullmatch(name)
        key = (f"{found[1]}/{found[3]}", int(found[2])) if found else (name, None)
        if key not in where or where[key][0] not in file.tensors:
            return None
        tensor, rule = where[key]
        shape = shapes[rule.path] if key[1] is None else shapes[rule.path][1:]
        return rule.to_ours(file.read(tensor), shape).astype(np.float64)

    return read


def _with_tables(read: Read, config: CLIPConfig) -> Read:
    """Positions that are computed are leaves here too."""
    image = image_table(config.image.grid, config.image.blocks.width) if config.image.position == "sincos2d" else None
    text = text_table(config.text.length, config.text.blocks.width) if config.text.position == "sincos1d" else None
    tables: Mapping[str, np.ndarray | None] = {"image/position": image, "text/position": text}

    def read_all(name: str) -> Array | None:
        table = tables.get(name)
        return read(name) if table is None else table.astype(np.float64)

    return read_all


def _temperature(read: Read) -> float:
    value = read("log_temperature")
    if value is None:
        raise ConversionError("there is no temperature")
    return float(value)


def _our_pictures(config: EvalImageConfig) -> Pictures:
    mode = "squash" if config.resize == "squash" else OUR_SHORTEST
    return Pictures(size=config.size, mean=IMAGENET_MEAN, std=IMAGENET_STD, interpolation="bilinear", resize_mode=mode)
