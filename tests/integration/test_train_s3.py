"""Training from S3 and to S3: over HTTP, against moto's server and a proxy in front of it that fails and cuts short."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

import tf_finetune
from tests import builders, hub_servers, s3_servers
from tf_finetune import cli, devices, examples, job, pipeline, s3
from tf_finetune.errors import DataError, ExportError, FinetuneError, UsageError

SETTINGS = {"epochs": 2, "learning_rate": 0.5, "optimizer": "sgd", "batch_size": 8, "validation_split_ratio": 0.25}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    return builders.write_class_folders(tmp_path_factory.mktemp("data") / "photos", per_class=6)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket(store, photos, cache, mean_backbone):
    """The bucket with the photos in it, and the settings of a small job."""
    s3.put(photos, "s3://bucket/data/photos/")
    return store


def keys(store, bucket: str = "bucket", prefix: str = "results/") -> list[str]:
    found = store.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])
    return [row["Key"].removeprefix(prefix) for row in found]


def content(store, key: str) -> bytes:
    return store.get_object(Bucket="bucket", Key=key)["Body"].read()


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as held:
        return {member.name: held.extractfile(member).read() for member in held if member.isfile()}


def test_a_job_from_s3_to_s3_gives_what_the_local_one_gives(bucket, proxy, photos, mean_backbone, tmp_path, capsys):
    settings = {**SETTINGS, "backbone": str(mean_backbone), "cache_dir": "none"}
    local = tf_finetune.train(photos, tmp_path / "out", "colours", **settings)
    proxy(s3_servers.every_third_fails)
    record = tf_finetune.train("s3://bucket/data/photos", "s3://bucket/results", "colours", **settings)
    whole = ["data/label_errors.csv", "data/predictions.csv", "data/report.html", "data/report.json", "data/split.csv"]
    prefix = "results/colours/output/"
    assert keys(bucket, prefix=prefix) == [*whole, "model.tar.gz", "output.tar.gz"]
    assert record["job"]["model_artifact"] == f"s3://bucket/{prefix}model.tar.gz"
    assert record["job"]["report"] == f"s3://bucket/{prefix}data/report.html"
    assert json.loads(content(bucket, f"{prefix}data/report.json")) == record
    assert "--training s3://bucket/data/photos --" in record["command"]
    assert "--output s3://bucket/results --model-name colours" in record["command"]
    here = tmp_path / "out/colours/output"
    assert {name: record[name] for name in ("metrics", "history", "examples")} == {
        name: local[name] for name in ("metrics", "history", "examples")
    }
    assert content(bucket, f"{prefix}data/predictions.csv") == (here / "data/predictions.csv").read_bytes()
    ours, theirs = members(content(bucket, f"{prefix}model.tar.gz")), members((here / "model.tar.gz").read_bytes())
    assert list(ours) == list(theirs)
    variables = "1/variables/variables.data-00000-of-00001"
    assert ours[variables] == theirs[variables]
    packed = members(content(bucket, f"{prefix}output.tar.gz"))
    assert packed["report.json"] == content(bucket, f"{prefix}data/report.json")
    assert sorted(f"data/{name}" for name in packed) == whole
    assert not list((tmp_path / "cache/results").rglob("*.tar.gz"))  # Nothing is left on this machine.
    split = f"s3://bucket/{prefix}data/split.csv"
    planned = job.plan({"training": photos}, {}, tmp_path / "out", "colours", split=split)
    assert (planned.split, len(planned.earlier_split)) == (split, 18)
    with pytest.raises(FinetuneError, match="--split s3://bucket/.*/predictions.csv: expected the columns"):
        job.plan({"training": photos}, {}, split=split.replace("split.csv", "predictions.csv"))
    answers_from_s3(f"s3://bucket/{prefix}model.tar.gz", photos, capsys)


def answers_from_s3(archive: str, photos: Path, capsys) -> None:
    """Holds that an archive and a channel in S3 answer, evaluate and are checked where they lie."""
    assert tf_finetune.load(archive).predict(photos / "cyan/0.png")[0]["predicted_label"] == "cyan"
    capsys.readouterr()
    assert cli.main(["predict", archive, str(photos / "cyan/0.png")]) == 0
    assert json.loads(capsys.readouterr().out)["predicted_label"] == "cyan"
    assert cli.main(["evaluate", archive, "s3://bucket/data/photos/"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    assert cli.main(["check", "s3://bucket/data/photos", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["findings"]  # The photos are small.
    assert cli.main(["check", "s3://bucket/data/photos/cyan"]) == 1
    assert "training channel s3://bucket/data/photos/cyan has no class folders" in capsys.readouterr().err
    assert cli.main(["predict", archive, "s3://bucket/data/photos/cyan/0.png"]) == 1
    assert "Expected a file or folder on this machine; received s3://bucket" in capsys.readouterr().err


@pytest.fixture
def quick(bucket, without_export, mean_backbone):
    """Trains from S3 to S3 without the cost of an export."""

    def train(training="s3://bucket/data/photos/", output="s3://bucket/results", name="n", **given):
        settings = {**SETTINGS, "backbone": str(mean_backbone), "cache_dir": "none", **given}
        return tf_finetune.train(training, output, name, **settings)

    return train


def test_a_second_job_transfers_nothing_and_replaces_the_earlier_result(bucket, quick, proxy, caplog, capsys):
    caplog.set_level(logging.INFO)
    for name in ("data/quarantine.csv", "data/of mine.txt", "model.tar.gz"):
        bucket.put_object(Bucket="bucket", Key=f"results/n/output/{name}", Body=b"old")
    server = proxy()
    quick()
    assert len([one for one in server.gets() if "data/photos" in one.path]) == 18
    server.requests.clear()
    quick(output_kms_key="alias/mine")
    assert "the earlier result in s3://bucket/results/n/output/ will be replaced" in caplog.text
    assert not [one for one in server.gets() if "data/photos" in one.path]
    assert "nothing has changed" in caplog.text
    capsys.readouterr()
    assert cli.main(["cache"]) == 0
    assert re.search(r"COPY OF .*\ns3://bucket/data/photos +18 +[1-9][.0-9]* .?i?B ", capsys.readouterr().out)
    assert cli.main(["cache", "--json"]) == 0
    (copy,) = json.loads(capsys.readouterr().out)["copies"]
    assert copy["bytes"] == sum(
        row["Size"] for row in bucket.list_objects_v2(Bucket="bucket", Prefix="data")["Contents"]
    )
    assert cli.main(["cache", "--clear", "--cache-dir", "none"]) == 0
    assert Path(copy["folder"]).is_dir()
    assert cli.main(["cache", "--clear"]) == 0
    assert f"removed {copy['bytes']:,} bytes of copies of S3" in capsys.readouterr().out
    assert not Path(copy["folder"]).exists()
    found = keys(bucket, prefix="results/n/output/")
    assert "data/quarantine.csv" not in found  # It was of the earlier result.
    assert "data/of mine.txt" in found
    put = [one for one in server.requests if one.method == "PUT" and "partNumber" not in one.query]
    put += [one for one in server.requests if "uploads" in one.query]
    assert len(put) == 7 + 1  # The files, and what was tried before.
    assert {one.headers.get("x-amz-server-side-encryption-aws-kms-key-id") for one in put} == {"alias/mine"}


def test_a_result_that_s3_does_not_take_lies_whole_on_this_machine(quick, bucket, proxy):
    def harm(number, request, answer):
        is_report = request.method == "PUT" and request.path.endswith("report.html")
        return s3_servers.refusal(403, "AccessDenied") if is_report else answer

    proxy(harm)
    with pytest.raises(ExportError, match="access denied.*The result is whole in ") as caught:
        quick()
    place = Path(str(caught.value).split("whole in ")[1].split(": copy")[0])
    assert {"model.tar.gz", "output.tar.gz", "data"} == {file.name for file in place.iterdir()}
    assert (place / "data/report.json").is_file()
    assert "n/output/model.tar.gz" not in keys(bucket)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"epochs": 0, "name": "a/b"}, UsageError, "(1) .*--model-name.* (2) .*epochs"),
        ({"training": "s3://Bucket/x"}, UsageError, "training channel: s3://Bucket/x: 'Bucket' is not the name"),
        ({"training": "gs://bucket/x"}, UsageError, "training channel gs://bucket/x: expected a folder on this mach"),
        ({"output": "s3://B"}, UsageError, "--output: s3://B: 'B' is not the name of a bucket"),
        ({"output": "results", "output_kms_key": "k"}, UsageError, "--output-kms-key k: expected --output s3://"),
        (
            {"training": "s3://bucket/data", "output": "s3://bucket/", "name": "data"},
            UsageError,
            "--output s3://bucket/: results in s3://bucket/data/output/ would lie inside the channel s3://bucket/data ",
        ),
        ({"checkpoints": "s3://bucket/c"}, UsageError, "--checkpoints: expected a folder on this machine"),
        ({"backbone": "nowhere", "epochs": 0}, FinetuneError, "epochs: .* backbone nowhere is neither a folder"),
        ({"validation": "nowhere"}, UsageError, "validation channel nowhere: there is no such file or folder"),
        ({"split": "nowhere.csv"}, FinetuneError, "nowhere.csv"),
    ],
)
def test_what_is_wrong_without_looking_is_told_before_anything_is_asked(quick, proxy, given, error, message):
    server = proxy()
    with pytest.raises(error, match=message.replace("(", "[(]").replace(")", "[)]")):
        quick(**given)
    assert not server.requests


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output": "s3://nowhere/results"}, "--output: s3://nowhere/results/n/output/: there is no such bucket"),
        ({"output": "s3://bucket/taken"}, "s3://bucket/taken/n/output/ holds something else.*: a.txt. Give another"),
    ],
)
def test_a_place_for_results_is_tried_before_anything_is_fetched(quick, bucket, proxy, given, message):
    bucket.put_object(Bucket="bucket", Key="taken/n/output/a.txt", Body=b"x")
    server = proxy()
    with pytest.raises(FinetuneError, match=message):
        quick(**given)
    assert not server.gets()
    assert not bucket.list_multipart_uploads(Bucket="bucket").get("Uploads")


def test_a_place_that_may_not_be_written_costs_no_training(quick, proxy):
    def harm(number, request, answer):
        return s3_servers.refusal(403, "AccessDenied") if "uploads" in request.query else answer

    server = proxy(harm)
    with pytest.raises(FinetuneError, match="--output: s3://bucket/results/n/output/: access denied"):
        quick()
    assert not server.gets()


def test_what_may_be_put_and_not_listed_or_aborted_is_enough(quick, bucket, proxy):
    def harm(number, request, answer):
        listed = "list-type" in request.query and "results" in request.query["prefix"]
        is_removal = request.method == "DELETE" or "delete" in request.query
        return s3_servers.refusal(403, "AccessDenied") if listed or is_removal else answer

    proxy(harm)
    quick()
    assert "n/output/model.tar.gz" in keys(bucket)


def test_messages_name_a_channel_as_it_was_given(quick, bucket):
    bucket.put_object(Bucket="bucket", Key="bad/roses/1.jpg", Body=b"x")
    bucket.put_object(Bucket="bucket", Key="bad/tulips/2.txt", Body=b"x")
    with pytest.raises(FinetuneError, match="class folder of s3://bucket/bad without photos: tulips") as caught:
        quick(training="s3://bucket/bad/")
    assert "cache" not in str(caught.value)
    bucket.put_object(Bucket="bucket", Key="texts/data.csv", Body=b'0,bad\n1,good\n0,"open\n')
    planned = job.plan({"training": "s3://bucket/texts"}, {}, "out")
    with pytest.raises(DataError, match="^s3://bucket/texts/data.csv line 3: a quote is opened and never closed"):
        pipeline.run(planned)
    bucket.put_object(Bucket="bucket", Key="m/encoder.tar.gz", Body=hub_servers.packed({"readme": b""}))
    with pytest.raises(FinetuneError, match="^Backbone s3://bucket/m/encoder.tar.gz: expected one saved_model.pb"):
        tf_finetune.train("s3://bucket/data/photos", "out", "n", model="s3://bucket/m/encoder.tar.gz", cache_dir="none")
    bucket.put_object(Bucket="bucket", Key="named/more.csv", Body=b"0,bad\n1,good\n")
    bucket.put_object(Bucket="bucket", Key="named/labels.txt", Body=b"0\tno\n1\tyes\n")
    file = job.plan({"training": "s3://bucket/named/more.csv"}, {}, "out").training
    assert examples.read("text", file).class_names == ("no", "yes")  # The names beside the file come along.
    with pytest.raises(UsageError, match="s3://bucket/nothing/: there is no object of this key"):
        quick(training="s3://bucket/nothing/")


def test_what_needs_no_data_is_done_while_all_channels_are_fetched(bucket, proxy, mean_backbone):
    begun, go = set(), threading.Event()

    def harm(number, request, answer):
        if request.is_get_of_object:
            begun.add(request.path.split("/")[2])
            assert go.wait(30)
        return answer

    proxy(harm)
    s3.put(Path(mean_backbone), "s3://bucket/model/backbone")
    done = []

    def meanwhile():
        while len(begun) < 2:  # Both channels, at once.
            time.sleep(0.01)
        done.append(True)
        go.set()

    channels = {"training": "s3://bucket/data/photos", "model": "s3://bucket/model/backbone"}
    planned = job.plan(channels, {}, "out", meanwhile=meanwhile)
    assert done == [True]
    assert (Path(planned.handle) / "saved_model.pb").is_file()
    assert planned.name == "photos"
    assert planned.places == channels


def test_while_tensorflow_is_imported_the_logs_lines_come_through_and_its_noise_does_not(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    with devices.without_noise():
        print("fetching", file=sys.stderr)
        os.write(2, b"noise")
    print("after", file=sys.stderr)
    assert capfd.readouterr().err == "fetching\nafter\n"


def test_on_sagemaker_a_bucket_must_be_in_the_jobs_region(bucket, mean_backbone):
    store = bucket
    store.create_bucket(Bucket="far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    store.put_object(Bucket="far", Key="x/a/1.jpg", Body=b"x")
    with pytest.raises(FinetuneError, match="s3://far/x: its bucket is in eu-west-1, the job in us-east-1"):
        job.plan({"training": "s3://far/x"}, {}, "out", region="us-east-1")
    with pytest.raises(FinetuneError, match="--output: s3://far/.*its bucket is in eu-west-1, the job in us-east-1"):
        job.plan({"training": "s3://bucket/data/photos"}, {}, "s3://far/out", region="us-east-1")


def test_default_is_the_user_guides_data_set_of_the_region(bucket, photos, mean_backbone, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket.create_bucket(Bucket="jumpstart-cache-prod-us-east-1")
    place = "s3://jumpstart-cache-prod-us-east-1/training-datasets/"
    s3.put(photos, f"{place}tf_flowers/")
    builders.write_csv(tmp_path / "texts", [["0", "bad"], ["1", "good"]])
    s3.put(tmp_path / "texts", f"{place}SST2/")
    monkeypatch.chdir(tmp_path)
    planned = job.plan({"training": "default"}, {}, "out")
    assert (planned.places["training"], planned.name) == (f"{place}tf_flowers/", "tf-flowers")
    planned = job.plan({"training": "default"}, {"backbone": "universal-sentence-encoder-multilingual"}, "out")
    assert (planned.task, planned.name) == ("text", "SST2")
    (tmp_path / "default").mkdir()
    with pytest.raises(UsageError, match="--training default is the user guide's.*Give ./default for the folder"):
        job.plan({"training": "default"}, {}, "out")
