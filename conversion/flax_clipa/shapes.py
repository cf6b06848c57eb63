"""Facts that the names and shapes of a Flax checkpoint establish about its model (docs/reference.md F2.3)."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from clipa_eqx.saved.leaf_file import Leaf
from conversion.weights.facts import Fact, square_side
from conversion.weights.tensors import shape_of


class FlaxLayout(NamedTuple):
    """Shapes in which a checkpoint stores the same arrays.

    Attributes:
        attention: kernels of q, k and v as (D, heads, head width), "split", or as (D, D), "flat".
        temperature: (1,) or ().
    """

    attention: Literal["split", "flat"] = "split"
    temperature: tuple[int, ...] = (1,)


def layout_of(tensors: Mapping[str, Leaf]) -> FlaxLayout:
    """The layout of a checkpoint. Tensors that do not follow it are reported as mis-shaped later."""
    queries = [info for name, info in tensors.items() if name.endswith("/query/kernel")]
    is_flat = bool(queries) and all(len(info.shape) == 2 for info in queries)
    scale = tensors.get("t")
    return FlaxLayout("flat" if is_flat else "split", () if scale is not None and scale.shape == () else (1,))


def flax_facts(tensors: Mapping[str, Leaf]) -> dict[str, Fact]:
    """Facts for ``infer.resolve_config``, by dotted field of the config."""
    facts = {**_tower_facts("image", "img", tensors), **_tower_facts("text", "txt", tensors)}
    facts |= _patch_facts(tensors)
    facts |= _position_facts(tensors, facts)
    if "img/MAPHead_0/probe" in tensors:
        facts["image.pool"] = Fact(("map",), "img/MAPHead_0 exists")
    elif "img/encoder_norm/scale" in tensors:
        facts["image.pool"] = Fact(("gap", "tok"), "gap and tok have the same arrays")
    else:
        facts["image.pool"] = Fact(("first",), "there is no img/encoder_norm and no img/MAPHead_0")
    facts["text.pool"] = Fact(("last", "tok", "gap"), "last, tok and gap have the same arrays")
    table = shape_of(tensors, "txt/Embed_0/embedding", 2)
    if table is not None:
        facts["text.vocab"] = Fact((table[0],), "rows of txt/Embed_0/embedding")
    return facts


def _tower_facts(ours: str, theirs: str, tensors: Mapping[str, Leaf]) -> dict[str, Fact]:
    stem = f"{theirs}/Transformer/encoderblock_"
    attention = f"{stem}0/MultiHeadDotProductAttention_0/query/kernel"
    facts: dict[str, Fact] = {}
    layers = {name.removeprefix(stem).split("/")[0] for name in tensors if name.startswith(stem)}
    if layers:
        facts[f"{ours}.blocks.depth"] = Fact((len(layers),), f"number of {stem}*")
    first_norm = shape_of(tensors, f"{stem}0/LayerNorm_0/scale", 1)
    if first_norm is not None:
        facts[f"{ours}.blocks.width"] = Fact(first_norm, f"length of {stem}0/LayerNorm_0/scale")
    hidden = shape_of(tensors, f"{stem}0/MlpBlock_0/Dense_0/bias", 1)
    if hidden is not None:
        facts[f"{ours}.blocks.mlp_dim"] = Fact(hidden, f"length of {stem}0/MlpBlock_0/Dense_0/bias")
    split = shape_of(tensors, attention, 3)
    if split is not None:
        facts[f"{ours}.blocks.heads"] = Fact((split[1],), f"axis 1 of {attention}")
    head = shape_of(tensors, f"{theirs}/head/kernel", 2)
    if head is not None:
        facts[f"{ours}.embed"] = Fact((head[1],), f"axis 1 of {theirs}/head/kernel")
    elif f"{theirs}/head/kernel" not in tensors:
        facts[f"{ours}.embed"] = Fact((None,), f"there is no {theirs}/head")
    return facts


def _patch_facts(tensors: Mapping[str, Leaf]) -> dict[str, Fact]:
    name = "img/embedding/kernel"
    conv, linear = shape_of(tensors, name, 4), shape_of(tensors, name, 2)
    if conv is not None:
        return {
            "image.patch": Fact(("conv",), f"{name} has 4 axes"),
            "image.patch_size": Fact((conv[:2],), f"axes 0 and 1 of {name}"),
        }
    if linear is None:
        return {}
    facts = {"image.patch": Fact(("linear",), f"{name} has 2 axes")}
    side = square_side(linear[0] // 3) if linear[0] % 3 == 0 else None
    if side is not None:
        # The reference uses linear patches only for square images, with square patches.
        facts["image.patch_size"] = Fact(((side, side),), f"axis 0 of {name} as a square", is_hint=True)
    return facts


def _position_facts(tensors: Mapping[str, Leaf], facts: Mapping[str, Fact]) -> dict[str, Fact]:
    found: dict[str, Fact] = {}
    rows = shape_of(tensors, "img/pos_embedding", 3)
    if rows is None:
        why = "there is no img/pos_embedding: positions are computed, or the file is incomplete"
        found["image.position"] = Fact(("sincos2d", "learned"), why)
    else:
        found["image.position"] = Fact(("learned",), "img/pos_embedding exists")
        side, patch = square_side(rows[1] - 1), facts.get("image.patch_size")
        if side is not None and patch is not None:
            size = (side * patch.values[0][0], side * patch.values[0][1])
            why = f"{rows[1]} rows of img/pos_embedding as class token and a square of {side}"
            found["image.image_size"] = Fact((size,), why, is_hint=True)
    words = shape_of(tensors, "txt/pos_embedding", 3)
    if words is None:
        why = "there is no txt/pos_embedding: positions are computed, or the file is incomplete"
        found["text.position"] = Fact(("sincos1d", "learned"), why)
    else:
        found["text.position"] = Fact(("learned",), "txt/pos_embedding exists")
        found["text.length"] = Fact((words[1],), "rows of txt/pos_embedding")
    return found
