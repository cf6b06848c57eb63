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

_URL = re.compile(r"(gs|s3):/+([^/]+)(?:/+(.*?))?/*")
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_LONGEST_PAUSE = 16.0
# Another try does not help against these. Drivers and cloud libraries have errors of their own, known by name.
_PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, ImportError, TypeError, ValueError)
_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError"})

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
            return self._tried(lambda fs: bytes(fs.cat_file(self._path(name))), f"{name} cannot be read")
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write an object, complete in one step; errors as ``read``."""
        self._written(lambda fs: fs.pipe_file(self._path(name), content), name)

    def create(self, name: str, content: bytes) -> bool:
        """Write an object if there is none; False if there is one. ``content`` must be unique.

        Raises:
            BucketError: it cannot be written.
        """

        def create(fs: Any) -> bool:
            try:
                fs.pipe_file(self._path(name), content, mode="create")
            except Exception:
                # Drivers report a refusal in several ways, also after a request that they repeated was a success.
                fs.invalidate_cache()
                try:
                    return bytes(fs.cat_file(self._path(name))) == content
                except FileNotFoundError:
                    pass
                raise
            return True

        return self._written(create, name)

    def upload(self, file: Path, name: str) -> None:
        """Write an object from a file; errors as ``write``."""
        self._written(lambda fs: fs.put_file(str(file), self._path(name)), name)

    def download(self, name: str, file: Path) -> None:
        """Read an object into a file.

        Raises:
            BucketError: it cannot be read, or is not there.
        """
        try:
            self._tried(lambda fs: fs.get_file(self._path(name), str(file)), f"{name} cannot be read")
        except FileNotFoundError as error:
            raise BucketError(f"{self.url}: {name} is not there any more; try again") from error

    def copy(self, name: str, target: str) -> None:
        """Copy an object inside the bucket; errors as ``write``."""
        self._written(lambda fs: fs.cp_file(self._path(name), self._path(target)), name)

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, in this order; those that are not there are no error. Errors as ``write``."""
        for name in names:
            try:
                self._tried(lambda fs, name=name: fs.rm_file(self._path(name)), f"{name} cannot be deleted")
            except FileNotFoundError:
                continue

    def names(self, prefix: str = "") -> dict[str, int]:
        """All objects in a folder below this one, at any depth, with their sizes in bytes; errors as ``read``."""
        root, where = f"{self._path('').rstrip('/')}/", self._path(prefix).rstrip("/")
        try:
            found: dict[str, Any] = self._tried(lambda fs: fs.find(where, detail=True), f"{prefix} cannot be listed")
        except FileNotFoundError:
            return {}
        return {
            path.removeprefix(root): int(about["size"] or 0)
            for path, about in sorted(found.items())
            if path.startswith(f"{where}/") and not path.endswith("/")
        }

    def entries(self) -> dict[str, bool]:
        """Names at the top of this folder, and whether each is a folder; errors as ``read``."""
        where = self._path("").rstrip("/")
        try:
            found: list[Any] = self._tried(lambda fs: fs.ls(where, detail=True), "it cannot be listed")
        except FileNotFoundError:
            return {}
        named = ((PurePosixPath(one["name"]), one["type"] == "directory") for one in found)
        return {path.name: is_folder for path, is_folder in named if str(path) != where}

    def array_store(self, name: str) -> dict[str, Any]:
        """TensorStore's JSON of a folder below this one, with as much patience."""
        patience = _patience()
        longest = max(min(_LONGEST_PAUSE, patience / 4), 0.1)
        retries = {
            "max_retries": max(int(patience / longest) + 2, 3),
            "initial_delay": f"{min(1.0, longest):.2f}s",
            "max_delay": f"{longest:.2f}s",
        }
        path = f"{self.folder}/{name}/".lstrip("/")
        if self.scheme == "gs":
            if "STORAGE_EMULATOR_HOST" in os.environ:  # the name that other libraries know
                os.environ["TENSORSTORE_GCS_HTTP_URL"] = os.environ["STORAGE_EMULATOR_HOST"]
                # An emulator needs no credentials. Without a token TensorStore looks for them in the network at each
                # save, which may take a minute on a machine that has none.
                os.environ.setdefault("GOOGLE_AUTH_TOKEN_FOR_TESTING", "emulator")
            context = {"gcs_request_retries": retries}
            return {"driver": "gcs", "bucket": self.name, "path": path, "context": context}
        endpoint = _s3_endpoint()
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return {
            "driver": "s3",
            "bucket": self.name,
            "path": path,
            **({"endpoint": endpoint} if endpoint else {}),
            **({"aws_region": region or "us-east-1"} if region or endpoint else {}),
            "context": {"s3_request_retries": retries},
        }

    def _path(self, name: str) -> str:
        return "/".join(part for part in (self.name, self.folder, name) if part)

    def _written(self, call: Callable[[Any], T], name: str) -> T:
        try:
            return self._tried(call, f"{name} cannot be written")
        except FileNotFoundError as error:
            raise BucketError(
                f"{self.url}: {name} cannot be written: there is no bucket {self.name}; create it, or correct its name"
            ) from error

    def _tried(self, call: Callable[[Any], T], what: str) -> T:
        """The result of ``call``, repeated while the connection fails. FileNotFoundError is passed on."""
        fs = self._driver()
        since, pause = time.monotonic(), min(1.0, _patience() / 10)
        while True:
            try:
                return call(fs)
            except FileNotFoundError:
                raise
            except Exception as error:
                waited = time.monotonic() - since
                if _is_permanent(error) or waited + pause > _patience():
                    raise self._explained(error, what, waited) from error
                _log.warning("%s: %s (%s); trying again", self.url, what, _words(error))
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)

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
        package = _PACKAGES[self.scheme]
        # gcsfs would ask another server, by gRPC, for the kind of the bucket; an emulator lets it wait 60 s.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        try:
            fsspec = importlib.import_module("fsspec")  # no type stubs
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{self.url} needs the package {package}, which is not installed: {pip_install(package)}"
            ) from error
        options: dict[str, Any] = {}
        if self.scheme == "gs" and "STORAGE_EMULATOR_HOST" in os.environ:
            options |= {"token": "anon", "endpoint_url": os.environ["STORAGE_EMULATOR_HOST"]}
        if self.scheme == "s3":
            options |= {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60}, "endpoint_url": _s3_endpoint()}
        try:
            return fsspec.filesystem(self.scheme, use_listings_cache=False, **options)
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


def _patience() -> float:
    text = os.environ.get(PATIENCE_VARIABLE, "300")
    try:
        return max(float(text), 1.0)
    except ValueError as error:
        raise ConfigError(f"{PATIENCE_VARIABLE} is {text!r}; give seconds") from error


def _s3_endpoint() -> str | None:
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
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
