"""Photos of one's own, with texts."""

import json
import shutil
from pathlib import Path

from support.dump_table import run_row

from clipa_eqx.data.array_record_reader import open_records

IMAGES = Path(__file__).parent / "images"


def test_images_with_texts_next_to_them(tmp_path, monkeypatch):
    rows = json.loads((IMAGES / "list.json").read_text(encoding="utf-8"))
    (tmp_path / "photos/more").mkdir(parents=True)
    for i, row in enumerate(rows):
        path = tmp_path / "photos" / ("more" if i % 2 else "") / row["file"]
        shutil.copyfile(IMAGES / row["file"], path)
        path.with_suffix(".txt").write_text("\n".join(row["captions"]) + "\n", encoding="utf-8")
    assert run_row("python -m conversion.records pairs photos/ data/photos", tmp_path, monkeypatch) == 0
    found = {record.key: record for record in open_records(tmp_path / "data/photos")}
    assert len(found) == len(rows)
    for i, row in enumerate(rows):
        record = found[("more/" if i % 2 else "") + row["file"].partition(".")[0]]
        assert list(record.captions) == row["captions"]
        assert record.image == (IMAGES / row["file"]).read_bytes()
