"""From an open_clip model to a model folder: its config read, its positions compared, its numerics kept."""

import contextlib
import dataclasses
import logging
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.data.eval_images import EvalImageConfig
from clipa_eqx.data.pixel_values import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConfigError, ConversionError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.tokenizer import Tokenizer
from clipa_eqx.tokenizer.vocabulary import check_vocab, look_up_classes
from conversion.compare_texts import folder_pieces
from conversion.infer import PROFILES, Choices, Resolved, resolve_config
from conversion.open_clip_config import CONFIG_FILE, OpenClipConfig, Pictures, load_open_clip_config
from conversion.open_clip_files import (
    FORMAT,
    HUB,
    TORCH_SUFFIXES,
    OpenClipSource,
    SafetensorsFile,
    TorchFile,
    find_source,
    renamed,
)
from conversion.open_clip_mapping import BERT_NAME, check_expressible, to_clip_config
from conversion.open_clip_shapes import open_clip_facts, position_facts
from conversion.tensors import TensorFile, TensorView

_log = logging.getLogger(__name__)


class OpenedClip(NamedTuple):
    """Where a model lies, its tensors under the rule table's names, and its config if there is one."""

    source: OpenClipSource
    tensors: TensorFile
    config: OpenClipConfig | None


@contextlib.contextmanager
def open_open_clip(source: str) -> Generator[OpenedClip]:
    """Open a weight file, a folder or ``hf-hub:REPO``.

    Raises:
        ConversionError: nothing is there, it is damaged, or its config holds what nothing here can compute.
        CheckpointError: the safetensors file is damaged.
    """
    found = find_source(source)
    config = None if found.config is None else load_open_clip_config(found.config)
    make = TorchFile if found.weights.suffix in TORCH_SUFFIXES else SafetensorsFile
    with make(found.weights) as file:
        yield OpenedClip(found, TensorView(file, renamed(file.tensors)), config)


def import_open_clip(source: str, folder: Path, choices: Choices, *, vocab: Path | None, overwrite: bool) -> Path:
    """Convert; what was chosen and why is logged and recorded in the provenance.

    Raises:
        ConversionError: lists all that is missing, unused, mis-shaped, damaged, unknown to our model or not told.
        CheckpointError: the destination exists, or the source is damaged.
    """
    from conversion.arguments import config_provenance, show_resolved, tokenizer_of
    from conversion.open_clip_names import open_clip_rules, temperature_shape
    from conversion.to_artefact import write_artefact

    with open_open_clip(source) as opened:
        resolved = resolve(opened, choices, where=source)
        show_resolved(resolved)
        rows = resolved.config.text.vocab
        tokenizer = tokenizer_of(vocab, rows=rows) if vocab is not None else _own_tokenizer(opened, rows)
        about: dict[str, Any] = {
            "dtypes": sorted({str(info.dtype) for info in opened.tensors.tensors.values()}),
            "config_sha256": None if opened.source.config is None else _sha256(opened.source.config),
        }
        if source.startswith(HUB):
            about["repository"] = source.removeprefix(HUB)
        converted = write_artefact(
            opened.tensors,
            open_clip_rules(resolved.config, temperature_shape(opened.tensors.tensors)),
            resolved.config,
            folder,
            tokenizer=tokenizer,
            preprocess=resolved.preprocess,
            provenance={"format": FORMAT, "layout": about, **config_provenance(resolved)},
            overwrite=overwrite,
        )
    _log.info("%s: %s parameters", converted.folder, f"{converted.provenance['parameters']:,}")
    return converted.folder


def resolve(opened: OpenedClip, choices: Choices, *, where: str) -> Resolved:
    """Config, numerics and preprocessing that weights, config file and flags agree on.

    Raises:
        ConversionError: they do not, or nobody says.
    """
    stated = None
    if opened.config is not None:
        check_expressible(opened.config, where=f"{where}: {CONFIG_FILE}")
        if not opened.config.texts.strips_sep:
            raise ConversionError(
                f"{where}: {CONFIG_FILE} keeps [SEP] (no strip_sep_token), which our tokenizer never writes"
            )
        stated = to_config(opened.config, where=where)
    facts = open_clip_facts(opened.tensors.tensors, stated)
    size = choices.image_size
    positions = position_facts(opened.tensors, facts, image_size=None if size is None else (size, size))
    facts |= positions
    # Learned text positions are the rule and need no word; of formulas, ``resolve_config`` has one.
    shown = {n: f for n, f in positions.items() if n == "image.position" and not f.is_hint}
    notes: list[str] = [f"{name}: {fact.values[0]} ({fact.why})" for name, fact in shown.items()]
    image = positions.get("image.position")
    if image is not None and image.values == ("learned",) and choices.image_position is None:
        choices = replace(choices, image_position="learned")
    resolved = resolve_config(facts, choices, format_profile="open_clip")
    if stated is not None:
        resolved = _with_stated_numerics(resolved, stated, choices)
    preprocess, note = _preprocess(opened.config, resolved)
    return resolved._replace(preprocess=preprocess, notes=(*notes, *resolved.notes, note))


def to_config(config: OpenClipConfig, *, where: str) -> CLIPConfig:
    """Our config nearest to a stated one. Raises ``ConversionError`` for sizes that make no model."""
    try:
        return to_clip_config(config)
    except ConfigError as error:
        raise ConversionError(f"{where}: {CONFIG_FILE} makes no model: {error}") from error


def _with_stated_numerics(resolved: Resolved, stated: CLIPConfig, choices: Choices) -> Resolved:
    """Epsilon and GELU as the config file has them, unless a flag or a released row says which."""
    found = {
        name: {"norm_eps": tower.blocks.norm_eps, "gelu": tower.blocks.gelu}
        for name, tower in (("image", stated.image), ("text", stated.text))
    }
    profile = next((name for name, one in PROFILES.items() if all(one == f for f in found.values())), "custom")
    if choices.profile is not None or choices.config is not None or choices.released is not None:
        if resolved.profile == profile:
            return resolved
        other = f"the profile is {profile} by {CONFIG_FILE}, {resolved.profile} because {resolved.profile_why}"
        if choices.profile is None:
            raise ConversionError(f"{other}; say which with --profile")
        return resolved._replace(notes=(*resolved.notes, other))
    config = resolved.config
    config = replace(
        config,
        image=replace(config.image, blocks=dataclasses.replace(config.image.blocks, **found["image"])),
        text=replace(config.text, blocks=dataclasses.replace(config.text.blocks, **found["text"])),
    )
    why = f"act_kwargs and norm_kwargs of {CONFIG_FILE}, where absent open_clip's own: exact GELU, epsilon 1e-5"
    return resolved._replace(config=config, profile=profile, profile_why=why)


def _preprocess(config: OpenClipConfig | None, resolved: Resolved) -> tuple[EvalImageConfig, str]:
    if config is None or config.pictures is None:
        return resolved.preprocess, resolved.preprocess_note
    pictures = config.pictures
    problems = _picture_problems(pictures)
    if problems:
        raise ConversionError("pictures are prepared as this version cannot:\n  " + "\n  ".join(problems))
    resize = "squash" if pictures.resize_mode == "squash" else "resize_small_crop"
    made = EvalImageConfig(size=resolved.config.image.image_size, resize=resize)
    return made, f"preprocess: {resize} by {CONFIG_FILE}; levels are cut, not rounded as Pillow does: at most one off"


def _picture_problems(pictures: Pictures) -> list[str]:
    problems: list[str] = []
    if (pictures.mean, pictures.std) != (IMAGENET_MEAN, IMAGENET_STD):
        problems.append(f"mean {pictures.mean}, std {pictures.std}; ours are ImageNet's")
    if pictures.interpolation != "bilinear":
        problems.append(f"interpolation {pictures.interpolation}; ours is bilinear")
    if pictures.resize_mode not in ("squash", "shortest"):
        problems.append(f"resize_mode {pictures.resize_mode}; ours are squash and shortest")
    return problems


def _own_tokenizer(opened: OpenedClip, rows: int) -> Tokenizer:
    """The vocabulary of the folder, or BERT's where the config names it or there is no config."""
    from conversion.arguments import tokenizer_of

    config = opened.config
    pieces = folder_pieces(opened.source.folder) if config is not None else None
    if pieces is not None:
        check_vocab(pieces, where=str(opened.source.folder))
        if len(pieces) > rows:
            raise ConversionError(f"the token table has {rows} rows, the vocabulary of the folder {len(pieces)} pieces")
        classes, unclassified = look_up_classes(pieces)
        return Tokenizer(pieces=pieces, classes=classes, unclassified=unclassified)
    if config is not None and config.texts.tokenizer_name != BERT_NAME:
        raise ConversionError(
            f"{CONFIG_FILE} names the tokenizer {config.texts.tokenizer_name!r}, which is not in the folder; "
            "give its vocabulary with --vocab"
        )
    return tokenizer_of(None, rows=rows)


def _sha256(path: Path) -> str:
    from conversion.tensors import sha256_of

    return sha256_of(path)
