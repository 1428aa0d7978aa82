"""The server's application without a network or TensorFlow: bodies, room, statuses, and who waits for whom."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("prometheus_client", reason="the extra [serve] is not installed")

from tf_finetune.serving import app, bodies
from tf_finetune.serving.records import Settings

TEXT = (b"content-type", b"application/x-text")


class Model:
    """Answers a text by whether it is long; a text "wait" when it is told to go on."""

    task, class_names = "text", ("short", "long")

    def __init__(self) -> None:
        self.go, self.asked_for = threading.Event(), []

    def probabilities(self, texts: list[str]) -> list[list[float]]:
        self.asked_for.extend(texts)
        if "wait" in texts:
            self.go.wait(10)
        return [[0.75, 0.25] if len(text) < 10 else [0.25, 0.75] for text in texts]


class Request:
    """One request as a server hands it to an application, and what is answered."""

    def __init__(self, state: app.State, path: str, *headers: tuple[bytes, bytes], method: str = "POST") -> None:
        self._application, self._parts = app.make(state), asyncio.Queue()
        self.received, self.sent = 0, []
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": list(headers),
            "server": ("localhost", 80),
            "client": ("localhost", 1),
        }

    def send(self, part: bytes, more: bool = False) -> Request:
        self._parts.put_nowait({"type": "http.request", "body": part, "more_body": more})
        return self

    def hang_up(self) -> None:
        self._parts.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        async def receive() -> Any:
            self.received += 1
            return await self._parts.get()

        async def send(message: Any) -> None:
            self.sent.append(message)

        await self._application(self._scope, receive, send)
        headers = {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}
        return self.sent[0]["status"], headers, b"".join(one["body"] for one in self.sent[1:])


@contextlib.contextmanager
def running(**settings: Any) -> Iterator[app.State]:
    state = app.State(Model(), Settings(**settings), probe="probe")
    try:
        yield state
    finally:
        state.model.go.set()
        state.batcher.close()


def asked(state: app.State, body: bytes, *headers: tuple[bytes, bytes], path: str = "/invocations") -> Any:
    return asyncio.run(Request(state, path, *headers).send(body).answer())


def test_several_accept_headers_are_one_and_none_is_the_default():
    with running(default_accept="application/jsonlines") as state:
        assert asked(state, b"a", TEXT)[2] == b'{"probabilities": [0.75, 0.25]}\n'
        low, high = (b"accept", b"application/json;q=0.1"), (b"accept", b"text/csv")
        assert asked(state, b"a", TEXT, low, high)[2] == b"0.75,0.25\n"
        status, headers, content = asked(state, b"a", TEXT, (b"accept", b"text/html,*/*;q=0.8"))
        assert (status, headers["content-type"]) == (200, "application/jsonlines")


def test_a_body_that_is_encoded_is_refused():
    with running() as state:
        status, _, content = asked(state, b"\x1f\x8b", TEXT, (b"content-encoding", b"gzip"))
        assert status == 415
        assert "Expected a body without Content-Encoding. Received: gzip." in json.loads(content)["error"]
        assert asked(state, b"a", TEXT, (b"content-encoding", b"Identity"))[0] == 200


def test_no_address_is_redirected():
    with running() as state:
        for path in ("/invocations/", "//invocations", "/invocations/../ping"):
            assert asked(state, b"a", TEXT, path=path)[0] == 404


@pytest.mark.parametrize("length", [b"11", b"9" * 30, b"9" * 5000])
def test_a_body_that_is_told_to_be_too_large_is_not_waited_for(length):
    with running(max_payload=10) as state:
        request = Request(state, "/invocations", TEXT, (b"content-length", length), (b"expect", b"100-continue"))
        status, headers, _ = asyncio.run(request.answer())
        assert (status, headers["connection"]) == (413, "close")
        assert request.received == 0  # To receive would tell the client to send.


def test_a_body_that_stalls_is_given_up(monkeypatch):
    monkeypatch.setattr(bodies, "STALL_SECONDS", 0.05)
    with running() as state:
        request = Request(state, "/invocations", TEXT).send(b"a", more=True)
        status, headers, content = asyncio.run(request.answer())
        assert (status, headers["connection"]) == (408, "close")
        assert "Expected the body within 60 seconds" in json.loads(content)["error"]
        assert state.held.size == 0


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("told", [True, False])
def test_bodies_of_all_requests_together_are_bounded(told):
    async def crowd(state: app.State) -> tuple[Any, ...]:
        length = [(b"content-length", b"60")] if told else []
        first = Request(state, "/invocations", TEXT, *length).send(b"x" * 50, more=True)
        waiting = asyncio.ensure_future(first.answer())
        await until(lambda: state.held.size == (60 if told else 50))
        late = Request(state, "/invocations", TEXT, *([(b"content-length", b"51")] if told else []))
        refused = await late.send(b"x" * 51).answer()
        small = await Request(state, "/invocations", TEXT).send(b"x" * 20).answer()
        first.send(b"x" * 10)
        return refused, late.received, small, await waiting

    with running(max_payload=90, max_held=100) as state:
        (status, headers, content), received, small, first = asyncio.run(crowd(state))
        assert (status, headers["retry-after"]) == (503, "1")
        assert "bytes of requests are waiting already" in json.loads(content)["error"]
        assert received == (0 if told else 1)
        assert small[0] == first[0] == 200
        assert state.held.size == 0


def test_one_body_always_has_room():
    with running(max_payload=90, max_held=10) as state:
        assert asked(state, b"x" * 90, TEXT)[0] == 200


def test_when_too_many_requests_wait_a_body_is_not_read():
    async def crowd(state: app.State) -> tuple[Any, ...]:
        busy = [Request(state, "/invocations", TEXT).send(b"wait") for _ in range(2)]
        tasks = [asyncio.ensure_future(busy[0].answer())]
        await until(lambda: "wait" in state.model.asked_for)
        tasks.append(asyncio.ensure_future(busy[1].answer()))
        await until(lambda: state.batcher.waiting == 1)
        late = Request(state, "/invocations", TEXT)
        refused = await late.answer()
        state.model.go.set()
        return refused, late.received, [(await task)[0] for task in tasks]

    with running(max_waiting=1) as state:
        refused, received, statuses = asyncio.run(crowd(state))
        assert (refused[0], received, statuses) == (503, 0, [200, 200])
        assert json.loads(refused[2])["error"] == "1 requests are waiting already. Try again later."


def test_more_examples_than_an_answer_may_have_are_refused():
    with running(max_probabilities=10) as state:
        lines = (b"content-type", b"text/csv")
        assert asked(state, b"a\n" * 5, lines)[0] == 200
        assert asked(state, b"a\n" * 6, lines)[0] == 413


def test_a_client_that_hangs_up_is_forgotten():
    async def crowd(state: app.State) -> int:
        busy = asyncio.ensure_future(Request(state, "/invocations", TEXT).send(b"wait").answer())
        await until(lambda: "wait" in state.model.asked_for)
        gone = Request(state, "/invocations", TEXT).send(b"forget me")
        task = asyncio.ensure_future(gone.answer())
        await until(lambda: state.batcher.waiting == 1)
        gone.hang_up()
        await task
        held = state.held.size
        state.model.go.set()
        await busy
        return held

    with running() as state:
        assert asyncio.run(crowd(state)) == len("wait")
    assert "forget me" not in state.model.asked_for


def test_what_is_cut_off_at_the_end_is_told():
    async def ending(state: app.State) -> Any:
        busy = asyncio.ensure_future(Request(state, "/invocations", TEXT).send(b"wait").answer())
        await until(lambda: "wait" in state.model.asked_for)
        state.is_draining = True
        busy.cancel()
        return await busy

    with running() as state:
        status, headers, content = asyncio.run(ending(state))
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(content)["error"] == "The server is ending. Try again elsewhere."


def test_a_model_that_is_busy_is_well_but_not_for_ever(monkeypatch):
    monkeypatch.setattr(app, "PING_SECONDS", 0.05)
    monkeypatch.setattr(app, "FRESH_SECONDS", 0.0)

    async def crowd(state: app.State) -> tuple[int, ...]:
        def ping() -> Any:
            return Request(state, "/ping", method="GET").answer()

        idle = (await ping())[0]
        busy = asyncio.ensure_future(Request(state, "/invocations", TEXT).send(b"wait").answer())
        await until(lambda: "wait" in state.model.asked_for)
        well = (await ping())[0]
        monkeypatch.setattr(app, "BUSY_SECONDS", 0.0)
        stuck = (await ping())[0]
        state.model.go.set()
        await busy
        return idle, well, stuck

    with running() as state:
        assert asyncio.run(crowd(state)) == (200, 200, 503)
