"""The part of a config that names the weights to start from, and the surgery on them."""

from dataclasses import dataclass

import jax
import jax.random as jr

from clipa_eqx.errors import ConfigError
from clipa_eqx.models.clip import CLIP, CLIPConfig, abstract_clip
from clipa_eqx.surgery.low_rank import lora
from clipa_eqx.surgery.operations import Surgery, check_operations, lora_of
from clipa_eqx.surgery.sizes import TextRows


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights to start from, and what may differ from them (``surgery.adopt``).

    Attributes:
        source: a run folder, of which the latest checkpoint is taken, a model folder, or the name of a model as
            ``load_model`` takes it.
        resize_text: resize learned text positions to this run's text length.
        text_rows: how ``resize_text`` does it. "resample" interpolates, as the reference; "first" keeps the rows in
            front, so that each word keeps its position, and repeats the last row.
        resize_image: resample learned image positions to this run's image size.
        keep_initial: patterns of leaf paths that keep their random initial values, such as a new head; each must match
            a leaf.
        optimizer: also take the optimizer's state and step, which models imported from a full training checkpoint have.
            The run then resumes at the step of the source instead of starting at step 0.
        surgery: operations on the loaded model, in their order; see docs/finetuning.md. ``ExperimentConfig.model``
            describes the model after them, without the factors that ``Lora`` adds.

    Raises:
        ConfigError: an empty source, ``text_rows`` without ``resize_text``, ``optimizer`` together with a change of
            the weights, or ``Lora`` that is not the last operation.
    """

    source: str
    resize_text: bool = False
    text_rows: TextRows = "resample"
    resize_image: bool = False
    keep_initial: tuple[str, ...] = ()
    optimizer: bool = False
    surgery: tuple[Surgery, ...] = ()

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("init.source is empty; give a run folder or a model folder, or leave out init")
        if self.text_rows != "resample" and not self.resize_text:
            raise ConfigError(f'init.text_rows "{self.text_rows}" has no effect without init.resize_text; set both')
        if self.optimizer and (self.resize_text or self.resize_image or self.keep_initial or self.surgery):
            raise ConfigError(
                "init.optimizer resumes another run, so all of its leaves are taken unchanged; leave out resize_text, "
                "resize_image, keep_initial and surgery, or start at step 0 without init.optimizer"
            )
        check_operations(self.surgery)


def abstract_model(config: CLIPConfig, init: InitConfig | None) -> CLIP:
    """Shapes and dtypes of the model that a run trains: that of ``config``, with the factors that ``Lora`` adds.

    Raises:
        ConfigError: the targets of ``Lora`` are no weights of the model.
    """
    model, factors = abstract_clip(config), None if init is None else lora_of(init.surgery)
    if factors is None:
        return model

    def add(model: CLIP) -> CLIP:
        return lora(model, rank=factors.rank, alpha=factors.alpha, targets=factors.targets, key=jr.key(0)).model

    return jax.eval_shape(add, model)
