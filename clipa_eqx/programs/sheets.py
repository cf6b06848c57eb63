"""Contact sheets of a record folder and of a run: which samples, prepared how."""

from pathlib import Path

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import DataError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.programs.contact_sheet import write_sheet
from clipa_eqx.tokenizer.loading import load_tokenizer
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from clipa_eqx.training.inputs import open_sources, train_transform


def draw_records(folder: Path, path: Path, *, samples: int) -> None:
    """Draw the first samples of a record folder as typical training sees them: 112 px, color jitter, 32 tokens.

    Raises:
        ConfigError: the file cannot be written.
        DataError: the records are missing or damaged, or there are none.
    """
    source = open_records(folder)
    if not len(source):
        raise DataError("there are no records")
    image = ImageConfig(size=(112, 112), color=ColorConfig())
    transform = TrainTransform(image=image, tokenizer=Tokenizer.bert(), length=32)
    write_sheet(path, Mixture(sources=(source,)), transform, samples=samples, seed=0, on_bad_record="substitute")


def draw_config(config: ExperimentConfig, path: Path, *, samples: int) -> None:
    """Draw the first samples that a run of this config sees.

    Raises:
        ConfigError: the file cannot be written.
        DataError: the run's data are missing or damaged.
    """
    tokenizer = load_tokenizer(config.data.vocab, model_vocab=config.model.text.vocab)
    write_sheet(
        path,
        open_sources(config),
        train_transform(config, tokenizer),
        samples=samples,
        seed=config.seed,
        on_bad_record=config.data.on_bad_record,
    )
