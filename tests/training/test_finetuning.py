"""Fine-tuning from a config: surgery on the weights to start from, and what ``trainable`` freezes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support import tiny_runs

from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.sharding import put_global_batch
from clipa_eqx.surgery import LORA_FACTORS
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import Lora, PruneDepth, ResizePatch
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.trees import leaves_by_path

pytestmark = pytest.mark.usefixtures("quick_compile")

LORA = Lora(rank=2, alpha=4.0, targets=("image/blocks/attn/(q|v)/weight",))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model folder to start from."""
    config = tiny_runs.run_config()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    folder = tmp_path_factory.mktemp("source") / "model"
    model = CLIP.init(config.model, key=jr.key(5))
    return save_model(folder, model, tokenizer=tokenizer, preprocess=config.eval_image, provenance={})


def lora_config(source, **fields):
    init = InitConfig(source=str(source), surgery=(LORA,))
    return tiny_runs.run_config(**{"init": init, "trainable": (LORA_FACTORS,), **fields})


@pytest.fixture(scope="module")
def tuned(source, tmp_path_factory):
    """The run folder of a LoRA fine-tune that has ended."""
    run = tmp_path_factory.mktemp("tuned") / "run"
    tiny_runs.train_on_one_device(lora_config(source), run)
    return run


def test_a_lora_run_ends_with_a_plain_model_in_which_only_the_targets_have_changed(source, tuned):
    before, after = (leaves_by_path(load_model(folder).model) for folder in (source, tuned / "model"))
    assert before.keys() == after.keys()
    changed = [path for path in before if not np.array_equal(before[path], after[path])]
    assert changed == ["image/blocks/attn/q/weight", "image/blocks/attn/v/weight"]


def test_only_factors_have_moments_and_norms(source):
    config = lora_config(source)
    made = tiny_runs.drive(config, devices=1, steps=2)
    moments = {path.split("/mu/")[-1] for path in leaves_by_path(made.abstract.opt_state) if "/mu/" in path}
    factors = {path for path in leaves_by_path(made.state.model) if path.rsplit("/", 1)[-1].startswith("lora_")}
    assert moments == factors
    assert len(factors) == 4
    norms = {name for name in made.metrics[-1] if name.startswith("grad_norm")}
    assert norms == {"grad_norm", "grad_norm/image", "grad_norm/image/blocks"}


def test_a_pattern_that_names_no_leaf_is_refused(source, tmp_path):
    config = lora_config(source, trainable=("image/hed/.*",))
    with pytest.raises(ConfigError, match=r"trainable: .image/hed/\.\*. decides no leaf"):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_that_describes_another_model_than_the_surgery_is_refused_with_the_field_to_set(source, tmp_path):
    surgery = (ResizePatch(patch_size=(4, 4)), PruneDepth(text=(0,)))
    config = tiny_runs.run_config(init=InitConfig(source=str(source), surgery=surgery))
    fields = r"set model\.image\.patch_size to \(4, 4\) \(it is \(8, 8\)\), model\.text\.blocks\.depth to 1 \(it is 2\)"
    with pytest.raises(CheckpointError, match=fields):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_frozen_leaves_keep_their_bits_and_have_no_gradient():
    """Also a negative zero, to which even an update of zero would be visible; with micro-batches or without."""
    heads = tiny_runs.run_config(trainable=("(image|text)/head/.*",))
    operations = {}
    for config in (heads, dataclasses.replace(heads, micro_batch=8), dataclasses.replace(heads, trainable=None)):
        made = tiny_runs.placed_state(config, devices=1)
        optimizer, abstract = tiny_runs.optimizer_and_state(config)
        image = dataclasses.replace(made.state.model.image, class_token=-jnp.zeros(32))
        start = dataclasses.replace(made.state, model=dataclasses.replace(made.state.model, image=image))
        before = jax.tree.map(np.asarray, jax.tree.map(jnp.copy, start.model))
        with jax.set_mesh(made.mesh):
            step: Any = tiny_runs.compile_once(config, optimizer, abstract, made.mesh)
            batch = {"image": np.zeros((16, 16, 16, 3), np.uint8), "tokens": np.ones((16, 8), np.int32)}
            end, _ = step(start, put_global_batch(batch, made.mesh))
        operations[config.trainable, config.micro_batch] = step.cost_analysis()["flops"]
        if config.trainable is None:
            continue
        after = leaves_by_path(jax.tree.map(np.asarray, end.model))
        changed = [path for path, leaf in leaves_by_path(before).items() if leaf.tobytes() != after[path].tobytes()]
        assert changed == ["image/head/weight", "text/head/weight"]
    # A full step computes two gradients per product of the towers.
    assert operations[heads.trainable, None] < 0.5 * operations[None, None]
    assert operations[heads.trainable, 8] < operations[None, None]
