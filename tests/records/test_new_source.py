"""A new kind of source: one description and one row in the table give plan, columns, account, lost rows and command."""

import json
from collections.abc import Iterator

import pytest
from support.conversions import call, captions, error_of, ingest, keys
from support.dumps import samples

from clipa_eqx.errors import DataError
from conversion.records.rows import Columns, Row
from conversion.records.sources import kinds
from conversion.records.sources.columns import CAPTION_COLUMNS, choose_column
from conversion.records.sources.damage import Damaged, with_lost_rest
from conversion.records.sources.planning import Choice, plan_files
from conversion.records.sources.source import Source


def lines(place, part) -> Iterator[dict[str, str]]:
    for line in place.fs.cat_file(part.path).decode().splitlines():
        try:
            yield json.loads(line)
        except ValueError as error:
            raise Damaged(str(error)) from error


def plan(files, options):
    def choose(first):
        names = dict.fromkeys(name for line in first for name in line)
        caption = choose_column(
            options.caption_column, names, CAPTION_COLUMNS, what="caption", where="lines", needed=True
        )
        return Choice(Columns(caption=caption))

    return plan_files(files, first=lambda part: lines(files.place, part), choose=choose)


def read(place, part, options, tally):
    rows = (
        Row(key=line["key"], image=bytes.fromhex(line["hex"]), captions=(line.get(part.columns.caption),))
        for line in lines(place, part)
    )
    return with_lost_rest(rows, part)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Two files of a kind that is called ``hex``; the second is damaged after one row."""
    described = Source(
        help="images in hex", files="hex files", owns=lambda name: name.endswith(".hex"), plan=plan, read=read
    )
    monkeypatch.setitem(kinds.SOURCES, "hex", described)
    texts = [json.dumps({"key": row.key, "hex": row.image.hex(), "title": f"{i}"}) for i, row in enumerate(samples(4))]
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.hex").write_text("\n".join(texts[:2]))
    (tmp_path / "source/b.hex").write_text("\n".join([texts[2], "broken", texts[3]]))
    (tmp_path / "source/notes.md").touch()
    return tmp_path / "source"


def test_its_rows_are_converted_and_its_damage_is_counted(source, tmp_path):
    manifest = ingest(source, tmp_path / "out", kind="hex")
    assert keys(tmp_path / "out") == [row.key for row in samples(3)]
    assert captions(tmp_path / "out") == ["0", "1", "2"]
    assert (manifest.rows_read, manifest.rows_dropped) == (4, {"truncated shard": 1})
    assert manifest.info["damaged_sources"][0]["rows_before"] == 1
    assert manifest.info["ignored_files"] == {".md": 1}
    assert manifest.info["command"]["columns"] == {"caption": "title"}


def test_it_has_a_command_and_the_messages_of_all_sources(source, tmp_path, capsys):
    assert call("hex", source, tmp_path / "out", "--caption-column", "title") == 0
    assert "3 records in 2 shards" in capsys.readouterr().out
    assert call("hex", source, tmp_path / "second", "--caption-column", "text") == 2
    assert "no column 'text' for the caption" in error_of(capsys)
    (source / "a.hex").rename(source / "a.tar")
    (source / "b.hex").unlink()
    assert call("hex", source, tmp_path / "second") == 2
    assert "source hex: no hex files" in (message := error_of(capsys))
    assert "is it for the source `webdataset`?" in message


def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match="no kind of source 'zip'; choose one of img2dataset, webdataset, parquet"):
        ingest(tmp_path / "source", tmp_path / "out", kind="zip")
