"""What every contender's process shares: a job file in, a result file out, and the clock."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIXED = "auto_mixed_precision_onednn_bfloat16"  # The graph rewriter that gives a CPU's 16-bit units work.


def serve(main: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Runs `main` on the job that the first argument's JSON file holds, and writes its result to the second's."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    job, result = Path(sys.argv[1]), Path(sys.argv[2])
    result.write_text(json.dumps(main(json.loads(job.read_text(encoding="utf-8")))), encoding="utf-8")


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that an action took, and what it returned."""
    start = time.perf_counter()
    value = action()
    return time.perf_counter() - start, value


def set_precision(precision: str) -> None:
    """Turns the 16-bit graph rewriter on for "bfloat16", and off for "float32", from the next call of a graph on."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({MIXED: precision == "bfloat16"})
