"""Photos through a frozen backbone: ours with an empty and a filled cache, the bare pass, the recipes of others."""

from __future__ import annotations

from functools import partial
from typing import Any

import figures
import measuring
from bench import Bench, Contender
from figures import Figure, at_least, at_most
from measuring import AGAIN, KERAS, OURS, Run, fit, seconds

HUB, TORCH = "hub.KerasLayer", "torch"


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns the runs of all contenders and the figures of them."""
    job = bench.job("image")
    runs = measuring.side_by_side(_contenders(bench, job), bench.repeats, bench.left_out)
    bench.clear_caches()
    line = partial(figures.ratio, "frozen", runs)
    bare = "bare pass, " + next(
        (run["precision"]["features"] for run in runs if run["contender"] == OURS and run["precision"]), "float32"
    )
    found = line(f"our reading, features and head / {bare}", (OURS, fit), (bare, _pass), at_most(1.25))
    found += line(f"our reading, features and head / {bare}, repeated", (OURS, fit), (bare, _warm_pass), at_most(1.25))
    found += _against_the_faster(runs, [f"bare pass, {precision}" for precision in bench.precisions])
    found += line("stock Keras: fit / our reading, features and head", (KERAS, fit), (OURS, fit), at_least(6))
    found += line("stock Keras: script / our whole command", (KERAS, seconds), (OURS, seconds), at_least(2))
    found += line("features in a second run / in the first", (AGAIN, _features), (OURS, _features), at_most(0.05))
    found += line("our whole command in a second run / in the first", (AGAIN, seconds), (OURS, seconds))
    for other in (HUB, TORCH):
        found += line(f"{other}: fit / our reading, features and head", (other, fit), (OURS, fit))
        found += line(f"{other}: script / our whole command", (other, seconds), (OURS, seconds))
    return runs, found


def _contenders(bench: Bench, job: dict[str, Any]) -> dict[str, Contender]:
    contenders = bench.ours_twice(job)
    for precision in bench.precisions:
        contenders[f"bare pass, {precision}"] = bench.other("bare_pass", job, precision=precision)
    contenders[KERAS] = bench.other("stock_keras", job)
    if bench.is_installed("tf_keras") and bench.is_installed("tensorflow_hub"):
        contenders[HUB] = bench.other("hub_layer", job)
    if not job["torch_weights"]:
        bench.left_out[TORCH] = f"{job['name']} is not written for torch here"
    elif bench.is_installed("torch"):
        contenders[TORCH] = bench.other("torch_loop", job)
    return contenders


def _against_the_faster(runs: list[Run], passes: list[str]) -> list[Figure]:
    """Returns the first figure against whichever precision's pass was faster in each turn; none with one precision.

    16 bits are not faster on every machine, and on a busy one either pass may be the slower.
    """
    ours = {run["repeat"]: fit(run) for run in runs if run["contender"] == OURS}
    turns = [
        [run["warm_pass"] for run in runs if run["contender"] in passes and run["repeat"] == repeat] for repeat in ours
    ]
    values = tuple(mine / min(found) for mine, found in zip(ours.values(), turns, strict=True) if len(found) > 1)
    what = "our reading, features and head / the faster of the bare passes, repeated"
    return [Figure("frozen", what, values)] if values else []


def _pass(run: Run) -> float:
    return run["pass"]


def _warm_pass(run: Run) -> float:
    return run["warm_pass"]


def _features(run: Run) -> float:
    return run["stages"]["features"]
