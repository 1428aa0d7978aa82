"""Real transfers over HTTP: moto's server, and a proxy in front of it that fails and cuts bodies short."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

from tests import s3_servers
from tf_finetune import cli, s3
from tf_finetune.errors import FinetuneError, UsageError
from tf_finetune.s3 import client, pieces

MANY = 2000
MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True)
def variables(monkeypatch):
    s3_servers.set_variables(monkeypatch)


def fill(count: int) -> dict[str, bytes]:
    """Puts files below s3://bucket/data/, past HTTP, and returns them by path."""
    files = {f"class {at % 7}/{at:05}.jpg": f"photo {at}".encode() * (at % 50) for at in range(count)}
    for path, content in files.items():
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object("bucket", f"data/{path}", content)
    return files


def test_two_thousand_objects_come_whole_and_a_second_time_only_what_changed(store, proxy, tmp_path):
    files = fill(MANY)
    store.put_object(Bucket="bucket", Key="data-old/not this", Body=b"x")
    server = proxy()
    folder = s3.fetch("s3://bucket/data", tmp_path / "data")
    assert s3_servers.contents(folder) == files
    assert len(server.gets()) == MANY
    assert len(server.requests) == MANY + 1 + MANY // 1000  # One look at the key, then the pages.

    server.requests.clear()
    assert s3.fetch("s3://bucket/data/", folder) == folder  # With the slash or without.
    assert not server.gets()

    names = sorted(files)
    changed, removed, spoiled, lost = names[3], names[4], names[5], names[6]
    store.put_object(Bucket="bucket", Key=f"data/{changed}", Body=files[changed][::-1] + b"!")
    store.delete_object(Bucket="bucket", Key=f"data/{removed}")
    store.put_object(Bucket="bucket", Key="data/new class/1.jpg", Body=b"new")
    (folder / spoiled).write_bytes(b"spoiled")
    (folder / lost).unlink()
    (folder / "stranger").mkdir()
    (folder / "stranger/1.jpg").write_bytes(b"was never there")
    server.requests.clear()
    s3.fetch("s3://bucket/data/", folder)
    want = {**files, changed: files[changed][::-1] + b"!", "new class/1.jpg": b"new"}
    del want[removed]
    assert s3_servers.contents(folder) == want
    assert not (folder / "stranger").exists()
    assert {request.path for request in server.gets()} == {
        f"/bucket/data/{path}" for path in (changed, "new class/1.jpg", spoiled, lost)
    }


def test_an_equal_length_with_another_content_is_a_change(store, tmp_path):
    store.put_object(Bucket="bucket", Key="data/a", Body=b"one")
    s3.fetch("s3://bucket/data", tmp_path / "data")
    store.put_object(Bucket="bucket", Key="data/a", Body=b"two")
    assert s3_servers.contents(s3.fetch("s3://bucket/data", tmp_path / "data")) == {"a": b"two"}


def test_a_server_that_fails_every_third_time_and_cuts_bodies_short_loses_nothing(store, proxy, tmp_path):
    files = fill(200)
    files["large"] = os.urandom(3 * pieces.LARGEST + 5)
    store.put_object(Bucket="bucket", Key="data/large", Body=files["large"])
    server = proxy(s3_servers.every_third_fails)
    assert s3_servers.contents(s3.fetch("s3://bucket/data", tmp_path / "data")) == files
    assert len(server.gets()) > len(files) * 1.3
    assert list((tmp_path / ".data.s3/partial").iterdir()) == []


def test_uploads_survive_such_a_server_too(store, proxy, tmp_path):
    files = {f"{number}.csv": os.urandom(number * 1000) for number in range(30)}
    files["large"] = os.urandom(3 * pieces.LARGEST + 5)
    (tmp_path / "data").mkdir()
    for name, content in files.items():
        (tmp_path / "data" / name).write_bytes(content)
    proxy(s3_servers.every_third_fails)
    s3.put(tmp_path / "data", "s3://bucket/up")
    found = store.list_objects_v2(Bucket="bucket", Prefix="up/")["Contents"]
    stored = {row["Key"][3:]: store.get_object(Bucket="bucket", Key=row["Key"])["Body"].read() for row in found}
    assert stored == files


def test_a_fetch_that_broke_off_goes_on_where_it_was(store, proxy, tmp_path):
    files = fill(120)
    numbers = itertools.count()

    def harm(number, request, answer):
        if request.is_get_of_object and next(numbers) >= 50:
            return s3_servers.refusal(403, "AccessDenied")
        return answer

    proxy(harm)
    with pytest.raises(FinetuneError, match="access denied"):
        s3.fetch("s3://bucket/data", tmp_path / "data")
    time.sleep(0.5)  # What was under way may still arrive.
    had = len(s3_servers.contents(tmp_path / "data"))
    assert 50 - client.WORKERS <= had <= 50
    server = proxy()
    assert s3_servers.contents(s3.fetch("s3://bucket/data", tmp_path / "data")) == files
    assert len(files) - had <= len(server.gets()) <= len(files) - had + client.WORKERS


def test_a_fetch_that_was_killed_goes_on_where_it_was(store, proxy, tmp_path):
    files = fill(120)

    def slowly(number, request, answer):
        time.sleep(0.4 if request.is_get_of_object else 0)
        return answer

    proxy(slowly)
    program = "import sys, pathlib, tf_finetune.s3; tf_finetune.s3.fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
    child = subprocess.Popen([sys.executable, "-c", program, "s3://bucket/data", str(tmp_path / "data")])
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "data").rglob("*.jpg"))) < 60 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert len(list((tmp_path / "data").rglob("*.jpg"))) < 120
    server = proxy()
    assert s3_servers.contents(s3.fetch("s3://bucket/data", tmp_path / "data")) == files
    assert len(server.gets()) <= 110  # At most what came after the last commit is asked for again.


def test_a_large_object_comes_in_pieces_of_which_none_is_fetched_twice(store, proxy, tmp_path):
    content = os.urandom(5 * pieces.LARGEST + 7)
    store.put_object(Bucket="bucket", Key="data/model.tar.gz", Body=content)
    numbers = itertools.count()

    def harm(number, request, answer):
        if request.is_get_of_object and next(numbers) >= 3:
            time.sleep(0.5)
            return s3_servers.refusal(403, "AccessDenied")
        return answer

    first = proxy(harm)
    with pytest.raises(FinetuneError, match="access denied"):
        s3.fetch("s3://bucket/data/model.tar.gz", tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert len({request.headers["range"] for request in first.gets()}) == 6
    second = proxy()
    file = s3.fetch("s3://bucket/data/model.tar.gz", tmp_path / "data")
    assert (file, file.read_bytes() == content) == (tmp_path / "data/model.tar.gz", True)
    assert len(second.gets()) == 3


def test_pieces_of_an_older_version_are_not_mixed_in(store, proxy, tmp_path):
    old, new = (os.urandom(2 * pieces.LARGEST + 7) for _ in range(2))
    store.put_object(Bucket="bucket", Key="data/large", Body=old)

    def harm(number, request, answer):
        if request.headers.get("range", "").startswith("bytes=0-"):
            time.sleep(0.5)
            return s3_servers.refusal(403, "AccessDenied")
        return answer

    proxy(harm)
    with pytest.raises(FinetuneError, match="access denied"):
        s3.fetch("s3://bucket/data", tmp_path / "data")
    store.put_object(Bucket="bucket", Key="data/large", Body=new)
    proxy()
    assert (s3.fetch("s3://bucket/data", tmp_path / "data") / "large").read_bytes() == new
    assert list((tmp_path / ".data.s3/partial").iterdir()) == []


def test_an_object_that_changes_between_listing_and_fetching_is_told(store, proxy, tmp_path):
    store.put_object(Bucket="bucket", Key="data/a", Body=b"one")

    def harm(number, request, answer):
        if "list-type" in request.query:
            store.put_object(Bucket="bucket", Key="data/a", Body=b"two")
        return answer

    proxy(harm)
    with pytest.raises(FinetuneError, match="changed while it was fetched"):
        s3.fetch("s3://bucket/data/", tmp_path / "data")


@pytest.mark.parametrize("key", ["data.csv", "deep/er/data.csv"])
def test_the_location_of_one_object_gives_a_file(key, store, tmp_path):
    store.put_object(Bucket="bucket", Key=key, Body=b"0,good\n")
    store.put_object(Bucket="bucket", Key=f"{key}.bak", Body=b"not this")
    file = s3.fetch(f"s3://bucket/{key}", tmp_path / "here")
    assert (file, file.read_bytes()) == (tmp_path / "here/data.csv", b"0,good\n")
    assert len(s3_servers.contents(tmp_path / "here")) == 1


def test_a_bucket_that_is_not_there_is_told(store, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="s3://nowhere/data/: there is no such bucket"):
        s3.fetch("s3://nowhere/data/", tmp_path / "data")
    with pytest.raises(UsageError, match="s3://nowhere/x: there is no such bucket"):
        s3.put(tmp_path / "file", "s3://nowhere/x")
    with pytest.raises(UsageError, match="there is no such object or bucket"):
        s3.check_region("s3://nowhere/x", "us-east-1")


def test_progress_counts_objects(store, tmp_path):
    fill(10)
    seen = []
    s3.fetch("s3://bucket/data", tmp_path / "data", progress=lambda *told: seen.append(told))
    assert seen[-1] == ("download", 10, 10)


@pytest.fixture
def result(tmp_path) -> Path:
    """The folder of a result, its archive large enough for several parts."""
    for name in ("data/report.html", "data/report.json", "model.tar.gz", "output.tar.gz", "zebra.csv"):
        file = tmp_path / "output" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(2 * 8 * MEBIBYTE + 5 if name == "model.tar.gz" else 100))
    return tmp_path / "output"


def test_a_result_is_put_in_parts_with_checksums_and_its_model_last(result, store, proxy):
    server = proxy()
    assert str(s3.put(result, "s3://bucket/results/name/output")) == "s3://bucket/results/name/output/"
    found = store.list_objects_v2(Bucket="bucket")["Contents"]
    prefix = "results/name/output/"
    assert {row["Key"].removeprefix(prefix) for row in found} == set(s3_servers.contents(result))
    for row in found:
        stored = store.get_object(Bucket="bucket", Key=row["Key"])["Body"].read()
        assert stored == (result / row["Key"].removeprefix(prefix)).read_bytes()
    of_model = [number for number, request in enumerate(server.requests) if request.path.endswith("model.tar.gz")]
    assert min(of_model) == len(s3_servers.contents(result)) - 1  # One request for each other file, all before.
    puts = [request for request in server.requests if request.method == "PUT"]
    assert len([request for request in puts if "partNumber" in request.query]) == 3
    assert all("x-amz-checksum-sha256" in request.headers for request in puts)
    html = store.head_object(Bucket="bucket", Key=f"{prefix}data/report.html")
    assert html["ContentType"] == "text/html"


def test_the_checksum_of_a_file_goes_with_it(result, store, proxy):
    server = proxy()
    s3.put(result / "zebra.csv", "s3://bucket/zebra.csv")
    [sent] = [request for request in server.requests if request.method == "PUT"]
    digest = hashlib.sha256((result / "zebra.csv").read_bytes()).digest()
    assert sent.headers["x-amz-checksum-sha256"] == base64.b64encode(digest).decode()


def test_a_kms_key_goes_with_every_file_and_every_upload_in_parts(result, store, proxy):
    server = proxy()
    s3.put(result, "s3://bucket/results/", kms_key="alias/mine")
    asked = [request for request in server.requests if request.method == "PUT" and "partNumber" not in request.query]
    asked += [request for request in server.requests if "uploads" in request.query]
    assert len(asked) == len(s3_servers.contents(result))
    for request in asked:
        assert request.headers["x-amz-server-side-encryption"] == "aws:kms"
        assert request.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/mine"
    server.requests.clear()
    s3.put(result / "zebra.csv", "s3://bucket/plain.csv")
    assert not [name for request in server.requests for name in request.headers if "encryption" in name]


def test_a_file_goes_to_its_key_or_below_a_prefix(result, store):
    assert str(s3.put(result / "zebra.csv", "s3://bucket/a/z.csv")) == "s3://bucket/a/z.csv"
    assert str(s3.put(result / "zebra.csv", "s3://bucket/a/")) == "s3://bucket/a/zebra.csv"
    assert str(s3.put(result / "zebra.csv", "s3://bucket")) == "s3://bucket/zebra.csv"
    keys = [row["Key"] for row in store.list_objects_v2(Bucket="bucket")["Contents"]]
    assert keys == ["a/z.csv", "a/zebra.csv", "zebra.csv"]


def test_what_cannot_be_put_is_told(tmp_path, store):
    with pytest.raises(UsageError, match="absent: there is no such file or folder"):
        s3.put(tmp_path / "absent", "s3://bucket/x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / os.fsdecode(b"caf\xe9")).touch()
    with pytest.raises(UsageError, match="not valid UTF-8"):
        s3.put(tmp_path / "data", "s3://bucket/x")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="its key would have 1,0.. bytes"):
        s3.put(tmp_path / "file", "s3://bucket/" + "x" * 1023 + "/")


def test_a_failed_upload_leaves_no_model(result, store, proxy):
    def harm(number, request, answer):
        return s3_servers.refusal(403, "AccessDenied") if request.path.endswith("zebra.csv") else answer

    proxy(harm)
    with pytest.raises(FinetuneError, match="access denied"):
        s3.put(result, "s3://bucket/results")
    keys = [row["Key"] for row in store.list_objects_v2(Bucket="bucket").get("Contents", [])]
    assert "results/model.tar.gz" not in keys


def test_buckets_are_listed_with_their_regions(store, moto):
    west = boto3.client("s3", endpoint_url=moto, region_name="eu-west-1")
    west.create_bucket(Bucket="elsewhere", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    found = s3.listing()
    west.delete_bucket(Bucket="elsewhere")
    assert found == [s3.Bucket("bucket", "us-east-1", True), s3.Bucket("elsewhere", "eu-west-1", False)]
    assert [row["in_job_region"] for row in json.loads(s3.table(found, "us-east-1", as_json=True))] == [True, False]
    assert re.search(r"elsewhere +eu-west-1 +no", s3.table(found, "us-east-1"))
    assert s3.listing("eu-west-1") == [s3.Bucket("bucket", "us-east-1", False)]


def test_the_command_lists_the_buckets_and_marks_those_elsewhere(store, capsys):
    west = boto3.client("s3", endpoint_url=store.meta.endpoint_url, region_name="eu-west-1")
    west.create_bucket(Bucket="there", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert cli.main(["buckets", "--json"]) == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert (told["bucket"]["in_job_region"], told["there"]["in_job_region"]) == (True, False)
    assert cli.main(["buckets", "--region", "eu-west-1"]) == 0
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["there", "eu-west-1", "yes"] in rows
