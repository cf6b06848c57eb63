"""The first state of a run: random weights, or the weights of another run or of a model folder."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from clipa_eqx.buckets.mirror import named
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.models.clip import CLIP, abstract_clip
from clipa_eqx.saved.by_name import local_model
from clipa_eqx.saved.kinds import expect_kind
from clipa_eqx.saved.leaf_file import LeafReader
from clipa_eqx.saved.leaf_shapes import check_leaves
from clipa_eqx.saved.model import load_model
from clipa_eqx.saved.model_folder import open_model_folder
from clipa_eqx.sharding import sampling_shardings_for, shardings_for
from clipa_eqx.surgery.adoption import adopt
from clipa_eqx.surgery.configuration import reshaping_changes
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.low_rank import merged
from clipa_eqx.surgery.operations import Materials, SwapVocabulary, apply_operations, report_lines, without_lora
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.imported_optimizer import check_optimizer, continued_state
from clipa_eqx.training.restoring import read_newest
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.shapes import averaged_leaves, model_of_record
from clipa_eqx.training.state import TrainState, replace_average, start_average, start_state

_log = logging.getLogger(__name__)

# Each step folds its number into the seed's key, and no step reaches these numbers.
_INIT_STREAM, _SURGERY_STREAM = 2**32 - 1, 2**32 - 2


def initial_key(seed: int) -> PRNGKeyArray:
    """The key of the initial weights, which no step of the run has (``step.step_key``)."""
    return jr.fold_in(jr.key(seed), _INIT_STREAM)


def first_state(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    *,
    abstract: TrainState,
    mesh: Mesh,
    vocab_sha256: str,
) -> TrainState:
    """The first state of a run, placed on ``mesh``: that of step 0, or with ``init.optimizer`` a later one.

    Random weights are bit-equal on every mesh of one kind of device.

    Raises:
        CheckpointError: the source of ``config.init`` is missing or damaged, or differs from ``config.model`` in a way
            that no surgery is named for; with ``init.optimizer``, it has no optimizer state, or that of another
            optimizer.
    """
    plain = replace_average(abstract, None)
    state = _first_state(config, optimizer, abstract=plain, mesh=mesh, vocab_sha256=vocab_sha256)
    return start_average(state, averaged_leaves(config), mesh)


def _first_state(
    config: ExperimentConfig,
    optimizer: optax.GradientTransformation,
    *,
    abstract: TrainState,
    mesh: Mesh,
    vocab_sha256: str,
) -> TrainState:
    """``first_state`` without an average."""
    key = initial_key(config.seed)
    shardings, plain = shardings_for(abstract, mesh), abstract_clip(config.model)
    sampling = sampling_shardings_for(plain, mesh)

    def sample(key: PRNGKeyArray) -> CLIP:
        return jax.lax.with_sharding_constraint(CLIP.init(config.model, key=key), sampling)

    if config.init is None:
        return jax.jit(lambda key: start_state(sample(key), optimizer), out_shardings=shardings)(key)
    fresh = jax.jit(sample, out_shardings=shardings_for(plain, mesh))(key)
    verify = config.checkpoint.checksums

    def load(init: InitConfig) -> Source:
        return load_source(init, mesh, verify=verify)

    source = load(config.init)
    _check_vocabulary(config.init, source.vocab_sha256, vocab_sha256)
    materials = _materials(config, source, load, vocab_sha256=vocab_sha256)
    model, changes = started_model(source.model, config, config.init, materials, fresh=fresh)
    _log.info("initialized from %s: %s", config.init.source, "; ".join(changes) or "nothing changed")
    if config.init.optimizer:
        folder = local_model(config.init.source)
        return continued_state(model, folder, config.optim, abstract=abstract, mesh=mesh, verify=verify)
    model = jax.device_put(model, shardings.model)
    return jax.jit(lambda model: start_state(model, optimizer), out_shardings=shardings)(model)


def check_init(config: ExperimentConfig, abstract: TrainState, *, vocab_sha256: str, total_steps: int) -> None:
    """Check that ``first_state`` will find what it needs, from descriptions and shapes: no weights are read.

    Raises:
        CheckpointError: as for ``first_state``, except for damaged values.
        ConfigError: with ``init.optimizer``, the source is already at the end of the run.
    """
    init = config.init
    if init is None:
        return
    described = describe_source(init)
    _check_vocabulary(init, described.vocab_sha256, vocab_sha256)

    def other(init: InitConfig) -> Source:
        # Of zeros, because it is mixed while shapes are traced; no array is made there.
        found = describe_source(init)
        return found._replace(model=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), found.model))

    materials = _materials(config, described, other, vocab_sha256=vocab_sha256)
    fresh = abstract_clip(config.model)
    jax.eval_shape(lambda a, b: started_model(a, config, init, materials, fresh=b)[0], described.model, fresh)
    if init.optimizer:
        step = check_optimizer(local_model(init.source), config.model, config.optim, abstract=abstract)
        if step >= total_steps:
            raise ConfigError(
                f"init.source {init.source} is at step {step}, the run is over after {total_steps}; give a longer "
                "duration"
            )


def started_model(
    source: CLIP, config: ExperimentConfig, init: InitConfig, materials: Materials, *, fresh: CLIP
) -> tuple[CLIP, tuple[str, ...]]:
    """The model of step 0 and its changes in words: surgery, then ``adopt``, then the factors of ``Lora``.

    Raises:
        CheckpointError: the result is another model than that of the config; the message names the fields to set.
        ConfigError: an operation that the model does not allow.
    """
    plain = without_lora(init.surgery)
    key = jr.fold_in(jr.key(config.seed), _SURGERY_STREAM)
    model, reports = apply_operations(source, plain, materials, key=key)
    try:
        model, adopted = adopt(
            model,
            config.model,
            fresh=fresh,
            resize_text=init.resize_text,
            text_rows=init.text_rows,
            resize_image=init.resize_image,
            keep_initial=init.keep_initial,
        )
    except CheckpointError as error:
        fields = reshaping_changes(model.config, config.model) if init.surgery else []
        if not fields:
            raise
        raise CheckpointError(
            "init.surgery makes another model than the config describes; change init.surgery, or set "
            + ", ".join(f"model.{name} to {made!r} (it is {given!r})" for name, made, given in fields)
        ) from error
    model, factors = apply_operations(model, init.surgery[len(plain) :], materials, key=key, first=len(plain))
    return model, tuple(report_lines((*reports, adopted, *factors)))


def _materials(
    config: ExperimentConfig, source: "Source", load: Callable[[InitConfig], "Source"], *, vocab_sha256: str
) -> Materials:
    """The needs of the surgery of a run; ``load`` gives the other models that it mixes in."""

    init = config.init
    swaps = init is not None and any(isinstance(one, SwapVocabulary) for one in init.surgery)

    def other(folder: str, is_swapped: bool) -> CLIP:
        found = load(InitConfig(source=folder))
        if swaps:
            accepted = {vocab_sha256 if is_swapped else source.vocab_sha256}
        else:  # they differ only where keep_initial takes the token table, so that none is used
            accepted = {source.vocab_sha256, vocab_sha256}
        if found.vocab_sha256 not in accepted:
            wanted = "data.vocab" if is_swapped else f"that of {init and init.source}"
            place = f", {'before' if is_swapped else 'or after'} SwapVocabulary()" if swaps else ""
            raise ConfigError(
                f"{folder} was trained with another vocabulary than {wanted}, which orders the token table otherwise; "
                f"mix in a model of that vocabulary{place}"
            )
        return found.model

    def pieces() -> tuple[Sequence[str], Sequence[str]]:
        new = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
        return source.tokenizer().pieces, new.pieces

    return Materials(load=other, pieces=pieces)


def _check_vocabulary(init: InitConfig, found: str, wanted: str) -> None:
    is_swapped = any(isinstance(one, SwapVocabulary) for one in init.surgery)
    is_new = is_swapped or any(re.fullmatch(pattern, "text/token/weight") for pattern in init.keep_initial)
    if found != wanted and not is_new:
        raise CheckpointError(
            f"init.source {init.source} was trained with another vocabulary, which orders the token table "
            "otherwise; give its vocabulary as data.vocab, keep the rows of shared pieces with SwapVocabulary() in "
            "init.surgery, or add 'text/token/weight' to init.keep_initial"
        )


class Source(NamedTuple):
    """Weights to start from, a plain model: factors of a LoRA run are merged.

    Attributes:
        vocab_sha256: hash of the vocabulary of its token table.
        tokenizer: reads its tokenizer.
    """

    model: CLIP
    vocab_sha256: str
    tokenizer: Callable[[], Tokenizer]


def describe_source(init: InitConfig) -> Source:
    """The model to start from as shapes and dtypes; its leaves have been compared with its config.

    Raises:
        CheckpointError: there is no such model, or its folder is damaged.
    """
    with named(init.source):
        return _describe(local_model(init.source))


def _describe(source: Path) -> Source:
    if expect_kind(source, "run folder", "model folder", where="init.source") == "model folder":
        opened = open_model_folder(source)
        with LeafReader(opened.weights) as file:
            check_leaves(file.leaves, opened.config, where=str(opened.weights))
        return Source(abstract_clip(opened.config), opened.tokenizer.vocab_sha256, lambda: opened.tokenizer)
    record = read_record(source)
    read_newest(source, lambda checkpoints, step: checkpoints.record(step), what="init.source")
    return _source_of_run(source, record, jax.eval_shape(merged, model_of_record(record)))


def load_source(init: InitConfig, mesh: Mesh, *, verify: bool = True) -> Source:
    """The model of a run folder's newest valid checkpoint, or of a model folder."""
    with named(init.source):
        return _load(local_model(init.source), mesh, verify=verify)


def _load(source: Path, mesh: Mesh, *, verify: bool) -> Source:
    if expect_kind(source, "run folder", "model folder", where="init.source") == "model folder":
        loaded = load_model(source, verify=verify)
        tokenizer = loaded.tokenizer.tokenizer
        return Source(loaded.model, tokenizer.vocab_sha256, lambda: tokenizer)
    record = read_record(source)
    abstract = model_of_record(record)
    _, model = read_newest(
        source, lambda found, step: found.restore_model(abstract, mesh, step=step), what="init.source", verify=verify
    )
    return _source_of_run(source, record, merged(model))


def _source_of_run(run: Path, record: Mapping[str, Any], model: CLIP) -> Source:
    def tokenizer() -> Tokenizer:
        vocab = record["config"]["data"]["vocab"]
        found = load_tokenizer(vocab, model_vocab=model.config.text.vocab)
        if found.vocab_sha256 != record["vocab_sha256"]:
            raise CheckpointError(f"init.source {run}: {vocab} is no longer the vocabulary that the run trained with")
        return found

    return Source(model, record["vocab_sha256"], tokenizer)
