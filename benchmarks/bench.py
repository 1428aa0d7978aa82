"""What all sections share: the data, the backbones, our command, and how a contender is called."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import data as inputs
import measuring
import ours
from data import Data
from measuring import AGAIN, OURS, Run

SEED = 123  # The package's default random_seed.
BATCH_SIZE = 32
Contender = Callable[[int], Run]  # Runs one process; given the number of the repeat, from 0.


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark.

    Attributes:
        scratch: Folder for whatever is made on the way.
        tool: Our command.
        data: Labelled examples by task, "image" and "text"; a task that no chosen section needs is missing.
        backbones: What contenders/locate.py told, by task.
        handles: The backbone that the user named, by task; None for our default.
        has_16_bit: Whether the CPU computes in bfloat16.
        repeats: How often each contender runs.
        epochs: Of those contenders that have epochs.
        quick: Whether everything is to be small.
        left_out: What was not run, and why; sections add to it.
    """

    scratch: Path
    tool: ours.Command
    data: Mapping[str, Data]
    backbones: Mapping[str, dict[str, Any]]
    handles: Mapping[str, str | None]
    has_16_bit: bool
    repeats: int
    epochs: int
    quick: bool
    left_out: dict[str, str] = field(default_factory=dict)

    def job(self, task: str, seed: int = SEED) -> dict[str, Any]:
        """Returns what the other contenders get: lists of the same split as ours, and the same backbone's folder."""
        chosen = inputs.split(self.data[task], seed, self.scratch / f"{task}-seed-{seed}")
        return {
            **self.backbones[task],
            **chosen,
            "precision": self.precisions[-1],
            "epochs": self.epochs,
            "batch_size": BATCH_SIZE,
        }

    def other(self, script: str, job: dict[str, Any], **changed: Any) -> Contender:
        """Returns what runs one of the scripts of contenders/."""

        def run(repeat: int) -> Run:
            return measuring.contender(script, {**job, **changed}, self.scratch)

        return run

    def ours(self, job: dict[str, Any], cache: str, **settings: Any) -> Contender:
        """Returns what runs our command with features kept in a folder of that name, an empty one in each repeat."""
        task = "image" if "folders" in job else "text"
        given = {"epochs": self.epochs, "random-seed": job["seed"], "backbone": self.handles[task], **settings}

        def run(repeat: int) -> Run:
            return ours.train(
                self.tool,
                {"training": self.data[task].channel},
                given,
                self.scratch / "caches" / f"{cache}-{repeat}",
                job,
            )

        return run

    def ours_twice(self, job: dict[str, Any]) -> dict[str, Contender]:
        """Returns our command with an empty cache, and again with what that run kept."""
        contenders = {OURS: self.ours(job, "cold")}
        if self.tool.takes("--cache-dir"):
            contenders[AGAIN] = contenders[OURS]
        else:
            self.left_out[AGAIN] = "this version of tf-finetune keeps no features between runs"
        return contenders

    @property
    def precisions(self) -> tuple[str, ...]:
        """Numbers that the CPU computes with in hardware."""
        return ("float32", "bfloat16") if self.has_16_bit else ("float32",)

    def clear_caches(self) -> None:
        """Removes all features that our command has kept so far."""
        shutil.rmtree(self.scratch / "caches", ignore_errors=True)

    def is_installed(self, package: str) -> bool:
        """Returns whether a package can be imported; one that cannot is told of."""
        if importlib.util.find_spec(package) is None:
            self.left_out[package] = "it is not installed"
            return False
        return True
