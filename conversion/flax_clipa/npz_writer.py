"""Writer of npz archives like those of ``np.savez``, one array at a time; the file appears once it is complete."""

import zipfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from clipa_eqx.errors import ConversionError
from clipa_eqx.replacing import real_path, remove_leftovers, temporary_path


class NpzWriter:
    """An archive that is being written to ``path``, a temporary name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True)

    def write(self, name: str, array: np.ndarray) -> None:
        """Append an array. bfloat16 is stored as two-byte voids, as in the reference's checkpoints."""
        data = np.asarray(array, order="C")
        with self._archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(data))
            member.write(data.reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Write the directory of the archive; after that the file can be read."""
        self._archive.close()


@contextmanager
def new_npz(path: Path, *, overwrite: bool) -> Generator[NpzWriter]:
    """Write to a temporary file next to ``path``, then rename it.

    Raises:
        ConversionError: the file exists (and not ``overwrite``), or cannot be written.
    """
    path = check_target(path, overwrite=overwrite)
    new = temporary_path(path, "new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = NpzWriter(new)
        try:
            yield writer
        finally:
            writer.close()
        # Check again: a file that appeared in the meantime is not lost.
        check_target(path, overwrite=overwrite)
        new.replace(path)
    except OSError as error:
        raise ConversionError(f"{path} cannot be written ({error}); nothing was left there") from error
    finally:
        with suppress(OSError):
            new.unlink()


def check_target(path: Path, *, overwrite: bool) -> Path:
    """The real path of the archive to write.

    Raises:
        ConversionError: it exists (and not ``overwrite``), or is not a file.
        CheckpointError: it is a link to a path that does not exist.
    """
    real = real_path(path)
    if real.suffix != ".npz":
        raise ConversionError(f"{path} does not end in .npz; name the checkpoint to write")
    remove_leftovers(real)
    if real.is_dir():
        raise ConversionError(f"{path} is a folder; give another name")
    if real.exists() and not overwrite:
        raise ConversionError(f"{path} exists already; give another name, or --overwrite")
    if real.exists() and not real.is_file():
        raise ConversionError(f"{path} is not a regular file and is not overwritten; give another name")
    return real
