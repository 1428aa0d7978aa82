"""code/inference.py, called as the SageMaker TensorFlow Serving container calls it: that of 2023 and that of 2.20."""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import os
import re
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tf_finetune

SOURCE = Path(tf_finetune.__file__).parent / "assets" / "inference.py"
LABELS = ["daisy", "<b>rose</b>", "ヒマワリ"]
ROW = [0.25, 0.125, 0.625]
PHOTO = b"\xff\xd8\xff\xe0 any bytes"


class HTTPError(Exception):
    """A stand-in for falcon's: keyword arguments only, and a str() without the message."""

    default = "500 Internal Server Error"

    def __init__(self, *, status: str = "", title: str | None = None, description: str | None = None) -> None:
        super().__init__()
        self.status, self.title, self.description = status or self.default, title, description

    def __str__(self) -> str:
        return f"<{type(self).__name__}: {self.status}>"


class HTTPBadRequest(HTTPError):  # noqa: N818
    default = "400 Bad Request"


class HTTPNotAcceptable(HTTPError):  # noqa: N818
    default = "406 Not Acceptable"


class HTTPUnsupportedMediaType(HTTPError):  # noqa: N818
    default = "415 Unsupported Media Type"


FALCON = types.SimpleNamespace(
    HTTPError=HTTPError,
    HTTPBadRequest=HTTPBadRequest,
    HTTPNotAcceptable=HTTPNotAcceptable,
    HTTPUnsupportedMediaType=HTTPUnsupportedMediaType,
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Returns an unpacked archive's root."""
    root = tmp_path / "root"
    (root / "code").mkdir(parents=True)
    (root / "labels_info.json").write_text(json.dumps({"labels": LABELS}), encoding="utf-8")
    (root / "code" / "inference.py").write_bytes(SOURCE.read_bytes())
    return root


@pytest.fixture
def script(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the script, imported by its path, with falcon at hand."""
    monkeypatch.setitem(sys.modules, "falcon", FALCON)
    return imported(model / "code" / "inference.py")


@pytest.fixture
def script_alone(model: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the script, imported by its path, where falcon cannot be imported."""
    monkeypatch.setitem(sys.modules, "falcon", None)
    return imported(model / "code" / "inference.py")


def imported(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("inference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def context(
    content_type: str | None = "application/json", accept: str | None = "application/json", name: str | None = None
) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        model_name=name,
        model_version=None,
        method=None,
        rest_uri="http://localhost:8501/v1/models/model:predict",
        grpc_port="9000",
        channel=None,
        custom_attributes=None,
        request_content_type=content_type,
        accept_header=accept,
        content_length=None,
        timeout=60,
    )


def response(content: Any, status: int = 200) -> types.SimpleNamespace:
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return types.SimpleNamespace(content=content, status_code=status)


def instances(script: Any, body: bytes, content_type: str | None) -> Any:
    request = script.input_handler(io.BytesIO(body), context(content_type))
    assert request.isascii(), "requests would have to guess an encoding"
    return json.loads(request)["instances"]


def answer(script: Any, content: Any, accept: str | None = "application/json", name: str | None = None) -> Any:
    """Returns what the JSON of an answer says."""
    body, content_type = script.output_handler(response(content), context(accept=accept, name=name))
    assert content_type == "application/json"
    return json.loads(body)


def call(script: Any, of: str, body: bytes, served: Any, *, to: str, status: int = 200) -> tuple[int, str]:
    """Returns the status and text that a client of the container `of` 2023 or 2.20 gets.

    Args:
        script: The imported inference.py.
        of: "2023" or "2.20".
        body: What the client sent.
        served: What TensorFlow Serving answers.
        to: The content type of the client's request.
        status: TensorFlow Serving's.
    """
    try:
        script.input_handler(io.BytesIO(body), context(to))
        if of == "2.20" and status != 200:
            raise FALCON.HTTPError(status=str(status), description=response(served).content.decode())
        return 200, script.output_handler(response(served, status), context(to))[0]
    except Exception as error:
        if of == "2.20" and isinstance(error, FALCON.HTTPError):
            return int(error.status[:3]), error.description or ""
        return 500, json.dumps({"error": str(error)})


# What goes to TensorFlow Serving


@pytest.mark.parametrize(
    "content_type",
    ["application/x-image", "image/jpeg", "image/png", "Application/X-Image", "image/jpeg; q=1", " image/png ;a=b"],
)
def test_photos_are_passed_on_in_base64(script: Any, content_type: str) -> None:
    assert instances(script, PHOTO, content_type) == [{"b64": base64.b64encode(PHOTO).decode()}]


@pytest.mark.parametrize(
    "content_type", ["application/x-text", "application/x-text; charset=utf-8", "APPLICATION/X-TEXT"]
)
def test_text_is_passed_on_as_one_string(script: Any, content_type: str) -> None:
    text = 'Grüße, "猫" \\ {"instances": 1}\n🐈'
    assert instances(script, text.encode(), content_type) == [text]


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "", None])
def test_json_with_instances_is_passed_on(script: Any, content_type: str | None) -> None:
    photos = [{"b64": base64.b64encode(photo).decode()} for photo in (PHOTO, b"GIF89a")]
    body = json.dumps({"signature_name": "serving_default", "instances": photos})
    assert instances(script, body.encode(), content_type) == photos


@pytest.mark.parametrize(("content_type", "body"), [("application/x-text", "é"), ("application/json", '["é"]')])
def test_a_byte_order_mark_is_no_part_of_the_text(script: Any, content_type: str, body: str) -> None:
    assert instances(script, body.encode("utf-8-sig"), content_type) == ["é"]


@pytest.mark.parametrize("body", ['{"inputs": ["é"]}', '{"inputs": {"text_inputs": ["é"]}}', '[["é"]]'])
def test_other_forms_of_a_request_are_written_as_instances(script: Any, body: str) -> None:
    assert instances(script, body.encode(), "application/json") == ["é"]


@pytest.mark.parametrize(
    ("content_type", "body", "texts"),
    [
        ("application/jsonlines", '"a"\r\n\n{"instances": ["b", ["c"]]}\n{"text_inputs": "d"}', ["a", "b", "c", "d"]),
        ("application/x-ndjson", '"a\u2028\x85b"\n', ["a\u2028\x85b"]),
        ("text/csv", 'a\r\n"b, ""c""\n"\n\n', ["a", 'b, "c"\n']),
        ("text/csv; charset=utf-8", "\ufeff\u2028", ["\u2028"]),
        ("application/jsonlines", '"\\ud800"', ["?"]),
        ("text/plain", "a\nb", ["a\nb"]),
    ],
)
def test_lines_and_rows_become_instances(script: Any, content_type: str, body: str, texts: list[str]) -> None:
    assert instances(script, body.encode(), content_type) == texts


def test_photos_come_in_json_lines(script: Any) -> None:
    photo = {"b64": base64.b64encode(PHOTO).decode()}
    body = "".join(json.dumps(line) + "\n" for line in (photo, {"bytes_inputs": photo}, {"instances": [photo]}))
    assert instances(script, body.encode(), "application/jsonlines") == [photo] * 3


def test_a_bare_json_list_is_wrapped(script: Any) -> None:
    assert instances(script, b'["one", "two"]', "application/json") == ["one", "two"]


@pytest.mark.parametrize("content_type", ["text/html", "image/svg+xml", "application/jsons", "x" * 5000])
def test_other_content_types_are_a_clean_415(script: Any, content_type: str) -> None:
    status, text = call(script, "2.20", b"1", None, to=content_type)
    assert status == 415
    assert "application/x-image" in text
    assert len(text) < 500
    with pytest.raises(HTTPUnsupportedMediaType):
        script.input_handler(io.BytesIO(b"1"), context(content_type))


@pytest.mark.parametrize(
    ("body", "content_type", "words"),
    [
        (b"", "application/x-image", "nothing"),
        (b"", "application/x-text", "nothing"),
        (b"", "application/json", "nothing"),
        (b"\xff\xfe", "application/x-text", "Expected UTF-8"),
        (b"\xff\xfe", "application/json", "Expected UTF-8"),
        (b"{", "application/json", "Expected JSON"),
        (b"[" * 100_000, "application/json", "Expected JSON"),
        (b'{"image": "AA=="}', "application/json", "instances"),
        (b'"text"', "application/json", "instances"),
        (b"[]", "application/json", "Expected one example or more"),
        (b"[NaN]", "application/json", "NaN is not JSON"),
        (b'["a", 5]', "application/json", "instances[1]: expected"),
        (b'"a"\n\n{', "application/jsonlines", "line 3: Expected JSON"),
        (b"\n \n", "application/jsonlines", "Expected one line of JSON or more"),
        (b"a\nb,c\n", "text/csv", "row 2: expected one column"),
        (b'"a', "text/csv", "Expected CSV of one column"),
        (b"\n", "text/csv", "no rows"),
        (b"null", "application/json", "instances"),
    ],
)
def test_a_body_that_cannot_be_used_is_a_clean_400(script: Any, body: bytes, content_type: str, words: str) -> None:
    status, text = call(script, "2.20", body, None, to=content_type)
    assert status == 400
    assert words in text


@pytest.mark.parametrize(
    ("body", "content_type"), [(b"1", "text/html"), (b"", "image/png"), (b"{", "application/json")]
)
def test_without_falcon_refusals_are_value_errors(script_alone: Any, body: bytes, content_type: str) -> None:
    with pytest.raises(ValueError, match="Expected"):
        script_alone.input_handler(io.BytesIO(body), context(content_type))


# Photos that TensorFlow cannot decode


def webp(*chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WEBP" + b"".join(chunks)


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def jpeg(precision: int, marker: bytes = b"\xc1", colours: int = 0, before: bytes = b"") -> bytes:
    """Returns a JPEG's header: an APP0 segment, a marker without one, filling, a table, and the frame's segment."""
    return (
        b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
        + before
        + b"\xff\x01\xff\xff\xff\xc4\0\x04ab"
        + b"\xff"
        + marker
        + b"\0\x11"
        + bytes([precision, 0, 1, 0, 1, colours])
        + bytes(9)
    )


HEIF = b"\0\0\0\x1cftyp%s\0\0\0\0mif1"
ANIMATED = webp(chunk(b"VP8X", b"\x02" + bytes(9)), chunk(b"ANIM", bytes(6)), chunk(b"ANMF", bytes(24)))
UNFIT = {
    "TIFF": (b"II*\0\x08\0\0\0", "a TIFF"),
    "TIFF of the other byte order": (b"MM\0*\0\0\0\x08", "a TIFF"),
    "AVIF": (HEIF % b"avif", "an AVIF or HEIC"),
    "HEIC": (HEIF % b"heic", "an AVIF or HEIC"),
    "video": (HEIF % b"isom", "a video"),
    "animated WebP": (ANIMATED, "an animated WebP"),
    "animated WebP by its flag alone": (webp(chunk(b"VP8X", b"\x12" + bytes(9))), "an animated WebP"),
    "animated WebP without its flag": (
        webp(chunk(b"VP8X", bytes(10)), chunk(b"ICCP", b"odd"), chunk(b"ANIM", bytes(6))),
        "an animated WebP",
    ),
    "12-bit JPEG": (jpeg(12), "a JPEG of 12 bits a colour"),
    "CMYK JPEG without Adobe's mark": (jpeg(8, colours=4), "a CMYK JPEG without Adobe's mark"),
    "12-bit progressive JPEG": (jpeg(12, b"\xc2"), "a JPEG of 12 bits a colour"),
    "PDF": (b"%PDF-1.4\n", "a PDF"),
    "HTML": (b"\xef\xbb\xbf \n<!DOCTYPE html><html>", "HTML or XML"),
    "SVG": (b"<svg xmlns='x'>", "an SVG drawing"),
    "ZIP": (b"PK\x03\x04xx", "a ZIP archive"),
    "WAV": (b"RIFF\0\0\0\0WAVEfmt ", "a RIFF file that is no WebP"),
    "JSON": (b'{"instances": []}', "JSON"),
    "one byte": (b"\xff", "1 bytes of no known format, beginning with ff"),
    "text": (b"a photo", "7 bytes of no known format, beginning with 612070686f746f"),
}
FIT = {
    "JPEG": jpeg(8),
    "progressive JPEG": jpeg(8, b"\xc2"),
    "JPEG cut short": jpeg(12)[:24],
    "CMYK JPEG with Adobe's mark": jpeg(8, colours=4, before=b"\xff\xee\0\x0eAdobe" + bytes(7)),
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "BMP": b"BM\xff\xc0\0\0\0\0\0\0",
    "GIF": b"GIF89a\1\0",
    "old GIF": b"GIF87a\1\0",
    "WebP": webp(chunk(b"VP8 ", b"ANMF" * 4)),
    "lossless WebP": webp(chunk(b"VP8L", bytes(8))),
    "extended WebP": webp(chunk(b"VP8X", b"\x10" + bytes(9)), chunk(b"ALPH", b"ANMF"), chunk(b"VP8 ", bytes(8))),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_photo_that_cannot_be_decoded_is_a_clean_415(script: Any, script_alone: Any, name: str) -> None:
    body, received = UNFIT[name]
    status, text = call(script, "2.20", body, None, to="image/jpeg")
    assert (status, text) == (415, f"Expected a JPEG, PNG, BMP, GIF or still WebP. Received: {received}.")
    with pytest.raises(ValueError, match="Expected a JPEG"):
        script_alone.input_handler(io.BytesIO(body), context("application/x-image"))


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("form", ["instances", "a bare list", "by name", "inputs", "inputs by name"])
def test_inside_of_json_it_is_a_clean_400_that_says_which(script: Any, form: str, name: str) -> None:
    unfit, received = UNFIT[name]
    good, bad = ({"b64": base64.b64encode(photo).decode()} for photo in (FIT["PNG"], unfit))
    request, place = {
        "instances": ({"instances": [good, bad]}, "instances[1]"),
        "a bare list": ([good, good, bad], "instances[2]"),
        "by name": ({"instances": [{"bytes_inputs": bad}]}, "instances[0]"),
        "inputs": ({"inputs": [good, bad]}, "instances[1]"),
        "inputs by name": ({"inputs": {"bytes_inputs": [good, bad]}}, "instances[1]"),
    }[form]
    status, text = call(script, "2.20", json.dumps(request).encode(), None, to="application/json")
    assert status == 400
    assert text.startswith(f"{place}: Expected a JPEG, PNG, BMP, GIF or still WebP")
    assert f"Received: {received}." in text


@pytest.mark.parametrize("name", FIT)
def test_photos_that_can_be_decoded_are_passed_on(script: Any, name: str) -> None:
    encoded = base64.b64encode(FIT[name]).decode()
    assert instances(script, FIT[name], "application/x-image") == [{"b64": encoded}]
    assert instances(script, json.dumps([{"b64": encoded}]).encode(), "application/json") == [{"b64": encoded}]


def test_of_two_unfit_photos_the_first_is_named(script: Any) -> None:
    bad = {"b64": base64.b64encode(b"text").decode()}
    status, text = call(script, "2.20", json.dumps([bad, bad]).encode(), None, to="application/json")
    assert (status, text.split(":")[0]) == (400, "instances[0]")


@pytest.mark.parametrize("text", ["*", "AA=A", "A", "R0lG-ODlh", "R0lGé"])
def test_what_is_no_base64_is_a_clean_400(script: Any, text: str) -> None:
    status, words = call(script, "2.20", json.dumps([{"b64": text}]).encode(), None, to="application/json")
    assert status == 400
    assert words.startswith("instances[0]: expected base64")


def test_base64_is_passed_on_as_no_decoder_can_read_otherwise(script: Any) -> None:
    """What is looked at here is then what TensorFlow Serving decodes."""
    for text in ("R0lGODlhMQ", "R0lG\nODlh MQ==", "R0lGODlhMR=="):  # No padding; blanks; loose bits at the end.
        assert instances(script, json.dumps([{"b64": text}]).encode(), "application/json") == [{"b64": "R0lGODlhMQ=="}]


def described(model: Path, task: str) -> None:
    (model / "tf_finetune.json").write_text(json.dumps({"task": task}), encoding="utf-8")


def test_a_model_of_texts_takes_any_string_and_any_text_in_base64(script: Any, model: Path) -> None:
    described(model, "text")
    request = [ANIMATED.decode("latin-1"), {"b64": base64.b64encode("RIFF é".encode()).decode()}]
    assert instances(script, json.dumps(request).encode(), "application/json") == [request[0], "RIFF é"]


@pytest.mark.parametrize(
    ("task", "content_type", "expected"),
    [("text", "image/png", "application/x-text, text/plain, text/csv"), ("image", "text/csv", "application/x-image")],
)
def test_the_types_of_the_other_task_are_a_clean_415(
    script: Any, model: Path, task: str, content_type: str, expected: str
) -> None:
    described(model, task)
    status, text = call(script, "2.20", b"1", None, to=content_type)
    assert status == 415
    assert text.startswith(f"Expected the content type {expected}")


LARGE = {
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 10_000, 5_001),
    "JPEG": jpeg(8)[:-15] + struct.pack(">BHH", 8, 10_000, 5_001) + bytes(10),
    "GIF": b"GIF89a" + struct.pack("<HH", 10_000, 5_001),
    "BMP": b"BM" + bytes(16) + struct.pack("<ii", 10_000, -5_001),
    "WebP": webp(chunk(b"VP8 ", bytes(6) + struct.pack("<HH", 10_000, 5_001))),
    "lossless WebP": webp(chunk(b"VP8L", b"\x2f" + struct.pack("<I", 9_999 | 5_000 << 14))),
    "extended WebP": webp(
        chunk(b"VP8X", bytes(4) + (9_999).to_bytes(3, "little") + (5_000).to_bytes(3, "little")), chunk(b"VP8 ", b"")
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_photo_that_would_take_the_memory_is_a_clean_413(script: Any, name: str) -> None:
    status, text = call(script, "2.20", LARGE[name], None, to="image/jpeg")
    assert status == 413
    assert "expected a photo of up to 50,000,000 pixels. Received: " in text
    assert sorted(re.findall(r"[\d,]+", text.split("Received:")[1])) == ["10,000", "5,001"]


def test_a_text_that_is_too_long_is_a_clean_413_that_says_which(script: Any) -> None:
    for of, body in (("text/csv", "a\n" + "x" * 200_000), ("application/jsonlines", f'"a"\n"{"x" * 200_000}"')):
        status, text = call(script, "2.20", body.encode(), None, to=of)
        assert status == 413
        assert "1]: expected a text of up to 100,000" in text or "row 2: expected a text of up to 100,000" in text


def test_a_model_of_photos_takes_no_strings(script: Any, model: Path) -> None:
    described(model, "image")
    status, text = call(script, "2.20", b'["GIF89a"]', None, to="application/json")
    assert status == 400
    assert text.startswith('instances[0]: expected a photo as {"b64": "..."}')


def test_an_animated_webp_cannot_come_as_a_string_even_where_the_task_is_not_told(script: Any) -> None:
    ascii_only = webp(chunk(b"VP8X", b"\x02" + bytes(9)))
    body = json.dumps([ascii_only.decode("ascii")]).encode()
    assert call(script, "2.20", body, None, to="application/json")[0] == 400


def test_a_deep_request_is_a_clean_400_at_every_depth(script: Any) -> None:
    for depth in [*range(900, 1100), 10_000]:
        bare = b"[" * depth + b"]" * depth
        for body in (bare, b'{"instances": ' + bare + b"}"):
            assert call(script, "2.20", body, {"predictions": [ROW]}, to="application/json")[0] in (200, 400)


def test_real_photos_get_the_verdict_that_tensorflow_would_give(script: Any) -> None:
    folder = Path(os.environ.get("TF_FINETUNE_TEST_DATA", "absent")) / "broken-images"
    if not (folder / "DECODE.tsv").is_file():
        pytest.skip(f"the real data is not at {folder.parent}; TF_FINETUNE_TEST_DATA says where it is")
    _, *rows = (line.split("\t") for line in (folder / "DECODE.tsv").read_text(encoding="utf-8").splitlines())
    refused, passed = set(), set()
    for name, *_, decoded, _ in rows:
        body = (folder / name).read_bytes()
        status = call(script, "2.20", body, {"predictions": [ROW]}, to="application/x-image")[0]
        (passed if status == 200 else refused).add(name.removeprefix("derived/"))
        assert status == 200 or not decoded.startswith("ok") or "12000" in name, f"{name} can be decoded"
    assert {"animated.webp", "photo.tif", "tiff_named.jpg", "html_error_page.jpg", "text.jpg"} <= refused
    assert {"random_bytes.jpg", "one_byte.jpg", "empty.jpg", "Thumbs.db", ".DS_Store"} <= refused
    assert len(passed) > 30


# What comes back


@pytest.mark.parametrize(
    "served",
    [
        {"predictions": [ROW]},
        {"predictions": [{"probabilities": ROW}]},
    ],
)
@pytest.mark.parametrize(
    "accept",
    ["application/json", "*/*", None, "", "Application/JSON; q=0.9", "text/html, */*;q=.2", "text/csv;q=0, */*"],
)
def test_one_example_gives_its_probabilities(script: Any, served: Any, accept: str | None) -> None:
    assert answer(script, served, accept) == {"probabilities": ROW}


@pytest.mark.parametrize(
    "accept",
    ["application/json;verbose", "application/json; Verbose", "text/csv;q=0.5, application/json;q=0.6;verbose"],
)
def test_verbose_adds_the_class_names_and_the_likeliest(script: Any, accept: str) -> None:
    expected = {"probabilities": ROW, "labels": LABELS, "predicted_label": "ヒマワリ"}
    assert answer(script, {"predictions": [ROW]}, accept) == expected


def test_the_predicted_label_follows_the_probabilities(script: Any) -> None:
    for index, label in enumerate(LABELS):
        row = [0.0, 0.0, 0.0]
        row[index] = 1.0
        assert answer(script, {"predictions": [row]}, "application/json;verbose")["predicted_label"] == label


def test_several_examples_give_a_list(script: Any) -> None:
    rows = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    assert answer(script, {"predictions": rows}) == {"predictions": [{"probabilities": row} for row in rows]}
    verbose = answer(script, {"predictions": rows}, "application/json;verbose")["predictions"]
    assert [each["predicted_label"] for each in verbose] == LABELS[:2]


def test_lines_and_rows_have_one_for_each_example(script: Any) -> None:
    rows = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]]
    served = response({"predictions": rows})
    plain = "".join(json.dumps({"probabilities": row}) + "\n" for row in rows)
    assert script.output_handler(served, context(accept="application/jsonlines")) == (plain, "application/jsonlines")
    assert script.output_handler(served, context(accept="application/x-ndjson")) == (plain, "application/jsonlines")
    verbose, _ = script.output_handler(served, context(accept="application/jsonlines;verbose"))
    assert [json.loads(line)["predicted_label"] for line in verbose.splitlines()] == LABELS[:2]
    expected = ("0.5,0.25,0.25\n0.0,1.0,0.0\n", "text/csv")
    assert script.output_handler(served, context(accept="text/csv")) == expected


def test_what_cannot_be_produced_is_a_clean_406_before_the_model_is_asked(script: Any, script_alone: Any) -> None:
    with pytest.raises(HTTPNotAcceptable) as caught:
        script.input_handler(io.BytesIO(b'["a"]'), context(accept="image/png"))
    assert "image/png" in (caught.value.description or "")
    with pytest.raises(HTTPNotAcceptable):
        answer(script, {"predictions": [ROW]}, "image/png")
    with pytest.raises(ValueError, match="image/png"):
        answer(script_alone, {"predictions": [ROW]}, "image/png")


def test_class_names_of_another_model_are_an_error_and_not_a_wrong_name(script: Any) -> None:
    with pytest.raises(ValueError, match="names 3 classes, the model has 2"):
        answer(script, {"predictions": [[0.5, 0.5]]}, "application/json;verbose")


# Errors of TensorFlow Serving


@pytest.mark.parametrize("status", [400, 404, 503])
def test_serving_errors_keep_status_and_words_in_both_containers(script: Any, status: int) -> None:
    served = {"error": "Expected image (JPEG, PNG, or GIF), got unknown format"}
    for of in ("2023", "2.20"):
        got, text = call(script, of, PHOTO, served, to="image/png", status=status)
        assert got == (500 if of == "2023" else status)
        assert served["error"] in text
    with pytest.raises(HTTPError) as caught:
        script.output_handler(response(served, status), context())
    assert caught.value.status.startswith(f"{status} ")
    assert caught.value.description == served["error"]


def test_serving_errors_without_falcon_name_the_status(script_alone: Any) -> None:
    with pytest.raises(ValueError, match="TensorFlow Serving answered 503: not ready"):
        script_alone.output_handler(response({"error": "not ready"}, 503), context())


def test_serving_errors_that_are_no_json_are_shown_as_they_are(script: Any) -> None:
    with pytest.raises(HTTPError) as caught:
        script.output_handler(response(b"<html>{1} bad gateway \xff" + b"x" * 10_000, 599), context())
    assert "{1} bad gateway" in (caught.value.description or "")
    assert len(str(caught.value)) < 3000


def test_the_container_of_2023_shows_our_words(script: Any) -> None:
    """It answers every exception with 500 and str(exception), in which falcon itself leaves the message out."""
    status, text = call(script, "2023", b"1", None, to="text/html")
    assert status == 500
    assert "Expected the content type" in json.loads(text)["error"]


@pytest.mark.parametrize("of", ["2023", "2.20"])
def test_a_photo_is_answered_in_both_containers(script: Any, of: str) -> None:
    status, text = call(script, of, PHOTO, {"predictions": [ROW]}, to="application/x-image")
    assert (status, json.loads(text)) == (200, {"probabilities": ROW})


# Where the class names are


def moved(model: Path, code: Path) -> Any:
    """Returns the script imported from `code`, away from its model."""
    code.mkdir(parents=True)
    (code / "inference.py").write_bytes((model / "code" / "inference.py").read_bytes())
    return imported(code / "inference.py")


def test_class_names_are_found_in_the_model_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = moved(model, tmp_path / "elsewhere" / "code")
    monkeypatch.setattr(script, "MODEL_FOLDER", str(model))
    assert answer(script, {"predictions": [ROW]}, "application/json;verbose")["labels"] == LABELS


def test_class_names_are_found_by_the_name_of_the_model(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = moved(model, tmp_path / "elsewhere" / "code")
    for name, labels in {"one": ["a", "b", "c"], "two": ["x", "y", "z"]}.items():
        (tmp_path / "models" / name / "model").mkdir(parents=True)
        (tmp_path / "models" / name / "model" / "labels_info.json").write_text(json.dumps({"labels": labels}))
    monkeypatch.setattr(script, "MODEL_FOLDER", str(tmp_path / "absent"))
    monkeypatch.setattr(script, "MODELS_FOLDER", str(tmp_path / "models"))

    def verbose(name: str) -> str:
        return answer(script, {"predictions": [ROW]}, "application/json;verbose", name)["predicted_label"]

    assert (verbose("one"), verbose("two"), verbose("one")) == ("c", "z", "c")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "labels_info.json").write_text('{"labels": ["not", "for", "you"]}')
    for name in ("..", "one/../..", "three", ""):
        with pytest.raises(FileNotFoundError, match=r"labels_info\.json is not in"):
            verbose(name)


def test_a_model_beside_the_script_comes_first(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "labels_info.json").write_text('{"labels": ["x", "y", "z"]}')
    script = imported(model / "code" / "inference.py")
    monkeypatch.setattr(script, "MODEL_FOLDER", str(tmp_path / "other"))
    assert answer(script, {"predictions": [ROW]}, "application/json;verbose")["labels"] == LABELS


def test_without_class_names_the_plain_answer_still_comes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model / "labels_info.json").unlink()
    script = imported(model / "code" / "inference.py")
    monkeypatch.setattr(script, "MODEL_FOLDER", str(model / "absent"))
    assert answer(script, {"predictions": [ROW]}) == {"probabilities": ROW}


# What it runs on


def test_it_is_python_3_8_and_short() -> None:
    """Longer than other files may be: the container imports this one and none beside it."""
    source = SOURCE.read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    assert len(source.splitlines()) < 400


def test_it_runs_with_the_standard_library_alone(model: Path) -> None:
    """-I and -S leave only the standard library: neither tf_finetune nor any site package can be imported."""
    code = (
        "import importlib.util, io, sys, types\n"
        "spec = importlib.util.spec_from_file_location('inference', sys.argv[1])\n"
        "script = importlib.util.module_from_spec(spec); spec.loader.exec_module(script)\n"
        "assert script.falcon is None\n"
        "context = types.SimpleNamespace(request_content_type='application/x-text', accept_header='*/*')\n"
        "print(script.input_handler(io.BytesIO(b'hello'), context))\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, str(model / "code" / "inference.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"instances": ["hello"]}


def test_it_works_with_the_real_falcon(model: Path) -> None:
    falcon = pytest.importorskip("falcon")
    script = imported(model / "code" / "inference.py")
    with pytest.raises(falcon.HTTPUnsupportedMediaType, match="Expected the content type") as caught:
        script.input_handler(io.BytesIO(b"1"), context("text/html"))
    assert str(caught.value.status).startswith("415")
    with pytest.raises(falcon.HTTPBadRequest, match="Expected JSON"):
        script.input_handler(io.BytesIO(b"{"), context())
    with pytest.raises(falcon.HTTPNotAcceptable, match="image/png"):
        script.output_handler(response({"predictions": [ROW]}), context(accept="image/png"))
    with pytest.raises(falcon.HTTPError, match="up to 100,000 characters") as large:
        script.input_handler(io.BytesIO(b"x" * 100_001), context("application/x-text"))
    assert str(large.value.status).startswith("413")
    with pytest.raises(falcon.HTTPError, match="answered 503: not ready") as other:
        script.output_handler(response({"error": "not ready"}, 503), context())
    assert str(other.value.status).startswith("503")
