"""What grows with the number of examples, measured small: the figures of scaling.md. `python benchmarks/scaling.py`."""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import resource
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

EXAMPLES, CLASSES = 200_000, 100
PIECES, ROWS, FEATURES = 40, 3_000, 1280


def main() -> None:
    """Prints one line of JSON per measurement, each made in a process of its own."""
    for measure in (records, shares, solver, exchange):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            print(json.dumps({measure.__name__: pool.submit(measure).result()}), flush=True)


def records() -> dict[str, float]:
    """Bytes and microseconds per example of what every host holds of each photo."""
    import os

    from tf_finetune import examples
    from tf_finetune.examples import Example, Examples

    found = _grown(lambda: tuple(_example(Example, number) for number in range(EXAMPLES)))
    items = found.pop("value")
    everything = Examples(tuple(map(str, range(CLASSES))), items)
    began = time.perf_counter()
    examples.split(everything, 0.2, 1, {})
    spent = time.perf_counter() - began
    from tf_finetune import devices, features  # noqa: F401  (devices first)

    import tensorflow as tf  # isort: skip

    source = _grown(lambda: features.source(everything, lambda index, seed: index))
    paths = _grown(lambda: tf.constant([os.fsencode(one.content) for one in items]))
    return {
        "record_bytes": found["bytes"],
        "source_bytes": source["bytes"],
        "path_bytes": paths["bytes"],
        "split_microseconds": round(spent / EXAMPLES * 1e6, 1),
    }


def shares() -> dict[str, float]:
    """Bytes and microseconds per example of dealing out the work to three hosts."""
    from tf_finetune import devices  # noqa: F401
    from tf_finetune.features import sharing

    keys = [hashlib.sha256(str(number).encode()).digest() for number in range(EXAMPLES)]
    began = time.perf_counter()
    before = _peak()
    sharing.shares(np.zeros([3, EXAMPLES], bool), keys, None)
    spent = time.perf_counter() - began
    return {"bytes": round((_peak() - before) / EXAMPLES), "microseconds": round(spent / EXAMPLES * 1e6, 1)}


def solver() -> dict[str, float]:
    """Peak memory of solving a head, over that of the features, and microseconds per example."""
    from tf_finetune import devices  # noqa: F401
    from tf_finetune.training import solver as solvers

    generator = np.random.default_rng(0)
    count, size, classes = 100_000, 256, 10
    rows = generator.standard_normal([count, size], np.float32)
    labels = (rows[:, :classes] + generator.standard_normal([count, classes])).argmax(axis=1)
    before, began = _peak(), time.perf_counter()
    solved = solvers.solve(rows, labels, classes)
    spent = time.perf_counter() - began
    return {
        "peak_over_features": round((_peak() - before) / rows.nbytes, 2),
        "seconds": round(spent, 1),
        "iterations": solved.iterations,
        "examples": count,
        "features": size,
    }


def exchange() -> dict[str, float]:
    """Megabytes of features a second that the first host takes in from two others, over loopback."""
    from tf_finetune.hosts.team import Team
    from tf_finetune.hosts.wire import Wire

    processes, wires = [], {}
    for index in (1, 2):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            process = multiprocessing.get_context("fork").Process(target=_send, args=(listener.getsockname(), index))
            processes.append(process)
            process.start()
            wires[index] = Wire(listener.accept()[0], 60)
    chief = Team(["0", "1", "2"], 0, wires)
    own = np.zeros([1, FEATURES], np.float32)
    began = time.perf_counter()
    for _ in range(PIECES):
        chief.collected("features", own)
    spent = time.perf_counter() - began
    for process in processes:
        process.join()
    return {"megabytes_per_second": round(2 * PIECES * ROWS * FEATURES * 4 / spent / 1e6)}


def _send(place: tuple[str, int], index: int) -> None:
    from tf_finetune.hosts.team import Team
    from tf_finetune.hosts.wire import Wire

    other = Team(["0", "1", "2"], index, {0: Wire(socket.create_connection(place), 60)})
    piece = np.ones([ROWS, FEATURES], np.float32)
    for _ in range(PIECES):
        other.collected("features", piece)


def _example(kind: Any, number: int) -> Any:
    name = f"class-{number % CLASSES:03}/photo-{number:08}.jpg"
    digest = hashlib.sha256(name.encode()).hexdigest()
    return kind(name, number % CLASSES, Path("/opt/ml/input/data/training", name), digest)


def _grown(make: Callable[[], Any]) -> dict[str, Any]:
    """Returns what a function makes, and how many bytes per example the process has grown by."""
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1])
    value = make()
    gc.collect()
    after = int(Path("/proc/self/statm").read_text().split()[1])
    return {"value": value, "bytes": round((after - before) * resource.getpagesize() / EXAMPLES)}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
