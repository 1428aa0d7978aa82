"""Messages between hosts over one TCP connection: numbers, texts, lists and arrays; nothing that could run code.

A message is a byte for its kind, the length of its JSON in eight bytes, the JSON, and the bytes of the arrays that the
JSON mentions.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

HEADER = struct.Struct("!cQ")
HELLO, VALUE, BEAT, STOP, FAILED, BYE = (bytes([letter]) for letter in b"HVBSFQ")
ARRAY = "\0array"
KINDS_OF_NUMBERS = "biuf"
MOST_JSON = 2**32  # Bytes; a stranger's first message is held to MOST_HELLO.
MOST_HELLO = 2**16


class Wire:
    """One end of a connection. Several threads may send, one receives.

    Args:
        connection: Connected.
        silence: Seconds without a byte after which the other end counts as lost.
    """

    def __init__(self, connection: socket.socket, silence: float) -> None:
        connection.setblocking(True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self.silence = connection, silence
        self._sending = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)

    def send(self, kind: bytes, value: Any = None) -> None:
        """Sends a message; waits while the other end does not take it.

        Raises:
            OSError: The connection is broken.
        """
        arrays: list[np.ndarray] = []
        text = json.dumps(_plain(value, arrays)).encode()
        with self._sending:
            self._socket.sendall(HEADER.pack(kind, len(text)) + text)
            for array in arrays:
                self._socket.sendall(_bytes_of(array))

    def receive(self, most: int = MOST_JSON) -> tuple[bytes, Any]:
        """Returns the next message: its kind and its value, whose tuples have become lists.

        Raises:
            OSError: The connection is broken, closed, or silent for too long.
            ValueError: What comes is no message.
        """
        kind, size = HEADER.unpack(self._received(HEADER.size))
        if size > most:
            raise ValueError("a message that is too long")
        return kind, self._whole(json.loads(self._received(size)))

    def end(self) -> None:
        """Has both ends receive no more."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends the connection, of which nothing is being received."""
        self._selector.close()
        self._socket.close()

    def _received(self, size: int) -> bytes:
        content = bytearray(size)
        self._fill(memoryview(content))
        return bytes(content)

    def _fill(self, place: memoryview) -> None:
        while place:
            if not self._selector.select(self.silence):
                raise TimeoutError(f"it was silent for {self.silence:g} seconds")
            count = self._socket.recv_into(place)
            if not count:
                raise ConnectionResetError("it closed the connection")
            place = place[count:]

    def _whole(self, value: Any) -> Any:
        """Returns a value with its arrays, which are received in the order in which it mentions them."""
        if isinstance(value, list):
            return [self._whole(one) for one in value]
        if not isinstance(value, dict):
            return value
        if ARRAY not in value:
            return {name: self._whole(one) for name, one in value.items()}
        kind, shape = value[ARRAY]
        dtype = np.dtype(str(kind))
        if dtype.kind not in KINDS_OF_NUMBERS:
            raise ValueError(f"an array of type {dtype}")
        array = np.empty(tuple(map(int, shape)), dtype)
        self._fill(_bytes_of(array))
        return array


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """Returns what JSON can hold of a value, and adds its arrays to a list."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in KINDS_OF_NUMBERS:
            raise TypeError(f"an array of type {value.dtype}")
        arrays.append(np.ascontiguousarray(value))
        return {ARRAY: [value.dtype.str, list(value.shape)]}
    if isinstance(value, Mapping):
        return {name: _plain(one, arrays) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one, arrays) for one in value]
    return value


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
