"""CLIP_benchmark's own code scores a model folder and gives our numbers; needs torch and clip-benchmark."""

import io
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from support.paths import ROOT
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.errors import ConfigError, ConversionError
from clipa_eqx.evals.record_folder import score_records
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.saved.model import save_model
from conversion.open_clip.adapter import load_open_clip_interface
from conversion.open_clip.benchmark import main

INSTALL = "not installed: pip install clip-benchmark==1.6.2 requests 'numpy<2.4'"
torch = pytest.importorskip("torch", reason=INSTALL)
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


@pytest.fixture(scope="module")
def place(folder, tmp_path_factory):
    """A folder with the model and the two sets that the page names, small, with names and captions of our own."""
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(folder, place / "models" / "l14")
    names = ["cat", "dog", "photo", "w0", "w1", "a w2", "of, w3"]
    labeled, captioned = place / "wds_fer2013" / "test", place / "wds_flickr8k" / "test"
    write_tar(labeled, [{"png": png(one), "cls": str(i % 7).encode()} for i, one in enumerate(images(31))])
    (labeled.parent / "classnames.txt").write_text("\n".join(names) + "\n")
    (labeled.parent / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n{c}\n")
    texts = [[f"a photo of a w{(7 * i + k) % 40}" for k in range(1 + i % 5)] for i in range(23)]
    write_tar(
        captioned, [{"png": png(one), "txt": "\n".join(t).encode()} for one, t in zip(images(23), texts, strict=True)]
    )
    (captioned.parent / "dataset_type.txt").write_text("retrieval")
    return place


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def write_tar(split, samples):
    split.mkdir(parents=True)
    (split / "nshards.txt").write_text("1\n")
    with tarfile.open(split / "0.tar", "w") as tar:
        for i, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"s{i:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def run_page(place, *, of):
    """Run the commands of the page on one of its sets, in that folder."""
    page = (ROOT / "docs/open_clip.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("python ") and of in line]
    assert len(lines) == 3, lines
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    for line in lines:
        words = [sys.executable, *shlex.split(line.replace("scripts/", f"{ROOT}/scripts/"))[1:]]
        done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


def test_the_commands_of_the_page_give_equal_accuracies(place):
    pytest.importorskip("clip_benchmark.cli", reason=INSTALL)
    run_page(place, of="fer2013")
    theirs, ours = (json.loads((place / name).read_text()) for name in ("theirs.json", "ours.json"))
    counted = {"acc1": ours["top1"], "acc5": ours["top5"]}
    counted["mean_per_class_recall"] = np.mean(np.divide(ours["per_class_correct"], ours["per_class_count"]))
    assert theirs["metrics"] == pytest.approx(counted, rel=1e-6)
    assert 0 < ours["top1"] < ours["top5"] < 1


def test_the_commands_of_the_page_give_equal_recalls(place):
    pytest.importorskip("clip_benchmark.cli", reason=INSTALL)
    run_page(place, of="flickr8k")
    theirs, ours = (json.loads((place / name).read_text()) for name in ("their-recall.json", "our-recall.json"))
    counted = {f"image_retrieval_recall@{k}": ours[f"text_to_image_recall@{k}"] for k in (1, 5, 10)}
    counted |= {f"text_retrieval_recall@{k}": ours[f"image_to_text_recall@{k}"] for k in (1, 5, 10)}
    assert theirs["metrics"] == pytest.approx(counted, rel=1e-6)
    assert 0 < ours["text_to_image_recall@5"] < 1
    assert ours["caption_count"] == sum(1 + i % 5 for i in range(23))


def test_a_numpy_that_clip_benchmark_cannot_use_is_refused_before_anything_is_encoded(folder, monkeypatch):
    pytest.importorskip("clip_benchmark.cli", reason=INSTALL)
    versions = {"clip-benchmark": "1.6.2", "numpy": "2.4.1"}
    monkeypatch.setattr("conversion.open_clip.benchmark.importlib.metadata.version", versions.__getitem__)
    with pytest.raises(ConversionError, match=r"cannot compute accuracies with NumPy 2\.4"):
        main([str(folder), "--dataset", "wds/any"])


def test_the_model_cannot_be_replaced_by_a_flag(folder):
    with pytest.raises(ConfigError, match="--pretrained is set by this command"):
        main([str(folder), "--dataset", "wds/any", "--pretrained=openai"])


def test_the_interface_takes_what_programs_for_open_clip_call(folder):
    model, transform, tokenizer = load_open_clip_interface(folder)
    rows = torch.stack([transform(image) for image in images(5)])
    plain = model.encode_image(rows)
    assert plain.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", enabled=True):
        others = [model.encode_image(rows, normalize=True), model.encode_image(rows, True), model.encode_image(rows)]
    assert all(torch.equal(other, plain) for other in others)
    parts = torch.cat([model.encode_image(rows[:2]), model.encode_image(rows[2:])])
    np.testing.assert_allclose(parts.numpy(), plain.numpy(), rtol=0, atol=1e-6)
    tokens = tokenizer(["a cat", "dog"])
    assert torch.equal(model.encode_text(tokens, normalize=True), model.encode_text(tokens.to(torch.int32)))
    assert model.eval().to("cpu").to(torch.device("cpu")).float().to(torch.float32).device == "cpu"
    for convert in (model.half, lambda: model.to(torch.float16)):
        with pytest.raises(ConfigError, match="embeddings are float32"):
            convert()
    assert pickle.loads(pickle.dumps(transform))(images(1)[0]).dtype == torch.uint8  # for workers of a data loader


def test_floats_and_other_lengths_are_refused(folder):
    model, _, tokenizer = load_open_clip_interface(folder)
    with pytest.raises(ConfigError, match="the model normalizes pixels itself"):
        model.encode_image(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ConfigError, match="context_length is 77"):
        tokenizer(["a"], context_length=77)
