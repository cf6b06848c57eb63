"""From an open_clip model to a model folder: its config read, its positions compared, its numerics kept."""

import contextlib
import logging
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConfigError, ConversionError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.replacing import check_apart
from clipa_eqx.tokenizer.loading import load_tokenizer
from conversion.open_clip.config import CONFIG_FILE, OpenClipConfig, Texts, load_open_clip_config
from conversion.open_clip.files import (
    HUB,
    TORCH_SUFFIXES,
    OpenClipSource,
    SafetensorsFile,
    TorchFile,
    find_source,
    renamed,
)
from conversion.open_clip.mapping import check_expressible, numerics_in, to_clip_config
from conversion.open_clip.names import open_clip_rules, temperature_shape
from conversion.open_clip.pixels import Pictures, pixels_note
from conversion.open_clip.shapes import open_clip_facts, position_facts
from conversion.open_clip.vocabulary import own_rules, own_vocabulary
from conversion.weights.choices import Choices, ImportOptions
from conversion.weights.formats import OPEN_CLIP
from conversion.weights.import_provenance import import_provenance, log_resolved
from conversion.weights.infer import Resolved, resolve_config
from conversion.weights.numerics import TowerNumerics, numerics_of, with_numerics
from conversion.weights.rules import RuleTable
from conversion.weights.tensors import TensorFile, TensorView, sha256_of
from conversion.weights.write_model import write_model

_log = logging.getLogger(__name__)


class OpenedClip(NamedTuple):
    """Where a model lies, its tensors under the rule table's names, its config if any, what its weight file says."""

    source: OpenClipSource
    tensors: TensorFile
    config: OpenClipConfig | None
    numerics: TowerNumerics | None
    metadata: Mapping[str, str]


@contextlib.contextmanager
def open_open_clip(source: str) -> Generator[OpenedClip]:
    """Open a weight file, a folder or ``hf-hub:REPO``.

    Raises:
        ConversionError: nothing is there, it is damaged, or its config or metadata hold what nothing here can compute.
        CheckpointError: the safetensors file is damaged.
    """
    found = find_source(source)
    config = None if found.config is None else load_open_clip_config(found.config)
    make = TorchFile if found.weights.suffix in TORCH_SUFFIXES else SafetensorsFile
    with make(found.weights) as file:
        numerics = numerics_in(file.metadata, where=str(found.weights))
        yield OpenedClip(found, TensorView(file, renamed(file.tensors)), config, numerics, file.metadata)


def import_open_clip(source: str, options: ImportOptions) -> Path:
    """Convert; what was chosen and why is logged and recorded in the provenance.

    Raises:
        ConversionError: lists all that is missing, unused, mis-shaped, damaged, unknown to our model or not told.
        CheckpointError: the destination exists or lies in the source, or the source is damaged.
    """
    if not source.startswith(HUB):
        check_apart(options.folder, [Path(source)])
    with open_open_clip(source) as opened:
        resolved = resolve(opened, options.choices, where=source)
        log_resolved(resolved)
        rows = resolved.config.text.vocab
        if options.vocab is None:
            tokenizer, origin = own_vocabulary(opened.source.folder, opened.config, rows=rows)
        else:
            tokenizer, origin = load_tokenizer(options.vocab, model_vocab=rows), options.vocab
        about: dict[str, Any] = {
            "dtypes": sorted({str(info.dtype) for info in opened.tensors.tensors.values()}),
            "config_sha256": None if opened.source.config is None else sha256_of(opened.source.config),
        }
        if source.startswith(HUB):
            about["repository"] = source.removeprefix(HUB)
        rules = open_clip_rules(resolved.config, temperature_shape(opened.tensors.tensors))
        converted = write_model(
            opened.tensors,
            RuleTable(rules, resolved.config),
            options.folder,
            tokenizer=tokenizer,
            preprocess=resolved.preprocess,
            provenance=import_provenance(
                resolved,
                tokenizer,
                format=OPEN_CLIP,
                layout=about,
                origin=origin,
                rules=own_rules(opened.source.folder, opened.config, opened.metadata),
            ),
            overwrite=options.overwrite,
        )
    _log.info("%s: %s parameters", converted.folder, f"{converted.provenance.parameters:,}")
    return converted.folder


def resolve(opened: OpenedClip, choices: Choices, *, where: str) -> Resolved:
    """Config, numerics and preprocessing that weights, config file and flags agree on.

    Raises:
        ConversionError: they do not, or nobody says.
    """
    stated, numerics = None, opened.numerics
    said_by = f"the metadata of {opened.source.weights.name}"
    notes: list[str] = []
    if opened.config is not None:
        check_expressible(opened.config, where=f"{where}: {CONFIG_FILE}")
        _check_texts(opened.config.texts, where=where)
        stated = to_config(opened.config, where=where)
        if numerics is not None and numerics != numerics_of(stated):
            notes.append(
                f"{CONFIG_FILE} has other numerics than {said_by} ({numerics.to_json()}); the config is followed"
            )
        numerics = numerics_of(stated)
        said_by = f"act_kwargs and norm_kwargs of {CONFIG_FILE}, where absent open_clip's own: exact GELU, epsilon 1e-5"
    facts = open_clip_facts(opened.tensors.tensors, stated)
    size = choices.image_size
    positions = position_facts(opened.tensors, facts, image_size=None if size is None else (size, size))
    facts |= positions
    # Learned text positions are the rule and need no word; of formulas, ``resolve_config`` has one.
    shown = {n: f for n, f in positions.items() if n == "image.position" and not f.is_hint}
    notes += [f"{name}: {fact.values[0]} ({fact.why})" for name, fact in shown.items()]
    resolved = resolve_config(facts, choices, format_profile="open_clip")
    if numerics is not None:
        resolved = _with_numerics(resolved, numerics, choices, said_by=said_by)
    preprocess, note = _preprocess(opened.config, resolved)
    return resolved._replace(preprocess=preprocess, notes=(*notes, *resolved.notes, note))


def to_config(config: OpenClipConfig, *, where: str) -> CLIPConfig:
    """Our config nearest to a stated one. Raises ``ConversionError`` for sizes that make no model."""
    try:
        return to_clip_config(config)
    except ConfigError as error:
        raise ConversionError(f"{where}: {CONFIG_FILE} makes no model: {error}") from error


def _check_texts(texts: Texts, *, where: str) -> None:
    problems = list(texts.other)
    if not texts.strips_sep:
        problems.append("[SEP] is kept (no strip_sep_token), which our tokenizer never writes")
    if problems:
        raise ConversionError(f"{where}: {CONFIG_FILE} tokenizes as ours does not:\n  " + "\n  ".join(problems))


def _with_numerics(resolved: Resolved, numerics: TowerNumerics, choices: Choices, *, said_by: str) -> Resolved:
    """Epsilon and GELU as the files have them, unless a flag or a released row says which."""
    if choices.profile is not None or choices.config is not None or choices.released is not None:
        chosen = numerics_of(resolved.config)
        if chosen == numerics:
            return resolved
        other = f"the profile is {_named(numerics)} by {said_by}; {_named(chosen)} because {resolved.profile_why}"
        if choices.profile is None:
            raise ConversionError(f"{other}; say which with --profile")
        return resolved._replace(notes=(*resolved.notes, other))
    config = with_numerics(resolved.config, numerics)
    return resolved._replace(config=config, profile=numerics.profile, profile_why=said_by)


def _named(numerics: TowerNumerics) -> str:
    """A profile's name; two that have none may differ, so of them the numbers."""
    return f"custom, {numerics.to_json()}," if numerics.profile == "custom" else numerics.profile


def _preprocess(config: OpenClipConfig | None, resolved: Resolved) -> tuple[EvalImageConfig, str]:
    if config is None or config.pictures is None:
        return (
            resolved.preprocess,
            f"{resolved.preprocess_note}; bilinear, with ImageNet's mean and std, as always here",
        )
    pictures = config.pictures
    problems = _picture_problems(pictures)
    if problems:
        raise ConversionError("pictures are prepared as this version cannot:\n  " + "\n  ".join(problems))
    resize = "squash" if pictures.resize_mode == "squash" else "resize_small_crop"
    made = EvalImageConfig(size=resolved.config.image.image_size, resize=resize)
    return made, f"preprocess: {resize} by {CONFIG_FILE}; {pixels_note(made, pictures)}"


def _picture_problems(pictures: Pictures) -> list[str]:
    problems: list[str] = []
    if (pictures.mean, pictures.std) != (IMAGENET_MEAN, IMAGENET_STD):
        problems.append(f"mean {pictures.mean}, std {pictures.std}; ours are ImageNet's")
    if pictures.interpolation != "bilinear":
        problems.append(f"interpolation {pictures.interpolation}; ours is bilinear")
    if pictures.resize_mode not in ("squash", "shortest"):
        problems.append(f"resize_mode {pictures.resize_mode}; ours are squash and shortest")
    return problems
