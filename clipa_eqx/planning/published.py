"""Published hours and dollars of the reference's models, next to those of a model of cost.

The reference estimated A100 hours from a cloud price (docs/recipes.md has the rows). The model of cost is useful
operations over the peak of an A100 times one utilization for all rows; both constants below are fitted to the rows.
"""

from typing import NamedTuple

from clipa_eqx.flops import step_flops
from clipa_eqx.planning.chips import A100_FLOPS
from clipa_eqx.planning.costs import UTILIZATION
from clipa_eqx.recipes import stage_model

DOLLARS_PER_A100_HOUR = 1.575
"""The price that the published dollars imply: 12,247 dollars for 7,776 hours."""

MOST_APART = 0.1
"""Relative difference of hours from which a row is named; 0.01 for dollars, which are hours times a price."""


class Stage(NamedTuple):
    """The numbers of a recipe that decide its operations.

    Attributes:
        preset: the architecture.
        pixels: per side.
        tokens: text tokens.
        mask_ratio: share of the patches that training leaves out.
        batch_size: pairs per step.
        steps: of the stage.
    """

    preset: str
    pixels: int
    tokens: int
    mask_ratio: float
    batch_size: int
    steps: int

    @property
    def operations(self) -> int:
        """Useful operations of all steps."""
        model = stage_model(self.preset, image_size=self.pixels, length=self.tokens, mask_ratio=self.mask_ratio)
        return self.steps * step_flops(model, batch_size=self.batch_size).total


STAGES: dict[str, Stage] = {
    "l14_84px_t8": Stage("L/14", 84, 8, 0.0, 65_536, 195_490),
    "l14_224px_t32": Stage("L/14", 224, 32, 0.3, 32_768, 16_000),
    "l14_336px_t32": Stage("L/14", 336, 32, 0.4, 16_384, 8_000),
    "h14_70px_t8": Stage("H/14", 70, 8, 0.0, 65_536, 195_490),
    "h14_84px_t8": Stage("H/14", 84, 8, 0.0, 65_536, 195_490),
    "h14_224px_t32": Stage("H/14", 224, 32, 0.3, 32_768, 16_000),
    "h14_336px_t32": Stage("H/14", 336, 32, 0.4, 16_384, 8_000),
    "bigg14_84px_t8": Stage("bigG/14", 84, 8, 0.0, 65_536, 195_490),
    "bigg14_224px_t32": Stage("bigG/14", 224, 32, 0.4, 16_384, 32_000),
    "bigg14_336px_t32": Stage("bigG/14", 336, 32, 0.4, 16_384, 8_000),
}
"""Recipes of the published rows; a test compares them with the files in ``configs/``."""


class PublishedRun(NamedTuple):
    """A row of the reference's tables.

    Attributes:
        name: its name for ``--released``.
        stages: its recipes, in order.
        hours: published A100 hours of all stages; None if not published.
        dollars: published dollars.
    """

    name: str
    stages: tuple[str, ...]
    hours: int | None = None
    dollars: int | None = None

    @property
    def modeled_hours(self) -> float:
        """Hours of the model of cost."""
        return sum(STAGES[stage].operations for stage in self.stages) / (A100_FLOPS * UTILIZATION) / 3600

    @property
    def implied_utilization(self) -> float | None:
        """The utilization at which the model has the published hours."""
        return None if self.hours is None else UTILIZATION * self.modeled_hours / self.hours

    @property
    def price(self) -> float | None:
        """Published dollars per published hour."""
        return None if self.hours is None or self.dollars is None else self.dollars / self.hours


_H84, _L84, _G84 = "h14_84px_t8", "l14_84px_t8", "bigg14_84px_t8"

PUBLISHED: tuple[PublishedRun, ...] = (
    PublishedRun("h14-70px-t8-laion2b", ("h14_70px_t8",)),
    PublishedRun("h14-84px-t8-laion2b", (_H84,)),
    PublishedRun("l14-84px-t8-datacomp1b", (_L84,)),
    PublishedRun("h14-84px-t8-datacomp1b", (_H84,)),
    PublishedRun("bigg14-84px-t8-datacomp1b", (_G84,)),
    PublishedRun("h14-224px-t32-laion2b", (_H84, "h14_224px_t32"), 7776, 12_247),
    PublishedRun("h14-336px-t32-laion2b", (_H84, "h14_224px_t32", "h14_336px_t32"), 8640, 13_616),
    PublishedRun("l14-224px-t32-datacomp1b", (_L84, "l14_224px_t32"), 4008, 6318),
    PublishedRun("l14-336px-t32-datacomp1b", (_L84, "l14_224px_t32", "l14_336px_t32"), 4520, 7124),
    PublishedRun("h14-224px-t32-datacomp1b-from70px", ("h14_70px_t8", "h14_224px_t32"), 5920, 9324),
    PublishedRun("h14-224px-t32-datacomp1b", (_H84, "h14_224px_t32"), 7776, 12_247),
    PublishedRun("h14-336px-t32-datacomp1b", (_H84, "h14_224px_t32", "h14_336px_t32"), 8640, 13_616),
    PublishedRun("bigg14-224px-t32-datacomp1b", (_G84, "bigg14_224px_t32"), 21_998, 34_646),
    PublishedRun("bigg14-336px-t32-datacomp1b", (_G84, "bigg14_224px_t32", "bigg14_336px_t32"), 23_742, 39_056),
)
"""All rows of the reference's two tables, in their order; the first table has no costs."""


def discrepancies() -> list[str]:
    """Published numbers that do not agree with each other or with the model of cost, a line each."""
    found: list[str] = []
    for row in PUBLISHED:
        if row.hours is None or row.dollars is None:
            continue
        expected = row.hours * DOLLARS_PER_A100_HOUR
        if abs(row.dollars / expected - 1) > MOST_APART / 10:
            found.append(
                f"{row.name}: {row.dollars:,} dollars are {row.price:.3f} per hour; at {DOLLARS_PER_A100_HOUR} as in "
                f"the other rows, its {row.hours:,} hours are {expected:,.0f} dollars, and its dollars "
                f"{row.dollars / DOLLARS_PER_A100_HOUR:,.0f} hours"
            )
        if abs(row.hours / row.modeled_hours - 1) > MOST_APART:
            found.append(
                f"{row.name}: {row.hours:,} hours are {row.hours / row.modeled_hours - 1:+.0%} from the model "
                f"({row.modeled_hours:,.0f}), a utilization of {row.implied_utilization:.1%}"
            )
    return list(dict.fromkeys([*found, *_stage_discrepancies()]))


def _stage_discrepancies() -> list[str]:
    """Last stages whose hours, by the difference of two rows, are far from the model."""
    hours = {row.stages: row.hours for row in PUBLISHED if row.hours is not None}
    found: list[str] = []
    for stages, total in hours.items():
        before = hours.get(stages[:-1])
        if before is None:
            continue
        modeled = STAGES[stages[-1]].operations / (A100_FLOPS * UTILIZATION) / 3600
        if abs((total - before) / modeled - 1) > MOST_APART:
            found.append(
                f"{stages[-1]}: {total - before:,} hours, by the difference of {total:,} and {before:,}; the model "
                f"has {modeled:,.0f}, so its utilization is {UTILIZATION * modeled / (total - before):.1%}"
            )
    return found
