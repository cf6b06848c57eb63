"""Names of models, and the folder in the cache where each is converted to."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

from clipa_eqx.cache_folder import cache_folder
from clipa_eqx.commands import command_line
from clipa_eqx.errors import ConfigError
from clipa_eqx.similar_flags import similar
from conversion.weights.numerics import Profile
from conversion.weights.released import RELEASED

HUB = "hf-hub:"
_REPOSITORY = re.compile(r"hf-hub:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
_LIKE_A_RELEASED_NAME = re.compile(r"(l|h|bigg|big|b|s|ti)-?14-.*|.*-(laion2b|datacomp1b).*")


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """The model of a name.

    Attributes:
        name: the name that was given.
        source: what is converted: ``hf-hub:OWNER/NAME``, with ``@REVISION`` if one is named, or a file.
        released: the released model that it is; None for any other repository.
        profile: the format of ``source``.
        folder: the place in the cache.
    """

    name: str
    source: str
    released: str | None
    profile: Profile
    folder: Path


def models_folder() -> Path:
    """The folder of the cache that holds converted models."""
    return cache_folder("models")


def find(name: str, weights: Path | None) -> NamedModel | None:
    """The model of a name; None if the name is no name of a model, and should be read as a path.

    Raises:
        ConfigError: weights with a name that is of no released model, a released model whose weights are not given, a
            misspelled name, or a file that does not exist.
    """
    if name.startswith(HUB):
        return _repository(name, weights)
    row = RELEASED.get(name)
    if row is None:
        near = similar(name, tuple(RELEASED))
        if weights is None and not (near and _LIKE_A_RELEASED_NAME.fullmatch(name.lower())):
            return None
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"no released model is called {name!r}{meant} `{command_line('released')}` lists them")
    if weights is None and row.profile == "open_clip":
        return replace(_repository(row.url, None), name=name)
    if weights is None:
        convert = command_line("flax", "import", "FILE.npz", "DIR", "--released", name)
        raise ConfigError(
            f"{name} needs its weights: download the file from {row.url}, then call load_model({name!r}, "
            f"weights=FILE), or convert it to a folder with `{convert}`"
        )
    file = Path(str(weights).partition(".npz:")[0] + ".npz") if ".npz:" in str(weights) else weights
    if not file.is_file():
        raise ConfigError(f"weights {weights} is not a file; give the file that was downloaded from {row.url}")
    status = file.stat()
    identity = f"{weights.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"
    place = _place(f"{name}@{hashlib.sha256(identity.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}")
    return NamedModel(name=name, source=str(weights), released=name, profile=row.profile, folder=place)


def cached() -> list[str]:
    """Names of the models in the cache, for messages."""
    try:
        return sorted(path.name for path in models_folder().iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return []


def _repository(name: str, weights: Path | None) -> NamedModel:
    if weights is not None:
        raise ConfigError(f"weights are given for {name}, which has its own; leave them out")
    match = _REPOSITORY.fullmatch(name)
    if match is None:
        raise ConfigError(f"{name} is no repository; give hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION")
    repository, revision = match.groups()
    rows = (row.name for row in RELEASED.values() if row.url == f"{HUB}{repository}")
    return NamedModel(
        name=name,
        source=name,
        released=next(rows, None),
        profile="open_clip",
        folder=_place(f"{repository}@{revision or 'main'}"),
    )


def _place(name: str) -> Path:
    return models_folder() / name.replace("/", "--")
