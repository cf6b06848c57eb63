"""Training steps on one GPU next to open_clip's: largest batch, pairs per second, share of the matrix-product peak.

Each model and side is a process of its own. All of them compile at the same time; then they are measured one after the
other, and each leaves the GPU's memory to the next. Without PyTorch or open_clip only our side runs. Our side needs
JAX, NumPy, Equinox, optax and jaxtyping. The program prints what it has when its time is over.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.flops import step_flops
from clipa_eqx.models.presets import preset

HERE = Path(__file__).resolve().parent
OURS, THEIRS = "clipa_eqx", "open_clip"
SIDES = {OURS: "gpu_ours.py", THEIRS: "gpu_open_clip.py"}
GIB = 2**30
READY, ROW = "READY", "ROW "
"""Lines that a side prints: it has compiled and waits for its turn; a result, of which the last counts."""

COMPILING = 0.55
"""Share of the time after which processes that still compile are given up."""


class Model(NamedTuple):
    """A model to measure.

    Attributes:
        image_size: side of the square image, px.
        length: text tokens.
        start: batch with which the search for the largest begins.
        recomputed: towers that compute activations again in our recipe: "none", "image" or "both".
            The recipe of B/16 keeps matrix products, for which open_clip has no setting; both sides keep everything.
    """

    preset: str
    image_size: int
    length: int
    start: int
    recomputed: str

    @property
    def name(self) -> str:
        """The model in words."""
        return f"{self.preset}, {self.image_size} px, {self.length} tokens"


MODELS = (
    Model("H/14", 84, 8, 1024, "both"),
    Model("L/14", 84, 8, 2048, "both"),
    Model("B/16", 112, 16, 4096, "none"),
    Model("L/14", 224, 32, 256, "both"),
)
TINY = (Model("Ti/16", 32, 5, 4, "image"),)


class Side(NamedTuple):
    """A process that measures one model, and the files that it writes to."""

    model: Model
    name: str
    process: "subprocess.Popen[str]"
    out: Path
    errors: Path


class Measured(NamedTuple):
    """Result of a side; ``peak`` is the rate of a matrix product in the same process, 0 if it measured none."""

    batch: int
    seconds: float
    memory: int
    note: str
    peak: float
    device: str


def main() -> None:
    options = parse_options()
    end = time.monotonic() + options.seconds
    models = TINY if options.tiny else tuple(MODELS[int(number)] for number in options.models.split(","))
    has_theirs = all(importlib.util.find_spec(name) is not None for name in ("torch", "open_clip"))
    names = [OURS, THEIRS] if has_theirs and not options.ours_only else [OURS]
    with tempfile.TemporaryDirectory() as folder:
        sides = [_start(model, name, options, Path(folder)) for model in models for name in names]
        try:
            found = _in_turns(sides, end=end, compiled_by=time.monotonic() + COMPILING * options.seconds)
        finally:
            for side in sides:
                _kill(side)
    for model in models:
        ours, theirs = (found.get((model, name)) for name in (OURS, THEIRS))
        if ours is not None and theirs is not None:
            ratio = (ours.batch / ours.seconds) / (theirs.batch / theirs.seconds)
            print(f"{model.name}: {ratio:.2f} x {THEIRS}")
    if not has_theirs and not options.ours_only:
        print(f"{THEIRS} is not measured: packages torch and open_clip_torch are not installed")
    sys.exit(0 if found else 1)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    numbers = ", ".join(f"{number}: {model.name}" for number, model in enumerate(MODELS))
    parser.add_argument("--models", default="0,1,2,3", help=f"numbers of the models ({numbers})")
    parser.add_argument("--seconds", type=float, default=225.0, help="time of the program")
    parser.add_argument("--recompute", action="store_true", help="compute activations again where our recipes do")
    parser.add_argument("--attention", choices=("auto", "cudnn", "xla"), default="auto", help="our kernel of attention")
    parser.add_argument("--ours-only", action="store_true", help="do not measure open_clip")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, also on a CPU, to try the program itself")
    return parser.parse_args()


def _start(model: Model, name: str, options: argparse.Namespace, folder: Path) -> Side:
    recomputed = model.recomputed if options.recompute or options.tiny else "none"
    flags = ["--preset", model.preset, "--image-size", str(model.image_size), "--length", str(model.length)]
    flags += ["--start", str(model.start), "--recompute", recomputed]
    flags += ["--most", str(model.start)] if options.tiny else []
    if name == OURS:
        flags += ["--attention", options.attention, "--product", "128" if options.tiny else "8192"]
    elif options.tiny:
        flags += ["--eager"]
    # Processes that wait for their turn leave the memory to the one that is measured.
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    number = len(list(folder.iterdir()))
    out, errors = (folder / f"{number}.{end}" for end in ("out", "err"))
    with out.open("w") as to_out, errors.open("w") as to_errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / SIDES[name]), *flags],
            stdin=subprocess.PIPE,
            stdout=to_out,
            stderr=to_errors,
            env={**memory, **os.environ},
            text=True,
        )
    return Side(model, name, process, out, errors)


def _in_turns(sides: Sequence[Side], *, end: float, compiled_by: float) -> dict[tuple[Model, str], Measured]:
    """Let each side measure when all have compiled, and print its line."""
    _wait(lambda: all(READY in _lines(side.out) or side.process.poll() is not None for side in sides), compiled_by)
    late = [side for side in sides if READY not in _lines(side.out) and side.process.poll() is None]
    for side in late:  # what they do on the device would disturb the others
        _kill(side)
    print(_HEADER, flush=True)
    found: dict[tuple[Model, str], Measured] = {}
    peak = 0.0
    for number, side in enumerate(sides):
        left = max(0.0, end - time.monotonic())
        # A side may take more than its share of the rest, since others take less.
        allowed = min(left, 2.0 * left / (len(sides) - number))
        _go(side, seconds=allowed)
        _wait(lambda process=side.process: process.poll() is not None, time.monotonic() + allowed)
        is_over = side.process.poll() is None
        _kill(side)
        result = _result(side)
        if result is None:
            late_or_over = "it did not compile in its time" if side in late else "its time was over"
            reason = late_or_over if side in late or is_over else _fault(side)
            print(_COLUMNS.format(side.model.name, side.name, *"-----", reason), flush=True)
        else:
            found[side.model, side.name] = result
            peak = max(peak, result.peak)
            print(_line(side, result, peak), flush=True)
    for device in sorted({result.device for result in found.values()}):
        print(device)
    if peak:
        print(f"matrix product: {_tera(peak)} TFLOP/s")
    return found


def _wait(is_done: Callable[[], bool], until: float) -> None:
    while not is_done() and time.monotonic() < until:
        time.sleep(0.05)


def _go(side: Side, *, seconds: float) -> None:
    with contextlib.suppress(BrokenPipeError):  # it has ended
        if side.process.stdin is not None:
            side.process.stdin.write(f"{seconds}\n")
            side.process.stdin.flush()


def _kill(side: Side) -> None:
    side.process.kill()
    side.process.wait()


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def _result(side: Side) -> Measured | None:
    rows = [line.removeprefix(ROW) for line in _lines(side.out) if line.startswith(ROW)]
    if not rows:
        return None
    row: dict[str, Any] = json.loads(rows[-1])
    return Measured(**row)


def _fault(side: Side) -> str:
    last = [line for line in _lines(side.errors) if line.strip()][-1:]
    return f"exit code {side.process.returncode}: {''.join(last)[:200]}"


_COLUMNS = "{:27}{:11}{:>7}{:>10}{:>10}{:>9}{:>10}  {}"
_HEADER = _COLUMNS.format("model", "side", "batch", "pairs/s", "TFLOP/s", "of peak", "peak GiB", "settings")


def _line(side: Side, found: Measured, peak: float) -> str:
    model = side.model
    config = preset(model.preset, image_size=model.image_size, length=model.length)
    rate = step_flops(config, batch_size=found.batch).total / found.seconds
    return _COLUMNS.format(
        model.name,
        side.name,
        found.batch,
        f"{found.batch / found.seconds:,.1f}",
        _tera(rate),
        f"{100 * rate / peak:.1f} %" if peak else "-",
        f"{found.memory / GIB:.1f}",
        found.note,
    )


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.1f}" if rate >= 1e12 else f"{rate / 1e12:.4f}"


if __name__ == "__main__":
    main()
