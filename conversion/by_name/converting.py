"""Conversion of a named model into the cache: once, also if several processes ask for it at the same time."""

import logging

from clipa_eqx.errors import CheckpointError, ConversionError
from clipa_eqx.file_lock import locked_folder
from conversion.by_name.names import NamedModel, cached, models_folder
from conversion.flax_clipa.importing import import_flax
from conversion.open_clip.importing import import_open_clip
from conversion.weights.choices import Choices, ImportOptions

_log = logging.getLogger(__name__)


def convert(model: NamedModel) -> None:
    """Write the folder of a model; another process that asks for it meanwhile waits, and then finds it.

    The folder appears once everything is written and checked. What a killed conversion left is removed by the next.

    Raises:
        ConversionError: the weights cannot be downloaded, do not fit the model, or cannot be written to the cache.
        CheckpointError: a weight file is damaged.
    """
    with locked_folder(models_folder() / f".{model.folder.name}.lock", error=ConversionError, waits=True):
        if model.folder.is_dir():
            return
        _log.info("%s is converted once, to %s", model.name, model.folder)
        options = ImportOptions(folder=model.folder, choices=Choices(released=model.released))
        try:
            if model.profile == "flax":
                import_flax(model.source, options)
            else:
                import_open_clip(model.source, options)
        except (ConversionError, CheckpointError) as error:
            there = cached()
            held = f"it holds {', '.join(there)}" if there else "it is empty"
            kind = ConversionError if isinstance(error, ConversionError) else CheckpointError
            raise kind(
                f"{model.name} cannot be converted: {error}. The cache is {models_folder()}, and {held}; set "
                "CLIPA_EQX_CACHE to use another one"
            ) from error
