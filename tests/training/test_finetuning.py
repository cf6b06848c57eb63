"""Fine-tuning from a config: surgery on the weights to start from, and what ``trainable`` freezes."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from support import tiny_runs
from support.leaves import as_numpy, assert_bit_equal
from support.train_processes import assert_same_runs

from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.models.clip import CLIP
from clipa_eqx.programs.describe import describe_run
from clipa_eqx.programs.scored import load_scored
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.sharding import MeshConfig, make_mesh, put_global_batch
from clipa_eqx.surgery import LORA_FACTORS
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import Lora, PruneDepth, ResizePatch
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.training.checkpoint_record import read_checkpoint_record
from clipa_eqx.training.replay import replay
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.shapes import model_of_record
from clipa_eqx.training.start import load_source
from clipa_eqx.training.stopping import Interrupted
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


def test_frozen_leaves_are_stored_once_and_checkpoints_have_the_trained_ones(tuned):
    assert sorted(path.name for path in (tuned / "checkpoints").iterdir()) == ["12", "4", "8"]
    assert [path.name for path in (tuned / "frozen_leaves").iterdir()] == ["0"]
    frozen, last = (read_checkpoint_record(tuned / name) for name in ("frozen_leaves/0", "checkpoints/12"))
    models = [{path for path in record.leaves if path.startswith("model/")} for record in (frozen, last)]
    assert not models[0] & models[1]
    assert models[0] | models[1] == {f"model/{path}" for path in leaves_by_path(model_of_record(read_record(tuned)))}
    assert all(path.rsplit("/", 1)[1] in ("lora_down", "lora_up") for path in models[1])
    assert frozen.checksums is not None


def test_an_interrupted_fine_tune_resumes_bit_by_bit(source, tuned, tmp_path):
    finish = Reports.finish

    def stop_after_step_6(self, numbers, **rest):
        finish(self, numbers, **rest)
        if numbers.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Reports, "finish", stop_after_step_6), pytest.raises(Interrupted, match="after step 7"):
        tiny_runs.train_on_one_device(lora_config(source), tmp_path / "run")
    tiny_runs.train_on_one_device(lora_config(source), tmp_path / "run")
    assert_same_runs(tmp_path / "run", tuned, steps=12)
    assert [path.name for path in (tmp_path / "run" / "frozen_leaves").iterdir()] == ["0"]


def test_a_start_without_a_checkpoint_stores_the_frozen_leaves_again(source, tuned, tmp_path):
    """Of an interrupted start, only complete frozen leaves are left; the weights to start from may be others now."""
    run = shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "frozen_leaves" / "1.orbax-checkpoint-tmp").mkdir()
    tiny_runs.train_on_one_device(lora_config(source), run)
    assert [path.name for path in (run / "frozen_leaves").iterdir()] == ["1"]


@pytest.mark.parametrize("damage", ["a flipped bit", "no files", "those of another run"])
def test_damaged_frozen_leaves_are_reported_and_never_used(source, tuned, tmp_path, damage):
    run = shutil.copytree(tuned, tmp_path / "run")
    frozen = run / "frozen_leaves" / "0"
    if damage == "a flipped bit":
        file = max(frozen.rglob("d/*"), key=lambda one: one.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif damage == "no files":
        shutil.rmtree(frozen)
    else:
        record = frozen / "record" / "metadata"
        about = json.loads(record.read_text()) | {"about": {}}
        del about["sha256"]
        about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        record.write_text(json.dumps(about))
    shutil.rmtree(run / "model")
    message = r"(?s)all checkpoints .* its frozen leaves in .*frozen_leaves cannot be used"
    with pytest.raises(CheckpointError, match=message):
        tiny_runs.train_on_one_device(lora_config(source), run)
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    with pytest.raises(CheckpointError, match="its frozen leaves"):
        load_scored(run, mesh)


def test_a_run_folder_of_a_lora_run_is_read_as_its_plain_model(tuned, tmp_path):
    mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
    ended = load_scored(tuned, mesh)
    run = shutil.copytree(tuned, tmp_path / "run")
    shutil.rmtree(run / "model")
    from_checkpoint = load_scored(run, mesh)
    assert from_checkpoint.identity["leaves_sha256"] == ended.identity["leaves_sha256"]
    loaded = load_source(InitConfig(source=str(run)), mesh).model
    assert_bit_equal(as_numpy(loaded), as_numpy(ended.model))
    lines = list(describe_run(run, None))
    assert any(line.startswith("image/blocks/attn/q/lora_down") and line.endswith("trained") for line in lines)
    assert "parameters, trained: 512" in lines


def test_a_step_of_a_lora_run_is_replayed_from_its_checkpoint(source, tuned):
    options = {"devices": tiny_runs.one_device(), "compiler": tiny_runs.compile_once}
    replayed = replay(lora_config(source), tuned, 6, record=read_record(tuned), **options)
    assert replayed.start == 4
    assert replayed.is_equal


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
