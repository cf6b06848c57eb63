"""Training steps on one GPU next to open_clip's: largest batch, pairs per second, share of the matrix-product peak.

Both sides run in turns, each in a process of its own, so that the memory of a GPU is free for the next. Without PyTorch
or open_clip only our side runs. Our side needs JAX, NumPy, Equinox, optax and jaxtyping. The program prints what it has
when its time is over.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from clipa_eqx.flops import step_flops
from clipa_eqx.models.presets import preset

HERE = Path(__file__).resolve().parent
OURS, THEIRS = "clipa_eqx", "open_clip"
SIDES = {OURS: "gpu_ours.py", THEIRS: "gpu_open_clip.py"}
GIB = 2**30
ROW = "ROW "
"""Start of the lines of a side that are results; the last one counts."""


class Model(NamedTuple):
    """A model to measure.

    Attributes:
        image_size: side of the square image, px.
        length: text tokens.
        start: batch with which the search for the largest begins.
        recomputed: towers that compute activations again in our recipe: "none", "image" or "both".
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
    Model("H/14", 84, 8, 1024, "image"),
    Model("L/14", 84, 8, 2048, "image"),
    Model("B/16", 112, 16, 4096, "none"),
    Model("L/14", 224, 32, 256, "both"),
)
TINY = (Model("Ti/16", 32, 5, 4, "image"),)


class Measured(NamedTuple):
    """Result of a side.

    Attributes:
        seconds: time of a step; None if there is no result.
        memory: peak memory in bytes.
        note: kernels and settings, or the reason of a missing result.
    """

    batch: int = 0
    seconds: float | None = None
    memory: int = 0
    note: str = ""


def main() -> None:
    options = parse_options()
    end = time.monotonic() + options.seconds
    models = TINY if options.tiny else tuple(MODELS[int(number)] for number in options.models.split(","))
    sides = [OURS, THEIRS] if _has_open_clip() and not options.ours_only else [OURS]
    peak, device = _peak(options, end=end)
    print(f"device: {device}", f"matrix product: {_tera(peak)} TFLOP/s", _HEADER, sep="\n", flush=True)
    runs = [(model, side) for model in models for side in sides]
    found: dict[tuple[Model, str], Measured] = {}
    for number, run in enumerate(runs):
        model, side = run
        left = end - time.monotonic()
        # A run may take more than its share of the rest, since others take less.
        allowed = min(left, 1.7 * left / (len(runs) - number))
        found[run] = _measure(model, side, options, seconds=allowed)
        print(_line(model, side, found[run], peak), flush=True)
    for model in models:
        ours, theirs = (_pairs(found.get((model, side))) for side in (OURS, THEIRS))
        if ours is not None and theirs is not None:
            print(f"{model.name}: {ours / theirs:.2f} x {THEIRS}")
    if THEIRS not in sides and not options.ours_only:
        print(f"{THEIRS} is not measured: packages torch and open_clip_torch are not installed")


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


def _has_open_clip() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "open_clip"))


def _peak(options: argparse.Namespace, *, end: float) -> tuple[float, str]:
    """Operations per second of a bfloat16 matrix product, and the device in words."""
    flags = ["--peak", "128" if options.tiny else "8192"]
    row, note = _last_row(OURS, flags, seconds=end - time.monotonic())
    if row is None:
        sys.exit(f"no matrix product could be measured: {note}")
    return float(row["peak"]), str(row["device"])


def _measure(model: Model, side: str, options: argparse.Namespace, *, seconds: float) -> Measured:
    recomputed = model.recomputed if options.recompute or options.tiny else "none"
    flags = ["--preset", model.preset, "--image-size", str(model.image_size), "--length", str(model.length)]
    flags += ["--start", str(model.start), "--recompute", recomputed, "--seconds", f"{seconds:.0f}"]
    flags += ["--most", "4"] if options.tiny else []
    flags += ["--attention", options.attention] if side == OURS else ["--eager"] if options.tiny else []
    row, note = _last_row(side, flags, seconds=seconds)
    if row is None:
        return Measured(note=note)
    return Measured(int(row["batch"]), float(row["seconds"]), int(row["memory"]), str(row["note"]))


def _last_row(side: str, flags: list[str], *, seconds: float) -> tuple[dict[str, Any] | None, str]:
    """The last result that a side printed, or None and the reason."""
    if seconds < 1:
        return None, "no time left"
    # JAX takes most of the memory at its start instead of a little at a time.
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94", **os.environ}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, str(HERE / SIDES[side]), *flags],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            text=True,
        )
        try:
            out, _ = process.communicate(timeout=seconds)
            reason = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            reason = "its time was over"
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    rows = [line.removeprefix(ROW) for line in out.splitlines() if line.startswith(ROW)]
    if rows:
        return json.loads(rows[-1]), ""
    return None, f"{reason}: {lines[-1][:200]}" if lines else reason


_COLUMNS = "{:27}{:11}{:>7}{:>10}{:>10}{:>9}{:>10}  {}"
_HEADER = _COLUMNS.format("model", "side", "batch", "pairs/s", "TFLOP/s", "of peak", "peak GiB", "settings")


def _line(model: Model, side: str, found: Measured, peak: float) -> str:
    if found.seconds is None:
        return _COLUMNS.format(model.name, side, *"-----", found.note)
    config = preset(model.preset, image_size=model.image_size, length=model.length)
    rate = step_flops(config, batch_size=found.batch).total / found.seconds
    return _COLUMNS.format(
        model.name,
        side,
        found.batch,
        f"{found.batch / found.seconds:,.0f}",
        _tera(rate),
        f"{100 * rate / peak:.1f} %",
        f"{found.memory / GIB:.1f}",
        found.note,
    )


def _pairs(found: Measured | None) -> float | None:
    return None if found is None or found.seconds is None else found.batch / found.seconds


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.1f}" if rate >= 1e12 else f"{rate / 1e12:.4f}"


if __name__ == "__main__":
    main()
