"""Rows of rule tables: import undoes export for any shape, axes and part, and files of tensors keep what they hold."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipa_eqx.errors import ConversionError
from clipa_eqx.saved.leaf_file import Leaf
from conversion.weights.leaf_rule import LeafRule, permuted
from conversion.weights.tensors import Arrays, InBackground, TensorFile, TensorView, sha256_of, shape_of


@st.composite
def rules(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    axes = draw(st.none() | st.permutations(range(len(shape))).map(tuple))
    count = draw(st.integers(1, 3))
    index = draw(st.integers(0, count - 1))
    return LeafRule(path="a", name="b", shape=(shape[0] * count, *shape[1:]), axes=axes, part=(index, count))


@settings(deadline=None)
@given(rules())
def test_import_undoes_export_of_a_part_in_any_order_of_axes(rule):
    size = int(np.prod(rule.part_shape))
    ours = np.arange(size, dtype=np.float32)
    theirs = rule.to_theirs(ours)
    assert theirs.shape == rule.part_shape
    index, count = rule.part
    whole = np.concatenate([theirs if i == index else np.full_like(theirs, -1) for i in range(count)])
    np.testing.assert_array_equal(rule.to_ours(whole, ours.shape), ours)


@settings(deadline=None)
@given(rules())
def test_our_leaf_is_the_transposed_part_as_documented(rule):
    tensor = np.arange(int(np.prod(rule.shape))).reshape(rule.shape)
    index, count = rule.part
    part = np.split(tensor, count)[index]
    expected = part if rule.axes is None else part.transpose(rule.axes)
    np.testing.assert_array_equal(rule.to_ours(tensor, (tensor.size // count,)), expected.reshape(-1))


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((300, 5), (1, 0)),
        ((128, 7), (1, 0)),
        ((129, 2, 3), (1, 2, 0)),
        ((2, 130, 3), (2, 0, 1)),
        ((2, 3, 4), (1, 0, 2)),
    ],
)
def test_strips_of_matrices_equal_a_transposition(shape, axes):
    array = np.arange(np.prod(shape)).reshape(shape)
    found = permuted(array, axes)
    np.testing.assert_array_equal(found, array.transpose(axes))
    assert found.flags.c_contiguous


def test_an_order_that_is_the_same_copies_nothing():
    array = np.zeros((2, 3))
    assert permuted(array, None) is array


def test_only_a_placeholder_stacks_a_rule():
    assert LeafRule(path="a", name="blocks.{i}.w", shape=(1,)).is_stacked
    assert not LeafRule(path="a", name="blocks.0.w", shape=(1,)).is_stacked


def test_a_view_shows_some_tensors_under_other_names():
    arrays = Arrays({"x": np.arange(3), "y": np.zeros((2, 2))}, path="p")
    view = TensorView(arrays, {"mine": "x"})
    assert isinstance(view, TensorFile)
    assert (str(view.path), set(view.tensors)) == ("p", {"mine"})
    np.testing.assert_array_equal(view.read("mine"), np.arange(3))
    with pytest.raises(KeyError):
        view.read("y")
    with pytest.raises(KeyError):
        TensorView(arrays, {"mine": "nonsuch"})


def test_the_shape_of_a_tensor_is_known_only_if_it_can_be_one():
    tensors = {"a": Leaf((2, 3), np.dtype(np.float32)), "empty": Leaf((0, 3), np.dtype(np.float32))}
    assert shape_of(tensors, "a", 2) == (2, 3)
    assert [shape_of(tensors, *one) for one in (("a", 1), ("nonsuch", 2), ("empty", 2))] == [None] * 3


def test_the_hash_of_a_folder_changes_with_names_and_bytes_but_not_with_its_place(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "a").write_bytes(b"a")
        (tmp_path / name / "sub" / "b").write_bytes(b"b")
    lines = "".join(f"{hashlib.sha256(x.encode()).hexdigest()} {y}\n" for x, y in (("a", "a"), ("b", "sub/b")))
    whole = sha256_of(tmp_path / "one")
    assert whole == sha256_of(tmp_path / "two") == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "c")
    (tmp_path / "two" / "a").write_bytes(b"A")
    assert len({whole, sha256_of(tmp_path / "one"), sha256_of(tmp_path / "two")}) == 3


def test_a_missing_file_is_no_hash(tmp_path):
    with pytest.raises(ConversionError, match=r"absent cannot be read"):
        sha256_of(tmp_path / "absent")


def test_background_work_gives_its_result_or_its_error():
    assert InBackground(lambda: "done").result() == "done"

    def fail():
        raise ConversionError("the source vanished")

    with pytest.raises(ConversionError, match="the source vanished"):
        InBackground(fail).result()
