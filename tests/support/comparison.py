"""Sizes of the compared model, and one comparison with its JSON report."""

import json

from conversion.compare.__main__ import main

SIZE, LENGTH, HEADS, DIM = (16, 16), 16, 2, 32
VISION, TEXT = ("model_cfg", "vision_cfg"), ("model_cfg", "text_cfg")
IMAGE_BLOCK, TEXT_BLOCK = "visual.transformer.resblocks.1", "transformer.resblocks.0"


def compared(a, b, tmp_path, *flags):
    """Compare two models on the command line; return the JSON report, and check the exit code against it."""
    code = main([str(a), str(b), "--json", str(tmp_path / "report.json"), *map(str, flags)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == (0 if report["first"] is None else 1)
    return report


def named(report):
    """All causes in a report."""
    return {cause for one in report["divergences"] for cause, _ in one["causes"]}
