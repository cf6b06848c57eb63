"""The work of one process of a cluster that embeds: it loads the model once, and writes shard by shard."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.devices import in_words, open_devices
from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.prompts import PromptReduction
from clipa_eqx.locks.fence import Fence
from clipa_eqx.programs.encoders import load_encoder
from clipa_eqx.search.embedding import EmbeddingOptions, embed_shard
from clipa_eqx.search.encoder import Encoder, EncoderIdentity
from clipa_eqx.search.inputs import Inputs, Item, record_inputs
from clipa_eqx.search.shards import is_complete


@dataclass(frozen=True, kw_only=True)
class ModelChoice:
    """A model and the settings that flags change; as in ``load_encoder``."""

    folder: str
    mesh: tuple[int, int, int] | None
    image_mode: Literal["exact", "fast"] | None
    text_reduction: PromptReduction | None


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """A shard to write, if it is missing.

    Attributes:
        shard: its number.
        has_listing: whether the folder had its listing before; otherwise it is new, whichever attempt writes it.
        numbers: of its inputs.
        kind: images or texts.
        about: the identity of all inputs.
        items: its items; None for records, which the process reads itself.
        model: what embeds them.
        fingerprint: of the model that the folder was begun with.
        folder: the folder of embeddings.
        options: settings of that folder.
        fence: of its lock.
    """

    shard: int
    has_listing: bool
    numbers: range
    kind: Literal["images", "texts"]
    about: Mapping[str, Any]
    items: Sequence[Item] | None
    model: ModelChoice
    fingerprint: Mapping[str, Any]
    folder: Path
    options: EmbeddingOptions
    fence: Fence


# What this process has loaded, for the jobs of one command.
_encoders: dict[ModelChoice, Encoder] = {}
_records: dict[tuple[str, str], Inputs] = {}


def identify(model: ModelChoice, seen: Callable[[int], None]) -> EncoderIdentity:
    """Load a model and return what a description of its vectors says about it. Errors as ``load_encoder``."""
    return _encoder(model).identity


def embed_job(job: ShardJob, seen: Callable[[int], None]) -> str | None:
    """Write a shard, and return the devices that computed it; None if it was complete.

    Raises:
        ConfigError: this process found another model or other inputs than the one that started the work.
        ClipaError: as ``embed_shard``.
    """
    if is_complete(job.folder, job.shard, with_parquet=job.options.with_parquet):
        seen(len(job.numbers))
        return None
    encoder = _encoder(job.model)
    if encoder.fingerprint != job.fingerprint:
        raise ConfigError(f"model {job.model.folder} is another one on each node, or has changed; give all nodes one")
    items = _items(job)
    embed_shard(
        job.folder,
        job.shard,
        encoder,
        items,
        job.options,
        kind=job.kind,
        fence=job.fence,
        seen=seen,
    )
    return in_words(open_devices())


def _encoder(model: ModelChoice) -> Encoder:
    if model not in _encoders:
        _encoders.clear()
        open_devices()
        _encoders[model] = load_encoder(
            Path(model.folder), mesh=model.mesh, image_mode=model.image_mode, text_reduction=model.text_reduction
        )
    return _encoders[model]


def _items(job: ShardJob) -> Iterator[Item]:
    if job.items is not None:
        return iter(job.items)
    key = job.about["path"], job.kind
    if key not in _records:
        _records.clear()
        _records[key] = record_inputs(open_records(job.about["path"]), kind=job.kind)
    found = _records[key]
    if found.about != job.about:
        raise ConfigError(f"records {job.about['path']} are others on each node, or have changed; give all nodes one")
    return found.read(job.numbers)
