"""Texts: ours, the same frozen encoder in stock Keras, and words counted by scikit-learn."""

from __future__ import annotations

from functools import partial

import figures
import measuring
from bench import Bench
from figures import Figure
from measuring import AGAIN, OURS, Run, fit, seconds

ENCODER, WORDS = "frozen encoder in stock Keras", "tf-idf in scikit-learn"


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns the runs of all contenders and the figures of them."""
    job = bench.job("text")
    contenders = bench.ours_twice(job)
    contenders[ENCODER] = bench.other("text_keras", job)
    contenders[WORDS] = bench.other("text_tfidf", job)
    runs = measuring.side_by_side(contenders, bench.repeats, bench.left_out)
    bench.clear_caches()
    line = partial(figures.ratio, "text", runs)
    found = line("our whole command in a second run / in the first", (AGAIN, seconds), (OURS, seconds))
    for other in (ENCODER, WORDS):
        found += line(f"{other}: fit / our reading, features and head", (other, fit), (OURS, fit))
        found += line(f"{other}: script / our whole command", (other, seconds), (OURS, seconds))
        found += figures.accuracy_difference("text", runs, OURS, other)
    return runs, found
