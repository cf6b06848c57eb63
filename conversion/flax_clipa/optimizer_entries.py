"""The optimizer state as entries of a reference checkpoint, in both directions (docs/reference.md F2.1)."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.saved.optimizer_file import FIRST_SCHEDULE, Kind, OptimizerState
from conversion.flax_clipa.npz import NpzFile
from conversion.weights.moments import Moments
from conversion.weights.rules import Placed
from conversion.weights.tensors import TensorView

MU, NU, ADAM_COUNT = "opt/1/0/1/", "opt/1/0/2/", "opt/1/0/0"
"""Adam's state in the reference's chain of transformations: entry 1, after clipping."""

CHRONO = "chrono/"
"""Entries of the reference's clock: times in seconds and the number of examples seen."""

_SCHEDULE_COUNT = re.compile(r"opt/(\d+)/0/0")


class _Entries(NamedTuple):
    """Names of the entries of an optimizer state; moments by the name of their parameter."""

    mu: dict[str, str]
    nu: dict[str, str]
    adam_count: str | None
    schedule_counts: dict[int, str]
    chrono: list[str]

    @property
    def counts(self) -> list[str]:
        return [*([] if self.adam_count is None else [self.adam_count]), *self.schedule_counts.values()]


def read_moments(file: NpzFile, names: Sequence[str], params: set[str]) -> Moments | None:
    """The optimizer state in the entries ``names`` of a checkpoint; None if they hold only the clock.

    Args:
        params: names of the parameters.

    Raises:
        ConversionError: the entries are not a complete state of the reference's chain; lists all problems.
    """
    if not any(name.startswith("opt/") for name in names):
        return None
    entries = _entries(names)
    problems = [*_unknown(file, names, entries), *_missing(entries), *_unpaired(entries, params)]
    numbers = _read_numbers(file, entries, problems)
    problems += _disagreements(entries, numbers)
    if problems:
        raise ConversionError(
            f"{file.path}: the optimizer state is not of the reference's chain ({file.path}:params converts only the "
            f"parameters), {listed(problems)}"
        )
    steps = {numbers[name] for name in entries.schedule_counts.values()}
    clock = {name.removeprefix(CHRONO): [str(file.tensors[name].dtype), numbers[name]] for name in entries.chrono}
    return Moments(
        mu=TensorView(file, entries.mu),
        nu=TensorView(file, entries.nu),
        updates=numbers[ADAM_COUNT],
        schedule_steps=steps.pop(),
        absent=tuple(sorted(params - set(entries.mu))),
        about={"schedule_entries": sorted(entries.schedule_counts), "chrono": clock},
    )


def state_entries(placed: Mapping[str, Placed], state: OptimizerState) -> dict[str, Callable[[], np.ndarray]]:
    """Entries of a checkpoint for an optimizer state, by name; each is computed when it is called."""
    entries: dict[str, Callable[[], np.ndarray]] = {}
    kinds: tuple[tuple[Kind, str], ...] = (("mu", MU), ("nu", NU))
    for kind, prefix in kinds:
        for name, one in placed.items():
            if any(state.is_live(rule.path, one.layer) for rule in one.rules):
                entries[prefix + name] = partial(one.export, partial(state.read, kind))
    counts, about = state.counts, state.counts.about
    entries[ADAM_COUNT] = partial(np.asarray, counts.updates, np.int32)
    for index in about.get("schedule_entries", [FIRST_SCHEDULE + 1]):
        entries[f"opt/{index}/0/0"] = partial(np.asarray, counts.schedule_steps, np.int32)
    for name, (dtype, value) in about.get("chrono", {}).items():
        entries[CHRONO + name] = partial(np.asarray, value, dtype)
    return entries


def _entries(names: Iterable[str]) -> _Entries:
    names = list(names)
    counts = {int(match[1]): name for name in names if (match := _SCHEDULE_COUNT.fullmatch(name))}
    return _Entries(
        mu={name.removeprefix(MU): name for name in names if name.startswith(MU)},
        nu={name.removeprefix(NU): name for name in names if name.startswith(NU)},
        adam_count=ADAM_COUNT if ADAM_COUNT in names else None,
        schedule_counts={entry: name for entry, name in counts.items() if entry >= FIRST_SCHEDULE},
        chrono=[name for name in names if name.startswith(CHRONO)],
    )


def _unknown(file: NpzFile, names: Sequence[str], entries: _Entries) -> list[str]:
    known = {*entries.counts, *entries.chrono, *entries.mu.values(), *entries.nu.values()}
    return [f"unused: {name} {file.tensors[name].shape}" for name in names if name not in known]


def _missing(entries: _Entries) -> list[str]:
    problems: list[str] = []
    if not entries.mu or entries.adam_count is None:
        problems.append(f"missing: Adam's state ({ADAM_COUNT}, {MU}..., {NU}...)")
    if not entries.schedule_counts:
        problems.append("missing: the count of a schedule (opt/4/0/0 by default)")
    return problems


def _unpaired(entries: _Entries, params: set[str]) -> list[str]:
    mu, nu = set(entries.mu), set(entries.nu)
    return [
        *(f"missing: {NU}{name}, the second moment to {MU}{name}" for name in sorted(mu - nu)),
        *(f"missing: {MU}{name}, the first moment to {NU}{name}" for name in sorted(nu - mu)),
        *(f"unused: the moments of {name}, which is not a parameter" for name in sorted(mu - params)),
    ]


def _read_numbers(file: NpzFile, entries: _Entries, problems: list[str]) -> dict[str, Any]:
    """Values of counts and clock by name; those that are not numbers are added to ``problems``."""
    numbers: dict[str, int | float] = {}
    for name in (*entries.counts, *entries.chrono):
        try:
            numbers[name] = _scalar(file, name, is_count=name in entries.counts)
        except ConversionError as error:
            problems.append(str(error))
    return numbers


def _disagreements(entries: _Entries, numbers: dict[str, Any]) -> list[str]:
    steps = {numbers[name] for name in entries.schedule_counts.values() if name in numbers}
    updates = numbers.get(ADAM_COUNT)
    if len(steps) > 1:
        return [f"the schedules disagree on the step: {sorted(steps)}"]
    if steps and updates is not None and updates not in steps:
        # Both rise with every update, and this trainer never resets one of them alone.
        return [f"{ADAM_COUNT}, Adam's count, is {updates}, that of the schedules {min(steps)}"]
    return []


def _scalar(file: NpzFile, name: str, *, is_count: bool) -> int | float:
    info = file.tensors[name]
    fits = info.dtype.kind == "i" or (info.dtype.kind == "f" and not is_count)
    if info.shape != () or not fits:
        expected = "one integer" if is_count else "one number"
        raise ConversionError(f"{name} is {info.dtype}{list(info.shape)}, expected {expected}")
    value = file.read(name).item()
    if not math.isfinite(value) or (is_count and not 0 <= value < 2**31):
        raise ConversionError(f"{name} is {value}, expected a {'count' if is_count else 'finite number'}")
    return value
