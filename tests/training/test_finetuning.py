"""Fine-tuning from a config: surgery on the weights to start from, and what ``trainable`` freezes."""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from support import tiny_runs
from support.leaves import as_numpy, assert_bit_equal
from support.paths import ROOT
from support.tiny_models import PIECES, tiny_clip, tiny_clip_config
from support.train_processes import assert_same_runs

from clipa_eqx.config_files import load_config
from clipa_eqx.durations import Duration
from clipa_eqx.errors import CheckpointError, ConfigError
from clipa_eqx.experiment import CheckpointConfig, operations_per_step
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.optim import trained_leaves
from clipa_eqx.planning.compiled import state_bytes
from clipa_eqx.programs.describe import describe_run
from clipa_eqx.programs.scored import load_scored
from clipa_eqx.saved.adapters import load_adapters
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.sharding import AXES, MeshConfig, describe_shardings, make_mesh, put_global_batch
from clipa_eqx.surgery import LORA_FACTORS, attach, merge
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.surgery.operations import (
    Average,
    Interpolate,
    Lora,
    PruneDepth,
    ResizePatch,
    SwapHead,
    SwapVocabulary,
)
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training.checkpoint_record import read_checkpoint_record
from clipa_eqx.training.compiled_step import lower_step
from clipa_eqx.training.frozen_leaves import frozen_leaves
from clipa_eqx.training.metrics import read_metrics
from clipa_eqx.training.replay import replay
from clipa_eqx.training.reporting import Reports
from clipa_eqx.training.run_folder import read_record
from clipa_eqx.training.shapes import model_of_record
from clipa_eqx.training.space import check_space, tree_bytes
from clipa_eqx.training.start import load_source
from clipa_eqx.training.state import TrainState
from clipa_eqx.training.stopping import Interrupted
from clipa_eqx.trees import count_params, leaves_by_path
from conversion.flax_clipa.unpack_run import unpack_run

pytestmark = pytest.mark.usefixtures("quick_compile")

LORA = Lora(rank=2, alpha=4.0, targets=("image/blocks/attn/(q|v)/weight",))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model folder to start from."""
    config = tiny_runs.run_config()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    folder = tmp_path_factory.mktemp("source") / "model"
    return save_model(folder, tiny_clip(), tokenizer=tokenizer, preprocess=config.eval_image, provenance={})


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


def test_a_lora_run_leaves_its_factors_as_adapters_of_the_source(source, tuned):
    base = load_model(source).model
    attached = attach(base, load_adapters(tuned / "adapters", base=base)).model
    assert_bit_equal(as_numpy(merge(attached).model), as_numpy(load_model(tuned / "model").model))


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


@pytest.mark.slow
def test_a_start_without_a_checkpoint_stores_the_frozen_leaves_again(source, tuned, tmp_path):
    """Its complete frozen leaves may be of other weights than those that the next start finds."""
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


def test_a_resumed_run_names_the_frozen_leaves_of_its_checkpoint(tuned, tmp_path):
    run = shutil.copytree(tuned, tmp_path / "run")
    record, state = read_checkpoint_record(run / "checkpoints/12"), mock.Mock(spec=TrainState)
    options: dict[str, Any] = {"trained": {"leaf": False}, "config": CheckpointConfig(), "about": {}}
    assert frozen_leaves(run, state, resumed=record, **options).sha256 == record.frozen
    with pytest.raises(CheckpointError, match="does not have the frozen leaves of checkpoint"):
        frozen_leaves(run, state, resumed=record._replace(frozen="other"), **options)
    assert [path.name for path in (run / "frozen_leaves").iterdir()] == ["0"]


def test_frozen_leaves_count_as_stored_once_a_checkpoint_is_there(source, tuned, tmp_path, monkeypatch):
    """A start without a checkpoint stores them again."""
    run, config = shutil.copytree(tuned, tmp_path / "run"), lora_config(source)
    _, abstract = tiny_runs.optimizer_and_state(config)
    check = partial(check_space, run, abstract, config=config.checkpoint, total_steps=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: mock.Mock(free=0))
    trained = trained_leaves(config.optim, abstract.model, trainable=config.trainable)
    with pytest.raises(CheckpointError, match=r"the next checkpoint takes \S+ \S+ and the model"):
        check(trained=trained)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"the next checkpoint takes .*, the frozen leaves \S+ \S+ and the model"):
        check(trained=trained)


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


def test_the_state_of_a_lora_run_is_not_exported_as_one_of_the_reference(tuned, tmp_path):
    with pytest.raises(CheckpointError, match=r"trains some leaves only .* export its model, .*model, once"):
        unpack_run(tuned, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_step_of_a_lora_run_is_replayed_from_its_checkpoint(source, tuned):
    options = {"devices": tiny_runs.one_device(), "compiler": tiny_runs.compile_once}
    replayed = replay(lora_config(source), tuned, 6, record=read_record(tuned), **options)
    assert replayed.start == 4
    assert replayed.is_equal


def test_only_factors_have_moments_and_norms(tuned):
    stored = read_checkpoint_record(tuned / "checkpoints" / "12").leaves
    moments = {path.split("/mu/")[1] for path in stored if "/mu/" in path}
    assert moments == {path.removeprefix("model/") for path in stored if path.startswith("model/")}
    norms = {name for name in read_metrics(tuned / "metrics.jsonl")[-1] if name.startswith("grad_norm")}
    assert norms == {"grad_norm", "grad_norm/image", "grad_norm/image/blocks"}


def test_a_plan_knows_factors_and_what_is_trained(source):
    """Also how they are split: the factor that has the axis which the weight splits is split there."""
    targets = ("image/blocks/attn/(q|out)/weight",)
    init = InitConfig(source=str(source), surgery=(Lora(rank=2, alpha=4.0, targets=targets),))
    config = lora_config(source, init=init)
    _, abstract = tiny_runs.optimizer_and_state(config)
    bytes_of = state_bytes(abstract, make_mesh(MeshConfig(), devices=tiny_runs.one_device()))
    factors = 2 * 2 * 2 * (2 * 32)
    full = count_params(abstract_clip(config.model))
    assert bytes_of.parameters == 4 * (full + factors)
    assert 2 * 4 * factors < bytes_of.optimizer < 2 * 4 * factors + 100
    assert operations_per_step(config).total < operations_per_step(dataclasses.replace(config, trainable=(".*",))).total
    splits = describe_shardings(abstract.model, AbstractMesh((1, 1, 2), AXES))
    found = {path.removeprefix("image/blocks/attn/"): spec for path, spec in splits.items() if "lora_" in path}
    assert found == {
        "q/lora_down": PartitionSpec(),
        "q/lora_up": PartitionSpec(None, "tensor", None),
        "out/lora_down": PartitionSpec(None, None, "tensor"),
        "out/lora_up": PartitionSpec(),
    }


def test_a_pattern_that_names_no_leaf_is_refused(source, tmp_path):
    config = lora_config(source, trainable=("image/hed/.*",))
    with pytest.raises(ConfigError, match=r"trainable: .image/hed/\.\*. matches no leaf"):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_config_that_describes_another_model_than_the_surgery_is_refused_with_the_field_to_set(source, tmp_path):
    surgery = (ResizePatch(patch_size=(4, 4)), PruneDepth(text=(0,)))
    config = tiny_runs.run_config(init=InitConfig(source=str(source), surgery=surgery))
    fields = r"set model\.image\.patch_size to \(4, 4\) \(it is \(8, 8\)\), model\.text\.blocks\.depth to 1 \(it is 2\)"
    with pytest.raises(CheckpointError, match=fields):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("micro_batch", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_frozen_leaves_keep_their_bits_whatever_they_are(micro_batch):
    """Also a negative zero, to which even an update of zero would be visible."""
    config = tiny_runs.run_config(trainable=("(image|text)/head/.*",), micro_batch=micro_batch)
    made = tiny_runs.placed_state(config, devices=1)
    optimizer, abstract = tiny_runs.optimizer_and_state(config)
    image = dataclasses.replace(made.state.model.image, class_token=-jnp.zeros(32))
    start = dataclasses.replace(made.state, model=dataclasses.replace(made.state.model, image=image))
    before = leaves_by_path(jax.tree.map(np.asarray, jax.tree.map(jnp.copy, start.model)))
    with jax.set_mesh(made.mesh):
        step = tiny_runs.compile_once(config, optimizer, abstract, made.mesh)
        batch = {"image": np.zeros((16, 16, 16, 3), np.uint8), "tokens": np.ones((16, 8), np.int32)}
        end, _ = step(start, put_global_batch(batch, made.mesh))
    after = leaves_by_path(jax.tree.map(np.asarray, end.model))
    changed = [path for path, leaf in before.items() if leaf.tobytes() != after[path].tobytes()]
    assert changed == ["image/head/weight", "text/head/weight"]


@pytest.mark.slow
def test_a_step_that_trains_the_heads_needs_less_memory_and_fewer_operations():
    """The gradient of a frozen leaf is nowhere: neither computed, nor an array of zeros."""
    needed, counted = {}, {}
    for trainable in (None, ("(image|text)/head/.*",)):
        config = tiny_runs.run_config(trainable=trainable, model=tiny_clip_config(blocks={"width": 256, "depth": 4}))
        optimizer, abstract = tiny_runs.optimizer_and_state(config)
        mesh = make_mesh(MeshConfig(), devices=tiny_runs.one_device())
        with jax.set_mesh(mesh):
            compiled: Any = lower_step(config, optimizer, abstract, mesh).compile()
        needed[trainable] = compiled.memory_analysis().temp_size_in_bytes
        counted[trainable] = compiled.cost_analysis()["flops"]
        model = tree_bytes(abstract.model)
    assert needed[config.trainable] < needed[None] - 0.8 * model
    assert counted[config.trainable] < 0.5 * counted[None]


@pytest.mark.slow
def test_models_are_mixed_and_vocabularies_swapped_when_a_run_starts(source, tuned, tmp_path, caplog):
    write_vocab((*PIECES[:30], "new", *PIECES[30:63]), tmp_path / "vocab.txt")
    base = tiny_runs.run_config(duration=Duration(steps=1), checkpoint=CheckpointConfig(every_steps=1))
    surgery = (
        Interpolate(source=str(tuned), alpha=0.5),
        Average(sources=(str(source), str(tuned / "model"))),
        SwapVocabulary(rows=64),
        SwapHead(embed=16),
    )
    data = dataclasses.replace(base.data, vocab=str(tmp_path / "vocab.txt"))
    config = dataclasses.replace(base, data=data, init=InitConfig(source=str(source), surgery=surgery))
    with caplog.at_level("INFO"):
        tiny_runs.train_on_one_device(config, tmp_path / "run")
    [line] = [record.getMessage() for record in caplog.records if record.getMessage().startswith("initialized from")]
    for change in ("0.5 of the way", "average of 3 models", "rows of 63 shared pieces kept", "head/weight: random"):
        assert change in line
    unswapped = dataclasses.replace(config, init=InitConfig(source=str(source), surgery=surgery[:2]))
    with pytest.raises(CheckpointError, match=r"another vocabulary.* SwapVocabulary\(\) in init.surgery"):
        tiny_runs.train_on_one_device(unswapped, tmp_path / "unswapped")
    missing = InitConfig(source=str(source), surgery=(Interpolate(source=str(tmp_path / "no"), alpha=0.5),))
    with pytest.raises(CheckpointError, match="does not exist"):
        tiny_runs.train_on_one_device(dataclasses.replace(base, init=missing), tmp_path / "missing")
    assert not (tmp_path / "missing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart_lora", "quickstart_heads"])
def test_the_example_configs_train_on_other_sizes_of_the_mesh(name, source, tmp_path):
    """The configs of the page, with the tiny model and its data; factors are split over the tensor axis."""
    shown = load_config(ROOT / "configs" / f"{name}.py")
    init = dataclasses.replace(shown.init, source=str(source))
    fields = {"init": init, "trainable": shown.trainable, "duration": Duration(steps=4)}
    one = tiny_runs.drive(tiny_runs.run_config(**fields), devices=1, steps=2)
    mesh = MeshConfig(data=1, fsdp=2, tensor=2)
    four = tiny_runs.drive(tiny_runs.run_config(**fields, mesh=mesh), devices=4, steps=2)
    np.testing.assert_allclose(four.losses, one.losses, rtol=1e-5)
    whole, split = (leaves_by_path(jax.tree.map(np.asarray, made.state.model)) for made in (one, four))
    for path, leaf in whole.items():
        np.testing.assert_allclose(split[path], leaf, rtol=2e-3, atol=2e-5, err_msg=path)
