"""Runs that train in seconds: records, a vocabulary, configs, and a run step by step on any mesh."""

import atexit
import functools
import io
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
import optax
from PIL import Image

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.durations import Duration, RunLength
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, ExperimentConfig
from clipa_eqx.optim import OptimConfig
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import make_mesh, put_global_batch, shardings_for
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training import loop
from clipa_eqx.training.compiled_step import Compiler, compile_step
from clipa_eqx.training.inputs import open_sources, train_batches
from clipa_eqx.training.loop import TrainResult, train
from clipa_eqx.training.shapes import optimizer_and_shapes
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.step import TrainStep
from support.tiny_models import LENGTH as LENGTH
from support.tiny_models import PIECES, SIZE, WORDS, tiny_clip_config
from support.tiny_models import VOCAB as VOCAB

RECORDS = 200  # Grain's shuffle takes milliseconds a sample below a few dozen records
STOCHASTIC = {"image": {"mask_ratio": 0.5}, "blocks": {"dropout": 0.1, "drop_path": 0.2}}
"""Everything random that a model has."""


class Driven(NamedTuple):
    """Record of ``drive``: one entry per step, and the state at the end."""

    metrics: list[dict[str, np.ndarray]]
    sample_ids: list[list[int]]
    state: TrainState
    abstract: TrainState
    mesh: jax.sharding.Mesh

    @property
    def losses(self):
        return np.array([one["loss"] for one in self.metrics])


@functools.cache
def folder() -> Path:
    """A folder with ``records`` and ``vocab.txt``, made once per session."""
    root = Path(tempfile.mkdtemp(prefix="clipa_eqx_tests_"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    write_records(make_records(RECORDS), root / "records", records_per_shard=100)
    write_vocab(PIECES, root / "vocab.txt")
    return root


def make_records(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "png")
        words = (WORDS[i % len(WORDS)], WORDS[(7 * i + 3) % len(WORDS)])
        yield Record(key=str(i), image=file.getvalue(), captions=(" ".join(words),))


def run_config(**fields) -> ExperimentConfig:
    """A run of 12 steps of 16 pairs, logged at each step, with a checkpoint each 4."""
    chosen = {
        "model": tiny_clip_config(),
        "data": DataConfig(
            sources=(DataSource(folder=str(folder() / "records")),),
            image=ImageConfig(size=SIZE),
            vocab=str(folder() / "vocab.txt"),
            stream=StreamConfig(threads=1, prefetch_batches=1),
        ),
        "optim": OptimConfig(peak_lr=1e-3, schedules=((".*", Cosine(warmup=Duration(steps=2))),)),
        "batch_size": 16,
        "duration": Duration(steps=12),
        "eval_image": EvalImageConfig(size=SIZE),
        "checkpoint": CheckpointConfig(every_steps=4),
        "log_every_steps": 1,
    }
    return ExperimentConfig(**(chosen | fields))


_COMPILED: dict = {}


def compile_once(config: ExperimentConfig, optimizer, abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainStep:
    """``compile_step`` that compiles equal steps once per session: a step depends on these parts of a config alone."""
    key = (
        *(config.model, config.optim, config.batch_size, config.duration, config.seed, config.precision),
        *(config.on_non_finite, config.loss, config.micro_batch, config.attention, config.ema, mesh),
        *(config.trainable, config.init.surgery if config.init else ()),
    )
    if key not in _COMPILED:
        _COMPILED[key] = compile_step(config, optimizer, abstract, mesh)
    return _COMPILED[key]


_FIRST: dict = {}


def first_state_once(config: ExperimentConfig, optimizer, *, abstract, mesh, vocab_sha256) -> TrainState:
    """``first_state`` that computes equal random states once per session; steps consume the copy that it returns."""
    if config.init is not None:
        return first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab_sha256)
    key = (
        *(config.model, config.optim, config.batch_size, config.duration, config.seed, config.precision, mesh),
        *(config.trainable, config.ema),
    )
    if key not in _FIRST:
        _FIRST[key] = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab_sha256)
    return jax.tree.map(lambda leaf: leaf.copy(), _FIRST[key])


def forget_compiled():
    """Forget all compiled steps, so that the next run traces and compiles its step."""
    _COMPILED.clear()


def one_device() -> list[jax.Device]:
    """The first device: a step compiles fastest for a single one."""
    return jax.devices()[:1]


def train_on_one_device(
    config: ExperimentConfig, workdir: Path, *, compiler: Compiler = compile_once, **options
) -> TrainResult:
    """``train`` as on a machine with a single device."""
    with mock.patch.object(loop, "first_state", first_state_once):
        return train(config, workdir, devices=one_device(), compiler=compiler, **options)


def drive(config: ExperimentConfig, *, devices: int, steps: int) -> Driven:
    """The first steps of a run on some of the devices, without run folder, log and checkpoints."""
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    source = open_sources(config)
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    optimizer, abstract = optimizer_and_state(config)
    metrics, ids = [], []
    with jax.set_mesh(mesh), train_batches(config, source, tokenizer, start_step=0, mesh=mesh) as batches:
        vocab = tokenizer.vocab_sha256
        state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256=vocab)
        step = compile_step(config, optimizer, abstract, mesh)
        for _ in range(steps):
            rows = next(batches)
            ids.append(rows["sample_id"].tolist())
            state, numbers = step(state, put_global_batch({name: rows[name] for name in ("image", "tokens")}, mesh))
            metrics.append({name: np.asarray(value) for name, value in numbers.items()})
    return Driven(metrics, ids, state, abstract, mesh)


def placed_state(config: ExperimentConfig, *, devices: int) -> Driven:
    """The state of step 0 with random moments, so that no two leaves are alike, placed on a mesh."""
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    _, abstract = optimizer_and_state(config)
    rng = np.random.default_rng(1)
    filled = jax.tree.map(lambda leaf: np.asarray(100 * rng.random(leaf.shape), leaf.dtype), abstract)
    return Driven([], [], jax.device_put(filled, shardings_for(abstract, mesh)), abstract, mesh)


def optimizer_and_state(config: ExperimentConfig) -> tuple[optax.GradientTransformation, TrainState]:
    """The optimizer of a run, and its state without memory."""
    return optimizer_and_shapes(config, RunLength.of(config.duration))
