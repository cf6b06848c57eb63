"""Exports to npz never overwrite a file, never write into the model folder and never export damaged weights."""

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.damage import forget_hashes
from support.flax_checkpoints import convert, tiny_arrays, write_npz

from clipa_eqx.errors import CheckpointError, ConversionError
from conversion.flax_clipa.__main__ import main
from conversion.flax_clipa.npz_writer import new_npz

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_a_file_that_appears_during_an_export_is_not_lost(tmp_path):
    target = tmp_path / "back.npz"

    def export():
        with new_npz(target, overwrite=False) as archive:
            archive.write("x", np.zeros(3, np.float32))
            target.write_bytes(b"mine")

    with pytest.raises(ConversionError, match="exists already"):
        export()
    assert target.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["back.npz"]


def test_an_export_into_the_model_folder_is_refused(tmp_path):
    folder = convert(write_npz(tmp_path / "x.npz", tiny_arrays()), tmp_path / "model")
    for target in (folder / "y.npz", folder / "more" / "y.npz"):
        with pytest.raises(CheckpointError, match="would be inside the source"):
            main(["export", str(folder), str(target)])
    assert not (folder / "more").exists()


def test_a_damaged_model_is_not_exported(tmp_path):
    folder = convert(write_npz(tmp_path / "x.npz", tiny_arrays()), tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        main(["export", str(folder), str(tmp_path / "y.npz")])
    assert not (tmp_path / "y.npz").exists()


def test_a_tensor_that_its_old_dtype_cannot_hold_is_exported_in_float32(tmp_path, caplog):
    halves = {name: array.astype(np.float16) for name, array in tiny_arrays().items()}
    folder = convert(write_npz(tmp_path / "x.npz", halves), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["log_temperature"] = np.asarray(1 + 2**-20, np.float32)
    save_file(weights, folder / "model.safetensors")
    forget_hashes(folder)
    with caplog.at_level("INFO"):
        main(["export", str(folder), str(tmp_path / "y.npz")])
    assert "t was stored as float16, which no longer holds its values: stored as float32" in caplog.messages
    with np.load(tmp_path / "y.npz") as found:
        assert {name for name in found.files if found[name].dtype != np.float16} == {"params/t"}
        np.testing.assert_array_equal(found["params/t"], np.full(1, 1 + 2**-20, np.float32))
