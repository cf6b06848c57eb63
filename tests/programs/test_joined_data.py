"""Everything that takes a record folder takes a joined folder, and gives what one folder with the same shards gives."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import pytest
from support import tiny_runs
from support.tiny_models import LENGTH, tiny_clip, tiny_tokenizer

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.manifest import Manifest, read_manifest, write_manifest
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import open_evaluation, read_targets, run_evaluation
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.passport import data_identity
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataConfig, DataSource
from clipa_eqx.programs.show import main as show
from clipa_eqx.saved.kinds import kind_of
from clipa_eqx.search.inputs import record_inputs
from clipa_eqx.sharding import MeshConfig, make_mesh
from clipa_eqx.training.input_forecast import mean_record_bytes
from clipa_eqx.training.inputs import open_sources
from clipa_eqx.training.run_folder import run_record
from conversion.records.join import join

CLASSES = ("cat", "dog", "photo")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two record folders, ``joined`` of them, and ``one`` with links to the same shards."""
    root = tmp_path_factory.mktemp("data")
    records = [
        Record(key=one.key, image=one.image, captions=one.captions, label=i % 3)
        for i, one in enumerate(tiny_runs.make_records(48))
    ]
    for name, rows in (("a", records[:20]), ("b", records[20:])):
        write_records(rows, root / name, class_names=CLASSES, records_per_shard=8)
    join(str(root / "joined"), [str(root / "a"), str(root / "b")])
    (root / "one").mkdir()
    shards = []
    for name in "ab":
        for shard in read_manifest(root / name).shards:
            (root / f"one/{name}-{shard.name}").symlink_to(root / name / shard.name)
            shards.append(replace(shard, name=f"{name}-{shard.name}"))
    write_manifest(root / "one", Manifest(shards=tuple(shards), rows_read=48, rows_written=48, class_names=CLASSES))
    return root


def test_it_is_a_record_folder(data):
    assert kind_of(data / "joined") == "record folder"


def test_show_prints_its_members_and_draws_the_same_sheet(data, tmp_path, capsys):
    for name in ("joined", "one"):
        show([str(data / name), "--sheet", str(tmp_path / f"{name}.png"), "--samples", "4"])
    assert (tmp_path / "joined.png").read_bytes() == (tmp_path / "one.png").read_bytes()
    out = capsys.readouterr().out
    assert "joined: 2 record folders, from ../a to ../b" in out
    assert out.count("shards: 7, ") == 2


CONFIGS = (
    partial(ZeroShotConfig, templates="class_name_only", batch_size=48),
    partial(ContrastiveConfig, batch_size=48),
    lambda data: FewShotConfig(data=data, train=data, shots=(1,), seeds=1, batch_size=48),
)


def evaluations(data, number):
    """An evaluation of both folders, with what it reads before a model is there."""
    config = CONFIGS[number]
    for name in ("joined", "one"):
        opened = open_evaluation(config(data=str(data / name)), tokenizer=tiny_tokenizer(), length=LENGTH)
        yield read_targets(opened, tokenizer=tiny_tokenizer(), length=LENGTH)


@pytest.mark.parametrize("number", range(3))
def test_evaluations_read_what_they_read_of_one_folder(data, number):
    joined, one = evaluations(data, number)
    assert repr(joined.targets) == repr(one.targets)
    assert joined.source.manifest.class_names == one.source.manifest.class_names == CLASSES
    assert len(joined.source) == 48


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_scores_are_those_of_one_folder(data, number):
    joined, one = (
        run_evaluation(
            evaluation,
            tiny_clip(),
            tokenizer=tiny_tokenizer(),
            prepare_image=partial(eval_image, config=EvalImageConfig(size=(16, 16))),
            stream=StreamConfig(),
            mesh=make_mesh(MeshConfig(), devices=jax.devices()[:1]),
        ).scores()
        for evaluation in evaluations(data, number)
    )
    assert joined == one


def test_its_identity_is_that_of_one_folder(data):
    """So results are explained, embeddings resumed and runs continued with either."""
    joined, one = (open_records(data / name) for name in ("joined", "one"))
    assert {**data_identity(joined), "folder": ""} == {**data_identity(one), "folder": ""}
    assert record_inputs(joined, kind="images").about["sha256"] == record_inputs(one, kind="images").about["sha256"]
    assert mean_record_bytes(Mixture(sources=(joined,))) == mean_record_bytes(Mixture(sources=(one,)))


@pytest.mark.parametrize("kind", ["images", "texts"])
def test_embeddings_have_the_rows_of_one_folder(data, kind):
    joined, one = (record_inputs(open_records(data / name), kind=kind) for name in ("joined", "one"))
    assert joined.count == one.count == 48
    assert list(joined.read(range(48))) == list(one.read(range(48)))


def config_of(folder: Path, **fields):
    base = tiny_runs.run_config()
    image, vocab, stream = base.data.image, base.data.vocab, base.data.stream
    data = DataConfig(sources=(DataSource(folder=str(folder)),), image=image, vocab=vocab, stream=stream)
    return tiny_runs.run_config(data=data, **fields)


def test_a_run_has_the_record_of_one_folder(data):
    records = []
    for name in ("joined", "one"):
        mixture = open_sources(config_of(data / name))
        records.append(run_record(config_of(data / name), [one.manifest for one in mixture.sources], vocab_sha256="0"))
    assert records[0]["data_sha256"] == records[1]["data_sha256"]


@pytest.mark.slow
def test_a_run_resumes_on_the_joined_folder_and_ends_like_one_that_had_it_from_the_start(data, tmp_path):
    tiny_runs.train_on_one_device(config_of(data / "joined"), tmp_path / "whole")
    tiny_runs.train_on_one_device(config_of(data / "one"), tmp_path / "run")
    for last in ("checkpoints/12", "model"):
        shutil.rmtree(tmp_path / "run" / last)
    tiny_runs.train_on_one_device(config_of(data / "joined"), tmp_path / "run")
    weights = "model/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
