"""A run that cannot work is refused before anything is compiled or written, and before the log speaks of prompts."""

import dataclasses
import sys
import types

import jax.random as jr
import pytest
from support import tiny_runs
from support.tiny_models import PIECES, tiny_clip_config

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.errors import ClipaError, ConfigError
from clipa_eqx.evals.zero_shot import ZeroShotConfig
from clipa_eqx.experiment import DataSource, WandbConfig
from clipa_eqx.models.clip import CLIP
from clipa_eqx.saved.model import save_model
from clipa_eqx.sharding import MeshConfig
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training.preparation import prepare
from clipa_eqx.training.trackers import check_wandb, open_wandb

pytestmark = pytest.mark.usefixtures("quick_compile")


def never(*args):
    raise AssertionError("the step was compiled")


def refused(config, tmp_path):
    """The message of the refusal."""
    with pytest.raises(ClipaError) as caught:
        tiny_runs.train_on_one_device(config, tmp_path / "run", compiler=never)
    assert not (tmp_path / "run").exists()
    return str(caught.value)


def records(folder, *, changes, **options):
    """Six records in three shards; ``changes`` gives the fields of each by its number."""
    rows = (dataclasses.replace(row, **changes(i)) for i, row in enumerate(tiny_runs.make_records(6)))
    write_records(rows, folder, records_per_shard=2, **options)
    return str(folder)


def on_data(folder):
    config = tiny_runs.run_config()
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=(DataSource(folder=folder),)))


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (None, "of 3 records that were read, such as '0', none has one"),
        ({"captions_written": 0}, "its manifest counts none in 6 records"),
    ],
)
def test_records_without_captions_are_refused(info, words, tmp_path):
    folder = records(tmp_path / "data", changes=lambda i: {"captions": (), "label": 0}, class_names=("cat",), info=info)
    message = refused(on_data(folder), tmp_path)
    assert message.startswith(f"data folder {folder} has no captions ({words}), so nothing can be trained on it")
    assert "score models on it with zero_shot" in message


def test_a_few_records_without_captions_are_left_to_the_loader(tmp_path):
    folder = records(tmp_path / "data", changes=lambda i: {} if i == 2 else {"captions": (), "label": 0})
    prepare(on_data(folder), tmp_path / "run", devices=tiny_runs.one_device())


LABELED = {"class_names": ("cat", "dog")}
EVALUATIONS = {
    "no labels": (lambda i: {}, LABELED, "record '0' has no label"),
    "one without a label": (lambda i: {} if i == 4 else {"label": 1}, LABELED, "record '4' has no label"),
    "no class names": (lambda i: {"label": 1}, {}, "has no class names in its manifest"),
    "too many labels": (lambda i: {"extra": {"labels": "0,1"}}, LABELED, "has 2 labels, expected at most 1"),
    "a label without a name": (lambda i: {"extra": {"labels": "7"}}, LABELED, "has labels [7], but there are 2 class"),
}


@pytest.mark.parametrize("case", EVALUATIONS)
def test_an_evaluation_set_that_cannot_be_scored_is_refused(case, tmp_path, caplog):
    changes, options, words = EVALUATIONS[case]
    good = records(tmp_path / "good", changes=lambda i: {"label": i % 2}, **LABELED)
    bad = records(tmp_path / "bad", changes=changes, **options)
    config = tiny_runs.run_config(zero_shot=(ZeroShotConfig(data=good), ZeroShotConfig(data=bad)))
    with caplog.at_level("INFO"):
        assert words in (message := refused(config, tmp_path))
    assert bad in message
    assert "prompts" not in caplog.text  # those of the good set are reported once the run can start


def test_an_empty_evaluation_set_is_refused(tmp_path):
    write_records([], tmp_path / "none", class_names=("cat",))
    message = refused(tiny_runs.run_config(zero_shot=(ZeroShotConfig(data=str(tmp_path / "none")),)), tmp_path)
    assert message == (
        f"zero-shot evaluation 0: data folder {tmp_path / 'none'} has no records; there is nothing to score. "
        "Set --zero-shot.0.data, or --zero-shot none for no scores"
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder of the tiny model with random weights."""
    config = tiny_runs.run_config()
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    weights = CLIP.init(config.model, key=jr.key(0))
    folder = tmp_path_factory.mktemp("models") / "model"
    return save_model(folder, weights, tokenizer=tokenizer, preprocess=config.eval_image, provenance={})


def starting_from(source, **fields):
    return tiny_runs.run_config(init=InitConfig(source=str(source)), **fields)


def test_weights_to_start_from_are_checked_by_kind_shape_and_vocabulary(model, tmp_path):
    assert "nowhere does not exist; expected a run folder or a model folder" in refused(
        starting_from(tmp_path / "nowhere"), tmp_path
    )
    assert "is a record folder; expected" in refused(starting_from(tiny_runs.folder() / "records"), tmp_path)
    wide = starting_from(model, model=tiny_clip_config(blocks={"mlp_dim": 128}))
    assert "image/blocks/mlp/fc_in/weight: (2, 64, 32) found, (2, 128, 32) wanted" in refused(wide, tmp_path)
    long = starting_from(model, model=tiny_clip_config(text={"length": 16}))
    assert "(resize_text resamples it)" in refused(long, tmp_path)
    allowed = dataclasses.replace(long, init=InitConfig(source=str(model), resize_text=True))
    prepare(allowed, tmp_path / "run", devices=tiny_runs.one_device())
    write_vocab((*PIECES[:-1], "other"), tmp_path / "vocab.txt")
    other = starting_from(model)
    other = dataclasses.replace(other, data=dataclasses.replace(other.data, vocab=str(tmp_path / "vocab.txt")))
    assert "was trained with another vocabulary" in refused(other, tmp_path)
    optimizer = dataclasses.replace(
        other, data=starting_from(model).data, init=InitConfig(source=str(model), optimizer=True)
    )
    assert "has no optimizer.safetensors" in refused(optimizer, tmp_path)


def test_a_damaged_source_is_refused_by_its_header(model, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refused(starting_from(tmp_path / "model"), tmp_path)


def test_a_batch_that_the_devices_do_not_divide_is_refused_first(tmp_path):
    config = dataclasses.replace(on_data("/nowhere"), batch_size=12, mesh=MeshConfig(data=1))
    with pytest.raises(ClipaError, match=r"mesh data=1 .* is not 8 devices"):
        prepare(config, tmp_path / "run", devices=None)
    config = dataclasses.replace(config, mesh=MeshConfig())
    with pytest.raises(ClipaError, match="batch_size 12 cannot be split evenly over 8 devices"):
        prepare(config, tmp_path / "run", devices=None)


def test_the_first_line_of_the_log_names_the_devices(tmp_path, caplog):
    with caplog.at_level("INFO"):
        prepare(tiny_runs.run_config(), tmp_path / "run", devices=tiny_runs.one_device())
    assert caplog.records[0].getMessage() == "training on 1 x cpu"


@pytest.fixture
def fake_wandb(monkeypatch):
    """A wandb package whose ``login`` knows no key, and what it was asked."""
    asked = []

    def login(*, prompt=True):
        asked.append(prompt)
        return False

    package = types.ModuleType("wandb")
    package.login = login
    monkeypatch.setitem(sys.modules, "wandb", package)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return package, asked


def test_a_missing_wandb_package_is_reported_before_compiling(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny_runs.run_config(wandb=WandbConfig(project="p", offline=True))
    assert "wandb is asked for but not installed" in refused(config, tmp_path)


def test_a_missing_wandb_key_is_reported_before_compiling(fake_wandb, tmp_path):
    message = refused(tiny_runs.run_config(wandb=WandbConfig(project="p")), tmp_path)
    assert "run `wandb login`, or set WANDB_API_KEY" in message
    assert fake_wandb[1] == [False]  # nobody is asked for a key


def test_a_key_that_the_server_refuses_is_reported(fake_wandb):
    def login(*, prompt=True):
        raise ValueError("401 unauthorized")

    fake_wandb[0].login = login
    with pytest.raises(ConfigError, match="wandb cannot be used: 401 unauthorized; fix that"):
        check_wandb(WandbConfig(project="p"))


def test_older_versions_of_wandb_are_asked_for_their_key(fake_wandb):
    package = fake_wandb[0]
    package.login = lambda key=None: pytest.fail("it would ask the user")
    package.api = types.SimpleNamespace(api_key="k")
    check_wandb(WandbConfig(project="p"))
    package.api.api_key = None
    with pytest.raises(ConfigError, match="no API key"):
        check_wandb(WandbConfig(project="p"))


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_no_key_is_needed_where_nothing_is_sent(mode, fake_wandb, monkeypatch):
    check_wandb(WandbConfig(project="p", offline=True))
    monkeypatch.setenv("WANDB_MODE", mode)
    check_wandb(WandbConfig(project="p"))
    assert fake_wandb[1] == []


def test_a_run_that_wandb_cannot_open_is_one_message(fake_wandb, tmp_path):
    asked = {}

    def init(**settings):
        asked.update(settings)
        raise TimeoutError("no answer")

    fake_wandb[0].init = init
    with pytest.raises(ConfigError, match="cannot be opened in wandb: no answer; fix that"):
        open_wandb(WandbConfig(project="p"), tmp_path)
    assert asked["mode"] is None  # WANDB_MODE decides
