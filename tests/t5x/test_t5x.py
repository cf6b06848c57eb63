"""Folders of the t5x branch: arrays are read from inside the folder only, and damaged folders leave nothing behind."""

import gzip
import json
import re
import shutil

import jax
import numpy as np
import pytest
from support.damage import mutate
from support.t5x_folders import convert, inline, spec, write_checkpoint, write_index, write_zarr

from clipa_eqx.cli import run
from clipa_eqx.errors import ClipaError, ConversionError
from clipa_eqx.saved.model import load_model
from conversion.t5x.__main__ import main
from conversion.t5x.folder import T5xFolder

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("options", [{}, {"stored": 0}, {"driver": "gcs"}])
def test_a_checkpoint_gives_its_parameters_from_files_and_index(options, model, arrays, vocab, tmp_path):
    write_checkpoint(tmp_path / "checkpoint_3", arrays, **options)
    convert(tmp_path / "checkpoint_3", tmp_path / "model", vocab)
    loaded = load_model(tmp_path / "model")
    for ours, theirs in zip(jax.tree.leaves(loaded.model), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (tmp_path / "model" / "optimizer.safetensors").exists()
    assert loaded.provenance.format == "t5x checkpoint"
    convert(tmp_path / "checkpoint_3", tmp_path / "weights", vocab, "--no-optimizer")
    assert not (tmp_path / "weights" / "optimizer.safetensors").exists()


def test_paths_in_a_bucket_are_looked_for_in_the_folder(arrays, tmp_path):
    folder, array = tmp_path / "checkpoint_3", arrays["img/head/kernel"]
    folder.mkdir()
    write_zarr(folder / "target.x", array, chunks=(20, 5))
    leaf = spec("target.x", array, driver="gcs", path="runs/t5x/checkpoint_3/target.x/")
    write_index(folder, {"target/x": leaf})
    np.testing.assert_array_equal(T5xFolder(folder).read("optimizer/target/x"), array)


@pytest.mark.parametrize(
    "path",
    ["../secret/", "/etc/", "a/../../b/", "..", ".", "", "/", "x/y/", "target.x\0/"],
)
def test_no_path_leads_out_of_the_folder(path, arrays, tmp_path):
    folder, array = tmp_path / "inner" / "checkpoint_3", arrays["img/head/kernel"]
    folder.mkdir(parents=True)
    write_zarr(tmp_path / "inner" / "secret", array)
    write_index(folder, {"target/x": spec("x", array, path=path)})
    with pytest.raises(ConversionError, match=r"leads out of the checkpoint|expected the name of a folder"):
        T5xFolder(folder)


def test_links_are_not_followed(arrays, tmp_path):
    folder, array = tmp_path / "checkpoint_3", arrays["img/head/kernel"]
    folder.mkdir()
    write_zarr(tmp_path / "secret", array)
    (folder / "x").symlink_to(tmp_path / "secret")
    write_index(folder, {"target/x": spec("x", array)})
    with pytest.raises(ConversionError, match=r"missing \(or not a folder\)"):
        T5xFolder(folder)


def broken(change):
    """A check that changes the folder of an array, reads the array, and returns the error message."""

    def check(tmp_path):
        folder, array = tmp_path / "checkpoint_3", np.arange(600, dtype=np.float32).reshape(20, 30)
        folder.mkdir()
        write_zarr(folder / "x", array, chunks=(20, 20))
        write_index(folder, {"target/x": spec("x", array, chunks=(20, 20))})
        change(folder / "x")
        with pytest.raises(ConversionError) as raised:
            T5xFolder(folder).read("optimizer/target/x")
        return str(raised.value)

    return check


def edit(**values):
    def change(folder):
        about = json.loads((folder / ".zarray").read_text())
        (folder / ".zarray").write_text(json.dumps(about | values))

    return change


def truncate(folder):
    data = (folder / "0.0").read_bytes()
    (folder / "0.0").write_bytes(data[: len(data) // 2])


BROKEN = {
    "a chunk is gone": (lambda f: (f / "0.1").unlink(), "chunk 0.1 is missing"),
    "all chunks are gone": (lambda f: [p.unlink() for p in f.glob("0.*")], "the copy is incomplete"),
    "another file instead": (lambda f: (f / "0.1").rename(f / "0.7"), "chunk 0.1 is missing"),
    "a chunk is cut": (truncate, "chunk 0.0 is damaged"),
    "a bomb": (lambda f: (f / "0.0").write_bytes(gzip.compress(bytes(50_000_000))), "chunk 0.0 is damaged"),
    "too few bytes": (lambda f: (f / "0.0").write_bytes(gzip.compress(bytes(100))), "chunk 0.0 is damaged"),
    "bytes after the end": (
        lambda f: (f / "0.0").write_bytes((f / "0.0").read_bytes() + b"more"),
        "chunk 0.0 is damaged",
    ),
    "no description": (lambda f: (f / ".zarray").unlink(), "cannot be read"),
    "absurd shape": (edit(shape=[1 << 50, 30]), "the index \\(20, 30\\)"),
    "absurd chunks": (edit(chunks=[0, 20]), r"in chunks \(0, 20\), the index"),
    "tiny chunks": (edit(chunks=[1, 1]), "2 files for 600 chunks|3 files for 600 chunks"),
    "other dtype": (edit(dtype="<f8"), "/.zarray is '<f8', expected"),
    "objects": (edit(dtype="|O"), r"/.zarray is '\|O', expected"),
    "filters": (edit(filters=[{"id": "pickle"}]), "filters"),
    "pickled": (edit(compressor={"id": "pickle"}), "names the compressor 'pickle'"),
    "not an object": (lambda f: (f / ".zarray").write_text("[1]"), "expected an object"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_array_is_one_clear_error(case, tmp_path):
    change, words = BROKEN[case]
    message = broken(change)(tmp_path)
    assert re.search(words, message), message


def test_a_step_that_its_schedule_has_not_seen_is_refused(arrays, vocab, tmp_path, capsys):
    leaves = write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    leaves["state/step"] = 99
    write_index(tmp_path / "checkpoint_3", leaves)
    assert run(lambda: convert(tmp_path / "checkpoint_3", tmp_path / "model", vocab)) == 2
    assert "optimizer/state/step is 99, optimizer/state/param_states/2/count 3" in capsys.readouterr().err


def test_the_error_for_a_parent_folder_lists_its_checkpoints(tmp_path):
    (tmp_path / "t5x" / "checkpoint_12").mkdir(parents=True)
    with pytest.raises(ConversionError, match="it holds t5x/checkpoint_12: give the path of one of them"):
        T5xFolder(tmp_path)


def test_everything_that_does_not_fit_is_listed_at_once(arrays, vocab, tmp_path, capsys):
    leaves = write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    del leaves["state/param_states/0/nu/t"], leaves["state/param_states/2/count"]
    leaves["extra/thing"] = inline(np.zeros(2, np.float32))
    write_index(tmp_path / "checkpoint_3", leaves)
    assert run(lambda: convert(tmp_path / "checkpoint_3", tmp_path / "model", vocab)) == 2
    err = capsys.readouterr().err
    for words in (
        "unused: optimizer/extra/thing (2,)",
        "missing: optimizer/state/param_states/0/nu/t",
        "missing: optimizer/state/param_states/2/count",
    ):
        assert words in err
    assert not (tmp_path / "model").exists()


def test_flat_attention_needs_its_heads_named(arrays, vocab, tmp_path, capsys):
    write_checkpoint(tmp_path / "checkpoint_3", arrays, stored=0)
    flags = "--image-pool gap --text-pool last --image-position sincos2d --image-size 16".split()  # noqa: SIM905
    argv = ["import", str(tmp_path / "checkpoint_3"), str(tmp_path / "model"), *flags, "--vocab", str(vocab)]
    assert run(lambda: main(argv)) == 2
    assert "image.blocks.heads is not known" in capsys.readouterr().err


def fuzz(count, seed, arrays, vocab, tmp_path):
    """Number of refused checkpoints among ``count`` damaged ones; each leaves either nothing or a complete model.

    Arrays in folders have gzip's checksums: a checkpoint that is not refused gives the original model. The index has no
    checksums, so a changed number in it goes unnoticed; the model must only be complete.
    """
    rng = np.random.default_rng(seed)
    source, target = tmp_path / "checkpoint_3", tmp_path / "out" / "model"
    write_checkpoint(source, arrays, stored=2)
    convert(source, tmp_path / "whole", vocab)
    results = ("model.safetensors", "optimizer.safetensors")
    whole = [(tmp_path / "whole" / name).read_bytes() for name in results]
    files = sorted(path for path in source.rglob("*") if path.is_file())
    refused = 0
    for _ in range(count):
        # Half of them in the index, where most can go wrong.
        file = source / "checkpoint" if rng.random() < 0.5 else files[rng.integers(len(files))]
        before = file.read_bytes()
        file.write_bytes(mutate(before, rng))
        try:
            convert(source, target, vocab)
        except ClipaError:
            refused += 1
            assert not target.parent.exists() or not any(target.parent.iterdir())
        else:
            load_model(target)
            if file.name != "checkpoint":
                assert [(target / name).read_bytes() for name in results] == whole
            shutil.rmtree(target)
        file.write_bytes(before)
    return refused


@pytest.mark.usefixtures("no_self_check")
def test_damage_never_leaves_anything_behind(arrays, vocab, tmp_path):
    assert fuzz(60, 0, arrays, vocab, tmp_path) > 30


@pytest.mark.slow
@pytest.mark.usefixtures("no_self_check")
@pytest.mark.parametrize("seed", range(1, 5))
def test_five_hundred_damaged_checkpoints(seed, arrays, vocab, tmp_path):
    assert fuzz(150, seed, arrays, vocab, tmp_path) > 75
