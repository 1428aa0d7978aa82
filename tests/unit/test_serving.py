"""What the server takes and gives, without a model: content types, limits, answers and batches."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import struct
import threading
import zlib

import numpy as np
import pytest

from tf_finetune import serving
from tf_finetune.errors import DataError, UsageError
from tf_finetune.serving import answers, payloads, records
from tf_finetune.serving.batching import Batcher
from tf_finetune.serving.records import Refusal, Settings

SETTINGS = Settings(max_pixels=100, max_characters=10, max_examples=100)
NAMES = ("daisy", "rose")
ROWS = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)


def png(width: int = 2, height: int = 2) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress((b"\0" + b"\x80" * 3 * width) * height)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PHOTO = png()
B64 = base64.b64encode(PHOTO).decode()


def read(kind: str, body: str | bytes, task: str = "text") -> list:
    return payloads.read(kind, body.encode() if isinstance(body, str) else body, task, SETTINGS)


@pytest.mark.parametrize(
    ("kind", "body", "texts"),
    [
        ("application/x-text", "one, two", ["one, two"]),
        ("application/x-text; charset=utf-8", "\ufeffü", ["ü"]),
        ("text/plain", "a\nb", ["a\nb"]),
        ("text/csv", 'a\r\n"b, ""c"""\n\n', ["a", 'b, "c"']),
        ("application/json", '["a", "b"]', ["a", "b"]),
        ("", '{"instances": ["a", ["b"], {"text_inputs": "c"}, {"b64": "ZA=="}]}', ["a", "b", "c", "d"]),
        (
            "application/json",
            '{"signature_name": "serving_default", "inputs": {"text_inputs": ["a", "b"]}}',
            ["a", "b"],
        ),
        ("application/jsonlines", '"a"\n\n{"instances": ["b", "c"]}\n', ["a", "b", "c"]),
        ("Application/X-NDJSON", '"a"\n["b"]', ["a", "b"]),
        ("application/jsonlines", '"a\u2028\x85\u2029b"\r\n \t\r\n"c"\r\n', ["a\u2028\x85\u2029b", "c"]),
        ("text/csv", "a\u2028\x85b\x1c\n\x0b\n", ["a\u2028\x85b\x1c", "\x0b"]),
    ],
)
def test_texts_come_in_each_content_type(kind, body, texts):
    assert read(kind, body) == texts


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        *[(kind, PHOTO) for kind in ("application/x-image", "image/png", "image/jpeg", "IMAGE/JPEG")],
        ("application/json", json.dumps({"instances": [{"b64": B64}]})),
        ("application/json", json.dumps({"instances": [{"bytes_inputs": {"b64": B64.rstrip("=") + "\n"}}]})),
        ("application/jsonlines", json.dumps({"b64": B64})),
    ],
)
def test_photos_come_in_each_content_type(kind, body):
    assert read(kind, body, "image") == [PHOTO]


@pytest.mark.parametrize(
    ("kind", "body", "task", "status", "words"),
    [
        ("application/x-image", PHOTO, "text", 415, "Expected the content type application/x-text, text/plain, text"),
        ("application/x-text", "a", "image", 415, "Expected the content type application/x-image"),
        ("application/pdf", b"%PDF", "image", 415, "Received: application/pdf."),
        ("application/x-image", b"", "image", 400, "Received: nothing."),
        ("application/x-image", b"<html></html>", "image", 415, "it is no photo and looks like"),
        ("application/x-image", png(11, 10), "image", 413, "11 x 10 pixels are more than max_pixels"),
        ("application/x-text", b"caf\xe9", "text", 400, "Expected UTF-8. Received: a body that is not, at byte 3."),
        ("application/x-text", "x" * 11, "text", 413, "a text of up to 10 characters. Received: 11."),
        ("text/csv", "a,b", "text", 400, "row 1: expected one column"),
        (
            "text/csv",
            "a\n\n" + "x" * 200_000,
            "text",
            413,
            "row 2: expected a text of up to 10 characters. Received: 200,000",
        ),
        ("text/csv", "a\n" * 101, "text", 413, "Expected up to 100 examples in a request."),
        ("application/json", json.dumps(["a"] * 101), "text", 413, "Expected up to 100 examples in a request."),
        ("application/jsonlines", '"a"\n' * 101, "text", 413, "Expected up to 100 examples in a request."),
        ("application/json", "[" + "{}," * 2_100_000, "text", 413, "2,100,001 brackets"),
        ("application/jsonlines", '\n"a"\n\n{', "text", 400, "line 4: Expected JSON."),
        ("text/csv", '"a', "text", 400, "Expected CSV of one column"),
        ("text/csv", "\n", "text", 400, "Received: no rows."),
        ("application/json", "{", "text", 400, "Expected JSON."),
        ("application/json", "[" * 100_000, "text", 400, "Expected JSON."),
        ("application/json", "[NaN]", "text", 400, "NaN is not JSON"),
        ("application/json", "{}", "text", 400, 'Expected {"instances"'),
        ("application/json", '"a"', "text", 400, 'Expected {"instances"'),
        ("application/json", "[]", "text", 400, "Expected one example or more"),
        ("application/json", '["a", 5]', "text", 400, "instances[1]: expected a text. Received: int."),
        ("application/json", '["a"]', "image", 400, 'instances[0]: expected a photo as {"b64": "..."}. Received: str.'),
        ("application/json", '[{"b64": "?"}]', "image", 400, "instances[0]: expected base64"),
        ("application/json", '[{"b64": "YWJj"}]', "image", 400, "instances[0]: expected a photo that can be decoded"),
        ("application/json", json.dumps([{"b64": base64.b64encode(png(50, 50)).decode()}]), "image", 413, "2,500|50 x"),
        ("application/jsonlines", '"a"\n{', "text", 400, "line 2: Expected JSON."),
        ("application/jsonlines", "\n", "text", 400, "Expected one line of JSON or more"),
    ],
)
def test_what_is_wrong_is_refused_with_its_status_and_one_message(kind, body, task, status, words):
    with pytest.raises(Refusal) as caught:
        read(kind, body, task)
    assert caught.value.status == status
    assert any(word in caught.value.message for word in words.split("|"))
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ("application/json", False)),
        ("*/*", ("application/json", False)),
        ("application/json;verbose", ("application/json", True)),
        ("text/html, application/json ; VERBOSE", ("application/json", True)),
        ("application/jsonlines", ("application/jsonlines", False)),
        ("text/csv", ("text/csv", False)),
        ("application/x-ndjson", ("application/jsonlines", False)),
        ("application/*", ("application/json", False)),
        ("text/*", ("text/csv", False)),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", ("application/json", False)),
        ("application/json;q=0.5, text/csv", ("text/csv", False)),
        ("application/json;q=.2, text/csv;q=0.199", ("application/json", False)),
        ("text/csv, application/json", ("text/csv", False)),
        ("*/*, text/csv", ("text/csv", False)),
        ("application/json, application/json;verbose", ("application/json", True)),
        ("application/json;verbose;q=0.1, text/csv;q=0", ("application/json", True)),
        ("application/json;q=0, */*", ("application/jsonlines", False)),
        ("text/csv;q=7, application/json;q=x", ("text/csv", False)),
        (" , ,", ("application/json", False)),
    ],
)
def test_the_best_type_that_is_accepted_and_offered_is_taken(header, expected):
    assert answers.accepted(header) == expected


@pytest.mark.parametrize(
    "header", ["image/png", "application/json;q=0", "application/json;q=0.0, text/html", "*/*;q=0"]
)
def test_other_types_are_not_acceptable(header):
    with pytest.raises(Refusal, match="Expected to accept application/json, .*Received: ") as caught:
        answers.accepted(header)
    assert caught.value.status == 406


def test_where_anything_will_do_the_default_is_answered():
    for header in ("", "*/*", "text/html, */*;q=0.1"):
        assert answers.accepted(header, "text/csv") == ("text/csv", False)
        assert answers.accepted(header, "application/json;verbose") == ("application/json", True)
    assert answers.accepted("application/jsonlines", "text/csv") == ("application/jsonlines", False)
    assert answers.accepted("application/*", "text/csv") == ("application/json", False)


def test_answers_of_many_rows_are_those_of_one_write():
    rows = np.random.default_rng(0).random([7001, 3], np.float32)
    expected = [[float(f"{value:.9g}") for value in row] for row in rows]
    told = json.loads(answers.body(rows, "abc", "application/json", False))
    assert [one["probabilities"] for one in told["predictions"]] == expected
    lines = answers.body(rows, "abc", "application/jsonlines", False).decode().splitlines()
    assert [json.loads(line)["probabilities"] for line in lines] == expected
    assert answers.body(rows, "abc", "text/csv", False).decode() == "".join(f"{a},{b},{c}\n" for a, b, c in expected)


def test_answers_have_the_forms_of_sagemaker():
    one, two = ROWS[:1], ROWS
    verbose = {"probabilities": [0.25, 0.75], "labels": ["daisy", "rose"], "predicted_label": "rose"}
    assert json.loads(answers.body(one, NAMES, "application/json", False)) == {"probabilities": [0.25, 0.75]}
    assert json.loads(answers.body(one, NAMES, "application/json", True)) == verbose
    told = json.loads(answers.body(two, NAMES, "application/json", False))
    assert told == {"predictions": [{"probabilities": row} for row in two.tolist()]}
    lines = answers.body(two, NAMES, "application/jsonlines", True).decode().splitlines()
    assert [json.loads(line)["predicted_label"] for line in lines] == ["rose", "daisy"]
    assert answers.body(two, NAMES, "text/csv", False) == b"0.25,0.75\n1.0,0.0\n"


def asked(batcher: Batcher, *requests: list, pixels=lambda examples: ()) -> list:
    """Returns what each of several requests at once is answered, or how it fails."""

    async def all_at_once():
        asking = (batcher.ask(examples, pixels(examples)) for examples in requests)
        return await asyncio.gather(*asking, return_exceptions=True)

    try:
        found = asyncio.run(all_at_once())
    finally:
        batcher.close()
    return [one if isinstance(one, Exception) else one.tolist() for one in found]


def test_requests_at_the_same_time_go_through_the_model_together_in_order():
    sizes, busy = [], threading.Event()

    def answer(examples):
        busy.wait(0.2)  # The others gather meanwhile.
        return [[float(example)] for example in examples]

    batcher = Batcher(answer, Settings(max_batch=4), lambda size, seconds: sizes.append(size))
    found = asked(batcher, [1], [2, 3], [4], [5, 6])
    assert found == [[[1.0]], [[2.0], [3.0]], [[4.0]], [[5.0], [6.0]]]
    assert sum(sizes) == 6
    assert max(sizes) == 4


def test_one_at_a_time_is_a_batch_of_one():
    sizes: list[int] = []
    batcher = Batcher(
        lambda examples: [[1.0]] * len(examples),
        Settings(max_batch=1),
        lambda size, _: sizes.append(size),
    )
    asked(batcher, [1], [2, 3])
    assert sizes == [1, 1, 1]


def test_photos_of_a_batch_have_no_more_pixels_than_one_alone_may_have():
    batches = []

    def answer(examples):
        batches.append(sum(examples))
        return [[0.0]] * len(examples)

    batcher = Batcher(answer, Settings(max_pixels=100), lambda size, seconds: None)
    asked(batcher, [60, 60, 30, 100, 5, 5], pixels=list)
    assert sum(batches) == 260
    assert max(batches) <= 100


def test_a_large_request_takes_turns_with_the_others():
    order, go = [], threading.Event()

    def answer(examples):
        go.wait(5)
        order.extend(examples)
        return [[float(example)] for example in examples]

    batcher = Batcher(answer, Settings(max_batch=10), lambda size, seconds: None)

    async def crowd():
        asking = [asyncio.ensure_future(batcher.ask(list(range(1000)))), asyncio.ensure_future(batcher.ask([-1]))]
        await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*asking)

    large, small = asyncio.run(crowd())
    batcher.close()
    assert large.tolist() == [[float(number)] for number in range(1000)]
    assert small.tolist() == [[-1.0]]
    assert order.index(-1) < 100


def held_up(settings: Settings) -> tuple[Batcher, list[str], threading.Event]:
    """Returns a batcher, what its model has been asked for, and the event before which the model does not answer."""
    asked_for, go = [], threading.Event()

    def answer(examples):
        asked_for.extend(examples)
        go.wait(5)
        return [[1.0]] * len(examples)

    return Batcher(answer, settings, lambda size, seconds: None), asked_for, go


def test_what_nobody_waits_for_does_not_go_to_the_model():
    batcher, asked_for, go = held_up(Settings(max_batch=1))

    async def crowd():
        first = asyncio.ensure_future(batcher.ask(["first"] * 3))
        while not asked_for:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(batcher.ask(["second"]))
        await asyncio.sleep(0)
        first.cancel()
        go.set()
        return await second

    asyncio.run(crowd())
    batcher.close()
    assert asked_for == ["first", "second"]


def test_the_model_is_asked_again_after_all_who_waited_have_gone():
    batcher, asked_for, go = held_up(Settings())

    async def crowd():
        first = asyncio.ensure_future(batcher.ask(["first"]))
        while not asked_for:
            await asyncio.sleep(0.01)
        gone = [asyncio.ensure_future(batcher.ask(["gone"])) for _ in range(3)]
        await asyncio.sleep(0)
        for one in gone:
            one.cancel()
        go.set()
        await first
        while batcher.waiting:
            await asyncio.sleep(0.01)
        return await asyncio.wait_for(batcher.ask(["last"]), 5)

    assert asyncio.run(crowd()).tolist() == [[1.0]]
    batcher.close()
    assert asked_for == ["first", "last"]


def test_answers_are_sent_without_waiting_for_acknowledgements():
    with serving._listen(Settings(port=0)) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_one_bad_example_ends_its_request():
    asked_for = []

    def answer(examples):
        asked_for.extend(examples)
        raise DataError("not a photo")

    batcher = Batcher(answer, Settings(max_batch=1), lambda size, seconds: None)
    (refused,) = asked(batcher, [1, 2, 3])
    assert refused.message == "instances[0]: not a photo"
    assert asked_for == [1]


def test_an_example_that_cannot_be_answered_costs_no_other_request_its_answer():
    def answer(examples):
        if "bad" in examples:
            raise DataError("not a photo")
        if "worse" in examples:
            raise ValueError("broken")
        return [[1.0]] * len(examples)

    batcher = Batcher(answer, Settings(), lambda size, seconds: None)
    good, refused, broken, last = asked(batcher, ["good"], ["good", "bad"], ["worse"], ["good"])
    assert good == last == [[1.0]]
    assert (refused.status, refused.message) == (400, "instances[1]: not a photo")
    assert isinstance(broken, ValueError)


def test_more_than_may_wait_are_told_to_come_again():
    go, asked_for = threading.Event(), []

    def answer(examples):
        asked_for.extend(examples)
        go.wait(5)
        return [[1.0]] * len(examples)

    batcher = Batcher(answer, Settings(max_batch=1, max_waiting=2), lambda size, seconds: None)

    async def crowd():
        first = [asyncio.ensure_future(batcher.ask(["first"]))]
        while not asked_for:  # The model has it, so that it no longer waits.
            await asyncio.sleep(0.01)
        first += [asyncio.ensure_future(batcher.ask([number])) for number in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(Refusal) as caught:
            await batcher.ask(["late"])
        go.set()
        return caught.value.status, [one.tolist() for one in await asyncio.gather(*first)]

    status, found = asyncio.run(crowd())
    batcher.close()
    assert (status, found) == (503, [[[1.0]]] * 3)


def test_sagemakers_variables_are_heeded_and_checked():
    assert records.of_environment({}) == {}
    told = {"SAGEMAKER_BIND_TO_PORT": "9000", "SAGEMAKER_MAX_PAYLOAD_IN_MB": "6"}
    assert records.of_environment(told) == {"port": 9000, "max_payload": 6 * 2**20}
    for wrong in ("x", "0", "-1", "70000"):
        with pytest.raises(UsageError, match="SAGEMAKER_BIND_TO_PORT: expected an integer from 1 to 65535"):
            records.of_environment({"SAGEMAKER_BIND_TO_PORT": wrong})
    accept = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"
    assert records.of_environment({accept: "text/csv"}) == {"default_accept": "text/csv"}
    assert records.of_environment({accept: ""}) == {}
    with pytest.raises(UsageError, match=f"{accept}: Expected to accept application/json, .*Received: image/png"):
        records.of_environment({accept: "image/png"})
