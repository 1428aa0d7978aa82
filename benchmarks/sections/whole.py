"""The whole network fine-tuned: photos a second in the epochs after the first, which compiles."""

from __future__ import annotations

import itertools
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import data as inputs
import figures
import measuring
import ours
from bench import Bench, Contender
from figures import Figure, at_least
from measuring import KERAS, OURS, Run

RATE = 1e-4  # Learning rate of Adam.


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns the runs of all contenders and the figures of them."""
    job = {**bench.job("image"), "epochs": 2 if bench.quick else 4}
    rows = [next(row for row in job["validation"] + job["training"] if row[1] == label) for label in _labels(job)]
    one_of_each = inputs.link(rows, job["class_names"], bench.scratch / "one-of-each")
    job["folders"] = {**job["folders"], "validation": str(one_of_each)}  # So that it is training that is timed.
    contenders: dict[str, Contender] = {}
    for precision in bench.precisions:
        contenders[f"{OURS}, {precision}"] = _ours(bench, job, precision)
        contenders[f"{KERAS}, {precision}"] = bench.other("whole_keras", job, precision=precision)
    runs = measuring.side_by_side(contenders, bench.repeats, bench.left_out)
    line = partial(figures.ratio, "whole", runs)
    rate = partial(_photos_per_second, count=len(job["training"]))
    found: list[Figure] = []
    for precision in bench.precisions:
        mine, other = f"{OURS}, {precision}", f"{KERAS}, {precision}"
        found += line(f"our photos/s / stock Keras's, {precision}", (mine, rate), (other, rate), at_least(1))
        if precision != "float32":
            what = f"our photos/s in {precision} / stock Keras's in float32"
            found += line(what, (mine, rate), (f"{KERAS}, float32", rate), at_least(1))
    for run in runs:
        run["photos_per_second"] = rate(run)
    return runs, found


def _ours(bench: Bench, job: dict[str, Any], precision: str) -> Contender:
    """Returns our command on the same folders of photos."""
    channels = {part: Path(folder) for part, folder in job["folders"].items()}
    settings = {
        "train-only-top-layer": False,
        "epochs": job["epochs"],
        "optimizer": "adam",
        "learning-rate": RATE,
        "precision": precision,
        "backbone": bench.handles["image"],
    }

    def run(repeat: int) -> Run:
        told = ours.train(bench.tool, channels, settings, None)
        return {name: value for name, value in told.items() if name not in ("fit", "accuracy")}

    return run


def _labels(job: dict[str, Any]) -> range:
    return range(len(job["class_names"]))


def _photos_per_second(run: Run, count: int) -> float:
    """Returns the rate of the median epoch but the first."""
    ends = run.get("epoch_ends", ())
    epochs = run.get("epoch_seconds") or [0.0, *(after - before for before, after in itertools.pairwise(ends))]
    return count / statistics.median(epochs[1:])
