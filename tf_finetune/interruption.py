"""What ends a training before its last epoch: a request to the process, or the clock.

SageMaker sends SIGTERM before it takes a machine away, and gives 120 seconds.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

_asked = threading.Event()
_listening = threading.Event()
_installed = threading.Event()


def install() -> None:
    """Has SIGTERM end a training after its step; at any other time it interrupts the process as Ctrl-C does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
        _installed.set()


def reinstall() -> None:
    """Does so again, if it was done: TensorFlow's server for several hosts puts its own handler in place."""
    if _installed.is_set():
        install()


@contextlib.contextmanager
def heeded(seconds: float | None = None, started: float | None = None) -> Iterator[Callable[[], str]]:
    """Gives the function that says why a training is to end now, or nothing.

    Args:
        seconds: After which it is to end; None for never.
        started: `time.monotonic()` from which they count; by default now.
    """
    reinstall()
    start = time.monotonic() if started is None else started
    _asked.clear()
    _listening.set()

    def reason() -> str:
        if _asked.is_set():
            return "the process was asked to end (SIGTERM)"
        if seconds is not None and time.monotonic() - start >= seconds:
            return f"max_seconds={seconds:g} have passed"
        return ""

    try:
        yield reason
    finally:
        _listening.clear()


def _terminate(number: int, frame: FrameType | None) -> None:
    if not _listening.is_set():
        raise KeyboardInterrupt
    _asked.set()
