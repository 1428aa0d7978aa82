"""Micro-batching: examples of requests that come at about the same time go through the model together.

One thread asks the model. While it computes, requests gather; it then takes up to `max_batch` examples of them, a
request with more than that in turns with the others, so that a large one holds up nobody. It waits up to `max_delay`
for more only while other requests are known to be on their way, so a lone client never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_finetune.errors import DataError
from tf_finetune.serving.records import Refusal, Settings

Answer = Callable[[Sequence[Any]], Any]  # Examples to float32 [N, K]; raises DataError where one cannot be decoded.


@dataclass(eq=False)
class Asked:
    """One request that waits.

    Attributes:
        examples: N texts, or bytes of photos.
        pixels: Of each photo; empty for texts.
        future: Is given float32 [N, K], or why there is none.
        taken: How many of the examples went to the model.
        found: Their rows, in parts.
        is_bad: Whether one of them could not be answered, which ends the request.
    """

    examples: Sequence[Any]
    pixels: Sequence[int]
    future: asyncio.Future[np.ndarray]
    taken: int = 0
    found: list[np.ndarray] = field(default_factory=list)
    is_bad: bool = False


Part = tuple[Asked, int, int]  # A request's examples from the one number to before the other.


class Batcher:
    """Gathers examples and has one thread answer them; `on_batch` is told the size of each batch and its seconds."""

    def __init__(self, answer: Answer, settings: Settings, on_batch: Callable[[int, float], None]) -> None:
        self._answer, self._settings, self._on_batch = answer, settings, on_batch
        self._asked: deque[Asked] = deque()
        self._changed = threading.Condition()  # Guards what is waiting.
        self._is_closing = False
        self._on_their_way = 0  # Requests that were begun and whose examples are not here yet.
        self.begun_at: float | None = None  # time.monotonic() of the batch that is in the model.
        self.answered_at = float("-inf")  # And of the last that was answered.
        self._thread = threading.Thread(target=self._run, name="tf-finetune-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Examples that wait."""
        with self._changed:
            return sum(len(one.examples) - one.taken for one in self._asked)

    @contextlib.contextmanager
    def expecting(self) -> Iterator[None]:
        """Has others wait for a request while the block makes examples of it, up to `max_delay`."""
        self._on_their_way += 1
        try:
            yield
        finally:
            self._on_their_way -= 1

    def check_room(self) -> None:
        """Raises Refusal, 503, where as many requests wait as may."""
        if len(self._asked) >= self._settings.max_waiting:
            raise Refusal(503, f"{self._settings.max_waiting:,} requests are waiting already. Try again later.")

    async def ask(self, examples: Sequence[Any], pixels: Sequence[int] = ()) -> np.ndarray:
        """Returns the probabilities of one request's examples, float32 [N, K].

        Args:
            examples: N texts, or bytes of photos; one or more.
            pixels: Of each photo; empty for texts.

        Raises:
            Refusal: 503 where too many requests wait already; 400 where an example cannot be decoded.
        """
        asked = Asked(examples, pixels, asyncio.get_running_loop().create_future())
        with self._changed:
            self.check_room()
            self._asked.append(asked)
            self._changed.notify()
        return await asked.future

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (batch := self._gathered()) is not None:
            if not batch:
                continue
            self.begun_at = time.monotonic()
            examples = [example for one, start, end in batch for example in one.examples[start:end]]
            self._tell(batch, self._rows(examples))
            self.answered_at = time.monotonic()
            self._on_batch(len(examples), self.answered_at - self.begun_at)
            self.begun_at = None

    def _gathered(self) -> list[Part] | None:
        """Returns the next batch, which is empty where all clients have gone; None at the end.

        Its photos together have no more pixels than one alone may have: what memory a batch takes is bounded so.
        """
        batch: list[Part] = []
        room, pixels = self._settings.max_batch, self._settings.max_pixels
        with self._changed:
            self._changed.wait_for(lambda: self._asked or self._is_closing)
            if not self._asked:
                return None
            until = time.monotonic() + self._settings.max_delay
            while room:
                if not self._asked:
                    left = until - time.monotonic() if self._on_their_way else 0
                    if left <= 0 or not self._changed.wait(left):
                        break
                    continue
                one = self._asked.popleft()
                if one.is_bad or one.future.done():  # Its client has gone.
                    continue
                start, end = one.taken, _end(one, room, pixels if batch else None)
                if end < len(one.examples):
                    self._asked.append(one) if end > start else self._asked.appendleft(one)
                if end == start:  # The next photo is for the next batch.
                    break
                one.taken, room, pixels = end, room - (end - start), pixels - sum(one.pixels[start:end])
                batch.append((one, start, end))
        return batch

    def _rows(self, examples: Sequence[Any]) -> Any:
        """Returns a row of probabilities for each example, or why it cannot be answered."""
        try:
            return np.asarray(self._answer(examples), np.float32)
        except Exception as error:  # One bad example must not cost the others their answers.
            return [error] if len(examples) == 1 else [self._rows([one])[0] for one in examples]

    def _tell(self, batch: Sequence[Part], rows: Sequence[Any]) -> None:
        """Hands a batch's rows to its requests, and tells those which have all of theirs, or one that is bad."""
        done: list[tuple[asyncio.Future[np.ndarray], Any]] = []
        place = 0
        for one, start, end in batch:
            part, place = rows[place : place + end - start], place + end - start
            faults = [(number, row) for number, row in enumerate(part, start) if isinstance(row, Exception)]
            if faults:
                one.is_bad = True
                done.append((one.future, _fault(*faults[0], len(one.examples))))
                continue
            one.found.append(np.asarray(part))
            if end == len(one.examples):
                done.append((one.future, np.concatenate(one.found)))
        if done:
            with contextlib.suppress(RuntimeError):  # The loop has ended.
                done[0][0].get_loop().call_soon_threadsafe(_settle, done)


def _end(one: Asked, room: int, pixels: int | None) -> int:
    """Returns up to where a request's examples go into a batch with room for so many, and so many pixels.

    None for the pixels: the batch is empty, and the first photo goes in whatever it has.
    """
    last = min(len(one.examples), one.taken + room)
    if not one.pixels:
        return last
    end, left = one.taken, one.pixels[one.taken] if pixels is None else pixels
    while end < last and one.pixels[end] <= left:
        left, end = left - one.pixels[end], end + 1
    return end


def _fault(number: int, error: Exception, count: int) -> Exception:
    if isinstance(error, DataError):
        place = f"instances[{number}]: " if count > 1 else ""
        return Refusal(400, f"{place}{error}")
    return error


def _settle(done: Sequence[tuple[asyncio.Future[np.ndarray], Any]]) -> None:
    for future, found in done:
        if future.done():  # Its client has gone, or another example was bad before.
            continue
        if isinstance(found, Exception):
            future.set_exception(found)
        else:
            future.set_result(found)
