"""Guards the sources of open_clip models, files, folders and the hub, and the messages when something is missing."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from support.leaves import assert_same_leaves
from support.open_clip_folders import CONFIG, WEIGHTS, convert

from clipa_eqx.cli import run
from clipa_eqx.errors import ConversionError
from clipa_eqx.saved.leaf_file import Leaf
from conversion.open_clip.__main__ import main
from conversion.open_clip.files import file_names

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_without_torch_the_message_for_a_bin_says_what_to_install(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "open_clip_pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    argv = ["import", str(tmp_path / "open_clip_pytorch_model.bin"), str(tmp_path / "back")]
    assert run(lambda: main(argv)) == 2
    assert "pip install torch" in capsys.readouterr().err


def test_an_archive_with_compressed_or_outside_entries_is_refused_before_torch_reads_it(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
        archive.writestr("../evil", b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(lambda: main(["import", str(tmp_path / "model.bin"), str(tmp_path / "back")])) == 2
    err = capsys.readouterr().err
    assert "archive/data.pkl is compressed" in err
    assert "../evil points outside of the archive" in err


def test_a_flipped_bit_of_a_bin_is_found_before_torch_maps_the_file(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 1000)
        archive.writestr("archive/data/0", b"weights" * 1000)
    data = bytearray((tmp_path / "model.bin").read_bytes())
    data[data.index(b"weights") + 99] ^= 4
    (tmp_path / "model.bin").write_bytes(data)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(lambda: main(["import", str(tmp_path / "model.bin"), str(tmp_path / "back")])) == 2
    assert "damaged: archive/data/0 of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("nothing", "there is no file or folder nothing; give one, or hf-hub:OWNER/NAME"),
        ("nothing.bin", "there is no file or folder nothing.bin; give one"),
        ("{tmp}/in", "in holds notes.txt, expected one of open_clip_model.safetensors"),
        ("{tmp}/in/notes.txt", "notes.txt is not a weight file; expected .safetensors, .bin, .pt, .pth"),
    ],
)
def test_a_source_without_weights_is_reported(argument, words, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").write_text("hello")
    argv = ["import", argument.format(tmp=tmp_path), str(tmp_path / "back")]
    assert run(lambda: main(argv)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "back").exists()


class Hub:
    """A repository of the hub, without the network."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def __call__(self, repo, name):
        from huggingface_hub.errors import EntryNotFoundError

        self.asked.append((repo, name))
        if not (self.folder / name).is_file():
            raise EntryNotFoundError("404")
        return str(self.folder / name)


def test_a_repository_of_the_hub_is_downloaded_and_converted(model, theirs, tmp_path, monkeypatch):
    import huggingface_hub

    hub = Hub(theirs)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub)
    loaded = convert("hf-hub:someone/ViT", tmp_path / "back")
    assert_same_leaves(loaded.model, model)
    assert loaded.provenance.layout["repository"] == "someone/ViT"
    assert hub.asked[:2] == [("someone/ViT", CONFIG), ("someone/ViT", WEIGHTS)]


def test_a_repository_without_weights_is_reported(theirs, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    (theirs / WEIGHTS).unlink()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Hub(theirs))
    assert run(lambda: main(["import", "hf-hub:someone/ViT", str(tmp_path / "back")])) == 2
    assert "holds none of open_clip_model.safetensors" in capsys.readouterr().err


def test_offline_is_one_clear_message(tmp_path, monkeypatch, capsys):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    argv = ["import", "hf-hub:UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B", str(tmp_path / "back")]
    assert run(lambda: main(argv)) == 2
    err = capsys.readouterr().err
    assert "hf-hub:UCSC-VLAA/ViT-L-14-CLIPA-datacomp1B cannot be downloaded" in err
    assert "copy the repository" in err


def test_the_warnings_of_the_hub_library_are_not_shown(tmp_path):
    # In a new process, because the library sets the level of its log when it is first used.
    pytest.importorskip("huggingface_hub")
    code = (
        "import logging, sys\n"
        "from conversion.open_clip.__main__ import main\n"
        f"try: main(['import', 'hf-hub:not a repo!', {str(tmp_path / 'back')!r}])\n"
        "except Exception as error: print(type(error).__name__, logging.getLogger('huggingface_hub').level)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["ConversionError", "40"]


def test_an_invalid_repository_name_is_reported(tmp_path, capsys):
    assert run(lambda: main(["import", "hf-hub:not a repo!", str(tmp_path / "back")])) == 2
    assert "cannot be downloaded" in capsys.readouterr().err


def test_without_the_hub_library_the_message_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert run(lambda: main(["import", "hf-hub:a/b", str(tmp_path / "back")])) == 2
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_two_names_of_one_tensor_are_refused():
    info = Leaf((32,), np.dtype(np.float32))
    with pytest.raises(ConversionError, match=r"holds ln_final\.bias twice"):
        file_names({"ln_final.bias": info, "text.ln_final.bias": info})


def test_help_needs_no_jax():
    code = (
        "import sys\n"
        "for name in ('open_clip', 't5x', 'compare', 'verify', 'released'):\n"
        "    module = __import__(f'conversion.{name}.__main__', fromlist=['main'])\n"
        "    try: module.main(['--help'])\n"
        "    except SystemExit: pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip().endswith("False")


def test_a_model_is_not_imported_into_its_source_folder(theirs, capsys):
    assert run(lambda: main(["import", str(theirs), str(theirs / "sub")])) == 2
    assert "would be inside the source" in capsys.readouterr().err
    assert not (theirs / "sub").exists()
