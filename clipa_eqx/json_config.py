"""Config dataclasses to JSON and back; nothing is ignored and nothing is guessed."""

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from clipa_eqx.errors import ConfigError, listed

T = TypeVar("T")

TAG = "type"
"""Key of the class name of a value whose field may hold several classes."""

FORMER_NAMES = {"optimiser": "optimizer", "colour": "color", "canonicalise": "canonicalize"}
"""Names of fields and values in records and command lines of version 0.1.0, and their current names."""

FORMER_VALUES: Mapping[tuple[str, str], Any] = {
    ("loss", name): {"kind": "softmax", "algorithm": name, "chunk": 4096} for name in ("global", "sharded")
}
"""Values of fields in records of version 0.1.0 that have other values now, by name and former value."""


@dataclasses.dataclass(frozen=True)
class SameAs:
    """The value of another field of the same record."""

    field: str


LATER_FIELDS: Mapping[tuple[str, str], Any] = {
    ("CLIPConfig", "bias"): None,
    ("CheckpointConfig", "checksums"): True,
    ("ExperimentConfig", "tensorboard"): False,
    ("ExperimentConfig", "on_non_finite"): "stop",
    ("ExperimentConfig", "watchdog"): 1800.0,
    ("ExperimentConfig", "flight_steps"): 32,
    ("ExperimentConfig", "micro_batch"): None,
    ("ExperimentConfig", "attention"): "auto",
    ("ExperimentConfig", "ema"): None,
    ("ExperimentConfig", "guard"): None,
    ("CheckpointConfig", "keep_every_steps"): None,
    ("CheckpointConfig", "keep_best"): None,
    ("ExperimentConfig", "trainable"): None,
    ("InitConfig", "text_rows"): "resample",
    ("InitConfig", "surgery"): [],
    ("Precision", "gradients"): SameAs("compute"),
    ("ZeroShotConfig", "commas_in_names"): False,
    **{("ExperimentConfig", suite): [] for suite in ("retrieval", "contrastive", "few_shot", "linear_probe")},
}
"""Fields that records of version 0.1.0 lack, by class and name, with the value that runs of that version have now."""

_FAILED: Any = object()


def to_json(config: Any) -> dict[str, Any]:
    """A config as input for ``json.dumps``; keys in the order of the fields, tuples as lists.

    Equal configs give equal results, also after ``json.dumps`` and ``json.loads``.
    """
    return _encode(config, type(config))


def from_json(cls: type[T], data: Mapping[str, Any], *, where: str = "config") -> T:
    """The config that ``to_json`` was given.

    Every field must be present, also those with a default: a record describes a run even after defaults change. Only
    ``LATER_FIELDS`` may be missing.

    Args:
        where: the source of the data for messages, for example a file name.

    Raises:
        ConfigError: unknown, missing and wrongly typed fields, or a config that its class refuses; the message lists
            all problems by path.
    """
    problems: list[str] = []
    value = _decode(with_current_names(data), cls, "", problems)
    if problems:
        raise ConfigError(f"{where} does not describe a {cls.__name__}, {listed(problems)}")
    return value


def with_current_names(data: Any) -> Any:
    """JSON of a config with the current names and values of fields that have been renamed or replaced.

    >>> with_current_names({"init": {"optimiser": True}})
    {'init': {'optimizer': True}}
    """
    if isinstance(data, Mapping):
        fields = cast("Mapping[str, Any]", data)
        return {FORMER_NAMES.get(name, name): _current_value(name, value) for name, value in fields.items()}
    return [with_current_names(entry) for entry in cast("list[Any]", data)] if isinstance(data, list) else data


def _current_value(name: str, value: Any) -> Any:
    return FORMER_VALUES.get((name, value), value) if isinstance(value, str) else with_current_names(value)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path and value of each entry of JSON that is neither an object nor a list.

    >>> list(flat({"a": {"b": 1}, "c": [2, None]}))
    [('a/b', 1), ('c/0', 2), ('c/1', None)]
    """
    if isinstance(value, Mapping):
        items: Iterable[tuple[Any, Any]] = cast("Mapping[str, Any]", value).items()
    elif isinstance(value, list):
        items = enumerate(cast("list[Any]", value))
    else:
        yield path, value
        return
    for name, entry in items:
        yield from flat(entry, _join(path, str(name)))


def _encode(value: Any, hint: Any) -> Any:
    options = _options(hint)
    # 1 and 1.0 are equal in Python, but not in a record.
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        fields = {f.name: _encode(getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(value)}
        return {TAG: type(value).__name__, **fields} if len(_classes(options)) > 1 else fields
    if isinstance(value, tuple):
        entries = cast("tuple[Any, ...]", value)
        kinds = next((_entry_hints(o, len(entries)) for o in options if get_origin(o) is tuple), None)
        return [_encode(entry, kind) for entry, kind in zip(entries, kinds or (Any,) * len(entries), strict=True)]
    return value


def _decode(data: Any, hint: Any, path: str, problems: list[str]) -> Any:
    options = _options(hint)
    classes = _classes(options)
    if classes and isinstance(data, Mapping):
        return _decode_class(cast("Mapping[str, Any]", data), classes, path, problems)
    attempts: list[list[str]] = []
    for option in options:
        found: list[str] = []
        value = _decode_plain(data, option, path, found)
        if not found:
            return value
        attempts.append(found)
    # If several types were tried, the one that was read furthest, inside a list, has the most useful problem.
    deepest = max(attempts, key=lambda found: found[0].count("/"))
    if len(options) == 1 or deepest[0].split(":")[0] != path:
        problems += deepest
    else:
        problems.append(f"{path}: got {data!r}, expected {' or '.join(map(_show, options))}")
    return _FAILED


def _decode_class(data: Mapping[str, Any], classes: list[Any], path: str, problems: list[str]) -> Any:
    before = len(problems)
    [cls], rest = classes[:1], dict(data)
    if len(classes) > 1:
        by_name = {c.__name__: c for c in classes}
        cls = by_name.get(rest.pop(TAG, None))
        if cls is None:
            problems.append(f"{_join(path, TAG)}: got {data.get(TAG)!r}, expected one of {', '.join(by_name)}")
            return _FAILED
    hints = get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    later = {name: value for (owner, name), value in LATER_FIELDS.items() if owner == cls.__name__}
    later = {name: rest.get(v.field) if isinstance(v, SameAs) else v for name, v in later.items()}
    rest = later | rest
    problems += [f"{_join(path, name)}: unknown" for name in rest if name not in names]
    problems += [f"{_join(path, name)}: missing" for name in names if name not in rest]
    values = {name: _decode(rest[name], hints[name], _join(path, name), problems) for name in names if name in rest}
    if len(problems) > before:
        return _FAILED
    try:
        return cls(**values)
    except ValueError as error:
        problems.append(f"{path}: {error}" if path else str(error))
        return _FAILED


def _decode_plain(data: Any, hint: Any, path: str, problems: list[str]) -> Any:
    if get_origin(hint) is Literal:
        # True == 1, so types are compared too.
        if any(type(data) is type(choice) and data == choice for choice in get_args(hint)):
            return data
    elif get_origin(hint) is tuple:
        if isinstance(data, list | tuple):
            entries = cast("list[Any]", data)
            kinds = _entry_hints(hint, len(entries))
            if kinds is not None:
                pairs = enumerate(zip(entries, kinds, strict=True))
                return tuple(_decode(entry, kind, _join(path, str(i)), problems) for i, (entry, kind) in pairs)
    elif hint is float:
        if type(data) in (int, float):
            return float(data)
    elif hint is type(None):
        if data is None:
            return None
    elif hint in (int, str, bool) and type(data) is hint:
        return data
    problems.append(f"{path}: got {data!r}, expected {_show(hint)}")
    return _FAILED


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _classes(options: tuple[Any, ...]) -> list[Any]:
    return [option for option in options if dataclasses.is_dataclass(option)]


def _entry_hints(hint: Any, length: int) -> tuple[Any, ...] | None:
    """The types of a tuple's entries; ``None`` if it cannot have that many."""
    args = get_args(hint)
    if args[-1:] == (...,):
        return args[:1] * length
    return args if len(args) == length else None


def _show(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, get_args(hint)))
    if hint is type(None):
        return "null"
    if dataclasses.is_dataclass(hint):
        return f"the fields of {hint.__name__}" if isinstance(hint, type) else str(hint)
    if get_origin(hint) is tuple:
        args = get_args(hint)
        return "a list" if args[-1:] == (...,) else f"a list of {len(args)}"
    return getattr(hint, "__name__", str(hint))


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name
