"""Parts of a model: fewer blocks, one tower alone, a classifier of images instead of the text tower."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.models.layers import Linear, l2_normalize
from clipa_eqx.models.text import TextTower
from clipa_eqx.models.vision import VisionTower
from clipa_eqx.surgery.configuration import operated, rebuild, validate
from clipa_eqx.surgery.report import Move, Operated, SurgeryReport, leaf_changes
from clipa_eqx.trees import leaves_by_path


class TakenTower(NamedTuple):
    """A tower taken from a model.

    Attributes:
        tower: the tower, which gives embeddings that are not of unit length, or pooled features without its head.
        report: leaves of the model that the tower lacks, by their paths in the model.
    """

    tower: VisionTower | TextTower
    report: SurgeryReport


class Classifier(eqx.Module):
    """A classifier of images: logits are a linear map of the image's unit embedding. Use ``jax.vmap`` for a batch.

    Attributes:
        image: the image tower.
        classifier: projection of the unit embedding to one logit per class.
    """

    image: VisionTower
    classifier: Linear

    def __call__(
        self, image: Float[Array, "height width 3"], *, key: PRNGKeyArray | None = None
    ) -> Float[Array, " classes"]:
        """Compute the logits of one normalized image; a key turns on masking, dropout and stochastic depth."""
        return self.classifier(l2_normalize(self.image(image, key=key)))


class Classified(NamedTuple):
    """A classifier made of a model.

    Attributes:
        model: the classifier.
        report: leaves that were added or removed.
    """

    model: Classifier
    report: SurgeryReport


def prune_depth(model: CLIP, *, image: Sequence[int] | None = None, text: Sequence[int] | None = None) -> Operated:
    """Keep some blocks of the towers, such as the first 8 of 12 or every other one; the outputs change.

    Args:
        model: model to change.
        image: numbers of the image tower's blocks to keep, rising, counted from 0; None keeps all.
        text: the same of the text tower.

    Raises:
        ConfigError: no numbers, or numbers that do not rise or are not those of blocks.
    """
    leaves, config, changes, moves = leaves_by_path(model), model.config, list[str](), dict[str, Move]()
    for name, kept in (("image", image), ("text", text)):
        tower = model.config.image if name == "image" else model.config.text
        depth = tower.blocks.depth
        if kept is None or list(kept) == list(range(depth)):
            continue
        if not kept or list(kept) != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= depth:
            raise ConfigError(
                f"prune_depth: {name} is {list(kept)}; it must be rising numbers of blocks from 0 to {depth - 1}"
            )
        move = partial(_rows, rows=tuple(kept))
        moves |= {path: move for path in leaves if path.startswith(f"{name}/blocks/")}
        blocks = dataclasses.replace(tower.blocks, depth=len(kept))
        config = dataclasses.replace(config, **{name: dataclasses.replace(tower, blocks=blocks)})
        changes.append(f"{name}.blocks.depth: {depth} -> {len(kept)}, blocks {', '.join(map(str, kept))} kept")
    leaves |= {path: move(leaves[path]) for path, move in moves.items()}
    return operated(model, rebuild(config, leaves) if changes else model, changes, moves=moves)


def _rows(leaf: Array, *, rows: tuple[int, ...]) -> Array:
    return leaf[np.array(rows)]


def take_tower(model: CLIP, tower: Literal["image", "text"], *, head: bool = True) -> TakenTower:
    """Take one tower alone, as an encoder or a feature extractor; its leaves are those of the model, not copies.

    Args:
        model: model to take from.
        tower: "image" or "text".
        head: False removes the projection to the joint space: the tower returns its pooled features.

    Raises:
        ConfigError: ``head`` is False, and the tower has none.
    """
    taken = model.image if tower == "image" else model.text
    if not head:
        if taken.head is None:
            raise ConfigError(f"take_tower: the {tower} tower has no head to remove; leave head=True")
        taken = dataclasses.replace(taken, head=None, config=dataclasses.replace(taken.config, embed=None))
    validate(taken)
    leaves = leaf_changes(model, {tower: taken})
    changes = (f"{tower} tower taken{'' if head else ' without its head'}",)
    return TakenTower(taken, SurgeryReport(changes=changes, leaves=leaves))


def add_classifier(model: CLIP, class_embeddings: Float[Array | np.ndarray, "classes embed"]) -> Classified:
    """Put a linear classifier in place of the text tower, initialized to the zero-shot classifier of these embeddings.

    Its logits are those of the model: temperature times similarity, plus the bias of a model that has one.

    Args:
        model: model to change.
        class_embeddings: unit embedding of each class, as ``clipa_eqx.class_embeddings`` computes them from prompts.

    Raises:
        ConfigError: no classes, or embeddings of another width than the model's.
    """
    classes, width = class_embeddings.shape
    if not classes or width != model.config.image.output:
        raise ConfigError(
            f"add_classifier: class embeddings are {classes} x {width}; expected one or more rows of the model's "
            f"embedding width, {model.config.image.output}"
        )
    weight = jnp.exp(model.log_temperature) * jnp.asarray(class_embeddings, jnp.float32)
    bias = jnp.zeros(classes) if model.bias is None else jnp.full(classes, model.bias)
    validate(model.image)
    classified = Classifier(image=model.image, classifier=Linear(weight=weight, bias=bias))
    line = f"classifier/weight: class embeddings of {classes} classes times the temperature; text tower removed"
    return Classified(classified, SurgeryReport(changes=(line,), leaves=leaf_changes(model, classified)))
