"""Answers requests in the SageMaker TensorFlow Serving container, which runs this file and nothing else of ours.

Content types: application/x-image, image/jpeg, image/png (the bytes of one photo), application/x-text (one text in
UTF-8), application/json (one or more examples: {"instances": ["a text", ...]}, or [{"b64": "..."}, ...] for photos).
Accept: application/json gives {"probabilities": [...]}, application/json;verbose adds "labels" and "predicted_label".
Several examples give {"predictions": [{"probabilities": [...]}, ...]}.

Only the standard library and the syntax of Python 3.8: this file must run wherever that container does.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
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
MODEL_FOLDER = "/opt/ml/model"
MODELS_FOLDER = "/opt/ml/models"  # Of endpoints with many models: MODELS_FOLDER/<name>/model.
MESSAGE_LIMIT = 2000  # Characters.


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
    return json.dumps(request)


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
    folders = [os.path.dirname(os.path.dirname(os.path.abspath(__file__))), MODEL_FOLDER]
    name = os.path.basename(model_name or "")  # The client may have named it: not a way to other folders.
    if name.strip("."):
        folders.append(os.path.join(MODELS_FOLDER, name, "model"))
    for folder in folders:
        path = os.path.join(folder, LABELS_FILE)
        if os.path.isfile(path):
            with open(path, encoding="utf-8") as stream:
                return json.load(stream)["labels"]
    raise FileNotFoundError(f"{LABELS_FILE} is not in {folders}; without it only {JSON} is served.")


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
