"""Conversions of one source give equal bytes: no address, no temporary path, with every reason among the rows."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from support import dumps
from support.conversions import content, ingest, write_tar
from support.dumps import jpeg, samples, write_table
from support.paths import ROOT

from clipa_eqx.data.images.decode import MAX_PIXELS
from clipa_eqx.data.manifest import read_manifest
from conversion.records import rows
from conversion.records.rows import printable, stable

NAME = re.compile(r"`([a-z_]+)`")
REASONS = {
    value
    for name, value in vars(rows).items()
    if name.isupper() and not name.startswith("_") and isinstance(value, str) and name != "LOCAL_COPY"
}


def image(size, form, mode="P"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, form)
    return file.getvalue()


def write_tars(folder):
    """A sample for each reason that a tar can give, and a tar that is cut."""
    good = dumps.jpeg(0, width=40, height=40)
    bad = {
        "html": {"jpg": b"<html><body>404 Not Found</body></html>", "txt": b"a"},
        "tiff": {"jpg": image((40, 40), "TIFF"), "txt": b"a"},
        "cut": {"jpg": good[:-100], "txt": b"a"},
        "huge": {"png": image((MAX_PIXELS // 8000 + 1, 8000), "PNG", "1"), "txt": b"a"},
        "small": {"jpg": jpeg(1), "txt": b"a"},
        "caf\udce9": {"jpg": good, "txt": b"a"},
        "blind": {"txt": b"a"},
        "mute": {"jpg": good},
        "empty": {"jpg": good, "txt": b" "},
        "latin": {"jpg": good, "txt": b"caf\xe9"},
        "json": {"jpg": good, "txt": b"a", "json": b"<"},
        "good": {"jpg": good, "txt": b"a", "json": b'{"url": "u"}'},
    }
    members = [(f"{key}.{suffix}", value) for key, sample in bad.items() for suffix, value in sample.items()]
    write_tar(folder / "0.tar", members)
    write_tar(folder / "1.tar", [("good.jpg", good), ("good.txt", b"b"), *members[-3:], ("z.jpg", good)])
    cut = folder / "1.tar"
    cut.write_bytes(cut.read_bytes()[: cut.read_bytes().index(b"z.jpg") + 600])


def write_labels(folder):
    dumps.write_tfds(folder, [[*samples(2), dumps.replace(samples(1)[0], key="x", label=-1)], samples(2)])
    dumps.write_tfds(folder, [[*samples(2), dumps.replace(samples(1)[0], key="x", label=7)], samples(2)], info=False)
    with zipfile.ZipFile(folder.parent / "labels.zip", "w") as packed:
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            packed.writestr(path.name, data[:-20] if path.name.endswith("00001-of-00002") else data)


def write_tables(folder):
    status = ["success", "failed_to_download"]
    write_table(
        folder / "0.parquet", {"key": ["a", "b"], "jpg": [jpeg(0), None], "caption": ["a", "b"], "status": status}
    )
    write_table(folder / "1.parquet", {"key": ["c"], "jpg": [jpeg(0)], "caption": ["a"], "status": status[:1]})
    data = (folder / "1.parquet").read_bytes()
    with zipfile.ZipFile(folder.parent / "tables.zip", "w") as packed:
        packed.write(folder / "0.parquet", "0.parquet")
        packed.writestr("1.parquet", data[:4] + bytes(len(data) - 12) + data[-8:])


CODE = """
import json
import sys
import pytest
from support.conversions import ingest, interrupted
folder, runs, tars, labels, negative, tables, folders = sys.argv[1:]

def convert_all(out, workers, after):
    def convert(source, name, most=1, workers=workers, **options):
        if after:
            interrupted(pytest.MonkeyPatch(), source, f"{out}/{name}", after=min(after, most), **options)
        ingest(source, f"{out}/{name}", workers=workers, **options)

    convert(tars, "tars", most=2, keep=("url",), min_side=30)
    convert(tars, "filtered", subset=f"{folder}/keys.npy", where=("url != 'u'",))
    convert(labels, "labels", workers=1, kind="tfds")  # each worker imports TensorFlow, which takes seconds
    convert(negative, "negative", kind="captions", label_column="label", records_per_shard=1)
    convert(tables, "tables", kind="parquet")
    convert(folders, "folders", kind="folder", records_per_shard=2)

if __name__ == "__main__":
    for name, (workers, after) in json.loads(runs).items():
        convert_all(f"{folder}/{name}", workers, after)
"""
# Name -> workers, and parts after which the conversion is interrupted and then resumed; 0 is not interrupted. After two
# parts, the tars are interrupted before duplicate keys are dropped.
PROCESSES = (
    {"one": (1, 0)},
    {"two": (2, 0), "resumed": (1, 1), "resumed late": (1, 2)},
)
NAMES = [name for runs in PROCESSES for name in runs]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Convert sources that hold every reason in two processes, each with its own folder of temporary files."""
    tmp_path = tmp_path_factory.mktemp("equal")
    write_tars(tmp_path / "tars")
    np.save(tmp_path / "keys.npy", np.array(["mute", "good", "nowhere"]))
    write_labels(tmp_path / "labels")
    (tmp_path / "tables").mkdir()
    write_tables(tmp_path / "tables")
    dumps.write_images(tmp_path, [samples(2)])
    (tmp_path / "labels.csv").write_text("path,label\nimages/000000000.jpg,\nimages/000000001.jpg,3\nx.jpg,3,4\n")
    dumps.write_class_folders(tmp_path / "folders", [samples(4)])
    (tmp_path / "folders/stray.jpg").write_bytes(jpeg(5))
    sources = [
        tmp_path / "tars",
        f"zip://*::{tmp_path}/labels.zip",
        tmp_path / "labels.csv",
        f"zip://*::{tmp_path}/tables.zip",
        tmp_path / "folders",
    ]
    for number, runs in enumerate(PROCESSES):
        temporary = tmp_path / f"tmp {number}"
        temporary.mkdir()
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path), json.dumps(runs), *map(str, sources)],
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": str(temporary)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return tmp_path


def test_every_reason_is_among_the_rows(runs):
    seen = {reason for folder in (runs / "one").iterdir() for reason in read_manifest(folder).rows_dropped}
    assert seen == REASONS


@pytest.mark.parametrize("name", NAMES[1:])
def test_conversions_of_one_source_give_equal_bytes(name, runs):
    folders = sorted(path.name for path in (runs / "one").iterdir())
    assert folders == sorted(path.name for path in (runs / name).iterdir())
    for folder in folders:
        assert content(runs / name / folder) == content(runs / "one" / folder), folder


def test_no_manifest_holds_an_address_or_a_temporary_folder(runs):
    for path in (runs / "one").glob("*/manifest.json"):
        text = path.read_text()
        assert "0x" not in text
        assert "clipa_eqx-" not in text
        assert f"{runs}/tmp " not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "cannot identify image file <_io.BytesIO object at 0x7f3bb3d69210>",
            "cannot identify image file <_io.BytesIO>",
        ),
        ("at 0x1F of <Foo at 0xabc>", "at 0x1F of <Foo>"),
        ("open '/tmp/x y/clipa_eqx-copy-ab_c12/0.parquet' failed", "open '0.parquet' failed"),
        ("open /tmp/clipa_eqx-1/clipa_eqx-copy-abc/0.parquet", "open 0.parquet"),
        ("corrupted record at 0", "corrupted record at 0"),
    ],
)
def test_what_differs_between_equal_conversions_is_left_out(text, expected, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/x y")
    assert stable(text) == expected
    assert stable(expected) == expected


def test_a_detail_names_neither_an_object_nor_a_folder_of_copies(tmp_path):
    write_tars(tmp_path / "tars")
    np.save(tmp_path / "keys.npy", np.array(["mute", "good", "nowhere"]))
    manifest = ingest(tmp_path / "tars", tmp_path / "out")
    details = [one["detail"] for one in manifest.info["examples"]["undecodable image"]]
    assert len(details) == 3
    assert all("<_io" not in printable(detail) for detail in details)


def test_the_manual_describes_every_field_that_the_manifests_of_sources_and_tools_hold(runs, tmp_path):
    dumps.write_coco(tmp_path / "coco", [samples(2)])
    path = tmp_path / "coco/captions.json"
    listed = json.loads(path.read_text())
    listed["annotations"].append({"image_id": 99, "caption": "x"})
    path.write_text(json.dumps(listed))
    manifests = [read_manifest(folder) for folder in sorted((runs / "one").iterdir())]
    manifests.append(ingest(path, tmp_path / "out", kind="captions"))
    manual = (ROOT / "docs/ingest.md").read_text().partition("## The manifest\n")[2].partition("\n## ")[0]
    described = {name for line in manual.splitlines() if line.startswith("| `") for name in NAME.findall(line)}
    held = {name for manifest in manifests for name in manifest.info}
    assert {"captions_of_unlisted_pictures", "unknown_pieces", "labels", "versions"} <= held
    assert held <= described
