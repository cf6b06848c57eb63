"""Training samples as the model gets them: the image after augmentation, the captions, and the tokens as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8

from clipa_eqx.data.array_record_reader import RecordSource
from clipa_eqx.data.load_batch import OnBadRecord
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One training sample: its image after augmentation, and the texts below it."""

    image: UInt8[np.ndarray, "height width 3"]
    title: str
    caption: str
    tokens: str


def read_samples(
    mixture: Mixture, transform: TrainTransform, *, samples: int, seed: int, on_bad_record: OnBadRecord = "error"
) -> list[Sample]:
    """The first samples that training with this seed sees. Raises DataError for a damaged record."""
    named = tuple(_Named(folder=source.folder, manifest=source.manifest) for source in mixture.sources)
    mixture = replace(mixture, sources=named)
    # Sample numbers do not depend on the batch size, so one batch shows the first samples of any run.
    stream = train_stream(
        mixture, transform, batch_size=samples, seed=seed, on_bad_record=on_bad_record, config=StreamConfig(threads=0)
    )
    with stream:
        batch = next(stream)
    shown: list[Sample] = []
    for row, record in enumerate(mixture.read(batch["sample_id"].tolist())):
        if isinstance(record, DataError):
            raise record
        cut = " ..." if batch["truncated"][row] else ""
        source = f" of source {batch['source'][row]}" if len(mixture.sources) > 1 else ""
        shown.append(
            Sample(
                image=batch["image"][row],
                title=f"{record.key}{source}",
                caption=" | ".join(record.captions),
                tokens=f"{transform.tokenizer.decode(batch['tokens'][row])}{cut}",
            )
        )
    return shown


class _Named(RecordSource):
    """Records in which the class name stands in for captions where a record has only a label."""

    def read_each(
        self, indices: Sequence[int], *, on_shard: Callable[[int], None] | None = None
    ) -> list[Record | DataError]:
        return [
            one if isinstance(one, DataError) or one.captions or one.label is None else self._named(one, one.label)
            for one in super().read_each(indices, on_shard=on_shard)
        ]

    def _named(self, record: Record, label: int) -> Record:
        names = self.manifest.class_names or ()
        return replace(record, captions=(names[label] if 0 <= label < len(names) else f"class {label}",))
