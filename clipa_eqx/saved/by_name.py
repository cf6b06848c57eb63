"""Models by name: repositories of the Hugging Face hub and released models, as folders that are converted once."""

import importlib
import re
from pathlib import Path
from typing import Any

from clipa_eqx.buckets.mirror import local_copy
from clipa_eqx.errors import ConfigError

HUB = "hf-hub:"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


def local_model(path: Path | str, *, weights: Path | str | None = None) -> Path:
    """The local folder of a model: ``path`` itself, a copy of a folder in a bucket, or a model of the cache by name.

    A model by name is converted into the cache the first time. After that neither network nor converter is used.

    Args:
        path: a folder, its address in a bucket, ``hf-hub:OWNER/NAME`` or ``hf-hub:OWNER/NAME@REVISION``, or the name of
            a released model.
        weights: file with the weights of the named released model.

    Raises:
        ConfigError: there is no released model of this name, or its weights must be given.
        ConversionError: the weights cannot be downloaded, do not fit the model, or cannot be written to the cache.
    """
    if weights is None and not is_name(path):
        return local_copy(path)
    # The converters are a package above this one. It is only imported for a name, so that a folder never needs it.
    try:
        names: Any = importlib.import_module("conversion.by_name.names")
    except ImportError as error:
        raise ConfigError(f"{path}: models by name need the package conversion, which comes with clipa_eqx") from error
    found = names.find(str(path), None if weights is None else Path(weights))
    if found is None:
        return local_copy(path)
    if not found.folder.is_dir():
        importlib.import_module("conversion.by_name.converting").convert(found)
    return found.folder


def is_name(path: Path | str) -> bool:
    """Whether a path may be the name of a model: it names the hub, or is a single word that is no file or folder."""
    text = str(path)
    return text.startswith(HUB) or (_NAME.fullmatch(text) is not None and not Path(text).exists())
