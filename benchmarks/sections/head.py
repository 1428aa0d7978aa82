"""The head solved: all strengths and folds of a cross-validation on cached features, beside scikit-learn's solver."""

from __future__ import annotations

from functools import partial

import figures
import measuring
from bench import Bench
from figures import Figure, at_most
from measuring import OURS, Run, fit

SKLEARN = "scikit-learn, extrapolated"
STRENGTHS, RANGE = 20, (300, 3e-6)  # As our solver's path has them.


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns the runs of both solvers, and the figures of them."""
    examples, features = (600, 128) if bench.quick else (4000, 1280)
    job = {"examples": examples, "features": features, "classes": 5, "seed": 0}
    path = {"strengths": STRENGTHS, "range": RANGE, "sample": 3 if bench.quick else 5}
    contenders = {OURS: bench.other("heads_ours", job), SKLEARN: bench.other("heads_sklearn", job, **path)}
    runs = measuring.side_by_side(contenders, bench.repeats, bench.left_out)
    mine = [run for run in runs if run["contender"] == OURS]
    if not mine:
        return runs, []
    what = f"{mine[0]['heads']} heads on {examples:,} x {features:,} features, 5 classes"
    gradients = tuple(run["largest_gradient"] for run in mine)
    found = [
        Figure("head", f"our {what}", tuple(map(fit, mine)), " s", at_most(10)),
        Figure("head", "their largest gradient, relative to that at zero", gradients, "", at_most(1e-3)),
    ]
    line = partial(figures.ratio, "head", runs)
    return runs, found + line("scikit-learn for as many, extrapolated / ours", (SKLEARN, fit), (OURS, fit))
