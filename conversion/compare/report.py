"""Result of a comparison: types, one JSON form, and the lines that are printed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipa_eqx.errors import ConversionError
from clipa_eqx.replacing import write_text

Cause = tuple[str, str]
"""A cause and its detail, which may be empty."""


@dataclass(frozen=True, kw_only=True)
class SideSummary:
    """One of the two models.

    Attributes:
        name: the argument of the command line.
        kind: model folder, Flax npz or open_clip.
        notes: remarks on this side.
    """

    name: str
    kind: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The object of the JSON report."""
        return {"name": self.name, "kind": self.kind, "notes": list(self.notes)}


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A difference between the two models.

    Attributes:
        where: tokenization, preprocessing, a tower, the first operation of a group, or log_temperature.
        what: size of the difference.
        causes: the known mistakes that explain it; none if it is unexplained.
        steps: the operations with the same causes, in order; none outside of the towers.
    """

    where: str
    what: str
    causes: tuple[Cause, ...] = ()
    steps: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of the JSON report; ``steps`` only if there are any."""
        found: dict[str, Any] = {"where": self.where, "what": self.what, "causes": [list(one) for one in self.causes]}
        return {**found, "steps": list(self.steps)} if self.steps else found


@dataclass(frozen=True, kw_only=True)
class CompareReport:
    """All differences between two models.

    Attributes:
        a: the first model.
        b: the second model.
        notes: one line for each part that was compared or skipped.
        divergences: in the order texts, images, image tower, text tower, temperature.
        embedding_error: per tower of equal sizes, the largest difference of unit embeddings when each side runs alone.
    """

    a: SideSummary
    b: SideSummary
    notes: tuple[str, ...]
    divergences: tuple[Divergence, ...]
    embedding_error: Mapping[str, float]

    @property
    def first(self) -> Divergence | None:
        """The first divergence, if there is one."""
        return next(iter(self.divergences), None)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON; ``first`` repeats the first divergence, or is null."""
        return {
            "a": self.a.to_json(),
            "b": self.b.to_json(),
            "notes": list(self.notes),
            "divergences": [one.to_json() for one in self.divergences],
            "embedding_error": dict(self.embedding_error),
            "first": None if self.first is None else self.first.to_json(),
        }


def report_lines(report: CompareReport) -> list[str]:
    """The report as text."""
    sides = {"A": report.a, "B": report.b}
    lines = [f"{key}  {side.name} ({side.kind})" for key, side in sides.items()]
    lines += [f"   {key}: {note}" for key, side in sides.items() for note in side.notes]
    lines += ["", *report.notes, ""]
    if not report.divergences:
        return [*lines, "no difference"]
    for i, one in enumerate(report.divergences):
        lines.append(f"{'FIRST DIVERGENCE' if i == 0 else 'next'}: {one.where}: {one.what}")
        lines += [f"    cause: {cause}{f', {detail}' if detail else ''}" for cause, detail in one.causes]
        if not one.causes:
            lines.append("    cause: no known mistake explains it; the weights or tables themselves differ")
    return lines


def check_destination(file: Path) -> None:
    """Check before the comparison, which takes minutes for large models, that its report can be written.

    Raises:
        ConversionError: ``file`` is a folder or not a regular file, or its parent is not a folder.
    """
    if file.is_dir():
        raise ConversionError(f"--json {file} is a folder; name a file")
    if file.exists() and not file.is_file():
        raise ConversionError(f"--json {file} is not a regular file; name a file")
    if not file.absolute().parent.is_dir():
        raise ConversionError(f"--json {file} cannot be written: there is no folder {file.parent}")


def write_report(report: CompareReport, file: Path) -> None:
    """Write the report as JSON in one atomic step. Raises ``ConversionError`` if that fails."""
    try:
        write_text(file, json.dumps(report.to_json(), indent=1) + "\n")
    except OSError as error:
        raise ConversionError(f"--json {file} cannot be written ({error})") from error
