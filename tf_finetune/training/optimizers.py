"""The optimizers and the learning rate over the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tf_finetune.hyperparameters import Hyperparameters


def learning_rates(settings: Hyperparameters, steps: int) -> Any:
    """Returns the learning rate: a number, or a Keras schedule of the step when it changes.

    It rises from 0 over the first warmup_steps_fraction of all steps; then it stays, or falls to 0 on a half cosine
    that ends with the last step.
    """
    warmup = round(settings.warmup_steps_fraction * steps)
    rate = settings.learning_rate
    schedules = keras.optimizers.schedules
    if settings.schedule == "cosine":
        rest = max(1, steps - warmup)
        if warmup:
            return schedules.CosineDecay(0.0, rest, warmup_target=rate, warmup_steps=warmup)
        return schedules.CosineDecay(rate, rest)
    return schedules.PolynomialDecay(0.0, warmup, end_learning_rate=rate) if warmup else rate


def make(settings: Hyperparameters, rates: Any) -> keras.optimizers.Optimizer:
    """Returns the optimizer that `settings.optimizer` names, with the settings that it uses."""
    kinds: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "adam": lambda: keras.optimizers.Adam(rates, settings.beta_1, settings.beta_2, settings.epsilon),
        "sgd": lambda: keras.optimizers.SGD(rates, settings.momentum),
        "nesterov": lambda: keras.optimizers.SGD(rates, settings.momentum, nesterov=True),
        "rmsprop": lambda: keras.optimizers.RMSprop(rates, settings.rho, settings.momentum, settings.epsilon),
        "adagrad": lambda: keras.optimizers.Adagrad(rates, settings.initial_accumulator_value, settings.epsilon),
        "adadelta": lambda: keras.optimizers.Adadelta(rates, settings.rho, settings.epsilon),
    }
    return kinds[settings.optimizer]()
