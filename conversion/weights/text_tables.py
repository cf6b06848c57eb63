"""The reference's three tables of text towers, and the search for a file's text tower in them."""

from collections.abc import Mapping
from typing import NamedTuple

from clipa_eqx.models.presets import T5X_TEXT, VARIANTS, Size
from conversion.weights.facts import Fact

TEXT_TABLES: dict[str, dict[str, Size]] = {
    "master": {letter: variant.text for letter, variant in VARIANTS.items()},
    "t5x models": {"g": Size(1280, 36, 5120, 16)},
    "t5x models_t5x": {"H": Size(1024, 24, 3072, 16), "g": T5X_TEXT, "G": T5X_TEXT},
}
"""Sizes by table and letter; tables two and three have only the rows that differ (docs/reference.md F1.1)."""

TEXT_SIZES = tuple(f"text.blocks.{name}" for name in Size._fields)
"""Fields of the config that a row of these tables determines."""


class TextRow(NamedTuple):
    """One row of one table; ``name`` is how messages call it."""

    name: str
    letter: str
    size: Size


def matching_text_rows(facts: Mapping[str, Fact]) -> list[TextRow]:
    """The rows whose sizes are those of the file's text tower; heads may be unknown."""
    rows = [
        TextRow(f"the reference's {table}, {letter}", letter, size)
        for table, sizes in TEXT_TABLES.items()
        for letter, size in sizes.items()
    ]
    return [row for row in rows if all(map(_allows, TEXT_SIZES, row.size, map(facts.get, TEXT_SIZES)))]


def other_text_row(facts: Mapping[str, Fact], *, letter: str, own: Size) -> TextRow | None:
    """A row of the same letter that matches the file, if the preset's own sizes do not; else None."""
    rows = [row for row in matching_text_rows(facts) if row.letter == letter]
    return None if any(row.size == own for row in rows) else next(iter(rows), None)


def _allows(name: str, size: int, fact: Fact | None) -> bool:
    return name.endswith("heads") if fact is None else size in fact.values
