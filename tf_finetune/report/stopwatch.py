"""How long each stage of a job took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

STAGES = ("data", "backbone", "features", "head", "fine_tuning", "evaluation", "export")


class Stopwatch:
    """Adds up the seconds of each stage."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the body's time to a stage."""
        start = time.monotonic()
        yield
        self.seconds[name] += time.monotonic() - start

    def total(self) -> dict[str, float]:
        """Returns the seconds of each stage, and those since the start."""
        return {
            "total": round(time.monotonic() - self.started, 3),
            **{name: round(value, 3) for name, value in self.seconds.items()},
        }
