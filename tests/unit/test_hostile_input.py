"""Whatever comes from outside, what reads it answers or refuses in words: no other exception, and nothing escapes.

Each test runs briefly, always on the same inputs, and in `make soak` for longer, on other ones each time.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import importlib.util
import io
import json
import sys
import tarfile
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed; it is part of the dev extra")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import tf_finetune  # noqa: E402
from tf_finetune import archive, examples, job, storage  # noqa: E402
from tf_finetune.errors import DataError, ExportError, FinetuneError  # noqa: E402
from tf_finetune.examples import texts  # noqa: E402

BRIEF, LONG = 150, 5_000  # Inputs.
fuzzed = pytest.mark.parametrize(
    "count", [pytest.param(BRIEF, id="brief"), pytest.param(LONG, id="long", marks=pytest.mark.soak)]
)


def try_all(count: int, action: Callable[..., None], **strategies: Any) -> None:
    """Calls an action with as many drawn inputs."""
    quietly = settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=count == BRIEF,
        suppress_health_check=list(HealthCheck),
    )
    quietly(given(**strategies)(action))()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder beside which nothing may appear."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inside").mkdir()
        yield Path(folder) / "inside"


# Archives

NAMES = st.one_of(
    st.sampled_from(["a", "a/b", "a/", "./a", "../x", "/x", "a/../../x", "tf_finetune.json", "./tf_finetune.json", ""]),
    st.sampled_from(
        ["C:\\x", "\\\\h\\x", "a\\b", "con", "a" * 300, "a/" * 100 + "b", "\udcff", "ü", "..", "a//b", "."]
    ),
    st.text(max_size=8),
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 6 + [bytes([kind]) for kind in b"\x000123456Lkgx7SVD"])
SIZES = st.one_of(st.none(), st.integers(-10, 1000), st.sampled_from([2**33, 2**63 - 1, 8**11 - 1, 2**64]))
MEMBERS = st.tuples(NAMES, KINDS, NAMES, SIZES, st.binary(max_size=600))
DAMAGE = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), max_size=3)


def tarball(members: list, tar_format: int, end: bool) -> bytes:
    parts = []
    for name, kind, target, size, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.size = kind, target, len(content) if size is None else size
        try:
            header = info.tobuf(tar_format, "utf-8", "surrogateescape")
        except (ValueError, UnicodeError, OverflowError):  # What tarfile itself cannot write.
            continue
        parts.append(header + content + bytes(-len(content) % 512))
    return b"".join(parts) + bytes(1024) * end


@fuzzed
def test_archives(count: int, place: Path) -> None:
    def unpack(members: list, tar_format: int, end: bool, packed: bool, cut: int | None, damage: list) -> None:
        content = bytearray(tarball(members, tar_format, end))
        content = bytearray(gzip.compress(content, 1)) if packed else content
        for where, value in damage:
            content[where % max(len(content), 1) : where % max(len(content), 1) + 1] = bytes([value])
        with tempfile.TemporaryDirectory(dir=place) as folder:
            file, out = Path(folder, "hostile.tar"), Path(folder, "one", "out")
            file.write_bytes(content[:cut])
            out.parent.mkdir()
            try:
                archive.unpack(file, out, max_bytes=100_000, max_members=20)
            except ExportError:
                assert not out.exists()
            else:
                assert all(not path.is_symlink() and (path.is_dir() or path.is_file()) for path in out.rglob("*"))
                assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) <= 100_000
            assert {path.name for path in Path(folder, "one").iterdir()} <= {"out"}
            assert {path.name for path in Path(folder).iterdir()} == {"hostile.tar", "one"}
            with contextlib.suppress(ExportError):
                assert archive.task_of(file) in ("image", "text")
        assert [path.name for path in place.parent.iterdir()] == ["inside"]

    try_all(
        count,
        unpack,
        members=st.lists(MEMBERS, max_size=4),
        tar_format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
        end=st.booleans(),
        packed=st.booleans(),
        cut=st.one_of(st.none(), st.integers(0, 3000)),
        damage=DAMAGE,
    )


# What the tests below draw: JSON of all kinds.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["image", "text", "b64"]),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


@fuzzed
def test_descriptions_of_models(count: int, place: Path) -> None:
    def describe(content: bytes) -> None:
        (place / "tf_finetune.json").write_bytes(content)
        with contextlib.suppress(ExportError):
            assert archive.task_of(place) in ("image", "text")

    trees = st.one_of(TREES, st.fixed_dictionaries({"task": TREES})).map(lambda tree: json.dumps(tree).encode())
    deep = st.integers(1, 100_000).map(lambda depth: b'{"task": ' + b"[" * depth)
    try_all(count, describe, content=st.one_of(st.binary(max_size=50), trees, deep))


# Texts

PIECES = st.sampled_from(
    [
        ",",
        ",",
        "\n",
        "\n",
        "\r\n",
        "\r",
        '"',
        '""',
        '","',
        "a",
        "b",
        "0",
        "1",
        "-1",
        "+2",
        "007",
        "label",
        ";",
        "\t",
        "\0",
    ]
    + ["é", "\ufeff", "\u2028", "\x85", "=1+1", "9" * 30, "٣", "²", " ", "text", "\ud800"]
)
CSV = st.one_of(
    st.lists(PIECES, max_size=30).map("".join),
    st.lists(st.tuples(st.sampled_from("ab01"), st.text(max_size=8)), max_size=8).map(
        lambda rows: "".join(f"{label},{text}\n" for label, text in rows)
    ),
    st.text(max_size=60),
)
ENCODED = st.one_of(
    CSV.map(lambda text: text.encode("utf-8", "surrogatepass")),
    CSV.map(lambda text: text.encode("utf-16", "surrogatepass")),
    st.binary(max_size=80),
    CSV.map(lambda text: gzip.compress(text.encode("utf-8", "surrogatepass"))),
    CSV.map(lambda text: gzip.compress(text.encode("utf-8", "surrogatepass"))[:-6]),
)


def read_texts(channel: Path) -> None:
    """Reads a channel of texts as training and as validation would, and holds what must be true of what comes out."""
    try:
        found = texts.read(channel)
    except DataError:
        return
    assert len(found.class_names) == len(set(found.class_names)) >= 2
    assert {item.label for item in found.items} == set(range(len(found.class_names)))
    assert len({item.id for item in found.items}) == len(found.items)
    again = texts.read(channel, found.class_names, "validation", found.number_names)
    assert [item.label for item in again.items] == [item.label for item in found.items]
    examples.split(found, 0.3, 0)


@fuzzed
def test_tables_of_texts(count: int, place: Path) -> None:
    def read(content: bytes) -> None:
        (place / "data.csv").write_bytes(content)
        read_texts(place)

    try_all(count, read, content=ENCODED)


@fuzzed
def test_names_of_numbers(count: int, place: Path) -> None:
    def read(numbers: list[int], content: bytes) -> None:
        (place / "data.csv").write_text("".join(f"{number},text {number}\n" for number in numbers))
        (place / "labels.txt").write_bytes(content)
        read_texts(place)

    keys = st.sampled_from(["0", "1", "2", "3", "-1", "+1", "٣", "9" * 5000, "x"])
    pairs = st.tuples(keys, st.text(max_size=5)).map("\t".join)
    named = st.lists(keys.map("{}\tname".format), min_size=1, max_size=3)
    mixed = st.lists(pairs | st.text(max_size=10), max_size=5)
    content = [one.map("\n".join).map(lambda text: text.encode("utf-8", "surrogatepass")) for one in (named, mixed)]
    numbers = st.lists(st.integers(-3, 5), min_size=2, max_size=5)
    try_all(count, read, numbers=numbers, content=st.one_of(*content, st.binary(max_size=40)))


# Handles: a handle is a string, and anything that it names is refused or taken, never run

HANDLES = st.one_of(
    st.sampled_from(
        ["~", "~x", "~\0", "~\ud800/x", "\0", "a\0b", "\ud800", ".", "..", "/", "", " ", "-", "//", "a" * 5000]
    )
    | st.sampled_from(
        ["s3://b/k", "S3://b", "file:///etc/passwd", "gs://b", "://", "a://", "ftp://me:secret@h/x?token=y"]
    )
    | st.sampled_from(["$(touch x)", "`touch x`", "; touch x", "| touch x", "%s", "{0}", "/dev/null", "/dev/zero"]),
    st.text(max_size=20),
    st.text(max_size=10).map("~{}".format),
    st.text(max_size=10).map("s3://{}".format),
    st.text(max_size=10).map("https://{}".format),
    st.text(max_size=10).map("http://me:secret@h/{}".format),
    st.text(max_size=6).map("owner/model/tensorFlow2/{}".format),
    st.text(max_size=6).map("https://h/x.tar.gz#sha256={}".format),
    st.text(alphabet="./~:\\\0ab", max_size=20),
)


@fuzzed
def test_handles(count: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")

    def name(handle: str) -> None:
        for action in (
            lambda: job.backbones.handle_of({"backbone": handle}, None, "image"),
            lambda: storage.check_handle(handle),
            lambda: storage.resolve_backbone(handle, place.parent / "inside" / "cache"),
            lambda: job.plan({"training": None}, {"backbone": handle}),
        ):
            try:
                action()
            except FinetuneError as error:
                assert "secret" not in str(error)
        assert list(place.iterdir()) == []

    try_all(count, name, handle=HANDLES)


# Requests to the serving container


class RefusalError(Exception):
    """A stand-in for falcon's errors."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.description = given["description"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, place: Path) -> Any:
    kinds = ("HTTPError", "HTTPBadRequest", "HTTPNotAcceptable", "HTTPUnsupportedMediaType")
    monkeypatch.setitem(sys.modules, "falcon", types.SimpleNamespace(**dict.fromkeys(kinds, RefusalError)))
    source = Path(tf_finetune.__file__).parent / "assets" / "inference.py"
    spec = importlib.util.spec_from_file_location("inference", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "MODEL_FOLDER", str(place))
    (place / "labels_info.json").write_text('{"labels": ["a", "b"]}')
    return module


HEADERS = st.one_of(
    st.none(),
    st.sampled_from(["application/json", "application/x-image", "image/png; q=1", "application/x-text", "*/*", ";,;"]),
    st.sampled_from(["application/json;verbose", "text/csv", "application/*;verbose"]),
    st.text(max_size=20),
)
STARTS = st.sampled_from(
    [
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBPVP8X",
        b"RIFF\x1e\0\0\0WEBPVP8 ",
        b"II*\0",
    ]
    + [b"\0\0\0\x1cftypavif", b"\xff\xd8\xff\xe0\0\x10", b"\xff\xd8\xff\xc0\0\x11\x0c", b"", b"\xef\xbb\xbf", b"["]
    + [b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\0\0\0\0\0\0"]
)
FILES = st.tuples(STARTS, st.binary(max_size=40)).map(b"".join)
BASE64 = st.one_of(
    FILES.map(lambda content: base64.b64encode(content).decode()), st.text(max_size=12), st.integers(), st.none()
)
VALUES = st.one_of(TREES, st.fixed_dictionaries({"b64": BASE64}), FILES.map(lambda content: content.decode("latin-1")))
ROWS = st.one_of(VALUES, st.lists(VALUES, max_size=4), st.fixed_dictionaries({"bytes_inputs": VALUES}))
REQUESTS = st.one_of(
    st.lists(VALUES, max_size=4),
    st.fixed_dictionaries({"instances": ROWS}),
    st.fixed_dictionaries({"inputs": ROWS}),
    st.fixed_dictionaries({"inputs": ROWS, "instances": ROWS}),
    TREES,
)
BODIES = st.one_of(
    FILES,
    REQUESTS.map(lambda tree: json.dumps(tree).encode()),
    st.integers(0, 3000).map(lambda depth: b'{"instances":' + b"[" * depth + b"]" * depth + b"}"),
    st.integers(4000, 5000).map(lambda digits: b'{"instances":[' + b"9" * digits + b"]}"),
    st.binary(max_size=60),
)


def photos_in(tree: Any) -> Iterator[bytes]:
    """Yields the bytes of each value in base64, as TensorFlow Serving would take it, and of each string."""
    if isinstance(tree, dict) and list(tree) == ["b64"] and isinstance(tree["b64"], str):
        yield base64.b64decode(tree["b64"], validate=True)
    elif isinstance(tree, (dict, list)):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from photos_in(inner)


@fuzzed
@pytest.mark.parametrize("task", ["image", "text", None])
def test_requests(count: int, script: Any, place: Path, task: str | None) -> None:
    if task:
        (place / "tf_finetune.json").write_text(json.dumps({"task": task}))

    def ask(body: bytes, content_type: str | None, name: str | None) -> None:
        context = types.SimpleNamespace(request_content_type=content_type, model_name=name, accept_header=None)
        try:
            request = script.input_handler(io.BytesIO(body), context)
        except RefusalError as error:
            assert 0 < len(error.description) <= script.MESSAGE_LIMIT
            return
        assert request.isascii()
        if task != "text" and request.count("[") < 500:
            for content in photos_in(json.loads(request)):
                assert script._unfit(content) is None
                assert content.startswith((*script.PHOTO_STARTS, b"RIFF"))
                assert content[:4] != b"RIFF" or content[12:16] != b"VP8X" or not content[20:21] or not content[20] & 2

    try_all(count, ask, body=BODIES, content_type=HEADERS, name=st.one_of(st.none(), st.text(max_size=10)))


@fuzzed
def test_headers_of_requests(count: int, script: Any) -> None:
    def answer(accept: str | None, name: str | None, status: int, error: bytes) -> None:
        served = json.dumps({"predictions": [[0.25, 0.75]]}).encode()
        response = types.SimpleNamespace(status_code=status, content=served if status == 200 else error)
        context = types.SimpleNamespace(accept_header=accept, model_name=name)
        try:
            body, content_type = script.output_handler(response, context)
        except RefusalError as refused:
            assert len(refused.description) <= script.MESSAGE_LIMIT
        else:
            assert status == 200
            assert content_type in {script.JSON, script.LINES, script.CSV}
            told = f'{{"probabilities": [{body}]}}' if content_type == script.CSV else body
            assert json.loads(told)["probabilities"] == [0.25, 0.75]

    names = st.one_of(st.none(), st.text(max_size=10), st.sampled_from(["..", "../..", "/etc", "a\0b"]))
    errors = st.one_of(st.binary(max_size=50), TREES.map(lambda tree: json.dumps(tree).encode()))
    statuses = st.sampled_from([200, 200, 400, 404, 503, 599])
    try_all(count, answer, accept=HEADERS, name=names, status=statuses, error=errors)
