"""S3 without any server: locations, names, threads, tables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tf_finetune import s3
from tf_finetune.errors import UsageError
from tf_finetune.s3 import client, locations, pool


@pytest.mark.parametrize(
    ("text", "bucket", "key"),
    [
        ("s3://photos", "photos", ""),
        ("s3://photos/", "photos", ""),
        ("S3://photos/a b/ü%20", "photos", "a b/ü%20"),
        ("s3://my.bucket-1/data/", "my.bucket-1", "data/"),
    ],
)
def test_locations_are_read_as_they_are_written(text, bucket, key):
    assert s3.parse(text) == s3.Location(bucket, key)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3://", "not the name of a bucket"),
        ("s3://Photos/x", "'Photos' is not the name of a bucket"),
        ("s3://ab/x", "3 to 63"),
        ("s3://a..b/x", "not the name"),
        ("s3://127.0.0.1/x", "not the name"),
        ("s3a://photos/x", "Expected s3://BUCKET"),
        ("photos/x", "Expected s3://BUCKET"),
        ("arn:aws:s3:::photos/x", "Expected s3://photos/x"),
        (Path("s3://photos/x"), "Give the location as text"),
        ("s3://photos/a\0b", "none of them zero"),
        ("s3://photos/" + "x" * 1025, "at most 1,024 bytes"),
    ],
)
def test_what_is_no_location_is_refused(text, said):
    with pytest.raises(UsageError, match=said):
        s3.parse(text)


def test_credentials_in_a_location_are_not_repeated():
    with pytest.raises(UsageError) as caught:
        s3.parse("s3://KEY:hush@photos/x")
    assert "hush" not in str(caught.value)
    assert "***@photos/x" in str(caught.value)


@pytest.mark.parametrize("place", ["s3://b/x", "S3://b", "s3a://b/x", "s3:/b/x", "arn:aws:s3:::b"])
def test_what_is_meant_to_be_in_s3_is_told_from_folders(place):
    assert s3.is_s3(place)
    assert not s3.is_s3(f"./{place}")


def test_prefixes_end_with_one_slash():
    assert s3.parse("s3://bucket/data").prefix == s3.parse("s3://bucket/data/").prefix == "data/"
    assert (s3.parse("s3://bucket").prefix, s3.parse("s3://bucket").name) == ("", "bucket")
    assert str(s3.joined("s3://bucket", "name", "output")) == "s3://bucket/name/output"


def test_the_crt_client_serves_where_it_is_installed_and_the_endpoint_is_awss(monkeypatch, tmp_path):
    (tmp_path / "awscrt.py").touch()
    assert not client.has_crt("http://127.0.0.1:9000")
    monkeypatch.syspath_prepend(tmp_path)
    assert client.has_crt("https://s3.eu-west-1.amazonaws.com")
    assert not client.has_crt("https://amazonaws.com.evil.example")
    assert not client.has_crt("http://127.0.0.1:9000")


def test_a_pool_reads_tasks_only_as_they_are_needed_and_ends_with_the_first_error():
    read = []

    def tasks():
        for number in range(10_000):
            read.append(number)
            yield number

    def work(number, stop):
        if number == 50:
            raise KeyError(number)
        return number

    got = []
    with pytest.raises(KeyError):
        got.extend(pool.results(work, tasks(), workers=2))
    assert len(read) <= 51 + 2 * pool.LEAD
    closed = pool.results(lambda number, stop: stop, iter(range(3)), workers=2)
    stop = next(closed)
    closed.close()
    assert stop.is_set()


def test_a_pool_whose_other_workers_hang_keeps_no_process_alive():
    program = """
import time
from tf_finetune.s3 import pool
def work(seconds, stop):
    time.sleep(seconds)
    return seconds
next(pool.results(work, [30, 0], workers=2))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=15)


def test_the_table_of_buckets_marks_those_outside_the_region():
    rows = [s3.Bucket("a", "us-east-1", True), s3.Bucket("b", "eu-west-1", False), s3.Bucket("c", None, None)]
    lines = s3.table(rows, "us-east-1").splitlines()
    assert lines[1].split() == ["a", "us-east-1", "yes"]
    assert "no: a job there" in lines[2]
    assert lines[3].split() == ["c", "unknown", "unknown"]
    assert '"in_job_region": false' in s3.table(rows, "us-east-1", as_json=True)
    assert s3.table([]) == "The credentials list no buckets."


def test_the_module_brings_no_boto3_of_its_own():
    program = "import sys, tf_finetune.s3; print({'boto3', 'botocore', 's3transfer', 'urllib3'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout == "set()\n"


def test_ordinary_names_are_no_problem():
    for path in ("roses/1.jpg", "a b/ü.jpg", "..hidden", "a/..b", "x" * 255, "new\nline"):
        assert locations.problem_of(path) is None


@pytest.mark.parametrize("path", ["../x", "a/..", "a/./b", "/x", "a//b", "a\\b", "C:/x", "a/d:", "x" * 256, "a\0b"])
def test_names_that_would_leave_the_folder_are_problems(path):
    assert locations.problem_of(path)
