"""Indexes of folders of photos: first use, updates, kills and damage, and searches from the command line."""

import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.scored_runs import noise_png
from support.tiny_models import tiny_clip, tiny_tokenizer

from clipa_eqx.cli import OK, USAGE, run
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.programs.search import main
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.search import photos as photos_room
from clipa_eqx.search.inputs import list_images
from clipa_eqx.search.photos import changes_of, open_photos

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPA_EQX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def search(capsys):
    """Call the program; gives its exit code, the names and scores of its results, and all it printed."""

    def call(*argv):
        code = run(partial(main, [str(one) for one in argv]))
        shown = capsys.readouterr()
        hits = re.findall(r"^ +\d+  (-?[\d.]+)  (\S+)", shown.out, re.MULTILINE)
        return code, [(name, float(score)) for score, name in hits], shown.out + shown.err

    return call


def index_of(tmp_path):
    (found,) = (tmp_path / "cache" / "photos").iterdir()
    return found


def expected(model_folder, folder, query):
    """Names and scores of all photos by the library's own embeddings, best first."""
    clip = load_model(model_folder)
    names = [file.name for file in list_images(folder)]
    scores = clip.encode_images([folder / name for name in names]) @ query(clip)
    return [(names[i], scores[i]) for i in np.argsort(-scores, kind="stable")]


def assert_same(hits, others):
    assert [name for name, _ in hits] == [name for name, _ in others]
    np.testing.assert_allclose([score for _, score in hits], [score for _, score in others], atol=1e-4)


def test_a_folder_of_photos_is_searched_by_text_and_by_image(search, photos, model_folder, tmp_path):
    before = sorted(photos.rglob("*"))
    code, hits, shown = search(photos, "--text", "a cat", "--model", model_folder, "-k", 4)
    assert code == OK, shown
    assert_same(hits, expected(model_folder, photos, lambda clip: clip.encode_texts(["a cat"])[0])[:4])
    code, hits, shown = search(photos, "--image", photos / "2.png", "-k", 99)
    assert (code, len(hits), hits[0]) == (OK, 7, ("2.png", 1.0))
    assert "7 photos: 0 new or changed, 0 gone" in shown
    assert_same(hits, expected(model_folder, photos, lambda clip: clip.encode_images([photos / "2.png"])[0]))
    assert sorted(photos.rglob("*")) == before  # nothing is written to the user's folder


def test_only_new_and_changed_photos_are_embedded_and_deleted_ones_are_dropped(
    search, photos, model_folder, tmp_path, monkeypatch
):
    search(photos, "--text", "a dog", "--model", model_folder)
    embedded = []
    real = photos_room.encode_items

    def watched(encoder, items, **options):
        listed = list(items)
        embedded.extend(item.content.name for item in listed)
        return real(encoder, iter(listed), **options)

    monkeypatch.setattr(photos_room, "encode_items", watched)
    (photos / "0.png").unlink()
    (photos / "1.png").write_bytes(noise_png(71))
    os.utime(photos / "1.png", (1, 1))
    (photos / "8.png").write_bytes(noise_png(8))
    (photos / "more" / "3.png").rename(photos / "more" / "9.png")
    _code, hits, shown = search(photos, "--text", "a dog", "-k", 99)
    assert sorted(embedded) == ["1.png", "8.png", "9.png"]
    assert "7 photos: 3 new or changed, 3 gone" in shown
    assert_same(hits, expected(model_folder, photos, lambda clip: clip.encode_texts(["a dog"])[0]))


def test_rows_of_deleted_photos_leave_the_disk_once_they_are_more_than_half(search, photos, model_folder, tmp_path):
    search(photos, "--text", "a dog", "--model", model_folder)
    for name in ("0.png", "1.png", "2.png"):
        (photos / name).unlink()
    search(photos, "--text", "a dog")
    index = index_of(tmp_path)
    assert changes_of(index, photos).dropped == 3
    (photos / "4.png").unlink()
    _code, hits, _ = search(photos, "--text", "a dog", "-k", 99)
    assert [path.name for path in sorted(index.glob("*.npy"))] == ["00001.npy"]
    assert changes_of(index, photos).rows == 3
    assert_same(hits, expected(model_folder, photos, lambda clip: clip.encode_texts(["a dog"])[0]))


def test_a_kill_while_photos_are_embedded_keeps_complete_shards(search, photos, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(photos_room, "SHARD_FILES", 2)
    real, calls = photos_room.write_shard, []

    def dies(*arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(photos_room, "write_shard", dies)
    code, _, shown = search(photos, "--text", "a dog", "--model", model_folder)
    assert code == 130
    monkeypatch.setattr(photos_room, "write_shard", real)
    code, hits, shown = search(photos, "--text", "a dog", "-k", 99)
    assert "7 photos: 3 new or changed, 0 gone" in shown
    assert_same(hits, expected(model_folder, photos, lambda clip: clip.encode_texts(["a dog"])[0]))


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(path.read_bytes()[:-40]), pytest.param(Path.unlink, marks=pytest.mark.slow)],
)
def test_a_damaged_shard_of_the_index_is_embedded_again(search, photos, model_folder, tmp_path, damage):
    search(photos, "--text", "a dog", "--model", model_folder)
    damage(index_of(tmp_path) / "00000.npy")
    code, hits, shown = search(photos, "--text", "a dog", "-k", 99)
    assert code == OK
    assert "7 photos: 7 new or changed" in shown
    assert "a shard of the index is damaged" in shown
    assert len(hits) == 7
    assert "0 new or changed" in search(photos, "--text", "a dog")[2]


def test_an_unreadable_photo_is_named_once_and_left_out(search, photos, model_folder):
    (photos / "5.png").write_bytes(b"no image")
    code, hits, shown = search(photos, "--text", "a dog", "--model", model_folder, "-k", 99)
    assert (code, len(hits)) == (OK, 6)
    assert "left out: 5.png: cannot decode image" in shown
    assert "left out" not in search(photos, "--text", "a dog")[2]


def test_an_index_is_of_one_folder_and_one_model(search, photos, model_folder, tmp_path):
    other = save_model(
        tmp_path / "other",
        tiny_clip(seed=1),
        tokenizer=tiny_tokenizer(),
        preprocess=EvalImageConfig(size=(16, 16)),
        provenance={},
    )
    search(photos, "--text", "a dog", "--model", model_folder, "--index", tmp_path / "index")
    assert open_photos(tmp_path / "index", photos).kind == "images"
    code, _, shown = search(photos, "--text", "a dog", "--model", other, "--index", tmp_path / "index")
    assert code == USAGE
    assert "was made with another model (weights_sha256 differ); name another --index" in shown
    shutil.copytree(photos, tmp_path / "copies")
    code, _, shown = search(tmp_path / "copies", "--text", "a dog", "--index", tmp_path / "index")
    assert code == USAGE
    assert f"is of {photos}, not of" in shown
    assert search(tmp_path / "index", "--text", "a dog")[0] == OK  # the index itself names its folder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["PHOTOS", "--text", "a"], "has no index yet; give --model"),
        (["PHOTOS", "--model", "MODEL"], "nothing is searched for; give --text TEXT or --image FILE"),
        (["NONE", "--text", "a"], "does not exist; give a folder of photos or of embeddings"),
        (["MODEL", "--text", "a"], "is a model folder; give a folder of photos or of embeddings"),
        (["EMPTY", "--text", "a", "--model", "MODEL"], "has no images; give a folder of photos"),
        (["PHOTOS", "--image", "NONE", "--model", "MODEL"], "is not a file; give an image file"),
        (["PHOTOS", "--image", "BROKEN", "--model", "MODEL"], "cannot decode image"),
        (["PHOTOS", "--text", "a", "-k", "0"], "-k is 0; it must be at least 1"),
        (["PHOTOS", "--text", "a", "--html", "EMPTY"], "is a folder; give the name of an HTML file"),
    ],
)
def test_mistakes_end_with_one_message(search, photos, model_folder, tmp_path, argv, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").write_bytes(b"no image")
    names = {name.upper(): tmp_path / name for name in ("photos", "none", "empty", "broken")} | {"MODEL": model_folder}
    code, hits, shown = search(*(names.get(one, one) for one in argv))
    assert (code, hits) == (USAGE, [])
    assert message in shown


def test_the_page_holds_thumbnails_and_escaped_names(search, photos, model_folder, tmp_path):
    (photos / "0.png").rename(photos / "<b>&.png")
    page = tmp_path / "out" / "page.html"
    code, _, _ = search(photos, "--text", "a <i> dog", "--model", model_folder, "-k", 9, "--html", page)
    assert code == OK
    text = page.read_text()
    assert text.count('<img src="data:image/jpeg;base64,') == 7
    assert "&lt;b&gt;&amp;.png" in text
    assert "a &lt;i&gt; dog" in text
    assert not re.search(r"<(b|i)>|https?://|src=\"(?!data:)", text)
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
