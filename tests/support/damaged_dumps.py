"""Conversions of dumps with random damage, and what is wrong with the outcome: ``python -m support.damaged_dumps``.

A process of its own, because damaged files may end the libraries that read them.
"""

import contextlib
import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.manifest import MANIFEST_NAME, read_manifest
from clipa_eqx.data.records import Record
from clipa_eqx.errors import DataError
from conversion.records.verify import find_damage
from support import dumps
from support.conversions import call, ingest
from support.dumps import Sample, samples

CODES = (0, 1, 2)


@dataclass(frozen=True)
class Form:
    """A dump to damage.

    Attributes:
        write: write the dump into an empty folder.
        target: pattern of the files of which one is damaged.
        command: the arguments of the command, with SRC and DST.
        exact: whether a changed value is never written, because the format has checksums.
        local: whether one changed bit changes at most one record, because values do not depend on each other.
        files: whether images are files, which records hold as they are.
    """

    write: Callable[[Path], object]
    target: str
    command: tuple[str, ...]
    exact: bool = False
    local: bool = False
    files: bool = False


def images(form: str, count: int = 4) -> list[Sample]:
    found: list[Sample] = []
    for row in samples(count):
        file = io.BytesIO()
        Image.open(io.BytesIO(row.image)).save(file, form)
        found.append(dumps.replace(row, image=file.getvalue(), suffix={"JPEG": "jpg"}.get(form, form.lower())))
    return found


def write_tsv(folder: Path) -> None:
    rows = dumps.write_images(folder, [samples(4)])
    with (folder / "list.tsv").open("w", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["filepath", "caption"])
        writer.writerows([f"images/{row.key}.jpg", row.captions[0].decode()] for row in rows)


def write_pairs(folder: Path, suffix: str) -> None:
    folder.mkdir(exist_ok=True)
    for row in samples(4):
        (folder / f"{row.key}.jpg").write_bytes(row.image)
        text = row.captions[0].decode()
        content = text if suffix == "txt" else json.dumps({"caption": text, "width": 24})
        (folder / f"{row.key}.{suffix}").write_text(content)


def write_records(folder: Path) -> None:
    dumps.write_tars(folder.parent / "tars", [samples(4)])
    shutil.rmtree(folder, ignore_errors=True)
    ingest(folder.parent / "tars", folder)


def pictures(form: str) -> Callable[[Path], object]:
    return lambda folder: dumps.write_class_folders(folder, [images(form)])


FOLDER = ("folder", "SRC", "DST")
CAPTIONS = ("captions", "SRC", "DST")
FORMS: dict[str, Form] = {
    "tar": Form(lambda f: dumps.write_tars(f, [samples(4)]), "*.tar", ("webdataset", "SRC", "DST"), local=True),
    "tar.gz": Form(lambda f: dumps.write_tars(f, [samples(4)], mode="w:gz"), "*.gz", ("webdataset", "SRC", "DST")),
    "statistics": Form(
        lambda f: dumps.write_tars(f, [samples(2)], stats=True), "*_stats.json", ("webdataset", "SRC", "DST")
    ),
    "tar of PNG": Form(
        lambda f: dumps.write_tars(f, [images("PNG")]), "*.tar", ("webdataset", "SRC", "DST"), local=True
    ),
    "TFRecord": Form(
        lambda f: dumps.write_img2dataset(f, [samples(4)]), "*.tfrecord", ("img2dataset", "SRC", "DST"), exact=True
    ),
    "TFDS": Form(lambda f: dumps.write_tfds(f, [samples(4)]), "*.tfrecord*", ("tfds", "SRC", "DST"), exact=True),
    "TFDS info": Form(lambda f: dumps.write_tfds(f, [samples(2)]), "*.json", ("tfds", "SRC", "DST"), exact=True),
    "Parquet": Form(lambda f: dumps.write_parquet(f, [samples(4)]), "*.parquet", ("parquet", "SRC", "DST")),
    "Parquet with files": Form(lambda f: dumps.write_files(f, [samples(2)]), "*.parquet", ("parquet", "SRC", "DST")),
    "JPEG": Form(pictures("JPEG"), "*/*.jpg", FOLDER, local=True, files=True),
    "PNG": Form(pictures("PNG"), "*/*.png", FOLDER, local=True, files=True),
    "WebP": Form(pictures("WEBP"), "*/*.webp", (*FOLDER, "--max-side", "12")),
    "CSV": Form(lambda f: dumps.write_csv(f, [samples(4)]), "list.csv", CAPTIONS, local=True, files=True),
    "TSV": Form(write_tsv, "list.tsv", CAPTIONS, local=True, files=True),
    "JSONL": Form(lambda f: dumps.write_jsonl(f, [samples(4)]), "list.jsonl", CAPTIONS, local=True, files=True),
    "COCO": Form(lambda f: dumps.write_coco(f, [samples(4)]), "captions.json", CAPTIONS, local=True, files=True),
    "texts": Form(lambda f: write_pairs(f, "txt"), "*.txt", ("pairs", "SRC", "DST"), local=True, files=True),
    "JSON texts": Form(lambda f: write_pairs(f, "json"), "*.json", ("pairs", "SRC", "DST"), local=True, files=True),
    "shard, verified": Form(write_records, "*.array_record", ("verify", "SRC")),
    "shard, compared": Form(write_records, "*.array_record", ("diff", "SRC", "PRISTINE")),
    "manifest, verified": Form(write_records, MANIFEST_NAME, ("verify", "SRC")),
    "manifest, compared": Form(write_records, MANIFEST_NAME, ("diff", "SRC", "PRISTINE")),
}


def damage(data: bytes, random: Random) -> bytes:
    """Damage a file as disks, downloads and copies do."""
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice([1, 7, 64, 512, 4096]))
    match random.randrange(7):
        case 0:  # bits
            changed = bytearray(data)
            for _ in range(random.choice([1, 1, 3, 20])):
                changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
            return bytes(changed)
        case 1:  # a cut
            return data[:start]
        case 2:  # zeros
            return data[:start] + bytes(end - start) + data[end:]
        case 3:  # bytes of another place
            other = random.randrange(len(data))
            return data[:start] + data[other : other + end - start] + data[end:]
        case 4:  # two blocks in the wrong order
            middle = random.randrange(start, len(data))
            return data[:start] + data[middle:] + data[start:middle]
        case 5:  # a range twice
            return data[:end] + data[start:]
        case _:  # a range that is not there
            return data[:start] + data[end:]


def flip(data: bytes, random: Random) -> bytes:
    """Change one bit."""
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def problems(
    form: Form, folder: Path, pristine: Path, before: dict[str, tuple[object, ...]], *, bit: bool
) -> tuple[int, list[str]]:
    """Run the command on a damaged dump; return its exit code and what is wrong with the outcome.

    Args:
        before: values of the records of the dump without damage, by key.
        bit: whether the damage is one bit.
    """
    target = folder / "out"
    places = {"SRC": str(folder / "source"), "DST": str(target), "PRISTINE": str(pristine)}
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(io.StringIO()):
        code = call(*(places.get(word, word) for word in form.command))
    text = shown.getvalue()
    errors = sum(line.startswith("error: ") for line in text.splitlines())
    found = [f"exit code {code}"] if code not in CODES else []
    found += ["a traceback"] if "Traceback" in text else []
    found += [f"{errors} error messages"] if errors != (code == 2) else []
    if "DST" not in form.command:
        return code, [*found, *([text[-3000:]] if found else [])]
    if code == 2:
        found += ["a manifest after an error"] if (target / MANIFEST_NAME).exists() else []
    else:
        found += [f"left: {path.name}" for path in target.iterdir() if path.name.startswith(("_", "."))]
        try:
            manifest, damaged = find_damage(str(target))  # the manifest checks that its account closes
            rows = list(open_records(target)) if manifest.shards else []
        except DataError as error:
            return code, [*found, f"the records cannot be read: {error}"]
        found += damaged
        found += ["the exit code says no row was kept"] if (code == 1) != (not rows and manifest.rows_read > 0) else []
        found += wrong_values(form, folder / "source", rows, before, bit=bit)
    return code, [*found, *([text[-3000:]] if found else [])]


def wrong_values(
    form: Form, source: Path, rows: list[Record], before: dict[str, tuple[object, ...]], *, bit: bool
) -> list[str]:
    """Describe the values that are other ones than damage of the source can explain."""
    changed = [row.key for row in rows if before.get(row.key) != values(row)]
    if form.exact or (form.local and bit and len(changed) > 1):
        return [f"{key} has other values" for key in changed]
    if form.files:
        held = {path.read_bytes() for path in source.rglob("*") if path.is_file()}
        return [f"{row.key} has an image that is no file" for row in rows if row.image not in held]
    return []


def values(record: Record) -> tuple[object, ...]:
    return (record.image, record.captions, record.label)


def run_cases(name: str, first: int, last: int, folder: Path) -> Iterator[dict[str, object]]:
    """Damage a dump with each seed, convert it, and yield the outcome."""
    form = FORMS[name]
    pristine = folder / "pristine"
    pristine.mkdir(parents=True)
    form.write(pristine)
    before: dict[str, tuple[object, ...]] = {}
    if "DST" in form.command:
        places = {"SRC": str(pristine), "DST": str(folder / "whole")}
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            assert call(*(places.get(word, word) for word in form.command)) == 0
        before = {record.key: values(record) for record in open_records(folder / "whole")}
    for seed in range(first, last):
        random = Random(f"{name} {seed}")
        case = folder / str(seed)
        shutil.copytree(pristine, case / "source")
        path = random.choice(sorted((case / "source").glob(form.target)))
        data = path.read_bytes()
        bit = seed % 4 == 0
        path.write_bytes(flip(data, random) if bit else damage(data, random))
        yield {"seed": seed, "begun": True}
        code, found = problems(form, case, pristine, before, bit=bit)
        dropped: list[str] = []
        if (case / "out" / MANIFEST_NAME).exists():
            dropped = list(read_manifest(case / "out").rows_dropped)
        yield {"seed": seed, "code": code, "problems": found, "dropped": dropped}
        shutil.rmtree(case)


if __name__ == "__main__":
    form_name, first_seed, last_seed, folder_name = sys.argv[1:]
    for line in run_cases(form_name, int(first_seed), int(last_seed), Path(folder_name)):
        os.write(1, f"{json.dumps(line)}\n".encode())
