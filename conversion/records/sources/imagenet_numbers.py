"""Labels of ImageNet's validation images by their number: from the devkit, from Kaggle's table, or from a given list.

A list without file names is only read if it has one entry for each of the 50,000 images: one that lacks entries would
shift the labels of all that follow.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.prompts import wordnet_ids
from conversion.records.listing import FoundFile
from conversion.records.places import Place, open_place
from conversion.records.reading import unreadable
from conversion.records.rows import Tally, printable, shortened
from conversion.records.sources.tars import DAMAGE, read_contents

VALIDATION_IMAGES = 50_000
_TRUTH = re.compile(r"ILSVRC\d{4}_(clsloc_)?validation_ground_truth\.txt", re.IGNORECASE)
_DEVKIT = re.compile(r"ILSVRC\d{4}_devkit\w*\.(tar|tar\.gz|tgz)", re.IGNORECASE)
_SOLUTION = "LOC_val_solution.csv"
_MAT, _MAP = "meta.mat", "map_clsloc.txt"  # of the devkits of 2012, and of 2014 and later
_ID = re.compile(r"n\d{8}")


class NumberedLabels(NamedTuple):
    """Labels of validation images.

    Attributes:
        where: the file that they are from.
        by_number: labels by number of the image, from 1; a label is the rank of its WordNet id in ImageNet.
    """

    where: str
    by_number: Mapping[int, tuple[int, ...]]


def is_label_file(name: str) -> bool:
    """Check whether a file belongs to the labels of the validation images by its name."""
    base = name.rpartition("/")[2]
    return is_devkit(base) or base == _SOLUTION or _TRUTH.fullmatch(base) is not None or base in (_MAT, _MAP)


def is_devkit(name: str) -> bool:
    """Check whether a file is the archive of a devkit by its name."""
    return _DEVKIT.fullmatch(name.rpartition("/")[2]) is not None


def find_labels(place: Place, found: Sequence[FoundFile]) -> NumberedLabels | None:
    """The labels by number that files of a source hold; None if there are none.

    Raises:
        DataError: a file cannot be understood, or two of them disagree.
    """
    held = list(_all_labels(place, found))
    for other in held[1:]:
        if other.by_number != held[0].by_number:
            numbers = sorted(held[0].by_number.keys() | other.by_number.keys())
            number = next(n for n in numbers if held[0].by_number.get(n) != other.by_number.get(n))
            raise DataError(
                f"{held[0].where} and {other.where} disagree about the label of validation image {number:,}; take "
                "the wrong one out of the source"
            )
    return held[0] if held else None


def read_label_list(url: str) -> NumberedLabels:
    """The labels of a JSON list with one list of class numbers for each validation image, such as ReaL's ``real.json``.

    Source: https://github.com/google-research/reassessed-imagenet, which leaves images with an empty list out.

    Raises:
        DataError: the file cannot be read, or is no such list.
    """
    where = f"--labels: {url}"
    place = open_place(url)
    try:
        parsed: object = json.loads(_content(place, place.path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {shortened(str(error), 200)}") from error
    if not isinstance(parsed, list):
        raise DataError(f"{where} must be a list with one list of class numbers for each validation image")
    entries = cast(list[object], parsed)
    _check_count(len(entries), "list", where)
    by_number: dict[int, tuple[int, ...]] = {}
    for number, entry in enumerate(entries, start=1):
        labels = tuple(cast(list[object], entry)) if isinstance(entry, list) else (entry,)
        if not all(type(label) is int and 0 <= label < len(wordnet_ids()) for label in labels):
            raise DataError(f"{where}: list {number:,} is {shortened(repr(entry), 100)}, not class numbers 0 to 999")
        by_number[number] = cast(tuple[int, ...], labels)
    return NumberedLabels(url, by_number)


def _all_labels(place: Place, found: Sequence[FoundFile]) -> Iterator[NumberedLabels]:
    contents: dict[str, Callable[[], bytes]] = {}  # of every file that may matter, by name
    for file in found:
        if is_devkit(file.name):
            for name, content in _unpack(place, file.path).items():
                contents[f"{file.name}: {name}"] = lambda held=content: held
        elif is_label_file(file.name):
            contents[file.name] = lambda path=file.path: _content(place, path)
    for name, read in contents.items():
        folder, slash, base = name.rpartition("/")
        if base == _SOLUTION:
            yield NumberedLabels(name, _solution(read(), name))
        elif _TRUTH.fullmatch(base):
            ids = next((n for n in (folder + slash + _MAT, folder + slash + _MAP) if n in contents), None)
            if ids is None:
                raise DataError(
                    f"{place.url} has {name}, but next to it neither {_MAT} nor {_MAP}, which say which classes its "
                    "numbers are; put the complete devkit into the source"
                )
            parse = _ids_of_mat if ids.endswith(_MAT) else _ids_of_map
            yield NumberedLabels(name, _truth(read(), name, parse(contents[ids](), ids), ids))


def _content(place: Place, path: str) -> bytes:
    try:
        return bytes(place.fs.cat_file(path))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def _unpack(place: Place, path: str) -> dict[str, bytes]:
    """The files of a devkit that matter, by name."""
    try:
        members = list(read_contents(place, path, Tally()))
    except DAMAGE as error:
        raise unreadable(path, error) from error
    return {head.member.name: content or b"" for head, content in members if is_label_file(head.member.name)}


def _truth(content: bytes, where: str, ids: Mapping[int, str], ids_file: str) -> dict[int, tuple[int, ...]]:
    lines = _lines(content, where)
    _check_count(len(lines), "line", where)
    ranks = {one: rank for rank, one in enumerate(wordnet_ids())}
    by_number: dict[int, tuple[int, ...]] = {}
    for number, line in enumerate(lines, start=1):
        one = ids.get(int(line)) if line.strip().isdecimal() else None
        if one not in ranks:
            raise DataError(
                f"{where}, line {number:,}: {shortened(line, 40)!r} is no class of ImageNet in {ids_file}; expected "
                "the ILSVRC2012_ID of one"
            )
        by_number[number] = (ranks[one],)
    return by_number


def _ids_of_mat(content: bytes, where: str) -> dict[int, str]:
    """WordNet id by ``ILSVRC2012_ID``, which counts from 1 in an order of its own."""
    from scipy.io import loadmat  # scipy is a dependency of jax

    try:
        mat = cast(dict[str, Any], loadmat(io.BytesIO(content), simplify_cells=True, variable_names=["synsets"]))
        rows = cast(Iterable[Mapping[str, Any]], mat["synsets"])
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
    except Exception as error:  # a damaged file raises errors of any kind
        raise DataError(f"{where} cannot be read as the meta.mat of ImageNet's devkit: {error!r}") from error


def _ids_of_map(content: bytes, where: str) -> dict[int, str]:
    """WordNet id by number, of lines such as ``n02119789 1 kit_fox``."""
    ids: dict[int, str] = {}
    for number, line in enumerate(_lines(content, where), start=1):
        match line.split():
            case [one, rank, *_] if _ID.fullmatch(one) and rank.isdecimal():
                ids[int(rank)] = one
            case _:
                shown = shortened(line, 40)
                raise DataError(f"{where}, line {number:,} is {shown!r}; expected a line such as 'n02119789 1 kit_fox'")
    return ids


def _solution(content: bytes, where: str) -> dict[int, tuple[int, ...]]:
    """Labels of lines such as ``ILSVRC2012_val_00000001,n01751748 111 108 230 366``."""
    ranks = {one: rank for rank, one in enumerate(wordnet_ids())}
    by_number: dict[int, tuple[int, ...]] = {}
    try:
        header, *rows = list(csv.reader(_lines(content, where))) or [[]]
    except csv.Error as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    if header != ["ImageId", "PredictionString"]:
        shown = shortened(", ".join(header), 100)
        raise DataError(f"{where} has the columns {shown!r}; expected ImageId and PredictionString")
    for number, row in enumerate(rows, start=2):
        image = re.fullmatch(r"ILSVRC2012_val_(\d{8})", row[0]) if len(row) == 2 else None
        ids = set(row[1].split()[::5]) if image else set[str]()  # an id and a box of four numbers, repeated
        if image is None or len(ids) != 1 or not ids <= ranks.keys():
            raise DataError(
                f"{where}, line {number:,} is {shortened(','.join(row), 100)!r}; expected a line such as "
                "'ILSVRC2012_val_00000001,n01751748 111 108 230 366'"
            )
        by_number[int(image[1])] = (ranks[ids.pop()],)
    return by_number


def _lines(content: bytes, where: str) -> list[str]:
    """The lines of a text; empty ones at its end are ignored."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{printable(where)} is not UTF-8: {error}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _check_count(count: int, what: str, where: str) -> None:
    if count != VALIDATION_IMAGES:
        raise DataError(
            f"{where} has {counted(count, what)}, expected {VALIDATION_IMAGES:,}, one for each validation image of "
            "ImageNet: in a list without file names, a missing one shifts all labels that follow"
        )
