"""A tiny model in an open_clip folder, and edits of the folder."""

import dataclasses
import functools
import json

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.saved.model import load_model, save_model
from clipa_eqx.tokenizer.vocabulary import SPECIAL
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.open_clip.__main__ import main
from support.leaves import edit_safetensors
from support.random_models import random_model
from support.tiny_models import tiny_clip_config

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
VOCAB = (*SPECIAL, *(f"w{i}" for i in range(64 - len(SPECIAL))))


def save(folder, model, *, provenance=None, resize="squash", pieces=VOCAB):
    size = model.config.image.image_size
    return save_model(
        folder,
        model,
        tokenizer=Tokenizer(pieces=pieces, classes=bytes([4] * len(pieces))),
        preprocess=EvalImageConfig(size=size, resize=resize if size[0] == size[1] else "squash"),
        provenance=provenance or {},
    )


@functools.cache
def tiny_model():
    return random_model(tiny_clip_config(blocks={"depth": 1}))


def export_tiny(root):
    """The tiny model in an open_clip folder under ``root``."""
    save(root / "model", tiny_model())
    main(["export", str(root / "model"), str(root / "theirs")])
    return root / "theirs"


def convert(source, target, *flags):
    main(["import", str(source), str(target), *map(str, flags)])
    return load_model(target)


def edit_config(folder, change):
    found = json.loads((folder / CONFIG).read_text())
    change(found)
    (folder / CONFIG).write_text(json.dumps(found))


def edit_weights(folder, change):
    edit_safetensors(folder / WEIGHTS, change)


def same_config(config):
    """The config without what open_clip does not record: how the model was initialized and trained."""

    def blocks(one):
        return dataclasses.replace(one, init="scaled", init_depth=None, dropout=0.0, drop_path=0.0, remat="none")

    image = dataclasses.replace(config.image, blocks=blocks(config.image.blocks), mask_ratio=0.0)
    return dataclasses.replace(
        config, image=image, text=dataclasses.replace(config.text, blocks=blocks(config.text.blocks))
    )


def set_in(*keys, **values):
    def change(found):
        for key in keys:
            found = found[key]
        found.update(values)

    return change
