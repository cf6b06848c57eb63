"""Untrusted npz archives: all headers are checked before any array is read; arrays are mapped, never unpickled."""

import io
import math
import struct
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.saved.leaf_file import Leaf
from conversion.weights.tensors import BFLOAT16

# Trained float32 weights hardly compress; an archive that grows more than this many times holds no weights.
_LARGEST_EXPANSION = 30
_ALWAYS_FINE_BYTES = 2**28
_LONGEST_HEADER = 4096
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


class _Member(NamedTuple):
    entry: zipfile.ZipInfo
    stored: np.dtype
    shape: tuple[int, ...]
    fortran_order: bool
    header: bytes
    data_at: int | None  # None for compressed members

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.stored.itemsize


class NpzFile:
    """An open ``.npz`` file as a ``TensorFile``. Uncompressed arrays are memory maps; checksums are verified once.

    Two-byte void arrays are read as bfloat16, as the reference's loader does.
    """

    def __init__(self, path: Path) -> None:
        """Open the file and check all headers.

        Raises:
            ConversionError: the file is missing or not a zip archive, or lists members that are damaged, encrypted,
                pickled, duplicate, of an unsupported compression, or far larger than their compressed size.
        """
        self.path = path
        if not path.is_file():
            raise ConversionError(f"{path} is not a file; give the path of a .npz checkpoint")
        try:
            self._bytes = path.stat().st_size
            self._raw: IO[bytes] = path.open("rb")
        except OSError as error:
            raise ConversionError(f"{path} cannot be read ({error})") from error
        try:
            # Here and below: zipfile, zlib and numpy's header parser raise nearly any exception on damaged bytes.
            try:
                self._archive = zipfile.ZipFile(self._raw)
                entries = self._archive.infolist()
            except Exception as error:
                if path.suffix == ".safetensors":
                    raise ConversionError(
                        f"{path} is a safetensors file; use `python -m conversion.open_clip import` for it"
                    ) from error
                raise ConversionError(
                    f"{path} is not a readable npz archive ({error!r}): it is truncated, damaged or of another format; "
                    "get the file again and compare its checksum"
                ) from error
            self._members = self._read_headers(entries)
        except BaseException:
            self._raw.close()
            raise
        self._verified: set[str] = set()
        self.tensors: Mapping[str, Leaf] = {
            name: Leaf(member.shape, _native(member.stored))
            for name, member in sorted(self._members.items(), key=lambda item: item[1].entry.header_offset)
        }

    def read(self, name: str) -> np.ndarray:
        """The array. Raises ``ConversionError`` if its bytes are damaged."""
        member = self._members[name]
        try:
            flat = self._inflated(member) if member.data_at is None else self._mapped(name, member, member.data_at)
        except Exception as error:
            raise ConversionError(f"damaged: {name} cannot be read ({error}); get the file again") from error
        order = "F" if member.fortran_order else "C"
        array = flat.view(member.stored).reshape(member.shape, order=order)
        native = _native(member.stored)
        return array.view(native) if native == BFLOAT16 else array.astype(native, copy=False)

    def _mapped(self, name: str, member: _Member, at: int) -> np.ndarray:
        # An empty file region cannot be mapped.
        if member.size == 0:
            return np.zeros(0, np.uint8)
        flat = np.memmap(self.path, np.uint8, "r", offset=at, shape=(member.size,))
        if name not in self._verified:
            if zlib.crc32(flat.data, zlib.crc32(member.header)) != member.entry.CRC:
                raise zipfile.BadZipFile("its checksum is wrong")
            self._verified.add(name)
        return flat

    def _inflated(self, member: _Member) -> np.ndarray:
        out = bytearray(member.size)
        with self._archive.open(member.entry) as file:
            if len(file.read(len(member.header))) != len(member.header):
                raise EOFError("it ends early")
            done = 0
            while done < member.size:
                piece = file.read(min(member.size - done, 2**22))
                if not piece:
                    raise EOFError("it ends early")
                out[done : done + len(piece)] = piece
                done += len(piece)
            if file.read(1):
                raise zipfile.BadZipFile("it is longer than its header says")
        return np.frombuffer(out, np.uint8)

    def _read_headers(self, entries: list[zipfile.ZipInfo]) -> dict[str, _Member]:
        problems = [
            f"duplicate: {name} occurs {count} times"
            for name, count in Counter(entry.filename for entry in entries).items()
            if count > 1
        ]
        if any(entry.filename.endswith("/data.pkl") for entry in entries):
            raise ConversionError(
                f"{self.path} is a PyTorch file and not an npz archive; use `python -m conversion.open_clip import`"
            )
        members: dict[str, _Member] = {}
        for entry in entries:
            try:
                members[entry.filename.removesuffix(".npy")] = self._read_header(entry)
            except ConversionError as error:
                problems.append(str(error))
            except Exception as error:
                problems.append(f"damaged: {entry.filename} has no readable header ({error})")
        if sum(entry.compress_size for entry in entries) > self._bytes:
            problems.append("damaged: all members together are larger than the archive, so they overlap")
        size = sum(member.size for member in members.values())
        if size > max(_ALWAYS_FINE_BYTES, _LARGEST_EXPANSION * self._bytes):
            problems.append(
                f"too large: {self._bytes:,} bytes would become {size:,}; weights do not compress that well, so this "
                "is not a checkpoint"
            )
        if not entries:
            problems.append("empty: the archive has no members")
        if problems:
            raise ConversionError(f"{self.path} cannot be converted, {listed(problems)}")
        return members

    def _read_header(self, entry: zipfile.ZipInfo) -> _Member:
        name = entry.filename
        if not name.endswith(".npy"):
            raise ConversionError(f"unused: {name!r} is not an .npy array")
        if entry.flag_bits & 0x1:
            raise ConversionError(f"encrypted: {name}; decrypt the archive first")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConversionError(f"compression: {name} uses method {entry.compress_type}, expected stored or deflated")
        at = self._data_offset(entry)
        if entry.compress_type == zipfile.ZIP_STORED:
            if entry.compress_size != entry.file_size or at + entry.file_size > self._bytes:
                raise ConversionError(f"damaged: {name} extends beyond the end of the archive")
            self._raw.seek(at)
            start = self._raw.read(min(entry.file_size, _LONGEST_HEADER))
        else:
            with self._archive.open(entry) as file:
                start = file.read(_LONGEST_HEADER)
        stream = io.BytesIO(start)
        version = np.lib.format.read_magic(stream)
        reader: Any = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
            version
        )
        if reader is None:
            raise ConversionError(f"header: {name} has npy version {version}, expected (1, 0) or (2, 0)")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about headers written by Python 2
            shape, fortran_order, dtype = reader(stream, max_header_size=_LONGEST_HEADER)
        if dtype.hasobject:
            raise ConversionError(f"pickled: {name} holds Python objects, which are never loaded")
        if dtype.fields is not None or dtype.subdtype is not None or not all(0 < side < 2**31 for side in shape):
            raise ConversionError(
                f"header: {name} has shape {shape} and dtype {dtype}; checkpoints have no such arrays"
            )
        header = start[: stream.tell()]
        stored = entry.compress_type == zipfile.ZIP_STORED
        member = _Member(entry, dtype, tuple(shape), fortran_order, header, at + len(header) if stored else None)
        if len(header) + member.size != entry.file_size:
            raise ConversionError(
                f"damaged: {name} declares {dtype}{list(shape)}, which is {member.size:,} bytes, but has "
                f"{entry.file_size - len(header):,}"
            )
        return member

    def _data_offset(self, entry: zipfile.ZipInfo) -> int:
        self._raw.seek(entry.header_offset)
        fields = _LOCAL_HEADER.unpack(self._raw.read(_LOCAL_HEADER.size))
        if fields[0] != b"PK\x03\x04":
            raise ConversionError(f"damaged: {entry.filename} has no local header")
        return entry.header_offset + _LOCAL_HEADER.size + fields[9] + fields[10]

    def __enter__(self) -> "NpzFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self._archive.close()
        self._raw.close()


def _native(stored: np.dtype) -> np.dtype:
    return BFLOAT16 if stored == np.dtype("V2") else stored.newbyteorder("=")
