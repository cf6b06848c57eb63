"""Where two models part and why: `python -m conversion.compare A B`, each a model folder, a Flax npz or open_clip's."""

import argparse
import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipa_eqx.cli import FAILED, OK, run
from clipa_eqx.errors import ConversionError
from conversion.weights.arguments import add_config_arguments, choices_of

if TYPE_CHECKING:
    from conversion.compare.walk import Side, TowerWalk

_log = logging.getLogger(__name__)

EPILOG = """Both sides get the same pictures and texts. Every operation is computed in float64 with the weights and
settings of each side on the same inputs, so that the first that differs is named, with its error. Each known mistake
of converters is then tried on it, and a cause is named only if it explains the difference to rounding.
What a file does not say of itself is taken from the flags, else from the other side.
--recorded-a and --recorded-b replace a side's tokens and pixels by what your own pipeline made of the fixed inputs
(--write-inputs): an npz with `tokens` (texts, length) and/or `pixels_0`, `pixels_1`, `pixels_2` (height, width, 3).
Exit codes: 0 nothing differs, 1 something does, 2 a mistake in files or flags."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m conversion.compare",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for side in ("a", "b"):
        parser.add_argument(
            side, metavar=side.upper(), help="model folder, FILE.npz, or file, folder, hf-hub: of open_clip"
        )
    add_config_arguments(parser)
    parser.add_argument("--recorded-a", type=Path, metavar="FILE.npz")
    parser.add_argument("--recorded-b", type=Path, metavar="FILE.npz")
    parser.add_argument("--write-inputs", type=Path, metavar="DIR", help="write the fixed pictures and texts there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON too")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # only shapes are asked of jax
    if arguments.json is not None:
        _check_report(arguments.json)
    report = compare(arguments)
    for line in report_lines(report):
        print(line)
    if arguments.json is not None:
        try:
            arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConversionError(f"--json {arguments.json} cannot be written ({error})") from error
    return OK if report["first"] is None else FAILED


def _check_report(file: Path) -> None:
    """A walk through large models takes minutes; that its report has no place is said before."""
    if file.is_dir():
        raise ConversionError(f"--json {file} is a folder; name a file")
    if not file.absolute().parent.is_dir():
        raise ConversionError(f"--json {file} cannot be written: there is no folder {file.parent}")


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report, as JSON: ``first`` is the first divergence or None; ``divergences`` are all.

    Raises:
        ConversionError: a side cannot be opened, or a recording does not fit.
        CheckpointError: a model folder is damaged.
    """
    from contextlib import ExitStack

    from conversion.compare.inputs import recorded, write_inputs
    from conversion.compare.sides import is_described, open_side
    from conversion.weights.named_configs import named_config

    choices = choices_of(arguments)
    # Asked of neither side, a mistake in it is one all the same.
    named_config(preset=choices.preset, released=choices.released, file=choices.config)
    if is_described(arguments.a) and is_described(arguments.b):
        unused = [f"--{name.replace('_', '-')}" for name, value in vars(choices).items() if value is not None]
        if unused:
            _log.warning("%s: not used, both sides say all of it themselves", ", ".join(unused))
    with ExitStack() as stack:
        sides: dict[str, Side] = {}
        # The side that says all of itself first: the other may ask it.
        for key in sorted(("a", "b"), key=lambda key: not is_described(getattr(arguments, key))):
            known = next(iter(sides.values()), None)
            other = None if known is None else known.config
            sides[key] = open_side(getattr(arguments, key), choices, stack, other=other)
        for key, file in (("a", arguments.recorded_a), ("b", arguments.recorded_b)):
            if file is not None:
                sides[key] = recorded(sides[key], file)
        if arguments.write_inputs is not None:
            write_inputs(arguments.write_inputs, sides["a"])
        return compare_sides(sides["a"], sides["b"])


def compare_sides(a: "Side", b: "Side") -> dict[str, Any]:
    """Texts, pictures, both towers, temperature, in this order."""
    from conversion.compare.inputs import tower_inputs

    report: dict[str, Any] = {
        "a": {"name": a.name, "kind": a.kind, "notes": list(a.notes)},
        "b": {"name": b.name, "kind": b.kind, "notes": list(b.notes)},
        "notes": [],
        "divergences": [],
        "embedding_error": {},
    }
    _texts(a, b, report)
    _pictures(a, b, report)
    sizes = _size_differences(a, b)
    for tower in ("image", "text"):
        if sizes[tower]:
            report["divergences"].append(
                {"where": f"{tower} tower", "what": "; ".join(sizes[tower]), "causes": [["sizes differ", ""]]}
            )
        else:
            _tower(a, b, tower, tower_inputs(a, b, tower), report)
    _temperature(a, b, report)
    report["first"] = next(iter(report["divergences"]), None)
    return report


def _texts(a: "Side", b: "Side", report: dict[str, Any]) -> None:
    from conversion.compare.texts import compare_texts

    if a.tokenize is None or b.tokenize is None:
        missing = " and ".join(side.name for side in (a, b) if side.tokenize is None)
        report["notes"].append(f"texts: not compared, {missing} does not say how they are tokenized")
        return
    found = compare_texts(a.tokenize, b.tokenize, pieces=(a.pieces or b.pieces, b.pieces or a.pieces))
    report["notes"].append(f"texts: {found.equal} of {found.texts} have equal ids")
    if found.causes or found.unexplained:
        left = [["unexplained", repr(text[:40])] for text in found.unexplained]
        what = f"{found.texts - found.equal} of {found.texts} fixed texts get other ids"
        report["divergences"].append(
            {"where": "tokenization", "what": what, "causes": [*map(list, found.causes), *left]}
        )


def _pictures(a: "Side", b: "Side", report: dict[str, Any]) -> None:
    from conversion.compare.images import compare_pictures

    if a.picture is None or b.picture is None or a.pictures is None:
        missing = " and ".join(side.name for side in (a, b) if side.picture is None)
        report["notes"].append(f"pictures: not compared, {missing} does not say how they are prepared")
        return
    if a.config.image.image_size != b.config.image.image_size:
        report["notes"].append("pictures: not compared, they have other sizes")
        return
    found = compare_pictures(a.picture, b.picture, settings_a=a.pictures, settings_b=b.pictures)
    what = f"pixels differ by up to {found.levels:.1f} levels of 255"
    if found.is_equal:
        report["notes"].append(f"pictures: {what}; one is the difference of cutting and rounding")
    else:
        report["divergences"].append({"where": "preprocessing", "what": what, "causes": [*map(list, found.causes)]})


def _size_differences(a: "Side", b: "Side") -> dict[str, list[str]]:
    x, y = a.config, b.config
    image = {
        "image size": (x.image.image_size, y.image.image_size),
        "patch size": (x.image.patch_size, y.image.patch_size),
        "attention pooling": (x.image.pool == "map", y.image.pool == "map"),
    }
    text = {"tokens": (x.text.length, y.text.length)}
    found: dict[str, list[str]] = {}
    for tower, own in (("image", image), ("text", text)):
        one, two = getattr(x, tower), getattr(y, tower)
        for name in ("width", "depth", "mlp_dim"):
            own[name] = (getattr(one.blocks, name), getattr(two.blocks, name))
        own["joint width"] = (one.embed, two.embed)
        found[tower] = [f"{name} is {p} in A, {q} in B" for name, (p, q) in own.items() if p != q]
    return found


def _tower(a: "Side", b: "Side", tower: Any, inputs: Any, report: dict[str, Any]) -> None:
    from tqdm import tqdm

    from conversion.compare.replay import replay
    from conversion.compare.walk import causes_of, walk_tower

    with tqdm(total=len(replay(a.config, tower)[0]), desc=f"{tower} tower", unit="step", delay=2) as bar:
        walk: TowerWalk = walk_tower(a, b, tower, inputs, advance=lambda _: bar.update())
    report["embedding_error"][tower] = walk.embedding_error
    report["notes"].append(
        f"{tower} tower: {walk.steps - len(walk.divergences)} of {walk.steps} operations are equal; embeddings differ "
        f"by up to {walk.embedding_error:.1e}"
    )
    for _, group in causes_of(walk.divergences):
        first = group[0]
        more = f"; the same in {len(group) - 1} more" if len(group) > 1 else ""
        causes = [] if first.explanation is None else [list(cause) for cause in first.explanation.causes]
        what = f"error {first.error:.2g} of values up to {first.scale:.2g}{more}"
        report["divergences"].append(
            {"where": first.step, "what": what, "causes": causes, "steps": [one.step for one in group]}
        )


def _temperature(a: "Side", b: "Side", report: dict[str, Any]) -> None:
    import numpy as np

    from conversion.compare.causes import HALVES, ROUNDED, round_to

    x, y = a.log_temperature, b.log_temperature
    if math.isclose(x, y, rel_tol=1e-7, abs_tol=1e-9):
        return
    causes: list[list[str]] = []
    for one, two, who in ((x, y, "B"), (y, x, "A")):
        if one < 80 and math.isclose(math.exp(one), two, rel_tol=1e-5):
            causes.append(["temperature stored as exp", f"{who} has the multiplier itself"])
        other = "A" if who == "B" else "B"
        halves = [name for name in HALVES if round_to(np.asarray(one), name) == two]
        if halves:
            causes.append([ROUNDED, f"{who}'s is {other}'s in {' or '.join(halves)}"])
    report["divergences"].append({"where": "log_temperature", "what": f"{x:.6g} in A, {y:.6g} in B", "causes": causes})


def report_lines(report: dict[str, Any]) -> list[str]:
    """The report for people."""
    lines = [f"{key.upper()}  {report[key]['name']} ({report[key]['kind']})" for key in ("a", "b")]
    lines += [f"   {key.upper()}: {note}" for key in ("a", "b") for note in report[key]["notes"]]
    lines += ["", *report["notes"], ""]
    if report["first"] is None:
        return [*lines, "nothing differs"]
    for i, one in enumerate(report["divergences"]):
        lines.append(f"{'FIRST DIVERGENCE' if i == 0 else 'and then'}: {one['where']}: {one['what']}")
        lines += [f"    cause: {cause}{f', {detail}' if detail else ''}" for cause, detail in one["causes"]]
        if not one["causes"]:
            lines.append("    cause: none of the known ones explains it; the weights or tables themselves differ")
    return lines


def program() -> int:
    """Run the command on ``sys.argv`` and return its exit code."""
    return run(main)


if __name__ == "__main__":
    sys.exit(program())
