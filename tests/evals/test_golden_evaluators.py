"""Prompts and zero-shot scores against the recorded reference."""

import functools
import hashlib

import numpy as np
import pytest
from support import goldens
from support.reference_evaluators import image_batches, load, recorded_images, tokenizer

from clipa_eqx.evals import prompts
from clipa_eqx.evals.counting import score
from clipa_eqx.evals.encode import encode_images, encode_texts, local_rows
from clipa_eqx.evals.zero_shot import ZeroShotConfig, class_embeddings, evaluate_zero_shot, prepare_zero_shot

goldens.require("evaluators")
goldens.require("models")
PROMPTS = goldens.load_json("evaluators/prompt_engineering.json")
# The reference's data set names; both its ImageNet validation sets use one list.
CLASS_NAMES = {
    "imagenet2012": "imagenet",
    "grand-vision:imagenet2012": "imagenet",
    "imagenet_v2": "imagenet",
    "imagenet_a": "imagenet_a",
    "imagenet_r": "imagenet_r",
}
RECORDINGS = goldens.names("evaluators/zeroshot_*dev.json")
CASES = [(recording, case) for recording in RECORDINGS for case in goldens.load_json(recording)["results"]]
EMBEDDING_ATOL = 2e-5
MARGIN = 1e-5
PROMPT_BATCH = 64


@pytest.mark.parametrize("key", [key for key in PROMPTS if key.startswith("class_names/")])
def test_class_names_equal_the_reference(key):
    _, data, *options = key.split("/")
    names = prompts.named_class_names(CLASS_NAMES[data])
    if "canonicalize=True" in options:
        names = prompts.canonical_class_names(names)
    if "first_name_only" in options:
        names = [name.split(",")[0] for name in names]
    check_list(names, PROMPTS[key])


@pytest.mark.parametrize("key", [key for key in PROMPTS if key.startswith("templates/")])
def test_templates_equal_the_reference(key):
    _, name, canonical = key.split("/")
    templates = prompts.named_templates(name)
    check_list(prompts.canonical_templates(templates) if canonical == "canonicalize=True" else templates, PROMPTS[key])


@pytest.mark.parametrize("example", PROMPTS["canonicalize_examples"], ids=lambda example: repr(example["text"]))
def test_canonical_text_equals_the_reference(example):
    keeps = {"plain": "", "keep_comma": ",", "keep_braces": "{}"}
    ours = {name: prompts.canonicalize(example["text"], keep=keep) for name, keep in keeps.items()}
    assert ours | {"text": example["text"]} == example


def test_label_names_equal_the_reference():
    names = prompts.named_class_names("imagenet")
    for example in PROMPTS["label_names_op"]:
        assert names[example["label"]] == example["name"]


@pytest.mark.parametrize("recording", RECORDINGS)
def test_image_embeddings_equal_the_reference(recording):
    about, recorded, model, mesh = load(recording)
    ours = np.concatenate(
        [
            local_rows(encode_images(model, batch["image"], mesh=mesh), rows=len(batch["image"]))[batch["mask"]]
            for batch in image_batches(about, label="labels")
        ]
    )
    np.testing.assert_allclose(ours, recorded["image_embedding"], rtol=0, atol=EMBEDDING_ATOL)


@pytest.mark.parametrize(("recording", "case"), CASES)
def test_text_embeddings_equal_the_reference(recording, case):
    about, recorded, model, mesh = load(recording)
    task = prepare_case(about, case)
    if f"{case}/text_embedding" in recorded:
        tokens = np.concatenate(task.tokens)
        assert len(tokens) == about["results"][case]["n_texts"]
        padded = np.pad(tokens, ((0, -len(tokens) % PROMPT_BATCH), (0, 0)))
        parts = np.split(padded, len(padded) // PROMPT_BATCH)
        ours = np.concatenate([local_rows(encode_texts(model, rows, mesh=mesh), rows=len(rows)) for rows in parts])
        ours = ours[: len(tokens)]
        np.testing.assert_allclose(ours, recorded[f"{case}/text_embedding"], rtol=0, atol=EMBEDDING_ATOL)
        owners = np.repeat(np.arange(len(task.tokens)), [len(rows) for rows in task.tokens])
        np.testing.assert_array_equal(owners, recorded[f"{case}/text_label"])
    ours = class_embeddings(functools.partial(encode_texts, model, mesh=mesh), task.tokens, batch_size=PROMPT_BATCH)
    np.testing.assert_allclose(ours, recorded[f"{case}/average_embedding"], rtol=0, atol=EMBEDDING_ATOL)


@pytest.mark.parametrize(("recording", "case"), CASES)
def test_zero_shot_predictions_and_counts_equal_the_reference(recording, case):
    about, recorded, model, mesh = load(recording)
    expected = about["results"][case]
    task = prepare_case(about, case)
    label = {"single": "labels", "multilabel": "multilabels"}[case.split("/")[0]]
    result = evaluate_zero_shot(model, task, image_batches(about, label=label), mesh=mesh)
    check_result(result, expected, recorded, case)


@pytest.mark.parametrize(("recording", "case"), CASES)
def test_recorded_embeddings_give_the_recorded_counts(recording, case):
    about, recorded, _, _ = load(recording)
    label = {"single": "labels", "multilabel": "multilabels"}[case.split("/")[0]]
    images = iter(np.array_split(recorded["image_embedding"], range(7, len(recorded["image_embedding"]), 7)))
    batches = (
        {"image": rows, "label": labels, "mask": np.ones(len(rows), bool), "sample_id": np.arange(len(rows))}
        for rows, labels in zip(images, np.array_split(recorded_images()[label], range(7, 10**6, 7)), strict=False)
    )
    result = score(lambda rows: rows, recorded[f"{case}/average_embedding"], batches)
    check_result(result, about["results"][case], recorded, case)


def check_list(ours, expected):
    digest = hashlib.sha256("\n".join(ours).encode()).hexdigest()
    assert {"count": len(ours), "first5": list(ours[:5]), "sha256": digest} == expected


def check_result(result, expected, recorded, case):
    similarity = np.sort(recorded["image_embedding"] @ recorded[f"{case}/average_embedding"].T, axis=1)
    is_clear = similarity[:, -1] - similarity[:, -2] > MARGIN
    np.testing.assert_array_equal(result.predictions[is_clear, 0], np.array(expected["predictions"])[is_clear])
    assert result.count == expected["count"]
    assert abs(result.correct_top1 - expected["correct"]) <= np.sum(~is_clear)
    if is_clear.all():
        assert result.top1 == expected["accuracy"]


def prepare_case(about, case):
    _, templates, first_name_only = case.split("/")
    config = ZeroShotConfig(
        data="golden",
        templates=templates,
        first_name_only=first_name_only == "first_name_only=True",
        batch_size=PROMPT_BATCH,
    )
    return prepare_zero_shot(
        config, manifest_class_names=about["class_names"], tokenizer=tokenizer(), length=about["text_len"]
    )
