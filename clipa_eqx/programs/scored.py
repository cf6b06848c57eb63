"""Load a model to score, from a model folder or from a run's last checkpoint, with everything that belongs to it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from clipa_eqx.agreement import check_same_everywhere, refused_together
from clipa_eqx.buckets.mirror import bucket_of, named, shown
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.verification import hash_file
from clipa_eqx.evals.prompts import PromptReduction, prompt_reduction
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.json_config import from_json
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.by_name import local_model
from clipa_eqx.saved.kinds import CONFIG_FILE, MODEL_NAME, WEIGHTS_FILE, expect_kind, kind_of
from clipa_eqx.saved.leaf_hashes import array_hashes, recorded_hashes
from clipa_eqx.saved.model import load_model
from clipa_eqx.sharding import shardings_for
from clipa_eqx.surgery.init_config import abstract_model
from clipa_eqx.surgery.low_rank import merged
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.restoring import read_newest
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.trees import leaves_by_path


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A model on its mesh, with what is needed to score it.

    Attributes:
        preprocess: how images are prepared.
        text_reduction: how prompts are cut: as captions were in training.
        identity: what names the model in a result (JSON): kind, path, a hash of all leaves, which is the same in a run
            and in a model folder, and a hash of the file of weights or of the run.
    """

    model: CLIP
    tokenizer: Tokenizer
    preprocess: EvalImageConfig
    text_reduction: PromptReduction
    identity: Mapping[str, str | int]


def load_scored(folder: Path, mesh: Mesh) -> Scored:
    """The model of a model folder, or of a run folder: its final model if training has ended, else its last checkpoint.

    All processes must call it together.

    Raises:
        CheckpointError: the folder is neither, it is damaged, or the run has no committed checkpoint yet.
        ConfigError: the processes found different models, or another process found none.
    """
    with named(folder):
        return _load_scored(local_model(folder), mesh)


def _load_scored(folder: Path, mesh: Mesh) -> Scored:
    with refused_together("read the model"):
        is_model = expect_kind(folder, "run folder", "model folder") == "model folder"
        is_ended = not is_model and kind_of(folder / MODEL_NAME) == "model folder"
    check_same_everywhere(f"{is_model} {is_ended}", what=f"folders as {folder}")
    if is_model or is_ended:
        return _load_model_folder(folder if is_model else folder / MODEL_NAME, mesh)
    return _load_checkpoint(folder, mesh)


def _load_model_folder(folder: Path, mesh: Mesh) -> Scored:
    with refused_together("read the model"):
        loaded = load_model(folder)
        sha256 = hash_file(folder / WEIGHTS_FILE)
        leaves = _hash_leaves(loaded.model, recorded_hashes(loaded.provenance, of_optimizer=False))
    check_same_everywhere(f"{sha256} {leaves}", what=f"weights in {folder}")
    return Scored(
        model=jax.device_put(loaded.model, shardings_for(loaded.model, mesh)),
        tokenizer=loaded.tokenizer.tokenizer,
        preprocess=loaded.preprocess.config,
        text_reduction=prompt_reduction(loaded.provenance.text_reduction),
        identity={"kind": "model folder", "path": _shown(folder), "sha256": sha256, "leaves_sha256": leaves},
    )


def _load_checkpoint(folder: Path, mesh: Mesh) -> Scored:
    with refused_together("read the model"):
        record = read_record(folder)
        config = from_json(ExperimentConfig, record["config"], where=str(folder / CONFIG_FILE))
        tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    check_same_everywhere(digest, what=f"runs in {folder}")
    # Not training.start.load_source: the result names the step, and a live run may commit another one meanwhile.
    abstract = abstract_model(config.model, config.init)
    step, model = read_newest(folder, lambda found, step: found.restore_model(abstract, mesh, step=step))
    model = merged(model)
    return Scored(
        model=model,
        tokenizer=tokenizer,
        preprocess=config.eval_image,
        text_reduction=prompt_reduction(config.data.text_reduction),
        identity={
            "kind": "checkpoint",
            "path": _shown(folder),
            "step": step,
            "run_sha256": digest,
            "leaves_sha256": _hash_leaves(model, None),
        },
    )


def _shown(folder: Path) -> str:
    """A folder as a result names it; the model folder of a run in a bucket too."""
    is_of_run = bucket_of(folder.parent) is not None
    return f"{shown(folder.parent)}/{folder.name}" if is_of_run else shown(folder)


def _hash_leaves(model: CLIP, recorded: Mapping[str, str] | None) -> str:
    """One SHA-256 over those of all leaves by path; recorded ones were compared when the model was loaded."""
    hashes = recorded or array_hashes({path: np.asarray(leaf) for path, leaf in leaves_by_path(model).items()})
    return hashlib.sha256(json.dumps(dict(sorted(hashes.items()))).encode()).hexdigest()
