"""An opened model folder: everything in it except the values of its leaves."""

from dataclasses import dataclass
from pathlib import Path

from clipa_eqx.buckets.mirror import local_copy
from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError, DataError
from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.saved.description import load_model_config, load_preprocess, optimizer_file, read_json
from clipa_eqx.saved.kinds import PROVENANCE_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE
from clipa_eqx.saved.provenance import Provenance
from clipa_eqx.tokenizer.wordpiece import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ModelFolder:
    """The description of a model, as its folder has it. ``description.check_parts`` compares the parts with each other.

    Attributes:
        path: the folder.
        config: the architecture.
        preprocess: how images are prepared.
        tokenizer: how texts are split.
        provenance: where the weights come from.
    """

    path: Path
    config: CLIPConfig
    preprocess: EvalImageConfig
    tokenizer: Tokenizer
    provenance: Provenance

    @property
    def weights(self) -> Path:
        """The file of the weights."""
        return self.path / WEIGHTS_FILE

    @property
    def optimizer(self) -> Path | None:
        """The file of the optimizer state; None if the model has none."""
        path = optimizer_file(self.path)
        return path if path.exists() else None


def open_model_folder(folder: Path | str) -> ModelFolder:
    """Read all small files of a model folder; one in a bucket is copied to this machine first.

    Raises:
        CheckpointError: ``folder`` is not a model folder; a file is missing, damaged or of a later version.
    """
    path = local_copy(folder)
    config = load_model_config(path)
    preprocess = load_preprocess(path)
    try:
        tokenizer = Tokenizer.load(path / TOKENIZER_FOLDER)
    except DataError as error:
        raise CheckpointError(f"model folder {path}: {error}") from error
    provenance = Provenance.from_json(read_json(path / PROVENANCE_FILE))
    return ModelFolder(path=path, config=config, preprocess=preprocess, tokenizer=tokenizer, provenance=provenance)
