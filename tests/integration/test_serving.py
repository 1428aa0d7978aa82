"""A real server, in a process of its own, around real archives: SageMaker's contract over HTTP on loopback."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import tf_finetune
from tests import builders

pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

SETTINGS = {"epochs": 1, "validation_split_ratio": 0.25, "cache_dir": "none"}
Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True)
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    host: str
    port: int

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        with contextlib.closing(connection):
            return asked(connection, method, path, body, **headers)

    def invoke(self, body: bytes, kind: str, accept: str = "application/json") -> tuple[int, dict]:
        status, _, content = self.ask("POST", "/invocations", body, Content_Type=kind, Accept=accept)
        return status, json.loads(content)

    def figure(self, name: str) -> float:
        text = self.ask("GET", "/metrics")[2].decode()
        return sum(float(value) for value in re.findall(rf"^tf_finetune_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def asked(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None, **headers: str) -> Answer:
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()


@contextlib.contextmanager
def serving(archive: Path, *flags: str, **variables: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "tf_finetune.cli", "serve", str(archive), "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables}) as process:
        try:
            told = []
            for line in process.stderr:
                told.append(line)
                found = re.search(r"serving .* at http://([\d.]+):(\d+)$", line)
                if found:
                    yield Server(process, found[1], int(found[2]))
                    break
            else:
                raise AssertionError("".join(told))
        finally:
            process.kill()


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return builders.write_class_folders(tmp_path_factory.mktemp("photos") / "colours", per_class=4)


@pytest.fixture(scope="module")
def archive(tmp_path_factory, photos, mean_backbone) -> Path:
    output = tmp_path_factory.mktemp("out")
    tf_finetune.train(photos, output, "colours", backbone=str(mean_backbone), **SETTINGS)
    return output / "colours/output/model.tar.gz"


@pytest.fixture(scope="module")
def model(archive):
    return tf_finetune.load(archive)


@pytest.fixture(scope="module")
def server(archive) -> Iterator[Server]:
    with serving(archive) as running:
        yield running


@pytest.fixture(scope="module")
def text_archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    builders.write_csv(folder / "data", builders.texts_by_length(24))
    backbone = builders.save_length_backbone(folder / "backbone")
    tf_finetune.train(folder / "data", folder / "out", "texts", backbone=str(backbone), **SETTINGS)
    return folder / "out/texts/output/model.tar.gz"


def test_a_photo_is_answered_as_predict_does_in_every_form(server, model, photos):
    photo = photos / "cyan/0.png"
    (expected,) = model.predict(photo)
    body, b64 = photo.read_bytes(), base64.b64encode(photo.read_bytes()).decode()
    plain = {"probabilities": expected["probabilities"]}
    for kind in ("application/x-image", "image/png", "image/jpeg"):
        assert server.invoke(body, kind) == (200, plain)
    verbose = {**plain, "labels": list(model.class_names), "predicted_label": "cyan"}
    assert server.invoke(body, "application/x-image", "application/json;verbose") == (200, verbose)
    several = json.dumps({"instances": [{"b64": b64}] * 2}).encode()
    assert server.invoke(several, "application/json") == (200, {"predictions": [plain] * 2})
    status, headers, content = server.ask("POST", "/invocations", several, Accept="application/jsonlines")
    assert (status, headers["content-type"]) == (200, "application/jsonlines")
    assert [json.loads(line) for line in content.splitlines()] == [plain] * 2
    status, headers, content = server.ask("POST", "/invocations", several, Accept="text/csv")
    assert headers["content-type"].startswith("text/csv")
    assert content.decode().splitlines() == [",".join(map(repr, expected["probabilities"]))] * 2


def test_the_other_addresses_of_the_contract(server):
    assert server.ask("GET", "/ping")[0] == 200
    status, _, content = server.ask("GET", "/execution-parameters")
    told = json.loads(content)
    assert status == 200
    assert told == {"MaxConcurrentTransforms": 4, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 25}
    for method, path, expected in (("GET", "/nowhere", 404), ("GET", "/invocations", 405), ("POST", "/ping", 405)):
        status, _, content = server.ask(method, path)
        assert status == expected
        assert "Expected POST /invocations" in json.loads(content)["error"]
    assert server.figure("requests_total") > 0


def hostile() -> list[tuple[dict[str, str], bytes, tuple[int, ...]]]:
    """Requests that must be refused: headers, body, statuses."""
    image = {"Content-Type": "application/x-image"}
    as_json = {"Content-Type": "application/json"}
    return [
        (image, b"", (400,)),
        (image, b"no photo", (415,)),
        (image, b"\xff\xd8\xff\xe0" + b"\0" * 100, (400,)),
        (image, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff\xff\xff\0\xff\xff\xff\x08\x02\0\0\0", (413,)),
        (image, b"\xff\xd8\xff\xee" + random.Random(0).randbytes(4000), (400, 413, 415)),
        (image, b"GIF89a" + random.Random(0).randbytes(400), (400, 413)),
        (as_json, b"{", (400,)),
        (as_json, b"[" * 100_000, (400,)),
        (as_json, b'{"instances": [{"b64": "bm8gcGhvdG8="}]}', (400,)),
        (as_json, b'{"instances": "x"}', (400,)),
        (as_json, b"\xff\xfe", (400,)),
        ({"Content-Type": "text/csv"}, b"a", (415,)),
        ({"Content-Type": "\xe9"}, b"a", (415,)),
        ({**image, "Accept": "image/png"}, b"x", (406,)),
    ]


@pytest.mark.parametrize(("headers", "body", "statuses"), hostile())
def test_a_bad_request_is_refused_with_a_message_and_harms_nothing(server, model, photos, headers, body, statuses):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", "/invocations", body, headers)
        response = connection.getresponse()
        content = response.read()
    assert response.status in statuses
    assert json.loads(content)["error"]
    good = (photos / "yellow/0.png").read_bytes()
    assert server.invoke(good, "image/png")[1]["probabilities"] == model.predict(good)[0]["probabilities"]


def test_a_body_that_is_too_large_is_not_read_to_its_end(server):
    for told in ("Content-Length: 999999999999", "Transfer-Encoding: chunked"):
        with socket.create_connection((server.host, server.port), timeout=60) as wire:
            wire.sendall(f"POST /invocations HTTP/1.1\r\nHost: x\r\n{told}\r\n\r\n".encode())
            with contextlib.suppress(OSError):  # The server may hang up while we still send.
                for _ in range(30):
                    chunk = b"x" * (1 << 20)
                    wire.sendall(b"100000\r\n" + chunk + b"\r\n" if "chunked" in told else chunk)
            with contextlib.suppress(ConnectionResetError):
                assert wire.recv(100).startswith(b"HTTP/1.1 413 ")
    assert server.ask("GET", "/ping")[0] == 200


def test_a_header_without_end_is_not_kept(server):
    with socket.create_connection((server.host, server.port), timeout=60) as wire:
        wire.sendall(b"GET /ping HTTP/1.1\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(1000):
                wire.sendall(b"x" * 100_000)
            raise AssertionError("all of it was taken")
    assert server.ask("GET", "/ping")[0] == 200


def test_a_client_that_hangs_up_costs_nothing(server, photos):
    for _ in range(5):
        with socket.create_connection((server.host, server.port)) as wire:
            wire.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    assert server.ask("GET", "/ping")[0] == 200


def test_requests_of_many_clients_go_through_the_model_together_and_each_gets_its_own_answer(server, model, photos):
    files = sorted(photos.rglob("*.png"))
    expected = [one["probabilities"] for one in model.predict(files)]
    before = [server.figure("batch_examples_sum"), server.figure("batch_examples_count")]

    def client(seed: int) -> int:
        wrong, order = 0, random.Random(seed).sample(range(len(files)), len(files))
        with contextlib.closing(http.client.HTTPConnection(server.host, server.port, timeout=60)) as connection:
            for place in order:
                body = files[place].read_bytes()
                status, _, content = asked(connection, "POST", "/invocations", body, Content_Type="image/png")
                wrong += status != 200 or json.loads(content)["probabilities"] != pytest.approx(
                    expected[place], abs=1e-6
                )
        return wrong

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(client, range(8))) == 0
    sum_, count = server.figure("batch_examples_sum") - before[0], server.figure("batch_examples_count") - before[1]
    assert sum_ == 8 * len(files)
    assert count < sum_ / 1.5


def test_sigterm_ends_the_server_when_what_it_accepted_is_answered(archive, photos):
    body = (photos / "cyan/0.png").read_bytes()
    answered, refused, told_to_close = [], [], []

    def client(server: Server) -> None:
        """Asks on until no connection is accepted; each one that was accepted must be answered."""
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        while True:
            try:
                connection.connect()
            except OSError:
                return
            while True:
                try:
                    status, headers, _ = asked(connection, "POST", "/invocations", body, Content_Type="image/png")
                except (OSError, http.client.HTTPException) as error:
                    refused.append(error)
                    break
                answered.append(status)
                if headers.get("connection") == "close":
                    told_to_close.append(status)
                    break
            connection.close()

    with serving(archive) as server, concurrent.futures.ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(client, server) for _ in range(6)]
        while len(answered) < 100:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        for one in clients:
            one.result(30)
    assert set(answered) == {200}
    assert len(told_to_close) >= 6  # So that a kept connection is not cut between two requests.
    assert len(refused) <= 6  # A connection that came in the very moment in which the listening ended.
    assert all(isinstance(error, (ConnectionResetError, http.client.RemoteDisconnected)) for error in refused)


def test_texts_are_served_too(text_archive):
    model = tf_finetune.load(text_archive)
    texts = ["tiny", "this one, to be sure, is a much longer text than the other"]
    plain = [{"probabilities": one["probabilities"]} for one in model.predict(texts)]
    with serving(text_archive, SAGEMAKER_MAX_PAYLOAD_IN_MB="1") as server:
        assert server.invoke(texts[0].encode(), "application/x-text") == (200, plain[0])
        assert server.invoke(f'{texts[0]}\n"{texts[1]}"\n'.encode(), "text/csv") == (200, {"predictions": plain})
        assert server.invoke(json.dumps(texts).encode(), "application/json") == (200, {"predictions": plain})
        assert server.invoke(b"x" * (2**20 + 1), "application/x-text")[0] == 413
        assert b'"task": "text"' in server.ask("GET", "/")[2]
        rows = ["x" * (number % 50 + 1) for number in range(3000)]
        body, as_csv = "\n".join(rows).encode(), {"Content_Type": "text/csv", "Accept": "text/csv"}
        with concurrent.futures.ThreadPoolExecutor(4) as pool:  # As batch transform asks.
            told = list(pool.map(lambda _: server.ask("POST", "/invocations", body, **as_csv)[2], range(4)))
        for content in told:
            found = np.loadtxt(content.decode().splitlines(), delimiter=",")
            assert np.abs(found - [one["probabilities"] for one in model.predict(rows)]).max() < 1e-6


@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        (["--port", "x"], {}, "--port: expected an integer of 0 or more; received 'x'."),
        (["--max-batch", "0"], {}, "--max-batch: expected an integer of 1 or more; received '0'."),
        (["--max-delay", "-1"], {}, "--max-delay: expected milliseconds from 0 to 10,000; received '-1'."),
        ([], {"SAGEMAKER_BIND_TO_PORT": "0x1"}, "SAGEMAKER_BIND_TO_PORT: expected an integer from 1 to 65535"),
        (["--host", "300.1.1.1"], {}, "Cannot listen on 300.1.1.1 port"),
    ],
)
def test_what_cannot_be_served_is_told(archive, flags, variables, message):
    command = [sys.executable, "-m", "tf_finetune.cli", "serve", str(archive), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
