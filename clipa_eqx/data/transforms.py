"""The standard transform of the training stream: a record to the arrays of one batch row."""

from dataclasses import dataclass

import numpy as np

from clipa_eqx.data.images.augment import ImageConfig, train_image
from clipa_eqx.data.records import Record
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer.reduce import Reduction
from clipa_eqx.tokenizer.wordpiece import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """Transform to an augmented image and one of the captions, each with the same probability.

    The row has ``image`` uint8[height width 3], ``tokens`` int32[length], ``truncated`` (bool: some word pieces did not
    fit), ``pieces`` (int32: tokens except [CLS] and padding) and ``unknown`` (int32: number of those that are [UNK]).
    Image and text use separate random generators, so that the settings of one never change the other.

    Attributes:
        image: size and augmentation of the image.
        tokenizer: tokenizer of the captions.
        length: tokens per text, [CLS] included.
        reduction: way to shorten a caption of too many word pieces. "truncate" keeps the first pieces, "syntax" the
            words of the most important classes, "random" pieces at random, "block" a random run of neighboring pieces;
            all keep the order.

    Raises:
        ConfigError: a length below 1.
    """

    image: ImageConfig
    tokenizer: Tokenizer
    length: int
    reduction: Reduction = "truncate"

    def __post_init__(self) -> None:
        _check_length(self.length)

    def __call__(self, record: Record, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Make the row of a record.

        Args:
            record: an image with at least one caption.
            rng: random generator of the augmentation, the choice of the caption and its reduction.

        Raises:
            DataError: the record has no caption, or a damaged image.
        """
        if not record.captions:
            raise DataError("the record has no caption, so it cannot be trained on; give it one or drop it at ingest")
        caption, text_rng = record.captions[0], None
        # Making a generator takes longer than tokenizing, so it is made only if the text needs random numbers.
        if len(record.captions) > 1 or self.reduction in ("random", "block"):
            (text_rng,) = rng.spawn(1)
            caption = record.captions[int(text_rng.integers(len(record.captions)))]
        encoded = self.tokenizer.encode(caption, length=self.length, reduction=self.reduction, rng=text_rng)
        ids: list[int] = encoded.ids.tolist()  # counted as a list, because a row is short
        return {
            "image": train_image(record.image, self.image, rng),
            "tokens": encoded.ids,
            "truncated": np.asarray(encoded.is_truncated),
            "pieces": np.asarray(len(ids) - 1 - ids.count(self.tokenizer.pad_id), np.int32),
            "unknown": np.asarray(ids.count(self.tokenizer.unk_id), np.int32),
        }


def _check_length(length: int) -> None:
    if length < 1:
        raise ConfigError(f"text length must be at least 1 token, got {length}")
