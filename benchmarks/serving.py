"""Asks a server on this machine by many clients at once, with micro-batching and without, in turn; and a hostile crowd.

    python benchmarks/serving.py --archive results/flowers/output/model.tar.gz --inputs photos

The clients are one asyncio process beside the server, so part of the machine is theirs: the ratio of the two ways is
what the figures are for. `--hostile 10000` sends that many requests instead, 5 % of them hostile, holds every answer
against `predict`, and tells the server's memory. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAYS = {"one at a time": ["--max-batch", "1"], "micro-batching": []}
HOSTILE = (  # Content type, body.
    ("application/x-image", b""),
    ("application/x-image", b"no photo at all"),
    ("application/x-image", b"\xff\xd8\xff\xe0" + b"\0" * 3000),
    ("application/x-image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff\xff\xff\0\xff\xff\xff\x08\x02\0\0\0"),
    ("application/json", b"[" * 50_000),
    ("application/json", b'{"instances": [{"b64": "!"}]}'),
    ("application/octet-stream", b"x" * 100_000),
)


@contextlib.contextmanager
def serving(archive: Path, flags: list[str]) -> Iterator[tuple[str, int, int]]:
    """Gives host, port and process id of a server, which is ended with the block."""
    command = [sys.executable, "-m", "tf_finetune.cli", "serve", str(archive), "--port", "0", *flags]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            for line in process.stderr or ():
                found = re.search(r" at http://([\d.]+):(\d+)$", line)
                if found:
                    yield found[1], int(found[2]), process.pid
                    break
        finally:
            process.send_signal(signal.SIGTERM)


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kind: str, body: bytes
) -> tuple[int, bytes, bool]:
    """Returns the status, the answer, and whether the connection is still open."""
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    told = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(re.search(rb"content-length: (\d+)", told)[1])  # type: ignore[index]
    return int(told.split()[1]), await reader.readexactly(length), b"connection: close" not in told


async def crowd(
    host: str, port: int, requests: list[tuple[str, bytes]], clients: int
) -> list[tuple[int, bytes, float]]:
    """Returns status, answer and seconds of each request, asked by so many clients at once."""
    found: list[tuple[int, bytes, float]] = [(0, b"", 0.0)] * len(requests)
    left = iter(range(len(requests)))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        for place in left:
            started = time.perf_counter()
            status, answer, is_open = await ask(reader, writer, *requests[place])
            found[place] = (status, answer, time.perf_counter() - started)
            if not is_open:
                writer.close()
                reader, writer = await asyncio.open_connection(host, port)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def measure(archive: Path, requests: list[tuple[str, bytes]], clients: int, turns: int) -> None:
    """Prints requests a second and latencies of both ways, and their ratio, turn by turn."""
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(turns):
        for name, flags in WAYS.items():
            with serving(archive, flags) as (host, port, _):
                asyncio.run(crowd(host, port, requests[:64], clients))
                started = time.perf_counter()
                found = asyncio.run(crowd(host, port, requests, clients))
                seconds = time.perf_counter() - started
            assert all(status == 200 for status, _, _ in found)
            rates[name].append(len(requests) / seconds)
            slow = statistics.quantiles([one[2] * 1000 for one in found], n=100)
            print(
                f"turn {turn + 1}, {name}, {clients} clients: {rates[name][-1]:.1f} requests/s, "
                f"p50 {slow[49]:.0f} ms, p99 {slow[98]:.0f} ms",
                flush=True,
            )
    one, many = rates.values()
    ratios = [b / a for a, b in zip(one, many, strict=True)]
    print(f"micro-batching / one at a time: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def resident(process: int) -> float:
    """Returns the resident memory of a process in MiB."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


def brave(archive: Path, inputs: list[bytes], kind: str, count: int, clients: int) -> None:
    """Prints what came of a crowd of which 5 % is hostile."""
    sys.path.insert(0, str(ROOT))
    import tf_finetune

    expected = [one["probabilities"] for one in tf_finetune.load(archive).predict(inputs)]
    draw = random.Random(0)
    plan = [None if draw.random() < 0.05 else draw.randrange(len(inputs)) for _ in range(count)]
    requests = [draw.choice(HOSTILE) if place is None else (kind, inputs[place]) for place in plan]
    with serving(archive, []) as (host, port, process):
        half = count // 2
        found = asyncio.run(crowd(host, port, requests[:half], clients))
        before = resident(process)
        found += asyncio.run(crowd(host, port, requests[half:], clients))
        after = resident(process)
    wrong = 0
    statuses: dict[int, int] = {}
    for place, (status, answer, _) in zip(plan, found, strict=True):
        if place is None:
            statuses[status] = statuses.get(status, 0) + 1
            wrong += not 400 <= status < 500
        else:
            rows = zip(json.loads(answer)["probabilities"], expected[place], strict=True)
            wrong += status != 200 or max(abs(a - b) for a, b in rows) > 1e-5
    print(f"{count:,} requests: {wrong} answered wrongly; hostile ones by status: {dict(sorted(statuses.items()))}")
    print(f"resident memory after the first half {before:,.0f} MiB, after all {after:,.0f} MiB")


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--archive", type=Path, required=True, help="model.tar.gz")
    parser.add_argument("--inputs", type=Path, required=True, help="folder of photos, or a file of texts, one a line")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--hostile", type=int, metavar="COUNT", help="send so many requests, 5 %% of them hostile")
    given = parser.parse_args()
    if given.inputs.is_dir():
        inputs = [file.read_bytes() for file in sorted(given.inputs.rglob("*.jpg"))[:200]]
    else:
        inputs = [line for line in given.inputs.read_bytes().splitlines() if line][:200]
    kind = "application/x-image" if given.inputs.is_dir() else "application/x-text"
    if given.hostile:
        brave(given.archive, inputs, kind, given.hostile, given.clients)
    else:
        requests = [(kind, inputs[place % len(inputs)]) for place in range(given.requests)]
        measure(given.archive, requests, given.clients, given.turns)


if __name__ == "__main__":
    main()
