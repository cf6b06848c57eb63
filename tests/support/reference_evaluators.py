"""The recorded evaluators of the reference: their images and models, as our evaluations take them."""

import functools
import re

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clipa_eqx.data.images.crops import central_crop
from clipa_eqx.data.images.resize import resize_small
from clipa_eqx.tokenizer.wordpiece import Tokenizer
from conversion.flax_clipa.names import from_flax
from support import goldens
from support.reference_models import clip_config


@functools.cache
def load(recording):
    """The recording, its numbers, and our model on a mesh of as many devices as the recording had."""
    about = goldens.load_json(recording)
    arrays = goldens.load_npz(recording.replace(".json", ".npz"))
    devices = int(re.search(r"_(\d+)dev", recording)[1])
    mesh = jax.make_mesh(
        (devices, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:devices]
    )
    name = about["model"].removeprefix("models/")
    config = clip_config(
        goldens.load_json("models/index.json")[name]["model"],
        image_size=(about["res"], about["res"]),
        length=about["text_len"],
    )
    params = goldens.under(goldens.load_npz(f"{about['model']}/params.npz"), "params/")
    return about, arrays, jax.device_put(from_flax(params, config), NamedSharding(mesh, PartitionSpec())), mesh


def image_batches(about, *, label):
    size, sized, labels = about["batch_size"], sized_images(about["res"]), recorded_images()[label]
    for start in range(0, len(sized), size):
        missing = max(0, start + size - len(sized))
        yield {
            "image": np.pad(sized[start : start + size], ((0, missing), (0, 0), (0, 0), (0, 0))),
            "label": np.pad(labels[start : start + size], ((0, missing), *[(0, 0)] * (labels.ndim - 1))),
            "mask": np.arange(start, start + size) < len(sized),
            "sample_id": np.arange(start, start + size),
        }


@functools.cache
def sized_images(res):
    """Images resized as most recipes score: the shorter side to ``res``, then the center (docs/reference.md F5.1)."""
    return resized(recorded_images(), "image_", res)


def resized(images, prefix, res):
    """The images whose names start with ``prefix``, in order, resized in this way."""
    names = sorted(name for name in images if name.startswith(prefix) and images[name].ndim == 3)
    smaller = [resize_small(images[name], shorter=res, method="bilinear", antialias=True) for name in names]
    return np.stack([central_crop(image, size=(res, res)) for image in smaller])


@functools.cache
def tokenizer():
    return Tokenizer.bert()


def recorded_images():
    return goldens.load_npz("evaluators/images.npz")
