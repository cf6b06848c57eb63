"""Retrieval against the recorded reference."""

import functools

import numpy as np
import pytest
from support import goldens
from support.reference_evaluators import image_batches, load, tokenizer

from clipa_eqx.evals.contrastive import ContrastiveConfig, evaluate_contrastive
from clipa_eqx.evals.embeddings import Captions, caption_embeddings, image_embeddings
from clipa_eqx.evals.encode import encode_images, encode_texts
from clipa_eqx.evals.recall import ranks_in
from clipa_eqx.evals.retrieval import RANKS, RetrievalConfig, evaluate_retrieval

goldens.require("evaluators")
goldens.require("models")
RECORDINGS = goldens.names("evaluators/retrieval_*dev.json")
NAMES = {"img2txt": "image_to_text", "txt2img": "text_to_image"}
EMBEDDING_ATOL = 2e-5
CONFIG = RetrievalConfig(data="golden", batch_size=64)


def captions_of(about, length):
    counts = np.array([len(captions) for captions in about["captions"]])
    encoded = tokenizer()([text for captions in about["captions"] for text in captions], length=length)
    return Captions(tokens=encoded.ids, counts=counts, truncated=encoded.truncated)


@pytest.mark.parametrize("recording", RECORDINGS)
def test_recalls_and_embeddings_equal_the_reference(recording):
    recorded, arrays = goldens.load_json(recording), goldens.load_npz(recording.replace(".json", ".npz"))
    about, _, model, mesh = load(recording.replace("retrieval", "zeroshot"))
    captions = captions_of(recorded, about["text_len"])
    images = image_embeddings(
        functools.partial(encode_images, model, mesh=mesh), image_batches(about, label="labels"), records=23
    )
    texts = caption_embeddings(functools.partial(encode_texts, model, mesh=mesh), captions, batch_size=64)
    order = np.argsort(arrays["image_id"])
    np.testing.assert_allclose(images, arrays["image_embeddings"][order], rtol=0, atol=EMBEDDING_ATOL)
    order = np.lexsort((arrays["caption_i"], arrays["text_id"]))
    np.testing.assert_allclose(texts, arrays["text_embeddings"][order], rtol=0, atol=EMBEDDING_ATOL)
    result = evaluate_retrieval(model, CONFIG, captions, image_batches(about, label="labels"), mesh=mesh)
    ours = result.scores()
    for name, value in recorded["metrics"]:
        direction, k = name.split("_recall@")
        assert ours[f"{NAMES[direction]}_recall@{k}"] == pytest.approx(value, abs=1e-7)


@pytest.mark.parametrize("devices", [1, 8])
def test_contrastive_loss_and_accuracy_equal_the_reference(devices):
    recorded = goldens.load_json(f"evaluators/contrastive_{devices}dev.json")
    about, _, model, mesh = load(f"evaluators/zeroshot_{devices}dev.json")
    tokens = goldens.load_npz("evaluators/contrastive_tokens.npz")["tokens"]
    captions = Captions(tokens=tokens, counts=np.ones(recorded["n"], np.int64), truncated=0)
    config = ContrastiveConfig(data="golden", batch_size=recorded["batch_size"])
    result = evaluate_contrastive(model, config, captions, image_batches(about, label="labels"), mesh=mesh)
    expected = recorded["results"]["use_global_batch=True"]
    assert result.loss == pytest.approx(expected["loss"], rel=1e-5)
    assert result.accuracy == pytest.approx(expected["ncorrect_minibatch"], abs=1e-7)
    assert result.count == recorded["n"]


@pytest.mark.parametrize("case", goldens.load_json("evaluators/retrieval_matrices.json"), ids=lambda case: case["key"])
def test_recalls_of_a_matrix_equal_the_reference(case):
    arrays = goldens.load_npz("evaluators/retrieval_matrices.npz")
    similarity = -arrays[f"{case['key']}/distance"]  # [images, texts]
    owner = arrays[f"{case['key']}/text_image_correspondence"]
    number = np.arange(len(similarity))
    ranks = {
        "img2txt": ranks_in(similarity, query_owner=number, item_owner=owner),
        "txt2img": ranks_in(similarity.T, query_owner=owner, item_owner=number),
    }
    for direction, found in ranks.items():
        for k in RANKS:
            assert np.mean(found < k) == pytest.approx(case[direction][f"Recall@{k}"], abs=1e-12)
