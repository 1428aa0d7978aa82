"""SageMaker's HTTP contract around a loaded model: /ping, /invocations, /execution-parameters; /metrics and a page.

The contract is that of "Use Your Own Inference Code" in the SageMaker developer guide.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from tf_finetune.inspection import sniffing
from tf_finetune.serving import answers, bodies, figures, payloads
from tf_finetune.serving.batching import Batcher
from tf_finetune.serving.records import MEGABYTE, Refusal, Settings

log = logging.getLogger(__name__)

PING_SECONDS = 1.5  # SageMaker allows 2.
FRESH_SECONDS = 5.0  # A model that has just answered is well.
BUSY_SECONDS = 60.0  # A model may be busy with a batch for so long; an invocation may last no longer.
LARGE = 2**20  # Bytes of a body.
FEW = 10_000  # Probabilities that are written without delaying others.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'"


@dataclass
class State:
    """What the routes share.

    Attributes:
        model: A `predictor.Predictor`.
        settings: Limits; as many examples of a request as have no more probabilities than an answer may have.
        batcher: Asks the model.
        told: The figures.
        held: Counts the bytes of bodies.
        one_large: Whoever reads a large body has it.
        probe: An example that the model is asked for /ping.
        is_draining: Whether the server is to end: clients are told to connect elsewhere.
    """

    model: Any
    settings: Settings
    batcher: Batcher = field(init=False)
    told: figures.Figures = field(init=False)
    held: bodies.Held = field(init=False)
    one_large: asyncio.Lock = field(default_factory=asyncio.Lock)
    probe: Any = None
    is_draining: bool = False

    def __post_init__(self) -> None:
        classes, limits = len(self.model.class_names), self.settings
        most = max(1, min(limits.max_examples, limits.max_probabilities // classes))
        self.settings = dataclasses.replace(limits, max_examples=most)
        self.held = bodies.Held(max(self.settings.max_held, self.settings.max_payload))
        self.told = figures.make(lambda: self.batcher.waiting, lambda: self.held.size)
        self.batcher = Batcher(self.model.probabilities, self.settings, self._note)

    def _note(self, size: int, seconds: float) -> None:
        self.told.batches.observe(size)
        self.told.model_seconds.observe(seconds)


def pixels_of(example: Any) -> int:
    """Returns the pixels of a photo's bytes; 0 for a text."""
    header = sniffing.sniff(example) if isinstance(example, bytes) else None
    return header.pixels if header else 0


def make(state: State) -> Starlette:
    """Returns the application."""

    async def ping(request: Request) -> Response:
        return Response(status_code=200 if await _is_well(state) else 503)

    async def invoke(request: Request) -> Response:
        started = time.monotonic()
        response = await _invoked(request, state)
        state.told.requests.labels(str(response.status_code)).inc()
        state.told.seconds.observe(time.monotonic() - started)
        return response

    async def parameters(request: Request) -> Response:
        limits = {"MaxConcurrentTransforms": 4, "BatchStrategy": "MULTI_RECORD"}
        return JSONResponse({**limits, "MaxPayloadInMB": max(1, state.settings.max_payload // MEGABYTE)})

    async def metrics(request: Request) -> Response:
        return Response(state.told.text(), media_type="text/plain; version=0.0.4")

    async def page(request: Request) -> Response:
        return HTMLResponse(_page(state.model), headers={"Content-Security-Policy": POLICY})

    routes = [
        Route("/ping", ping),
        Route("/invocations", invoke, methods=["POST"]),
        Route("/execution-parameters", parameters),
        Route("/metrics", metrics),
        Route("/", page),
    ]
    application = Starlette(routes=routes, exception_handlers={HTTPException: _wrong_address, Exception: _our_fault})
    application.router.redirect_slashes = False  # A redirect would go to whatever the client calls this host.
    return application


async def _invoked(request: Request, state: State) -> Response:
    try:
        accept = ",".join(request.headers.getlist("accept"))
        kind, is_verbose = answers.accepted(accept, state.settings.default_accept)
        state.batcher.check_room()
        with state.held.taking() as take:
            with state.batcher.expecting():
                examples, pixels = await _examples(request, state, take)
            rows = await _while_there(request, state.batcher.ask(examples, pixels))
        write = functools.partial(answers.body, rows, state.model.class_names, kind, is_verbose)
        content = write() if rows.size <= FEW else await run_in_threadpool(write)
        return Response(content, media_type=kind)
    except Refusal as refusal:
        return _refused(refusal.status, refusal.message)
    except ClientDisconnect:
        return Response(status_code=400)  # Nobody reads it.
    except asyncio.CancelledError:
        if not state.is_draining:
            raise
        return _refused(503, "The server is ending. Try again elsewhere.")


async def _examples(request: Request, state: State, take: Callable[[int], None]) -> tuple[list[Any], list[int]]:
    """Returns a request's examples, and the pixels of each if they are photos."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise Refusal(415, f"Expected a body without Content-Encoding. Received: {encoding[:100]}.")
    body = await bodies.read(request, state.settings.max_payload, take)
    turn = state.one_large if len(body) > LARGE else contextlib.nullcontext()
    async with turn:  # One at a time: their JSON is read in one go, in which no other thread has its turn.
        return await run_in_threadpool(_read, request.headers.get("content-type", ""), body, state)


def _read(header: str, body: bytes, state: State) -> tuple[list[Any], list[int]]:
    try:
        examples = payloads.read(header, body, state.model.task, state.settings)
        return examples, [pixels_of(example) for example in examples] if state.model.task == "image" else []
    except Refusal as error:
        refusal = Refusal(error.status, error.message)
    raise refusal  # Without a traceback, whose frames hold all that was read.


async def _while_there(request: Request, asking: Coroutine[Any, Any, np.ndarray]) -> np.ndarray:
    """Returns what is asked; if the client hangs up before, its examples need not go to the model.

    Raises:
        ClientDisconnect: It did.
    """
    answer, gone = asyncio.ensure_future(asking), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _is_well(state: State) -> bool:
    """Returns whether the model answers: it has just done so, is at it for not too long, or does now."""
    now, begun_at = time.monotonic(), state.batcher.begun_at
    if now - state.batcher.answered_at < FRESH_SECONDS or begun_at and now - begun_at < BUSY_SECONDS:
        return True
    try:
        await asyncio.wait_for(state.batcher.ask([state.probe]), PING_SECONDS)
    except (asyncio.TimeoutError, Refusal):
        return False
    except Exception:
        log.exception("the model does not answer")
        return False
    return True


def _refused(status: int, message: str) -> Response:
    headers = {"Retry-After": "1"} if status == 503 else {"Connection": "close"} if status in (408, 413) else {}
    return JSONResponse({"error": message}, status, headers)


async def _wrong_address(request: Request, error: Any) -> Response:
    return JSONResponse(
        {
            "error": f"{error.detail}: {request.method} {request.url.path[:200]}. Expected POST /invocations, or GET "
            "/ping, /execution-parameters, /metrics or /."
        },
        error.status_code,
        error.headers,
    )


async def _our_fault(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"Internal error: {type(error).__name__}."}, 500)


def _page(model: Any) -> str:
    text = (resources.files("tf_finetune") / "assets" / "serving.html").read_text(encoding="utf-8")
    about = {"task": model.task, "classes": list(model.class_names)}
    return text.replace("{ABOUT}", json.dumps(about).replace("<", "\\u003c"))
