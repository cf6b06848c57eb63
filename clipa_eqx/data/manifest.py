"""``manifest.json``: content of a record folder, and the account of every row of its source."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

from clipa_eqx.commands import command_line
from clipa_eqx.errors import DataError
from clipa_eqx.replacing import new_file

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: file name inside the folder, number of records, size in bytes, SHA-256 of the file in hex."""

    name: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of a record folder. The account closes: rows read = rows written + rows dropped over all reasons.

    Attributes:
        shards: the files, in the order of their records.
        rows_read: rows of the source.
        rows_written: records in all shards.
        rows_dropped: number of dropped rows by reason.
        class_names: names of the classes by label; None if the records have no labels.
        info: any JSON, such as source, command and settings.

    Raises:
        DataError: the account does not close, the shards do not contain the rows written, or two shards share a name.
    """

    shards: tuple[ShardInfo, ...]
    rows_read: int
    rows_written: int
    rows_dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    class_names: tuple[str, ...] | None = None
    info: Mapping[str, object] = field(default_factory=dict[str, object])

    def __post_init__(self) -> None:
        dropped = sum(self.rows_dropped.values())
        if min(self.rows_read, self.rows_written, *self.rows_dropped.values(), *(s.count for s in self.shards)) < 0:
            raise DataError(f"manifest: row counts must not be negative, got {self._account()}")
        if self.rows_read != self.rows_written + dropped:
            raise DataError(
                f"manifest: the account does not close, {self._account()}: "
                f"{self.rows_read - self.rows_written - dropped} rows are unaccounted for"
            )
        contained = sum(shard.count for shard in self.shards)
        if contained != self.rows_written:
            raise DataError(f"manifest: the shards have {contained} records but {self.rows_written} rows were written")
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise DataError("manifest: two shards have the same name")

    @property
    def templates(self) -> tuple[str, ...] | None:
        """Prompt templates of a labeled set (``info["templates"]``), with ``{c}`` for the class name; None without any.

        Raises:
            DataError: they are no list of texts.
        """
        found = self.info.get("templates")
        if found is None:
            return None
        where = "manifest: info['templates']"
        return tuple(_as_text(one, where) for one in _as_list(found, where))

    def _account(self) -> str:
        return f"read {self.rows_read}, written {self.rows_written}, dropped {dict(self.rows_dropped)}"


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a local record folder.

    Raises:
        DataError: no such folder, no manifest (not a record folder, or unfinished), or a manifest that is not valid.
    """
    folder = Path(folder)
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; give a folder that contains {MANIFEST_NAME}")
    if not path.is_file():
        raise DataError(
            f"data folder {folder} has no {MANIFEST_NAME}: it is not a record folder or its conversion did not finish; "
            f"`{command_line('records', 'SOURCE', folder, 'DST')}` converts images, `--help` lists the sources"
        )
    return manifest_from_json(path.read_bytes(), where=str(path))


def manifest_from_json(text: bytes, *, where: str) -> Manifest:
    """Parse the content of a ``manifest.json``; every message starts with ``where`` (its path or URL).

    Raises:
        DataError: it is not valid.
    """
    try:
        content: object = json.loads(text.decode())
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}; restore it or convert the data again") from error
    return _parse(content, path=where)


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` in one atomic step.

    Raises:
        DataError: ``info`` is not plain JSON.
    """
    path = Path(folder) / MANIFEST_NAME
    text = manifest_to_json(manifest, where=str(path))
    with new_file(path) as temporary:
        temporary.write_bytes(text)


def manifest_to_json(manifest: Manifest, *, where: str = MANIFEST_NAME) -> bytes:
    """Format the content of ``manifest.json``; equal manifests give equal bytes.

    Raises:
        DataError: ``info`` is not plain JSON.
    """
    content = {"version": MANIFEST_VERSION, **asdict(manifest)}
    try:
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: info must be plain JSON: {error}") from error


def _parse(content: object, *, path: str) -> Manifest:
    fields = _as_map(content, f"{path}")
    version = fields.pop("version", None)
    if version != MANIFEST_VERSION:
        raise DataError(f"{path}: manifest version {version!r}, this clipa_eqx reads version {MANIFEST_VERSION}")
    expected = set(Manifest.__dataclass_fields__)
    if fields.keys() != expected:
        raise DataError(f"{path}: fields missing or unknown: {sorted(fields.keys() ^ expected)}")
    names = fields["class_names"]
    shards = [_parse_shard(shard, path=path) for shard in _as_list(fields["shards"], f"{path}: shards")]
    dropped = _as_map(fields["rows_dropped"], f"{path}: rows_dropped")
    try:
        return Manifest(
            shards=tuple(shards),
            rows_read=_as_int(fields["rows_read"], f"{path}: rows_read"),
            rows_written=_as_int(fields["rows_written"], f"{path}: rows_written"),
            rows_dropped={reason: _as_int(n, f"{path}: rows_dropped[{reason!r}]") for reason, n in dropped.items()},
            class_names=None
            if names is None
            else tuple(_as_text(n, f"{path}: class_names") for n in _as_list(names, f"{path}: class_names")),
            info=_as_map(fields["info"], f"{path}: info"),
        )
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(f"{path}") else f"{path}: {message}") from None


def _parse_shard(content: object, *, path: str) -> ShardInfo:
    fields = _as_map(content, f"{path}: shard")
    if fields.keys() != set(ShardInfo.__dataclass_fields__):
        raise DataError(f"{path}: a shard needs name, count, bytes, sha256, got {sorted(fields)}")
    name = _as_text(fields["name"], f"{path}: shard name")
    if Path(name).name != name or name in ("", ".."):
        raise DataError(f"{path}: shard name {name!r} must be a file name inside the folder")
    return ShardInfo(
        name=name,
        count=_as_int(fields["count"], f"{path}: count of {name}"),
        bytes=_as_int(fields["bytes"], f"{path}: bytes of {name}"),
        sha256=_as_text(fields["sha256"], f"{path}: sha256 of {name}"),
    )


def _as_map(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise DataError(f"{where} must be a map, got {value!r}")
    return dict(cast(dict[str, object], value))  # JSON maps have text keys


def _as_list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list, got {value!r}")
    return cast(list[object], value)


def _as_int(value: object, where: str) -> int:
    if type(value) is not int:
        raise DataError(f"{where} must be a whole number, got {value!r}")
    return value


def _as_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where} must be a text, got {value!r}")
    return value
