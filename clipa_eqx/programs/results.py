"""Results of ``evaluate.py``: reading them, and what in their passports decides the score."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from clipa_eqx.errors import ConfigError

SUITES = ("zero-shot", "retrieval", "contrastive", "few-shot", "linear-probe")

_PARTS = ("passport", "model", "preprocess", "settings")
_IN_PASSPORT = ("data", "image", "tokenizer", "model")
_SCORE = re.compile(r"top1|top5|loss|accuracy|(image_to_text|text_to_image)_recall@\d+|\d+_shot")
# Devices change a score by rounding only; folders are places; the set follows from the records.
_WITHOUT_EFFECT = re.compile(r"devices|devices/.*|(data|train)/folder|set/.*|settings/every_steps")


def read_result(path: Path) -> dict[str, Any]:
    """A result of ``evaluate.py``.

    Raises:
        ConfigError: the file cannot be read, is no result, or has no passport.
    """
    try:
        content: object = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a result of evaluate.py") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; give a result of evaluate.py") from error
    result = cast("dict[str, Any]", content) if isinstance(content, dict) else {}
    if not isinstance(result.get("passport"), dict):
        raise ConfigError(
            f"{path} has no passport: it is no result of evaluate.py, or one of an earlier version; score again"
        )
    if result.get("suite") not in SUITES:
        raise ConfigError(f"{path} is of the suite {result.get('suite')!r}, expected one of {', '.join(SUITES)}")
    missing = [name for name in _PARTS if not isinstance(result.get(name), dict)]
    missing += [f"passport/{name}" for name in _IN_PASSPORT if not isinstance(result["passport"].get(name), dict)]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; score the model again with this version of evaluate.py")
    return result


def scores_of(scores: Mapping[str, Any]) -> dict[str, float]:
    """The scores among the entries of a result; of few-shot scores the means."""
    return {name: float(value) for name, value in scores.items() if _SCORE.fullmatch(name)}


def decides(path: str, *, suite: str) -> bool:
    """Whether a value of a passport, such as ``image/resize``, can change a score by more than rounding."""
    if path == "settings/batch_size":
        return suite == "contrastive"  # the batch has the other pairs of the comparison
    return not _WITHOUT_EFFECT.fullmatch(path)


def is_weights_equal(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two models are the same by what identifies their weights: a hash of all leaves, or that of one file."""
    if "leaves_sha256" in first and "leaves_sha256" in second:
        return first["leaves_sha256"] == second["leaves_sha256"]
    names = {*first, *second} - {"path", "leaves_sha256"}
    return all(first.get(name) == second.get(name) for name in names)


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The values in which two passports differ, by their path, such as ``image/resize``.

    Attributes:
        deciding: values that can change the score.
        others: values that cannot, except by rounding.
        recorded_once: paths that one of the passports lacks; versions of this package record more and more.
    """

    deciding: Mapping[str, tuple[Any, Any]]
    others: Mapping[str, tuple[Any, Any]]
    recorded_once: tuple[str, ...]


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> Differences:
    """Compare the passports of two results of one suite.

    >>> a = {"suite": "retrieval", "passport": {"image": {"size": [2, 2], "mode": "fast"}, "devices": {"data": 1}}}
    >>> b = {"suite": "retrieval", "passport": {"image": {"size": [2, 2], "mode": "exact"}, "devices": {"data": 8}}}
    >>> differences(a, b).deciding, differences(a, b).others
    ({'image/mode': ('fast', 'exact')}, {'devices/data': (1, 8)})
    """
    a, b = (dict(_flat(one["passport"])) for one in (first, second))
    weights = [one["passport"].get("model", {}).get("weights", {}) for one in (first, second)]
    is_same_model = is_weights_equal(weights[0], weights[1])
    found = {name: (a[name], b[name]) for name in a if name in b and a[name] != b[name]}

    def is_deciding(name: str) -> bool:
        return decides(name, suite=first["suite"]) and not (is_same_model and name.startswith("model/weights/"))

    return Differences(
        deciding={name: pair for name, pair in found.items() if is_deciding(name)},
        others={name: pair for name, pair in found.items() if not is_deciding(name)},
        recorded_once=tuple(
            name
            for name in dict.fromkeys([*a, *b])
            if (name in a) != (name in b) and is_deciding(name) and not name.startswith("model/weights/")
        ),
    )


def _flat(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in value.items():
        here = f"{path}/{name}" if path else name
        if isinstance(one, Mapping):
            yield from _flat(cast("Mapping[str, Any]", one), here)
        else:
            yield here, one
