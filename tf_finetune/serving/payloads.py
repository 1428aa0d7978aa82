"""Bodies of requests to examples: the content types of SageMaker's built-in algorithms and of TensorFlow Serving."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

from tf_finetune.inspection import decoding, sniffing
from tf_finetune.serving.records import Refusal, Settings

JSON, LINES, CSV = "application/json", "application/jsonlines", "text/csv"
TEXTS = ("application/x-text", "text/plain")
PHOTOS = (
    "application/x-image",
    *(f"image/{kind}" for kind in ("jpeg", "png", "gif", "bmp", "webp", "tiff", "avif")),
)
LINES_TOO = ("application/jsonl", "application/x-ndjson")
MOST_NESTED = 2_100_000  # Brackets of a body: two for each of a million examples, {"bytes_inputs": {"b64": "..."}}.
FIELD = 2**31 - 1  # Characters of a CSV field: what is too long is for `_text` to say.
STATUS = {
    "not_an_image": 415,
    "unsupported_format": 415,
    "too_many_pixels": 413,
}  # By why a photo cannot be decoded; or 400.
BYTES_INPUT, TEXT_INPUT = "bytes_inputs", "text_inputs"  # The names of the exported signatures' inputs.


def read(header: str, body: bytes, task: str, settings: Settings) -> list[Any]:
    """Returns the examples of a request: bytes of photos, or texts.

    Args:
        header: Its Content-Type; empty is JSON.
        body: Its body.
        task: "image" or "text".
        settings: The limits of one example, and of their number.

    Raises:
        Refusal: 400, 413 or 415, with what was expected.
    """
    kind = header.split(";", maxsplit=1)[0].strip().lower() or JSON
    wanted = (*(PHOTOS if task == "image" else (*TEXTS, CSV)), JSON, LINES)
    if kind not in (*wanted, *LINES_TOO):
        raise Refusal(415, f"Expected the content type {', '.join(wanted)}. Received: {kind[:100]}.")
    if not body:
        raise Refusal(400, f"Expected a body of type {kind}. Received: nothing.")
    if kind in PHOTOS:
        return [_photo(body, settings, "")]
    if kind in TEXTS:
        return [_text(_decoded(body), settings, "")]
    if kind == CSV:
        rows = enumerate(_up_to(settings.max_examples, _rows(_decoded(body))), 1)
        return [_text(text, settings, f"row {number}: ") for number, text in rows]
    nested = body.count(b"[") + body.count(b"{")
    if nested > MOST_NESTED:  # To make so many objects takes seconds, in which all others wait.
        raise Refusal(413, f"Expected up to {MOST_NESTED:,} lists and objects. Received: {nested:,} brackets.")
    found = _up_to(settings.max_examples, _lines(body) if kind != JSON else _instances(_json(_decoded(body), "")))
    return [_example(item, task, settings, f"instances[{number}]: ") for number, item in enumerate(found)]


def _up_to(most: int, found: Iterable[Any]) -> list[Any]:
    examples = list(itertools.islice(found, most + 1))
    if len(examples) > most:
        raise Refusal(413, f"Expected up to {most:,} examples in a request. Received: more.")
    return examples


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(400, f"Expected UTF-8. Received: a body that is not, at byte {error.start}.") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"{place}Expected JSON. Received: a body that is not ({str(error)[:200]}).") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _instances(request: Any) -> list[Any]:
    """Returns the examples of TensorFlow Serving's request, by rows ("instances") or by columns ("inputs")."""
    if isinstance(request, dict):
        request = request.get("instances", request.get("inputs"))
        if isinstance(request, dict) and len(request) == 1:  # A column of a named input.
            request = next(iter(request.values()))
    if isinstance(request, list) and request:
        return request
    if isinstance(request, list):
        raise Refusal(400, "Expected one example or more. Received: none.")
    raise Refusal(400, 'Expected {"instances": ["a text", ...]} or {"instances": [{"b64": "..."}, ...]}.')


def _lines(body: bytes) -> Iterator[Any]:
    """Yields the examples of JSON Lines: each line one of them, or a whole request.

    Lines end by \\n or \\r\\n alone: what else ends lines in Python, as U+2028, may be inside of a JSON string.
    """
    is_empty = True
    for number, line in enumerate(_decoded(body).split("\n"), 1):
        if not line or line.isspace():
            continue
        is_empty = False
        value = _json(line, f"line {number}: ")
        is_request = isinstance(value, dict) and ("instances" in value or "inputs" in value)
        yield from _instances(value) if is_request else [value]
    if is_empty:
        raise Refusal(400, "Expected one line of JSON or more. Received: none.")


def _rows(text: str) -> Iterator[str]:
    """Yields the texts of a CSV body, which has one column."""
    csv.field_size_limit(FIELD)
    number = 0
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            number += bool(row)
            if len(row) > 1:
                wanted = "one column, the text, in quotes where it has a comma"
                raise Refusal(400, f"row {number}: expected {wanted}. Received: {len(row)}.")
            yield from row
    except csv.Error as error:
        raise Refusal(400, f"Expected CSV of one column, a text a row. Received: {error}.") from None
    if not number:
        raise Refusal(400, "Expected CSV of one column, a text a row. Received: no rows.")


def _example(item: Any, task: str, settings: Settings, place: str) -> Any:
    if isinstance(item, dict) and len(item) == 1 and next(iter(item)) in (BYTES_INPUT, TEXT_INPUT):
        item = next(iter(item.values()))
    if isinstance(item, list) and len(item) == 1:  # A row of one column.
        item = item[0]
    if isinstance(item, dict) and list(item) == ["b64"] and isinstance(item["b64"], str):
        content = _base64(item["b64"], place)
        return _photo(content, settings, place) if task == "image" else _text(_decoded(content), settings, place)
    if task == "text" and isinstance(item, str):
        return _text(item, settings, place)
    wanted = 'a photo as {"b64": "..."}' if task == "image" else "a text"
    raise Refusal(400, f"{place}expected {wanted}. Received: {type(item).__name__}.")


def _base64(text: str, place: str) -> bytes:
    plain = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise Refusal(400, f"{place}expected base64, with + and /. Received: something else.") from None


def _text(text: str, settings: Settings, place: str) -> str:
    if len(text) > settings.max_characters:
        raise Refusal(
            413, f"{place}expected a text of up to {settings.max_characters:,} characters. Received: {len(text):,}."
        )
    return text


def _photo(content: bytes, settings: Settings, place: str) -> bytes:
    """Returns a photo's bytes, having read its header: what is too large is never decoded."""
    try:
        decoding.check(content, sniffing.sniff(content), settings.max_pixels)
    except decoding.UndecodableError as error:
        status = STATUS.get(error.kind, 400)
        status = 400 if place and status == 415 else status  # The body's own type is as it should be then.
        raise Refusal(status, f"{place}expected a photo that can be decoded; {error.reason}.") from None
    return content
