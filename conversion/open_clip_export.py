"""From a model folder to a folder that open_clip loads, with settings that make torch compute what we compute."""

import json
import logging
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from clipa_eqx.artefact_folder import (
    PROVENANCE_FILE,
    TOKENIZER_FOLDER,
    WEIGHTS_FILE,
    check_parts,
    load_model_config,
    load_preprocess,
    read_json,
)
from clipa_eqx.errors import CheckpointError, ConversionError
from clipa_eqx.leaf_file import Leaf, LeafReader, LeafWriter
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.tokenizer import Tokenizer
from conversion.compare_pictures import pixels_note
from conversion.open_clip_config import CONFIG_FILE, parse_open_clip_config
from conversion.open_clip_files import FORMAT
from conversion.open_clip_files import WEIGHTS_FILE as OPEN_CLIP_WEIGHTS
from conversion.open_clip_mapping import from_clip_config, numerics_metadata
from conversion.open_clip_names import open_clip_rules
from conversion.open_clip_tokenizer import SEP, write_tokenizer
from conversion.rules import export_tensor, foreign_tensors, leaf_shapes, raise_problems

_log = logging.getLogger(__name__)


def export_open_clip(folder: Path, target: Path, *, overwrite: bool = False) -> Path:
    """Write ``open_clip_config.json``, weights in float32, and the tokenizer; the folder appears once complete.

    Weights that came from open_clip get the tokenizer that open_clip used, others (and those whose vocabulary has no
    [SEP]) one that gives our ids.

    Raises:
        CheckpointError: ``folder`` is no saved model, or ``target`` exists.
        ConfigError: tokenizer or preprocessing do not fit the model.
        ConversionError: open_clip has no such model, or there is no place for it.
    """
    config = load_model_config(folder)
    preprocess = load_preprocess(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    check_parts(config, tokenizer, preprocess)
    described = from_clip_config(config, resize=preprocess.resize)
    placed = foreign_tensors(open_clip_rules(config), config)
    provenance = read_json(folder / PROVENANCE_FILE)
    came_from_open_clip = provenance.get("format") == FORMAT and config.text.blocks.gelu == "exact"
    as_reference = not came_from_open_clip or SEP not in tokenizer.pieces
    try:
        with LeafReader(folder / WEIGHTS_FILE) as leaves, _new_folder(target, overwrite=overwrite) as new:
            raise_problems(_leaf_problems(leaves, config), where=str(folder))
            shapes = {name: Leaf(one.shape, np.dtype(np.float32)) for name, one in placed.items()}
            size = sum(4 * int(np.prod(leaf.shape)) for leaf in shapes.values())
            with (
                LeafWriter(
                    new / OPEN_CLIP_WEIGHTS, shapes, metadata={"format": "pt", **numerics_metadata(config)}
                ) as writer,
                tqdm(total=size, desc="export", unit="B", unit_scale=True, delay=2) as bar,
            ):
                problems: list[str] = []
                for name, one in placed.items():
                    values = export_tensor(one, leaves.read)
                    if not np.isfinite(values).all():
                        problems.append(f"not finite: {name}")
                    writer.write(name, values)
                    bar.update(values.nbytes)
                raise_problems(problems, where=str(folder))
            write_tokenizer(new, tokenizer, length=config.text.length, as_reference=as_reference)
            text = json.dumps(described, indent=1) + "\n"
            (new / CONFIG_FILE).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConversionError(f"{target} cannot be written ({error}); nothing was left there") from error
    pictures = parse_open_clip_config(described, where=str(target)).pictures
    if preprocess.resize != "squash" and pictures is not None:
        _log.warning("open_clip has no %s; its pixels are %s", preprocess.resize, pixels_note(preprocess, pictures))
    _log.info("%s: open_clip.create_model_and_transforms('local-dir:%s')", target, target)
    return target


def _leaf_problems(leaves: LeafReader, config: CLIPConfig) -> list[str]:
    wanted = {path: Leaf(shape, np.dtype(np.float32)) for path, shape in leaf_shapes(config).items()}
    problems = [f"missing: {path}" for path in wanted if path not in leaves.leaves]
    problems += [f"unused: {path}" for path in leaves.leaves if path not in wanted]
    return problems + [
        f"{path} is {leaf.dtype}{leaf.shape}, expected {wanted[path].dtype}{wanted[path].shape}"
        for path, leaf in leaves.leaves.items()
        if path in wanted and leaf != wanted[path]
    ]


@contextmanager
def _new_folder(target: Path, *, overwrite: bool) -> Generator[Path]:
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        if not overwrite:
            raise CheckpointError(f"{target} exists already; give another name, or --overwrite")
        if not (target / CONFIG_FILE).is_file():
            raise CheckpointError(f"{target} exists and is no open_clip folder, so it is not overwritten")
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        new.mkdir()
        yield new
        if target.exists():
            target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not target.exists():
            old.rename(target)
        shutil.rmtree(new, ignore_errors=True)
