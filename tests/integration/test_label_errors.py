"""Likely label errors: exchanged labels come first, and what confident learning says is what is said."""

from __future__ import annotations

import numpy as np
import pytest

from tf_finetune.evaluation import label_errors
from tf_finetune.training import solver


def exchanged(labels: np.ndarray, share: float, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels of which a share was exchanged for another class, and the indices of those."""
    generator = np.random.default_rng(seed)
    moved = generator.choice(len(labels), round(share * len(labels)), replace=False)
    given = labels.copy()
    given[moved] = (given[moved] + generator.integers(1, num_classes, len(moved))) % num_classes
    return given, moved


@pytest.mark.parametrize("seed", range(5))
def test_exchanged_labels_come_first_and_their_classes_are_told(seed):
    generator = np.random.default_rng(seed)
    truth = np.arange(400) % 4
    features = (generator.normal(0, 1, [4, 16])[truth] + generator.normal(0, 0.7, [400, 16])).astype(np.float32)
    labels, moved = exchanged(truth, 0.05, 4, seed)
    solved = solver.solve(features, labels, 4)
    ranking = label_errors.rank(solved.held_out, labels)
    first = ranking.indices[:20]
    found = np.isin(first, moved)
    assert found.mean() >= 0.75
    assert (ranking.likely[:20] == truth[first])[found].mean() > 0.9
    assert 8 <= ranking.suspects <= 40


def test_the_least_probable_label_comes_first_and_the_likeliest_other_class_is_told():
    probabilities = np.array([[0.3, 0.5, 0.2], [0.6, 0.1, 0.3], [0.1, 0.3, 0.6], [0.2, 0.2, 0.6]], np.float32)
    ranking = label_errors.rank(probabilities, np.array([0, 0, 1, 1]))
    assert ranking.indices.tolist() == [3, 2, 0, 1]  # Of equal ones the one that is more certain of another class.
    assert ranking.likely.tolist() == [2, 2, 1, 2]


def test_a_suspect_is_taken_for_another_class_as_confidently_as_its_own_examples_are():
    """Class 1 is seldom certain: 0.5 is much for it, and 0.7 is little for class 0.

    Thresholds: (0.95 + 0.85 + 0.5) / 3 = 0.7667 and (0.4 + 0.3 + 0.1 + 0.65) / 4 = 0.3625.
    """
    first = np.array([0.95, 0.85, 0.5, 0.6, 0.7, 0.9, 0.35])
    labels = np.array([0, 0, 0, 1, 1, 1, 1])
    suspects = {2, 5}
    probabilities = np.stack([first, 1 - first], axis=1)
    assert label_errors.rank(probabilities, labels).suspects == len(suspects)


def test_an_example_that_is_confidently_its_own_class_is_no_suspect():
    """The other class's threshold is low enough for it too, but its own is passed by more."""
    probabilities = np.array([[0.7, 0.3], [0.7, 0.3], [0.8, 0.2]])
    assert label_errors.rank(probabilities, np.array([0, 0, 1])).suspects == 1


def test_rows_without_probabilities_are_left_out():
    probabilities = np.array([[0.9, 0.1], [np.nan, np.nan], [0.2, 0.8], [0.9, 0.1]], np.float32)
    ranking = label_errors.rank(probabilities, np.array([0, 0, 1, 1]))
    assert sorted(ranking.indices) == [0, 2, 3]
    assert ranking.indices[0] == 3
    nothing = label_errors.rank(probabilities[1:2], np.array([0]))
    assert (nothing.indices.tolist(), nothing.likely.tolist(), nothing.suspects) == ([], [], 0)


def test_a_class_without_examples_makes_no_suspects(recwarn):
    probabilities = np.array([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4], [0.1, 0.3, 0.6]], np.float32)
    ranking = label_errors.rank(probabilities, np.array([0, 1, 1]))
    assert ranking.suspects == 0
    assert not recwarn.list


@pytest.mark.soak
def test_half_of_the_exchanged_labels_of_real_photos_are_found(real_data):
    """In the first 5 %, over five seeds, by features of the default backbone."""
    import tensorflow as tf

    from tf_finetune import examples, packaged, storage

    photos = examples.read("image", real_data / "images" / "flowers-400")
    backbone = tf.saved_model.load(str(packaged.make("efficientnet-lite0", storage.cache_folder())))

    def read(content: str) -> tf.Tensor:
        pixels = tf.io.decode_jpeg(tf.io.read_file(str(content)), channels=3, ratio=2)
        return tf.image.resize(pixels, [224, 224]) / 255

    features = np.concatenate(
        [
            backbone(tf.stack([read(item.content) for item in photos.items[first : first + 50]]))
            for first in range(0, 400, 50)
        ]
    )
    found = []
    for seed in range(5):
        labels, moved = exchanged(np.array(photos.labels), 0.05, 5, seed)
        solved = solver.solve(features, labels, 5)
        found.append(np.isin(label_errors.rank(solved.held_out, labels).indices[:20], moved).mean())
    assert min(found) >= 0.5, found
