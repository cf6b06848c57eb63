"""Import and export of official Flax checkpoints: layouts, subtrees, provenance, refusals and self-check."""

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.flax_checkpoints import assert_same_arrays, convert, random_clip, tiny_arrays, write_npz
from support.tiny_models import tiny_clip_config, tiny_tokenizer

from clipa_eqx.cli import run
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError, ConfigError, ConversionError
from clipa_eqx.models.device_pixels import normalize_on_device
from clipa_eqx.models.presets import preset
from clipa_eqx.saved.model import load_model, save_model
from conversion.flax_clipa.__main__ import main
from conversion.flax_clipa.names import to_flax
from conversion.weights.self_check import embed_fixed_inputs, fixed_inputs

pytestmark = pytest.mark.usefixtures("quick_compile", "logging_as_before")

BARE = {name.removeprefix("params/"): array for name, array in tiny_arrays().items()}
FLAGS = ("--image-pool", "gap", "--text-pool", "last", "--image-position", "sincos2d", "--image-size", "16")


def flat(arrays):
    """The arrays without an axis for attention heads, as in the reference's t5x branch."""
    out = {}
    for name, array in arrays.items():
        if "MultiHeadDotProductAttention_0" in name:
            sides = (32, 32) if name.endswith("kernel") else (32,)
            array = array.reshape(sides)
        out[name] = array
    return out


def narrow(arrays, dtype):
    return {name: array.astype(dtype) for name, array in arrays.items()}


LAYOUTS = {
    "params": tiny_arrays(),
    "bare": BARE,
    "old optimizer": {f"opt/target/{name}": array for name, array in BARE.items()},
    "flat": flat(tiny_arrays()),
    "bfloat16": narrow(BARE, ml_dtypes.bfloat16),
    "float16": narrow(tiny_arrays(), np.float16),
    "scalar temperature": BARE | {"t": BARE["t"].reshape(())},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_model_and_comes_back_as_it_was(layout, tmp_path):
    arrays = LAYOUTS[layout]
    flags = FLAGS + (("--image-heads", "2", "--text-heads", "2") if layout == "flat" else ())
    folder = convert(write_npz(tmp_path / "x.npz", arrays), tmp_path / "model", *flags)
    model = load_model(folder).model
    exact = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}.get(layout, np.float32)
    for name, array in to_flax(model).items():
        np.testing.assert_array_equal(array, BARE[name].astype(exact).astype(np.float32), err_msg=name)
    main(["export", str(folder), str(tmp_path / "back.npz")])
    assert_same_arrays(tmp_path / "back.npz", arrays)


def test_a_model_in_a_subtree_is_imported_and_exported(tmp_path):
    arrays = {f"params/student/{name}": array for name, array in BARE.items()} | {"params/teacher/w": np.ones(3)}
    source = write_npz(tmp_path / "x.npz", arrays)
    folder = convert(f"{source}:student", tmp_path / "model")
    assert load_model(folder).provenance.layout["prefix"] == "params/student/"
    main(["export", str(folder), str(tmp_path / "back.npz")])
    assert_same_arrays(tmp_path / "back.npz", {n: a for n, a in arrays.items() if "student" in n})


@pytest.mark.parametrize(
    ("subtree", "message"),
    [
        ("img", "is the image tower alone ('Transformer', 'cls', 'embedding', 'encoder_norm', 'head')"),
        ("txt", "is the text tower alone"),
        ("image", "has no subtree 'image'; it has 'img', 't', 'txt'"),
        ("img/Transformer", "does not hold a two-tower model under params/img/Transformer/: it has 'encoderblock_0'"),
    ],
)
def test_a_subtree_that_does_not_hold_a_model_is_refused(subtree, message, tmp_path):
    source = write_npz(tmp_path / "x.npz", tiny_arrays())
    with pytest.raises(ConversionError) as caught:
        convert(f"{source}:{subtree}", tmp_path / "model")
    assert message in str(caught.value)


def test_entries_next_to_the_parameters_are_refused_and_the_message_names_the_workaround(tmp_path):
    source = write_npz(tmp_path / "x.npz", tiny_arrays() | {"images": np.ones(3)})
    with pytest.raises(ConversionError, match=r"x.npz:params converts only the parameters.*\n.*unused: images"):
        convert(source, tmp_path / "model")
    convert(f"{source}:params", tmp_path / "model")


def test_provenance_has_hashes_profile_checks_and_a_checksum_of_each_leaf(tmp_path):
    source = write_npz(tmp_path / "x.npz", tiny_arrays())
    loaded = load_model(convert(source, tmp_path / "model"))
    about = loaded.provenance.to_json()
    assert about["source"] == {"name": "x.npz", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    assert about["format"] == "flax npz"
    assert about["profile"]["name"] == "flax"
    assert about["converter"].startswith("clipa_eqx ")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert about["leaves_sha256"] == {n: hashlib.sha256(a.tobytes()).hexdigest() for n, a in weights.items()}
    assert about["parameters"] == sum(array.size for array in weights.values())
    check = about["self_check"]
    assert check["finite"]
    assert check["round_trip"] == f"{len(BARE)} of {len(BARE)} tensors, exported again, have their original bytes"
    norms = [*check["embeddings"]["image"]["unit_norm"], *check["embeddings"]["text"]["unit_norm"]]
    np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_the_self_check_computes_block_by_block_what_the_model_computes(tmp_path):
    config = tiny_clip_config(
        image={"pool": "map", "patch": "linear", "position": "learned"}, text={"position": "sincos1d"}
    )
    folder = save_model(
        tmp_path / "model",
        random_clip(config),
        tokenizer=tiny_tokenizer(),
        preprocess=EvalImageConfig(size=(16, 16)),
        provenance={},
    )
    found = embed_fixed_inputs(folder)
    model = load_model(folder).model
    images, tokens = fixed_inputs(config)
    image = jax.jit(jax.vmap(model.image))(normalize_on_device(jnp.asarray(images)))
    text = jax.jit(jax.vmap(model.text))(jnp.asarray(tokens))
    np.testing.assert_allclose(found.image, image, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.text, text, rtol=1e-5, atol=1e-5)


def test_weights_whose_embeddings_are_not_finite_are_refused(tmp_path):
    huge = tiny_arrays() | {"params/img/head/kernel": np.full((32, 16), 3e38, np.float32)}
    with pytest.raises(ConversionError, match="embeddings of fixed inputs are not"):
        convert(write_npz(tmp_path / "x.npz", huge), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_vocabulary_larger_than_the_token_table_is_refused(tmp_path):
    source = write_npz(tmp_path / "x.npz", tiny_arrays())
    with pytest.raises(
        ConfigError,
        match=r"the token table has 64 rows.*BERT.*30522 pieces; give the model's own vocabulary \(--vocab\)$",
    ):
        main(["import", str(source), str(tmp_path / "model"), *FLAGS])


def test_an_existing_folder_stays_until_a_new_one_is_complete(tmp_path):
    source = write_npz(tmp_path / "x.npz", tiny_arrays())
    folder = convert(source, tmp_path / "model")
    before = {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    with pytest.raises(CheckpointError, match="exists already"):
        convert(source, folder)
    bad = write_npz(tmp_path / "bad.npz", tiny_arrays() | {"params/t": np.full(1, np.nan, np.float32)})
    with pytest.raises(ConversionError, match="not finite: t"):
        convert(bad, folder, "--overwrite")
    assert before == {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}
    other = write_npz(tmp_path / "other.npz", tiny_arrays() | {"params/t": np.full(1, 2, np.float32)})
    convert(other, folder, "--overwrite")
    assert float(load_model(folder).model.log_temperature) == 2.0
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a model folder"):
        convert(source, tmp_path / "notes", "--overwrite")


def test_an_export_replaces_a_file_only_with_overwrite(tmp_path):
    folder = convert(write_npz(tmp_path / "x.npz", tiny_arrays()), tmp_path / "model")
    target = tmp_path / "back.npz"
    target.write_bytes(b"mine")
    with pytest.raises(ConversionError, match="exists already"):
        main(["export", str(folder), str(target)])
    assert target.read_bytes() == b"mine"
    main(["export", str(folder), str(target), "--overwrite"])
    assert_same_arrays(target, tiny_arrays())
    for name, message in (("back.zip", "does not end in .npz"), ("x.npz/y.npz", "cannot be written")):
        with pytest.raises(ConversionError, match=message):
            main(["export", str(folder), str(tmp_path / name)])
    with pytest.raises(
        CheckpointError, match="is a folder that clipa_eqx did not write; expected a run folder or a model folder"
    ):
        main(["export", str(tmp_path), str(tmp_path / "y.npz")])
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_models_of_our_own_get_the_layout_of_the_main_branch(tmp_path):
    model = random_clip(tiny_clip_config())
    fields = {"tokenizer": tiny_tokenizer(), "preprocess": EvalImageConfig(size=(16, 16)), "provenance": {}}
    save_model(tmp_path / "model", model, **fields)
    main(["export", str(tmp_path / "model"), str(tmp_path / "y.npz")])
    assert_same_arrays(tmp_path / "y.npz", {f"params/{name}": array for name, array in to_flax(model).items()})


def test_a_mistake_is_one_message_and_exit_code_2(tmp_path, capsys):
    source = write_npz(tmp_path / "x.npz", tiny_arrays())
    assert run(lambda: main(["import", str(source), str(tmp_path / "model")])) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: cannot determine the config, 4 problems:\n")


def test_a_model_with_few_tokens_does_not_get_the_image_size_of_the_preset(tmp_path):
    arrays = {f"params/{name}": array for name, array in to_flax(random_clip(preset("Ti/16", length=8))).items()}
    source, target = write_npz(tmp_path / "x.npz", arrays), tmp_path / "model"
    flags = ("import", str(source), str(target), "--preset", "Ti/16")
    with pytest.raises(ConversionError) as caught:
        main([*flags])
    assert "image.image_size is not known (shapes do not determine it; preset Ti/16 has 224 with 32" in str(
        caught.value
    )
    assert "no model of preset Ti/16 was released, and recipes differ); give --image-pool" in str(caught.value)
    assert not target.exists()
    main([*flags, "--image-size", "80", "--image-pool", "tok"])
    loaded = load_model(target)
    assert (loaded.model.config.image.image_size, loaded.model.config.image.pool) == ((80, 80), "tok")


def test_the_default_image_preparation_is_logged_and_recorded(tmp_path, caplog):
    with caplog.at_level("INFO"):
        folder = convert(write_npz(tmp_path / "x.npz", tiny_arrays()), tmp_path / "model")
    words = "preprocess: squash, a default that no file determines"
    assert any(message.startswith(words) for message in caplog.messages)
    assert any(note.startswith(words) for note in load_model(folder).provenance.config_notes)


def test_a_long_list_of_problems_is_shortened(tmp_path):
    many = {f"params/extra/{i}": np.zeros((), np.float32) for i in range(3000)} | {
        "params/" + 4000 * "x": np.zeros((), np.float32)
    }
    with pytest.raises(ConversionError, match=r"3,001 problems") as caught:
        convert(write_npz(tmp_path / "x.npz", tiny_arrays() | many), tmp_path / "model")
    assert "... and 2,901 more" in str(caught.value)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("change", [{"dtypes": {"t": "odd"}}, {"temperature": ["x"]}, {"attention": "odd"}])
def test_a_layout_that_no_import_wrote_is_one_clear_error(change, tmp_path, capsys):
    convert(write_npz(tmp_path / "x.npz", tiny_arrays()), tmp_path / "model")
    file = tmp_path / "model" / "provenance.json"
    found = json.loads(file.read_text())
    found["layout"] |= change
    file.write_text(json.dumps(found))
    assert run(lambda: main(["export", str(tmp_path / "model"), str(tmp_path / "back.npz")])) == 2
    assert "does not say how its source was laid out" in capsys.readouterr().err
    assert not (tmp_path / "back.npz").exists()
