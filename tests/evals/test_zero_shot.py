"""Zero-shot scoring: exact counts for every batching, ties, several labels, bad input."""

import dataclasses
import itertools
import json
import pickle

import jax
import jax.random as jr
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import eval_stream
from clipa_eqx.errors import ConfigError, DataError, NonFiniteError
from clipa_eqx.evals import encode, prompts
from clipa_eqx.evals.counting import score
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.zero_shot import (
    ZeroShotConfig,
    ZeroShotTransform,
    class_embeddings,
    evaluate_zero_shot,
    prepare_zero_shot,
)
from clipa_eqx.models.blocks import BlockConfig
from clipa_eqx.models.clip import CLIP, CLIPConfig
from clipa_eqx.models.text import TextConfig
from clipa_eqx.models.vision import VisionConfig
from clipa_eqx.tokenizer.wordpiece import Tokenizer

NAMES = ("cat", "dog", "fire truck", "tree", "house", "cup", "sun", "key", "boat", "dog")
IMAGES, SIZE, LENGTH, CLASSES = 23, 8, 6, len(NAMES)


@pytest.fixture(scope="module")
def model():
    blocks = BlockConfig(width=16, depth=1, mlp_dim=32, heads=2)
    image = VisionConfig(blocks=blocks, image_size=(SIZE, SIZE), patch_size=(4, 4), embed=8)
    text = TextConfig(blocks=blocks, length=LENGTH, vocab=30522, embed=8)
    return CLIP.init(CLIPConfig(image=image, text=text), key=jr.key(0))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.bert()


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)
    labels = np.full((IMAGES, 2), -1, np.int32)
    labels[:, 0] = rng.integers(0, CLASSES, IMAGES)
    labels[::3, 1] = (labels[::3, 0] + 4) % CLASSES
    return {"image": images, "label": labels, "sample_id": np.arange(IMAGES)}


def batches(rows, size):
    count = len(rows["sample_id"])
    for start in range(0, count, size):
        ids = np.arange(start, start + size)
        # Padding repeats rows with their labels: only the mask may keep it out of the counts.
        batch = {name: values[ids % count] for name, values in rows.items()}
        yield batch | {"mask": ids < count}


def make_mesh(*shape):
    count = int(np.prod(shape))
    axes = ("data", "fsdp", "tensor")
    return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count])


@pytest.fixture(scope="module")
def toy(rows):
    """Integer embeddings: similarities are exact, so every batching must agree to the last tie."""
    weights = np.random.default_rng(1).integers(-1, 2, (SIZE * SIZE * 3, 4)).astype(np.float32)
    classes = np.random.default_rng(2).integers(-1, 2, (CLASSES, 4)).astype(np.float32)
    return (lambda images: images.reshape(len(images), -1).astype(np.float32) @ weights), classes


@pytest.mark.parametrize("size", [1, 3, 7, 23, 64])
def test_counts_equal_a_loop_over_single_images(rows, toy, size):
    encode, classes = toy
    top1 = top5 = 0
    for image, labels in zip(rows["image"], rows["label"], strict=True):
        similarity = (encode(image[None]) @ classes.T)[0]
        order = sorted(range(CLASSES), key=lambda c: (-similarity[c], c))
        top1 += order[0] in labels
        top5 += bool(set(order[:5]) & set(labels.tolist()))
    result = score(encode, classes, batches(rows, size))
    assert (result.count, result.correct_top1, result.correct_top5) == (IMAGES, top1, top5)
    assert 0 < top1 < top5 < IMAGES
    np.testing.assert_array_equal(result.sample_id, rows["sample_id"])
    assert result.per_class_count.sum() == (rows["label"] >= 0).sum()


@pytest.mark.parametrize(
    ("shape", "size"),
    [*itertools.product([(1, 1, 1), (8, 1, 1)], [1, 3, 7, 64]), ((2, 2, 2), 7)],
)
def test_scores_do_not_depend_on_batch_size_or_devices(model, tokenizer, rows, shape, size):
    config = ZeroShotConfig(data="toy", templates="clip_best", batch_size=size)
    task = prepare_zero_shot(config, manifest_class_names=NAMES, tokenizer=tokenizer, length=LENGTH)
    expected = evaluate_zero_shot(model, task, batches(rows, IMAGES))
    mesh = make_mesh(*shape)
    placed = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    result = evaluate_zero_shot(placed, task, batches(rows, size), mesh=mesh)
    np.testing.assert_array_equal(result.predictions, expected.predictions)
    assert (result.count, result.top1, result.top5) == (IMAGES, expected.top1, expected.top5)


def test_encoders_shard_the_batch_and_drop_its_padding(model, rows):
    mesh = make_mesh(4, 2, 1)
    placed = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
    found = encode_images(placed, rows["image"], mesh=mesh)
    assert found.shape[0] == 24
    assert {shard.data.shape[0] for shard in found.addressable_shards} == {3}
    plain = local_rows(encode_images(model, rows["image"]), rows=IMAGES)
    np.testing.assert_allclose(local_rows(found, rows=IMAGES), plain, rtol=0, atol=1e-6)


def test_fsdp_sharded_weights_give_the_same_embeddings(model, rows):
    mesh = make_mesh(1, 8, 1)

    def place(leaf):
        split = [axis for axis, n in enumerate(leaf.shape) if n % 8 == 0][-1:]
        spec = PartitionSpec(*("fsdp" if axis in split else None for axis in range(leaf.ndim)))
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    found = encode_images(jax.tree.map(place, model), rows["image"], mesh=mesh)
    plain = local_rows(encode_images(model, rows["image"]), rows=IMAGES)
    np.testing.assert_allclose(local_rows(found, rows=IMAGES), plain, rtol=0, atol=1e-6)


def test_encoding_is_compiled_once_for_a_complete_evaluation(model, tokenizer, rows):
    config = ZeroShotConfig(data="toy", templates=("{} alone", "one {}"), batch_size=5)
    task = prepare_zero_shot(config, manifest_class_names=NAMES, tokenizer=tokenizer, length=LENGTH)
    evaluate_zero_shot(model, task, batches(rows, 5))
    before = encode._encode_images._cache_size(), encode._encode_texts._cache_size()
    evaluate_zero_shot(jax.tree.map(lambda leaf: leaf + 1, model), task, batches(rows, 5))
    assert (encode._encode_images._cache_size(), encode._encode_texts._cache_size()) == before


def test_duplicated_class_names_are_equal_and_the_lower_wins(model, tokenizer, rows):
    config = ZeroShotConfig(data="toy", batch_size=7)
    task = prepare_zero_shot(config, manifest_class_names=NAMES, tokenizer=tokenizer, length=LENGTH)
    found = class_embeddings(lambda tokens: encode_texts(model, tokens), task.tokens, batch_size=7)
    low, high = (at for at, name in enumerate(NAMES) if name == "dog")
    np.testing.assert_array_equal(found[low], found[high])
    result = score(lambda images: np.tile(found[low], (len(images), 1)), found, batches(rows, 7))
    assert (result.predictions[:, :2] == [low, high]).all()


def test_class_embedding_is_the_unit_mean_of_its_prompts(model, tokenizer):
    tokens = [tokenizer(texts, length=LENGTH).ids for texts in (["a cat", "cat"], ["a dog"], ["key", "a key", "keys"])]
    found = class_embeddings(lambda rows: encode_texts(model, rows), tokens, batch_size=4)
    for ours, rows in zip(found, tokens, strict=True):
        mean = np.asarray(encode_texts(model, rows)).mean(axis=0)
        np.testing.assert_allclose(ours, mean / (1e-8 + np.linalg.norm(mean)), rtol=0, atol=1e-6)


def test_any_of_several_labels_is_right():
    classes = np.eye(3, dtype=np.float32)
    batch = {"image": np.zeros((2, 1, 1, 3), np.uint8), "mask": np.ones(2, bool), "sample_id": np.arange(2)}

    def third(images):
        return classes[[2, 2]]

    assert score(third, classes, [batch | {"label": np.array([[0, 2], [0, -1]])}]).correct_top1 == 1
    assert score(third, classes, [batch | {"label": np.array([0, 2])}]).correct_top1 == 1


def test_fewer_than_five_classes_are_all_ranked(toy, rows):
    encode, classes = toy
    rows = rows | {"label": rows["label"][:, 0] % 3}
    result = score(encode, classes[:3], batches(rows, 4))
    assert result.predictions.shape == (IMAGES, 3)
    assert result.top5 == 1.0


def test_a_record_folder_is_scored_from_disk_with_its_own_class_names(tmp_path, model, tokenizer, rows):
    records = [
        Record(key=f"{at}", image=image.tobytes(), extra={"labels": ",".join(str(n) for n in labels if n >= 0)})
        for at, (image, labels) in enumerate(zip(rows["image"], rows["label"], strict=True))
    ]
    write_records(records, tmp_path / "set", class_names=NAMES)
    source = open_records(tmp_path / "set")
    config = ZeroShotConfig(data=str(tmp_path / "set"), templates="class_name_only", max_labels=2, batch_size=5)
    task = prepare_zero_shot(
        config, manifest_class_names=source.manifest.class_names, tokenizer=tokenizer, length=LENGTH
    )
    transform = pickle.loads(pickle.dumps(ZeroShotTransform(prepare_image=from_raw, max_labels=2)))
    with eval_stream(source, transform, batch_size=5, config=StreamConfig(threads=0)) as stream:
        result = evaluate_zero_shot(model, task, stream)
    expected = evaluate_zero_shot(model, task, batches(rows, IMAGES))
    np.testing.assert_array_equal(result.predictions, expected.predictions)
    content = json.loads(json.dumps(result.to_json(with_predictions=True)))
    assert content["correct_top1"] == expected.correct_top1
    assert (content["count"], content["class_count"], content["template_count"]) == (IMAGES, CLASSES, 1)
    assert content["sample_id"] == list(range(IMAGES))


def from_raw(data):
    return np.frombuffer(data, np.uint8).reshape(SIZE, SIZE, 3)


def test_config_hash_follows_the_configuration(tokenizer):
    config = ZeroShotConfig(data="a")
    about = [
        prepare_zero_shot(c, manifest_class_names=NAMES, tokenizer=tokenizer, length=LENGTH).about
        for c in (
            config,
            config,
            dataclasses.replace(config, data="b"),
            dataclasses.replace(config, canonicalize=False),
        )
    ]
    hashes = [entry["config_sha256"] for entry in about]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert about[0]["prompts_sha256"] == about[2]["prompts_sha256"] != about[3]["prompts_sha256"]


def test_class_names_come_from_a_file(tmp_path, tokenizer):
    file = tmp_path / "names.txt"
    file.write_text("Æsir\nred  cup\n", encoding="utf-8")
    config = ZeroShotConfig(data="a", class_names="file", class_names_file=str(file), templates=("{}",))
    task = prepare_zero_shot(config, manifest_class_names=NAMES[:2], tokenizer=tokenizer, length=LENGTH)
    assert task.class_names == ("Æsir", "red  cup")
    file.write_text("a\n\nb\n")
    with pytest.raises(DataError, match="line 2 is empty"):
        prepare_zero_shot(config, manifest_class_names=NAMES[:2], tokenizer=tokenizer, length=LENGTH)
    with pytest.raises(DataError, match="cannot be read"):
        prompts.read_class_names(str(tmp_path / "absent.txt"))


def test_published_class_names_replace_as_many_of_the_manifest(tokenizer):
    config = ZeroShotConfig(data="a", class_names="imagenet_a", templates="class_name_only")
    own = tuple(f"class {i}" for i in range(200))
    for names in (own, None):
        task = prepare_zero_shot(config, manifest_class_names=names, tokenizer=tokenizer, length=LENGTH)
        assert task.class_names == prompts.named_class_names("imagenet_a")
    with pytest.raises(DataError, match=r"a has 10 classes .* class_names='imagenet_a' has 200 names"):
        prepare_zero_shot(config, manifest_class_names=NAMES, tokenizer=tokenizer, length=LENGTH)


def test_open_clip_templates_are_the_paper_ones_without_the_bare_name():
    assert (*prompts.named_templates("open_clip"), "{}") == prompts.named_templates("clip_paper")


def test_synonyms_multiply_the_prompts():
    both = prompts.class_prompts(["Tabby, tabby_cat"], ["a {}!", "{}"], first_name_only=False)
    assert [[prompt.split() for prompt in row] for row in both] == [
        [["a", "tabby"], ["tabby"], ["a", "tabby", "cat"], ["tabby", "cat"]]
    ]
    assert prompts.class_prompts(["T-shirt"], ["My {}."], canonical=False) == [["My T-shirt."]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": np.full((IMAGES, 2), -1)}, "no label"),
        ({"label": np.full((IMAGES,), CLASSES)}, f"there are {CLASSES} class names"),
        ({"label": np.full((IMAGES, 2), [0, -2])}, "class names"),
    ],
)
def test_bad_labels_are_an_error(toy, rows, change, message):
    encode, classes = toy
    with pytest.raises(DataError, match=message):
        score(encode, classes, batches(rows | change, 4))


def test_padding_needs_no_valid_label(toy, rows):
    encode, classes = toy
    batch = next(batches(rows, IMAGES + 1))
    batch["label"][-1] = 10**6
    assert score(encode, classes, [batch]).count == IMAGES


@pytest.mark.parametrize("is_padded", [True, False])
def test_an_empty_set_is_an_error(toy, rows, is_padded):
    encode, classes = toy
    batch = next(batches(rows, 4)) | {"mask": np.zeros(4, bool)}
    with pytest.raises(DataError, match="no images"):
        score(encode, classes, [batch] if is_padded else [])


def test_non_finite_embeddings_are_an_error(toy, rows):
    _, classes = toy
    with pytest.raises(NonFiniteError, match="not finite"):
        score(lambda images: np.full((len(images), 4), np.nan, np.float32), classes, batches(rows, 4))


def test_records_without_usable_labels_are_an_error():
    transform = ZeroShotTransform(prepare_image=lambda data: np.zeros((1, 1, 3), np.uint8))
    for record, message in (
        (Record(key="r7", image=b""), "'r7' has no label"),
        (Record(key="r7", image=b"", extra={"labels": "1;2"}), "must be like"),
        (Record(key="r7", image=b"", extra={"labels": "1,2"}), "takes more with max_labels"),
    ):
        with pytest.raises(DataError, match=message):
            transform(record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ("a photo",)}, "has no {}"),
        ({"templates": ()}, "no prompt templates"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_labels": 0}, "max_labels"),
        ({"class_names": "file"}, "class_names_file"),
        ({"class_names_file": "names.txt"}, "class_names_file"),
    ],
)
def test_contradicting_configurations_are_an_error(change, message):
    with pytest.raises(ConfigError, match=message):
        ZeroShotConfig(data="a", **change)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "no class names in its manifest"),
        ((), "no class names"),
        (("cat", "!?"), "leaves nothing to put into a prompt"),
    ],
)
def test_unusable_class_names_are_an_error(tokenizer, names, message):
    with pytest.raises(DataError, match=message):
        prepare_zero_shot(ZeroShotConfig(data="a"), manifest_class_names=names, tokenizer=tokenizer, length=LENGTH)


@pytest.mark.parametrize(("templates", "is_warned"), [("clip_paper", True), ("class_name_only", False)])
def test_prompts_that_do_not_fit_the_text_tower_are_a_warning(caplog, tokenizer, templates, is_warned):
    config = ZeroShotConfig(data="x", templates=templates)
    task = prepare_zero_shot(config, manifest_class_names=NAMES, tokenizer=tokenizer, length=LENGTH)
    assert (task.about["truncated_prompts"] > 0) == is_warned
    assert ("prompts are longer than the text tower's 6 tokens" in caplog.text) == is_warned
