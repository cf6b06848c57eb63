"""CLIP training by the inverse scaling law, as pure Equinox modules. Everything public is imported on first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipa_eqx import surgery as surgery
    from clipa_eqx.experiment import ExperimentConfig as ExperimentConfig
    from clipa_eqx.losses import softmax_contrastive as softmax_contrastive
    from clipa_eqx.models.blocks import BlockConfig as BlockConfig
    from clipa_eqx.models.clip import CLIP as CLIP
    from clipa_eqx.models.clip import CLIPConfig as CLIPConfig
    from clipa_eqx.models.presets import PRESETS as PRESETS
    from clipa_eqx.models.presets import preset as preset
    from clipa_eqx.models.text import TextConfig as TextConfig
    from clipa_eqx.models.text import TextTower as TextTower
    from clipa_eqx.models.vision import VisionConfig as VisionConfig
    from clipa_eqx.models.vision import VisionTower as VisionTower
    from clipa_eqx.saved.model import LoadedModel as LoadedModel
    from clipa_eqx.saved.model import load_model as load_model
    from clipa_eqx.saved.model import save_model as save_model
    from clipa_eqx.tokenizer import Tokenizer as Tokenizer

__version__ = "0.1.0"

_HOME = {
    "BlockConfig": "models.blocks",
    "CLIP": "models.clip",
    "CLIPConfig": "models.clip",
    "ExperimentConfig": "experiment",
    "LoadedModel": "saved.model",
    "PRESETS": "models.presets",
    "TextConfig": "models.text",
    "TextTower": "models.text",
    "Tokenizer": "tokenizer",
    "VisionConfig": "models.vision",
    "VisionTower": "models.vision",
    "load_model": "saved.model",
    "preset": "models.presets",
    "save_model": "saved.model",
    "softmax_contrastive": "losses",
}


def __getattr__(name: str) -> Any:
    # Workers that decode images import this package too: nothing here may start jax, orbax or grain.
    if name == "surgery":
        return importlib.import_module("clipa_eqx.surgery")
    if name in _HOME:
        return getattr(importlib.import_module(f"clipa_eqx.{_HOME[name]}"), name)
    raise AttributeError(f"module 'clipa_eqx' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_HOME, "surgery", "__version__"])
