"""The identity of a model by its config: numerics profile, preset, released model, and the command that scores it."""

from pathlib import Path

from clipa_eqx.commands import command_line
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.presets import PRESETS, preset
from clipa_eqx.saved.leaf_shapes import leaf_shapes
from conversion.weights.numerics import numerics_of
from conversion.weights.released import RELEASED, ReleasedModel


def identity(folder: Path, config: CLIPConfig) -> list[str]:
    """Lines that say which architecture a model has, what it should score, and how to score it."""
    profile = numerics_of(config).profile
    rows = _released_rows(config, profile)
    lines = [f"numerics profile: {profile}"]
    lines += [f"preset: {', '.join(_presets(config)) or 'none'}"]
    # open_clip scores names and templates as they are written.
    prompts = ("open_clip", "--no-canonicalize") if profile == "open_clip" else ("clip_paper",)
    reduction = next((("--text-reduction", row.text_reduction) for row in rows if row.length < 32), ())
    data, out = ("--data", "IMAGENET_RECORDS", "--class-names", "imagenet"), ("--out", "result.json")
    lines += [f"has the sizes of {row.name}, published at {row.score} % ({row.url})" for row in rows]
    return [
        *lines,
        "score it with:",
        command_line("evaluate", folder, "--suite", "zero-shot", *data, "--templates", *prompts, *reduction, *out),
    ]


def _presets(config: CLIPConfig) -> list[str]:
    shapes, (height, width) = leaf_shapes(config), config.image.image_size
    names: list[str] = []
    for name in PRESETS:
        patch = int(name.split("/")[1])
        if height == width and height % patch == 0:
            known = preset(name, image_size=height, length=config.text.length)
            if leaf_shapes(known) == shapes:
                names.append(f"{name} at {height} px with {config.text.length} tokens")
    return names


def _released_rows(config: CLIPConfig, profile: str) -> list[ReleasedModel]:
    rows = [row for row in RELEASED.values() if row.profile == profile and row.length == config.text.length]
    fitting = [row for row in rows if config.image.image_size == (row.image_size, row.image_size)]
    if not fitting:
        return []
    shapes = leaf_shapes(config)
    known = {
        name: leaf_shapes(next(r for r in fitting if r.preset == name).config()) for name in {r.preset for r in fitting}
    }
    return [row for row in fitting if known[row.preset] == shapes]
