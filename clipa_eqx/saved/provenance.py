"""The provenance of a model: where its weights come from, and what was checked when they were written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from clipa_eqx.tokenizer.reduce import Reduction

TRAINED_HERE = "clipa_eqx training run"
"""Name of the source of models that ``train`` wrote."""


def _nothing() -> dict[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Source:
    """The origin of the weights: the name of a file, or words; ``sha256`` in hex for a file."""

    name: str | None = None
    sha256: str | None = None
    extra: Mapping[str, Any] = field(default_factory=_nothing)


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The vocabulary that an import chose.

    Attributes:
        sha256: of the pieces, in hex, as ``Tokenizer.vocab_sha256``.
        pieces: number of pieces.
        origin: the flag or file that named it.
        rules: how the source splits texts: "bert" or "reference".
    """

    sha256: str | None = None
    pieces: int | None = None
    origin: str | None = None
    rules: str | None = None
    extra: Mapping[str, Any] = field(default_factory=_nothing)


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Content of ``provenance.json``. Models that were trained here have ``steps`` and ``run``, imports the rest.

    Attributes:
        source: origin of the weights.
        converter: program and version that imported them.
        format: name of the format they were imported from.
        layout: JSON of that format: how the source spells what an export writes back.
        profile: numerics profile: its name, why it was chosen, and the numerics of each tower.
        config_notes: what was chosen without being asked for, and what differed from the named config.
        vocabulary: the vocabulary that an import chose.
        prompt_reduction: the shortening of prompts with which a released model was scored.
        parameters: number of values in all leaves.
        self_check: JSON of what the import checked: finite values, round trip, embeddings of fixed inputs.
        leaves_sha256: SHA-256 in hex of the bytes of each leaf, by leaf path; of leaves of the optimizer state, by
            file name and path. None if there is no record of them at all.
        steps: optimizer steps of the run.
        average: decay, warm-up and number of updates, if the weights are an average over steps, see ``EmaConfig``.
        run: the record of the run: version, config, hashes of data and vocabulary.
        extra: all other keys, and known keys with values of another type than expected; kept as they are.
    """

    source: Source | None = None
    converter: str | None = None
    format: str | None = None
    layout: Mapping[str, Any] = field(default_factory=_nothing)
    profile: Mapping[str, Any] = field(default_factory=_nothing)
    config_notes: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    prompt_reduction: str | None = None
    parameters: int | None = None
    self_check: Mapping[str, Any] = field(default_factory=_nothing)
    leaves_sha256: Mapping[str, str] | None = None
    steps: int | None = None
    average: Mapping[str, Any] = field(default_factory=_nothing)
    run: Mapping[str, Any] = field(default_factory=_nothing)
    extra: Mapping[str, Any] = field(default_factory=_nothing)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Provenance":
        """The provenance in a JSON object of any version; nothing is refused.

        Examples:
            >>> found = Provenance.from_json({"source": "a training run", "steps": 3, "by": "me"})
            >>> found.source.name, found.steps, found.extra
            ('a training run', 3, {'by': 'me'})
        """
        return _decode(cls, found)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that ``from_json`` reads; fields that are empty or None are left out."""
        return _encode(self)

    @property
    def text_reduction(self) -> Reduction | None:
        """The reduction of captions in the run that trained the model, or of prompts when a released one was scored.

        One of "truncate", "syntax", "random" and "block"; None if neither is recorded.
        """
        match (self.run, self.prompt_reduction):
            case (
                {"config": {"data": {"text_reduction": "truncate" | "random" | "block" | "syntax" as reduction}}},
                _,
            ):
                return reduction
            case (_, "truncate" | "syntax" as reduction):
                return reduction
            case _:
                return None


T = TypeVar("T", Source, Vocabulary, Provenance)


# Each returns None for a value of another type than expected.


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _object(value: Any) -> dict[str, Any] | None:
    return dict(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list | tuple):
        return None
    entries = cast("list[Any]", value)
    texts = tuple(one for one in entries if isinstance(one, str))
    return texts if len(texts) == len(entries) else None


def _checksums(value: Any) -> dict[str, str] | None:
    found = _object(value)
    return found if found is not None and all(isinstance(one, str) for one in found.values()) else None


def _source(value: Any) -> Source | None:
    if isinstance(value, str):  # version 0.1.0, for models that it trained
        return Source(name=value)
    return _decode(Source, value) if isinstance(value, Mapping) else None


def _vocabulary(value: Any) -> Vocabulary | None:
    return _decode(Vocabulary, value) if isinstance(value, Mapping) else None


_READ: Mapping[str, Callable[[Any], Any]] = {
    "name": _text,
    "sha256": _text,
    "pieces": _count,
    "origin": _text,
    "rules": _text,
    "source": _source,
    "converter": _text,
    "format": _text,
    "layout": _object,
    "profile": _object,
    "config_notes": _texts,
    "vocabulary": _vocabulary,
    "prompt_reduction": _text,
    "parameters": _count,
    "self_check": _object,
    "leaves_sha256": _checksums,
    "steps": _count,
    "average": _object,
    "run": _object,
}


def _decode(cls: type[T], found: Mapping[str, Any]) -> T:
    names = {one.name for one in fields(cls)} - {"extra"}
    values = {name: _READ[name](value) for name, value in found.items() if name in names}
    known = {name: value for name, value in values.items() if value is not None}
    return cls(**known, extra={name: value for name, value in found.items() if name not in known})


def _encode(value: Source | Vocabulary | Provenance) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in (one.name for one in fields(value) if one.name != "extra"):
        one: Any = getattr(value, name)
        if isinstance(one, Source | Vocabulary):
            found[name] = _encode(one)
        elif one is not None and (one not in ((), {}) or name == "leaves_sha256"):
            found[name] = list(cast("tuple[str, ...]", one)) if isinstance(one, tuple) else one
    return {**value.extra, **found}
