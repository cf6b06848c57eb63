"""Compile recipes for slices and record what `plan` reports: tables of README.md and docs/performance.md, and a line of
each recipe's docstring.

Run `python scripts/plan_page.py CONFIG TOPOLOGY [CONFIG TOPOLOGY ...]` with the extra `plan`; it takes one to several
minutes for each pair. Without pairs only the texts are written again; a test compares them with what this writes.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.argument_parser import ArgumentParser
from clipa_eqx.cli import run
from clipa_eqx.device_memory import GIB
from clipa_eqx.errors import ConfigError
from clipa_eqx.replacing import write_text
from scripts.recipes_page import recipe_names

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "plan.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
SLICES = ("v3:16x16", "v4:8x8x4", "v5e:16x16", "v6e:16x16")
README_RECIPES = ("b16_64px_t32", "l14_84px_t8", "h14_84px_t8", "h14_336px_t32", "bigg14_84px_t8", "bigg14_336px_t32")
KEPT = ("bytes", "fits", "collectives", "least_seconds", "step_seconds", "hours", "dollars", "compile_cpu_seconds")


def record_pair(name: str, topology: str) -> None:
    """Compile a recipe for a slice in a process of its own and record the result.

    Raises:
        ConfigError: `plan` refused.
    """
    command = [sys.executable, str(ROOT / "scripts" / "plan.py"), f"configs/{name}.py", "--topology", topology]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--json", "--as-is"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ConfigError(f"plan ended with {done.returncode} for {name} on {topology}")
    made = json.loads(done.stdout)
    kept = {key: made[key] for key in KEPT}
    sent: dict[str, dict[str, int]] = {}
    for one in kept["collectives"]:
        total = sent.setdefault(one["kind"], {"times": 0, "sent": 0})
        total["times"] += one["times"]
        total["sent"] += one["sent"] * one["times"]
    kept["collectives"] = sent
    recorded = read_record()
    recorded.setdefault(name, {})[topology] = kept
    write_text(RECORD, json.dumps(recorded, indent=1, sort_keys=True) + "\n")


def read_record() -> dict[str, dict[str, Any]]:
    """Recorded plans, by recipe and slice."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def slice_table(names: Sequence[str], recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """GiB per device and seconds of compiling for each recipe and slice."""
    lines = [
        f"| recipe | {' | '.join(SLICES)} |",
        f"|---|{'---|' * len(SLICES)}",
    ]
    for name in names:
        lines.append(f"| `{name}` | {' | '.join(_cell(recorded.get(name, {}).get(one)) for one in SLICES)} |")
    return "\n".join(lines) + "\n"


def cost_table(recorded: Mapping[str, Mapping[str, Any]]) -> str:
    """Parts of the memory, traffic and bounds of each recorded pair."""
    lines = [
        "| recipe | slice | parameters | optimizer | temporaries | of which activations | sent | least ms: operations, "
        "memory, links | hours | dollars |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in recipe_names():
        for topology in (one for one in SLICES if one in recorded.get(name, {})):
            made = recorded[name][topology]
            if made["least_seconds"] is None:  # the compiler refused it
                continue
            parts = made["bytes"]
            sizes = [parts[key] for key in ("parameters", "optimizer_state", "temporary", "activations")]
            least = made["least_seconds"]
            cells = (
                *(f"`{name}`", topology, *(f"{size / GIB:.2f}" for size in sizes)),
                f"{sum(one['sent'] for one in made['collectives'].values()) / GIB:.2f}",
                ", ".join(f"{least[key] * 1000:.0f}" for key in ("compute", "memory", "links")),
                *(f"{made[key]:,.0f}" for key in ("hours", "dollars")),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_plan(name: str, source: str) -> str:
    """The text of a recipe with the line of its docstring that says what `plan` found, after its hardware."""
    source = re.sub(r"\nPlan: .*?(?=\n[A-Z][a-z]+: )", "", source, flags=re.DOTALL)
    made = read_record().get(name, {})
    if not made:
        return source
    found = [f"{_verdict(made[one])} on {one}" for one in (*SLICES, *sorted(set(made) - set(SLICES))) if one in made]
    text = f"per device {', '.join(found)} (`scripts/plan.py`, docs/performance.md)."
    line = textwrap.fill(f"Plan:      {text}", width=120, subsequent_indent=" " * 11, break_on_hyphens=False)
    return re.sub(r"(\nHardware: .*?)(?=\n[A-Z][a-z]+: )", rf"\1\n{line}", source, count=1, flags=re.DOTALL)


def filled(page: str) -> str:
    """A text of a page with its generated parts written again, each between its two markers."""
    recorded = read_record()
    for name, content in (
        ("plan-short", slice_table(README_RECIPES, recorded)),
        ("plan-slices", slice_table([one for one in recipe_names() if one in recorded], recorded)),
        ("plan-costs", cost_table(recorded)),
    ):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin in page:
            before, after = page.split(begin)[0], page.split(end)[1]
            page = f"{before}{begin}\n{content}\n{end}{after}"
    return page


def _verdict(made: Mapping[str, Any]) -> str:
    is_refused = made["bytes"]["total"] is None or made["least_seconds"] is None
    return "does not fit" if is_refused else f"{made['bytes']['total'] / GIB:.2f} GiB"


def _cell(made: Mapping[str, Any] | None) -> str:
    if made is None:
        return "-"
    verdict = _verdict(made)
    if verdict == "does not fit":
        return verdict
    return f"{verdict} ({made['bytes']['peak'] / GIB:.2f}), {made['compile_cpu_seconds']:.0f} s"


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", metavar="CONFIG TOPOLOGY", help="recipes and slices to compile")
    pairs = parser.parse_args(argv).pairs
    if len(pairs) % 2:
        raise ConfigError("give pairs: a recipe and a topology, such as h14_84px_t8 v3:16x16")
    for name, topology in zip(pairs[::2], pairs[1::2], strict=True):
        record_pair(name, topology)
    for path in PAGES:
        write_text(path, filled(path.read_text(encoding="utf-8")))
    for name in recipe_names():
        path = ROOT / "configs" / f"{name}.py"
        write_text(path, with_plan(name, path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(run(main))
