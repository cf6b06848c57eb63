"""Speed and memory of converting a full-size preset, Flax and open_clip, both ways, next to `cp` and `sha256sum`."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clipa_eqx.models.clip import CLIPConfig
from clipa_eqx.models.presets import PRESETS, preset
from conversion.flax_clipa.names import flax_rules
from conversion.flax_clipa.npz_writer import new_npz
from conversion.weights.rules import RuleTable

ROOT = Path(__file__).parents[1]


class Measured(NamedTuple):
    """Wall time, and the largest sampled size of memory that is not backed by a file."""

    seconds: float
    peak_anonymous_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="H/14", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument(
        "--scratch",
        type=Path,
        help="folder with space for four copies of the weights; else /tmp",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        result = measure(options.preset, options.image_size, Path(folder))
    if options.json:
        print(json.dumps(result, indent=1))
        return
    print(f"{options.preset} at {options.image_size} px, {result['bytes'] / 1e9:.2f} GB of float32")
    print(f"{'cp + sha256sum:':20} {result['cp_sha256sum_mb_per_s']:7.0f} MB/s")
    for what in ("import", "export", "open_clip_import", "open_clip_export"):
        speed, ratio = result[f"{what}_mb_per_s"], result[f"{what}_ratio"]
        memory = result[f"{what}_peak_anonymous_gib"]
        print(
            f"{what + ':':20} {speed:7.0f} MB/s, {ratio:.2f} times that; at most {memory:.2f} GiB of anonymous memory"
        )


def measure(name: str, image_size: int, folder: Path) -> dict[str, float]:
    """All numbers of one run. Before each phase, the pages of the previous one are written to disk."""
    source, model, back = folder / "source.npz", folder / "model", folder / "back.npz"
    write_random(preset(name, image_size=image_size), source)
    size = source.stat().st_size
    copy = folder / "copy.npz"
    plain = run("sh", "-c", f"cp {source} {copy} && sha256sum {source} > {folder / 'sum'}")
    copy.unlink()
    converter = (sys.executable, "-m", "conversion.flax_clipa")
    into = run(*converter, "import", source, model, "--preset", name, "--image-size", image_size, "--image-pool", "gap")
    out = run(*converter, "export", model, back)
    compared = run("cmp", source, back)
    back.unlink()
    # The same weights through open_clip's layout. `cmp` fails unless they come back bit by bit.
    twin, again = folder / "open_clip", folder / "again"
    converter = (sys.executable, "-m", "conversion.open_clip")
    twin_out = run(*converter, "export", model, twin)
    twin_into = run(*converter, "import", twin, again)
    run("cmp", model / "model.safetensors", again / "model.safetensors")
    result: dict[str, float] = {
        "bytes": size,
        "cp_sha256sum_mb_per_s": size / plain.seconds / 1e6,
        "cmp_mb_per_s": size / compared.seconds / 1e6,
    }
    measured = {"import": into, "export": out, "open_clip_import": twin_into, "open_clip_export": twin_out}
    for what, one in measured.items():
        result[f"{what}_mb_per_s"] = size / one.seconds / 1e6
        result[f"{what}_ratio"] = plain.seconds / one.seconds
        result[f"{what}_peak_anonymous_gib"] = one.peak_anonymous_bytes / 2**30
    return result


def write_random(config: CLIPConfig, path: Path) -> None:
    """Write a checkpoint of full size whose forward pass is finite, one tensor at a time."""
    rng = np.random.Generator(np.random.SFC64(0))
    placed = RuleTable(flax_rules(config), config).placed
    with new_npz(path, overwrite=False) as archive:
        for name in sorted(placed, key=lambda name: name.split("/")):
            values = rng.random(placed[name].shape, np.float32)
            values -= 0.5
            values *= 0.06
            if name.endswith("/scale") or name == "t":
                values += 1.0
            archive.write(f"params/{name}", values)


def run(*command: object) -> Measured:
    """Run a command to its end. Raises SystemExit if it fails."""
    subprocess.run(["sync"], check=True)
    since = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - since
    if process.returncode:
        raise SystemExit(f"{command} failed with {process.returncode}")
    return Measured(seconds, peak)


def anonymous_bytes(pid: int) -> int:
    """Resident memory of a process without file pages, in bytes; 0 if the system does not report it."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
