"""Optimizer state of official training checkpoints: imported, exported unchanged, refused if it is of another chain."""

import ml_dtypes
import numpy as np
import pytest
from support.flax_checkpoints import convert, tiny_arrays, training_arrays, write_npz

from clipa_eqx.errors import ConversionError
from clipa_eqx.saved.model import load_model
from clipa_eqx.saved.optimizer_file import open_optimizer_state
from clipa_eqx.trees import leaf_paths
from conversion.flax_clipa.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("entries", [(3,), (4,), (6,), (4, 5), (9, 10, 11)])
@pytest.mark.parametrize("mu_dtype", [np.float32, ml_dtypes.bfloat16])
def test_training_checkpoints_keep_moments_counts_and_clock(entries, mu_dtype, tmp_path):
    arrays = training_arrays(schedule_entries=entries, mu_dtype=mu_dtype)
    folder = convert(write_npz(tmp_path / "x.npz", arrays), tmp_path / "model")
    with open_optimizer_state(folder) as state:
        assert (state.counts.updates, state.counts.schedule_steps) == (7, 7)
        assert state.mu_dtype == np.dtype(mu_dtype)
        assert sorted(state.paths) == sorted(leaf_paths(load_model(folder).model))
        q = np.asarray(state.read("mu", "text/blocks/attn/q/weight", 1)).astype(np.float32)
    theirs = arrays["opt/1/0/1/txt/Transformer/encoderblock_1/MultiHeadDotProductAttention_0/query/kernel"]
    np.testing.assert_array_equal(q, theirs.reshape(32, 32).T.astype(np.float32))
    main(["export", str(folder), str(tmp_path / "y.npz")])
    with np.load(tmp_path / "y.npz") as found, np.load(tmp_path / "x.npz") as given:
        assert set(found.files) == set(given.files)
        assert all(found[n].tobytes() == given[n].tobytes() for n in given.files)


def without(arrays, *parts):
    return {name: array for name, array in arrays.items() if not any(part in name for part in parts)}


def test_frozen_leaves_and_layers_have_no_moments(tmp_path):
    frozen = ("img/embedding/", "txt/Transformer/encoderblock_0/")
    arrays = without(training_arrays(), *(f"opt/1/0/{k}/{name}" for k in "12" for name in frozen))
    folder = convert(write_npz(tmp_path / "x.npz", arrays), tmp_path / "model")
    with open_optimizer_state(folder) as state:
        assert "image/patch/weight" not in state.paths
        assert state.is_live("text/blocks/norm1/bias", 1)
        assert not state.is_live("text/blocks/norm1/bias", 0)
        assert not np.asarray(state.read("nu", "text/blocks/norm1/bias", 0)).any()
    main(["export", str(folder), str(tmp_path / "y.npz")])
    with np.load(tmp_path / "y.npz") as found:
        assert set(found.files) == set(arrays)


CHAINS = {
    "no second moments": (without(training_arrays(), "opt/1/0/2/"), "missing: opt/1/0/2/t, the second moment"),
    "one second moment": (without(training_arrays(), "opt/1/0/2/t"), "missing: opt/1/0/2/"),
    "no count": (without(training_arrays(), "opt/1/0/0"), "missing: Adam's state"),
    "no schedule": (training_arrays(schedule_entries=()), "missing: the count of a schedule"),
    "another entry": (training_arrays() | {"opt/2/0": np.ones(3, np.float32)}, "unused: opt/2/0 (3,)"),
    "a moment without a parameter": (
        training_arrays() | {f"opt/1/0/{k}/x": np.ones(3, np.float32) for k in "12"},
        "unused: the moments of x, which is not a parameter",
    ),
    "two steps": (training_arrays(schedule_entries=(4, 5)) | {"opt/5/0/0": np.asarray(9, np.int32)}, "[7, 9]"),
    "Adam's count alone": (
        training_arrays() | {"opt/1/0/0": np.asarray(100, np.int32)},
        "opt/1/0/0, Adam's count, is 100, that of the schedules 7",
    ),
    "a count that is a float": (training_arrays() | {"opt/4/0/0": np.asarray(1.5)}, "opt/4/0/0 is float64[]"),
    "a negative count": (training_arrays() | {"opt/1/0/0": np.asarray(-1, np.int32)}, "opt/1/0/0 is -1"),
}


@pytest.mark.parametrize("what", CHAINS)
def test_an_optimizer_of_another_chain_is_refused_and_the_message_names_the_workaround(what, tmp_path):
    arrays, message = CHAINS[what]
    source = write_npz(tmp_path / "x.npz", arrays)
    with pytest.raises(ConversionError) as caught:
        convert(source, tmp_path / "model")
    assert message in str(caught.value)
    assert "x.npz:params converts only the parameters" in str(caught.value)
    convert(f"{source}:params", tmp_path / "model")
    assert not (tmp_path / "model" / "optimizer.safetensors").exists()


def test_a_negative_second_moment_is_refused(tmp_path):
    arrays = training_arrays()
    spoilt = arrays["opt/1/0/2/img/head/kernel"].copy()
    spoilt[1, 2] = -1e-12
    source = write_npz(tmp_path / "x.npz", arrays | {"opt/1/0/2/img/head/kernel": spoilt})
    with pytest.raises(ConversionError, match="negative: img/head/kernel for image/head/weight has values below zero"):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_an_old_optimizers_state_is_left_out_with_a_note(tmp_path, caplog):
    params = {name.removeprefix("params/"): array for name, array in tiny_arrays().items()}
    arrays = {f"opt/target/{name}": array for name, array in params.items()}
    arrays |= {f"opt/state/param_states/{n}/grad_ema": a for n, a in params.items()} | {"opt/state/step": np.ones(())}
    with caplog.at_level("INFO"):
        folder = convert(write_npz(tmp_path / "x.npz", arrays), tmp_path / "model")
    note = f"left out: {len(params) + 1} entries of an old Flax optimizer's state, opt/state/"
    assert any(message.startswith(note) for message in caplog.messages)
    assert any(one.startswith(note) for one in load_model(folder).provenance.config_notes)
    assert not (folder / "optimizer.safetensors").exists()
