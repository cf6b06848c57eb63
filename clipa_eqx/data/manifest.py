"""``manifest.json``: content of a record folder, and the account of every row of its source."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from clipa_eqx.commands import command_line
from clipa_eqx.data.addresses import is_url, resolve
from clipa_eqx.data.bucket_files import check_bucket, read_bucket_file
from clipa_eqx.data.json_values import as_int, as_list, as_map, as_text
from clipa_eqx.data.shards import ShardInfo, ShardTable, joined_table, shard_table, shards_from_json, shards_to_json
from clipa_eqx.errors import DataError
from clipa_eqx.progress import progress_bar
from clipa_eqx.replacing import new_file

MANIFEST_NAME = "manifest.json"
MANIFEST_VERSION = 1

JOINED_VERSION = 2
"""Version of the manifest of a joined folder, which names other folders instead of shards."""

_READERS = 16  # threads that read manifests of members
_FIELDS = {"shards", "rows_read", "rows_written", "rows_dropped", "class_names", "info"}


@dataclass(frozen=True, kw_only=True)
class Member:
    """A record folder that is a part of a joined folder.

    Attributes:
        folder: its address: relative to the joined folder, a path, or a ``gs://`` URL.
        rows: its records.
        sha256: SHA-256 of its ``manifest.json``, in hex.
    """

    folder: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Content of a record folder. The account closes: rows read = rows written + rows dropped over all reasons.

    Attributes:
        shards: the files, in the order of their records; kept as a compact ``ShardTable``.
        rows_read: rows of the source.
        rows_written: records in all shards.
        rows_dropped: number of dropped rows by reason.
        class_names: names of the classes by label; None if the records have no labels.
        info: any JSON, such as source, command and settings.
        members: of a joined folder, the record folders with its shards, in order; none in any other folder.

    Raises:
        DataError: the account does not close, the shards do not contain the rows written, two shards share a name, or
            the members are not the folders of the shards.
    """

    shards: Sequence[ShardInfo]
    rows_read: int
    rows_written: int
    rows_dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    class_names: tuple[str, ...] | None = None
    info: Mapping[str, object] = field(default_factory=dict[str, object])
    members: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", shard_table(self.shards))
        dropped = sum(self.rows_dropped.values())
        counts: list[int] = self.table.counts.tolist()
        if min(self.rows_read, self.rows_written, *self.rows_dropped.values(), min(counts, default=0)) < 0:
            raise DataError(f"manifest: row counts must not be negative, got {self._account()}")
        if self.rows_read != self.rows_written + dropped:
            raise DataError(
                f"manifest: the account does not close, {self._account()}: "
                f"{self.rows_read - self.rows_written - dropped} rows are unaccounted for"
            )
        contained = sum(counts)
        if contained != self.rows_written:
            raise DataError(f"manifest: the shards have {contained} records but {self.rows_written} rows were written")
        if self.members:
            self._check_members()
        elif len(set(map(self.table.name, range(len(counts))))) != len(counts):
            raise DataError("manifest: two shards have the same name")

    def _check_members(self) -> None:
        if self.table.folders != tuple(member.folder for member in self.members):
            raise DataError("manifest: the shards are not those of the members")
        if len(set(self.table.folders)) != len(self.members):
            raise DataError("manifest: two members are the same folder")
        for member, rows in zip(self.members, self.table.rows_of_folders(), strict=True):
            if rows != member.rows:
                raise DataError(f"manifest: member {member.folder} has {rows} records, expected {member.rows}")

    @property
    def table(self) -> ShardTable:
        """The shards as arrays."""
        return shard_table(self.shards)

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
        return tuple(as_text(one, where) for one in as_list(found, where))

    def _account(self) -> str:
        return f"read {self.rows_read}, written {self.rows_written}, dropped {dict(self.rows_dropped)}"


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a local or ``gs://`` record folder, and those of its members if it is a joined one.

    Raises:
        DataError: no such folder, no manifest (not a record folder, or unfinished), a manifest that is not valid, or a
            member that is missing or was changed.
    """
    at = str(folder).rstrip("/") if is_url(folder) else str(folder)
    where = f"{at}/{MANIFEST_NAME}" if is_url(at) else str(Path(at) / MANIFEST_NAME)
    return manifest_from_json(_read(at), where=where, read_member=lambda member: _read(resolve(at, member)))


def manifest_from_json(text: bytes, *, where: str, read_member: Callable[[str], bytes] | None = None) -> Manifest:
    """Parse the content of a ``manifest.json``; every message starts with ``where`` (its path or URL).

    Args:
        read_member: reads the manifest of a member from the address that this manifest has for it. Threads call it. It
            raises DataError. Without it, the manifest of a joined folder is refused.

    Raises:
        DataError: it is not valid, or a member is missing or was changed.
    """
    try:
        content: object = json.loads(text.decode())
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}; restore it or convert the data again") from error
    fields = as_map(content, where)
    version = fields.pop("version", None)
    if type(version) is not int or version not in (MANIFEST_VERSION, JOINED_VERSION):
        raise DataError(
            f"{where}: manifest version {version!r}, this clipa_eqx reads versions {MANIFEST_VERSION} and "
            f"{JOINED_VERSION} (a joined folder)"
        )
    expected = _FIELDS | ({"members"} if version == JOINED_VERSION else set())
    if fields.keys() != expected:
        raise DataError(f"{where}: fields missing or unknown: {sorted(fields.keys() ^ expected)}")
    if version == MANIFEST_VERSION:
        return _manifest(fields, shards_from_json(as_list(fields["shards"], f"{where}: shards"), where=where), where)
    members = tuple(_member(one, where=where) for one in as_list(fields["members"], f"{where}: members"))
    if read_member is None:
        raise DataError(f"{where} is that of a joined folder; give a folder with records of its own")
    shards = _shards_of_members(members, read_member, where=where)
    if as_int(fields["shards"], f"{where}: shards") != len(shards):
        raise DataError(f"{where}: the members have {len(shards)} shards, expected {fields['shards']}; {_again(where)}")
    return _manifest(fields, shards, where, members=members)


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
    content: dict[str, object] = {
        "version": MANIFEST_VERSION,
        "shards": shards_to_json(manifest.table),
        "rows_read": manifest.rows_read,
        "rows_written": manifest.rows_written,
        "rows_dropped": dict(manifest.rows_dropped),
        "class_names": manifest.class_names,
        "info": dict(manifest.info),
    }
    if manifest.members:
        # The number of shards has the name of the list of shards, so that earlier releases take the folder for a record
        # folder, and refuse its version.
        members = [{"folder": one.folder, "rows": one.rows, "sha256": one.sha256} for one in manifest.members]
        content |= {"version": JOINED_VERSION, "shards": len(manifest.shards), "members": members}
    try:
        text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        return text.encode()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: info must be plain JSON: {error}") from error


def _read(folder: str) -> bytes:
    """The content of the manifest of a local or ``gs://`` folder."""
    if is_url(folder):
        check_bucket(folder)
        content = read_bucket_file(folder, MANIFEST_NAME)
        if content is None:
            raise DataError(f"data folder {folder} has no {MANIFEST_NAME}; give a folder of a finished conversion")
        return content
    path = Path(folder) / MANIFEST_NAME
    if not path.parent.is_dir():
        raise DataError(f"data folder {folder} does not exist; give a folder that contains {MANIFEST_NAME}")
    if not path.is_file():
        raise DataError(
            f"data folder {folder} has no {MANIFEST_NAME}: it is not a record folder or its conversion did not finish; "
            f"`{command_line('records', 'SOURCE', folder, 'DST')}` converts images, `--help` lists the sources"
        )
    return path.read_bytes()


def _shards_of_members(members: Sequence[Member], read: Callable[[str], bytes], *, where: str) -> ShardTable:
    tables: list[ShardTable] = []
    folders = [member.folder for member in members]
    with (
        ThreadPoolExecutor(_READERS) as pool,
        progress_bar(what="read manifests", total=len(members), unit="folder") as bar,
    ):
        try:
            for member, text in zip(members, pool.map(read, folders), strict=True):
                tables.append(_shards_of(member, text))
                bar.update()
        except DataError as error:
            raise DataError(f"{where}: member {folders[len(tables)]}: {error}; {_again(where)}") from error
    return joined_table(tables, folders)


def _shards_of(member: Member, text: bytes) -> ShardTable:
    if hashlib.sha256(text).hexdigest() != member.sha256:
        raise DataError("its manifest is another one than when the folders were joined")
    return manifest_from_json(text, where=MANIFEST_NAME).table


def _again(where: str) -> str:
    """The advice to join again."""
    command = command_line("records", "join", where.removesuffix(f"/{MANIFEST_NAME}"), "FOLDER", "...", "--overwrite")
    return f"restore it, or join the folders again: `{command}`"


def _manifest(
    fields: Mapping[str, object], shards: ShardTable, path: str, *, members: tuple[Member, ...] = ()
) -> Manifest:
    names = fields["class_names"]
    dropped = as_map(fields["rows_dropped"], f"{path}: rows_dropped")
    try:
        return Manifest(
            shards=shards,
            rows_read=as_int(fields["rows_read"], f"{path}: rows_read"),
            rows_written=as_int(fields["rows_written"], f"{path}: rows_written"),
            rows_dropped={reason: as_int(n, f"{path}: rows_dropped[{reason!r}]") for reason, n in dropped.items()},
            class_names=None
            if names is None
            else tuple(as_text(n, f"{path}: class_names") for n in as_list(names, f"{path}: class_names")),
            info=as_map(fields["info"], f"{path}: info"),
            members=members,
        )
    except DataError as error:
        message = str(error)
        raise DataError(message if message.startswith(f"{path}") else f"{path}: {message}") from None


def _member(content: object, *, where: str) -> Member:
    fields = as_map(content, f"{where}: member")
    if fields.keys() != set(Member.__dataclass_fields__):
        raise DataError(f"{where}: a member needs folder, rows, sha256, got {sorted(fields)}")
    return Member(
        folder=as_text(fields["folder"], f"{where}: folder of a member"),
        rows=as_int(fields["rows"], f"{where}: rows of a member"),
        sha256=as_text(fields["sha256"], f"{where}: sha256 of a member"),
    )
