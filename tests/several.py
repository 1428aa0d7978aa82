"""Starts one job on several hosts, which are processes on loopback, and ends them as a test wants."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests import builders

TIMEOUT = 300  # Seconds.
# Has each host train on two logical CPU devices as it would on two GPUs, which TensorFlow takes of itself.
OF_TWO_DEVICES = """
from tf_finetune import devices
import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy as spread
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
spread.CollectiveAllReduceExtended._initialize_local_devices = lambda self, resolver, worker: (
    tuple(f"{worker}/device:CPU:{number}" for number in range(2)), "CPU")
"""
PROGRAM = f"""
import sys
{builders.SIGNAL_AFTER}
number, at_step = map(int, sys.argv[1:3])
del sys.argv[1:3]
if number:
    signal_after(at_step, number)
from tf_finetune import cli
cli.run()
"""


# Instead of the command: Python's `train`, whose arguments are the first word, as JSON.
CALL = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s")
import tf_finetune
record = tf_finetune.train(**json.loads(sys.argv[3]))
logging.info("report of %s", record["job"]["model_artifact"])
"""


class Ended(NamedTuple):
    """How a process ended: its exit code, what it printed on standard error, and after how many seconds."""

    code: int
    said: str
    seconds: float


class Signal(NamedTuple):
    """A signal that a host sends to itself after a step of this run."""

    host: int
    number: int
    step: int


def free_addresses(count: int) -> list[str]:
    """Returns addresses on loopback of which the port and the next one are free."""
    found: list[str] = []
    held = []
    while len(found) < count:
        one, other = socket.socket(), socket.socket()
        held += [one, other]
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        try:
            other.bind(("127.0.0.1", port + 1))
        except (OSError, OverflowError):
            continue
        found.append(f"127.0.0.1:{port}")
    for one in held:
        one.close()
    return found


def tf_config(addresses: Sequence[str], index: int) -> str:
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def run(
    arguments: Sequence[str],
    count: int,
    signal: Signal | None = None,
    bases: Sequence[Path] = (),
    setup: str = "",
    program: str = PROGRAM,
    **variables: str,
) -> list[Ended]:
    """Runs one command on several hosts at once, until all have ended.

    Args:
        arguments: Of `tf-finetune`.
        count: Of hosts.
        signal: What one of them does to itself.
        bases: For each host what it has instead of /opt/ml.
        setup: What their Python runs first.
        program: What it runs then.
        **variables: More of the environment.
    """
    addresses = free_addresses(count)
    started, processes = time.monotonic(), []
    for index in range(count):
        is_hit = signal is not None and signal.host == index
        # All hosts keep checkpoints after each step alike, but a step never comes after which the others are hit.
        hit = [str(int(signal.number)) if signal else "0", str(signal.step) if signal and is_hit else "-1"]
        environment = {**os.environ, "TF_CONFIG": tf_config(addresses, index), **variables}
        if bases:
            environment["SAGEMAKER_BASE_DIR"] = str(bases[index])
        command = [sys.executable, "-c", setup + program, *hit, *arguments]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    return ends_of(processes, started)


def ends_of(processes: Sequence[subprocess.Popen[str]], started: float) -> list[Ended]:
    """Returns how processes ended; those that do not are killed."""
    ended: dict[int, Ended] = {}
    try:
        # Their output is short enough for the pipes, so it can be read when they have ended.
        while len(ended) < len(processes):
            assert time.monotonic() - started < TIMEOUT, f"only hosts {sorted(ended)} of {len(processes)} have ended"
            for index, process in enumerate(processes):
                if index not in ended and process.poll() is not None:
                    said = process.stderr.read() if process.stderr else ""
                    ended[index] = Ended(process.returncode, said, time.monotonic() - started)
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
    return [ended[index] for index in range(len(processes))]


def told(ends: Sequence[Ended]) -> Mapping[int, str]:
    """Returns the end of what each host said, for a message."""
    return {index: f"{end.code}: {end.said[-1500:]}" for index, end in enumerate(ends)}
