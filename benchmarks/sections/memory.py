"""Peak memory of our whole command on many photos and on several times as many."""

from __future__ import annotations

import shutil
from functools import partial

import data as inputs
import figures
import measuring
import ours
from bench import Bench
from figures import Figure, at_most
from measuring import OURS, Run

COUNTS, QUICK_COUNTS = (1000, 8000), (300, 1200)  # All in the range where 16 bits are tried.


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns the runs of our command on either number of photos, and the figure of them."""
    few, many = QUICK_COUNTS if bench.quick else COUNTS
    runs: list[Run] = []
    for count in (few, many):
        channel = inputs.enlarge(bench.data["image"], bench.scratch / f"photos-{count}", count)
        settings = {"epochs": bench.epochs, "backbone": bench.handles["image"]}
        train = partial(ours.train, bench.tool, {"training": channel}, settings)
        cache = bench.scratch / "caches" / f"memory-{count}"
        contenders = {f"{OURS}, {count:,} photos": lambda repeat: train(cache)}  # noqa: B023
        for run in measuring.side_by_side(contenders, 1, bench.left_out):
            run.pop("accuracy")  # Copies of one photo are on both sides of the split.
            runs.append(run)
        shutil.rmtree(channel)
        bench.clear_caches()
    what = f"our peak memory on {many:,} photos / on {few:,}"
    pair = (f"{OURS}, {many:,} photos", _peak), (f"{OURS}, {few:,} photos", _peak)
    return runs, figures.ratio("memory", runs, what, *pair, at_most(1.15))


def _peak(run: Run) -> float:
    return run["peak_megabytes"]
