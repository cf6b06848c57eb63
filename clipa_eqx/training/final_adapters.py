"""The adapters folder of a LoRA run, written at its end next to the model."""

import logging
from pathlib import Path

from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.optim import trained_leaves
from clipa_eqx.saved.adapters import save_adapters
from clipa_eqx.saved.kinds import ADAPTERS_NAME
from clipa_eqx.saved.provenance import Provenance
from clipa_eqx.surgery.low_rank import detach, is_factor
from clipa_eqx.trees import leaves_by_path

_log = logging.getLogger(__name__)


def save_final_adapters(config: ExperimentConfig, workdir: Path, model: CLIP, *, provenance: Provenance) -> None:
    """Write the factors of a model alone, if it has some and nothing else was trained.

    Factors belong to the weights next to them. If those were trained too, only the merged model has them.

    Raises:
        CheckpointError: the factors are not finite, or the folder holds something else.
    """
    trained = leaves_by_path(trained_leaves(config.optim, model, trainable=config.trainable))
    if not any(is_factor(path) for path in trained):
        return
    others = [path for path, is_trained in trained.items() if is_trained and not is_factor(path)]
    if others:
        _log.info("no adapters are written, because other leaves than factors were trained, such as %s", others[0])
        return
    base, adapters = detach(model)
    folder = workdir / ADAPTERS_NAME
    save_adapters(folder, adapters, base=base, provenance=provenance, overwrite=True)
    _log.info("adapters written to %s", folder)
