"""The standard transforms: one row per record, with picture and text drawn apart."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from clipa_eqx.data.array_record_reader import open_records
from clipa_eqx.data.array_record_writer import write_records
from clipa_eqx.data.augment import ImageConfig
from clipa_eqx.data.eval_images import EvalImageConfig
from clipa_eqx.data.records import Record
from clipa_eqx.data.stream import StreamConfig, eval_stream, train_stream
from clipa_eqx.data.transforms import EvalTransform, TrainTransform
from clipa_eqx.errors import ConfigError, DataError
from clipa_eqx.tokenizer import Tokenizer

_CAPTIONS = ("a red cat sleeps on the old wooden chair", "the dog", "two birds over a very quiet lake at night")


def picture(seed):
    levels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).resize((50, 40)).save(file, "JPEG")
    return file.getvalue()


RECORD = Record(key="cat", image=picture(0), captions=_CAPTIONS, label=3)
TRAIN = TrainTransform(
    image=ImageConfig(size=(16, 16), mode="exact"), tokenizer=Tokenizer.bert(), length=6, reduction="random"
)


def rows(transform, count=40):
    return [transform(RECORD, np.random.default_rng(i)) for i in range(count)]


def test_a_training_row_has_the_documented_arrays():
    row = TRAIN(RECORD, np.random.default_rng(0))
    assert {name: (value.shape, value.dtype.name) for name, value in row.items()} == {
        "image": ((16, 16, 3), "uint8"),
        "tokens": ((6,), "int32"),
        "truncated": ((), "bool"),
    }


def test_captions_are_drawn_about_equally_often():
    transform = dataclasses.replace(TRAIN, reduction="truncate")
    expected = [tuple(TRAIN.tokenizer.encode(caption, length=6).ids) for caption in _CAPTIONS]
    drawn = [expected.index(tuple(row["tokens"])) for row in rows(transform, 150)]
    assert min(np.bincount(drawn, minlength=3)) > 30


@pytest.mark.parametrize("image", [ImageConfig(size=(16, 16), mode="fast"), ImageConfig(size=(8, 8), min_area=0.1)])
def test_the_picture_settings_do_not_change_the_text(image):
    for a, b in zip(rows(TRAIN), rows(dataclasses.replace(TRAIN, image=image)), strict=True):
        np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_the_text_settings_do_not_change_the_picture():
    other = dataclasses.replace(TRAIN, reduction="block", length=3)
    for a, b in zip(rows(TRAIN, 5), rows(other, 5), strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_truncation_is_reported_per_row():
    short = dataclasses.replace(RECORD, captions=("the dog",))
    assert not TRAIN(short, np.random.default_rng(0))["truncated"]
    assert TRAIN(dataclasses.replace(RECORD, captions=_CAPTIONS[:1]), np.random.default_rng(0))["truncated"]


def test_an_evaluation_row_has_picture_and_class():
    transform = EvalTransform(image=EvalImageConfig(size=(16, 16)))
    row = transform(RECORD)
    assert row["image"].shape == (16, 16, 3)
    assert row["label"].dtype == np.int32
    assert row["label"] == 3
    assert transform(dataclasses.replace(RECORD, label=None))["label"] == -1


def test_transforms_can_be_sent_to_worker_processes():
    copy = pickle.loads(pickle.dumps(TRAIN))
    a, b = TRAIN(RECORD, np.random.default_rng(1)), copy(RECORD, np.random.default_rng(1))
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])


def test_a_length_without_tokens_is_refused():
    with pytest.raises(ConfigError, match="length"):
        dataclasses.replace(TRAIN, length=0)


def test_bad_records_are_named_by_the_stream(tmp_path):
    good = [Record(key=f"good-{i}", image=picture(i), captions=("a cat",)) for i in range(3)]
    write_records([*good, Record(key="broken", image=b"\xff\xd8\xff no picture")], tmp_path / "set")
    source = open_records(tmp_path / "set")
    with pytest.raises(DataError, match=r"shard-00000\.array_record, record 3, key 'broken'"):
        list(eval_stream(source, EvalTransform(image=EvalImageConfig(size=(8, 8))), batch_size=2))
    config = StreamConfig(threads=0)
    with pytest.raises(DataError, match=r"key 'broken': the record has no caption"):
        next(train_stream(source, TRAIN, batch_size=4, seed=0, config=config))
