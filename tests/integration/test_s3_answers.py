"""S3 as far as a server that answers as told can show it: errors, hostile keys, long listings, odd machines."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
import socket
import subprocess
import sys
import threading

import pytest

from tests import s3_servers
from tf_finetune import s3
from tf_finetune.errors import MESSAGE_LIMIT, DataError, FinetuneError, UsageError
from tf_finetune.s3 import client, download, manifest

ROSE = b"a rose"


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    s3_servers.set_variables(monkeypatch)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setattr(client, "ROUNDS", 2)


@pytest.fixture
def serve(monkeypatch):
    """Starts servers, to which the client is pointed."""
    with contextlib.ExitStack() as stack:

        def start(answer):
            server = stack.enter_context(s3_servers.running(answer))
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            return server

        yield start


def holding(objects: dict[str, bytes], region: str = "us-east-1"):
    """Returns the answers of a server with these objects, in one page."""

    def answer(number, request, body):
        told = {"x-amz-bucket-region": region}
        if request.method == "HEAD":
            return 200, told, b""
        if "list-type" in request.query:
            found = [key for key in sorted(objects) if key.startswith(request.query.get("prefix", ""))]
            return s3_servers.page([(key, len(objects[key]), f"{len(objects[key])}") for key in found])
        key = request.path.split("/", 2)[2]
        return 200, {"ETag": f'"{len(objects[key])}"'}, objects[key]

    return answer


HOSTILE = {
    "../../evil": "the part ..",
    "a/../b": "the part ..",
    "a/./b": "the part .",
    "/etc/passwd": "begins with a slash",
    "a//b": "two slashes",
    "a\\b": "a backslash",
    "C:/x": "the drive letter C:",
    "x" * 256: "more than 255 bytes",
    "a\0b": "a zero byte",
}


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_keys_are_refused_before_anything_is_fetched(path, serve, tmp_path):
    server = serve(holding({"data/good": ROSE, f"data/{path}": ROSE}))
    with pytest.raises(DataError, match=HOSTILE[path]):
        s3.fetch("s3://bucket/data", tmp_path / "data")
    assert not server.gets()
    assert list((tmp_path / "data").iterdir()) == []
    assert not (tmp_path.parent / "evil").exists()


def test_a_key_that_is_both_file_and_folder_is_refused(serve, tmp_path):
    serve(holding({"data/a/b": ROSE, "data/a/b/c/d": ROSE}))
    with pytest.raises(DataError, match="'a/b' .it is both an object and a folder"):
        s3.fetch("s3://bucket/data", tmp_path / "data")


def test_many_refused_keys_are_counted(serve, tmp_path):
    serve(holding({f"data/a//{number:03}": ROSE for number in range(30)}))
    with pytest.raises(DataError, match="and 25 more") as caught:
        s3.fetch("s3://bucket/data", tmp_path / "data")
    assert len(str(caught.value)) < MESSAGE_LIMIT


def test_markers_of_folders_become_no_files(serve, tmp_path):
    serve(holding({"data/": b"", "data/a": b"", "data/a/": b"", "data/a/1": ROSE, "data/empty": b""}))
    folder = s3.fetch("s3://bucket/data", tmp_path / "data")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == ["a", "a/1", "empty"]
    assert (folder / "a/1").read_bytes() == ROSE


ERRORS = [
    (404, "NoSuchBucket", "", UsageError, "no such bucket.*tf-finetune buckets"),
    (404, "NoSuchKey", "", UsageError, "no such object"),
    (403, "AccessDenied", "", FinetuneError, "access denied.*s3:ListBucket"),
    (403, "InvalidAccessKeyId", "", FinetuneError, "does not know the access key"),
    (403, "SignatureDoesNotMatch", "", FinetuneError, "secret key does not fit"),
    (403, "RequestTimeTooSkewed", "", FinetuneError, "clock of this machine"),
    (400, "ExpiredToken", "", FinetuneError, "have expired.*aws sso login"),
    (403, "InvalidObjectState", "", FinetuneError, "Glacier"),
    (412, "PreconditionFailed", "", FinetuneError, "changed while it was fetched"),
    (400, "KMS.DisabledException", "", FinetuneError, "KMS key was refused"),
    (503, "SlowDown", "", FinetuneError, "stayed busy or failing after many tries .SlowDown"),
    (500, "InternalError", "", FinetuneError, "stayed busy or failing"),
    (501, "NotImplemented", "", FinetuneError, "stayed busy or failing after many tries .NotImplemented"),
    (400, "MetadataTooLarge", "", FinetuneError, "S3 refused ListObjectsV2 .MetadataTooLarge: told so"),
]


@pytest.mark.parametrize(("status", "code", "extra", "kind", "said"), ERRORS, ids=[row[1] for row in ERRORS])
def test_each_answer_of_s3_is_one_clear_message(status, code, extra, kind, said, serve, tmp_path):
    serve(lambda number, request, body: s3_servers.refusal(status, code, extra=extra))
    with pytest.raises(kind, match=f"^s3://bucket/data/: .*{said}") as caught:
        s3.fetch("s3://bucket/data/", tmp_path / "data")
    assert type(caught.value) is kind
    assert len(str(caught.value)) < MESSAGE_LIMIT


def test_a_bucket_elsewhere_names_its_region_and_the_rule(serve, tmp_path):
    def answer(number, request, body):
        status, headers, text = s3_servers.refusal(301, "PermanentRedirect")
        return status, {**headers, "x-amz-bucket-region": "eu-west-1"}, text

    serve(answer)
    with pytest.raises(UsageError, match=r"its bucket is in eu-west-1. The bucket must be in the job's Region"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")


def test_a_bucket_outside_a_jobs_region_is_refused_before_the_listing(serve, tmp_path):
    server = serve(holding({"data/a": ROSE}, region="eu-west-1"))
    with pytest.raises(UsageError, match="in eu-west-1, the job in us-east-1"):
        s3.fetch("s3://bucket/data/", tmp_path / "data", region="us-east-1")
    with pytest.raises(UsageError, match="in eu-west-1, the job in us-east-1"):
        s3.check_region("s3://bucket/data/", "us-east-1")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="in eu-west-1, the job in us-east-1"):
        s3.put(tmp_path / "file", "s3://bucket/data/", region="us-east-1")
    assert {request.method for request in server.requests} == {"HEAD"}
    s3.fetch("s3://bucket/data/", tmp_path / "data", region="eu-west-1")


def test_missing_credentials_are_told_where_a_bucket_is_not_public(serve, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    server = serve(lambda number, request, body: s3_servers.refusal(403, "AccessDenied"))
    with pytest.raises(FinetuneError, match="no AWS credentials were found, and it is not public.*AWS_PROFILE"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")
    assert "authorization" not in server.requests[0].headers


def test_a_public_bucket_needs_no_credentials(serve, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    serve(holding({"data/a": ROSE}))
    assert (s3.fetch("s3://bucket/data/", tmp_path / "data") / "a").read_bytes() == ROSE


def test_half_credentials_and_unknown_profiles_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(FinetuneError, match="credentials are incomplete"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")
    monkeypatch.setenv("AWS_PROFILE", "absent")
    with pytest.raises(FinetuneError, match="no AWS profile 'absent'"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")


def test_an_endpoint_that_does_not_answer_is_named(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(FinetuneError, match=f"http://127.0.0.1:{port} cannot be reached.*AWS_ENDPOINT_URL"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")


def test_an_endpoint_that_hangs_up_is_named(serve, tmp_path):
    (tmp_path / "file").write_bytes(ROSE)
    server = serve(lambda number, request, body: None)
    with pytest.raises(FinetuneError, match=rf"^s3://bucket/up/: {server.url} cannot be reached.*AWS_ENDPOINT_URL"):
        s3.put(tmp_path / "file", "s3://bucket/up/")
    assert len(server.requests) == 4  # Twice botocore's two attempts.


def test_an_upload_is_made_again_when_its_connections_break(serve, tmp_path):
    (tmp_path / "file").write_bytes(ROSE)
    server = serve(lambda number, request, body: None if number < 3 else (200, {}, b""))
    assert str(s3.put(tmp_path / "file", "s3://bucket/up/")) == "s3://bucket/up/file"
    assert [request.path for request in server.requests] == ["/bucket/up/file"] * 3


@pytest.mark.parametrize("action", [s3.fetch, lambda place, folder: s3.check_writable(place), lambda *_: s3.listing()])
def test_an_endpoint_that_is_no_server_of_s3_is_told(action, serve, tmp_path):
    server = serve(lambda number, request, body: (200, {"Content-Type": "text/html"}, b"<html><p>Sign in</p></html>"))
    with pytest.raises(FinetuneError, match=f"{server.url} answers, but not as S3 does.*Check AWS_ENDPOINT_URL"):
        action("s3://bucket/data", tmp_path / "data")


def test_an_endpoint_that_is_no_url_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "not a url")
    with pytest.raises(UsageError, match="Check AWS_ENDPOINT_URL"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")


def test_an_empty_prefix_tells_what_there_is(serve, tmp_path):
    def answer(number, request, body):
        if request.query.get("delimiter"):
            text = (
                "<ListBucketResult><CommonPrefixes><Prefix>data/flowers/</Prefix></CommonPrefixes></ListBucketResult>"
            )
            return 200, {}, text.encode()
        return s3_servers.page([])

    serve(answer)
    with pytest.raises(UsageError, match="no object of this key.*s3://bucket/data/ holds flowers/"):
        s3.fetch("s3://bucket/data/flower", tmp_path / "data")


def test_one_may_read_an_object_without_being_allowed_to_list(serve, tmp_path):
    def answer(number, request, body):
        if "list-type" in request.query:
            return s3_servers.refusal(403, "AccessDenied")
        if request.path.endswith("/secret.csv"):
            return s3_servers.refusal(403, "AccessDenied")
        return 200, {"ETag": '"1"', "Content-Length": "6"}, ROSE

    serve(answer)
    assert s3.fetch("s3://bucket/data.csv", tmp_path / "data").read_bytes() == ROSE
    with pytest.raises(FinetuneError, match="access denied"):
        s3.fetch("s3://bucket/secret.csv", tmp_path / "other")


def test_the_disk_is_looked_at_before_anything_is_fetched(serve, tmp_path, monkeypatch):
    server = serve(holding({"data/a": ROSE}))
    usage = shutil.disk_usage(tmp_path)._replace(free=download.SPARE + manifest.BLOCK - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(FinetuneError, match=f"4,096 bytes are to be fetched, but the disk .* has {usage.free:,} free"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")
    assert not server.gets()


def test_a_full_disk_does_not_matter_when_nothing_is_to_be_fetched(serve, tmp_path, monkeypatch):
    serve(holding({"data/a": ROSE}))
    s3.fetch("s3://bucket/data/", tmp_path / "data")
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    s3.fetch("s3://bucket/data/", tmp_path / "data")


def test_a_disk_that_fills_up_is_told(serve, tmp_path, monkeypatch):
    serve(holding({"data/a": ROSE}))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "data/a")

    monkeypatch.setattr(download.pieces, "put_in_place", full)
    with pytest.raises(FinetuneError, match="no space is left on the disk"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")


def test_a_folder_of_something_else_is_left_alone(serve, tmp_path):
    serve(holding({"data/a": ROSE, "other/a": ROSE}))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    with pytest.raises(UsageError, match="holds something else"):
        s3.fetch("s3://bucket/data/", tmp_path / "mine")
    assert (tmp_path / "mine/letter").read_text() == "dear"
    s3.fetch("s3://bucket/data/", tmp_path / "data")
    with pytest.raises(UsageError, match="is a copy of s3://bucket/data. Give another folder for s3://bucket/other/"):
        s3.fetch("s3://bucket/other/", tmp_path / "data")


def test_a_folder_that_cannot_be_made_is_told(serve, tmp_path):
    serve(holding({"data/a": ROSE}))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        s3.fetch("s3://bucket/data/", tmp_path / "file" / "data")


def test_bytes_of_another_version_than_the_one_listed_are_not_taken(serve, tmp_path):
    server = serve(holding({"data/a": ROSE}))
    s3.fetch("s3://bucket/data/", tmp_path / "data")
    assert [request.headers["if-match"] for request in server.gets()] == ['"6"']


def test_an_object_that_is_shorter_than_listed_never_becomes_a_file(serve, tmp_path):
    whole = holding({"data/a": ROSE})

    def answer(number, request, body):
        if "list-type" in request.query or request.method == "HEAD":
            return whole(number, request, body)
        return 200, {"ETag": '"6"'}, ROSE[:-1]

    serve(answer)
    with pytest.raises(FinetuneError, match="broke off again and again .data/a: 5 of 6 bytes"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_damaged_manifest_means_fetching_again(serve, tmp_path):
    server = serve(holding({"data/a": ROSE}))
    folder = s3.fetch("s3://bucket/data/", tmp_path / "data")
    (tmp_path / ".data.s3/manifest.sqlite").write_bytes(b"no database" * 1000)
    assert (s3.fetch("s3://bucket/data/", folder) / "a").read_bytes() == ROSE
    assert len(server.gets()) == 2


def test_a_listing_needs_no_memory_for_its_objects(serve, tmp_path):
    pages = 100

    def answer(number, request, body):
        at = int(request.query.get("continuation-token", "0"))
        keys = [(f"data/class {at % 7}/{at:03}{row:05}-{'x' * 60}.jpg", 5000, f"{at}-{row}") for row in range(1000)]
        return s3_servers.page(keys, str(at + 1) if at + 1 < pages else None)

    serve(answer)
    program = f"""
import resource, sys
from pathlib import Path
from tf_finetune import s3
from tf_finetune.s3 import download, manifest
first = []
def entries(service, where, real=download.listing):
    for number, entry in enumerate(real(service, where)):
        if number == 5000:
            first.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        yield entry
download.listing = entries
def told(service, where, single, held, progress):
    print(*manifest.wanted(held), sum(1 for _ in manifest.wanted_entries(held)))
download._transfer = told
s3.fetch("s3://bucket/data", Path({str(tmp_path / "data")!r}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first[0])
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    told, grown = ran.stdout.splitlines()
    assert told == f"{pages * 1000} {pages * 1000 * 8192} {pages * 1000}"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(grown) * unit < 8 << 20  # A list of these would take 40 MB.


def test_two_processes_do_not_write_the_same_folder_at_once(serve, tmp_path, caplog):
    busy, go = threading.Event(), threading.Event()
    whole = holding({"data/a": ROSE})

    def answer(number, request, body):
        if request.is_get_of_object:
            busy.set()
            assert go.wait(20)
        return whole(number, request, body)

    server = serve(answer)
    caplog.set_level(logging.INFO)
    first = s3.start_mirror("s3://bucket/data/", tmp_path)
    assert busy.wait(20)
    second = s3.start_mirror("s3://bucket/data/", tmp_path)
    while "waiting for it" not in caplog.text:
        assert not second.done()
    go.set()
    assert first.result(20) == second.result(20)
    assert len(server.gets()) == 1


def test_a_fetch_that_was_begun_goes_on_beside_other_work(serve, tmp_path):
    go, whole = threading.Event(), holding({"data/a": ROSE})

    def answer(number, request, body):
        assert go.wait(20)
        return whole(number, request, body)

    serve(answer)
    begun = s3.start_mirror("s3://bucket/data/", tmp_path)
    assert not begun.done()
    go.set()
    assert (begun.result(20) / "a").read_bytes() == ROSE
    with pytest.raises(FinetuneError, match="no object of this key"):
        s3.start_mirror("s3://bucket/other/", tmp_path).result(20)


def test_a_process_that_fails_elsewhere_does_not_wait_for_its_download(serve, tmp_path):
    busy, go, whole = threading.Event(), threading.Event(), holding({"data/a": ROSE})

    def answer(number, request, body):
        if request.is_get_of_object:
            busy.set()
            go.wait(40)
        return whole(number, request, body)

    serve(answer)
    program = (
        "import sys, pathlib, tf_finetune.s3 as s3; s3.start_mirror(sys.argv[1], pathlib.Path(sys.argv[2])); input()"
    )
    command = [sys.executable, "-c", program, "s3://bucket/data/", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as child:
        assert busy.wait(20)
        child.communicate("\n", timeout=15)
    go.set()
    assert child.returncode == 0


def test_mirrors_of_different_servers_and_places_are_kept_apart(serve, tmp_path):
    server = serve(holding({"data/a": ROSE, "data/b/c": ROSE}))
    first = s3.mirror("s3://bucket/data", tmp_path)
    assert (first.name, s3.mirror("s3://bucket/data/", tmp_path)) == ("data", first)
    assert len(server.gets()) == 2
    assert s3.mirror("s3://bucket/data/b", tmp_path) != first
    assert s3.mirror("s3://bucket/data/a", tmp_path).read_bytes() == ROSE
    serve(holding({"data/a": b"another"}))
    second = s3.mirror("s3://bucket/data", tmp_path)
    assert second != first
    assert (second / "a").read_bytes() == b"another"


def test_nothing_secret_is_logged_or_told(serve, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    serve(lambda number, request, body: s3_servers.refusal(403, "AccessDenied"))
    with pytest.raises(FinetuneError) as caught:
        s3.fetch("s3://bucket/data/", tmp_path / "data")
    serve(holding({"data/a": ROSE}))
    s3.fetch("s3://bucket/data/", tmp_path / "data")
    assert "1 objects" in caplog.text
    for text in (caplog.text, str(caught.value)):
        assert "hidden-from-every-log" not in text
        assert "Signature" not in text


def test_the_region_of_sagemaker_counts(monkeypatch):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_REGION", "ap-south-1")
    with client.connected() as service:
        assert service.meta.region_name == "ap-south-1"
    with client.connected(region="eu-north-1") as service:
        assert service.meta.region_name == "eu-north-1"
    assert client.configured_region() == "ap-south-1"
    monkeypatch.delenv("AWS_REGION")
    assert client.configured_region() is None
    assert client.configured_region("eu-north-1") == "eu-north-1"
