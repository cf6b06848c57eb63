"""Arrow files as ``datasets`` saves them: damage, lists of files, and class names in every spelling."""

import contextlib
import json
import random

import pyarrow as pa
import pytest
from support.conversions import captions, ingest
from support.dumps import jpeg, write_table

from clipa_eqx.errors import DataError
from conversion.records.places import open_place
from conversion.records.sources.damage import Damaged
from conversion.records.sources.tables import open_table

SHARD = "data-00000-of-00001.arrow"


def table(count=6, first=0):
    rows = range(first, first + count)
    images = [{"bytes": jpeg(i), "path": f"{i}.jpg"} for i in rows]
    return pa.table({"image": images, "caption": [[f"caption {i}", "another"] for i in rows]})


def write(path, *batches, opened=pa.ipc.new_stream):
    """Write an Arrow file with a batch for each table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, opened(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write_table(batch)


def write_state(folder, *names, **fields):
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **fields}))


@pytest.mark.parametrize("opened", [pa.ipc.new_stream, pa.ipc.new_file])
def test_both_formats_of_arrow_are_read(opened, tmp_path):
    write(tmp_path / "source" / SHARD, table(100), table(3, first=100), opened=opened)
    assert ingest(tmp_path / "source", tmp_path / "out", kind="parquet").rows_written == 103
    assert captions(tmp_path / "out")[::2] == [f"caption {i}" for i in range(103)]


@pytest.mark.parametrize("cut", ["in a batch", "between two batches", "before the end"])
def test_a_cut_stream_gives_its_rows_and_reports_the_rest(cut, tmp_path):
    path = tmp_path / "source" / SHARD
    write(path, table())
    before = path.stat().st_size
    write(path, table(), table(first=6))
    size = {"in a batch": before + 300, "between two batches": before - 8, "before the end": path.stat().st_size - 8}
    path.write_bytes(path.read_bytes()[: size[cut]])
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet")
    assert manifest.rows_written == (12 if cut == "before the end" else 6)
    assert manifest.rows_dropped == {"truncated shard": 1}


def test_damaged_bytes_never_end_the_process(tmp_path):
    path = tmp_path / "source" / SHARD
    write(path, table())
    valid = path.read_bytes()
    dice = random.Random(0)
    for number in range(300):
        data = bytearray(valid)
        for _ in range(dice.randrange(1, 6)):
            data[dice.randrange(len(data) if number % 2 else 1500)] = dice.randrange(256)
        path.write_bytes(data)
        with contextlib.suppress(Damaged), open_table(open_place(path), str(path)) as opened:
            assert sum(1 for _ in opened.rows({"image", "caption"} & set(opened.schema.names))) <= 6


def test_a_text_that_is_not_utf8_affects_only_its_row(tmp_path):
    path = tmp_path / "source" / SHARD
    write(path, table())
    path.write_bytes(path.read_bytes().replace(b"caption 2", b"caption \xff"))
    ingest(tmp_path / "source", tmp_path / "out", kind="parquet")
    assert captions(tmp_path / "out")[4:6] == ["another", "caption 3"]


def test_the_state_decides_which_files_are_read(tmp_path):
    source = tmp_path / "source"
    for i, name in enumerate((SHARD, "cache-0f.arrow", "old.arrow")):
        write(source / name, table(1, first=i))
    write_state(source, SHARD)
    assert ingest(source, tmp_path / "out", kind="parquet").rows_read == 1
    write_state(source, SHARD, "data-00001-of-00002.arrow")
    with pytest.raises(DataError, match=r"lacks data-00001-of-00002\.arrow, which state\.json names"):
        ingest(source, tmp_path / "second", kind="parquet")


def test_indices_of_old_versions_are_refused(tmp_path):
    write(tmp_path / "source/dataset.arrow", table())
    write_state(tmp_path / "source", "dataset.arrow", _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match=r"saved with indices that choose its rows.*flatten_indices"):
        ingest(tmp_path / "source", tmp_path / "out", kind="parquet")


def test_the_same_rows_in_two_formats_are_not_joined(tmp_path):
    write(tmp_path / "source" / SHARD, table())
    write_table(tmp_path / "source/data.parquet", {"image": [jpeg(0)], "caption": ["a"]})
    with pytest.raises(DataError, match=r"both \.parquet and \.arrow files"):
        ingest(tmp_path / "source", tmp_path / "out", kind="parquet")


LABEL = {"_type": "ClassLabel", "names": ["cat", "dog"]}
SPELLINGS = {
    "a label": (0, LABEL),
    "List": ([1, 0], {"_type": "List", "feature": LABEL}),
    "LargeList": ([1, 0], {"_type": "LargeList", "feature": LABEL}),
    "Sequence": ([1, 0], {"_type": "Sequence", "feature": LABEL, "length": -1}),
    "a list": ([1, 0], [LABEL]),
    "without names": (0, {"_type": "Value", "dtype": "int64"}),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_class_names_are_found_in_each_spelling(spelling, tmp_path):
    value, feature = SPELLINGS[spelling]
    metadata = {b"huggingface": json.dumps({"info": {"features": {"label": feature}}}).encode()}
    write_table(tmp_path / "source/0.parquet", {"image": [jpeg(0)], "label": [value]}, metadata=metadata)
    manifest = ingest(tmp_path / "source", tmp_path / "out", kind="parquet", label_column="label")
    assert manifest.class_names == (None if spelling == "without names" else ("cat", "dog"))


def test_cells_with_bytes_a_path_or_both(tmp_path):
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    (source / "images/1.jpg").write_bytes(jpeg(1))
    (tmp_path / "2.jpg").write_bytes(jpeg(2))
    cells = [
        {"bytes": jpeg(0), "path": "no such file.jpg"},
        {"bytes": None, "path": "images/1.jpg"},
        {"bytes": None, "path": str(tmp_path / "2.jpg")},
        {"bytes": jpeg(3), "path": None},
        {"bytes": None, "path": "images/none.jpg"},
        {"bytes": None, "path": None},
        None,
    ]
    write(source / SHARD, pa.table({"image": cells, "caption": [str(i) for i in range(7)]}))
    manifest = ingest(source, tmp_path / "out", kind="parquet")
    assert captions(tmp_path / "out") == ["0", "1", "2", "3"]
    assert manifest.rows_dropped == {"missing image": 3}
