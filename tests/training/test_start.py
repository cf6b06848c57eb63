"""Where a run starts: whose token table it may take, and that initial weights have draws of their own."""

import dataclasses

import jax
import jax.random as jr
import pytest
from support import tiny_runs

from clipa_eqx.errors import CheckpointError
from clipa_eqx.experiment import InitConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.model import save_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.training.inputs import load_tokenizer
from clipa_eqx.training.start import _INIT_STREAM, first_state
from clipa_eqx.training.step import step_key


def test_weights_of_another_vocabulary_are_refused(tmp_path):
    config = tiny_runs.run_config()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    model = CLIP.init(config.model, key=jr.key(0))
    save_model(tmp_path / "model", model, tokenizer=tokenizer, preprocess=config.eval_image, provenance={})
    config = dataclasses.replace(config, init=InitConfig(source=str(tmp_path / "model")))
    optimizer, abstract = tiny_runs.optimizer_and_state(config)
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    with jax.set_mesh(mesh), pytest.raises(CheckpointError, match="another vocabulary"):
        first_state(config, optimizer, abstract=abstract, mesh=mesh, vocab_sha256="0" * 64)


def test_no_step_draws_from_the_key_of_the_initial_weights():
    initial = jr.key_data(jr.fold_in(jr.key(0), _INIT_STREAM))
    steps = [jr.key_data(step_key(0, step)) for step in (0, 1, 0x1217, 2**31 - 1)]
    assert not any((initial == step).all() for step in steps)
