"""Counts of zero-shot scores on embeddings made by hand: ties, several labels, and results as JSON."""

import json

import numpy as np
import pytest

from clipa_eqx.errors import DataError, NonFiniteError
from clipa_eqx.evals.counting import ZeroShotResult, score

CLASSES = np.eye(7, dtype=np.float32)


def batch_of(rows, labels, mask=None, first=0):
    """A batch whose images are their own embeddings: row i likes the class in ``rows[i]`` best, then lower classes."""
    count = len(rows)
    labels = np.array(labels)
    return {
        "image": np.array(rows, np.uint8).reshape(count, 1, 1, 1).repeat(3, axis=3),
        "label": labels,
        "mask": np.ones(count, bool) if mask is None else np.array(mask),
        "sample_id": np.arange(first, first + count),
    }


def encode(images):
    return CLASSES[images[:, 0, 0, 0]]


def scored(*batches, classes=CLASSES):
    return score(encode, classes, batches)


def test_the_best_class_comes_first_and_ties_go_to_the_lower_class():
    result = scored(batch_of([3, 0], [3, 5]))
    assert result.predictions.tolist() == [[3, 0, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert (result.count, result.correct_top1, result.correct_top5) == (2, 1, 1)
    assert (result.top1, result.top5) == (0.5, 0.5)


@pytest.mark.parametrize(("label", "top5"), [(2, 1), (4, 1), (5, 0), (6, 0)])
def test_rank_five_is_the_last_that_counts(label, top5):
    assert scored(batch_of([3], [label])).correct_top5 == top5


def test_classes_with_equal_embeddings_are_one_and_the_lower_one_is_predicted():
    twins = CLASSES[[0, 1, 2, 1, 4, 5, 6]]
    result = scored(batch_of([1, 1], [1, 3]), classes=twins)
    assert result.predictions[:, :2].tolist() == [[1, 3]] * 2
    assert result.per_class_correct.tolist() == [0, 1, 0, 0, 0, 0, 0]
    assert result.per_class_count.tolist() == [0, 1, 0, 1, 0, 0, 0]


def test_an_image_of_several_labels_counts_once_in_total_and_for_each_of_its_classes():
    result = scored(batch_of([2, 2], [[2, 6, -1], [6, 6, 5]]))
    assert (result.count, result.correct_top1, result.correct_top5) == (2, 1, 1)
    assert result.per_class_count.tolist() == [0, 0, 1, 0, 0, 1, 2]
    assert result.per_class_correct.tolist() == [0, 0, 1, 0, 0, 0, 1]


def test_masked_rows_count_nowhere():
    result = scored(batch_of([0, 1, 2], [0, 1, 2], mask=[True, False, True]))
    assert (result.count, result.correct_top1) == (2, 2)
    assert result.sample_id.tolist() == [0, 2]
    assert result.per_class_count.tolist() == [1, 0, 1, 0, 0, 0, 0]


def test_a_batch_is_ranked_only_after_the_next_is_encoded_and_all_are_counted():
    seen = []

    class Noting(dict):
        def __getitem__(self, name):
            if name == "label":  # read once before the batch is encoded, and once when it is ranked
                number = self["sample_id"][0]
                seen.append(f"rank {number}" if f"check {number}" in seen else f"check {number}")
            return super().__getitem__(name)

    def encode_and_note(images):
        seen.append(f"encode {images[0, 0, 0, 0]}")
        return encode(images)

    result = score(encode_and_note, CLASSES, (Noting(batch_of([i], [i], first=i)) for i in range(3)))
    assert (result.sample_id.tolist(), result.correct_top1) == ([0, 1, 2], 3)
    assert seen == [
        "check 0", "encode 0", "check 1", "encode 1", "rank 0", "check 2", "encode 2", "rank 1", "rank 2",
    ]  # fmt: skip


def test_the_result_is_json_with_predictions_only_on_request():
    result = scored(batch_of([0, 1], [0, 5]))
    result = ZeroShotResult(**{**vars(result), "about": {"data": "x"}})
    made = json.loads(json.dumps(result.to_json()))
    assert made == {
        "top1": 0.5, "top5": 0.5, "correct_top1": 1, "correct_top5": 1, "count": 2, "class_count": 7,
        "per_class_count": [1, 0, 0, 0, 0, 1, 0], "per_class_correct": [1, 0, 0, 0, 0, 0, 0], "data": "x",
    }  # fmt: skip
    more = result.to_json(with_predictions=True)
    assert more["sample_id"] == [0, 1]
    assert more["predictions"] == [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4]]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, -1], "record 1 has no label"),
        ([[0, -1], [-1, -1]], "record 1 has no label"),
        ([0, 7], r"record 1 has labels \[7\] but there are 7 class names"),
        ([[0, -1], [1, -2]], r"record 1 has labels \[1, -2\]"),
    ],
)
def test_a_row_without_a_valid_label_is_named(labels, words):
    with pytest.raises(DataError, match=words):
        scored(batch_of([0, 1], labels))


def test_an_embedding_that_is_not_finite_names_the_records_but_a_masked_one_does_not():
    broken = CLASSES.copy()
    broken[2] = np.nan

    def encode_broken(images):
        return broken[images[:, 0, 0, 0]]

    with pytest.raises(NonFiniteError, match=r"embeddings of records \[20 21\]... are not finite"):
        score(encode_broken, CLASSES, [batch_of([1, 2], [1, 2], first=20)])
    assert score(encode_broken, CLASSES, [batch_of([1, 2], [1, 2], mask=[True, False])]).count == 1
