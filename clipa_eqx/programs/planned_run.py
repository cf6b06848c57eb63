"""The work of ``plan``: compile a config for a slice and, if it does not fit, the changes that may make it fit."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipa_eqx.config_files import apply_overrides, load_config
from clipa_eqx.device_memory import GIB, ProgramMemory
from clipa_eqx.errors import ConfigError
from clipa_eqx.experiment import ExperimentConfig
from clipa_eqx.planning.bill import Bill, Tried, bill_json, bill_lines, does_fit, make_bill
from clipa_eqx.planning.changes import changes
from clipa_eqx.planning.compiled import Compiled, Prepared, compile_for_slice, prepare
from clipa_eqx.planning.costs import UTILIZATION
from clipa_eqx.planning.published import DOLLARS_PER_A100_HOUR, PUBLISHED, discrepancies
from clipa_eqx.planning.slices import Slice, open_slice
from clipa_eqx.progress import LINE_EVERY, waiting
from clipa_eqx.sharding import MeshConfig

MOST_TRIED = 8
"""Changes that are compiled at most; each takes a minute or more."""

RECORDS = 400_000_000
"""Pairs of LAION-400M, with which epochs are converted to steps unless ``--records`` says otherwise."""

_log = logging.getLogger(__name__)


def print_plan(
    path: Path,
    overrides: Sequence[str],
    *,
    topology: str,
    mesh: str | None = None,
    as_json: bool = False,
    as_is: bool = False,
    utilization: float | None = None,
    dollars_per_chip_hour: float | None = None,
    records: int | None = None,
    program: str,
    program_flags: Sequence[str] = (),
) -> None:
    """Print the plan of a config file on a slice.

    Args:
        overrides: flags that change the config.
        mesh: sizes of the axes, such as "64x8x1", instead of those of the config.
        as_is: compile no changes.
        program: what the help of the overrides calls the program.
        program_flags: its flags, which a wrong flag may have meant.

    Raises:
        ClipaError: the config is wrong, or does not fit the slice.
    """
    config = apply_overrides(load_config(path), overrides, program=program, program_flags=program_flags)
    if mesh is not None:
        config = replace(config, mesh=mesh_config(mesh))
    made = plan(
        config,
        open_slice(topology),
        name=str(path),
        as_is=as_is,
        utilization=UTILIZATION if utilization is None else utilization,
        dollars_per_chip_hour=dollars_per_chip_hour,
        records=RECORDS if records is None else records,
    )
    print(json.dumps(bill_json(made), indent=1) if as_json else "\n".join(bill_lines(made)))


def plan(
    config: ExperimentConfig,
    target: Slice,
    *,
    name: str,
    as_is: bool = False,
    utilization: float = UTILIZATION,
    dollars_per_chip_hour: float | None = None,
    records: int = RECORDS,
) -> Bill:
    """The bill of a config on a slice, with the cheapest change that fits if it does not fit.

    Raises:
        ClipaError: the config does not fit the slice for another reason than memory.
    """
    prepared = prepare(config, target, records=records)
    compiled = _compile(prepared, f"{name} for {target.name}")
    available = target.chip.usable if compiled.limit is None else compiled.limit
    tried: list[Tried] = []
    if not as_is and not does_fit(compiled, available):
        tried = _try_changes(prepared, target, compiled.memory, available, records=records)
    return make_bill(
        name,
        target,
        prepared,
        compiled,
        available=available,
        tried=tried,
        utilization=utilization,
        dollars_per_chip_hour=dollars_per_chip_hour,
    )


def print_table(*, as_json: bool = False) -> None:
    """Print the published hours and dollars of all rows next to those of the model of cost, and what does not agree."""
    rows = [
        {
            "name": row.name,
            "stages": list(row.stages),
            "published_hours": row.hours,
            "modeled_hours": round(row.modeled_hours),
            "implied_utilization": None if row.implied_utilization is None else round(row.implied_utilization, 3),
            "published_dollars": row.dollars,
            "modeled_dollars": round(row.modeled_hours * DOLLARS_PER_A100_HOUR),
            "dollars_per_hour": None if row.price is None else round(row.price, 3),
        }
        for row in PUBLISHED
    ]
    if as_json:
        print(json.dumps({"utilization": UTILIZATION, "rows": rows, "discrepancies": discrepancies()}, indent=1))
        return
    print(
        f"A100 hours and dollars; the model takes {UTILIZATION:.0%} of 312 TFLOP/s and {DOLLARS_PER_A100_HOUR} dollars"
    )
    head = ("model", "hours", "modeled", "implied", "dollars", "modeled", "per hour")
    print(f"{head[0]:<34}" + "".join(f"{name:>10}" for name in head[1:]))
    for row in rows:
        utilization, price = row["implied_utilization"], row["dollars_per_hour"]
        cells = (
            _count(row["published_hours"]),
            _count(row["modeled_hours"]),
            "-" if utilization is None else f"{utilization:.1%}",
            _count(row["published_dollars"]),
            _count(row["modeled_dollars"]),
            "-" if price is None else f"{price:.3f}",
        )
        print(f"{row['name']:<34}" + "".join(f"{cell:>10}" for cell in cells))
    print("does not agree:")
    for line in discrepancies():
        print(f"  {line}")


def mesh_config(text: str) -> MeshConfig:
    """The mesh of a flag such as ``64x8x1``.

    Raises:
        ConfigError: it does not have three sizes.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError(f"--mesh is {text!r}; give the sizes of data, fsdp and tensor, such as 64x8x1")
    data, fsdp, tensor = map(int, parts)
    return MeshConfig(data=data, fsdp=fsdp, tensor=tensor)


def _try_changes(
    prepared: Prepared, target: Slice, needed: ProgramMemory | None, available: int, *, records: int
) -> list[Tried]:
    """Compile changes until one fits."""
    tried: list[Tried] = []
    for change in changes(prepared, target, needed=needed, available=available)[:MOST_TRIED]:
        size = "more than there is" if needed is None else f"{needed.peak / GIB:.2f} GiB"
        flags = " ".join(change.flags)
        _log.info("needs %s of %.2f GiB per device; trying %s", size, available / GIB, flags)
        compiled = _compile(prepare(change.config, target, records=records), flags)
        tried.append(Tried(change, compiled, does_fit(compiled, available)))
        if tried[-1].fits:
            break
    return tried


def _compile(prepared: Prepared, what: str) -> Compiled:
    _log.info("compiling %s; that takes a minute or more", what)
    with waiting("compiling the step", first=LINE_EVERY):
        return compile_for_slice(prepared)


def _count(number: object) -> str:
    return f"{number:,}" if isinstance(number, int) else "-"
