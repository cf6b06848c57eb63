"""Names of the scores that evaluations will have, before any of them has run, and which of two scores is better."""

from collections.abc import Sequence

from clipa_eqx.evals.contrastive import ContrastiveConfig
from clipa_eqx.evals.evaluation import EvaluationConfig, names_of
from clipa_eqx.evals.few_shot import FewShotConfig
from clipa_eqx.evals.linear_probe import LinearProbeConfig
from clipa_eqx.evals.retrieval import RANKS, RetrievalConfig
from clipa_eqx.evals.zero_shot import ZeroShotConfig


def score_names_of(configs: Sequence[EvaluationConfig]) -> list[str]:
    """The names of all scores as in ``metrics.jsonl``.

    >>> score_names_of([ZeroShotConfig(data="data/imagenet")])
    ['zero_shot/imagenet/top1', 'zero_shot/imagenet/top5']
    """
    return [
        f"{name}/{score}" for config, name in zip(configs, names_of(configs), strict=True) for score in _scores(config)
    ]


def is_better(name: str, new: float, old: float) -> bool:
    """Whether a score is better than another one of that name: lower for a loss or a rank, higher for all others.

    >>> is_better("contrastive/coco/loss", 1.0, 2.0), is_better("zero_shot/imagenet/top1", 0.1, 0.2)
    (True, False)
    """
    is_lower_better = name.endswith(("loss", "rank"))
    return new < old if is_lower_better else new > old


def _scores(config: EvaluationConfig) -> list[str]:
    match config:
        case ZeroShotConfig():
            return ["top1", "top5"]
        case RetrievalConfig():
            return [f"{name}_recall@{k}" for name in ("image_to_text", "text_to_image") for k in RANKS]
        case ContrastiveConfig():
            return ["loss", "accuracy"]
        case FewShotConfig():
            each = [f"{shots}_shot/seed_{seed}" for shots in config.shots for seed in range(config.seeds)]
            return [*(f"{shots}_shot" for shots in config.shots), *each]
        case LinearProbeConfig():
            return ["top1"]
