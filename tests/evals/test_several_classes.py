"""Images with several right classes, as in ObjectNet and ReaL: scores as the code that published them computes them."""

import numpy as np

from clipa_eqx.evals.counting import score

CLASSES, ROWS = 12, 200
GROUPS = ((0, 5), (1,), (2, 3, 11), (4,), (6, 7), (8,), (9,), (10,))  # each class is in one group, as in ObjectNet


def unit(rng, rows):
    vectors = rng.normal(size=(rows, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def scored(images, classes, labels):
    width = max(map(len, labels))
    padded = np.array([[*one, *[-1] * (width - len(one))] for one in labels])
    batch = {
        "image": np.zeros((len(images), 1, 1, 3), np.uint8),
        "label": padded,
        "mask": np.ones(len(images), bool),
        "sample_id": np.arange(len(images)),
    }
    return score(lambda _: images, classes, [batch])


def test_objectnet_is_scored_as_by_the_best_class_of_each_group():
    """wise-ft takes for each of ObjectNet's classes the largest logit of its classes of ImageNet."""
    rng = np.random.default_rng(0)
    images, classes, right = unit(rng, ROWS), unit(rng, CLASSES), rng.integers(0, len(GROUPS), ROWS)
    logits = images @ classes.T
    projected = np.stack([logits[:, list(group)].max(axis=1) for group in GROUPS], axis=1)
    expected = int((projected.argmax(axis=1) == right).sum())
    result = scored(images, classes, [GROUPS[group] for group in right])
    assert 0 < expected < ROWS
    assert result.correct_top1 == expected


def test_real_counts_any_of_the_labels():
    """ReaL's published code counts an image as right if its likeliest class is among its labels."""
    rng = np.random.default_rng(1)
    images, classes = unit(rng, ROWS), unit(rng, CLASSES)
    labels = [tuple(rng.choice(CLASSES, rng.integers(1, 4), replace=False).tolist()) for _ in range(ROWS)]
    predictions = (images @ classes.T).argmax(axis=1)
    expected = sum(int(one) in found for one, found in zip(predictions, labels, strict=True))
    assert scored(images, classes, labels).correct_top1 == expected
