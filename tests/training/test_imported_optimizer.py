"""Runs that resume from an imported optimizer state take all of it, and refuse a state of another optimizer."""

import dataclasses
import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support import tiny_runs
from support.damage import forget_hashes
from support.tiny_models import tiny_clip_config

from clipa_eqx.durations import Duration
from clipa_eqx.errors import CheckpointError, ConfigError, ConversionError
from clipa_eqx.json_config import to_json
from clipa_eqx.models.clip import abstract_clip
from clipa_eqx.optim import OptimConfig
from clipa_eqx.reference_chain import chain_shape
from clipa_eqx.saved.description import OPTIMIZER_FILE
from clipa_eqx.saved.optimizer_file import open_optimizer_state
from clipa_eqx.schedules import Cosine, Polynomial
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.training.imported_optimizer import check_optimizer, continued_state
from clipa_eqx.training.metrics import read_metrics
from conversion.flax_clipa.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compile")

COSINE = Cosine(warmup=Duration(steps=2))


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of 12 steps that was stopped after 6, as an official checkpoint, and its config."""
    folder = tmp_path_factory.mktemp("half")
    config = tiny_runs.run_config(
        checkpoint=dataclasses.replace(tiny_runs.run_config().checkpoint, every_steps=6, keep=9)
    )
    tiny_runs.train_on_one_device(config, folder / "whole")
    # The checkpoint of step 6 becomes the last one, as if the run had been killed then.
    shutil.copytree(folder / "whole", folder / "stopped")
    shutil.rmtree(folder / "stopped" / "checkpoints" / "12")
    main(["export", str(folder / "stopped"), str(folder / "half.npz")])
    return folder, config


def import_half(half, tmp_path):
    folder, config = half
    (tmp_path / "config.json").write_text(json.dumps(to_json(config.model)))
    named = ("--config", str(tmp_path / "config.json"), "--vocab", config.data.vocab)
    main(["import", str(folder / "half.npz"), str(tmp_path / "model"), *named])
    return tmp_path / "model"


def from_source(config, source, **fields):
    return dataclasses.replace(config, init=InitConfig(source=str(source), optimizer=True), **fields)


def test_a_run_exported_half_way_and_imported_ends_as_the_run_that_was_never_stopped(half, tmp_path):
    folder, config = half
    model = import_half(half, tmp_path)
    tiny_runs.train_on_one_device(from_source(config, model), tmp_path / "on")
    ours, whole = (read_metrics(path / "metrics.jsonl") for path in (tmp_path / "on", folder / "whole"))
    assert [line["step"] for line in ours] == list(range(7, 13))
    assert [line["loss"] for line in ours] == [line["loss"] for line in whole[6:]]
    weights = "model/model.safetensors"
    assert (tmp_path / "on" / weights).read_bytes() == (folder / "whole" / weights).read_bytes()


def test_the_exported_training_state_has_the_references_entries(half):
    folder, config = half
    with np.load(folder / "half.npz") as found:
        assert {name.split("/")[0] for name in found.files} == {"params", "opt", "chrono"}
        assert int(found["opt/1/0/0"]) == int(found["opt/4/0/0"]) == 6
        assert int(found["chrono/accum_examples_seen"]) == 6 * config.batch_size
        params = {name.removeprefix("params/") for name in found.files if name.startswith("params/")}
        for prefix in ("opt/1/0/1/", "opt/1/0/2/"):
            assert {n.removeprefix(prefix) for n in found.files if n.startswith(prefix)} == params


def test_a_run_folder_is_not_exported_where_nothing_can_be_written(half):
    folder, _ = half
    with pytest.raises(ConversionError, match="cannot be written"):
        main(["export", str(folder / "whole"), str(folder / "half.npz" / "x.npz")])
    with pytest.raises(ConversionError, match="exists already"):
        main(["export", str(folder / "whole"), str(folder / "half.npz")])


OTHERS = {
    "another dtype of moments": ({"mu_dtype": "bfloat16"}, "set optim.mu_dtype to float32"),
    "frozen leaves": ({"schedules": (("text/.*", None), (".*", COSINE))}, "unused: mu/text/"),
    "a frozen layer": (
        {"schedules": (("text/blocks/0/.*", None), (".*", COSINE))},
        "trained there, frozen here: text/blocks/attn/q/weight layer 0",
    ),
    "no decay": ({"weight_decay": 0.0}, "there were 1 pattern(s) of weight decay or learning-rate factors, here there"),
    "two schedules": ({"schedules": (("text/.*", Polynomial()), (".*", COSINE))}, "there were 1 schedule(s)"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_optimizer_is_refused_with_what_differs(what, half, tmp_path):
    changes, message = OTHERS[what]
    optim = dataclasses.replace(half[1].optim, **changes)
    with pytest.raises(CheckpointError) as caught:
        tiny_runs.train_on_one_device(from_source(half[1], import_half(half, tmp_path), optim=optim), tmp_path / "on")
    assert message in str(caught.value)
    assert "use the settings of the run that wrote it" in str(caught.value)


def test_a_source_without_optimizer_state_is_refused(half, tmp_path):
    folder, config = half
    with pytest.raises(CheckpointError, match=r"has no optimizer\.safetensors"):
        tiny_runs.train_on_one_device(from_source(config, folder / "whole" / "model"), tmp_path / "on")


def test_a_run_that_is_already_complete_is_refused(half, tmp_path):
    config = from_source(half[1], import_half(half, tmp_path), duration=Duration(steps=6))
    with pytest.raises(ConfigError, match="is at step 6, the run is over after 6"):
        tiny_runs.train_on_one_device(config, tmp_path / "on")


def test_damaged_optimizer_state_is_refused(half, tmp_path):
    model = import_half(half, tmp_path)
    file = model / OPTIMIZER_FILE
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        tiny_runs.train_on_one_device(from_source(half[1], model), tmp_path / "on")


def test_a_flipped_bit_in_the_optimizer_state_is_found_unless_checksums_are_off(half, tmp_path):
    model, config = import_half(half, tmp_path), half[1]
    file = model / OPTIMIZER_FILE
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    made = tiny_runs.placed_state(config, devices=1)
    given = {"abstract": made.abstract, "mesh": made.mesh}
    with pytest.raises(CheckpointError, match=r"sha256 of (mu|nu)/\S+ is not the recorded one"):
        continued_state(made.state.model, model, config.optim, **given)
    assert continued_state(made.state.model, model, config.optim, **given, verify=False).step == 6
    # Before a run starts, only the description is read.
    assert check_optimizer(model, config.model, config.optim, abstract=made.abstract) == 6


def test_surgery_and_optimizer_state_exclude_each_other():
    with pytest.raises(ConfigError, match=r"init\.optimizer resumes another run"):
        InitConfig(source="x", optimizer=True, resize_text=True)


def test_moments_in_bfloat16_survive_export_and_import(tmp_path):
    optim = dataclasses.replace(tiny_runs.run_config().optim, mu_dtype="bfloat16")
    config = tiny_runs.run_config(optim=optim, duration=Duration(steps=3))
    tiny_runs.train_on_one_device(config, tmp_path / "run")
    main(["export", str(tmp_path / "run"), str(tmp_path / "run.npz")])
    with np.load(tmp_path / "run.npz") as found:
        moment = found["opt/1/0/1/img/head/kernel"]
        assert moment.dtype == np.dtype("V2")
        assert np.isfinite(moment.view(ml_dtypes.bfloat16)).all()


def test_the_chain_counts_entries_as_the_reference_has_patterns():
    model = abstract_clip(tiny_clip_config())
    peak = {"peak_lr": 1e-3, "schedules": ((".*", COSINE),)}
    assert chain_shape(OptimConfig(**peak), model)[:3] == (1, 0, 1)
    assert chain_shape(OptimConfig(**peak, weight_decay=0.0), model)[:3] == (0, 0, 1)
    decay = ((".*/bias", 0.25), (".*/weight", 1.0), (".*", 0.5))
    assert chain_shape(OptimConfig(**peak, decay=decay), model)[:3] == (3, 0, 1)
    factors = (("text/.*", 0.5), ("image/head/.*", 2.0), (".*", 1.0))
    assert chain_shape(OptimConfig(**peak, lr_factors=factors), model)[:3] == (1, 3, 1)
    two = (("image/.*", None), ("text/blocks/0/.*", None), ("text/.*", Polynomial()), (".*", COSINE))
    shape = chain_shape(OptimConfig(peak_lr=1e-3, schedules=two), model)
    assert shape.schedules == 2
    assert ("image/patch/weight", None) in shape.frozen
    assert ("text/blocks/norm1/bias", 0) in shape.frozen
    assert len(shape.frozen) == sum(path.startswith("image/") for path, _ in shape.frozen) + 16


def test_a_negative_second_moment_in_a_model_folder_is_refused(half, tmp_path):
    model = import_half(half, tmp_path)
    path = model / OPTIMIZER_FILE
    with safe_open(path, framework="numpy") as file:
        metadata, leaves = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    leaves["nu/image/class_token"][3] = -1e-9
    save_file(leaves, path, metadata=metadata)
    forget_hashes(model)
    with pytest.raises(CheckpointError, match="negative: nu/image/class_token, a second moment"):
        tiny_runs.train_on_one_device(from_source(half[1], model), tmp_path / "on")


def test_the_optimizer_state_of_a_folder_of_version_0_1_0_is_found(half, tmp_path):
    model = import_half(half, tmp_path)
    with open_optimizer_state(model) as state:
        counts = state.counts
    (model / OPTIMIZER_FILE).rename(model / "optimiser.safetensors")
    with open_optimizer_state(model) as state:
        assert state.counts == counts
