"""Parser of ``tf.Example`` messages, which needs protobuf but not TensorFlow."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

Features = Mapping[str, list[object]]

_PACKAGE = "tensorflow"
_FIELD = descriptor_pb2.FieldDescriptorProto


def parse_example(blob: bytes) -> Features | str:
    """The values of each feature of a serialized ``tf.Example``; a text says why it is none.

    The fields are those of TensorFlow's ``example.proto`` and ``feature.proto``.
    """
    try:
        example = _example_class().FromString(blob)
    except DecodeError as error:
        return f"not a tf.Example: {error}"
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> list[object]:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else list(getattr(feature, kind).value)


@cache
def _example_class() -> Any:
    """The message class, in a pool of its own: TensorFlow registers the same messages in the common one."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package=_PACKAGE, syntax="proto3")
    for name, type_ in (
        ("BytesList", _FIELD.TYPE_BYTES),
        ("FloatList", _FIELD.TYPE_FLOAT),
        ("Int64List", _FIELD.TYPE_INT64),
    ):
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, label=_FIELD.LABEL_REPEATED, type=type_)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, message) in enumerate(
        (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List")), start=1
    ):
        field = _add_message(feature, name, number, message)
        field.oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=_FIELD.LABEL_OPTIONAL, type=_FIELD.TYPE_STRING)
    _add_message(entry, "value", 2, "Feature")
    _add_message(features, "feature", 1, "Features.FeatureEntry").label = _FIELD.LABEL_REPEATED
    _add_message(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def _add_message(owner: descriptor_pb2.DescriptorProto, name: str, number: int, message: str) -> Any:
    return owner.field.add(
        name=name,
        number=number,
        label=_FIELD.LABEL_OPTIONAL,
        type=_FIELD.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.{message}",
    )
