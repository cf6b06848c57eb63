"""Operations of surgery as values, for ``init.surgery`` of a config, and the model that a list of them makes."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.random as jr
from jaxtyping import PRNGKeyArray

from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.surgery import heads, low_rank, mixing, parts, patches, sizes, vocabulary
from clipa_eqx.surgery.patches import PatchResize
from clipa_eqx.surgery.report import Operated, SurgeryReport
from clipa_eqx.surgery.sizes import TextRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeImage:
    """``surgery.resize_image``: another image size; learned positions are resampled.

    Attributes:
        image_size: (height, width) in pixels.
    """

    image_size: tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeText:
    """``surgery.resize_text``: another text length.

    Attributes:
        length: tokens of a text.
        rows: how the rows of learned positions are made.
    """

    length: int
    rows: TextRows = "resample"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizePatch:
    """``surgery.resize_patch``: another patch size.

    Attributes:
        patch_size: (height, width) of a patch in pixels.
        image_size: (height, width) of the images in pixels; None keeps it.
        method: how the kernels are resampled.
    """

    patch_size: tuple[int, int]
    image_size: tuple[int, int] | None = None
    method: PatchResize = "pseudo-inverse"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnImagePosition:
    """``surgery.learn_image_position``: computed image positions become a leaf that can be trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelStatistics:
    """``surgery.with_pixel_statistics``: the weights expect pixels that are normalized with other statistics.

    Attributes:
        mean: mean of each channel.
        std: standard deviation of each channel.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapVocabulary:
    """``surgery.swap_vocabulary``: from the vocabulary of the source to that of ``data.vocab``.

    Attributes:
        rows: rows of the token table, ``model.text.vocab``; None is one per piece.
    """

    rows: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwapHead:
    """``surgery.swap_head``: random heads.

    Attributes:
        embed: width of the joint space.
    """

    embed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneDepth:
    """``surgery.prune_depth``: fewer blocks.

    Attributes:
        image: numbers of the image tower's blocks to keep, counted from 0; None keeps all.
        text: the same of the text tower.
    """

    image: tuple[int, ...] | None = None
    text: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolate:
    """``surgery.interpolate``: on the way to another model.

    Attributes:
        source: run folder or model folder of the other model.
        alpha: share of the other model, from 0 to 1.
    """

    source: str
    alpha: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Average:
    """``surgery.average``: the mean with the models of other run folders or model folders.

    Attributes:
        sources: the other models.
        weights: of the model itself, then of each source; None is one each.
    """

    sources: tuple[str, ...]
    weights: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """``surgery.lora``: factors next to weights; the last operation of a list.

    Attributes:
        rank: width between the factors.
        alpha: strength; the product of the factors is multiplied by alpha / rank.
        targets: patterns of the paths of weights.

    Raises:
        ConfigError: a rank below 1, an alpha that is not positive, or no targets.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not self.targets:
            raise ConfigError(
                f"Lora: rank {self.rank}, alpha {self.alpha}, targets {self.targets}; expected a rank of at least 1, a "
                "positive alpha, and patterns of weights such as 'image/blocks/attn/(q|v)/weight'"
            )


Surgery = (
    ResizeImage
    | ResizeText
    | ResizePatch
    | LearnImagePosition
    | PixelStatistics
    | SwapVocabulary
    | SwapHead
    | PruneDepth
    | Interpolate
    | Average
    | Lora
)
"""An operation of ``init.surgery``."""


def lora_of(operations: Sequence[Surgery]) -> Lora | None:
    """The operation that adds factors; None if there is none."""
    return next((one for one in operations if isinstance(one, Lora)), None)


def without_lora(operations: Sequence[Surgery]) -> tuple[Surgery, ...]:
    """The operations that make a plain model."""
    return tuple(one for one in operations if not isinstance(one, Lora))


def flags_after(operations: Sequence[Surgery]) -> tuple[str, ...]:
    """Flags for a new run of a config from a run of it, whose weights have these operations already.

    ``Lora`` is repeated, because a run is read as its merged model.

    >>> flags_after((PruneDepth(image=(0,)),)), flags_after((Lora(rank=1, alpha=1.0, targets=(".*",)),))
    (('--init.surgery', 'none'), ())
    """
    return ("--init.surgery", "none") if without_lora(operations) else ()


def check_operations(operations: Sequence[Surgery]) -> None:
    """Check that factors come once, and last, because other operations need a plain model.

    Raises:
        ConfigError: they do not.
    """
    found = [number for number, one in enumerate(operations) if isinstance(one, Lora)]
    if found and found != [len(operations) - 1]:
        raise ConfigError(
            f"init.surgery has Lora at place {found[0]} of 0 to {len(operations) - 1}; put it last, and once"
        )


class Materials(NamedTuple):
    """Needs of operations that are not in their fields.

    Attributes:
        load: gives the model of a folder, to be mixed with one whose vocabulary was swapped already (True) or not.
        pieces: gives the pieces of the source's vocabulary, and those of the new one.
    """

    load: Callable[[str, bool], CLIP]
    pieces: Callable[[], tuple[Sequence[str], Sequence[str]]]


def apply_operations(
    model: CLIP, operations: Sequence[Surgery], materials: Materials, *, key: PRNGKeyArray, first: int = 0
) -> tuple[CLIP, tuple[SurgeryReport, ...]]:
    """Apply operations in their order; returns the model and a report for each.

    Args:
        model: the model to start with; it may be abstract under ``jax.eval_shape``.
        operations: the operations.
        materials: what else they need.
        key: randomness of the operations; the one at place i has ``fold_in(key, i)``.
        first: place of the first one in the list of the config.

    Raises:
        ConfigError: an operation that the model does not allow; the message names its place.
        CheckpointError: a model to mix in that is missing or damaged; the message names the place too.
    """
    reports: list[SurgeryReport] = []
    is_swapped = False
    for number, operation in enumerate(operations, first):
        try:
            model, report = _applied(model, operation, materials, key=jr.fold_in(key, number), is_swapped=is_swapped)
        except (ConfigError, CheckpointError) as error:
            kind = ConfigError if isinstance(error, ConfigError) else CheckpointError
            raise kind(f"init.surgery.{number} ({type(operation).__name__}): {error}") from error
        is_swapped |= isinstance(operation, SwapVocabulary)
        reports.append(report)
    return model, tuple(reports)


def report_lines(reports: Sequence[SurgeryReport]) -> Iterator[str]:
    """Every change of the reports in words, a line each."""
    return (change for report in reports for change in report.changes)


def _applied(model: CLIP, operation: Surgery, materials: Materials, *, key: PRNGKeyArray, is_swapped: bool) -> Operated:
    fields: dict[str, Any] = {one.name: getattr(operation, one.name) for one in dataclasses.fields(operation)}
    match operation:
        case ResizeImage():
            return sizes.resize_image(model, **fields)
        case ResizeText():
            return sizes.resize_text(model, **fields)
        case ResizePatch():
            return patches.resize_patch(model, **fields)
        case LearnImagePosition():
            return sizes.learn_image_position(model)
        case PixelStatistics():
            return patches.with_pixel_statistics(model, **fields)
        case SwapVocabulary():
            old, new = materials.pieces()
            return vocabulary.swap_vocabulary(model, old=old, new=new, key=key, **fields)
        case SwapHead():
            return heads.swap_head(model, key=key, **fields)
        case PruneDepth():
            return parts.prune_depth(model, **fields)
        case Interpolate(source=source, alpha=alpha):
            return mixing.interpolate(model, materials.load(source, is_swapped), alpha=alpha)
        case Average(sources=sources, weights=weights):
            return mixing.average([model, *(materials.load(one, is_swapped) for one in sources)], weights=weights)
        case Lora():
            return low_rank.lora(model, key=key, **fields)
