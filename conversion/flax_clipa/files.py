"""Checkpoints of the reference's JAX code as parameters and optimizer state (docs/reference.md F2.1, F2.2)."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipa_eqx.errors import ConversionError, listed
from conversion.flax_clipa.checkpoint import Checkpoint
from conversion.flax_clipa.npz import NpzFile
from conversion.flax_clipa.optimizer_entries import CHRONO, read_moments
from conversion.flax_clipa.shapes import FlaxLayout, layout_of
from conversion.weights.formats import FLAX
from conversion.weights.moments import Moments
from conversion.weights.tensors import TensorFile, TensorView

_PARAMS, _OLD_PARAMS, _OLD_STATE = "params/", "opt/target/", "opt/"
"""Prefixes of the parameters, of those in an old Flax optimizer, and of the state of that optimizer."""


@dataclass(frozen=True, kw_only=True)
class FlaxSource:
    """An open checkpoint.

    Attributes:
        params: the parameters, without any prefix.
        moments: the optimizer state of a training checkpoint.
        layout: how the arrays are spelled.
        prefix: prefix of the parameters in the file.
        notes: lines for the log and the provenance.
    """

    params: TensorFile
    moments: Moments | None
    layout: FlaxLayout
    prefix: str
    notes: tuple[str, ...] = ()

    def checkpoint(self) -> Checkpoint:
        """The checkpoint to import; ``about`` is what an export needs to write the same file again."""
        other = {name: str(i.dtype) for name, i in self.params.tensors.items() if i.dtype != np.dtype(np.float32)}
        about = {
            "prefix": self.prefix,
            "attention": self.layout.attention,
            "temperature": list(self.layout.temperature),
            "dtypes": other,
        }
        return Checkpoint(FLAX, self.params, self.moments, self.layout, about, self.notes)


@contextmanager
def open_flax(source: str) -> Generator[FlaxSource]:
    """Open ``FILE.npz`` or ``FILE.npz:sub/tree``.

    The parameters are the entries under ``params/``, else those under ``opt/target/`` (an old Flax optimizer), else all
    entries.

    Raises:
        ConversionError: the file or subtree is missing or damaged, or does not hold two towers; or the optimizer state
            is not of the reference's chain (``FILE.npz:params`` leaves it out).
    """
    path, subtree = split_subtree(source)
    with NpzFile(path) as file:
        prefix = _prefix(file, subtree)
        params = {name.removeprefix(prefix): name for name in file.tensors if name.startswith(prefix)}
        _check_towers(params, source, prefix)
        rest = [] if subtree else [name for name in file.tensors if not name.startswith(prefix)]
        notes: tuple[str, ...] = ()
        if prefix == _OLD_PARAMS:
            rest, notes = _without_old_state(rest)
        if not any(name.startswith("opt/") for name in rest):
            _refuse_others(file, rest, source, prefix)
        moments = read_moments(file, rest, set(params))
        view = TensorView(file, params)
        yield FlaxSource(params=view, moments=moments, layout=layout_of(view.tensors), prefix=prefix, notes=notes)


def split_subtree(source: str) -> tuple[Path, str]:
    """File and subtree of ``FILE:sub/tree``; an existing file with a colon in its name has no subtree.

    >>> split_subtree("runs/checkpoint.npz:params")[1]
    'params'
    """
    if "://" in source:
        raise ConversionError(f"{source}: only local and mounted paths work; copy the file first")
    if Path(source).exists() or ":" not in source:
        return Path(source), ""
    path, _, subtree = source.rpartition(":")
    return Path(path), subtree


def _prefix(file: NpzFile, subtree: str) -> str:
    """Prefix of the names of the parameters."""
    found = next((prefix for prefix in (_PARAMS, _OLD_PARAMS) if _has(file, prefix)), "")
    if not subtree:
        return found
    asked = f"{subtree.strip('/')}/"
    options = [prefix for prefix in (found + asked, asked) if _has(file, prefix)]
    if not options:
        raise ConversionError(f"{file.path} has no subtree {subtree!r}; it has {_tops(file.tensors, found)}")
    return options[0]


def _has(file: NpzFile, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in file.tensors)


def _without_old_state(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Leave out the state of an old Flax optimizer, which cannot be imported; returns the other names and a note."""
    old = [name for name in names if name.startswith(_OLD_STATE)]
    if not old:
        return list(names), ()
    shown = ", ".join(old[:3]) + (", ..." if len(old) > 3 else "")
    note = f"left out: {len(old)} entries of an old Flax optimizer's state, {shown}"
    return [name for name in names if not name.startswith(_OLD_STATE)], (note,)


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
    raise ConversionError(f"{source} does not hold a two-tower model{under}: it has {shown}, expected img, txt and t")


def _refuse_others(file: NpzFile, rest: Sequence[str], source: str, prefix: str) -> None:
    others = [name for name in rest if not name.startswith(CHRONO)]
    if others:
        lines = [f"unused: {name} {file.tensors[name].shape}" for name in others]
        raise ConversionError(
            f"{source} holds more than parameters ({source}:{prefix.strip('/')} converts only the parameters), "
            f"{listed(lines)}"
        )


def _tops(names: Mapping[str, object], prefix: str) -> str:
    tops = dict.fromkeys(name.removeprefix(prefix).split("/")[0] for name in names if name.startswith(prefix))
    shown = [repr(top) for top in sorted(tops)]
    return ", ".join(shown[:12]) + (f" and {len(shown) - 12} more" if len(shown) > 12 else "")
