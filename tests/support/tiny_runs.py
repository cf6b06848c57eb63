"""Runs that train in seconds: records, a vocabulary, configs, and a run step by step on any mesh."""

import atexit
import contextlib
import dataclasses
import functools
import io
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np
from PIL import Image

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.durations import Duration
from clipa_eqx.experiment import CheckpointConfig, DataConfig, DataSource, ExperimentConfig
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIPConfig, abstract_clip
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.optim import OptimConfig, make_optimizer
from clipa_eqx.schedules import Cosine
from clipa_eqx.sharding import make_mesh, put_global_batch, shardings_for
from clipa_eqx.tokenizer.vocabulary import SPECIAL, write_vocab
from clipa_eqx.training import loop
from clipa_eqx.training.inputs import load_tokenizer, open_sources, train_batches
from clipa_eqx.training.start import first_state
from clipa_eqx.training.state import TrainState, abstract_state
from clipa_eqx.training.step import make_train_step

SIZE, LENGTH, VOCAB = (16, 16), 8, 64
WORDS = tuple(f"w{i}" for i in range(VOCAB - len(SPECIAL)))
RECORDS = 200  # Grain's shuffle takes milliseconds a sample below a few dozen records
STOCHASTIC = {"image": {"mask_ratio": 0.5}, "blocks": {"dropout": 0.1, "drop_path": 0.2}}
"""Everything random that a model has."""


class Driven(NamedTuple):
    """What ``drive`` saw: one entry per step, and the state at the end."""

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
    write_vocab((*SPECIAL, *WORDS), root / "vocab.txt")
    return root


def make_records(count):
    rng = np.random.default_rng(0)
    for i in range(count):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(file, "png")
        words = (WORDS[i % len(WORDS)], WORDS[(7 * i + 3) % len(WORDS)])
        yield Record(key=str(i), image=file.getvalue(), captions=(" ".join(words),))


def model_config(*, image=None, text=None, blocks=None) -> CLIPConfig:
    """Width 32, depth 2, 16 pixels, 8 tokens; the arguments replace fields of the towers, or of both towers' blocks."""
    both = BlockConfig(**{"width": 32, "depth": 2, "mlp_dim": 64, "heads": 2, **(blocks or {})})
    vision = VisionConfig(blocks=both, image_size=SIZE, patch_size=(8, 8), embed=16)
    words = TextConfig(blocks=both, length=LENGTH, vocab=VOCAB, embed=16)
    return CLIPConfig(
        image=dataclasses.replace(vision, **(image or {})), text=dataclasses.replace(words, **(text or {}))
    )


def run_config(**fields) -> ExperimentConfig:
    """A run of 12 steps of 16 pairs, logged at each step, with a checkpoint each 4."""
    chosen = {
        "model": model_config(),
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


@contextlib.contextmanager
def shared_compile():
    """Within, ``train`` compiles the step of a config once per session, whatever the work folder."""
    original = loop._compile

    def compile_once(config, optimizer, abstract, mesh):
        key = (config.model, config.optim, config.batch_size, config.duration, config.seed, config.precision, mesh)
        if key not in _COMPILED:
            _COMPILED[key] = original(config, optimizer, abstract, mesh)
        return _COMPILED[key]

    with mock.patch.object(loop, "_compile", compile_once):
        yield


_COMPILED = {}


def forget_compiled():
    """The next ``train`` compiles, and traces, anew."""
    _COMPILED.clear()


def train_on_one_device(config: ExperimentConfig, workdir: Path) -> loop.TrainResult:
    """``train`` as on a machine with a single device, which compiles fastest; equal steps are compiled once."""
    one_device = functools.partial(make_mesh, devices=jax.devices()[:1])
    with shared_compile(), mock.patch.object(loop, "make_mesh", one_device):
        return loop.train(config, workdir)


def drive(config: ExperimentConfig, *, devices: int, steps: int) -> Driven:
    """The first steps of a run on some of the devices, without work folder, log and checkpoints."""
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    source = open_sources(config)
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    optimizer = make_optimizer(config.optim, abstract_clip(config.model), total_steps=config.duration.steps)
    abstract = abstract_state(config.model, optimizer)
    metrics, ids = [], []
    with jax.set_mesh(mesh), train_batches(config, source, tokenizer, start_step=0) as batches:
        state = first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256="any")
        step = make_train_step(
            optimizer,
            abstract=abstract,
            mesh=mesh,
            seed=config.seed,
            precision=config.precision,
            kind=config.loss,
            max_temperature=config.optim.max_temperature,
        )
        for _ in range(steps):
            rows = next(batches)
            ids.append(rows["sample_id"].tolist())
            state, numbers = step(state, put_global_batch({name: rows[name] for name in ("image", "tokens")}, mesh))
            metrics.append({name: np.asarray(value) for name, value in numbers.items()})
    return Driven(metrics, ids, state, abstract, mesh)


def placed_state(config: ExperimentConfig, *, devices: int) -> Driven:
    """The state of step 0 with random moments, so that no two leaves are alike, placed on a mesh."""
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    optimizer = make_optimizer(config.optim, abstract_clip(config.model), total_steps=config.duration.steps)
    abstract = abstract_state(config.model, optimizer)
    leaves, structure = jax.tree.flatten(abstract)
    rng = np.random.default_rng(1)
    filled = [np.asarray(100 * rng.random(leaf.shape), leaf.dtype) for leaf in leaves]
    state = jax.device_put(jax.tree.unflatten(structure, filled), shardings_for(abstract, mesh))
    return Driven([], [], state, abstract, mesh)


def as_numpy(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_bit_equal(got, expected) -> None:
    """All leaves have the same bytes."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(as_numpy(got), as_numpy(expected), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
