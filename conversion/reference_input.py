"""The reference's input pipeline rebuilt with tf.data, to measure ours against (`benchmarks/input.py` starts it).

The ops and their order are those of CLIPA's training (`inception_crop` of its preprocessing): full JPEG decode, a
random box, crop, antialiased resize, cast to uint8, batch. Tokenising is left out, because tensorflow-text has no
release for this TensorFlow; so are reading TFRecords and shuffling. All three favour this side.
"""

import argparse
import importlib
import pickle
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="pickled list of JPEGs")
    parser.add_argument("--size", type=int, required=True, help="side of the pictures made, px")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.5, help="of a round")
    options = parser.parse_args()
    batches = iter(pipeline(pickle.loads(options.pictures.read_bytes()), size=options.size, batch=options.batch))
    next(batches)
    print("ready", flush=True)
    for _ in sys.stdin:  # a line asks for a round
        images, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < options.seconds:
            images += len(next(batches))
        print(images / elapsed, flush=True)


def pipeline(pictures: list[bytes], *, size: int, batch: int) -> Any:
    """Endless uint8 batches by one thread."""
    tf: Any = importlib.import_module("tensorflow")  # no type stubs
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def picture(data: Any) -> Any:
        image = tf.io.decode_image(data, channels=3, expand_animations=False)
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
        return tf.cast(tf.image.resize(part, [size, size], "bilinear", antialias=True), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    data = tf.data.Dataset.from_tensor_slices(pictures).repeat().map(picture, num_parallel_calls=1)
    return data.batch(batch, drop_remainder=True).prefetch(2).with_options(options).as_numpy_iterator()


if __name__ == "__main__":
    main()
