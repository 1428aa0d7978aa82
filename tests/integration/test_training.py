"""Training: the same on any number of replicas, each example once per epoch, the best epoch kept, the seed obeyed."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests import builders
from tf_finetune import evaluation, examples, features, images
from tf_finetune.errors import TrainingError
from tf_finetune.training import steps
from tf_finetune.training.loop import Standing

REPLICAS = 1e-4
REFERENCE = 1e-5
ALL_ON = {
    "augmentation": True,
    "dropout_rate": 0.3,
    "regularizers_l2": 0.01,
    "label_smoothing": 0.1,
    "class_weight": "balanced",
    "momentum": 0.9,
    "learning_rate": 0.1,
    "epochs": 2,
}


def all_variables(model) -> list:
    return [*model.backbone.variables, *model.head.variables]


def all_weights(model) -> list[np.ndarray]:
    return [variable.numpy() for variable in all_variables(model)]


def plan(count: int, batch_size: int, replicas: int = 1, epochs: int = 1, seed: int = 123) -> steps.Plan:
    return steps.Plan(count, batch_size, replicas, epochs, seed)


def seen(source: features.Source, schedule: steps.Plan) -> list[tuple[list[int], list[float]]]:
    """Returns for each step the indices of its examples, and their shares."""
    slots = list(steps.stream(source, schedule).unbatch().as_numpy_iterator())
    width = schedule.slots * schedule.replicas
    rows = []
    for first in range(0, len(slots), width):
        used = [slot for slot in slots[first : first + width] if slot[2] > 0]
        rows.append(([int(slot[3]) - 1000 for slot in used], [float(slot[2]) for slot in used]))
    return rows


def source_of(count: int) -> features.Source:
    return builders.array_source(*builders.coloured_arrays(count))


def feature_source(count: int, seed: int = 0, **coloured) -> features.Source:
    photos, labels = builders.coloured_arrays(count, seed=seed, **coloured)
    return builders.array_source(photos.mean(axis=(1, 2)), labels)


# Replicas.


@pytest.mark.parametrize(
    ("count", "batch_size", "head_only"),
    [(11, 4, False), (10, 3, False), (5, 8, False), (10, 3, True)],
    ids=["last batch of 3", "odd batches, last of 1", "fewer than a batch", "head only"],
)
def test_two_replicas_train_as_one_does(convolution_backbone, one, two, count, batch_size, head_only):
    settings = builders.plain_settings(**ALL_ON, batch_size=batch_size, train_only_top_layer=head_only)
    photos, labels = builders.coloured_arrays(count)
    labels = labels * (np.arange(count) % 2)  # Not as many of each class.
    source, validation = builders.array_source(photos, labels, settings), builders.array_source(photos, labels)
    single, expected = builders.train(convolution_backbone, source, validation, settings, one)
    mirrored, fitted = builders.train(convolution_backbone, source, validation, settings, two)
    for row, wanted in zip(fitted.history, expected.history, strict=True):
        assert row == pytest.approx(wanted, abs=REPLICAS)
    for value, wanted in zip(all_weights(mirrored), all_weights(single), strict=True):
        np.testing.assert_allclose(value, wanted, atol=REPLICAS)


def test_two_replicas_hold_the_same_weights(convolution_backbone, two):
    settings = builders.plain_settings(**ALL_ON, train_only_top_layer=False)
    model, _ = builders.train(convolution_backbone, source_of(5), None, settings, two)
    for variable in all_variables(model):
        first, second = two.experimental_local_results(variable.value)
        np.testing.assert_array_equal(first, second)


def test_a_batch_norm_backbone_trains_on_two_replicas(batch_norm_backbone, two):
    settings = builders.plain_settings(train_only_top_layer=False, epochs=8, batch_size=6)
    model, fitted = builders.train(batch_norm_backbone, source_of(13), source_of(7), settings, two)
    assert fitted.history[-1]["loss"] < 0.7 * fitted.history[0]["loss"]
    # Each example's answer is that of the weights which are exported, whichever replica gives it.
    row = fitted.history[fitted.best_epoch - 1]
    alone = builders.make_classifier(batch_norm_backbone, settings)
    for mine, theirs in zip(all_variables(alone), all_variables(model), strict=True):
        mine.assign(theirs.numpy())
    photos, labels = builders.coloured_arrays(7)
    given = steps.make_answer(alone, False)(photos).numpy()
    assert row["val_loss"] == pytest.approx(evaluation.cross_entropy(given, labels), abs=REFERENCE)


# Which examples are seen, and how they weigh.


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (7, 3), (8, 4), (5, 9), (10, 7)])
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_every_example_is_seen_once_per_epoch(count, batch_size, replicas):
    schedule = plan(count, batch_size, replicas, epochs=3)
    rows = seen(source_of(count), schedule)
    per_epoch = -(-count // batch_size)
    assert len(rows) == schedule.steps == 3 * per_epoch
    for epoch in range(3):
        of_epoch = rows[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(index for indices, _ in of_epoch for index in indices) == list(range(count))
        sizes = [len(indices) for indices, _ in of_epoch]
        assert sizes == [min(batch_size, count - first) for first in range(0, count, batch_size)]
    for indices, shares in rows:
        assert shares == pytest.approx([1 / len(indices)] * len(indices))


def test_the_order_is_another_in_each_epoch_and_for_each_seed():
    source = source_of(20)
    first, second = (indices for indices, _ in seen(source, plan(20, 20, epochs=2)))
    ((other, _),) = seen(source, plan(20, 20, seed=124))
    assert len({tuple(order) for order in (range(20), first, second, other)}) == 4


def test_the_order_does_not_depend_on_the_replicas():
    orders = [[indices for indices, _ in seen(source_of(11), plan(11, 4, replicas))] for replicas in (1, 2, 3)]
    assert orders[0] == orders[1] == orders[2]


REFERENCES = {
    "plain": {},
    "l2": {"regularizers_l2": 0.1},
    "label smoothing": {"label_smoothing": 0.2},
    "balanced": {"class_weight": "balanced"},
    "warm-up and cosine": {"schedule": "cosine", "warmup_steps_fraction": 0.5, "epochs": 2},
}


@pytest.mark.parametrize("way", REFERENCES)
def test_an_epoch_equals_gradient_descent_in_numpy(mean_backbone, way):
    settings = builders.plain_settings(batch_size=4, **REFERENCES[way])
    source = feature_source(10)  # Steps of 4, 4 and 2.
    rows = np.stack([source.load(index, None) for index in range(10)]).astype(np.float64)
    model, fitted = builders.train(mean_backbone, source, None, settings)

    kernel, bias, losses = np.zeros([3, 3]), np.zeros(3), []
    counts, smoothing = np.bincount(source.labels), settings.label_smoothing
    weights = 10 / (3 * counts) if settings.class_weight == "balanced" else np.ones(3)
    for step, (indices, _) in enumerate(seen(source, plan(10, 4, epochs=settings.epochs))):
        labels = source.labels[indices]
        exponentials = np.exp(rows[indices] @ kernel + bias)
        probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
        losses += list(-np.log(probabilities[np.arange(len(labels)), labels]))
        targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
        errors = (probabilities - targets) * weights[labels][:, None] / len(labels)
        rate = 0.5
        if way == "warm-up and cosine":  # Six steps: 0, 1/3, 2/3 of the way up, then down a half cosine.
            rate *= step / 3 if step < 3 else (1 + np.cos(np.pi * (step - 3) / 3)) / 2
        kernel -= rate * (rows[indices].T @ errors + 2 * settings.regularizers_l2 * kernel)
        bias -= rate * errors.sum(axis=0)
    np.testing.assert_allclose(builders.head_weights(model)[0], kernel, atol=REFERENCE)
    np.testing.assert_allclose(builders.head_weights(model)[1], bias, atol=REFERENCE)
    per_epoch = np.mean(np.reshape(losses, [settings.epochs, 10]), axis=1)
    assert [row["loss"] for row in fitted.history] == pytest.approx(per_epoch, abs=REFERENCE)


def test_balanced_weighs_each_class_the_same():
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    weights = steps.class_weights(labels, 3, builders.plain_settings(class_weight="balanced"))
    np.testing.assert_allclose(weights, [0.5, 1.5, 3.0])  # N / (K x size of the class)
    assert weights[labels].sum() == pytest.approx(9)
    np.testing.assert_array_equal(steps.class_weights(labels, 3, builders.plain_settings()), [1, 1, 1])


def test_cached_features_give_the_weights_that_the_backbone_gives(convolution_backbone, one):
    settings = builders.plain_settings(epochs=3, dropout_rate=0.2, optimizer="adam")
    raw = source_of(10)
    body = builders.make_classifier(convolution_backbone, settings).backbone
    cached = builders.make_passes(body, strategy=one).features(raw)
    assert cached.is_features
    assert not raw.is_features
    through, first = builders.train(convolution_backbone, raw, None, settings)
    from_cache, second = builders.train(convolution_backbone, cached, None, settings)
    for value, wanted in zip(builders.head_weights(from_cache), builders.head_weights(through), strict=True):
        np.testing.assert_allclose(value, wanted, atol=REFERENCE)
    assert second.history[-1] == pytest.approx(first.history[-1], abs=REFERENCE)


# The seed.


def test_the_same_seed_gives_the_same_bits_and_another_does_not(convolution_backbone):
    results = []
    for seed in (5, 5, 6):
        settings = builders.plain_settings(**ALL_ON, random_seed=seed, train_only_top_layer=False)
        photos, labels = builders.coloured_arrays(11)
        source = builders.array_source(photos, labels, settings)
        results.append(all_weights(builders.train(convolution_backbone, source, None, settings)[0]))
    assert [array.tobytes() for array in results[0]] == [array.tobytes() for array in results[1]]
    assert all(np.any(first != other) for first, other in zip(results[0], results[2], strict=True))


def test_the_names_of_files_and_their_order_play_no_part(mean_backbone, tmp_path):
    channel = builders.write_class_folders(tmp_path / "photos", per_class=4)
    settings = builders.plain_settings(**ALL_ON, batch_size=5)

    def trained() -> list[bytes]:
        part = examples.folders.read(channel)
        load = images.loader(part, images.Preprocessing(16, (0.0, 1.0), "bilinear"), settings)
        model, _ = builders.train(mean_backbone, features.source(part, load), None, settings)
        return [array.tobytes() for array in builders.head_weights(model)]

    before = trained()
    for folder in channel.iterdir():
        (folder / "nested").mkdir()
        for number, file in enumerate(sorted(folder.glob("*.png"), reverse=True)):
            file.rename(folder / ("nested" if number % 2 else ".") / f"a{number}.png")
    assert trained() == before


# What goes wrong.


@pytest.mark.parametrize(("poison", "shown"), [(np.nan, "nan"), (np.inf, "(nan|inf)")])
def test_a_loss_that_is_no_number_names_epoch_and_step(mean_backbone, poison, shown):
    settings = builders.plain_settings(batch_size=1, learning_rate=0.25, epochs=3)
    rows = np.ones([50, 3], np.float32)
    rows[17] = poison
    source = builders.array_source(rows, np.arange(50) % 3)
    place = 1 + [indices for indices, _ in seen(source, plan(50, 1))].index([17])
    expected = rf"became {shown} in epoch 1, step {place}\. Lower learning_rate \(now 0.25"
    with pytest.raises(TrainingError, match=expected):
        builders.train(mean_backbone, source, None, settings)


def test_weights_that_explode_stop_the_job(affine_backbone):
    settings = builders.plain_settings(learning_rate=1.0, epochs=50, train_only_top_layer=False, batch_size=9)
    photos, labels = builders.coloured_arrays(9)  # Squared in the second epoch, 1e25 is beyond float32.
    with pytest.raises(TrainingError, match=r"became (nan|inf) in epoch 2, step 1\. Lower learning_rate") as raised:
        builders.train(affine_backbone, builders.array_source(photos * 1e25, labels), None, settings)
    assert "train_only_top_layer=True" in str(raised.value)


# The best epoch.


def contrary() -> features.Source:
    """Returns validation examples whose labels are wrong: the more is learnt, the worse they are answered."""
    source = feature_source(6)
    return dataclasses.replace(source, labels=(source.labels + 1) % 3)


def test_early_stopping_stops_and_gives_back_the_best_epoch(mean_backbone):
    given = {"early_stopping_patience": 2, "batch_size": 12}
    settings = builders.plain_settings(epochs=10, early_stopping=True, **given)
    model, fitted = builders.train(mean_backbone, feature_source(12), contrary(), settings)
    assert ([row["epoch"] for row in fitted.history], fitted.best_epoch) == ([1, 2, 3], 1)
    after_one, _ = builders.train(
        mean_backbone, feature_source(12), None, builders.plain_settings(epochs=1, batch_size=12)
    )
    for value, wanted in zip(builders.head_weights(model), builders.head_weights(after_one), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_a_trained_backbones_best_epoch_is_given_back_whole(batch_norm_backbone):
    given = {"train_only_top_layer": False, "batch_size": 12, "learning_rate": 0.9}
    photos, labels = builders.coloured_arrays(6)
    wrong = builders.array_source(photos, (labels + 1) % 3)
    settings = builders.plain_settings(epochs=4, **given)
    model, fitted = builders.train(batch_norm_backbone, source_of(12), wrong, settings)
    best = fitted.best_epoch
    assert best < 4
    again, _ = builders.train(batch_norm_backbone, source_of(12), None, builders.plain_settings(epochs=best, **given))
    for value, wanted in zip(all_weights(model), all_weights(again), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_without_early_stopping_all_epochs_are_trained_and_the_best_is_kept(mean_backbone):
    settings = builders.plain_settings(epochs=5, batch_size=12)
    _, fitted = builders.train(mean_backbone, feature_source(12), contrary(), settings)
    assert (len(fitted.history), fitted.best_epoch) == (5, 1)


def test_without_validation_the_last_epoch_is_kept(mean_backbone):
    settings = builders.plain_settings(epochs=4, early_stopping=True, early_stopping_patience=1)
    model, fitted = builders.train(mean_backbone, feature_source(12), None, settings)
    assert (len(fitted.history), fitted.best_epoch) == (4, 4)
    assert {row["val_loss"] for row in fitted.history} == {row["val_accuracy"] for row in fitted.history} == {None}
    shorter, _ = builders.train(mean_backbone, feature_source(12), None, builders.plain_settings(epochs=3))
    assert np.abs(builders.head_weights(model)[0] - builders.head_weights(shorter)[0]).max() > 0.01


def standing(scores, losses=None, min_delta=0.0) -> Standing:
    state = Standing()
    for epoch, score in enumerate(scores, start=1):
        state = state.followed_by(score, losses[epoch - 1] if losses else 1.0, epoch, min_delta)
    return state


def test_the_best_epoch_is_that_of_the_best_score_then_the_lowest_loss():
    assert standing([0.5, 0.8, 0.7]).epoch == 2
    assert standing([0.8, 0.8, 0.8], [0.3, 0.2, 0.25]).epoch == 2
    assert standing([0.8, 0.8], [0.3, 0.3]).epoch == 1
    assert standing([0.8, 0.9], [0.1, 9.0]).epoch == 2


def test_patience_counts_from_the_last_change_beyond_min_delta():
    assert standing([0.5, 0.6, 0.6]).improved_in == 2
    assert standing([0.50, 0.55, 0.58], min_delta=0.1).improved_in == 1
    assert standing([0.50, 0.55, 0.65], min_delta=0.1).improved_in == 3  # Small steps add up.
    assert standing([0.50, 0.55, 0.58], min_delta=0.1).epoch == 3  # The best is kept none the less.


def test_progress_is_told_to_the_last_step(mean_backbone):
    told = []
    settings = builders.plain_settings(epochs=2, batch_size=1)
    builders.train(mean_backbone, feature_source(25), None, settings, progress=lambda *news: told.append(news))
    assert told == [("training", done, 50) for done in (20, 25, 45, 50)]


def test_a_photo_that_is_read_in_training_is_that_of_its_label(tmp_path, mean_backbone):
    """Labels, keys and photos come from one permuted index: flat colours are learnt without an error."""
    channel = builders.write_class_folders(tmp_path / "photos", per_class=5)
    part = examples.folders.read(channel)
    source = features.source(part, images.loader(part, images.Preprocessing(8, (0.0, 1.0), "nearest")))
    for photo, label, _, key, _ in steps.stream(source, plan(15, 15)).unbatch().as_numpy_iterator():
        name = part.class_names[label]
        np.testing.assert_allclose(photo[4, 4] * 255, builders.COLOURS[name], atol=1e-3)
        (item,) = [item for item in part.items if int(item.digest[:15], 16) == key]
        assert np.asarray(Image.open(item.content))[4, 4].tolist() == list(builders.COLOURS[name])


def test_a_constant_rate_is_reported_as_it_was_given(mean_backbone):
    settings = builders.plain_settings(learning_rate=0.3, epochs=2)
    _, fitted = builders.train(mean_backbone, feature_source(4), None, settings)
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx([0.3, 0.3])


def test_two_replicas_share_the_stream_out(two):
    schedule, source = plan(7, 4, 2), source_of(7)
    distributed = two.distribute_datasets_from_function(lambda context: steps.stream(source, schedule))
    keys = []
    for _, _, shares, given, _ in distributed:
        for share, key in zip(*map(two.experimental_local_results, (shares, given)), strict=True):
            keys += list(key.numpy()[share.numpy() > 0] - 1000)
    assert sorted(keys) == list(range(7))
