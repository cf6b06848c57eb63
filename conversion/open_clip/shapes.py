"""Facts about our config that names, shapes and config of an open_clip model determine, and what they leave open."""

from collections.abc import Mapping

import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.saved.leaf_file import Leaf
from conversion.open_clip.config import CONFIG_FILE
from conversion.open_clip.names import IMAGE_POSITION, POSITION_ATOL, TEXT_POSITION, image_table, text_table
from conversion.weights.facts import Fact, square_side
from conversion.weights.tensors import TensorFile, shape_of


def open_clip_facts(tensors: Mapping[str, Leaf], config: CLIPConfig | None) -> dict[str, Fact]:
    """Facts for ``infer.resolve_config``, by dotted field.

    Args:
        tensors: names and shapes of the weight file.
        config: the contents of ``open_clip_config.json``; None if there is none.

    Raises:
        ConversionError: config and weights contradict each other.
    """
    facts = {
        **_tower_facts("image", "visual.transformer.resblocks.", tensors),
        **_tower_facts("text", "transformer.resblocks.", tensors),
        "image.patch": Fact(("conv",), "the only kind in open_clip"),
        "image.pool": Fact(("gap", "tok"), "mean and class token need the same arrays"),
        "text.pool": Fact(("last", "tok"), "last and first token need the same arrays"),
    }
    kernel = shape_of(tensors, "visual.conv1.weight", 4)
    if kernel is not None:
        facts["image.patch_size"] = Fact((kernel[2:],), "axes 2 and 3 of visual.conv1.weight")
        rows = shape_of(tensors, IMAGE_POSITION, 2)
        side = None if rows is None else square_side(rows[0] - 1)
        if rows is not None and side is not None:
            size = (side * kernel[2], side * kernel[3])
            why = f"{rows[0]} rows of {IMAGE_POSITION} as a square of {side}"
            facts["image.image_size"] = Fact((size,), why, is_hint=config is None)
    for ours, name in (("image", "visual.proj"), ("text", "text_projection")):
        head = shape_of(tensors, name, 2)
        if head is not None:
            facts[f"{ours}.embed"] = Fact((head[1],), f"axis 1 of {name}")
    table, words = shape_of(tensors, "token_embedding.weight", 2), shape_of(tensors, TEXT_POSITION, 2)
    if table is not None:
        facts["text.vocab"] = Fact((table[0],), "rows of token_embedding.weight")
    if words is not None:
        facts["text.length"] = Fact((words[0],), f"rows of {TEXT_POSITION}")
    return facts if config is None else _with_config(facts, config)


def position_facts(
    file: TensorFile, facts: Mapping[str, Fact], *, image_size: tuple[int, int] | None
) -> dict[str, Fact]:
    """Compare the stored position tables with the formulas that we compute; equal ones need not be stored.

    Args:
        file: the open weight file.
        facts: what ``open_clip_facts`` found.
        image_size: height and width in pixels from the flags, which override the facts.

    Raises:
        ConversionError: the bytes of a table are damaged.
    """
    found: dict[str, Fact] = {}
    size, patch = facts.get("image.image_size"), facts.get("image.patch_size")
    pixels = image_size or (size.values[0] if size is not None else None)
    image, text = shape_of(file.tensors, IMAGE_POSITION, 2), shape_of(file.tensors, TEXT_POSITION, 2)
    if image is not None and pixels is not None and patch is not None:
        (height, width), (ph, pw) = pixels, patch.values[0]
        grid = (height // ph, width // pw)
        # Made only for a size that fits: another table might be too large for memory.
        table = image_table(grid, image[1]) if image[0] == 1 + grid[0] * grid[1] else None
        found["image.position"] = _position_fact(file, IMAGE_POSITION, "sincos2d", table)
    if text is not None:
        found["text.position"] = _position_fact(file, TEXT_POSITION, "sincos1d", text_table(*text))
    return found


def _position_fact(file: TensorFile, name: str, formula: str, table: np.ndarray | None) -> Fact:
    stored = file.read(name).astype(np.float32)
    if table is None or stored.shape != table.shape:
        return Fact(("learned",), f"{name} {stored.shape} has not the size of a {formula} table")
    off = float(np.abs(stored - table).max(initial=0.0))
    if off <= POSITION_ATOL:
        # Only a hint: users can train the table if they request "learned".
        return Fact((formula,), f"{name} is {formula} with denominator q-1, to {off:.1e}", is_hint=True)
    return Fact(("learned",), f"{name} is up to {off:.2g} off {formula} with denominator q-1")


def _with_config(facts: dict[str, Fact], config: CLIPConfig) -> dict[str, Fact]:
    """Add the config's values where shapes leave a choice; elsewhere both must agree."""
    stated: dict[str, object] = {
        "image.blocks.heads": config.image.blocks.heads,
        "text.blocks.heads": config.text.blocks.heads,
        "image.pool": config.image.pool,
        "text.pool": config.text.pool,
        "image.image_size": config.image.image_size,
    }
    in_weights = {
        "image.blocks.width": config.image.blocks.width,
        "image.blocks.depth": config.image.blocks.depth,
        "image.blocks.mlp_dim": config.image.blocks.mlp_dim,
        "image.patch_size": config.image.patch_size,
        "image.embed": config.image.embed,
        "text.blocks.width": config.text.blocks.width,
        "text.blocks.depth": config.text.blocks.depth,
        "text.blocks.mlp_dim": config.text.blocks.mlp_dim,
        "text.vocab": config.text.vocab,
        "text.length": config.text.length,
        "text.embed": config.text.embed,
    }
    problems = [
        f"{name}: {value} in {CONFIG_FILE}, {facts[name].values[0]} in the file ({facts[name].why})"
        for name, value in in_weights.items()
        if name in facts and facts[name].values != (value,)
    ]
    if problems:
        raise ConversionError(f"{CONFIG_FILE} and the weights differ:\n  " + "\n  ".join(problems))
    # A tensor that the weights lack is reported as missing later, by its expected name.
    stated |= {name: value for name, value in in_weights.items() if name not in facts}
    return facts | {name: Fact((value,), CONFIG_FILE) for name, value in stated.items()}


def _tower_facts(ours: str, stem: str, tensors: Mapping[str, Leaf]) -> dict[str, Fact]:
    facts: dict[str, Fact] = {}
    layers = {name.removeprefix(stem).split(".")[0] for name in tensors if name.startswith(stem)}
    if layers:
        facts[f"{ours}.blocks.depth"] = Fact((len(layers),), f"number of {stem}*")
    norm, hidden = shape_of(tensors, f"{stem}0.ln_1.weight", 1), shape_of(tensors, f"{stem}0.mlp.c_fc.bias", 1)
    if norm is not None:
        facts[f"{ours}.blocks.width"] = Fact(norm, f"length of {stem}0.ln_1.weight")
    if hidden is not None:
        facts[f"{ours}.blocks.mlp_dim"] = Fact(hidden, f"length of {stem}0.mlp.c_fc.bias")
    return facts
