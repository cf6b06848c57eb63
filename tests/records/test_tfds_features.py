"""Features that TFDS declares, and the examples that hold them."""

import pytest

from conversion.records.sources.example_proto import parse_example
from conversion.records.sources.tfds_features import declared_features, labels_files


def test_examples_are_parsed_as_tensorflow_parses_them():
    import tensorflow as tf

    features = {
        "bytes": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"\xff", b""])),
        "floats": tf.train.Feature(float_list=tf.train.FloatList(value=[1.5, -2.0])),
        "ints": tf.train.Feature(int64_list=tf.train.Int64List(value=[-1, 2**62])),
        "empty": tf.train.Feature(int64_list=tf.train.Int64List(value=[])),
        "none": tf.train.Feature(),
    }
    blob = tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
    assert parse_example(blob) == {
        "bytes": [b"\xff", b""], "floats": [1.5, -2.0], "ints": [-1, 2**62], "empty": [], "none": [],
    }  # fmt: skip
    for cut in range(1, len(blob)):
        assert isinstance(parse_example(blob[:cut]), str | dict)
    assert str(parse_example(blob[:-1])).startswith("not a tf.Example: ")


CLASS = {"classLabel": {"numClasses": "10"}}
TEXT = {"text": {}}


def listed(feature):
    return {"sequence": {"feature": feature}}


def fields(**features):
    return {"featuresDict": {"features": features}}


def test_declared_features_of_nested_sets():
    features = fields(
        photo={"image": {}},
        about=fields(kind=CLASS, caption=TEXT),
        objects=listed(fields(label=CLASS, name=TEXT, crop={"image": {}})),
        tags=listed(CLASS),
        words=listed(listed(TEXT)),
        title={"tensor": {"dtype": "string"}},
        size={"tensor": {"dtype": "int64"}},
    )
    info = {"supervisedKeys": {"tuple": {"items": [{"featureKey": "photo"}, {"featureKey": "tags"}]}}}
    found = declared_features(features, info)
    assert (found.images, found.texts) == (("photo",), ("about/caption", "objects/name", "title"))
    assert (found.classes, found.supervised) == ({"about/kind": 10, "tags": 10}, "tags")
    assert found.image_names() == ("photo",)
    assert found.caption_names() == ("title",)
    assert found.label_names(has_captions=True) == ("tags", "label")
    assert labels_files("about/kind") == ("about.kind.labels.txt", "about-kind.labels.txt")


def test_the_only_class_of_a_set_is_its_label_unless_it_has_captions():
    found = declared_features(fields(image={"image": {}}, breed=CLASS), None)
    assert found.label_names(has_captions=False) == ("label", "breed")
    assert found.label_names(has_captions=True) == ("label",)


@pytest.mark.parametrize("content", [None, [], "text", {"featuresDict": 3}, fields(label=3), {"type": "FeaturesDict"}])
def test_other_content_declares_nothing(content):
    found = declared_features(content, content)
    assert (found.images, found.texts, found.classes, found.supervised) == ((), (), {}, None)
    assert found.label_names(has_captions=False) == ("label",)
