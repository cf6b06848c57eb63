"""Write the tables and commands of docs/recipes.md from the recipes in configs/ and the table of released models.

Run `python scripts/recipes_page.py` after a change of either; a test compares the page with what this program writes.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipa_eqx import PRESETS, ExperimentConfig, RunLength, load_config
from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.planning.published import PUBLISHED
from clipa_eqx.replacing import write_text
from conversion.weights.released import RELEASED, ReleasedModel

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "recipes.md"
CONFIGS = ROOT / "configs"

LAION_400M = 400_000_000
"""Pairs with which epochs are converted to steps."""

COSTS: Mapping[str, tuple[int, int]] = {
    row.name: (row.hours, row.dollars) for row in PUBLISHED if row.hours is not None and row.dollars is not None
}
"""Published A100 hours and dollars of all stages of a row; the table of pre-training has none."""

FOLLOWS: Mapping[str, str] = {
    "s16_64px_t32": "model_s/64_32",
    "s16_112px_t32": "model_s/112_32",
    "s16_224px_t32": "t5x model_s/unmask_tuning",
    "b16_64px_t32": "model_b/64_32",
    "b16_112px_t32": "model_b/112_32",
    "b16_160px_t32": "model_b/160_32",
    "b16_224px_t32": "model_b/unmask_tuning",
    "l16_224px_t32": "model_l/unmask_tuning",
    "h14_70px_t8": "model_h/70_8",
    "h14_84px_t8": "model_h/84_8",
    "h14_112px_t32": "model_h/112_32",
    "h14_224px_t32": "model_h/unmask_tuning_224_scheduleX4",
    "h14_336px_t32": "model_h/unmask_tuning_336_scheduleX1",
    "bigg14_70px_t8": "t5x model_bigG/70_8",
    "bigg14_224px_t32": "t5x model_bigG/unmask_tuning_224_scheduleX4",
    "bigg14_336px_t32": "t5x model_bigG/unmask_tuning_336_scheduleX1",
}
"""The reference's file that a recipe follows, with its branch if it is not the main one. The others are assembled."""


class Chain(NamedTuple):
    """Recipes that are run one after the other, each from the weights of the one before.

    Attributes:
        preset: the architecture, such as "H/14".
        data: name of the training data, such as "LAION-2B".
        stages: names of the recipes, in order.
    """

    preset: str
    data: str
    stages: tuple[str, ...]

    @property
    def folder(self) -> str:
        """The record folder of all stages."""
        return f"data/{self.data.replace('-', '').lower()}"

    @property
    def title(self) -> str:
        return f"{self.preset} from {_pixels(self.stages[0])} px on {self.data}"

    @property
    def runs(self) -> tuple[str, ...]:
        """The run folder of each stage; chains with another first stage or other data have other folders."""
        base = f"runs/{self.stages[0].rsplit('_', 1)[0]}_{self.folder.removeprefix('data/')}"
        return tuple(f"{base}/{stage}" for stage in self.stages)

    @property
    def commands(self) -> tuple[str, ...]:
        """One command per stage."""
        made: list[str] = []
        for i, (stage, folder) in enumerate(zip(self.stages, self.runs, strict=True)):
            start = ("--init-from", self.runs[i - 1]) if i else ()
            data = (
                ("--data.sources.0.folder", self.folder) if recipe(stage).data.sources[0].folder != self.folder else ()
            )
            made.append(
                " ".join(["python scripts/train.py", f"configs/{stage}.py", "--workdir", folder, *start, *data])
            )
        return tuple(made)


def recipe_names() -> list[str]:
    """Names of the files in configs/ that are recipes, small models first, each by its pixels."""
    found = [path.stem for path in CONFIGS.glob("*.py") if re.fullmatch(r"\w+_\d+px_t\d+", path.stem)]
    order = [size.lower().replace("/", "") for size in PRESETS]
    return sorted(found, key=lambda name: (order.index(name.split("_")[0]), _pixels(name)))


def recipe(name: str) -> ExperimentConfig:
    """The config of a recipe."""
    return load_config(CONFIGS / f"{name}.py")


def published_rows() -> list[ReleasedModel]:
    """Rows of the reference's two tables, in their order."""
    return [row for row in RELEASED.values() if row.profile == "flax"]


def chain_of(row: ReleasedModel) -> Chain:
    """The recipes whose last stage gives a published model: one for each ``samples@pixels`` of its schedule."""
    model = row.preset.lower().replace("/", "")
    sizes = [int(part.split("@")[1]) for part in row.schedule.split(" + ")]
    names = [f"{model}_{pixels}px_t{32 if i else 8}" for i, pixels in enumerate(sizes)]
    return Chain(row.preset, row.data, tuple(names))


def longest_chains() -> list[Chain]:
    """The chains of all published rows, without those that are the beginning of another."""
    chains = [chain_of(row) for row in published_rows()]
    return [one for one in dict.fromkeys(chains) if not any(other != one and _begins(other, one) for other in chains)]


def published_table() -> str:
    """Rows of the reference's two tables, and the recipes that give each."""
    lines = [
        "| table | model | trained on | samples@pixels | top-1 | A100 hours | dollars | recipes, in order |",
        "|---|---|---|---|---|---|---|---|",
    ]
    longest = longest_chains()
    for row in published_rows():
        chain = chain_of(row)
        title = next(one.title for one in longest if _begins(one, chain))
        anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        cost = [f"{number:,}" for number in COSTS.get(row.name, ())] or ["not published", "not published"]
        names = ", ".join(f"`{stage}`" for stage in chain.stages)
        cells = (row.stage, row.preset, row.data, row.schedule, f"{row.score} %", *cost, f"[{names}](#{anchor})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def command_blocks() -> str:
    """The commands of each chain under a heading of its own."""
    return "\n".join(
        "\n".join([f"### {chain.title}\n", "```sh", *chain.commands, "```\n"]) for chain in longest_chains()
    )


def recipe_table() -> str:
    """The numbers of each recipe, and the reference's file that it follows."""
    lines = [
        "| recipe | model | pixels | image tokens | text tokens | batch | peak | steps | warm-up | pairs | follows |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in recipe_names():
        config = recipe(name)
        run = RunLength.of(config.duration, batch_size=config.batch_size, data_size=LAION_400M)
        warmups = [0 if one is None else one.warmup.to_steps(run) for _, one in config.optim.schedules]
        preset = next(size for size in PRESETS if size.lower().replace("/", "") == name.split("_")[0])
        numbers = (run.total_steps, max(warmups), run.total_steps * config.batch_size)
        cells = (
            *(f"`{name}`", preset, str(_pixels(name)), str(config.model.image.visible), str(config.model.text.length)),
            *(f"{config.batch_size:,}", f"{config.optim.peak_lr:.4g}", *(f"{number:,}" for number in numbers)),
            f"`{FOLLOWS[name]}`" if name in FOLLOWS else "assembled",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """A text of the page with its generated parts written again, each between its two markers."""
    for name, content in (
        ("published-rows", published_table()),
        ("chain-commands", command_blocks()),
        ("recipe-table", recipe_table()),
    ):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n{content}\n{end}{after}"
    return page


def _begins(chain: Chain, other: Chain) -> bool:
    """Whether ``other`` is the beginning of a chain, or all of it."""
    same = (chain.preset, chain.data) == (other.preset, other.data)
    return same and chain.stages[: len(other.stages)] == other.stages


def _pixels(name: str) -> int:
    return int(name.split("_")[1].removesuffix("px"))


def main(argv: Sequence[str] | None = None) -> None:
    ArgumentParser(description=__doc__).parse_args(argv)
    write_text(PAGE, filled(PAGE.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(run(main))
