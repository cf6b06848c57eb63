"""The reference's input pipeline rebuilt with tf.data, to compare ours with (``benchmarks/input.py`` starts it).

The operations and their order are those of CLIPA's training: TFRecord, full JPEG decode, a random box, crop,
antialiased resize, cast to uint8, tokens, batch. tensorflow-text has no release for this TensorFlow. A cheaper
tokenizer replaces its BertTokenizer: lower case, a split at spaces and punctuation, and one look-up per word, without
Unicode normalization and without a search for pieces. Nothing is shuffled. Both simplifications favor this
side. The reference: docs/reference.md F8.2.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipa_eqx.tokenizer.vocabulary import bert_pieces

# Batches that tf.data prepares before they are asked for.
_READY = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="TFRecord file with the features jpg and txt")
    parser.add_argument("--size", type=int, required=True, help="side of the images made, px")
    parser.add_argument("--length", type=int, default=16, help="text tokens; 0 skips tokenizing")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a round")
    options = parser.parse_args()
    batches = iter(pipeline(options.records, size=options.size, length=options.length, batch=options.batch))
    next(batches)
    print("ready", flush=True)
    for _ in sys.stdin:  # a line asks for a round
        for _ in range(_READY + 1):  # made before the clock starts
            next(batches)
        images, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < options.seconds:
            images += len(next(batches)["image"])
        print(images / elapsed, flush=True)


def write_tfrecords(path: Path, images: Sequence[bytes], *, caption: str, records: int) -> None:
    """Write a file in the layout of img2dataset."""
    tf = _tensorflow()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in range(records):
            values = {"jpg": images[number % len(images)], "txt": caption.encode()}
            feature = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[v])) for name, v in values.items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def pipeline(records: Path, *, size: int, length: int, batch: int) -> Any:
    """Endless batches, made by one thread."""
    tf = _tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("jpg", "txt")}
    pieces = tf.constant(bert_pieces())
    numbers = tf.range(len(bert_pieces()), dtype=tf.int32)
    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(pieces, numbers), default_value=100)

    def row(data: Any) -> Any:
        example = tf.io.parse_single_example(data, features)
        image = tf.io.decode_image(example["jpg"], channels=3, expand_animations=False)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image),
            tf.zeros([0, 0, 4], tf.float32),
            area_range=(0.4, 1.0),
            aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0,
            use_image_if_no_bounding_boxes=True,
        )
        part = tf.slice(image, begin, extent)
        part.set_shape([None, None, 3])
        made = {"image": tf.cast(tf.image.resize(part, [size, size], "bilinear", antialias=True), tf.uint8)}
        if length:
            text = tf.strings.regex_replace(tf.strings.lower(example["txt"]), "([[:punct:]])", r" \1 ")
            tokens = table.lookup(tf.strings.split(text))[: length - 1]
            tokens = tf.concat([tf.constant([101], tf.int32), tokens], 0)
            made["tokens"] = tf.pad(tokens, [[0, length - tf.shape(tokens)[0]]])
        return made

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.TFRecordDataset(str(records)).repeat().map(row, num_parallel_calls=1)
    return data.batch(batch, drop_remainder=True).prefetch(_READY).with_options(options).as_numpy_iterator()


def _tensorflow() -> Any:
    return importlib.import_module("tensorflow")  # no type stubs


if __name__ == "__main__":
    main()
