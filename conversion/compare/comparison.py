"""Comparison of two models: texts, images, both towers, temperature, in this order."""

import logging
import math
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipa_eqx.progress import progress_bar
from conversion.compare.causes import HALVES, ROUNDED, round_to
from conversion.compare.images import compare_images
from conversion.compare.inputs import recorded, tower_inputs, write_inputs
from conversion.compare.opening import is_described, open_side
from conversion.compare.replay import Float64Array
from conversion.compare.report import Cause, CompareReport, Divergence
from conversion.compare.side import Side, Tower
from conversion.compare.texts import compare_texts
from conversion.compare.walk import StepDivergence, causes_of, steps_of_both, walk_tower
from conversion.weights.choices import Choices
from conversion.weights.named_configs import named_config

TEMPERATURE_AS_EXP = "temperature stored as exp"

_LARGEST_LOG = 80.0
"""Larger logarithms are not tried as such: their exponential would overflow float32."""

_log = logging.getLogger(__name__)


class Findings(NamedTuple):
    """Notes and divergences of one part of the comparison."""

    notes: tuple[str, ...] = ()
    divergences: tuple[Divergence, ...] = ()


def compare_models(
    a: str,
    b: str,
    choices: Choices,
    *,
    recorded_a: Path | None = None,
    recorded_b: Path | None = None,
    inputs_folder: Path | None = None,
) -> CompareReport:
    """Open two models and compare them.

    Args:
        a: a model folder, a Flax npz, or an open_clip file, folder or ``hf-hub:REPO``.
        b: the other model.
        choices: the flags, for settings that the files do not record.
        recorded_a: tokens and pixels to use in place of those of ``a``.
        recorded_b: the same for ``b``.
        inputs_folder: write the fixed inputs there.

    Raises:
        ConversionError: a model cannot be opened, or a recording does not fit.
        CheckpointError: a model folder is damaged.
    """
    # A mistake in these flags is an error even if neither side needs them.
    named_config(preset=choices.preset, released=choices.released, file=choices.config)
    if is_described(a) and is_described(b):
        unused = [f"--{name.replace('_', '-')}" for name, value in vars(choices).items() if value is not None]
        if unused:
            _log.warning("%s: not used, both sides record all of it themselves", ", ".join(unused))
    with ExitStack() as stack:
        # First the side that describes itself completely: the other may take settings from it.
        if is_described(b) and not is_described(a):
            side_b = open_side(b, choices, stack)
            side_a = open_side(a, choices, stack, other=side_b.config)
        else:
            side_a = open_side(a, choices, stack)
            side_b = open_side(b, choices, stack, other=side_a.config)
        side_a = side_a if recorded_a is None else recorded(side_a, recorded_a)
        side_b = side_b if recorded_b is None else recorded(side_b, recorded_b)
        if inputs_folder is not None:
            write_inputs(inputs_folder, side_a)
        return compare_sides(side_a, side_b)


def compare_sides(a: Side, b: Side) -> CompareReport:
    """Compare two open models."""
    found, embedding_error = [_compare_texts(a, b), _compare_images(a, b)], dict[str, float]()
    towers: tuple[Tower, ...] = ("image", "text")
    for tower in towers:
        sizes = _size_differences(a, b, tower)
        if sizes:
            found.append(
                Findings(
                    (), (Divergence(where=f"{tower} tower", what="; ".join(sizes), causes=(("sizes differ", ""),)),)
                )
            )
        else:
            one, embedding_error[tower] = _compare_towers(a, b, tower, tower_inputs(a, b, tower))
            found.append(one)
    found.append(_compare_temperatures(a.log_temperature, b.log_temperature))
    return CompareReport(
        a=a.summary(),
        b=b.summary(),
        notes=tuple(note for one in found for note in one.notes),
        divergences=tuple(divergence for one in found for divergence in one.divergences),
        embedding_error=embedding_error,
    )


def _compare_texts(a: Side, b: Side) -> Findings:
    if a.tokenize is None or b.tokenize is None:
        missing = " and ".join(side.name for side in (a, b) if side.tokenize is None)
        return Findings((f"texts: not compared; the tokenizer of {missing} is not recorded",))
    found = compare_texts(a.tokenize, b.tokenize, pieces=(a.pieces or b.pieces, b.pieces or a.pieces))
    note = f"texts: {found.equal} of {found.texts} have equal ids"
    if not found.causes and not found.unexplained:
        return Findings((note,))
    what = f"{found.texts - found.equal} of {found.texts} fixed texts get other ids"
    unexplained = tuple(("unexplained", repr(text[:40])) for text in found.unexplained)
    return Findings((note,), (Divergence(where="tokenization", what=what, causes=(*found.causes, *unexplained)),))


def _compare_images(a: Side, b: Side) -> Findings:
    # Settings of A are needed to search for a cause.
    if a.prepare is None or b.prepare is None or a.image_settings is None:
        missing = [a.name] if a.prepare is None or a.image_settings is None else []
        missing += [b.name] if b.prepare is None else []
        return Findings((f"images: not compared; the preprocessing of {' and '.join(missing)} is not recorded",))
    if a.config.image.image_size != b.config.image.image_size:
        return Findings(("images: not compared; the image sizes differ",))
    found = compare_images(a.prepare, b.prepare, settings_a=a.image_settings, settings_b=b.image_settings)
    what = f"pixels differ by up to {found.levels:.1f} levels of 255"
    if found.is_equal:
        return Findings((f"images: {what}; one level is the difference between truncation and rounding",))
    return Findings((), (Divergence(where="preprocessing", what=what, causes=found.causes),))


def _size_differences(a: Side, b: Side, tower: Tower) -> list[str]:
    x, y = a.config, b.config
    one, two = (x.image, y.image) if tower == "image" else (x.text, y.text)
    sizes: dict[str, tuple[object, object]] = {}
    if tower == "image":
        sizes["image size"] = (x.image.image_size, y.image.image_size)
        sizes["patch size"] = (x.image.patch_size, y.image.patch_size)
        sizes["attention pooling"] = (x.image.pool == "map", y.image.pool == "map")
    else:
        sizes["tokens"] = (x.text.length, y.text.length)
    sizes["width"] = (one.blocks.width, two.blocks.width)
    sizes["depth"] = (one.blocks.depth, two.blocks.depth)
    sizes["mlp_dim"] = (one.blocks.mlp_dim, two.blocks.mlp_dim)
    sizes["joint width"] = (one.embed, two.embed)
    return [f"{name} is {p} in A, {q} in B" for name, (p, q) in sizes.items() if p != q]


def _compare_towers(a: Side, b: Side, tower: Tower, inputs: Float64Array) -> tuple[Findings, float]:
    """Findings, and the largest difference of the embeddings."""
    steps = steps_of_both(a, b, tower)
    with progress_bar(what=f"{tower} tower", total=len(steps), unit="step") as bar:
        walk = walk_tower(a, b, tower, inputs, advance=lambda _: bar.update())
    note = (
        f"{tower} tower: {walk.steps - len(walk.divergences)} of {walk.steps} operations are equal; embeddings differ "
        f"by up to {walk.embedding_error:.1e}"
    )
    divergences = tuple(_divergence(group) for _, group in causes_of(walk.divergences))
    return Findings((note,), divergences), walk.embedding_error


def _divergence(group: list[StepDivergence]) -> Divergence:
    """Steps of equal causes as one divergence, described by the first."""
    first = group[0]
    more = f"; the same in {len(group) - 1} more" if len(group) > 1 else ""
    return Divergence(
        where=first.step,
        what=f"error {first.error:.2g} of values up to {first.scale:.2g}{more}",
        causes=() if first.explanation is None else first.explanation.causes,
        steps=tuple(one.step for one in group),
    )


def _compare_temperatures(x: float, y: float) -> Findings:
    if math.isclose(x, y, rel_tol=1e-7, abs_tol=1e-9):
        return Findings()
    causes: list[Cause] = []
    for one, two, who, other in ((x, y, "B", "A"), (y, x, "A", "B")):
        if one < _LARGEST_LOG and math.isclose(math.exp(one), two, rel_tol=1e-5):
            causes.append((TEMPERATURE_AS_EXP, f"{who} has the multiplier itself"))
        halves = [name for name in HALVES if round_to(np.asarray(one), name) == two]
        if halves:
            causes.append((ROUNDED, f"{who}'s is {other}'s in {' or '.join(halves)}"))
    what = f"{x:.6g} in A, {y:.6g} in B"
    return Findings((), (Divergence(where="log_temperature", what=what, causes=tuple(causes)),))
