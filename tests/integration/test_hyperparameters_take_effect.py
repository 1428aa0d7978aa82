"""Each hyperparameter of training does what it says; the photos' are in test_images, replicas in test_training."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tf_finetune import classifier, devices, evaluation, features, training
from tf_finetune.hyperparameters import choices
from tf_finetune.training import optimizers, steps

CLOSE = 1e-6
EQUAL = 1e-5

# What Keras calls the optimizers, and the settings that they use with values that are nobody's defaults.
KERAS = {
    "adam": (keras.optimizers.Adam, {"beta_1": 0.7, "beta_2": 0.8, "epsilon": 0.01}),
    "adamw": (
        lambda *rate, **given: keras.optimizers.AdamW(*rate, weight_decay=0.01, **given),
        {"beta_1": 0.7, "beta_2": 0.8, "epsilon": 0.01},
    ),
    "sgd": (keras.optimizers.SGD, {"momentum": 0.6}),
    "nesterov": (lambda *rate, **given: keras.optimizers.SGD(*rate, nesterov=True, **given), {"momentum": 0.6}),
    "rmsprop": (keras.optimizers.RMSprop, {"rho": 0.7, "momentum": 0.6, "epsilon": 0.01}),
    "adagrad": (keras.optimizers.Adagrad, {"initial_accumulator_value": 0.3, "epsilon": 0.01}),
    "adadelta": (keras.optimizers.Adadelta, {"rho": 0.7, "epsilon": 0.01}),
}
SETTINGS_USED = [(name, setting) for name, (_, used) in KERAS.items() for setting in used]


def feature_rows(count: int, seed: int = 0, num_classes: int = 3) -> features.Source:
    photos, labels = builders.coloured_arrays(count, num_classes, seed=seed)
    return builders.array_source(photos.mean(axis=(1, 2)), labels)


def rows_of(source: features.Source) -> np.ndarray:
    return np.stack([source.load(index, None).numpy() for index in range(len(source))])


def after_steps(optimizer: keras.optimizers.Optimizer) -> np.ndarray:
    """Returns two weights after three steps along given gradients."""
    variable = keras.Variable(np.array([1.0, -2.0], np.float32))
    for gradient in ([0.5, -0.1], [0.3, 0.4], [-0.2, 0.6]):
        optimizer.apply([tf.constant(gradient)], [variable])
    return variable.numpy()


# Optimizers.


def test_every_optimizer_of_the_table_is_tested():
    assert set(choices("optimizer")) == {*KERAS, "auto"}


def test_auto_trains_a_whole_network_by_adam():
    used = KERAS["adam"][1]
    made = optimizers.make(builders.plain_settings(optimizer="auto", **used), 0.1, "image")
    assert type(made) is keras.optimizers.Adam
    np.testing.assert_array_equal(after_steps(made), after_steps(keras.optimizers.Adam(0.1, **used)))


@pytest.mark.parametrize("name", KERAS)
def test_each_optimizer_is_keras_own_with_these_settings(name):
    kind, used = KERAS[name]
    settings = builders.plain_settings(optimizer=name, learning_rate=0.1, **used)
    np.testing.assert_array_equal(after_steps(optimizers.make(settings, 0.1, "image")), after_steps(kind(0.1, **used)))


@pytest.mark.parametrize(("name", "setting"), SETTINGS_USED)
def test_each_setting_of_an_optimizer_changes_its_steps(name, setting):
    used = KERAS[name][1]
    results = []
    for value in (used[setting], used[setting] / 2):
        settings = builders.plain_settings(optimizer=name, learning_rate=0.1, **{**used, setting: value})
        results.append(after_steps(optimizers.make(settings, 0.1, "image")))
    assert np.abs(results[0] - results[1]).min() > 1e-5


@pytest.mark.parametrize("name", KERAS)
def test_training_takes_the_steps_of_its_optimizer(mean_backbone, name):
    kind, used = KERAS[name]
    settings = builders.plain_settings(optimizer=name, learning_rate=0.1, epochs=3, batch_size=6, **used)
    source = feature_rows(6)
    model, _ = builders.train(mean_backbone, source, None, settings)

    reference = keras.layers.Dense(3, kernel_initializer="zeros")
    reference.build([None, 3])
    optimizer, rows = kind(0.1, **used), tf.constant(rows_of(source))
    for _ in range(3):
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(source.labels, reference(rows), from_logits=True)
            loss = tf.reduce_mean(losses)
        optimizer.apply(tape.gradient(loss, [v.value for v in reference.variables]), reference.variables)
    for value, wanted in zip(builders.head_weights(model), reference.variables, strict=True):
        np.testing.assert_allclose(value, wanted.numpy(), atol=EQUAL)


# The learning rate.


def rates(count: int, **given) -> np.ndarray:
    schedule = optimizers.learning_rates(builders.plain_settings(**given), count)
    return np.array([float(schedule(step)) if callable(schedule) else schedule for step in range(count + 1)])


def test_a_constant_rate_stays():
    assert rates(5, learning_rate=0.25).tolist() == [0.25] * 6


def test_cosine_falls_from_the_rate_to_zero_with_the_last_step():
    given = rates(10, learning_rate=0.5, schedule="cosine")
    np.testing.assert_allclose(given, 0.25 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=CLOSE)
    assert given[10] == pytest.approx(0, abs=CLOSE)


@pytest.mark.parametrize("steps_in_all", [2, 5, 40])
def test_cosine_decays_on_few_steps_too(steps_in_all):
    """Both Model Makers stretch it over 10,000 x 256 examples at least, so that on small data it never falls."""
    given = rates(steps_in_all, learning_rate=1.0, schedule="cosine")
    assert np.all(np.diff(given) < 0)
    assert given[-1] == pytest.approx(0, abs=CLOSE)


def test_the_warm_up_rises_from_zero_over_its_share_of_the_steps():
    given = rates(20, learning_rate=0.5, warmup_steps_fraction=0.25)
    np.testing.assert_allclose(given[:6], np.linspace(0, 0.5, 6), atol=CLOSE)
    np.testing.assert_allclose(given[5:], 0.5, atol=CLOSE)


def test_after_the_warm_up_the_cosine_takes_all_the_rest():
    given = rates(20, learning_rate=0.5, warmup_steps_fraction=0.25, schedule="cosine")
    np.testing.assert_allclose(given[:6], np.linspace(0, 0.5, 6), atol=CLOSE)
    np.testing.assert_allclose(given[5:], 0.25 * (1 + np.cos(np.pi * np.arange(16) / 15)), atol=CLOSE)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_over_all_steps_rises_to_the_end(schedule):
    given = rates(4, learning_rate=0.4, warmup_steps_fraction=1.0, schedule=schedule)
    np.testing.assert_allclose(given, [0, 0.1, 0.2, 0.3, 0.4], atol=CLOSE)


def test_the_history_tells_the_rate_of_each_epochs_last_step(mean_backbone):
    settings = builders.plain_settings(learning_rate=0.5, schedule="cosine", epochs=4, batch_size=2)
    _, fitted = builders.train(mean_backbone, feature_rows(4), None, settings)
    expected = 0.25 * (1 + np.cos(np.pi * np.array([1, 3, 5, 7]) / 8))
    assert [row["learning_rate"] for row in fitted.history] == pytest.approx(expected, abs=CLOSE)


# Label smoothing, L2, dropout.


def test_label_smoothing_is_its_formula():
    logits = np.random.default_rng(0).normal(size=[6, 4]).astype(np.float32)
    labels = np.array([0, 1, 2, 3, 0, 1])
    targets = np.full([6, 4], 0.3 / 4)
    targets[np.arange(6), labels] = 1 - 0.3 + 0.3 / 4
    logarithms = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    given = classifier.cross_entropy(tf.constant(logits), tf.constant(labels), 4, 0.3)
    np.testing.assert_allclose(given, -(targets * logarithms).sum(axis=1), rtol=EQUAL)
    smoothed = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3, reduction="none")
    np.testing.assert_allclose(given, smoothed(np.eye(4)[labels], logits), rtol=EQUAL)


def test_the_reported_loss_is_without_smoothing_and_penalties(mean_backbone):
    settings = builders.plain_settings(label_smoothing=0.5, regularizers_l2=1.0, learning_rate=0.0, batch_size=6)
    _, fitted = builders.train(mean_backbone, feature_rows(6), feature_rows(6), settings)
    assert (fitted.history[0]["loss"], fitted.history[0]["val_loss"]) == pytest.approx([np.log(3)] * 2, rel=EQUAL)


def test_l2_is_keras_own_on_the_heads_kernel_alone(mean_backbone, one):
    """With equal features and even labels only the penalty pulls: one step of it is that of keras.regularizers.L2."""
    settings = builders.plain_settings(regularizers_l2=0.25, learning_rate=0.5, batch_size=3)
    model = builders.make_classifier(mean_backbone, settings)
    start = np.full([3, 3], 2.0, np.float32)
    model.head.kernel.assign(start)
    model.head.bias.assign([1.0, 1.0, 1.0])
    kernel = tf.Variable(start)
    with tf.GradientTape() as tape:
        penalty = keras.regularizers.L2(0.25)(kernel)
    source = builders.array_source(np.zeros([3, 3]), [0, 1, 2])
    training.fit(model, source, None, settings, one)
    value, bias = builders.head_weights(model)
    np.testing.assert_allclose(value, start - 0.5 * tape.gradient(penalty, kernel), atol=CLOSE)
    np.testing.assert_allclose(value, start * (1 - 0.5 * 2 * 0.25), atol=CLOSE)
    np.testing.assert_allclose(bias, 1.0, atol=CLOSE)


SEED = tf.constant([3, 4])


def dropped(rate: float, keys, size: int = 1000, seed: tf.Tensor = SEED) -> np.ndarray:
    return classifier.dropout(tf.ones([len(keys), size]), rate, tf.constant(keys, tf.int64), seed).numpy()


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_dropout_drops_its_share_and_scales_the_rest(rate):
    result = dropped(rate, range(20))
    assert np.mean(result == 0) == pytest.approx(rate, abs=0.02)
    np.testing.assert_allclose(result[result > 0], 1 / (1 - rate), rtol=EQUAL)


def test_dropout_of_nothing_and_of_everything():
    assert dropped(0.0, [1, 2]).min() == 1.0
    assert dropped(1.0, [1, 2]).max() == 0.0


def test_dropout_depends_on_the_key_and_not_on_the_place():
    whole, turned, alone = dropped(0.5, [7, 8, 9]), dropped(0.5, [9, 8, 7]), dropped(0.5, [8])
    np.testing.assert_array_equal(whole, turned[::-1])
    np.testing.assert_array_equal(whole[1], alone[0])
    assert np.any(whole[0] != whole[1])
    assert np.any(whole != dropped(0.5, [7, 8, 9], seed=tf.constant([3, 5])))


def test_dropout_is_drawn_anew_in_each_epoch_and_for_each_seed():
    drawn = {
        tuple(dropped(0.5, [1], 50, steps._seed(seed, "dropout", tf.constant(epoch)))[0])
        for seed in (1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(drawn) == 6


def test_dropout_acts_in_training_only(mean_backbone):
    """Everything dropped, the kernel cannot learn; the answers still come from all features."""
    settings = builders.plain_settings(dropout_rate=1.0, epochs=2, batch_size=6)
    model, _ = builders.train(mean_backbone, feature_rows(6), None, settings)
    np.testing.assert_array_equal(builders.head_weights(model)[0], 0)
    model.head.kernel.assign(np.eye(3))
    given = steps.make_answer(model, True)(tf.constant([[1.0, 2.0, 3.0]])).numpy()
    np.testing.assert_allclose(given, np.exp([[1.0, 2.0, 3.0]]) / np.exp([1.0, 2.0, 3.0]).sum(), rtol=1e-3)


def test_each_rate_of_dropout_changes_the_weights(mean_backbone):
    results = []
    for rate in (0.0, 0.2, 0.5):
        settings = builders.plain_settings(dropout_rate=rate, epochs=2)
        results.append(builders.head_weights(builders.train(mean_backbone, feature_rows(6), None, settings)[0])[0])
    assert np.abs(results[0] - results[1]).max() > 1e-3
    assert np.abs(results[1] - results[2]).max() > 1e-3


# Two classes.


def test_binary_mode_has_one_unit_and_two_probabilities(mean_backbone):
    settings = builders.plain_settings(binary_mode=True, epochs=20, batch_size=8)
    source = feature_rows(8, num_classes=2)
    model, fitted = builders.train(mean_backbone, source, None, settings, num_classes=2)
    kernel, bias = builders.head_weights(model)
    assert (model.head.units, kernel.shape) == (1, (3, 1))
    positive = 1 / (1 + np.exp(-(rows_of(source) @ kernel + bias)))
    given = steps.make_answer(model, True)(rows_of(source)).numpy()
    np.testing.assert_allclose(given, np.concatenate([1 - positive, positive], axis=1), atol=CLOSE)
    assert np.mean(given.argmax(axis=1) == source.labels) == fitted.history[-1]["accuracy"] == 1.0


def test_the_binary_loss_is_that_of_two_classes():
    logits, labels = tf.constant([[2.0], [-1.0], [0.5]]), tf.constant([1, 0, 0])
    as_two = tf.concat([tf.zeros_like(logits), logits], axis=1)
    for smoothing in (0.0, 0.2):
        given = classifier.cross_entropy(logits, labels, 2, smoothing)
        np.testing.assert_allclose(given, classifier.cross_entropy(as_two, labels, 2, smoothing), rtol=EQUAL)


METRICS = ("accuracy", "precision", "recall", "auc", "prc")


@pytest.fixture(scope="module")
def epochs_of_weights(mean_backbone) -> list[list[np.ndarray]]:
    """The weights after each epoch of an unsteady training."""
    weights: list[list[np.ndarray]] = []

    def watch(stage: str, done: int, total: int) -> None:
        if done % 8 == 0:
            weights.append(builders.head_weights(model))

    settings = unsteady()
    devices.make_deterministic(settings.random_seed)
    model = builders.make_classifier(mean_backbone, settings, num_classes=2)
    training.fit(model, unsteady_source(24, 0), None, settings, devices.strategy(1), watch)
    assert len(weights) == settings.epochs
    return weights


def unsteady(**given):
    plain = {"binary_mode": True, "epochs": 12, "batch_size": 3, "learning_rate": 1.0, "momentum": 0.8}
    return builders.plain_settings(**plain, **given)


def unsteady_source(count: int, seed: int) -> features.Source:
    """Returns features that hardly tell the two classes apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    return builders.array_source(generator.normal(0, 1, [count, 3]) + 0.3 * labels[:, None], labels)


def measured(metric: str, positive: np.ndarray, labels: np.ndarray) -> float:
    """Returns a metric as plain NumPy counts it."""
    said = positive > 0.5
    if metric == "accuracy":
        return np.mean(said == labels)
    if metric == "precision":
        return labels[said].mean() if said.any() else 0.0
    if metric == "recall":
        return said[labels == 1].mean()
    if metric == "auc":
        return np.mean(positive[labels == 1][:, None] > positive[labels == 0])
    ranked = labels[np.argsort(-positive)]
    return np.mean((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked == 1])


def test_eval_metric_picks_the_epoch(mean_backbone, epochs_of_weights):
    validation = unsteady_source(30, 40)
    rows, labels = rows_of(validation), validation.labels
    positives = [1 / (1 + np.exp(-(rows @ kernel + bias)))[:, 0] for kernel, bias in epochs_of_weights]
    losses = [-np.log(np.where(labels == 1, positive, 1 - positive)).mean() for positive in positives]
    picked = {}
    for metric in METRICS:
        scores = [measured(metric, positive, labels) for positive in positives]
        best = max(range(12), key=lambda epoch, scores=scores: (round(scores[epoch], 9), -losses[epoch]))
        settings = unsteady(eval_metric=metric)
        model, fitted = builders.train(mean_backbone, unsteady_source(24, 0), validation, settings, num_classes=2)
        assert fitted.best_epoch == best + 1, metric
        for value, wanted in zip(builders.head_weights(model), epochs_of_weights[best], strict=True):
            np.testing.assert_array_equal(value, wanted)
        picked[metric] = best
    assert len(set(picked.values())) >= 4  # The metrics do not agree, so the choice matters.


def test_eval_metric_decides_on_early_stopping(mean_backbone):
    lengths = set()
    for metric in METRICS:
        settings = unsteady(eval_metric=metric, early_stopping=True, early_stopping_patience=2)
        _, fitted = builders.train(
            mean_backbone, unsteady_source(24, 0), unsteady_source(30, 40), settings, num_classes=2
        )
        lengths.add(len(fitted.history))
    assert len(lengths) > 1


# The rest.


def test_early_stopping_takes_its_patience_and_its_least_change(mean_backbone):
    """Accuracy is 1.0 from the second epoch at the latest, so no epoch after that improves on it."""
    lengths = {}
    for patience, min_delta in ((1, 0.0), (3, 0.0), (1, 1.0)):
        settings = builders.plain_settings(
            early_stopping=True,
            early_stopping_patience=patience,
            early_stopping_min_delta=min_delta,
            epochs=10,
            batch_size=6,
            learning_rate=1.0,
        )
        _, fitted = builders.train(mean_backbone, feature_rows(6), feature_rows(9, seed=1), settings)
        improved = 1
        for row in fitted.history:
            if row["val_accuracy"] - min_delta > fitted.history[improved - 1]["val_accuracy"]:
                improved = row["epoch"]
        assert len(fitted.history) == min(10, improved + patience)
        lengths[patience, min_delta] = len(fitted.history)
    assert lengths[1, 1.0] == 2
    assert lengths[3, 0.0] == lengths[1, 0.0] + 2


def test_batch_size_and_epochs_give_the_number_of_steps(mean_backbone):
    for epochs, batch_size in ((3, 4), (2, 5), (1, 50)):
        told = []
        settings = builders.plain_settings(epochs=epochs, batch_size=batch_size)
        _, fitted = builders.train(
            mean_backbone, feature_rows(9), None, settings, progress=lambda *news, told=told: told.append(news)
        )
        assert len(fitted.history) == epochs
        assert told[-1] == ("training", epochs * -(-9 // batch_size), epochs * -(-9 // batch_size))


@pytest.mark.parametrize("head_only", [True, False])
def test_train_only_top_layer_says_what_is_trained(convolution_backbone, head_only):
    photos, labels = builders.coloured_arrays(6)
    settings = builders.plain_settings(train_only_top_layer=head_only, epochs=2)
    before = [v.numpy() for v in builders.make_classifier(convolution_backbone, settings).backbone.variables]
    model, _ = builders.train(convolution_backbone, builders.array_source(photos, labels), None, settings)
    moved = [np.any(v.numpy() != old) for v, old in zip(model.backbone.variables, before, strict=True)]
    assert moved == [not head_only] * 2
    assert np.any(builders.head_weights(model)[0] != 0)


def test_a_new_head_answers_evenly(mean_backbone):
    model = builders.make_classifier(mean_backbone, builders.plain_settings(), num_classes=4)
    given = steps.make_answer(model, True)(tf.random.stateless_uniform([5, 3], [1, 2])).numpy()
    np.testing.assert_allclose(given, 0.25)
    assert evaluation.cross_entropy(given, np.zeros(5, int)) == pytest.approx(np.log(4))
