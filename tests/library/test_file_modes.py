"""The umask of the user determines who may read and write each file and folder that this package writes."""

import os
from contextlib import contextmanager

import pytest
from support import dumps, tiny_runs
from support.dumps import Sample
from support.random_models import random_model
from support.tiny_models import PIECES, SIZE, tiny_clip_config, tiny_tokenizer

from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.programs import show
from clipa_eqx.programs.score import write_result
from clipa_eqx.saved.model import save_model
from clipa_eqx.tokenizer.vocabulary import write_vocab
from clipa_eqx.training.run_lock import run_lock
from conversion.flax_clipa.exporting import export_flax
from conversion.open_clip.exporting import export_open_clip
from conversion.records.__main__ import main as convert

pytestmark = pytest.mark.usefixtures("quick_compile")


@contextmanager
def umask(mask):
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def wrong_modes(folder, mask):
    """Entries of a folder whose mode is not that of the umask, with their mode."""
    entries = [path for path in folder.rglob("*") if not path.is_symlink()]
    assert entries
    wanted = {path: (0o777 if path.is_dir() else 0o666) & ~mask for path in entries}
    modes = {path: path.stat().st_mode & 0o777 for path in entries}
    return {str(path.relative_to(folder)): oct(mode) for path, mode in modes.items() if mode != wanted[path]}


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o027])
def test_files_and_folders_have_the_mode_of_the_umask(mask, tmp_path, dump):
    made = tmp_path / "made"
    with umask(mask):
        made.mkdir()
        save_model(
            made / "model",
            random_model(tiny_clip_config()),
            tokenizer=tiny_tokenizer(),
            preprocess=EvalImageConfig(size=SIZE),
            provenance={"source": {"name": "a test"}},
        )
        export_open_clip(made / "model", made / "open_clip")
        export_flax(made / "model", made / "flax.npz")
        write_records(
            [Record(key="0", image=dumps.jpeg(0, width=32, height=32), captions=("a cat",))], made / "records"
        )
        convert(["webdataset", str(dump), str(made / "converted"), "--workers", "1"])
        show.main([str(made / "records"), "--sheet", str(made / "sheet.png")])
        write_vocab(PIECES, made / "vocab.txt")
        write_result(made / "result.json", {"top1": 0.5})
        with run_lock(made / "run"):
            assert wrong_modes(made, mask) == {}
    assert {path.name for path in made.iterdir()} == {
        *("model", "open_clip", "flax.npz", "records", "converted", "sheet.png", "vocab.txt", "result.json")
    }


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dump") / "dump"
    dumps.write_tars(folder, [[Sample("a", dumps.jpeg(1, width=32, height=32), (b"text",), 0)]])
    return folder


def test_the_files_of_a_run_have_the_mode_of_the_umask(tmp_path):
    with umask(0o027):
        tiny_runs.train_on_one_device(tiny_runs.run_config(), tmp_path / "runs" / "run")
    assert wrong_modes(tmp_path, 0o027) == {}
    assert len(list((tmp_path / "runs" / "run").rglob("*"))) > 40
