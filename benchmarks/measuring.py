"""Processes and their clocks: each contender in a process of its own, one after the other, A B A B."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENDERS = Path(__file__).parent / "contenders"
OURS, AGAIN, KERAS = "ours", "ours, again", "stock Keras"
Run = dict[str, Any]  # One process: contender, repeat, seconds of its whole life, peak_megabytes, and what it told.


class ContenderError(Exception):
    """A contender's process ended with an error; the message holds its last line first, and then what came before."""


@dataclass(frozen=True)
class Ended:
    """A process that has ended well.

    Attributes:
        seconds: From its start to its end.
        peak_megabytes: The most memory that it, or a child of its own, held at once.
        lines: What it printed, with the second at which each line came.
    """

    seconds: float
    peak_megabytes: float
    lines: list[tuple[float, str]]


def run(command: Sequence[str], extra: Mapping[str, str] | None = None) -> Ended:
    """Runs a command to its end.

    Raises:
        ContenderError: It failed.
    """
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONUNBUFFERED": "1", **(extra or {})}
    start = time.perf_counter()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = [(time.perf_counter() - start, line.rstrip("\n")) for line in process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode != 0:
        last = [line for _, line in lines if line.strip()][-15:] or ["it said nothing"]
        raise ContenderError("\n".join([last[-1], f"(exit code {process.returncode} of {' '.join(command)})", *last]))
    unit = 1e6 if sys.platform == "darwin" else 1e3  # Bytes there, kilobytes elsewhere.
    return Ended(seconds, usage.ru_maxrss / unit, lines)


def contender(script: str, job: Mapping[str, Any], scratch: Path) -> Run:
    """Runs one of the scripts of contenders/ on a job, and returns what it told, its seconds and its peak memory."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        asked, told = Path(folder, "job.json"), Path(folder, "result.json")
        asked.write_text(json.dumps({**job, "output": str(Path(folder, "output"))}), encoding="utf-8")
        root = str(Path(__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        ended = run([sys.executable, str(CONTENDERS / f"{script}.py"), str(asked), str(told)], {"PYTHONPATH": path})
        result = json.loads(told.read_text(encoding="utf-8"))
    return {**result, "seconds": ended.seconds, "peak_megabytes": ended.peak_megabytes}


def side_by_side(contenders: Mapping[str, Callable[[int], Run]], repeats: int, left_out: dict[str, str]) -> list[Run]:
    """Runs all contenders in turn, then all again: A B A B. One that fails is left out, and told of.

    Args:
        contenders: Name to what runs it, given the number of the repeat from 0.
        repeats: How often.
        left_out: Receives the reason for each that fails.
    """
    runs: list[Run] = []
    for repeat in range(repeats):
        for name, action in contenders.items():
            if name in left_out:
                continue
            print(f"  {name} ({repeat + 1} of {repeats}) ...", end="", file=sys.stderr, flush=True)
            try:
                runs.append({"contender": name, "repeat": repeat, **action(repeat)})
                print(f" {runs[-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
            except ContenderError as error:
                left_out[name] = f"it failed: {str(error).splitlines()[0]}"
                print(f" it failed: {error}", file=sys.stderr, flush=True)
    return runs


def seconds(run: Run) -> float:
    """Returns the seconds of a run's whole process."""
    return run["seconds"]


def fit(run: Run) -> float:
    """Returns the seconds of our reading, features and head, or of what does the same work elsewhere."""
    return run["fit"]
