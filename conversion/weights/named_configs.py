"""Complete configs that a user can name: a preset, a released model or a file."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clipa_eqx.commands import command_line
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import ConversionError
from clipa_eqx.json_config import from_json
from clipa_eqx.models import presets
from clipa_eqx.models.clip import CLIPConfig
from conversion.weights.numerics import Profile
from conversion.weights.released import RELEASED

_RELEASED = "released model "


class NamedConfig(NamedTuple):
    """A complete config to start from.

    Attributes:
        name: its name in messages.
        free: fields that are mere defaults, which a file may differ from.
        unsettled: fields that it does not determine for a file, each with the reason.
        letter: letter of a preset in the reference's tables.
        profile: numerics with which a released model was published.
        preprocess: image preparation for a released model.
        prompt_reduction: the shortening of prompts with which a released model was scored.
        is_file: it was read from a file and has its own numerics.
    """

    name: str
    config: CLIPConfig
    free: tuple[str, ...] = ()
    unsettled: tuple[tuple[str, str], ...] = ()
    letter: str | None = None
    profile: Profile | None = None
    preprocess: EvalImageConfig | None = None
    prompt_reduction: Literal["truncate", "syntax"] | None = None
    is_file: bool = False


def named_config(*, preset: str | None, released: str | None, file: Path | None) -> NamedConfig | None:
    """The config that ``--preset``, ``--released`` or ``--config`` names; None without any of them.

    Raises:
        ConversionError: several are given, or the named config does not exist or is not a config.
        ConfigError: an unknown preset, or a file with other fields than those of a config.
    """
    given = {"--preset": preset, "--released": released, "--config": file}
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConversionError(f"{' and '.join(named)} each name a complete config; give one of them")
    if preset is not None:
        return _preset(preset)
    if released is not None:
        return _released(released)
    return None if file is None else NamedConfig(str(file), _read_config(file), is_file=True)


def check_format(base: NamedConfig, format_profile: Profile) -> None:
    """Raise ``ConversionError`` if a released model has another format than the file that is read."""
    if base.profile in (None, format_profile):
        return
    stem = base.name.removeprefix(_RELEASED).removesuffix("-open-clip")
    twin = stem if format_profile == "flax" else f"{stem}-open-clip"
    raise ConversionError(
        f"{base.name} is a file of {base.profile}, this is one of {format_profile}: epsilon and GELU differ; use "
        + (f"--released {twin}, " if twin in RELEASED else "the row of this format, ")
        + "or name the numerics of these weights with --profile"
    )


def _preset(name: str) -> NamedConfig:
    config = presets.preset(name)
    unsettled: tuple[tuple[str, str], ...] = ()
    if all(row.preset != name for row in RELEASED.values()):
        unsettled = (("image.pool", f"no model of preset {name} was released, and recipes differ"),)
    letter = name.split("/")[0].removeprefix("big")
    return NamedConfig(
        f"preset {name}", config, free=("image.image_size", "text.length"), unsettled=unsettled, letter=letter
    )


def _released(name: str) -> NamedConfig:
    if name not in RELEASED:
        raise ConversionError(f"no released model is called {name!r}; `{command_line('released')}` lists them")
    row = RELEASED[name]
    return NamedConfig(
        f"{_RELEASED}{name}",
        row.config(),
        profile=row.profile,
        preprocess=row.preprocess(),
        prompt_reduction=row.text_reduction,
    )


def _read_config(path: Path) -> CLIPConfig:
    """The model config in the first JSON object of a file, alone or in the config of a run.

    The output of ``clipa-show`` has more text after that object.
    """
    try:
        found: Any = json.JSONDecoder().raw_decode(path.read_text(encoding="utf-8-sig").lstrip())[0]
    except (OSError, ValueError, RecursionError) as error:
        raise ConversionError(f"--config {path} cannot be read ({error})") from error
    while isinstance(found, dict) and "image" not in found and ("model" in found or "config" in found):
        found = found.get("model", found.get("config"))
    if not isinstance(found, dict):
        raise ConversionError(
            f"--config {path} does not hold a model config; `{command_line('show', 'MODEL')} > F.json` writes one"
        )
    return from_json(CLIPConfig, found, where=f"--config {path}")
