"""Small checkpoint folders of the t5x branch, and their conversion."""

import gzip
import json

import msgpack
import numpy as np

from conversion.t5x.__main__ import main
from support.tiny_models import tiny_clip_config

CONFIG = tiny_clip_config(blocks={"depth": 1})


FLAGS = "--image-pool gap --text-pool last --image-position sincos2d --image-size 16 --image-heads 2 --text-heads 2"


def inline(array, *, code=1):
    packed = msgpack.packb((list(array.shape), array.dtype.name, array.tobytes()))
    return msgpack.ExtType(code, packed)


def spec(name, array, *, chunks=None, driver="file", path=None):
    return {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": driver, "path": f"{name}/" if path is None else path, "bucket": "t5x-dummy-bucket"},
        "metadata": {
            "shape": list(array.shape),
            "chunks": list(chunks or array.shape),
            "compressor": {"id": "gzip", "level": 1},
        },
    }


def write_zarr(folder, array, *, chunks=None):
    chunks = tuple(chunks or array.shape)
    folder.mkdir(parents=True)
    about = {"zarr_format": 2, "order": "C", "filters": None, "fill_value": None, "dimension_separator": "."}
    about |= {"compressor": {"id": "gzip", "level": 1}, "shape": list(array.shape), "chunks": list(chunks)}
    (folder / ".zarray").write_text(json.dumps(about | {"dtype": array.dtype.str}))
    grid = [-(-size // chunk) for size, chunk in zip(array.shape, chunks, strict=True)]
    for index in np.ndindex(*grid):
        start = [i * chunk for i, chunk in zip(index, chunks, strict=True)]
        part = array[tuple(slice(s, s + c) for s, c in zip(start, chunks, strict=True))]
        whole = np.zeros(chunks, array.dtype)
        whole[tuple(slice(0, n) for n in part.shape)] = part
        (folder / (".".join(map(str, index)) or "0")).write_bytes(gzip.compress(whole.tobytes(), 1, mtime=0))


def nested(flat):
    tree = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return tree


def write_index(folder, leaves, *, version=3):
    index = {"version": version, "optimizer": nested(leaves)}
    (folder / "checkpoint").write_bytes(msgpack.packb(index))


def write_checkpoint(folder, arrays, *, stored=3, **spec_options):
    """A checkpoint of parameters and optimizer state; the first leaves are in folders, the others in the index."""
    folder.mkdir()
    leaves = {}
    for i, (name, array) in enumerate(arrays.items()):
        for kind, values in (("target", array), ("mu", 0.1 * array), ("nu", array**2)):
            path = f"target/{name}" if kind == "target" else f"state/param_states/0/{kind}/{name}"
            if i < stored:
                own = path.replace("/", ".")
                leaves[path] = spec(own, values, **spec_options)
                write_zarr(folder / own, values)
            else:
                leaves[path] = inline(values)
    for path, count in (("0/count", 3), ("2/count", 3)):
        leaves[f"state/param_states/{path}"] = inline(np.asarray(count, np.int32), code=3)
    leaves["state/step"] = 3
    leaves["state/param_states/1"] = {}
    write_index(folder, leaves)
    return leaves


def convert(source, target, vocab, *flags):
    main(["import", str(source), str(target), *FLAGS.split(), "--vocab", str(vocab), *flags])
