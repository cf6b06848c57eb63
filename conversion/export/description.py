"""The files of an export that every program can read: JSON about model and images, tokenizer, README."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.errors import CheckpointError
from clipa_eqx.json_files import read_json_object
from clipa_eqx.models.clip import CLIP
from clipa_eqx.replacing import FolderKind
from clipa_eqx.saved.model import LoadedModel
from conversion.open_clip.tokenizer import JSON_FILE, tokenizer_json

ABOUT_FILE, PREPROCESS_FILE, README_FILE = "model.json", "preprocess.json", "README.md"
TOKENIZER_FILE = f"tokenizer/{JSON_FILE}"

USE = {
    "image": """
encode_images = load("image")
images = np.zeros((2, *about["image_size"], 3), np.uint8)
print(encode_images(images).shape)
""",
    "text": """
encode_texts = load("text")
tokens = np.zeros((3, about["text_length"]), np.int32)
print(encode_texts(tokens).shape)
""",
    "both": """
encode_images, encode_texts = load("image"), load("text")
images = np.zeros((2, *about["image_size"], 3), np.uint8)
tokens = np.zeros((3, about["text_length"]), np.int32)
logits = about["temperature"] * encode_images(images) @ encode_texts(tokens).T + (about["bias"] or 0)
print(logits.shape)
""",
}
"""Python that uses the towers of an export, by what was exported; ``load`` is defined by each format."""

_DESCRIPTION = (ABOUT_FILE, PREPROCESS_FILE, README_FILE, TOKENIZER_FILE)


def export_kind(format_name: str, *files: str) -> FolderKind:
    """The kind of the folders that an export to a format writes: the files of every export, and those of the format."""

    def is_one(folder: Path) -> bool:
        try:
            about = read_json_object(folder / ABOUT_FILE, error=CheckpointError, hint="")
        except CheckpointError:
            return False
        return about.get("format") == f"clipa_eqx {format_name}"

    return FolderKind(name=f"{format_name} export", files=frozenset({*_DESCRIPTION, *files}), is_one=is_one)


def write_description(
    new: Path, loaded: LoadedModel, *, format_name: str, towers: Mapping[str, Mapping[str, Any]], **about: Any
) -> None:
    """Write all files of an export except its programs and weights, and except its README.

    Args:
        new: the folder that is being made.
        loaded: the model.
        format_name: the format, such as "stablehlo".
        towers: what is recorded of each tower that was exported.
        about: further entries of ``model.json``.
    """
    model = loaded.model
    config = model.config
    content: dict[str, Any] = {
        "format": f"clipa_eqx {format_name}",
        "image_size": list(config.image.image_size),
        "text_length": config.text.length,
        "vocabulary": config.text.vocab,
        "embed": config.image.output,
        "temperature": _temperature(model),
        "bias": None if model.bias is None else float(model.bias),
        **about,
        "towers": towers,
    }
    _write_json(new / ABOUT_FILE, content)
    _write_json(new / PREPROCESS_FILE, _image_steps(loaded.preprocess.config))
    made = tokenizer_json(loaded.tokenizer.tokenizer, as_reference=True)
    made.enable_truncation(config.text.length)
    made.enable_padding(length=config.text.length, pad_id=loaded.tokenizer.tokenizer.pad_id)
    (new / TOKENIZER_FILE).parent.mkdir()
    made.save(str(new / TOKENIZER_FILE))


def readme(loaded: LoadedModel, *, title: str, needs: str, example: str, notes: str) -> str:
    """The README of an export.

    Args:
        title: what the folder holds.
        needs: the packages that the example imports.
        example: a Python program that runs in the folder.
        notes: paragraphs after the example.
    """
    config, steps = loaded.model.config, loaded.preprocess.config
    logits = (
        f"are `temperature` times their products;\n`temperature` is in `{ABOUT_FILE}`."
        if loaded.model.bias is None
        else f"are `temperature` times their\nproducts, plus `bias`; both are in `{ABOUT_FILE}`."
    )
    height, width = config.image.image_size
    resizing = {
        "squash": f"resize to {height} x {width} pixels without keeping the aspect ratio",
        "resize_small_crop": f"scale the shorter side to {height} pixels, then crop the center",
    }[steps.resize]
    return f"""# {title}

Images are RGB levels, uint8[batch, {height}, {width}, 3]; the program normalizes them itself. To prepare an image,
{resizing}, bilinear with antialiasing. Texts are token ids, int32[batch, {config.text.length}]:
`tokenizers.Tokenizer.from_file("{TOKENIZER_FILE}").encode_batch(texts)` gives objects with the attribute `ids`.
Embeddings are float32 of unit length. The logits of images and texts {logits}

The example needs {needs}. Run it in this folder:

```python
{example.strip()}
```

{notes.strip()}
"""


def _temperature(model: CLIP) -> float:
    return float(np.exp(np.float64(np.asarray(model.log_temperature))))


def _image_steps(config: EvalImageConfig) -> dict[str, Any]:
    return {
        "size": list(config.size),
        "resize": config.resize,
        "filter": "bilinear, antialiased",
        "levels": "uint8 RGB",
        "normalization": "in the image program",
    }


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
