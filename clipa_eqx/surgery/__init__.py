"""Surgery: named changes of a model, as pure functions that return another model and a report of the changes.

Loading is strict, so every difference between two stages of training is one of these functions. A change of the
configuration sets the static fields of the model, its towers and their layers at once.
"""

from clipa_eqx.surgery.adoption import adopt
from clipa_eqx.surgery.configuration import unstack_blocks, validate, with_config
from clipa_eqx.surgery.heads import swap_head
from clipa_eqx.surgery.low_rank import LORA_FACTORS, Adapters, LoraLinear, attach, detach, lora, merge, unmerge
from clipa_eqx.surgery.mixing import average, cast, interpolate
from clipa_eqx.surgery.operations import (
    Average,
    Interpolate,
    LearnImagePosition,
    Lora,
    PixelStatistics,
    PruneDepth,
    ResizeImage,
    ResizePatch,
    ResizeText,
    Surgery,
    SwapHead,
    SwapVocabulary,
)
from clipa_eqx.surgery.optimizer_state import MovedState, with_optimizer
from clipa_eqx.surgery.parts import Classified, Classifier, TakenTower, add_classifier, prune_depth, take_tower
from clipa_eqx.surgery.patches import PatchResize, resize_patch, with_pixel_statistics
from clipa_eqx.surgery.report import LeafChange, LeafShape, Operated, SurgeryReport
from clipa_eqx.surgery.sizes import TextRows, learn_image_position, resize_image, resize_text
from clipa_eqx.surgery.training_rules import freeze, layer_decay
from clipa_eqx.surgery.vocabulary import swap_vocabulary

__all__ = [
    "LORA_FACTORS",
    "Adapters",
    "Average",
    "Classified",
    "Classifier",
    "Interpolate",
    "LeafChange",
    "LeafShape",
    "LearnImagePosition",
    "Lora",
    "LoraLinear",
    "MovedState",
    "Operated",
    "PatchResize",
    "PixelStatistics",
    "PruneDepth",
    "ResizeImage",
    "ResizePatch",
    "ResizeText",
    "Surgery",
    "SurgeryReport",
    "SwapHead",
    "SwapVocabulary",
    "TakenTower",
    "TextRows",
    "add_classifier",
    "adopt",
    "attach",
    "average",
    "cast",
    "detach",
    "freeze",
    "interpolate",
    "layer_decay",
    "learn_image_position",
    "lora",
    "merge",
    "prune_depth",
    "resize_image",
    "resize_patch",
    "resize_text",
    "swap_head",
    "swap_vocabulary",
    "take_tower",
    "unmerge",
    "unstack_blocks",
    "validate",
    "with_config",
    "with_optimizer",
    "with_pixel_statistics",
]
