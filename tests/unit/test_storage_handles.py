"""What a handle names: told from its text and the disk alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_finetune import storage
from tf_finetune.errors import MESSAGE_LIMIT, FinetuneError
from tf_finetune.storage import handles

SMALL = "google/mobilenet-v2/tensorFlow2/small"


@pytest.mark.parametrize(
    ("handle", "kind", "name"),
    [
        ("https://tfhub.dev/google/nnlm/1", "hub", "tfhub.dev/google/nnlm/1"),
        ("https://tfhub.dev/google/nnlm/1?tf-hub-format=compressed", "hub", "tfhub.dev/google/nnlm/1"),
        ("http://Host:8080/a/b", "hub", "host:8080/a/b"),
        ("https://host/dir/x.tar.gz", "archive", "host/dir/x.tar.gz"),
        ("HTTPS://host/x.TGZ?version=2", "archive", "host/x.TGZ"),
        ("https://host/x.tar", "archive", "host/x.tar"),
        ("s3://bucket/models/x.tar.gz", "s3", "bucket/models/x.tar.gz"),
        ("s3://bucket/models/x/", "s3", "bucket/models/x"),
        (SMALL, "kaggle", f"kaggle.com/models/{SMALL}"),
        (f"{SMALL}/2", "kaggle", f"kaggle.com/models/{SMALL}/2"),
        ("google/mobilenet-v2/TensorFlow2/small/2", "kaggle", f"kaggle.com/models/{SMALL}/2"),
        (f"https://www.kaggle.com/models/{SMALL}/2", "kaggle", f"kaggle.com/models/{SMALL}/2"),
        (f"https://kaggle.com/models/{SMALL}?tfhub-redirect=true", "kaggle", f"kaggle.com/models/{SMALL}"),
        (
            "https://www.kaggle.com/models/google/mobilenet-v2/frameworks/TensorFlow2/variations/small/versions/2",
            "kaggle",
            f"kaggle.com/models/{SMALL}/2",
        ),
    ],
)
def test_a_remote_handle_has_a_kind_and_a_name_in_mirrors(handle, kind, name):
    found = handles.parse(handle)
    assert (found.kind, found.name) == (kind, name)
    assert storage.is_remote(handle)


def test_all_spellings_of_a_kaggle_model_are_one_handle():
    spellings = [f"{SMALL}/2", "google/mobilenet-v2/TENSORFLOW2/small/2", f"https://www.kaggle.com/models/{SMALL}/2/"]
    assert len({handles.parse(handle) for handle in spellings}) == 1


def test_a_folder_that_is_called_like_a_kaggle_handle_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert handles.parse(SMALL).kind == "kaggle"
    Path(SMALL).mkdir(parents=True)
    assert handles.parse(SMALL).kind == "local"
    assert not storage.is_remote(SMALL)


def test_a_content_may_be_demanded_of_any_handle(tmp_path):
    (tmp_path / "x.tar.gz").touch()
    for place in ("https://host/x.tar.gz", SMALL, "s3://bucket/x/", str(tmp_path / "x.tar.gz")):
        found = handles.parse(f"{place}#sha256={'AB' * 32}")
        assert found.sha256 == "ab" * 32
        assert found.text == place
        assert handles.parse(place).sha256 is None


@pytest.mark.parametrize(
    ("handle", "words"),
    [
        ("https://host/x.tar.gz#sha256=abc", "expected 64 hexadecimal digits after #sha256=; received 3 characters"),
        ("https://", "is not a valid URL"),
        ("http://[::1/x", "is not a valid URL"),
        ("https://host:port/x", "is not a valid URL"),
        ("https://host/a b", "is not a valid URL"),
        ("https://host/a\nb", "is not a valid URL"),
        ("https://me:secret@host/x.tar.gz", "passwords in URLs are not supported"),
        ("s3://b", "bucket"),
        ("s3:/bucket/x", "Expected s3://"),
        ("gs://bucket/model", "gs:// is not supported"),
        ("https://www.kaggle.com/models/google/bert", "does not name one model of Kaggle. Expected"),
        ("https://www.kaggle.com/models/keras/bert/keras/small/2", "OWNER/MODEL/tensorFlow2/VARIATION/VERSION"),
        ("keras/bert/keras/small/2", "A model of Kaggle that is a SavedModel is named OWNER/MODEL/tensorFlow2"),
        ("google/bert/tensorFlow2/../2", "neither a folder"),
        ("google/bert/tensorFlow2/small/0", "neither a folder"),
    ],
)
def test_what_names_nothing_is_refused_at_once(handle, words):
    with pytest.raises(FinetuneError) as caught:
        storage.check_handle(handle)
    message = str(caught.value)
    assert words in message
    assert "secret" not in message
    assert "\n" not in message
    assert len(message) < MESSAGE_LIMIT


def test_a_mirror_that_is_not_there_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path / "gone"))
    with pytest.raises(FinetuneError, match="TF_FINETUNE_MIRROR=.*gone: expected a folder, or an http"):
        storage.check_handle("https://tfhub.dev/google/nnlm/1")
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path))
    storage.check_handle("https://tfhub.dev/google/nnlm/1")
