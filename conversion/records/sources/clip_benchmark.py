"""Layout of CLIP_benchmark's exports: a folder of numbered tars per split, and names and templates in the folder above.

``clip_benchmark_export_wds`` 1.6.2 writes it, and the sets ``clip-benchmark/wds_*`` of the Hugging Face hub have it::

    classnames.txt  zeroshot_classification_templates.txt  dataset_type.txt
    test/nshards.txt  test/0.tar  test/1.tar ...
    train/nshards.txt  ...
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clipa_eqx.errors import DataError, counted
from clipa_eqx.evals.prompts import parse_class_names
from conversion.records.listing import FoundFile
from conversion.records.options import IngestOptions
from conversion.records.places import Place, is_pattern
from conversion.records.reading import unreadable
from conversion.records.rows import printable, shortened
from conversion.records.sources.source import SourceFiles

Kind = Literal["classification", "multilabel", "retrieval"]

_COUNT = "nshards.txt"
_CLASS_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_KIND = "dataset_type.txt"
_LABELS: Mapping[Kind, str | None] = {"classification": "cls", "multilabel": "npy", "retrieval": None}


@dataclass(frozen=True, kw_only=True)
class Export:
    """A split of an export.

    Attributes:
        files: those of the source without the files of other splits; the tars in the order of their numbers.
        split: its name.
        kind: the content of ``dataset_type.txt``; classification without that file.
        class_names: name of each label; None if the set has none.
        templates: prompt templates, each with ``{c}`` for the class name.
        about: the text files that were read.
    """

    files: SourceFiles
    split: str
    kind: Kind
    class_names: tuple[str, ...] | None
    templates: tuple[str, ...]
    about: tuple[FoundFile, ...]

    @property
    def info(self) -> Mapping[str, object]:
        """Entries for the manifest."""
        templates = {"templates": list(self.templates)} if self.templates else {}
        return {"split": self.split, "dataset_type": self.kind, **templates}

    def options(self, options: IngestOptions) -> IngestOptions:
        """The options with the label column of the kind, unless a column of labels or captions was asked for."""
        if options.label_column is None and options.caption_column is None:
            return replace(options, label_column=_LABELS[self.kind])
        return options


def find_export(files: SourceFiles, options: IngestOptions) -> Export | None:
    """The chosen split, if the tars are in the layout of an export; it is known by ``nshards.txt`` next to them.

    The source may be the folder of the set, that of a split, or tars of a split.

    Raises:
        DataError: there are several sets, several splits and none chosen, or no such split; ``nshards.txt`` is missing,
            broken, or not the number of the tars; or another text file cannot be understood.
    """
    texts = _Texts(files)
    folders: dict[str, list[FoundFile]] = {}
    for file in files.own:
        folders.setdefault(_folder(file.path), []).append(file)
    if not any(_is_export(texts, folder) for folder in folders):
        return None
    above = _only_set(files.place, folders)
    splits = {folder.rpartition("/")[2]: folder for folder in sorted(folders)}
    split = _choose(files.place, {name: len(folders[folder]) for name, folder in splits.items()}, options)
    folder = splits[split]
    own = _complete(texts, files.place, folder, folders[folder])
    kind = _kind_of(texts, above)
    names = texts.read(above, _CLASS_NAMES) if kind != "retrieval" else None
    templates = texts.read(above, _TEMPLATES) if kind != "retrieval" else None
    others = {file.path for file in files.own} - {file.path for file in own}
    return Export(
        files=replace(
            files,
            found=[
                file for file in files.found if file.path not in others and _is_of(file, folder, above, splits.values())
            ],
            own=own,
        ),
        split=split,
        kind=kind,
        class_names=None if names is None else _class_names(names, where=f"{above}/{_CLASS_NAMES}"),
        templates=() if templates is None else tuple(_lines(templates, where=f"{above}/{_TEMPLATES}")),
        about=tuple(texts.read_files),
    )


class _Texts:
    """The text files of an export. They may be outside of the source: above a split, or next to the tars of a pattern.

    Attributes:
        read_files: the files that were read.
    """

    def __init__(self, files: SourceFiles) -> None:
        self._place = files.place
        self._found = {file.path for file in files.found}
        self._is_searched = not is_pattern(files.place) and not files.place.fs.isfile(files.place.path)
        self.read_files: list[FoundFile] = []

    def exists(self, folder: str, name: str) -> bool:
        """Check whether a folder has such a file."""
        path, root = f"{folder}/{name}", self._place.path.rstrip("/")
        if path in self._found:
            return True
        inside = self._is_searched and path.startswith(f"{root}/")
        return not inside and bool(self._place.fs.isfile(path))

    def read(self, folder: str, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        if not self.exists(folder, name):
            return None
        path = f"{folder}/{name}"
        try:
            content: bytes = self._place.fs.cat_file(path)
        except OSError as error:
            raise unreadable(path, error) from error
        self.read_files.append(FoundFile(path, name, len(content)))
        return content


def _is_export(texts: _Texts, folder: str) -> bool:
    """Check for a file that only an export has. Class names alone are not enough: others call their files so too."""
    return texts.exists(folder, _COUNT) or any(texts.exists(_folder(folder), name) for name in (_TEMPLATES, _KIND))


def _only_set(place: Place, folders: Iterable[str]) -> str:
    """The folder of the set."""
    above = sorted({_folder(folder) for folder in folders})
    if len(above) > 1:
        raise DataError(f"{place.url} holds several data sets, give the folder of one: {', '.join(above[:5])}")
    return above[0]


def _choose(place: Place, splits: Mapping[str, int], options: IngestOptions) -> str:
    shown = ", ".join(f"{printable(name)} ({counted(count, 'tar file')})" for name, count in splits.items())
    if options.split is not None and options.split not in splits:
        raise DataError(f"{place.url} has no split {options.split!r}; it has: {shown}")
    if options.split is None and len(splits) > 1:
        raise DataError(f"{place.url} holds several splits, choose one with --split: {shown}")
    return options.split or next(iter(splits))


def _complete(texts: _Texts, place: Place, folder: str, tars: Sequence[FoundFile]) -> list[FoundFile]:
    """The tars in the order of their numbers, checked against ``nshards.txt`` unless single ones were chosen."""
    content = texts.read(folder, _COUNT)
    if content is None:
        raise DataError(
            f"{folder} lacks {_COUNT}, which CLIP_benchmark writes: the number of tar files. Fetch it with the set, or "
            f"write that number into it ({len(tars)} if all are there)"
        )
    text = content.decode(errors="replace").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not int(text):
        raise DataError(f"{folder}/{_COUNT} must hold the number of tar files, got {shortened(text, 40)!r}")
    by_name = {_base(file.path): file for file in tars}
    if is_pattern(place) or place.fs.isfile(place.path):
        return sorted(tars, key=lambda file: (len(_base(file.path)), file.path))
    count = int(text)
    if missing := [f"{i}.tar" for i in range(count) if f"{i}.tar" not in by_name]:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{folder} lacks {len(missing):,} of the {counted(count, 'tar file')} that {_COUNT} counts: {shown}; fetch "
            f"them, or give a pattern such as '{folder}/*.tar' to convert those that are there"
        )
    if others := sorted(by_name.keys() - {f"{i}.tar" for i in range(count)}):
        raise DataError(
            f"{folder} has tar files that {_COUNT} ({count}) does not count: {', '.join(others[:5])}; remove them if "
            f"they are of another export, or correct {_COUNT}"
        )
    return [by_name[f"{i}.tar"] for i in range(count)]


def _kind_of(texts: _Texts, above: str) -> Kind:
    content = texts.read(above, _KIND)
    if content is None:
        return "classification"
    text = content.decode(errors="replace").strip().lower()
    kinds: dict[str, Kind] = {kind: kind for kind in _LABELS}
    if text not in kinds:
        raise DataError(f"{above}/{_KIND} says {shortened(text, 40)!r}; it must be one of {', '.join(_LABELS)}")
    return kinds[text]


def _class_names(content: bytes, *, where: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in parse_class_names(content, where=where))


def _lines(content: bytes, *, where: str) -> list[str]:
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} cannot be read: {error}; it must be a UTF-8 file") from error
    return [line.strip() for line in lines if line.strip()]


def _is_of(file: FoundFile, folder: str, above: str, folders: Iterable[str]) -> bool:
    """Check whether a file is not inside of another split."""
    return not any(file.path.startswith(f"{other}/") for other in folders if other not in (folder, above))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _base(path: str) -> str:
    return path.rpartition("/")[2]
