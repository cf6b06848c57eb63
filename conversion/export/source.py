"""The model to export: a model folder, or the model of a finished run."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from clipa_eqx.buckets.mirror import named
from clipa_eqx.errors import CheckpointError
from clipa_eqx.saved.by_name import local_model
from clipa_eqx.saved.kinds import MODEL_NAME, expect_kind, kind_of


class FinishedModel(NamedTuple):
    """A model folder, and the folder of the run that wrote it if the user named that."""

    folder: Path
    run: Path | None


@contextmanager
def finished_model(target: Path | str) -> Generator[FinishedModel]:
    """Yield the model of a model folder or run folder, also in a bucket, which errors and logs then name, or by name.

    Raises:
        CheckpointError: the path is neither, or the run has not ended.
        ConfigError: there is no model of this name.
        ConversionError: the named model cannot be downloaded or converted.
    """
    with named(target):
        path = local_model(target)
        if expect_kind(path, "model folder", "run folder") == "model folder":
            yield FinishedModel(path, None)
            return
        if kind_of(path / MODEL_NAME) != "model folder":
            raise CheckpointError(
                f"{path} is the folder of a run that has not ended, and {path / MODEL_NAME} is written when it ends; "
                "resume the run, or export another model"
            )
        yield FinishedModel(path / MODEL_NAME, path)
