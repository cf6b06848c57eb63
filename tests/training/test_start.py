"""The first state of a run: token tables of another vocabulary are refused, initial weights share no random key."""

import dataclasses

import jax
import jax.random as jr
import pytest
from support import tiny_runs

from clipa_eqx.errors import CheckpointError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.model import save_model
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.start import first_state, initial_key
from clipa_eqx.training.step import step_key

pytestmark = pytest.mark.usefixtures("quick_compile")


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


def test_no_step_has_the_key_of_the_initial_weights():
    """Step 4631 once had it: the number that set the initial weights apart was one that runs reach."""
    initial = jr.key_data(initial_key(0))
    last = 2**31 - 1  # the counter of steps is an int32
    steps = [jr.key_data(step_key(0, step)) for step in (0, 1, 4631, last)]
    assert not any((initial == step).all() for step in steps)
