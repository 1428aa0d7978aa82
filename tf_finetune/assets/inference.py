"""Answers requests in the SageMaker TensorFlow Serving container, which runs this file and nothing else of ours.

Content types: application/x-image, image/jpeg, image/png (the bytes of one photo), application/x-text (one text in
UTF-8), application/json (one or more examples: {"instances": ["a text", ...]}, or [{"b64": "..."}, ...] for photos).
Accept: application/json gives {"probabilities": [...]}, application/json;verbose adds "labels" and "predicted_label".
Several examples give {"predictions": [{"probabilities": [...]}, ...]}.

Photos are JPEG, PNG, BMP, GIF (its first frame) or still WebP, whatever they are called. Anything else is refused
before TensorFlow sees it: with 415 where the body is the photo, with 400 inside of JSON.

Only the standard library and the syntax of Python 3.8: this file must run wherever that container does.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import struct
from typing import Any, BinaryIO

try:
    import falcon  # The container's web framework: its errors reach the client with their status.
except ImportError:
    falcon = None

JSON = "application/json"
TEXT = "application/x-text"
PHOTOS = ("application/x-image", "image/jpeg", "image/png")
ANY = ("", "*", "*/*", "application/*")  # Ways to accept whatever comes.
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
        context: `request_content_type` says what the body is.
    """
    content_type = _media_type(getattr(context, "request_content_type", None)) or JSON
    if content_type not in (JSON, TEXT) + PHOTOS:
        expected = ", ".join((JSON, TEXT) + PHOTOS)
        raise _refusal(415, f"Expected the content type {expected}. Received: {content_type[:100]}.")
    body = data.read()
    if not body:
        raise _refusal(400, f"Expected a body of type {content_type}. Received: nothing.")
    if content_type in PHOTOS:
        received = _unfit(body)
        if received:
            raise _refusal(415, f"{EXPECTED}. Received: {received}.")
        return json.dumps({"instances": [{"b64": base64.b64encode(body).decode("ascii")}]})
    try:
        text = body.decode("utf-8-sig")
        request = {"instances": [text]} if content_type == TEXT else json.loads(text)
    except UnicodeDecodeError as error:
        raise _refusal(400, f"Expected UTF-8. Received: a body that is not, at byte {error.start}.") from None
    except (ValueError, RecursionError) as error:
        raise _refusal(400, f"Expected JSON. Received: a body that is not ({error}).") from None
    if isinstance(request, list):
        request = {"instances": request}
    if not isinstance(request, dict) or not ("instances" in request or "inputs" in request):
        raise _refusal(400, 'Expected {"instances": ["a text", ...]} or {"instances": [{"b64": "..."}, ...]}.')
    if content_type != TEXT:
        _check_photos(request, _task(getattr(context, "model_name", None)))
    try:
        return json.dumps(request)
    except RecursionError:
        raise _refusal(400, "Expected JSON of a few levels. Received: lists within lists.") from None


def output_handler(response: Any, context: Any) -> tuple[str, str]:
    """Returns the answer for the client and its content type.

    Args:
        response: What TensorFlow Serving answered, as `requests` has it: `status_code` and `content`.
        context: `accept_header` says what the client wants; `model_name` may say which model was asked.
    """
    if response.status_code != 200:  # Newer containers do not get here.
        raise _refusal(response.status_code, _serving_error(response.content), "TensorFlow Serving answered {}: {}")
    accepted = [_accepted(part) for part in (getattr(context, "accept_header", None) or JSON).split(",")]
    if not any(accepted):
        raise _refusal(406, f"Expected to accept {JSON} or {JSON};verbose. Received: {context.accept_header}.")
    labels = _labels(getattr(context, "model_name", None)) if "verbose" in accepted else None
    answer = json.loads(response.content.decode("utf-8"))
    rows = answer["predictions"] if "predictions" in answer else answer["outputs"]
    if isinstance(rows, dict):  # A request by "inputs" to a model with named outputs is answered by columns.
        rows = rows["probabilities"]
    predictions = [_prediction(row, labels) for row in rows]
    return json.dumps(predictions[0] if len(predictions) == 1 else {"predictions": predictions}), JSON


def _check_photos(request: dict[str, Any], task: str | None) -> None:
    """Refuses a request with something else than photos for a model of photos; writes their base64 the usual way.

    Args:
        request: What goes to TensorFlow Serving: rows in "instances", or columns in "inputs".
        task: "image" or "text", or None where the model does not say. Base64 is then taken for photos, strings are not.
    """
    left = [(key, request[key]) for key in ("inputs", "instances") if key in request] if task != "text" else []
    while left:
        place, value = left.pop()
        if isinstance(value, list):
            left += [(f"{place}[{number}]", item) for number, item in reversed(list(enumerate(value)))]
        elif isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str):
            content = _decoded(place, value["b64"])
            _check_photo(place, content)
            value["b64"] = base64.b64encode(content).decode("ascii")  # No decoder can read it otherwise than we did.
        elif isinstance(value, dict):
            left += [(f"{place}.{key[:50]}", item) for key, item in reversed(list(value.items()))]
        elif isinstance(value, str) and (task == "image" or value.startswith("RIFF")):
            _check_photo(place, value.encode("utf-8", "surrogatepass"))


def _check_photo(place: str, content: bytes) -> None:
    received = _unfit(content)
    if received:
        raise _refusal(400, f"{place}: {EXPECTED}, in base64. Received: {received}.")


def _decoded(place: str, text: str) -> bytes:
    plain = "".join(text.split()).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise _refusal(400, f"{place}: Expected base64, with + and /. Received: something else.") from None


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
    place = 2
    for _ in range(1000):  # Segments; photos have a few.
        if content[place : place + 1] != b"\xff" or len(content) < place + 5:
            return None
        marker = content[place + 1]
        if marker in JPEG_FRAMES:
            if content[place + 4] != 8:
                return f"a JPEG of {content[place + 4]} bits a colour"
            has_inks = content[place + 9 : place + 10] == b"\x04" and b"\xff\xee\x00\x0eAdobe" not in content
            return "a CMYK JPEG without Adobe's mark" if has_inks else None
        if marker == 0xFF:  # Filling.
            place += 1
        elif marker == 1 or 0xD0 <= marker <= 0xD8:  # No length follows.
            place += 2
        else:
            place += 2 + struct.unpack(">H", content[place + 2 : place + 4])[0]
    return None


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


def _prediction(row: Any, labels: list[str] | None) -> dict[str, Any]:
    probabilities = row["probabilities"] if isinstance(row, dict) else row
    if labels is None:
        return {"probabilities": probabilities}
    if len(labels) != len(probabilities):
        raise ValueError(f"{LABELS_FILE} names {len(labels)} classes, the model has {len(probabilities)}.")
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return {"probabilities": probabilities, "labels": labels, "predicted_label": labels[best]}


def _media_type(header: str | None) -> str:
    return (header or "").split(";")[0].strip().lower()


def _accepted(part: str) -> str | None:
    """Returns "verbose" or "plain" for a part of an Accept header that we can serve, else None."""
    parameters = [parameter.strip().lower() for parameter in part.split(";")[1:]]
    if _media_type(part) == JSON:
        return "verbose" if "verbose" in parameters else "plain"
    return "plain" if _media_type(part) in ANY else None


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
