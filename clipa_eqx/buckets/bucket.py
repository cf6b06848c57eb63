"""A folder in a bucket, ``gs://`` or ``s3://``: its objects, with retries and errors that say what to do."""

import importlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from clipa_eqx.errors import CheckpointError, ConfigError, pip_install

T = TypeVar("T")

PATIENCE_VARIABLE = "CLIPA_EQX_BUCKET_PATIENCE"
"""Environment variable: seconds for which a request that fails is repeated; 300 by default."""

LONGEST_PAUSE = 16.0
"""Seconds between two tries."""

SECONDS_PER_BYTE = 1 / 2**20
"""Added to the time that a request may take for each byte of its content."""

_URL = re.compile(r"(gs|s3):/+([^/]+)(?:/+(.*?))?/*")
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
# A request gets the patience that is left, but not less than this, if the patience is not shorter.
_SHORTEST_LIMIT = 10.0
# Another try does not help against these. Drivers and cloud libraries have errors of their own, known by name.
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, ImportError, TypeError, ValueError)
_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"})

_silent_since: dict[tuple[str, str], float] = {}
"""Buckets of which no request was answered since a time: scheme and name. The patience is not granted to each request
anew: a run that ends because its bucket does not answer makes several."""

_answered_at: dict[tuple[str, str], float] = {}
"""Time of the last answer of a bucket to any thread."""

_log = logging.getLogger(__name__)


class BucketError(CheckpointError):
    """A request to a bucket failed for longer than the patience, or was refused."""


@dataclass(frozen=True)
class Bucket:
    """A folder in a bucket. Names of objects are relative to it.

    Attributes:
        scheme: "gs" or "s3".
        name: of the bucket.
        folder: in the bucket, without slashes at its ends; may be empty.
    """

    scheme: str
    name: str
    folder: str

    @property
    def url(self) -> str:
        """The address of the folder, without a slash at the end."""
        return f"{self.scheme}://{self.name}{f'/{self.folder}' if self.folder else ''}"

    def read(self, name: str) -> bytes | None:
        """The content of an object; None if there is none.

        Raises:
            BucketError: it cannot be read.
        """
        try:
            return self._tried(
                lambda fs, limit: bytes(fs.cat_file(self._path(name), timeout=limit)), f"{name} cannot be read"
            )
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, complete in one step; errors as ``read``."""
        self._written(lambda fs, limit: fs.pipe_file(self._path(name), content, timeout=limit), name, size=len(content))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none; False if there is one. ``content`` must be unique.

        Raises:
            BucketError: it cannot be written.
        """

        def create(fs: Any, limit: float) -> bool:
            try:
                fs.pipe_file(self._path(name), content, mode="create", timeout=limit)
            except Exception:
                # Drivers report a refusal in several ways, also after a request that they repeated was a success.
                fs.invalidate_cache()
                try:
                    return bytes(fs.cat_file(self._path(name), timeout=limit)) == content
                except FileNotFoundError:
                    pass
                raise
            return True

        return self._written(create, name)

    def upload(self, file: Path, name: str) -> None:
        """Write an object from a file; errors as ``write``."""
        self._written(
            lambda fs, limit: fs.put_file(str(file), self._path(name), timeout=limit), name, size=file.stat().st_size
        )

    def download(self, name: str, file: Path, size: int) -> None:
        """Read an object into a file.

        Args:
            size: of the object, in bytes.

        Raises:
            BucketError: it cannot be read, or is not there.
        """
        try:
            self._tried(
                lambda fs, limit: fs.get_file(self._path(name), str(file), timeout=limit),
                f"{name} cannot be read",
                size=size,
            )
        except FileNotFoundError as error:
            raise BucketError(f"{self.url}: {name} is not there any more; try again") from error

    def copy(self, name: str, target: str, size: int) -> None:
        """Copy an object of a size in bytes inside the bucket; errors as ``write``."""
        self._written(
            lambda fs, limit: fs.cp_file(self._path(name), self._path(target), timeout=limit), name, size=size
        )

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in this order; those that are not there are no error. Errors as ``write``."""
        for name in names:
            try:
                self._tried(
                    lambda fs, limit, name=name: fs.rm_file(self._path(name), timeout=limit),
                    f"{name} cannot be deleted",
                )
            except FileNotFoundError:
                continue

    def names(self, prefix: str = "") -> dict[str, int]:
        """All objects in a folder below this one, at any depth, with their sizes in bytes; errors as ``read``."""
        root, where = f"{self._path('').rstrip('/')}/", self._path(prefix).rstrip("/")
        try:
            found: dict[str, Any] = self._tried(
                lambda fs, limit: fs.find(where, detail=True, timeout=limit), f"{prefix or 'it'} cannot be listed"
            )
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(root): int(about["size"] or 0)
            for path, about in sorted(found.items())
            if path.startswith(f"{where}/") and not path.endswith("/")
        }

    def entries(self) -> dict[str, int | None]:
        """Names at the top of this folder, each with its size in bytes, None for a folder; errors as ``read``."""
        where = self._path("").rstrip("/")
        try:
            found: list[Any] = self._tried(
                lambda fs, limit: fs.ls(where, detail=True, timeout=limit), "it cannot be listed"
            )
        except FileNotFoundError:
            return {}
        named = ((PurePosixPath(one["name"]), one) for one in found)
        return {
            path.name: None if one["type"] == "directory" else int(one["size"] or 0)
            for path, one in named
            if str(path) != where
        }

    def unanswered(self, what: str, error: Exception, waited: float) -> BucketError:
        """The error for a request that was repeated for so many seconds, the patience. Later ones are tried once."""
        here, spent = (self.scheme, self.name), time.monotonic() - patience()
        _silent_since[here] = min(_silent_since.get(here, spent), spent)
        return self._explained(error, what, waited)

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self.name, self.folder, name) if part)

    def _written(self, call: Callable[[Any, float], T], name: str, *, size: int = 0) -> T:
        try:
            return self._tried(call, f"{name} cannot be written", size=size)
        except FileNotFoundError as error:
            raise BucketError(
                f"{self.url}: {name} cannot be written: there is no bucket {self.name}; create it, or correct its name"
            ) from error

    def _tried(self, call: Callable[[Any, float], T], what: str, *, size: int = 0) -> T:
        """The result of ``call``, repeated while the connection fails. FileNotFoundError is passed on.

        Drivers repeat a request too, perhaps for longer, so ``call`` also gets the seconds that it may take.
        """
        fs, here, seconds = self._driver(), (self.scheme, self.name), patience()
        begun, pause = time.monotonic(), min(1.0, seconds / 10)
        while True:
            tried_at = time.monotonic()
            since = min(begun, _silent_since.get(here, begun))
            limit = max(seconds - (tried_at - since), min(seconds, _SHORTEST_LIMIT)) + size * SECONDS_PER_BYTE
            try:
                result = call(fs, limit)
            except FileNotFoundError:
                _silent_since.pop(here, None)
                raise
            except Exception as error:
                if _is_permanent(error):
                    _silent_since.pop(here, None)
                    raise self._explained(error, what, 0.0) from error
                # Other threads may have had answers while this request was sent.
                silent_since = max(tried_at, _answered_at.get(here, tried_at))
                waited = time.monotonic() - min(begun, _silent_since.setdefault(here, silent_since))
                if waited + pause > seconds + size * SECONDS_PER_BYTE:
                    raise self.unanswered(what, error, waited) from error
                _log.warning("%s: %s (%s); trying again", self.url, what, _words(error))
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                _silent_since.pop(here, None)
                _answered_at[here] = time.monotonic()
                return result

    def _explained(self, error: Exception, what: str, waited: float) -> BucketError:
        if _is_refused(error):
            login = "gcloud auth application-default login" if self.scheme == "gs" else "aws configure"
            return BucketError(
                f"{self.url}: {what}: {_words(error)}. Check the credentials (`{login}`) and their rights on bucket "
                f"{self.name}: objects are listed, read, written and deleted"
            )
        if _is_permanent(error):
            return BucketError(f"{self.url}: {what}: {_words(error)}")
        return BucketError(
            f"{self.url}: {what}: {_words(error)}. It was tried for {waited:.0f} s ({PATIENCE_VARIABLE} sets the "
            "seconds); check the connection, and run the same command again"
        )

    def _driver(self) -> Any:
        package, options = _PACKAGES[self.scheme], driver_options(self.scheme)
        try:
            fsspec = importlib.import_module("fsspec")  # no type stubs
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{self.url} needs the package {package}, which is not installed: {pip_install(package)}"
            ) from error
        if self.scheme == "s3":
            options["config_kwargs"] = {"connect_timeout": 10, "read_timeout": 60}
        try:
            return fsspec.filesystem(self.scheme, **options)
        except Exception as error:
            raise self._explained(error, "it cannot be opened", 0.0) from error


def bucket_at(path: Path | str) -> Bucket | None:
    """The bucket folder of an address, None for a local path. A ``Path`` has lost a slash of it.

    >>> bucket_at("gs://pod/runs/first/").url, bucket_at(Path("s3://pod/run")).url, bucket_at("runs/first")
    ('gs://pod/runs/first', 's3://pod/run', None)

    Raises:
        ConfigError: an address of another kind.
    """
    text = str(path)
    found = _URL.fullmatch(text)
    if found is not None:
        scheme, name, folder = found.groups()
        return Bucket(scheme, name, re.sub("/+", "/", folder or ""))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ConfigError(f"{text} is no local path and in no bucket of the kinds gs:// and s3://; give one of these")
    return None


def address(path: Path | str) -> str:
    """A path as text; a bucket folder as its address.

    >>> address(Path("gs://pod/run")), address(Path("runs/first"))
    ('gs://pod/run', 'runs/first')
    """
    bucket = bucket_at(path)
    return str(path) if bucket is None else bucket.url


def driver_options(scheme: str) -> dict[str, Any]:
    """Arguments of fsspec's driver for buckets of a scheme: which server, and that listings are never remembered.

    Other processes write to the same folder, so a listing is out of date at once. Call this before the driver is
    imported.
    """
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "gs":
        # gcsfs would ask another server, by gRPC, for the kind of the bucket; an emulator lets it wait 60 s.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        if "STORAGE_EMULATOR_HOST" in os.environ:
            options |= {"token": "anon", "endpoint_url": os.environ["STORAGE_EMULATOR_HOST"]}
    elif (endpoint := s3_endpoint()) is not None:  # otherwise a file of settings of fsspec may name one
        options["endpoint_url"] = endpoint
    return options


def patience() -> float:
    """Seconds for which a request that fails is repeated."""
    text = os.environ.get(PATIENCE_VARIABLE, "300")
    try:
        return max(float(text), 1.0)
    except ValueError as error:
        raise ConfigError(f"{PATIENCE_VARIABLE} is {text!r}; give seconds") from error


def s3_endpoint() -> str | None:
    """The address of an S3-compatible store, by the variables that the AWS tools read."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _is_refused(error: Exception) -> bool:
    code = getattr(error, "code", None)
    is_known = any(kind.__name__ in _CREDENTIALS for kind in type(error).__mro__)
    return isinstance(error, PermissionError) or is_known or str(code) in ("401", "403")


def _is_permanent(error: Exception) -> bool:
    code = getattr(error, "code", None)
    is_mistake = isinstance(code, int) and 400 <= code < 500 and code not in (408, 429)
    return isinstance(error, _PERMANENT) or _is_refused(error) or is_mistake


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200] or ("no answer in time" if isinstance(error, TimeoutError) else "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
