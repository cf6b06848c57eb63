"""CLIP_benchmark's own code scores a model folder and gives our numbers; needs torch and clip-benchmark."""

import io

import numpy as np
import pytest
from PIL import Image
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.record_folder import score_records
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.saved.model import save_model
from conversion.open_clip.adapter import load_open_clip_interface

torch = pytest.importorskip("torch", reason="not installed: pip install torch clip-benchmark==1.6.2")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
NAMES, TEMPLATES = ["cat", "dog", "photo"], ["a photo of a {c}", "{c}"]


def images(count):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 24, 20, 3), np.uint8)
    return [Image.fromarray(one) for one in pixels]


class Labeled(list):
    """Images with labels, and the classes, as the harness takes a data set."""

    classes = NAMES

    def __init__(self, prepared, labels):
        super().__init__(zip(prepared, labels, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    preprocess = EvalImageConfig(size=(16, 16), resize="squash")
    return save_model(folder, tiny_clip(), tokenizer=tiny_tokenizer(), preprocess=preprocess, provenance={})


def test_clip_benchmark_gives_our_counts(folder, tmp_path):
    zero_shot = pytest.importorskip("clip_benchmark.metrics.zeroshot_classification")
    model, transform, tokenizer = load_open_clip_interface(folder)
    labels = [i % 3 for i in range(23)]
    loader = torch.utils.data.DataLoader(Labeled(map(transform, images(23)), labels), batch_size=5)
    # Not ``evaluate``: its accuracy makes a float of an array of one element, which NumPy 2.4 refuses.
    classifier = zero_shot.zero_shot_classifier(model, tokenizer, NAMES, TEMPLATES, "cpu", amp=False)
    logits, target = zero_shot.run_classification(model, classifier, loader, "cpu", amp=False)
    right = (logits.argmax(dim=1) == target).numpy()

    rows = []
    for i, image in enumerate(images(23)):
        file = io.BytesIO()
        image.save(file, "PNG")
        rows.append(Record(key=str(i), image=file.getvalue(), label=labels[i]))
    write_records(rows, tmp_path / "data", class_names=NAMES)
    ours = score_records(
        model.loaded.model,
        ZeroShotConfig(data=str(tmp_path / "data"), templates=tuple(TEMPLATES), canonicalize=False),
        open_records(tmp_path / "data"),
        tokenizer=model.loaded.tokenizer.tokenizer,
        preprocess=model.loaded.preprocess.config,
    )
    assert int(right.sum()) == ours.correct_top1
    assert [int(right[target.numpy() == label].sum()) for label in range(3)] == ours.per_class_correct.tolist()


def test_embeddings_are_those_of_the_model_folder(folder):
    model, transform, tokenizer = load_open_clip_interface(folder)
    found = model.encode_image(torch.stack([transform(image) for image in images(3)])).numpy()
    np.testing.assert_allclose(found, model.loaded.encode_images(images(3)), rtol=0, atol=1e-6)
    texts = ["a cat", "dog"]
    np.testing.assert_allclose(
        model.encode_text(tokenizer(texts)).numpy(), model.loaded.encode_texts(texts), rtol=0, atol=1e-6
    )
    assert tokenizer("a cat").shape == (1, model.loaded.model.config.text.length)


def test_floats_and_other_lengths_are_refused(folder):
    model, _, tokenizer = load_open_clip_interface(folder)
    with pytest.raises(ConfigError, match="the model normalizes pixels itself"):
        model.encode_image(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="context_length is 77"):
        tokenizer(["a"], context_length=77)
