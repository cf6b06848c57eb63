"""Export of a model folder to a folder that open_clip loads, with settings that give the same embeddings."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.errors import CheckpointError, ConversionError
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import FolderKind, new_folder
from clipa_eqx.saved.description import check_parts
from clipa_eqx.saved.leaf_file import Leaf, LeafReader, LeafWriter
from clipa_eqx.saved.leaf_hashes import check_file
from clipa_eqx.saved.leaf_shapes import check_leaves
from clipa_eqx.saved.model_folder import ModelFolder, open_model_folder
from conversion.open_clip.config import CONFIG_FILE, parse_open_clip_config
from conversion.open_clip.mapping import from_clip_config, numerics_metadata
from conversion.open_clip.names import open_clip_rules
from conversion.open_clip.pixels import pixels_note
from conversion.open_clip.sources import WEIGHTS_FILE as OPEN_CLIP_WEIGHTS
from conversion.open_clip.tokenizer import JSON_FILE, SEP, SETTINGS_FILE, VOCAB_FILE, write_tokenizer
from conversion.open_clip.vocabulary import rules_metadata
from conversion.weights.formats import TextRules
from conversion.weights.rules import RuleTable, raise_problems

_log = logging.getLogger(__name__)

_MANY_DIFFER = 16

WRITER = "clipa_eqx"
"""Value of ``writer`` in the metadata of weight files that were written here."""


@dataclass(frozen=True, kw_only=True)
class PreparedExport:
    """A model folder that open_clip can represent; nothing is written yet.

    Attributes:
        opened: the model folder.
        described: content of ``open_clip_config.json``.
        rules: rules for texts of the tokenizer that is written.
    """

    opened: ModelFolder
    described: Mapping[str, Any]
    rules: TextRules


def export_open_clip(folder: Path, target: Path, *, overwrite: bool = False) -> Path:
    """Write ``open_clip_config.json``, weights in float32, and the tokenizer; the folder appears once complete.

    A model whose source was tokenized by open_clip's rules gets open_clip's tokenizer. Any other model, and one whose
    vocabulary has no [SEP], gets a tokenizer that gives our ids.

    Args:
        folder: a model folder.
        target: the folder to write.
        overwrite: replace a folder that an export wrote.

    Raises:
        CheckpointError: ``folder`` is not a model folder, or ``target`` exists and must not be replaced.
        ConfigError: tokenizer or preprocessing do not fit the model.
        ConversionError: open_clip cannot represent the model, or ``target`` cannot be written.
    """
    prepared = prepare_export(folder)
    try:
        with new_folder(target, _EXPORTED, overwrite=overwrite, sources=[folder]) as new:
            write_export(prepared, new)
    except OSError as error:
        raise ConversionError(f"{target} cannot be written ({error}); no partial folder was left") from error
    log_differences(prepared, target)
    return target


def prepare_export(folder: Path) -> PreparedExport:
    """Open a model folder for an export, and check that open_clip can represent the model.

    Raises:
        CheckpointError: ``folder`` is not a model folder.
        ConfigError: tokenizer or preprocessing do not fit the model.
        ConversionError: open_clip cannot represent the model.
    """
    opened = open_model_folder(folder)
    config, preprocess, tokenizer = opened.config, opened.preprocess, opened.tokenizer
    check_parts(config, tokenizer, preprocess)
    vocabulary = opened.provenance.vocabulary
    is_bert = vocabulary is not None and vocabulary.rules == "bert" and SEP in tokenizer.pieces
    return PreparedExport(
        opened=opened,
        described=from_clip_config(config, resize=preprocess.resize),
        rules="bert" if is_bert else "reference",
    )


def write_export(prepared: PreparedExport, new: Path) -> None:
    """Write the files into a folder that is being made.

    Raises:
        CheckpointError: the weights are damaged or do not fit their config.
        ConversionError: they are not finite.
        OSError: a file cannot be written.
    """
    opened = prepared.opened
    config = opened.config
    placed = RuleTable(open_clip_rules(config), config).placed
    with LeafReader(opened.weights) as leaves:
        check_leaves(leaves.leaves, config, where=str(leaves.path))
        check_file(leaves, opened.path)
        shapes = {name: Leaf(one.shape, np.dtype(np.float32)) for name, one in placed.items()}
        size = sum(4 * int(np.prod(leaf.shape)) for leaf in shapes.values())
        metadata = {"format": "pt", "writer": WRITER, **rules_metadata(prepared.rules), **numerics_metadata(config)}
        with (
            LeafWriter(new / OPEN_CLIP_WEIGHTS, shapes, metadata=metadata) as writer,
            progress_bar(what="export", total=size, unit="B") as bar,
        ):
            problems: list[str] = []
            for name, one in placed.items():
                values = one.export(leaves.read)
                if not np.isfinite(values).all():
                    problems.append(f"not finite: {name}")
                writer.write(name, values)
                bar.update(values.nbytes)
            raise_problems(problems, where=str(opened.path))
    is_bert = prepared.rules == "bert"
    write_tokenizer(new, opened.tokenizer, length=config.text.length, as_reference=not is_bert)
    (new / CONFIG_FILE).write_text(json.dumps(prepared.described, indent=1) + "\n", encoding="utf-8")


def log_differences(prepared: PreparedExport, target: Path) -> None:
    """Log in which images and texts open_clip differs from this package, and how to load the folder."""
    pixels = pixels_difference(prepared)
    if pixels is not None:
        _log.warning(pixels)
    _log.log(*text_note(target, rules=prepared.rules, length=prepared.opened.config.text.length))
    _log.info("%s: open_clip.create_model_and_transforms('local-dir:%s')", target, target)


def pixels_difference(prepared: PreparedExport) -> str | None:
    """The sentence about how the pixels of open_clip differ from ours; None if only rounding does."""
    preprocess = prepared.opened.preprocess
    settings = parse_open_clip_config(prepared.described, where=str(prepared.opened.path)).preprocess
    if (preprocess.resize, preprocess.mode) == ("squash", "exact") or settings is None:
        return None
    ours = preprocess.resize + (" in mode fast" if preprocess.mode == "fast" else "")
    return f"open_clip has no {ours}; its pixels differ: {pixels_note(preprocess, settings)}"


def text_note(target: Path, *, rules: TextRules, length: int) -> tuple[int, str]:
    """Level and text of the log line about texts whose ids differ between this package and open_clip's tokenizer."""
    # Most captions are as long as that at 8 tokens, and a third of them at 16 (docs/open_clip.md).
    level = logging.WARNING if length <= _MANY_DIFFER else logging.INFO
    differ = (
        f"which keeps one of the {length} places for [SEP]: a text of {length - 1} word pieces or more loses its last "
        "piece and gets other ids than from this package"
    )
    if rules == "bert":
        return level, f"{target}: its tokenizer is open_clip's, {differ} (table in docs/open_clip.md)"
    return level, (
        f"{target}: its tokenizer gives the ids of this package: open_clip.get_tokenizer('local-dir:{target}'). Do not "
        f"use open_clip's own bert-base-uncased, {differ} (table in docs/open_clip.md)"
    )


def is_export(folder: Path) -> bool:
    """True if the weights were written here; a download has files of the same names."""
    try:
        with LeafReader(folder / OPEN_CLIP_WEIGHTS) as leaves:
            return leaves.metadata.get("writer") == WRITER
    except CheckpointError:
        return False


EXPORTED_FILES = frozenset({CONFIG_FILE, OPEN_CLIP_WEIGHTS, VOCAB_FILE, JSON_FILE, SETTINGS_FILE})
"""Files of an export."""

_EXPORTED = FolderKind(
    name="folder that was exported here",
    files=EXPORTED_FILES,
    is_one=is_export,
)
