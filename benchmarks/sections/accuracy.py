"""Validation accuracy of ours and of the stock recipe, over seeds: of the split and of all that is random."""

from __future__ import annotations

import measuring
from bench import Bench
from figures import Figure, accuracy_difference, at_least
from measuring import KERAS, OURS, Run

SEEDS = 5


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns the runs of both over the seeds, and the mean difference."""
    jobs = [bench.job("image", seed) for seed in range(1, 1 + (2 if bench.quick else SEEDS))]
    contenders = {
        OURS: lambda repeat: bench.ours(jobs[repeat], "accuracy")(0),  # One cache for all seeds.
        KERAS: lambda repeat: bench.other("stock_keras", jobs[repeat])(repeat),
    }
    runs = measuring.side_by_side(contenders, len(jobs), bench.left_out)
    bench.clear_caches()
    found = accuracy_difference("accuracy", runs, OURS, KERAS, at_least(0))
    return runs, found + accuracy_difference("accuracy", runs, OURS, KERAS, value="best_accuracy")
