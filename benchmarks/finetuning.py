"""Full, LoRA and head-only fine-tunes of the quickstart's model on a family of icons in another style.

The family is Font Awesome 6 solid, the quickstart's test set, in white on black; the model has seen black on white
only. Every other test icon is scored before and after, among the names that the family itself gives to the scored
icons. All other icons of the family are trained on, with their names as captions. Run `make quickstart` first.
"""

import argparse
import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from clipa_eqx.config_files import load_config
from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.records import Record
from clipa_eqx.models.clip import CLIP
from clipa_eqx.optim import trained_leaves
from clipa_eqx.surgery.init_config import abstract_model
from clipa_eqx.trees import leaves_by_path
from configs.quickstart_pretrain import ICON_SIZE
from conversion.icons.fonts import FAMILIES, SCORED_FAMILY, list_icons, render, split_name

ROOT = Path(__file__).resolve().parent.parent
_RENDERED = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to fine-tune: its config, and the flags that it needs.

    Attributes:
        config: config file.
        flags: more flags of `train.py`.
    """

    config: str
    flags: tuple[str, ...] = ()


KINDS: Mapping[str, Kind] = {
    "full": Kind(config="configs/quickstart_heads.py", flags=("--trainable", ".*", "--optim.peak-lr", "1e-3")),
    "LoRA": Kind(config="configs/quickstart_lora.py", flags=("--optim.peak-lr", "3e-3")),
    "heads": Kind(config="configs/quickstart_heads.py", flags=("--optim.peak-lr", "3e-3")),
}


def main() -> None:
    options = parse_options()
    model, data = options.quickstart / "tune" / "model", options.quickstart / "data"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts = write_family(folder, data / "test")
        print(f"{counts[0]} icons to train on, {counts[1]} to score", flush=True)
        top1, top5 = evaluate(model, folder)
        print(
            "| kind | trained | top-1 | top-5 | s per step | peak memory | checkpoint |\n|---|---|---|---|---|---|---|"
        )
        print(f"| before | - | {100 * top1:.1f} % | {100 * top5:.1f} % | - | - | - |", flush=True)
        for kind in options.kinds:
            print(row(kind, fine_tune(kind, model, folder, data, steps=options.steps)), flush=True)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quickstart", type=Path, default=Path("runs/quickstart"), help="folder of `make quickstart`")
    parser.add_argument("--steps", type=int, default=300, help="steps of each fine-tune")
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    return parser.parse_args()


def write_family(folder: Path, test: Path) -> tuple[int, int]:
    """Write the icons to train on and those to score as two record folders; return their numbers."""
    source = open_records(test)
    hidden = {source[index].key for index in range(1, len(source), 2)}
    records = list(family_records())
    scored = [record for record in records if record.key in hidden]
    names = sorted({record.captions[0] for record in scored})
    labeled = [dataclasses.replace(record, label=names.index(record.captions[0])) for record in scored]
    write_records(labeled, folder / "scored", class_names=names)
    trained = [record for record in records if record.key not in hidden]
    write_records(trained, folder / "trained")
    return len(trained), len(scored)


def family_records() -> Iterator[Record]:
    """Records of the family's icons, as the quickstart writes them, except that ink is white and paper is black."""
    icons = list_icons(next(family for family in FAMILIES if family.name == SCORED_FAMILY))
    for icon, ink in zip(icons, render(icons, size=_RENDERED), strict=True):
        if not ink.any():
            continue
        file = io.BytesIO()
        Image.fromarray(ink).reduce(_RENDERED // ICON_SIZE).save(file, format="PNG")
        words, _ = split_name(icon.names[0], icon.family)
        yield Record(key=icon.key, image=file.getvalue(), captions=(" ".join(words),))


def evaluate(model: Path, folder: Path) -> tuple[float, float]:
    """Top-1 and top-5 of the scored icons."""
    out = folder / "before.json"
    templates = folder / "templates.txt"
    templates.write_text("{}\n", encoding="utf-8")
    words = (str(model), "--suite", "zero-shot", "--data", str(folder / "scored"), "--templates-file", str(templates))
    program("evaluate", (*words, "--out", str(out)))
    found = json.loads(out.read_text(encoding="utf-8"))
    return found["top1"], found["top5"]


def fine_tune(kind: str, model: Path, folder: Path, data: Path, *, steps: int) -> dict[str, Any]:
    """Fine-tune in a process of its own; return its measures."""
    workdir, chosen = folder / f"run-{kind}", KINDS[kind]
    flags = (
        *("--workdir", str(workdir), "--init-from", str(model), "--duration.steps", str(steps)),
        *("--data.sources.0.folder", str(folder / "trained"), "--data.vocab", str(data / "vocab.txt")),
        *("--zero-shot.0.data", str(folder / "scored"), "--zero-shot.0.every-steps", str(steps)),
        *chosen.flags,
    )
    peak = program("train", (chosen.config, *flags))
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = sorted(line["seconds_per_step"] for line in lines if "seconds_per_step" in line)
    last = max((workdir / "checkpoints").iterdir(), key=lambda path: path.name)
    scores = {name.rpartition("/")[2]: value for name, value in lines[-1].items() if name.startswith("zero_shot/")}
    return {
        **scores,
        "trained": trained_count(ROOT / chosen.config, chosen.flags),
        "seconds": seconds[len(seconds) // 2],
        "peak": peak,
        "checkpoint": sum(path.stat().st_size for path in last.rglob("*") if path.is_file()),
    }


def trained_count(path: Path, flags: Sequence[str]) -> int:
    """Parameters that a config trains."""
    config = load_config(path)
    model: CLIP = abstract_model(config.model, config.init)
    trainable = (".*",) if "--trainable" in flags else config.trainable
    trained = leaves_by_path(trained_leaves(config.optim, model, trainable=trainable))
    return sum(leaf.size for path, leaf in leaves_by_path(model).items() if trained[path])


def program(name: str, arguments: Sequence[str]) -> float:
    """Run one of our programs; return its peak memory in MiB."""
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    since = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert child.stdout is not None
    output = child.stdout.read().decode()
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed after {time.perf_counter() - since:.0f} s:\n{output}")
    return usage.ru_maxrss / 1024


def row(kind: str, found: Mapping[str, Any]) -> str:
    """A line of the table."""
    cells = (
        *(kind, f"{found['trained']:,}", f"{100 * found['top1']:.1f} %", f"{100 * found['top5']:.1f} %"),
        *(f"{found['seconds']:.3f}", f"{found['peak']:,.0f} MiB", f"{found['checkpoint'] / 2**20:.1f} MiB"),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
