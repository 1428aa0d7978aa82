"""Backbones in S3: a prefix or a tarball, as a handle and as a mirror, from moto's server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub_servers import packed
from tf_finetune import storage
from tf_finetune.errors import BackboneError

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"index"}


def put(store, key: str) -> None:
    """Puts the model there: as a tarball, or as a prefix."""
    if not key.endswith("/"):
        store.put_object(Bucket="bucket", Key=key, Body=packed(FILES))
    else:
        for name, content in FILES.items():
            store.put_object(Bucket="bucket", Key=key + name, Body=content)


def message_of(handle: str, cache: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        storage.resolve_backbone(handle, cache)
    assert str(caught.value).startswith(f"Backbone {handle} could not be fetched: ")
    assert not list(cache.glob("backbones/remote/*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "handle"),
    [
        ("x.tar.gz", "s3://bucket/x.tar.gz"),
        ("encoders/small/", "s3://bucket/encoders/small/"),
        ("encoders/small/", "s3://bucket/encoders/small"),
    ],
)
def test_a_prefix_or_a_tarball_comes_once_and_needs_no_bucket_from_then_on(store, tmp_path, monkeypatch, key, handle):
    put(store, key)
    folder = storage.resolve_backbone(handle, tmp_path)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    (file,) = tmp_path.glob("backbones/remote/*/lock.json")
    assert json.loads(file.read_text())["sha256"] == storage.content_of(folder)
    assert sorted(path.name for path in file.parent.iterdir()) == [".whole", "lock.json", "model"]
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    assert storage.resolve_backbone(handle, tmp_path) == folder
    demanded = f"{handle}#sha256={storage.content_of(folder)}"
    assert storage.resolve_backbone(demanded, tmp_path) == folder


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        ("s3://bucket/none.tar.gz", "none.tar.gz"),
        ("s3://nobodys-bucket/x.tar.gz", "there is no such bucket"),
        (
            "s3://bucket/weights.h5",
            "expected a .tar.gz or the prefix of a SavedModel; received an object named weights.h5",
        ),
        ("s3://bucket/weights/", "expected one saved_model.pb at the top"),
    ],
)
def test_what_is_no_model_in_a_bucket_is_one_clear_message(store, tmp_path, handle, words):
    for key in ("weights.h5", "weights/weights.h5"):
        store.put_object(Bucket="bucket", Key=key, Body=b"weights")
    assert words in message_of(handle, tmp_path)


def test_the_same_location_on_another_server_is_another_model(store, tmp_path, monkeypatch):
    put(store, "x.tar.gz")
    storage.resolve_backbone("s3://bucket/x.tar.gz", tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    with pytest.raises(BackboneError, match="TF_FINETUNE_OFFLINE is set"):
        storage.resolve_backbone("s3://bucket/x.tar.gz", tmp_path)


@pytest.mark.parametrize("name", ["tfhub.dev/google/nnlm/1.tar.gz", "tfhub.dev/google/nnlm/1/"])
def test_a_bucket_can_be_the_mirror(store, tmp_path, monkeypatch, name):
    put(store, f"mirror/{name}")
    monkeypatch.setenv("TF_FINETUNE_MIRROR", "s3://bucket/mirror")
    folder = storage.resolve_backbone("https://tfhub.dev/google/nnlm/1", tmp_path)
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    assert storage.resolve_backbone("https://tfhub.dev/google/nnlm/1", tmp_path) == folder
