"""The config of an open_clip model, from its weights, its config file and the flags, which must agree."""

from dataclasses import replace

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.images.host_pixels import IMAGENET_MEAN, IMAGENET_STD
from clipa_eqx.errors import ConfigError, ConversionError
from clipa_eqx.models.clip import CLIPConfig
from conversion.open_clip.config import CONFIG_FILE, OpenClipConfig, TokenizerSettings
from conversion.open_clip.files import OpenedModel
from conversion.open_clip.mapping import check_expressible, to_clip_config
from conversion.open_clip.names import LOGIT_BIAS
from conversion.open_clip.pixels import ImageSettings, pixels_note
from conversion.open_clip.shapes import open_clip_facts, position_facts
from conversion.weights.choices import Choices
from conversion.weights.infer import Resolved, resolve_config
from conversion.weights.numerics import TowerNumerics, numerics_of, with_numerics

SIGLIP_BIAS = -10.0
"""Initial bias of SigLIP (arXiv:2303.15343); used if a file has a bias and its config has no initial value."""


def resolve(opened: OpenedModel, choices: Choices, *, where: str) -> Resolved:
    """Determine config, numerics and preprocessing.

    Args:
        where: the model's name in messages.

    Raises:
        ConversionError: weights, config file and flags contradict each other, or leave something open.
    """
    stated, numerics = None, opened.numerics
    origin = f"the metadata of {opened.source.weights.name}"
    notes: list[str] = []
    if opened.config is not None:
        check_expressible(opened.config, where=f"{where}: {CONFIG_FILE}")
        _check_tokenizer(opened.config.tokenizer, where=where)
        stated = to_config(opened.config, where=where)
        if numerics is not None and numerics != numerics_of(stated):
            notes.append(f"{CONFIG_FILE} has other numerics than {origin} ({numerics.to_json()}); the config is used")
        numerics = numerics_of(stated)
        origin = f"act_kwargs and norm_kwargs of {CONFIG_FILE}; open_clip's default is exact GELU, epsilon 1e-5"
    facts = open_clip_facts(opened.tensors.tensors, stated)
    size = choices.image_size
    positions = position_facts(opened.tensors, facts, image_size=None if size is None else (size, size))
    facts |= positions
    # Learned text positions are the rule and need no note; ``resolve_config`` has one for computed text positions.
    shown = {n: f for n, f in positions.items() if n == "image.position" and not f.is_hint}
    notes += [f"{name}: {fact.values[0]} ({fact.why})" for name, fact in shown.items()]
    resolved = resolve_config(facts, choices, format_profile="open_clip")
    if numerics is not None:
        resolved = _with_numerics(resolved, numerics, choices, origin=origin)
    resolved = _with_bias(resolved, opened)
    preprocess, note = _preprocess(opened.config, resolved)
    return resolved._replace(preprocess=preprocess, notes=(*notes, *resolved.notes, note))


def _with_bias(resolved: Resolved, opened: OpenedModel) -> Resolved:
    """Add the bias of the logits, which files of models that were trained with the sigmoid loss have."""
    stated = None if opened.config is None else opened.config.bias
    if LOGIT_BIAS not in opened.tensors.tensors and stated is None:
        return resolved
    initial = next(value for value in (resolved.config.bias, stated, SIGLIP_BIAS) if value is not None)
    note = f"bias: a leaf ({LOGIT_BIAS}, of the sigmoid loss), {initial} in a new model"
    return resolved._replace(config=replace(resolved.config, bias=initial), notes=(*resolved.notes, note))


def to_config(config: OpenClipConfig, *, where: str) -> CLIPConfig:
    """The nearest ``CLIPConfig``. Raises ``ConversionError`` for sizes that no model can have."""
    try:
        return to_clip_config(config)
    except ConfigError as error:
        raise ConversionError(f"{where}: {CONFIG_FILE} does not describe a valid model: {error}") from error


def _check_tokenizer(tokenizer: TokenizerSettings, *, where: str) -> None:
    problems = list(tokenizer.unsupported)
    if not tokenizer.strips_sep:
        problems.append("[SEP] is kept (no strip_sep_token); our tokenizer never writes it")
    if problems:
        raise ConversionError(f"{where}: {CONFIG_FILE}: unsupported tokenizer settings:\n  " + "\n  ".join(problems))


def _with_numerics(resolved: Resolved, numerics: TowerNumerics, choices: Choices, *, origin: str) -> Resolved:
    """Take epsilon and GELU from the files, unless a flag or a released row determines them."""
    if choices.profile is not None or choices.config is not None or choices.released is not None:
        chosen = numerics_of(resolved.config)
        if chosen == numerics:
            return resolved
        other = f"the profile is {_named(numerics)} by {origin}; {_named(chosen)} because {resolved.profile_why}"
        if choices.profile is None:
            raise ConversionError(f"{other}; choose one with --profile")
        return resolved._replace(notes=(*resolved.notes, other))
    config = with_numerics(resolved.config, numerics)
    return resolved._replace(config=config, profile=numerics.profile, profile_why=origin)


def _named(numerics: TowerNumerics) -> str:
    """The name of a profile; the numbers too if it has none, since two custom profiles may differ."""
    return f"custom, {numerics.to_json()}," if numerics.profile == "custom" else numerics.profile


def _preprocess(config: OpenClipConfig | None, resolved: Resolved) -> tuple[EvalImageConfig, str]:
    if config is None or config.preprocess is None:
        return resolved.preprocess, f"{resolved.preprocess_note}; bilinear, with ImageNet's mean and std"
    settings = config.preprocess
    problems = _preprocess_problems(settings)
    if problems:
        raise ConversionError("unsupported image preprocessing:\n  " + "\n  ".join(problems))
    resize = "squash" if settings.resize_mode == "squash" else "resize_small_crop"
    made = EvalImageConfig(size=resolved.config.image.image_size, resize=resize)
    return made, f"preprocess: {resize} by {CONFIG_FILE}; {pixels_note(made, settings)}"


def _preprocess_problems(settings: ImageSettings) -> list[str]:
    problems: list[str] = []
    if (settings.mean, settings.std) != (IMAGENET_MEAN, IMAGENET_STD):
        problems.append(f"mean {settings.mean}, std {settings.std}; expected ImageNet's")
    if settings.interpolation != "bilinear":
        problems.append(f"interpolation {settings.interpolation}; expected bilinear")
    if settings.resize_mode not in ("squash", "shortest"):
        problems.append(f"resize_mode {settings.resize_mode}; expected squash or shortest")
    return problems
