"""`tf-finetune serve` and code/inference.py in the TensorFlow Serving container, side by side on one list of requests.

TensorFlow Serving is a stand-in here, whose answers the real SavedModel computes.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import tf_finetune
from tests.container.test_inference_script import FALCON, context, imported, response
from tests.integration.test_serving import archive, photos, text_archive  # noqa: F401
from tests.unit.test_serving_app import Request
from tf_finetune import archive as archives
from tf_finetune.serving import app
from tf_finetune.serving.records import Settings

import tensorflow as tf  # isort: skip

JSON, LINES, CSV, TEXT = "application/json", "application/jsonlines", "text/csv", "application/x-text"
PHOTO, VERBOSE = "application/x-image", "application/json;verbose"
LONG = "a text that is quite a bit longer than the others"
Asked = tuple[str, str, bytes]  # Content type, Accept, body.


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def texts() -> list[Asked]:
    """Requests to a model of texts, good and bad."""
    both = as_json(["tiny", LONG])
    lines = b'"tiny"\n' + as_json(LONG) + b"\n"
    good = [(TEXT, accept, b"tiny") for accept in ("", JSON, VERBOSE, LINES, f"{LINES};verbose", CSV, "*/*", "text/*")]
    good += [(JSON, accept, both) for accept in (JSON, VERBOSE, LINES, CSV, f"{JSON};q=0, */*")]
    good += [(LINES, accept, lines) for accept in (JSON, LINES, CSV, "text/html,application/xhtml+xml,*/*;q=0.8")]
    good += [(kind, LINES, lines) for kind in ("application/jsonl", "Application/X-NDJSON; charset=utf-8")]
    good += [
        (CSV, LINES, f"tiny\r\n\n{LONG}\n".encode()),
        (CSV, CSV, 'a "b" c\n"d ""e"", f"\n"g\nh"\n\u2028i\n'.encode()),
        ("", "", as_json({"instances": ["tiny"]})),
        ("text/plain", "", "\ufeffGrüße\nan alle".encode()),
        (JSON, "", as_json({"inputs": {"text_inputs": ["tiny", LONG]}})),
        (JSON, "", as_json({"instances": [{"text_inputs": "tiny"}, [LONG], {"b64": "dGlueQ"}], "signature_name": "s"})),
        (LINES, LINES, '"a\u2028b\x85c"\n{"instances": ["d", "e"]}\n["f"]\n{"b64": "Zw=="}'.encode()),
        (JSON, "", b'["\\ud800 half of a pair", "nul \\u0000 inside", ""]'),
    ]
    bad = [
        (JSON, "image/png", both),
        (JSON, f"{JSON};q=0", both),
        (PHOTO, "", b"tiny"),
        ("application/pdf", "", b"tiny"),
        (TEXT, "", b""),
        (TEXT, "", b"caf\xe9"),
        (TEXT, "", b"x" * 100_001),
        (CSV, "", b"a\nb,c\n"),
        (CSV, "", b'"a"b\n'),
        (CSV, "", b"\n\n"),
        (CSV, "", b"a\n" + b"x" * 200_000),
        (JSON, "", b"{"),
        (JSON, "", b"[NaN]"),
        (JSON, "", b"[1e999]"),
        (JSON, "", b"[" * 100_000),
        (JSON, "", b"[" + b"9" * 5000 + b"]"),
        (JSON, "", b"[]"),
        (JSON, "", b"{}"),
        (JSON, "", b'"tiny"'),
        (JSON, "", as_json({"instances": "tiny"})),
        (JSON, "", as_json(["tiny", None])),
        (JSON, "", as_json(["tiny", {"b64": "_-8="}])),
        (JSON, "", as_json([{"b64": "/w=="}])),
        (JSON, "", as_json([["tiny", "small"]])),
        (LINES, "", b'"a"\n\n{\n'),
        (LINES, "", b" \r\n"),
    ]
    return good + bad


def photographs(folder: Path) -> list[Asked]:
    """Requests to a model of photos, good and bad."""
    one, two = ((folder / name / "0.png").read_bytes() for name in ("cyan", "yellow"))
    b64 = [{"b64": base64.b64encode(photo).decode()} for photo in (one, two)]
    lines = b"".join(as_json(photo) + b"\n" for photo in b64)
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\xff\xff\xff\0\xff\xff\xff\x08\x02\0\0\0" + bytes(20)
    jpeg = io.BytesIO(tf.io.encode_jpeg(tf.zeros([8, 8, 3], tf.uint8)).numpy()).getvalue()
    return [
        *[(kind, "", one) for kind in (PHOTO, "image/png", "image/jpeg", "IMAGE/WEBP", "image/gif; q=1")],
        *[(PHOTO, accept, two) for accept in (VERBOSE, LINES, CSV)],
        *[(JSON, accept, as_json({"instances": b64})) for accept in (JSON, VERBOSE, LINES, CSV)],
        (JSON, "", as_json({"inputs": {"bytes_inputs": b64}})),
        (JSON, "", as_json([{"bytes_inputs": b64[0]}, [b64[1]], {"b64": b64[0]["b64"].rstrip("=") + "\n"}])),
        *[(LINES, accept, lines) for accept in (JSON, LINES, CSV)],
        (PHOTO, "", jpeg),
        (PHOTO, "", b""),
        (PHOTO, "", b"<html></html>"),
        (PHOTO, "", b"%PDF-1.4"),
        (PHOTO, "", jpeg[:-100]),
        (PHOTO, "", one[:-20]),
        (PHOTO, "", huge),
        (TEXT, "", b"tiny"),
        (CSV, "", b"tiny"),
        (JSON, "", as_json(["a text"])),
        (JSON, "", as_json([b64[0], {"b64": "bm8gcGhvdG8="}])),
        (JSON, "", as_json([b64[0], {"b64": base64.b64encode(huge).decode()}])),
        (JSON, "", as_json([b64[0], {"b64": base64.b64encode(jpeg[:-100]).decode()}])),
        (JSON, "", as_json([{"b64": "?"}])),
        (JSON, "", as_json([{"b64": 5}])),
        (LINES, "", lines + b"{"),
    ]


class Serving:
    """A stand-in for TensorFlow Serving's REST interface around a SavedModel."""

    def __init__(self, folder: Path) -> None:
        self._model = tf.saved_model.load(str(folder))
        self._signature = self._model.signatures["serving_default"]
        (self._input,) = self._signature.structured_input_signature[1]

    def answer(self, request: str) -> tuple[int, Any]:
        given = json.loads(request)["instances"]
        contents = [base64.b64decode(one["b64"]) if isinstance(one, dict) else one.encode() for one in given]
        try:
            rows = self._signature(**{self._input: tf.constant(contents)})["probabilities"].numpy()
        except tf.errors.InvalidArgumentError as error:
            return 400, {"error": str(error)}
        return 200, {"predictions": rows.tolist()}


class Container:
    """The container around an unpacked archive, as of 2.20 or of 2023."""

    def __init__(self, folder: Path, of: str) -> None:
        self._script, self._serving, self._of = imported(folder / "code/inference.py"), Serving(folder / "1"), of

    def ask(self, kind: str, accept: str, body: bytes) -> tuple[int, str, str]:
        told = context(kind or None, accept or None)
        try:
            status, served = self._serving.answer(self._script.input_handler(io.BytesIO(body), told))
            if self._of == "2.20" and status != 200:
                raise FALCON.HTTPError(status=str(status), description=served["error"])
            content, answered = self._script.output_handler(response(served, status), told)
        except Exception as error:
            if self._of == "2.20" and isinstance(error, FALCON.HTTPError):
                return int(error.status[:3]), JSON, json.dumps({"error": error.description})
            return 500, JSON, json.dumps({"error": str(error)})
        return 200, answered, content


def told(state: app.State, kind: str, accept: str, body: bytes) -> tuple[int, str, str]:
    given = [(b"content-type", kind.encode()), (b"accept", accept.encode())]
    headers = [(name, value) for name, value in given if value]
    status, answered, content = asyncio.run(Request(state, "/invocations", *headers).send(body).answer())
    return status, answered["content-type"].split(";")[0], content.decode()


def numbers(kind: str, content: str) -> list[Any]:
    """Returns what an answer says, its probabilities to six digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: rounded(one) for name, one in value.items()}
        if isinstance(value, list):
            return [rounded(one) for one in value]
        return round(value, 6) + 0.0 if isinstance(value, float) else value

    if kind == CSV:
        return [[round(float(value), 6) for value in line.split(",")] for line in content.splitlines()]
    return [rounded(json.loads(line)) for line in (content.splitlines() if kind == LINES else [content])]


@pytest.mark.parametrize("task", ["text", "image"])
def test_serve_and_the_script_in_the_container_answer_alike(request, tmp_path, monkeypatch, task):
    monkeypatch.setitem(sys.modules, "falcon", FALCON)
    place = request.getfixturevalue("text_archive" if task == "text" else "archive")
    asked = texts() if task == "text" else photographs(request.getfixturevalue("photos"))
    archives.unpack(place, tmp_path / "model")
    state = app.State(tf_finetune.load(place), Settings())
    new, old = (Container(tmp_path / "model", of) for of in ("2.20", "2023"))
    try:
        for kind, accept, body in asked:
            status, answered, content = told(state, kind, accept, body)
            got = new.ask(kind, accept, body)
            case = f"{kind}, {accept}, {body[:80]!r}: {content[:300]} | {got[2][:300]}"
            assert (status, answered) == got[:2], case
            before = old.ask(kind, accept, body)
            assert before[0] == (200 if status == 200 else 500), case
            if status == 200:
                assert numbers(answered, content) == numbers(*got[1:]) == numbers(*before[1:]), case
            elif task == "text":
                assert content_error(content) == content_error(got[2]), case  # The same words.
    finally:
        state.batcher.close()
    assert len(asked) > 30


def content_error(content: str) -> str:
    return json.loads(content)["error"]


def test_thousands_of_rows_keep_their_order_in_both(text_archive, tmp_path):  # noqa: F811
    archives.unpack(text_archive, tmp_path / "model")
    state, container = app.State(tf_finetune.load(text_archive), Settings()), Container(tmp_path / "model", "2.20")
    given = ["x" * (number * 7 % 61 + 1) for number in range(5000)]
    rows = {text: one["probabilities"][0] for text, one in zip(given, state.model.predict(given), strict=True)}
    bodies = {JSON: as_json({"instances": given}), LINES: "\n".join(map(json.dumps, given)).encode()}
    bodies[CSV] = "\n".join(given).encode()
    try:
        for kind, body in bodies.items():
            for status, answered, content in (told(state, kind, CSV, body), container.ask(kind, CSV, body)):
                assert (status, answered) == (200, CSV)
                found = [float(line.split(",")[0]) for line in content.splitlines()]
                assert found == pytest.approx([rows[text] for text in given], abs=1e-6)
    finally:
        state.batcher.close()
