"""What the server is told and what it refuses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tf_finetune.errors import UsageError

PORT = 8080
MEGABYTE = 1024 * 1024
ACCEPT = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"


class Refusal(Exception):  # noqa: N818  (an answer to a client, no fault of ours)
    """A request that is refused: the HTTP status and the message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Settings:
    """How the server behaves.

    Attributes:
        host: Address to listen on.
        port: TCP port; 0 for a free one.
        max_batch: Examples that go through the model at once, of all requests together; 1 is one at a time.
        max_delay: Seconds that an example waits for others which are on their way already.
        max_payload: Bytes of a request's body.
        max_pixels: Of one photo.
        max_characters: Of one text.
        max_examples: Of one request.
        max_probabilities: Of one answer: examples times classes, so that answers stay within memory.
        max_waiting: Requests that may wait for the model; more are answered 503.
        max_held: Bytes of the bodies that are in memory, from their first byte to the answer, of all requests together;
            what does not fit is answered 503. One body always fits.
        default_accept: What is answered where a request does not say, or says that anything will do.
        drain_seconds: After SIGTERM, in which requests are still accepted and clients are told to connect elsewhere.
    """

    host: str = "127.0.0.1"
    port: int = PORT
    max_batch: int = 32
    max_delay: float = 0.005
    max_payload: int = 25 * MEGABYTE
    max_pixels: int = 50_000_000
    max_characters: int = 100_000
    max_examples: int = 1_000_000
    max_probabilities: int = 10_000_000
    max_waiting: int = 1024
    max_held: int = 512 * MEGABYTE
    default_accept: str = "application/json"
    drain_seconds: float = 1.0


def of_environment(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Returns the settings that SageMaker's variables make: port, max_payload and default_accept.

    Raises:
        UsageError: One is no number, or out of range, or no type of answer that there is.
    """
    found: dict[str, Any] = {}
    for variable, name, unit, most in (
        ("SAGEMAKER_BIND_TO_PORT", "port", 1, 65535),
        ("SAGEMAKER_MAX_PAYLOAD_IN_MB", "max_payload", MEGABYTE, 2**20),
    ):
        text = environ.get(variable)
        if text:
            if not text.isdecimal() or not 0 < int(text) <= most:
                raise UsageError(f"{variable}: expected an integer from 1 to {most}; received {text!r}.")
            found[name] = int(text) * unit
    if environ.get(ACCEPT):
        from tf_finetune.serving import answers

        try:
            answers.accepted(environ[ACCEPT])
        except Refusal as refusal:
            raise UsageError(f"{ACCEPT}: {refusal.message}") from None
        found["default_accept"] = environ[ACCEPT]
    return found
