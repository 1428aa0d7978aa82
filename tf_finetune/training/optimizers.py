"""The optimizers and the learning rate over the steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from tf_finetune.hyperparameters import Hyperparameters

WEIGHT_DECAY = 0.01  # Of adamw; BERT's own.


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


def make(settings: Hyperparameters, rates: Any, task: str) -> keras.optimizers.Optimizer:
    """Returns the optimizer that `settings.optimizer` names, with the settings that it uses.

    As in the built-in algorithms, rmsprop uses the momentum for photos and not for texts.
    """
    rmsprop_momentum = settings.momentum if task == "image" else 0.0

    def adam() -> keras.optimizers.Optimizer:
        return keras.optimizers.Adam(rates, settings.beta_1, settings.beta_2, settings.epsilon)

    kinds: dict[str, Callable[[], keras.optimizers.Optimizer]] = {
        "auto": adam,
        "adam": adam,
        "adamw": lambda: keras.optimizers.AdamW(
            rates, WEIGHT_DECAY, settings.beta_1, settings.beta_2, settings.epsilon
        ),
        "sgd": lambda: keras.optimizers.SGD(rates, settings.momentum),
        "nesterov": lambda: keras.optimizers.SGD(rates, settings.momentum, nesterov=True),
        "rmsprop": lambda: keras.optimizers.RMSprop(rates, settings.rho, rmsprop_momentum, settings.epsilon),
        "adagrad": lambda: keras.optimizers.Adagrad(rates, settings.initial_accumulator_value, settings.epsilon),
        "adadelta": lambda: keras.optimizers.Adadelta(rates, settings.rho, settings.epsilon),
    }
    return kinds[settings.optimizer]()


def spare_from_decay(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> None:
    """Spares biases and the scales of norms, which are vectors, from weight decay, as BERT's own training does."""
    if optimizer.weight_decay is not None:
        optimizer.exclude_from_weight_decay(var_list=[one for one in variables if len(one.shape) < 2])
