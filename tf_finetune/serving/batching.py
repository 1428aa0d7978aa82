"""Micro-batching: examples of requests that come at about the same time go through the model together.

One thread asks the model. While it computes, examples gather; it then takes up to `max_batch` of them. It waits up to
`max_delay` for more only while other requests are known to be on their way, so a lone client never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tf_finetune.errors import DataError
from tf_finetune.serving.records import Refusal, Settings

Answer = Callable[[Sequence[Any]], Any]  # Examples to float32 [N, K]; raises DataError where one cannot be decoded.
Weigh = Callable[[Any], int]  # The pixels of an example.


NOTHING = "nothing"


@dataclass(frozen=True)
class Waiting:
    """One example that waits.

    Attributes:
        example: A text, or the bytes of a photo.
        pixels: Of a photo; 0 for a text.
        future: Is given its row, or why it cannot be answered.
        loop: The event loop of the future.
    """

    example: Any
    pixels: int
    future: asyncio.Future[list[float]]
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Gathers examples and has one thread answer them; `on_batch` is told the size of each batch and its seconds."""

    def __init__(
        self, answer: Answer, weigh: Weigh, settings: Settings, on_batch: Callable[[int, float], None]
    ) -> None:
        self._answer, self._weigh, self._settings, self._on_batch = answer, weigh, settings, on_batch
        self._queue: queue.Queue[Waiting | None] = queue.Queue()
        self._on_their_way = 0  # Requests that were begun and whose examples are not here yet.
        self.answered_at = float("-inf")  # time.monotonic() of the last batch that was answered.
        self._thread = threading.Thread(target=self._run, name="tf-finetune-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Examples that wait."""
        return self._queue.qsize()

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Has others wait for a request while the block makes examples of it, up to `max_delay`."""
        self._on_their_way += 1
        try:
            yield
        finally:
            self._on_their_way -= 1

    async def ask(self, examples: Sequence[Any]) -> list[list[float]]:
        """Returns the probabilities of each example.

        Raises:
            Refusal: 503 where too many wait already; 400 where one cannot be decoded.
        """
        if self.waiting + len(examples) > max(self._settings.max_waiting, len(examples)):
            raise Refusal(503, f"{self.waiting:,} examples are waiting already. Try again later.")
        loop = asyncio.get_running_loop()
        waiting = [Waiting(example, self._weigh(example), loop.create_future(), loop) for example in examples]
        for one in waiting:
            self._queue.put(one)
        answers = await asyncio.gather(*(one.future for one in waiting), return_exceptions=True)
        for number, found in enumerate(answers):
            if isinstance(found, DataError):
                place = f"instances[{number}]: " if len(answers) > 1 else ""
                raise Refusal(400, f"{place}{found}")
            if isinstance(found, BaseException):
                raise found
        return answers  # type: ignore[return-value]

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        first = self._queue.get()
        while first is not None:
            batch, ahead = self._gathered(first)
            started = time.monotonic()
            for one, row in zip(batch, self._rows([one.example for one in batch]), strict=True):
                one.loop.call_soon_threadsafe(_settle, one.future, row)
            self.answered_at = time.monotonic()
            self._on_batch(len(batch), self.answered_at - started)
            first = self._queue.get() if ahead == NOTHING else ahead

    def _gathered(self, first: Waiting) -> tuple[list[Waiting], Any]:
        """Returns the next batch, and what was taken from the queue too: None at its end, NOTHING mostly.

        Its photos together have no more pixels than one alone may have: what memory a batch takes is bounded so.
        """
        batch, pixels, until = [first], first.pixels, time.monotonic() + self._settings.max_delay
        while len(batch) < self._settings.max_batch:
            left = until - time.monotonic() if self._on_their_way else 0
            try:
                found = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
            except queue.Empty:
                break
            if found is None or pixels + found.pixels > self._settings.max_pixels:
                return batch, found
            pixels += found.pixels
            batch.append(found)
        return batch, NOTHING

    def _rows(self, examples: Sequence[Any]) -> list[Any]:
        """Returns a row of probabilities for each example, or why it cannot be answered."""
        try:
            return [[float(f"{value:.9g}") for value in row] for row in self._answer(examples)]
        except Exception as error:  # One bad example must not cost the others their answers.
            return [error] if len(examples) == 1 else [self._rows([one])[0] for one in examples]


def _settle(future: asyncio.Future[list[float]], row: Any) -> None:
    if future.done():  # Its client has gone.
        return
    if isinstance(row, BaseException):
        future.set_exception(row)
    else:
        future.set_result(row)
