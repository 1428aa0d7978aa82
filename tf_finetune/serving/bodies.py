"""Bodies of requests: read within the limits of one, of all together, and of time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

from tf_finetune.serving.records import Refusal

if TYPE_CHECKING:
    from starlette.requests import Request

LINGER_SECONDS = 2.0  # In which the rest of a body that is too large is read.
BODY_SECONDS = 60.0  # In which a body must have come; an invocation may last no longer.
STALL_SECONDS = 10.0  # In which some of it must come.
DIGITS = 18  # Of a length that is a number to us; more is too large anyhow.


class Held:
    """Counts the bytes of bodies that are in memory, of all requests together; all on the event loop."""

    def __init__(self, most: int) -> None:
        self.most, self.size = most, 0

    @contextlib.contextmanager
    def taking(self) -> Iterator[Callable[[int], None]]:
        """Gives what takes room for so many bytes more, or raises Refusal, 503; with the block all are given back."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            if self.size + count > self.most:
                raise Refusal(503, f"{self.size:,} bytes of requests are waiting already. Try again later.")
            self.size, taken = self.size + count, taken + count

        try:
            yield take
        finally:
            self.size -= taken


async def read(request: Request, most: int, take: Callable[[int], None]) -> bytes:
    """Returns a request's body, read no further than is allowed.

    Args:
        request: Its length is believed where it tells one: room for all of it is taken before the first byte is read.
        most: Bytes that one body may have.
        take: See `Held`.

    Raises:
        Refusal: 413: it is too large; 408: it does not come; 503: there is no room.
    """
    try:
        return await asyncio.wait_for(_read(request, most, take), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Refusal(
            408, f"Expected the body within {BODY_SECONDS:g} seconds, and some of it each {STALL_SECONDS:g}."
        ) from None


async def _read(request: Request, most: int, take: Callable[[int], None]) -> bytes:
    told = request.headers.get("content-length", "")
    length = (int(told) if len(told) <= DIGITS else most + 1) if told.isdecimal() else None
    found, parts = bytearray(), aiter(request.stream())
    if length is None or length <= most:
        take(length or 0)
        while part := await asyncio.wait_for(anext(parts), STALL_SECONDS):  # The last is empty.
            if len(found) + len(part) > most:
                break
            if length is None:
                take(len(part))
            found += part
        else:
            return bytes(found)
        found.clear()
    if length is None or "expect" not in request.headers:  # Else it is not sending yet.
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
