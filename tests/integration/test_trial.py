"""The trial of precisions before a long fine-tuning: it leaves no trace, and noise decides nothing."""

from __future__ import annotations

import itertools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tf_finetune import devices
from tf_finetune.training import trial

OPTION = devices.REWRITERS["bfloat16"]
BOTH = ("float32", "bfloat16")


def slow_step(variable: keras.Variable, seconds: dict[str, float], seen: list[tuple[str, int]]):
    """Returns a step that takes as long as its precision, adds 1 to a variable and notes its batch."""

    def step(batch: int) -> list[float]:
        in_16_bits = tf.config.optimizer.get_experimental_options().get(OPTION, False)
        precision = "bfloat16" if in_16_bits else "float32"
        time.sleep(seconds[precision])
        variable.assign_add(1.0)
        seen.append((precision, batch))
        return [0.0]

    return step


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(0.2, 0.02, "bfloat16"), (0.02, 0.2, "float32"), (0.2, 0.198, "float32")],
    ids=["16 bits are faster", "16 bits are slower", "a difference that may be noise"],
)
def test_the_clearly_faster_precision_is_taken(float32, bfloat16, chosen):
    variable, seen = keras.Variable(np.float32(5.0)), []
    step = slow_step(variable, {"float32": float32, "bfloat16": bfloat16}, seen)
    precision, batches = trial.fastest(step, iter([7, 8, 9]), [variable], BOTH)
    assert precision == chosen
    assert float(variable.value) == 5.0
    assert list(batches) == [7, 8, 9]
    assert {batch for _, batch in seen} == {7}
    assert {tried for tried, _ in seen} == set(BOTH)
    assert not tf.config.optimizer.get_experimental_options().get(OPTION, False)


def test_one_precision_needs_no_trial():
    precision, batches = trial.fastest(None, itertools.repeat(1, 2), [], ("bfloat16",))
    assert (precision, list(batches)) == ("bfloat16", [1, 1])


def test_a_training_after_a_trial_gives_the_same_weights_as_one_without(convolution_backbone, monkeypatch):
    """The trial puts back weights, moments and the count of steps, and the first batch is trained on."""
    settings = builders.plain_settings(optimizer="adam", learning_rate=0.01, epochs=2, train_only_top_layer=False)
    source = builders.array_source(*builders.coloured_arrays(10))
    plain, _ = builders.train(convolution_backbone, source, None, settings)
    monkeypatch.setattr(trial, "MARGIN", 1e9)  # Whatever the clock says.
    told = []
    tried, fitted = builders.train(convolution_backbone, source, None, settings, precisions=BOTH, remember=told.append)
    assert told == ["float32"]
    assert fitted.precision == "float32"
    for one, other in zip(tried.backbone.variables, plain.backbone.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    for one, other in zip(builders.head_weights(tried), builders.head_weights(plain), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.skipif(devices.sixteen_bit() != "bfloat16", reason="this CPU does not compute in bfloat16")
def test_steps_are_computed_in_the_precision_that_is_named(convolution_backbone):
    settings = builders.plain_settings(learning_rate=0.1, epochs=2, train_only_top_layer=False)
    source = builders.array_source(*builders.coloured_arrays(12, size=16))
    weights = []
    for precision in BOTH:
        model, fitted = builders.train(convolution_backbone, source, None, settings, precisions=(precision,))
        assert fitted.precision == precision
        weights.append(builders.head_weights(model)[0])
    difference = np.abs(weights[0] - weights[1]).max()
    assert 0 < difference < 0.05
