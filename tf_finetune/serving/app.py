"""SageMaker's HTTP contract around a loaded model: /ping, /invocations, /execution-parameters; /metrics and a page.

The contract is that of "Use Your Own Inference Code" in the SageMaker developer guide.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from tf_finetune.inspection import sniffing
from tf_finetune.serving import answers, figures, payloads
from tf_finetune.serving.batching import Batcher
from tf_finetune.serving.records import MEGABYTE, Refusal, Settings

log = logging.getLogger(__name__)

PING_SECONDS = 1.5  # SageMaker allows 2.
FRESH_SECONDS = 5.0  # A model that has just answered is well.
LINGER_SECONDS = 2.0  # In which the rest of a body that is too large is read.
BODY_SECONDS = 60.0  # In which a body must have come; an invocation may last no longer.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob:; connect-src 'self'"


@dataclass
class State:
    """What the routes share.

    Attributes:
        model: A `predictor.Predictor`.
        settings: Limits.
        batcher: Asks the model.
        told: The figures.
        probe: An example that the model is asked for /ping.
        is_draining: Whether the server is to end: clients are told to connect elsewhere.
    """

    model: Any
    settings: Settings
    batcher: Batcher = field(init=False)
    told: figures.Figures = field(init=False)
    probe: Any = None
    is_draining: bool = False

    def __post_init__(self) -> None:
        self.told = figures.make(lambda: self.batcher.waiting)
        self.batcher = Batcher(self.model.probabilities, pixels_of, self.settings, self._note)

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
    return Starlette(routes=routes, exception_handlers={HTTPException: _wrong_address, Exception: _our_fault})


async def _invoked(request: Request, state: State) -> Response:
    try:
        kind, is_verbose = answers.accepted(request.headers.get("accept", ""))
        with state.batcher.expecting():
            body = await asyncio.wait_for(_body(request, state.settings.max_payload), BODY_SECONDS)
            header = request.headers.get("content-type", "")
            examples = await run_in_threadpool(payloads.read, header, body, state.model.task, state.settings)
        rows = await state.batcher.ask(examples)
        return Response(answers.body(rows, state.model.class_names, kind, is_verbose), media_type=kind)
    except Refusal as refusal:
        return _refused(refusal.status, refusal.message)
    except asyncio.TimeoutError:
        return _refused(408, f"Expected the body within {BODY_SECONDS:g} seconds.")
    except ClientDisconnect:
        return Response(status_code=400)  # Nobody reads it.


async def _body(request: Request, most: int) -> bytes:
    """Returns a request's body, read no further than is allowed."""
    told = request.headers.get("content-length", "")
    found, parts = bytearray(), request.stream()
    if not (told.isdecimal() and int(told) > most):
        async for part in parts:
            found += part
            if len(found) > most:
                break
        else:
            return bytes(found)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_discarded(parts, most), LINGER_SECONDS)
    raise Refusal(413, f"Expected a body of up to {most:,} bytes. Received: more.")


async def _discarded(parts: AsyncIterator[bytes], most: int) -> None:
    """Reads some more and forgets it: a client that is still sending would see a broken connection, not our answer."""
    size = 0
    async for part in parts:
        size += len(part)
        if size > most:
            return


async def _is_well(state: State) -> bool:
    """Returns whether the model answers: it has just done so, or does now."""
    if time.monotonic() - state.batcher.answered_at < FRESH_SECONDS:
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
