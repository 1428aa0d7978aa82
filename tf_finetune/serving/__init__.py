"""HTTP around a trained model: SageMaker's serving contract, on a laptop as in a container."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import logging
import signal
import socket
from collections.abc import Callable
from typing import Any

from tf_finetune.errors import UsageError
from tf_finetune.serving.records import Settings

log = logging.getLogger(__name__)

NEEDED = ("starlette", "uvicorn", "prometheus_client")
GRACE_SECONDS = 25  # For requests under way after SIGTERM; SageMaker kills after 30.


def check_installed() -> None:
    """Raises UsageError where the extra [serve] is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f'serve needs {", ".join(missing)}. Run: pip install "tf_finetune[serve]"')


def run(model: Any, settings: Settings, started: Callable[[str], None] | None = None) -> None:
    """Serves a loaded model until SIGTERM or SIGINT; what was accepted by then is answered.

    Args:
        model: A `predictor.Predictor`.
        settings: Where to listen, and limits.
        started: Is called with the server's address once it listens.

    Raises:
        UsageError: The address cannot be listened on.
    """
    check_installed()
    listening = _listen(settings)
    try:
        from tf_finetune.serving import app

        state = app.State(model, settings, probe=_warmed_up(model))
        asyncio.run(_serve(state, listening, started))
    finally:
        listening.close()


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
        # Connections inherit it. asyncio sees a socket of protocol 0 and would leave it out; each answer, sent in two
        # pieces, would then wait 40 ms for the client's acknowledgement of the first.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"Cannot listen on {settings.host} port {settings.port}: {error}. Give another --port or --host."
        ) from None


def _warmed_up(model: Any) -> Any:
    """Returns an example that the model has answered, alone and in a batch, so that no client pays for the first."""
    example: Any = "warm-up"
    if model.task == "image":
        from PIL import Image

        stream = io.BytesIO()
        Image.new("RGB", (64, 64), "gray").save(stream, "JPEG")
        example = stream.getvalue()
    for count in (1, 2):
        model.probabilities([example] * count)
    return example


async def _serve(state: Any, listening: socket.socket, started: Callable[[str], None] | None) -> None:
    import uvicorn

    from tf_finetune.serving import app

    class Server(uvicorn.Server):
        """uvicorn's, but for signals: they are ours."""

        def capture_signals(self) -> Any:
            return contextlib.nullcontext()

    config = uvicorn.Config(
        _closing(app.make(state), state),
        http="h11",  # One parser everywhere, with a limit of headers, whatever else is installed.
        ws="none",
        log_level="error",  # Not a line for each client that speaks something else than HTTP.
        access_log=False,
        lifespan="off",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    server = Server(config)
    loop = asyncio.get_running_loop()

    def end() -> None:
        if not state.is_draining:
            log.info("ending: what was accepted is answered")
            state.is_draining = True
            loop.call_later(state.settings.drain_seconds, setattr, server, "should_exit", True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    if started:
        host, port = listening.getsockname()[:2]
        started(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    await server.serve(sockets=[listening])
    await asyncio.to_thread(state.batcher.close)


def _closing(application: Any, state: Any) -> Any:
    """Returns the application, which while the server is ending tells clients to close their connections."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            if state.is_draining and message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await application(scope, receive, told)

    return wrapped
