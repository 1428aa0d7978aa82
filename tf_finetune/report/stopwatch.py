"""How long each stage of a job took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

STAGES = ("data", "backbone", "features", "head", "fine_tuning", "evaluation", "export")


class Stopwatch:
    """Adds up the seconds of each stage; those of a stage inside another count for the inner one alone."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._inner = 0.0  # Seconds of the stages inside the present one.

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the body's time to a stage."""
        start, outer, self._inner = time.monotonic(), self._inner, 0.0
        yield
        spent = time.monotonic() - start
        self.seconds[name] += spent - self._inner
        self._inner = outer + spent

    def total(self) -> dict[str, float]:
        """Returns the seconds of each stage, and those since the start."""
        return {
            "total": round(time.monotonic() - self.started, 3),
            **{name: round(value, 3) for name, value in self.seconds.items()},
        }
