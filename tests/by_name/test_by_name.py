"""Models by name: converted once, from a stand-in of the hub or from a file, and every way in which that can fail."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from types import SimpleNamespace

import pytest
from support.flax_checkpoints import random_clip, tiny_arrays, write_npz
from support.leaves import assert_same_leaves
from support.open_clip_folders import CONFIG, WEIGHTS, export_tiny, save, tiny_model
from support.paths import ROOT
from support.tiny_models import tiny_clip_config

import clipa_eqx
from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError, ConfigError, ConversionError
from clipa_eqx.programs import embed
from clipa_eqx.saved.by_name import local_model
from clipa_eqx.saved.model import load_model
from clipa_eqx.surgery.init_config import InitConfig
from clipa_eqx.training.start import describe_source
from conversion.by_name import converting, names
from conversion.flax_clipa.names import to_flax
from conversion.weights import named_configs

pytestmark = pytest.mark.usefixtures("quick_compile")

REPOSITORY = "hf-hub:someone/ViT"


class Hub:
    """The hub, without the network: a folder per repository and revision, and what was asked for."""

    def __init__(self, folder):
        self.folder, self.asked, self.failing = folder, [], set()

    def __call__(self, repo, name, revision="main"):
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        self.asked.append((repo, revision, name))
        if name in self.failing:
            raise LocalEntryNotFoundError("an outage of the network")
        path = self.folder / f"{repo.replace('/', '--')}@{revision}" / name
        if not path.is_file():
            raise EntryNotFoundError("404")
        return str(path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("open_clip"))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPA_EQX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub(exported, tmp_path, monkeypatch, cache):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    shutil.copytree(exported, tmp_path / "hub" / "someone--ViT@main")
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    return hub


@pytest.fixture
def released(monkeypatch, cache, tmp_path):
    """The name of a released model of a tiny architecture, its file, and its parameters."""
    config = tiny_clip_config(text={"vocab": 32000}, blocks={"depth": 1})
    model = random_clip(config)
    row = SimpleNamespace(
        name="b14-16px-t8-datacomp1b",
        profile="flax",
        url="https://example.org/tiny",
        config=lambda: config,
        preprocess=lambda: EvalImageConfig(size=config.image.image_size, resize="squash"),
        text_reduction="syntax",
    )
    for module in (names, named_configs):
        monkeypatch.setattr(module, "RELEASED", {**module.RELEASED, row.name: row})
    arrays = {f"params/{name}": array for name, array in to_flax(model).items()}
    return row.name, write_npz(tmp_path / "tiny.npz", arrays), model


def no_converter(monkeypatch):
    def refuse(*_):
        raise AssertionError("it is converted already")

    monkeypatch.setattr(converting, "import_open_clip", refuse)
    monkeypatch.setattr(converting, "import_flax", refuse)


def test_a_repository_is_converted_once_and_then_read_without_the_hub(hub, cache, monkeypatch):
    loaded = clipa_eqx.load_model(REPOSITORY)
    assert_same_leaves(loaded.model, tiny_model())
    assert (cache / "someone--ViT@main" / "provenance.json").is_file()
    assert loaded.provenance.self_check["finite"] is True
    assert hub.asked[:2] == [("someone/ViT", "main", CONFIG), ("someone/ViT", "main", WEIGHTS)]
    hub.asked.clear()
    no_converter(monkeypatch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_same_leaves(load_model(REPOSITORY).model, tiny_model())
    assert hub.asked == []


@pytest.mark.usefixtures("no_self_check")
def test_a_revision_has_a_folder_of_its_own(hub, cache, tmp_path):
    shutil.copytree(tmp_path / "hub" / "someone--ViT@main", tmp_path / "hub" / "someone--ViT@v1")
    local_model(f"{REPOSITORY}@v1")
    assert {revision for _, revision, _ in hub.asked} == {"v1"}
    assert [path.name for path in cache.iterdir() if path.name[0] != "."] == ["someone--ViT@v1"]


@pytest.mark.usefixtures("no_self_check")
def test_a_released_model_is_converted_from_its_file_once(released, cache, monkeypatch, tmp_path):
    name, file, model = released
    loaded = load_model(name, weights=file)
    assert_same_leaves(loaded.model, model)
    assert (loaded.provenance.prompt_reduction, loaded.preprocess.config.resize) == ("syntax", "squash")
    with monkeypatch.context() as patch:
        no_converter(patch)
        assert_same_leaves(load_model(name, weights=str(file)).model, model)
    os.utime(file, (1, 1))  # another file of the same name is converted again
    load_model(name, weights=file)
    assert len([path for path in cache.iterdir() if path.name[0] != "."]) == 2


@pytest.mark.usefixtures("no_self_check")
def test_weights_that_do_not_fit_the_named_model_are_refused_and_nothing_is_left(released, cache, tmp_path):
    name, _, _ = released
    other = write_npz(tmp_path / "other.npz", tiny_arrays())
    with pytest.raises(ConversionError, match=r"cannot be converted: .*problems"):
        load_model(name, weights=other)
    assert [path for path in cache.iterdir() if path.name[0] != "."] == []


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("h14-224px-t32-datacomp", None, "did you mean h14-224px-t32-datacomp1b"),
        ("H14-224px-t32-laion2B", None, "no released model is called"),
        ("nonsense", "FILE", "no released model is called 'nonsense'"),
        ("h14-224px-t32-datacomp1b", None, "needs its weights: download the file from https://drive"),
        ("h14-224px-t32-datacomp1b", "none.npz", "none.npz is not a file; give the file that was downloaded from"),
        ("hf-hub:nobody", None, "is no repository; give hf-hub:OWNER/NAME"),
        (REPOSITORY, "FILE", "which has its own; leave them out"),
    ],
)
def test_wrong_names_and_weights_are_one_message(cache, name, weights, message):
    with pytest.raises(ConfigError, match=message):
        load_model(name, weights=weights)
    assert not cache.exists()


@pytest.mark.parametrize("name", ["runs/h14", "model", "no-such-run", "first_run"])
def test_other_words_stay_paths(cache, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"{name} does not exist"):
        load_model(name)


def test_a_folder_with_the_name_of_a_released_model_is_that_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("h14-224px-t32-datacomp1b", tiny_model())
    assert_same_leaves(load_model("h14-224px-t32-datacomp1b").model, tiny_model())


@pytest.mark.usefixtures("no_self_check")
def test_an_outage_names_what_the_cache_holds_and_a_partial_download_is_resumed(hub, cache):
    hub.failing = {WEIGHTS}
    with pytest.raises(
        ConversionError, match=r"cannot be downloaded .*an outage.*copy the.*The cache is .*it is empty"
    ):
        load_model(REPOSITORY)
    hub.failing = set()
    load_model(REPOSITORY)
    with pytest.raises(ConversionError, match=r"it holds someone--ViT@main; set CLIPA_EQX_CACHE"):
        load_model("hf-hub:someone/other")


def test_without_the_hub_library_the_message_says_what_to_install(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConversionError, match="pip install huggingface_hub"):
        load_model(REPOSITORY)


@pytest.mark.usefixtures("no_self_check")
def test_two_that_ask_at_the_same_time_convert_once(hub, monkeypatch):
    real, running, most, calls = converting.import_open_clip, [], [], []

    def slow(*arguments):
        running.append(1)
        calls.append(1)
        most.append(len(running))
        time.sleep(0.2)
        real(*arguments)
        running.pop()

    monkeypatch.setattr(converting, "import_open_clip", slow)
    # A lock belongs to an opened file, so that two threads exclude each other as two processes do.
    threads = [threading.Thread(target=local_model, args=(REPOSITORY,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(calls), max(most)) == (1, 1)
    assert_same_leaves(load_model(REPOSITORY).model, tiny_model())


KILLED = """
import os, sys
from conversion.by_name import converting
from conversion.weights import write_model
write_model.write_description = lambda *a, **o: os._exit(9)
from clipa_eqx.saved.by_name import local_model
local_model(sys.argv[1], weights=sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_folder_and_the_next_one_cleans_up(released, cache, tmp_path):
    name, file, model = released
    code = (
        "from conversion.by_name import names\nfrom conversion.weights import named_configs\n"
        "import sys; sys.path.insert(0, 'tests')\n"
        "from support.tiny_models import tiny_clip_config\n"
        "from types import SimpleNamespace\n"
        "from clipa_eqx.data.images.evaluation import EvalImageConfig\n"
        "config = tiny_clip_config(text={'vocab': 32000}, blocks={'depth': 1})\n"
        f"row = SimpleNamespace(name={name!r}, profile='flax', url='u', config=lambda: config, text_reduction='syntax',"
        " preprocess=lambda: EvalImageConfig(size=(16, 16)))\n"
        "for m in (names, named_configs): m.RELEASED = {**m.RELEASED, row.name: row}\n" + KILLED
    )
    done = subprocess.run([sys.executable, "-c", code, name, str(file)], cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 9
    left = [path.name for path in cache.iterdir() if ".new-" in path.name]
    assert len(left) == 1
    assert_same_leaves(load_model(name, weights=file).model, model)
    assert [path.name for path in cache.iterdir() if ".new-" in path.name] == []


@pytest.mark.usefixtures("no_self_check")
def test_a_full_disk_is_one_message_and_leaves_nothing(hub, cache, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("conversion.weights.write_model.write_description", full)
    with pytest.raises(ConversionError, match="No space left on device"):
        load_model(REPOSITORY)
    assert [path for path in cache.iterdir() if path.name[0] != "." or ".new-" in path.name] == []


@pytest.mark.usefixtures("no_self_check")
def test_a_cache_that_cannot_be_written_is_read_and_else_one_message(hub, cache, tmp_path, monkeypatch):
    local_model(REPOSITORY)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)  # root may write to any folder, so permissions would not do
    assert_same_leaves(load_model(REPOSITORY).model, tiny_model())
    with pytest.raises(
        ConversionError, match=r"cannot be created .Permission denied.; give a folder that can be written"
    ):
        load_model("hf-hub:someone/other")


@pytest.mark.usefixtures("no_self_check")
def test_a_damaged_folder_of_the_cache_is_named_with_the_remedy(hub, cache):
    weights = local_model(REPOSITORY) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"delete {cache}/someone--ViT@main, and {REPOSITORY} is converted again"):
        load_model(REPOSITORY)


@pytest.mark.usefixtures("no_self_check")
def test_programs_and_configs_take_names(hub, tmp_path, capsys):
    (tmp_path / "texts").write_text("w1 w2\nw3\n")
    argv = [REPOSITORY, "--texts", str(tmp_path / "texts"), "--out", str(tmp_path / "out"), "--batch-size", "8"]
    assert run(partial(embed.main, argv)) == OK, capsys.readouterr().err
    assert f'"path": "{REPOSITORY}"' in (tmp_path / "out" / "embeddings.json").read_text()
    assert (
        describe_source(InitConfig(source=REPOSITORY)).vocab_sha256
        == load_model(REPOSITORY).tokenizer.tokenizer.vocab_sha256
    )
    argv[0] = "hf-hub:someone/other"
    assert run(partial(embed.main, argv)) == USAGE
    assert "hf-hub:someone/other cannot be converted" in capsys.readouterr().err


def test_folders_are_read_without_the_converters(tmp_path, monkeypatch):
    save(tmp_path / "model", tiny_model())
    for name in ("conversion.by_name.names", "conversion.by_name.converting"):
        monkeypatch.setitem(sys.modules, name, None)
    assert_same_leaves(load_model(tmp_path / "model").model, tiny_model())
    with pytest.raises(ConfigError, match="models by name need the package conversion"):
        load_model(REPOSITORY)
