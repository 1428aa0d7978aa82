"""Which precision is the fastest for the steps of a training: found by timing some, which leave no trace."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from tf_finetune import devices
from tf_finetune.hosts.team import ALONE, Team

log = logging.getLogger(__name__)

TIMED_STEPS = 2
MARGIN = 1.15  # How many times as fast another precision must be; less may be noise.


def fastest(
    step: Callable[[Any], Sequence[Any]],
    batches: Iterator[Any],
    variables: Sequence[keras.Variable],
    precisions: Sequence[str],
    team: Team = ALONE,
) -> tuple[str, Iterator[Any]]:
    """Returns the precision in which steps are fastest, the first unless another is clearly so, and all batches.

    Args:
        step: Updates the variables by one batch, and returns its figures.
        batches: Of the training; the first one is tried.
        variables: All that a step changes; they end as they were.
        precisions: Those to choose from, as `devices.rewriting` takes them.
        team: The hosts; all make the same steps, and the first one's clock decides.
    """
    if len(precisions) == 1:
        return precisions[0], batches
    first = next(batches)
    before = [variable.numpy() for variable in variables]
    seconds = {precision: _seconds(step, first, precision) for precision in precisions}
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    chosen = min(precisions, key=lambda precision: seconds[precision] * (1 if precision == precisions[0] else MARGIN))
    chosen = team.told("fastest precision", chosen)
    shown = ", ".join(f"{precision} {spent:.2f}" for precision, spent in seconds.items())
    log.info("fine-tuning in %s: seconds a step: %s", chosen, shown)
    return chosen, itertools.chain([first], batches)


def _seconds(step: Callable[[Any], Sequence[Any]], batch: Any, precision: str) -> float:
    """Returns the seconds of the fastest of some steps; the one before them, which compiles, does not count."""
    spent = []
    with devices.rewriting(precision):
        for _ in range(1 + TIMED_STEPS):
            start = time.monotonic()
            float(step(batch)[0])
            spent.append(time.monotonic() - start)
    return min(spent[1:])
