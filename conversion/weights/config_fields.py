"""One decision per field of a model config: flag, file, named config and default, in this order of precedence.

A field gets its value from the first of these that determines it:

| source | when | note |
|---|---|---|
| flag | given | |
| file | its fact is certain | |
| named config | it determines the field | yes |
| file | its fact is a hint | yes |
| named config | the field is a mere default there | yes |

A field that none of them determines is a problem, and so is a value that contradicts the file. A value that differs
from the named config is a note if a flag gave it or the named config does not insist on its own; else it is a problem.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from conversion.weights.facts import Fact

FIELDS: Mapping[str, str | None] = {
    "image.blocks.width": None,
    "image.blocks.depth": None,
    "image.blocks.mlp_dim": None,
    "image.blocks.heads": "--image-heads",
    "image.patch": None,
    "image.patch_size": None,
    "image.position": "--image-position",
    "image.pool": "--image-pool",
    "image.image_size": "--image-size",
    "image.embed": None,
    "text.blocks.width": None,
    "text.blocks.depth": None,
    "text.blocks.mlp_dim": None,
    "text.blocks.heads": "--text-heads",
    "text.vocab": None,
    "text.position": None,
    "text.length": None,
    "text.pool": "--text-pool",
    "text.embed": None,
}
"""Fields that must be determined, and the flag that sets each, if there is one."""

_LONGEST_SIDE = 4096
"""Longest accepted image side in pixels. A larger value is a typo, and the self-check would try to allocate for it."""


class Default(NamedTuple):
    """The value of a field in the named config.

    Attributes:
        value: the value.
        origin: how messages call the named config.
        is_free: the field is a mere default there, which a file may differ from.
        unsettled: why the named config does not determine the field for this file, or None if it does.
        note: a note on where the value comes from, if that needs one.
    """

    value: Any
    origin: str
    is_free: bool = False
    unsettled: str | None = None
    note: str | None = None


class Row(NamedTuple):
    """Everything known about one field before a value is chosen; ``given`` is the value of the flag, if any."""

    name: str
    flag: str | None
    given: Any
    fact: Fact | None
    default: Default | None


class Decision(NamedTuple):
    """The value of a field (None if there is a problem, or if that is its value), with notes and problems."""

    value: Any
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class _Choice(NamedTuple):
    """A value, where it comes from, and a note if the user should know of the choice."""

    value: Any
    origin: str
    note: str | None = None


def decide(row: Row) -> Decision:
    """The value of a field by the table above."""
    notes = [row.default.note] if row.default is not None and row.default.note is not None else []
    choice = _choose(row)
    if choice is None:
        return Decision(None, tuple(notes), (_unknown(row),))
    if choice.note is not None:
        notes.append(choice.note)
    more_notes, problems = _compare(row, choice)
    return Decision(choice.value, (*notes, *more_notes), tuple(problems))


def _choose(row: Row) -> _Choice | None:
    name, flag, given, fact, default = row
    if given is not None:
        return _Choice(given, str(flag))
    if fact is not None and fact.is_certain:
        return _Choice(fact.values[0], _file(fact))
    is_settled = default is not None and default.unsettled is None
    if default is not None and is_settled and not default.is_free:
        why = fact.why if fact is not None else "shapes do not determine it"
        return _Choice(default.value, default.origin, f"{name}: {default.value} from {default.origin} ({why})")
    if fact is not None and fact.is_hint:
        value, other = fact.values[0], " or ".join((*([flag] if flag else []), "--config"))
        return _Choice(value, _file(fact), f"{name}: {value} from {_file(fact)}; use {other} for another value")
    if default is not None and is_settled:
        other = flag or "--config"
        note = f"{name}: {default.value}, the default of {default.origin}; use {other} for another value"
        return _Choice(default.value, default.origin, note)
    return None


def _unknown(row: Row) -> str:
    reasons = [row.fact.why if row.fact is not None else "shapes do not determine it"]
    if row.default is not None and row.default.unsettled is not None:
        reasons.append(row.default.unsettled)
    return f"{row.name} is not known ({'; '.join(reasons)}); give {row.flag or '--config or --preset'}"


def _compare(row: Row, choice: _Choice) -> tuple[list[str], list[str]]:
    """Notes and problems of a chosen value, against the file and the named config."""
    chosen = f"{row.name}: {choice.value} from {choice.origin}"
    notes, problems = list[str](), list[str]()
    if row.name == "image.image_size" and max(choice.value) > _LONGEST_SIDE:
        problems.append(f"{chosen}, but the longest supported side has {_LONGEST_SIDE} pixels")
    fact, default = row.fact, row.default
    if fact is not None and not fact.is_hint and choice.value not in fact.values:
        problems.append(f"{chosen}, but the file has {' or '.join(map(str, fact.values))} ({fact.why})")
    elif default is not None and choice.value != default.value:
        differs = f"{chosen}, {default.value} in {default.origin}"
        if row.given is not None or default.is_free or default.unsettled is not None:
            notes.append(differs)
        else:
            problems.append(differs + (f"; {row.flag} overrides it" if row.flag else ""))
    return notes, problems


def _file(fact: Fact) -> str:
    return f"the file ({fact.why})"
