"""The guard of a fine-tune: a score that may fall only so far below that of the weights that training starts from."""

import dataclasses

from clipa_eqx.errors import ConfigError
from clipa_eqx.evals.score_names import is_better

_ROUNDING = 1e-9  # a difference of two scores in float64 is rounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """A limit to what training from other weights may lose.

    The score is measured before the first step, and compared whenever its evaluation runs.

    Attributes:
        score: a score of the run, as in ``metrics.jsonl``, such as "zero_shot/imagenet/top1".
        largest_fall: the largest fall that is allowed, as a difference of scores: 0.05 is 5 images in 100. For a loss
            or a rank, which are better if they are lower, the largest rise.

    Raises:
        ConfigError: a fall that is negative or no number.
    """

    score: str
    largest_fall: float = 0.05

    def __post_init__(self) -> None:
        if not self.largest_fall >= 0:
            raise ConfigError(f"guard.largest_fall is {self.largest_fall}; it must be at least 0, such as 0.05")

    def fall(self, before: float, now: float) -> float:
        """The amount by which the score is worse than before; negative if it is better.

        Examples:
            >>> GuardConfig(score="zero_shot/imagenet/top1").fall(0.75, 0.5)
            0.25
            >>> GuardConfig(score="contrastive/coco/loss").fall(0.75, 0.5)
            -0.25
        """
        return now - before if is_better(self.score, 0.0, 1.0) else before - now

    def allows(self, before: float, now: float) -> bool:
        """Whether a score is good enough. One that is NaN is not; a fall of the limit is, also if it is rounded up."""
        return self.fall(before, now) <= self.largest_fall + _ROUNDING
