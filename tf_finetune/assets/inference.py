"""Answers requests in the SageMaker TensorFlow Serving container, which runs this file and nothing else of ours.

Content types: application/x-image, image/jpeg and the like (the bytes of one photo); application/x-text (one text in
UTF-8), text/csv (a text a row); application/json ({"instances": ["a text", ...]}, or [{"b64": "..."}, ...] for photos)
and application/jsonlines (one of those a line). Accept: application/json gives {"probabilities": [...]}, for several
examples {"predictions": [{"probabilities": [...]}, ...]}; application/json;verbose adds "labels" and "predicted_label";
application/jsonlines gives a line for each example, text/csv a row of probabilities. `tf-finetune serve` does the same.

Photos are JPEG, PNG, BMP, GIF (its first frame) or still WebP, whatever they are called. Anything else is refused
before TensorFlow sees it: with 415 where the body is the photo, with 400 inside of JSON.

Only the standard library and the syntax of Python 3.8: this file must run wherever that container does.
"""

from __future__ import annotations

import base64
import csv
import http.client
import io
import json
import os
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

try:
    import falcon  # The container's web framework: its errors reach the client with their status.
except ImportError:
    falcon = None

JSON, LINES, CSV = "application/json", "application/jsonlines", "text/csv"
LINES_TOO = ("application/jsonl", "application/x-ndjson")
TEXTS = ("application/x-text", "text/plain")
PHOTOS = ("application/x-image", "image/jpeg", "image/png", "image/gif", "image/bmp", "image/webp", "image/tiff")
PHOTOS += ("image/avif",)
OFFERED = f"{JSON}, {JSON};verbose, {LINES} or {CSV}"
QUALITY = re.compile(r"q=(\d*\.?\d*)")
INPUTS = ("bytes_inputs", "text_inputs")  # The names of the exported signatures' inputs.
MOST_PIXELS, MOST_CHARACTERS = 50_000_000, 100_000  # Of one example.
LABELS_FILE = "labels_info.json"
MODEL_FILE = "tf_finetune.json"
MODEL_FOLDER = "/opt/ml/model"
MODELS_FOLDER = "/opt/ml/models"  # Of endpoints with many models: MODELS_FOLDER/<name>/model.
MESSAGE_LIMIT = 2000  # Characters.
EXPECTED = "Expected a JPEG, PNG, BMP, GIF or still WebP"
# How photos that TensorFlow decodes begin, and other files that people send, by what to call them.
PHOTO_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF87a", b"GIF89a")
OTHER_STARTS = (
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"%PDF", "a PDF"),
    (b"<svg", "an SVG drawing"),
    (b"<", "HTML or XML"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cjP", "a JPEG 2000"),
    (b"8BPS", "a Photoshop file"),
    (b"\0\0\x01\0", "an icon"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"{", "JSON"),
    (b"RIFF", "a RIFF file that is no WebP"),
)
HEIF_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
JPEG_FRAMES = b"\xc0\xc1\xc2\xc3\xc5\xc6\xc7\xc9\xca\xcb\xcd\xce\xcf"  # Markers before what says size and precision.


def input_handler(data: BinaryIO, context: Any) -> str:
    """Returns the request for TensorFlow Serving, as JSON in ASCII.

    Args:
        data: A stream with the body of the client's request.
        context: `request_content_type` says what the body is, `accept_header` what the client wants.
    """
    _accepted(getattr(context, "accept_header", None))
    task = _task(getattr(context, "model_name", None))
    content_type = _media_type(getattr(context, "request_content_type", None)) or JSON
    wanted = (() if task == "text" else PHOTOS) + (() if task == "image" else TEXTS + (CSV,)) + (JSON, LINES)
    if content_type not in wanted + LINES_TOO:
        raise _refusal(415, f"Expected the content type {', '.join(wanted)}. Received: {content_type[:100]}.")
    body = data.read()
    if not body:
        raise _refusal(400, f"Expected a body of type {content_type}. Received: nothing.")
    if content_type in PHOTOS:
        examples = [_photo(body, "")]
    elif content_type in TEXTS:
        examples = [_text(_decoded(body), "")]
    elif content_type == CSV:
        examples = [_text(text, f"row {number}: ") for number, text in enumerate(_rows(_decoded(body)), 1)]
    else:
        found = _instances(_json(_decoded(body), "")) if content_type == JSON else list(_lines(_decoded(body)))
        examples = [_example(item, task, f"instances[{number}]: ") for number, item in enumerate(found)]
    return json.dumps({"instances": examples})


def output_handler(response: Any, context: Any) -> tuple[str, str]:
    """Returns the answer for the client and its content type.

    Args:
        response: What TensorFlow Serving answered, as `requests` has it: `status_code` and `content`.
        context: `accept_header` says what the client wants; `model_name` may say which model was asked.
    """
    if response.status_code != 200:  # Newer containers do not get here.
        raise _refusal(response.status_code, _serving_error(response.content), "TensorFlow Serving answered {}: {}")
    kind, is_verbose = _accepted(getattr(context, "accept_header", None))
    labels = _labels(getattr(context, "model_name", None)) if is_verbose and kind != CSV else None
    rows = json.loads(response.content.decode("utf-8"))["predictions"]
    rows = [row["probabilities"] if isinstance(row, dict) else row for row in rows]
    if kind == CSV:
        return "".join(",".join(map(repr, row)) + "\n" for row in rows), CSV
    found = [_prediction(row, labels) for row in rows]
    if kind == LINES:
        return "".join(json.dumps(one) + "\n" for one in found), LINES
    return json.dumps(found[0] if len(found) == 1 else {"predictions": found}), JSON


def _accepted(header: str | None) -> tuple[str, bool]:
    """Returns the type of the answer that a client asks for, and whether it is to name the classes too.

    Of what is offered the one with the highest quality is taken; of equals the one that is named before wildcards, with
    "verbose" before without it, the first.
    """
    ranges = [_range(part) for part in (header or "").split(",") if part.strip()] or [(JSON, False, 1.0)]
    named = [kind for kind, _, _ in ranges]
    wanted = [one for one in ranges if one[2] > 0]
    for kind, is_verbose, _ in sorted(wanted, key=lambda one: (-one[2], one[0].count("*"), not one[1])):
        for offered in (JSON, LINES, CSV):
            is_any = kind in ("*", "*/*", offered.split("/")[0] + "/*") and offered not in named
            if kind == offered or is_any:
                return offered, is_verbose
    raise _refusal(406, f"Expected to accept {OFFERED}. Received: {(header or '')[:200]}.")


def _range(part: str) -> tuple[str, bool, float]:
    """Returns a type or wildcard of an Accept header, whether it is to be verbose, and its quality in [0, 1]."""
    kind, *parameters = (word.strip().lower() for word in part.split(";"))
    told = next((found.group(1) for found in map(QUALITY.fullmatch, parameters) if found), "")
    quality = min(float(told), 1.0) if told.strip(".") else 1.0
    return LINES if kind in LINES_TOO else kind, "verbose" in parameters, quality


def _decoded(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(400, f"Expected UTF-8. Received: a body that is not, at byte {error.start}.") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _refusal(400, f"{place}Expected JSON. Received: a body that is not ({str(error)[:200]}).") from None


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
        raise _refusal(400, "Expected one example or more. Received: none.")
    raise _refusal(400, 'Expected {"instances": ["a text", ...]} or {"instances": [{"b64": "..."}, ...]}.')


def _lines(text: str) -> Iterator[Any]:
    """Yields the examples of JSON Lines, each line one of them or a whole request; U+2028 and the like end no line."""
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        value = _json(line, f"line {number}: ")
        is_request = isinstance(value, dict) and ("instances" in value or "inputs" in value)
        yield from _instances(value) if is_request else [value]
    if not lines:
        raise _refusal(400, "Expected one line of JSON or more. Received: none.")


def _rows(text: str) -> Iterator[str]:
    """Yields the texts of a CSV body, which has one column."""
    csv.field_size_limit(2**31 - 1)  # What is too long is for `_text` to say.
    number = 0
    try:
        for row in csv.reader(io.StringIO(text, newline=""), strict=True):
            number += bool(row)
            if len(row) > 1:
                wanted = "one column, the text, in quotes where it has a comma"
                raise _refusal(400, f"row {number}: expected {wanted}. Received: {len(row)}.")
            yield from row
    except csv.Error as error:
        raise _refusal(400, f"Expected CSV of one column, a text a row. Received: {error}.") from None
    if not number:
        raise _refusal(400, "Expected CSV of one column, a text a row. Received: no rows.")


def _example(item: Any, task: str | None, place: str) -> Any:
    """Returns one example as TensorFlow Serving takes it. Where the model does not say its task, base64 is a photo."""
    if isinstance(item, dict) and len(item) == 1 and next(iter(item)) in INPUTS:
        item = next(iter(item.values()))
    if isinstance(item, list) and len(item) == 1:  # A row of one column.
        item = item[0]
    if isinstance(item, dict) and list(item) == ["b64"] and isinstance(item["b64"], str):
        content = _base64(item["b64"], place)
        return _text(_decoded(content), place) if task == "text" else _photo(content, place)
    if isinstance(item, str) and (task == "text" or task is None and not item.startswith("RIFF")):  # A WebP's start.
        return _text(item, place)
    wanted = "a text" if task == "text" else 'a photo as {"b64": "..."}'
    raise _refusal(400, f"{place}expected {wanted}. Received: {type(item).__name__}.")


def _base64(text: str, place: str) -> bytes:
    plain = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise _refusal(400, f"{place}expected base64, with + and /. Received: something else.") from None


def _text(text: str, place: str) -> str:
    if len(text) > MOST_CHARACTERS:
        wanted = f"a text of up to {MOST_CHARACTERS:,} characters"
        raise _refusal(413, f"{place}expected {wanted}. Received: {len(text):,}.")
    return text.encode("utf-8", "replace").decode("utf-8")  # Halves of surrogate pairs are no characters.


def _photo(content: bytes, place: str) -> dict[str, str]:
    """Returns a photo in base64, which is written anew: no decoder can read it otherwise than we did."""
    received = _unfit(content)
    if received:
        raise _refusal(400 if place else 415, f"{place}{EXPECTED}. Received: {received}.")
    width, height = _size(content)
    if width * height > MOST_PIXELS:
        wanted = f"a photo of up to {MOST_PIXELS:,} pixels"
        raise _refusal(413, f"{place}expected {wanted}. Received: {width:,} x {height:,}.")
    return {"b64": base64.b64encode(content).decode("ascii")}


def _unfit(content: bytes) -> str | None:
    """Returns what a file is, in words, if the model's graph cannot decode it; None for photos that it can."""
    if content.startswith(PHOTO_STARTS):
        return _unfit_jpeg(content) if content.startswith(b"\xff") else None
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "an animated WebP" if _is_animated(content) else None
    if content[4:8] == b"ftyp":
        return "an AVIF or HEIC" if content[8:12] in HEIF_BRANDS else "a video"
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    named = (name for first, name in OTHER_STARTS if content.startswith(first) or start.startswith(first))
    return next(named, f"{len(content)} bytes of no known format, beginning with {content[:8].hex() or 'nothing'}")


def _unfit_jpeg(content: bytes) -> str | None:
    """Returns what kind of JPEG this is, if the graph would refuse it or take its inks for light."""
    place = _jpeg_frame(content)
    if place is None:
        return None
    if content[place + 4] != 8:
        return f"a JPEG of {content[place + 4]} bits a colour"
    has_inks = content[place + 9 : place + 10] == b"\x04" and b"\xff\xee\x00\x0eAdobe" not in content
    return "a CMYK JPEG without Adobe's mark" if has_inks else None


def _jpeg_frame(content: bytes) -> int | None:
    """Returns where the segment begins that says a JPEG's precision and size."""
    place = 2
    for _ in range(1000):  # Segments; photos have a few.
        if content[place : place + 1] != b"\xff" or len(content) < place + 5:
            return None
        marker = content[place + 1]
        if marker in JPEG_FRAMES:
            return place
        if marker == 0xFF:  # Filling.
            place += 1
        elif marker == 1 or 0xD0 <= marker <= 0xD8:  # No length follows.
            place += 2
        else:
            place += 2 + struct.unpack(">H", content[place + 2 : place + 4])[0]
    return None


def _size(content: bytes) -> tuple[int, int]:
    """Returns the width and height that a photo's header tells, or zeros."""
    frame = (_jpeg_frame(content) or 0) if content.startswith(b"\xff") else 0
    for start, form, place in (
        (b"\x89PNG", ">II", 16),
        (b"GIF8", "<HH", 6),
        (b"BM", "<ii", 18),
        (b"\xff", ">HH", frame + 5 if frame else len(content)),
    ):
        if content.startswith(start) and len(content) >= place + struct.calcsize(form):
            one, other = struct.unpack_from(form, content, place)
            return (other, one) if start == b"\xff" else (abs(one), abs(other))
    kind, number = content[12:16], int.from_bytes(content[21:25], "little")
    if kind == b"VP8X":
        return int.from_bytes(content[24:27], "little") + 1, int.from_bytes(content[27:30], "little") + 1
    if kind == b"VP8L":
        return (number & 0x3FFF) + 1, (number >> 14 & 0x3FFF) + 1
    wide, high = int.from_bytes(content[26:28], "little"), int.from_bytes(content[28:30], "little")
    return (wide & 0x3FFF, high & 0x3FFF) if kind == b"VP8 " else (0, 0)


def _is_animated(content: bytes) -> bool:
    """Returns whether a WebP has frames, by its flag or by its chunks."""
    if content[12:16] != b"VP8X":
        return False
    place = 12
    for _ in range(1000):  # Chunks; photos have a few.
        name, size = content[place : place + 4], content[place + 4 : place + 8]
        if len(size) < 4:
            break
        if name in (b"ANIM", b"ANMF"):
            return True
        length = struct.unpack("<I", size)[0]
        place += 8 + length + length % 2
    return len(content) > 20 and bool(content[20] & 2)


def _prediction(probabilities: list[float], labels: list[str] | None) -> dict[str, Any]:
    if labels is None:
        return {"probabilities": probabilities}
    if len(labels) != len(probabilities):
        raise ValueError(f"{LABELS_FILE} names {len(labels)} classes, the model has {len(probabilities)}.")
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return {"probabilities": probabilities, "labels": labels, "predicted_label": labels[best]}


def _media_type(header: str | None) -> str:
    return (header or "").split(";")[0].strip().lower()


def _labels(model_name: str | None) -> list[str]:
    """Returns the class names in the order of the probabilities.

    They are read each time: on an endpoint with many models another model may have taken the place of the last.
    """
    folders = _folders(model_name)
    found = _read(folders, LABELS_FILE)
    if found is None:
        raise FileNotFoundError(f"{LABELS_FILE} is not in {folders}; without it only {JSON} is served.")
    return found["labels"]


def _task(model_name: str | None) -> str | None:
    """Returns "image" or "text", or None where the model does not say."""
    found = _read(_folders(model_name), MODEL_FILE)
    return found.get("task") if isinstance(found, dict) else None


def _folders(model_name: str | None) -> list[str]:
    """Returns where the archive may have been unpacked to."""
    folders = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), MODEL_FOLDER]
    name = os.path.basename(model_name or "")  # The client may have named it: not a way to other folders.
    return [*folders, os.path.join(MODELS_FOLDER, name, "model")] if name.strip(".") else folders


def _read(folders: list[str], name: str) -> Any:
    """Returns what a JSON file holds in the first of some folders that has it, or None."""
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as stream:
                return json.load(stream)
    return None


def _serving_error(content: bytes) -> str:
    text = content.decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text


def _refusal(status: int, message: str, without_falcon: str = "{1}") -> Exception:
    """Returns an exception that gives the client this status and message."""
    message = message[:MESSAGE_LIMIT]
    if falcon is None:
        return ValueError(without_falcon.format(status, message))
    kinds = {400: falcon.HTTPBadRequest, 406: falcon.HTTPNotAcceptable, 415: falcon.HTTPUnsupportedMediaType}
    kind = kinds.get(status, falcon.HTTPError)
    line = f"{status} {http.client.responses.get(status, 'Error')}"
    arguments = {} if status in kinds else {"status": line}
    # The container of 2023 answers every exception with 500 and its str(), in which falcon leaves the message out.
    named = type(kind.__name__, (kind,), {"__str__": lambda self: without_falcon.format(status, message)})
    return named(description=message, **arguments)
