"""The standard transform: the row of a record, with separate randomness of image and text, for any processes."""

import dataclasses
import functools
import pickle

import numpy as np
import pytest
from support.image_files import encode
from support.streams import ON_DEMAND, assert_same_batches, concatenate, share

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.images.affine import AffineConfig
from clipa_eqx.data.images.augment import ImageConfig
from clipa_eqx.data.images.color import ColorConfig
from clipa_eqx.data.images.evaluation import EvalImageConfig, eval_image
from clipa_eqx.data.mixture import Mixture
from clipa_eqx.data.prefetch import StreamConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import eval_stream, train_stream
from clipa_eqx.data.transforms import TrainTransform
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.evals.zero_shot import ZeroShotTransform
from clipa_eqx.tokenizer.wordpiece import Tokenizer

_CAPTIONS = ("a red cat sleeps on the old wooden chair", "the dog", "two birds over a very quiet lake at night")


def jpeg(seed):
    levels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    return encode(levels.repeat(10, axis=0).repeat(10, axis=1), "JPEG")


RECORD = Record(key="cat", image=jpeg(0), captions=_CAPTIONS, label=3)
TRAIN = TrainTransform(
    image=ImageConfig(size=(16, 16), mode="exact"), tokenizer=Tokenizer.bert(), length=6, reduction="random"
)
# Everything is random: caption, part of it, crop, affine change, color, gray.
ALL_RANDOM = TrainTransform(
    image=ImageConfig(size=(16, 16), affine=AffineConfig(max_rotate_degrees=20.0), color=ColorConfig()),
    tokenizer=Tokenizer.bert(),
    length=6,
    reduction="block",
)


def rows(transform, count=40):
    return [transform(RECORD, np.random.default_rng(i)) for i in range(count)]


def test_a_training_row_has_the_documented_arrays():
    row = TRAIN(RECORD, np.random.default_rng(0))
    assert {name: (value.shape, value.dtype.name) for name, value in row.items()} == {
        "image": ((16, 16, 3), "uint8"),
        "tokens": ((6,), "int32"),
        "truncated": ((), "bool"),
        "pieces": ((), "int32"),
        "unknown": ((), "int32"),
    }


def test_captions_are_sampled_about_equally_often():
    transform = dataclasses.replace(TRAIN, reduction="truncate")
    expected = [tuple(TRAIN.tokenizer.encode(caption, length=6).ids) for caption in _CAPTIONS]
    sampled = [expected.index(tuple(row["tokens"])) for row in rows(transform, 150)]
    assert min(np.bincount(sampled, minlength=3)) > 30


@pytest.mark.parametrize("image", [ImageConfig(size=(16, 16), mode="fast"), ImageConfig(size=(8, 8), min_area=0.1)])
def test_the_image_settings_do_not_change_the_text(image):
    for a, b in zip(rows(TRAIN), rows(dataclasses.replace(TRAIN, image=image)), strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_the_text_settings_do_not_change_the_image():
    other = dataclasses.replace(TRAIN, reduction="block", length=3)
    for a, b in zip(rows(TRAIN, 5), rows(other, 5), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_truncation_is_reported_per_row():
    short = dataclasses.replace(RECORD, captions=("the dog",))
    assert not TRAIN(short, np.random.default_rng(0))["truncated"]
    assert TRAIN(dataclasses.replace(RECORD, captions=_CAPTIONS[:1]), np.random.default_rng(0))["truncated"]


def test_pieces_and_unknown_words_are_counted_per_row():
    record = dataclasses.replace(RECORD, captions=("the \u72d7 dog \u8dd1 \u5feb",))
    row = dataclasses.replace(TRAIN, length=5)(record, np.random.default_rng(0))
    assert row["tokens"].tolist().count(TRAIN.tokenizer.unk_id) == row["unknown"] == 2
    assert row["pieces"] == 4  # as many as fit behind [CLS]
    short = TRAIN(dataclasses.replace(RECORD, captions=("the dog",)), np.random.default_rng(0))
    assert (short["pieces"], short["unknown"]) == (2, 0)


def test_transforms_can_be_sent_to_worker_processes():
    copy = pickle.loads(pickle.dumps(TRAIN))
    a, b = TRAIN(RECORD, np.random.default_rng(1)), copy(RECORD, np.random.default_rng(1))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Two record folders of images with one to three captions, mixed 1 to 2, and the first batches of one process."""
    folder = tmp_path_factory.mktemp("sets")
    for name in ("a", "b"):
        records = (Record(key=f"{name}{i}", image=jpeg(i), captions=_CAPTIONS[: 1 + i % 3]) for i in range(40))
        write_records(records, folder / name, records_per_shard=15)
    sources = (open_records(folder / "a"), open_records(folder / "b"))
    mixture = Mixture(sources=sources, weights=(1.0, 2.0))
    with train_stream(mixture, ALL_RANDOM, batch_size=24, seed=3, config=ON_DEMAND) as stream:
        return mixture, [next(stream) for _ in range(7)]  # more than an epoch of both


@pytest.mark.parametrize(
    ("processes", "workers", "start"),
    [(1, 0, 4), (2, 0, 1), (3, 0, 0), (8, 0, 3), (2, 1, 3), (1, 2, 0), pytest.param(1, 4, 2, marks=pytest.mark.slow)],
)
def test_images_and_tokens_do_not_depend_on_processes_workers_or_start(mixed, processes, workers, start):
    mixture, expected = mixed
    options = {"batch_size": 24, "seed": 3, "start_step": start}
    config = StreamConfig(workers=workers, threads=2)
    parts = []
    for process in range(processes):
        with train_stream(mixture, ALL_RANDOM, **options, rows=share(24, process, processes), config=config) as stream:
            parts.append([next(stream) for _ in range(3)])
    assert_same_batches(concatenate(parts), expected[start : start + 3])


def test_those_batches_are_random_and_truncated(mixed):
    """Otherwise the test of their equality would prove little."""
    _, batches = mixed
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    first, again = np.nonzero(rows["sample_id"] == np.bincount(rows["sample_id"]).argmax())[0][:2]
    assert (rows["image"][first] != rows["image"][again]).any()
    assert len({row.tobytes() for row in rows["tokens"]}) > 10
    assert rows["truncated"].any()
    assert not rows["truncated"].all()


def test_a_length_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="length"):
        dataclasses.replace(TRAIN, length=0)


def test_bad_records_are_named_by_the_stream(tmp_path):
    good = [Record(key=f"good-{i}", image=jpeg(i), captions=("a cat",), label=0) for i in range(3)]
    write_records([*good, Record(key="broken", image=b"\xff\xd8\xff not an image", label=0)], tmp_path / "set")
    source = open_records(tmp_path / "set")
    evaluate = ZeroShotTransform(prepare_image=functools.partial(eval_image, config=EvalImageConfig(size=(8, 8))))
    with pytest.raises(DataError, match=r"shard-00000\.array_record, record 3, key 'broken': cannot"):
        list(eval_stream(source, evaluate, batch_size=2))
    with pytest.raises(DataError, match=r"key 'broken': the record has no caption"):
        next(train_stream(source, TRAIN, batch_size=4, seed=0, config=ON_DEMAND))
