"""Flags of a config: their names, flags that leave out a part or replace a unit, and what a wrong flag meant."""

import dataclasses
import types
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, Union, cast, get_args, get_origin

from clipa_eqx.durations import Duration
from clipa_eqx.json_config import FORMER_NAMES
from clipa_eqx.similar_flags import similar

T = TypeVar("T")

_UNITS = tuple(field.name for field in dataclasses.fields(Duration))


def flag_names(config: Any) -> Iterator[str]:
    """The flags of all fields of a config, such as ``--optim.peak-lr`` and ``--data.sources.0.folder``."""
    return (f"--{path.replace('_', '-')}" for path in _leaf_paths(config, ""))


def apply_none(config: T, argv: Sequence[str]) -> tuple[T, list[str]]:
    """Leave out the parts that flags such as ``--zero-shot none`` and ``--init none`` name.

    Returns:
        the changed config, and the flags for all other fields; ``none`` for an optional number is written ``None``.
    """
    rest: list[str] = []
    waiting = _split(argv)
    while waiting:
        flag, *values = waiting.pop(0)
        path = _path_of(flag)
        found = _find(config, path) if [value.lower() for value in values] == ["none"] else None
        if found is None:
            rest += [flag, *values]
        elif (empty := _without(found.hint, found.value)) is not _KEEP:
            config = _replaced(config, path, empty)
        else:
            options = _options(found.hint)
            rest += [flag, "None" if type(None) in options and str not in options else values[0]]
    return config, rest


def clear_other_units(config: Any, argv: Sequence[str]) -> list[str]:
    """The flags, with ``None`` for the former unit of each duration that they give in another unit.

    ``--duration.samples 100000`` for a duration in steps becomes ``--duration.samples 100000 --duration.steps None``.
    """
    given: dict[tuple[str, ...], set[str]] = {}
    for flag, *values in _split(argv):
        *owner, unit = _path_of(flag)
        if unit in _UNITS and values and values != ["None"]:
            given.setdefault(tuple(owner), set()).add(unit)
    named = {_path_of(flag) for flag, *_ in _split(argv)}
    added: list[str] = []
    for owner, units in given.items():
        found = _find(config, owner)
        if found is None or not isinstance(found.value, Duration) or len(units) > 1:
            continue
        for unit in _UNITS:
            if unit not in units and getattr(found.value, unit) is not None and (*owner, unit) not in named:
                added += [f"--{'.'.join(owner)}.{unit}", "None"]
    return [*argv, *added]


def repeated_flags(argv: Sequence[str]) -> list[str]:
    """The flags that are given more than once, under any of their spellings. Only the last would count."""
    counts = Counter(_path_of(flag) for flag, *_ in _split(argv) if flag.startswith("--"))
    return [f"--{'.'.join(path).replace('_', '-')}" for path, count in counts.items() if count > 1]


def unknown_flags(config: Any, argv: Sequence[str]) -> list[str]:
    """The flags among the arguments that the config does not have."""
    known = {_path_of(flag) for flag in flag_names(config)}
    return [flag for flag, *_ in _split(argv) if flag.startswith("--") and _path_of(flag) not in known]


def explain(config: Any, flag: str, *, also: Sequence[str] = ()) -> str:
    """A sentence that says why there is no such flag, and which flag may have been meant.

    Args:
        flag: one of ``unknown_flags``.
        also: flags of the program, which are no fields of the config.
    """
    path = _path_of(flag)
    for length in range(1, len(path)):
        found = _find(config, path[:length])
        if found is not None and (found.value is None or found.value == ()):
            part = ".".join(path[:length])
            classes = " or ".join(one.__name__ for one in _classes(found.hint))
            if part == "init" and "--init-from" in also:
                return f"{flag}: the config file sets no init; name the weights to start from with --init-from"
            return f"{flag}: the config file sets no {part}; write {path[length - 1]}={classes}(...) there first"
    if found := _find(config, path):
        return f"{flag} is a part with flags of its own, such as {next(flag_names_of(flag, found.value), flag)}"
    if path == ("resume",):
        return f"there is no flag {flag}; the same command as before resumes a run"
    likely = similar(flag, (*also, *flag_names(config)))
    if likely:
        return f"there is no flag {flag}; did you mean {' or '.join(likely)}?"
    return f"there is no flag {flag}" + ("; --help-config lists all of them" if "--help-config" in also else "")


def flag_names_of(flag: str, value: Any) -> Iterator[str]:
    """The flags below a part of a config that has this flag and value."""
    return (f"{flag}{path}".replace("_", "-") for path in _leaf_paths(value, "."))


def _split(argv: Sequence[str]) -> list[list[str]]:
    """Flags, each with its values; ``--flag=value`` is split too. Values before any flag are entries of their own."""
    groups: list[list[str]] = []
    for argument in argv:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            groups.append([flag, value] if equals else [flag])
        elif groups and groups[-1][0].startswith("--"):
            groups[-1].append(argument)
        else:
            groups.append([argument])
    return groups


def _path_of(flag: str) -> tuple[str, ...]:
    parts = flag.removeprefix("--").replace("-", "_").split(".")
    return tuple(FORMER_NAMES.get(part, part) for part in parts)


class _Found(typing.NamedTuple):
    value: Any
    hint: Any


def _find(config: Any, path: Sequence[str]) -> _Found | None:
    """The value at a path of fields and indices, with its type; None if there is no such place."""
    value, hint = config, type(config)
    for part in path:
        if _is_config(value) and part in {field.name for field in dataclasses.fields(value)}:
            value, hint = getattr(value, part), typing.get_type_hints(type(value))[part]
        elif isinstance(value, tuple) and part.isdigit() and int(part) < len(cast("tuple[Any, ...]", value)):
            value, hint = cast("tuple[Any, ...]", value)[int(part)], Any
        else:
            return None
    return _Found(value, hint)


def _replaced(config: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    name, *rest = path
    if isinstance(config, tuple):
        entries = list(cast("tuple[Any, ...]", config))
        entries[int(name)] = _replaced(entries[int(name)], rest, value)
        return tuple(entries)
    return dataclasses.replace(config, **{name: _replaced(getattr(config, name), rest, value)})


_KEEP: Any = object()


def _without(hint: Any, value: Any) -> Any:
    """The value for no part, None or an empty tuple; ``_KEEP`` if the place holds no parts or needs one."""
    options = _options(hint)
    if type(None) in options and _classes(hint):
        return None
    is_list_of_parts = any(get_origin(one) is tuple and _classes(get_args(one)[0]) for one in options)
    return () if is_list_of_parts and isinstance(value, tuple) else _KEEP


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _classes(hint: Any) -> list[type]:
    """The config classes that a type admits, also as entries of a tuple."""
    found: list[type] = []
    for one in _options(hint):
        if get_origin(one) is tuple:
            found += _classes(get_args(one)[0])
        elif isinstance(one, type) and dataclasses.is_dataclass(one):
            found.append(one)
    return found


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _has_config(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_has_config(entry) for entry in cast("tuple[Any, ...]", value))
    return _is_config(value)


def _leaf_paths(value: Any, path: str) -> Iterator[str]:
    """Paths of all fields that hold no part; a tuple of numbers or words is one field."""
    if _is_config(value):
        entries = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    elif _has_config(value):
        entries = [(str(number), entry) for number, entry in enumerate(cast("tuple[Any, ...]", value))]
    else:
        yield path
        return
    for name, entry in entries:
        yield from _leaf_paths(entry, f"{path}{name}" if path in ("", ".") else f"{path}.{name}")
