"""Evaluations of all kinds give the same scores on 1 and 8 devices, and in the training loop."""

import io
import json
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from PIL import Image
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import names_of, open_evaluation, run_evaluation
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.retrieval import RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.sharding import MeshConfig, make_mesh

CAPTIONS = ["a cat", "the dog", "photo of a cat", "a photo", "dog"]


def noise_png(seed):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, first, count in (("train", 0, 17), ("test", 50, 11)):
        rows = [
            Record(key=str(i), image=noise_png(first + i), label=i % 3, captions=tuple(CAPTIONS[: 1 + i % 5]))
            for i in range(count)
        ]
        write_records(rows, folder / name, class_names=("cat", "dog", "photo"))
    return folder


def configs(folder):
    train, test = str(folder / "train"), str(folder / "test")
    return (
        ZeroShotConfig(data=test, templates="class_name_only", batch_size=5),
        RetrievalConfig(data=test, batch_size=5),
        ContrastiveConfig(data=test, batch_size=5),
        FewShotConfig(data=test, train=train, shots=(1, 3), seeds=2, batch_size=5),
        LinearProbeConfig(data=test, train=train, strengths=(0.1, 10.0), batch_size=5),
    )


@pytest.mark.parametrize("number", range(5))
def test_scores_are_the_same_on_one_and_on_eight_devices(folder, number):
    config = configs(folder)[number]
    model, tokenizer = tiny_clip(), tiny_tokenizer()
    evaluation = open_evaluation(config, tokenizer=tokenizer, length=model.config.text.length)
    found = []
    for devices in (1, 8):
        mesh = make_mesh(MeshConfig(), devices=jax.devices()[:devices])
        result = run_evaluation(
            evaluation,
            jax.device_put(model, NamedSharding(mesh, PartitionSpec())),
            tokenizer=tokenizer,
            prepare_image=partial(eval_image, config=EvalImageConfig(size=(16, 16))),
            stream=StreamConfig(),
            mesh=mesh,
        )
        assert json.loads(json.dumps(result.to_json()))["count"] == 11
        found.append(result.scores())
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_names_are_made_of_the_suite_and_the_folder(folder):
    assert names_of(configs(folder)) == [f"{suite}/test" for suite in SUITES]


SUITES = ("zero_shot", "retrieval", "contrastive", "few_shot", "linear_probe")
