"""A folder of embeddings of the tiny model that is written without computing anything."""

from pathlib import Path

import numpy as np

from clipa_eqx.data.images.evaluation import EvalImageConfig
from clipa_eqx.search.embedding import EmbeddingOptions, begin, finish
from clipa_eqx.search.encoder import Chunk, Encoder
from clipa_eqx.search.inputs import image_folder_inputs
from clipa_eqx.search.shards import write_shard
from support.tiny_models import SIZE, tiny_clip, tiny_tokenizer


def write_embeddings(folder: Path, photos: Path) -> None:
    """Write random unit vectors of the images of a folder."""
    encoder = Encoder(
        model=tiny_clip(),
        tokenizer=tiny_tokenizer(),
        preprocess=EvalImageConfig(size=SIZE),
        text_reduction="truncate",
        weights_sha256="0" * 64,
        path="model",
    )
    inputs, options = image_folder_inputs(photos), EmbeddingOptions()
    begin(folder, encoder.identity, inputs, options)
    items = list(inputs.read(range(inputs.count)))
    vectors = np.random.default_rng(0).normal(size=(len(items), encoder.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chunk = Chunk(items=items, vectors=vectors, unreadable=(), truncated=0)
    write_shard(folder, 0, [chunk], width=encoder.width, dtype="float32", is_images=True)
    finish(folder, inputs, options, new=1)
