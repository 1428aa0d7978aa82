"""How many validation photos are also in training: by make_image_classifier's split of a folder, and by ours."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import data as inputs
import measuring
from bench import SEED, Bench
from figures import Figure, at_most
from measuring import OURS, Run

TOOL = "make_image_classifier"


def measure(bench: Bench) -> tuple[list[Run], list[Figure]]:
    """Returns what came of both splits of the same folder, and the share of leaked photos of each; nothing is timed."""
    photos = bench.data["image"]
    folder = os.path.realpath(photos.channel)
    job = inputs.split(photos, SEED, bench.scratch / "leak")
    ours = {part: [path for path, _ in job[part]] for part in ("training", "validation")}
    contenders = {
        TOOL: lambda repeat: measuring.contender("leak_keras", {"folder": folder}, bench.scratch),
        OURS: lambda repeat: {"seconds": 0.0, **ours},
    }
    runs = [_counted(run) for run in measuring.side_by_side(contenders, 1, bench.left_out)]
    return runs, [_figure(run) for run in runs]


def _counted(run: Run) -> Run:
    """Returns the counts of one split; photos of equal bytes are one photo."""
    training, validation = set(_digests(run["training"])), _digests(run["validation"])
    return {
        "contender": run["contender"],
        "repeat": run["repeat"],
        "training_photos": len(run["training"]),
        "validation_photos": len(validation),
        "leaked_photos": sum(digest in training for digest in validation),
        "validated_classes": len({Path(file).parent.name for file in run["validation"]}),
    }


def _digests(files: Iterable[str]) -> list[str]:
    return [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]


def _figure(run: Run) -> Figure:
    leaked, all_of_them, classes = run["leaked_photos"], run["validation_photos"], run["validated_classes"]
    what = (
        f"{run['contender']}: validation photos that are also in training "
        f"({leaked:,} of {all_of_them:,}, of {classes} {'class' if classes == 1 else 'classes'})"
    )
    share = 100 * leaked / max(all_of_them, 1)
    return Figure("leak", what, (share,), " %", at_most(0) if run["contender"] == OURS else None)
