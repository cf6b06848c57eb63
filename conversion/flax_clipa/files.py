"""Checkpoints of the reference's JAX code as parameters and optimizer state (docs/reference.md F2.1, F2.2)."""

import math
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.errors import ConversionError, listed
from clipa_eqx.saved.optimizer_file import FIRST_SCHEDULE
from conversion.flax_clipa.checkpoint import Checkpoint
from conversion.flax_clipa.npz import NpzFile
from conversion.flax_clipa.shapes import FlaxLayout, layout_of
from conversion.weights.moments import Moments
from conversion.weights.tensors import TensorFile, TensorInfo, TensorView

FORMAT = "flax npz"
MU, NU, ADAM_COUNT = "opt/1/0/1/", "opt/1/0/2/", "opt/1/0/0"
"""Where the reference's chain keeps Adam's state: entry 1, after clipping."""

_SCHEDULE_COUNT = re.compile(r"opt/(\d+)/0/0")


@dataclass(frozen=True, kw_only=True)
class FlaxSource:
    """A checkpoint, open: ``params`` without any prefix, ``moments`` if it is of training, and how it is laid out."""

    params: TensorFile
    moments: Moments | None
    layout: FlaxLayout
    prefix: str
    notes: tuple[str, ...] = ()

    def checkpoint(self) -> Checkpoint:
        """What is imported; ``about`` is what an export needs to write the same file again."""
        other = {name: str(i.dtype) for name, i in self.params.tensors.items() if i.dtype != np.dtype(np.float32)}
        about = {
            "prefix": self.prefix,
            "attention": self.layout.attention,
            "temperature": list(self.layout.temperature),
            "dtypes": other,
        }
        return Checkpoint(FORMAT, self.params, self.moments, self.layout, about, self.notes)


@contextmanager
def open_flax(source: str) -> Generator[FlaxSource]:
    """Open ``FILE.npz`` or ``FILE.npz:sub/tree``.

    Parameters are what lies under ``params/``, else under ``opt/target/`` (an old Flax optimizer), else everything.

    Raises:
        ConversionError: the file or subtree is not there, damaged, or holds no two towers; or the optimizer state is
            not of the reference's chain (``FILE.npz:params`` leaves it out).
    """
    path, subtree = split_subtree(source)
    with NpzFile(path) as file:
        prefix = next((p for p in ("params/", "opt/target/") if any(name.startswith(p) for name in file.tensors)), "")
        if subtree:
            asked = f"{subtree.strip('/')}/"
            options = [p for p in (prefix + asked, asked) if any(name.startswith(p) for name in file.tensors)]
            if not options:
                raise ConversionError(f"{path} has no subtree {subtree!r}; it has {_tops(file.tensors, prefix)}")
            prefix = options[0]
        params = {name.removeprefix(prefix): name for name in file.tensors if name.startswith(prefix)}
        _check_towers(params, source, prefix)
        notes: tuple[str, ...] = ()
        rest = [] if subtree else [name for name in file.tensors if not name.startswith(prefix)]
        if prefix == "opt/target/":
            # The rest of an old optimizer: its state has no place in ours.
            old = [name for name in rest if name.startswith("opt/")]
            rest = [name for name in rest if name not in set(old)]
            if old:
                notes = (f"left out: {len(old)} entries of an old Flax optimizer's state, {_some(old)}",)
        if rest and not any(name.startswith("opt/") for name in rest):
            _refuse_others(file, rest, source, prefix)
        moments = _moments(file, rest, set(params), where=str(path)) if rest else None
        view = TensorView(file, params)
        yield FlaxSource(params=view, moments=moments, layout=layout_of(view.tensors), prefix=prefix, notes=notes)


def split_subtree(source: str) -> tuple[Path, str]:
    """File and subtree of ``FILE:sub/tree``; a file whose name has a colon is taken as it is.

    >>> split_subtree("runs/checkpoint.npz:params")[1]
    'params'
    """
    if "://" in source:
        raise ConversionError(f"{source}: only local and mounted paths work; copy the file first")
    if Path(source).exists() or ":" not in source:
        return Path(source), ""
    path, _, subtree = source.rpartition(":")
    return Path(path), subtree


def _check_towers(params: Mapping[str, object], source: str, prefix: str) -> None:
    tops = {name.split("/")[0] for name in params}
    if {"img", "txt"} <= tops:
        return
    shown = _tops(params, "")
    if {"Transformer", "embedding"} <= tops or {"Transformer", "Embed_0"} <= tops:
        kind = "the image tower" if "embedding" in tops else "the text tower"
        raise ConversionError(
            f"{source} is {kind} alone ({shown}); a model has both towers: give the file without subtree"
        )
    under = f" under {prefix}" if prefix else ""
    raise ConversionError(f"{source} holds no two-tower model{under}: it has {shown}, expected img, txt and t")


def _refuse_others(file: NpzFile, rest: list[str], source: str, prefix: str) -> None:
    others = [name for name in rest if not name.startswith("chrono/")]
    if others:
        lines = [f"unused: {name} {file.tensors[name].shape}" for name in others]
        raise ConversionError(
            f"{source} holds more than parameters ({source}:{prefix.strip('/')} converts the parameters alone), "
            f"{listed(lines)}"
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _tops(names: Mapping[str, object], prefix: str) -> str:
    tops = dict.fromkeys(name.removeprefix(prefix).split("/")[0] for name in names if name.startswith(prefix))
    shown = [repr(top) for top in sorted(tops)]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")


def _moments(file: NpzFile, rest: list[str], params: set[str], *, where: str) -> Moments | None:
    counts = {
        int(m[1]): name for name in rest if (m := _SCHEDULE_COUNT.fullmatch(name)) and int(m[1]) >= FIRST_SCHEDULE
    }
    chrono = [name for name in rest if name.startswith("chrono/")]
    mu = {name.removeprefix(MU): name for name in rest if name.startswith(MU)}
    nu = {name.removeprefix(NU): name for name in rest if name.startswith(NU)}
    known = {*counts.values(), *chrono, *mu.values(), *nu.values(), ADAM_COUNT}
    problems = [f"unused: {name} {file.tensors[name].shape}" for name in rest if name not in known]
    if not any(name.startswith("opt/") for name in rest):
        return None  # only the clock
    if not mu or ADAM_COUNT not in rest:
        problems.append(f"missing: Adam's state ({ADAM_COUNT}, {MU}..., {NU}...)")
    if not counts:
        problems.append("missing: the count of a schedule (opt/4/0/0 by default)")
    problems += [f"missing: {NU}{name}, the second moment to {MU}{name}" for name in sorted(set(mu) - set(nu))]
    problems += [f"missing: {MU}{name}, the first moment to {NU}{name}" for name in sorted(set(nu) - set(mu))]
    problems += [f"unused: the moments of {name}, which is no parameter" for name in sorted(set(mu) - params)]
    numbers: dict[str, Any] = {}
    for name in (*([ADAM_COUNT] if ADAM_COUNT in rest else []), *counts.values(), *chrono):
        try:
            numbers[name] = _scalar(file, name, must_count=name.startswith("opt/"))
        except ConversionError as error:
            problems.append(str(error))
    steps = {numbers[name] for name in counts.values() if name in numbers}
    if len(steps) > 1:
        problems.append(f"the schedules do not agree on the step: {sorted(steps)}")
    elif steps and ADAM_COUNT in numbers and numbers[ADAM_COUNT] not in steps:
        # Both rise with every update, and this trainer never resets one alone.
        problems.append(f"{ADAM_COUNT}, Adam's count, is {numbers[ADAM_COUNT]}, that of the schedules {min(steps)}")
    if problems:
        raise ConversionError(
            f"{where}: the optimizer state is not of the reference's chain ({where}:params converts the parameters "
            f"alone), {listed(problems)}"
        )
    [step] = steps
    about = {
        "schedule_entries": sorted(counts),
        "chrono": {name.removeprefix("chrono/"): [str(file.tensors[name].dtype), numbers[name]] for name in chrono},
    }
    return Moments(
        mu=TensorView(file, mu),
        nu=TensorView(file, nu),
        updates=numbers[ADAM_COUNT],
        schedule_steps=step,
        absent=tuple(sorted(params - set(mu))),
        about=about,
    )


def _scalar(file: NpzFile, name: str, *, must_count: bool) -> int | float:
    info: TensorInfo = file.tensors[name]
    fits = info.dtype.kind == "i" or (info.dtype.kind == "f" and not must_count)
    if info.shape != () or not fits:
        raise ConversionError(
            f"{name} is {info.dtype}{list(info.shape)}, expected one {'integer' if must_count else 'number'}"
        )
    value = file.read(name).item()
    if not math.isfinite(value) or (must_count and not 0 <= value < 2**31):
        raise ConversionError(f"{name} is {value}, expected a {'count' if must_count else 'number'}")
    return value
