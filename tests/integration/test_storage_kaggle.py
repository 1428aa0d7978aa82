"""Models of Kaggle by the real kagglehub, from a server on loopback that speaks what it asks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers import Answer, KaggleHandler, Server, running
from tf_finetune import storage
from tf_finetune.errors import BackboneError
from tf_finetune.storage import failures

pytest.importorskip("kagglehub", reason="the extra [kaggle] is not installed")

HANDLE = "google/mobilenet-v2/tensorFlow2/small"
FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"index", "assets/vocabulary.txt": b"words"}


class Handler(KaggleHandler):
    files = FILES
    version = 3


class LargeHandler(KaggleHandler):
    """More than 25 files: kagglehub then fetches one archive."""

    files = {**FILES, **{f"assets/{number}.txt": b"x" for number in range(30)}}


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY", "KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")  # http://localhost, which the proxy answers for.


@pytest.fixture
def server(environment, monkeypatch) -> Iterator[Server]:
    with running(handler=Handler) as started:
        monkeypatch.setenv("http_proxy", started.url())
        yield started


def lock_of(cache: Path) -> dict:
    (file,) = cache.glob("backbones/remote/*/lock.json")
    return json.loads(file.read_text())


def message_of(handle: str, cache: Path) -> str:
    with pytest.raises(BackboneError) as caught:
        storage.resolve_backbone(handle, cache)
    message = str(caught.value)
    assert message.startswith(f"Backbone {handle} could not be fetched: ")
    assert f"that holds kaggle.com/models/{handle}.tar.gz; or use " in message
    assert not list(cache.glob("backbones/remote/*"))
    return message


def test_a_model_comes_once_by_its_handle_and_is_used_offline_from_then_on(server, tmp_path, monkeypatch, capfd):
    folder = storage.resolve_backbone(f"{HANDLE}/2", tmp_path)
    assert {file: (folder / file).read_bytes() for file in FILES} == FILES
    request = {"ownerSlug": "google", "modelSlug": "mobilenet-v2", "instanceSlug": "small", "versionNumber": 2}
    assert server.asked[0][0] == "ListModelInstanceVersionFiles"
    assert request.items() <= server.asked[0][1].items()
    assert lock_of(tmp_path)["place"] == f"https://www.kaggle.com/models/{HANDLE}/2"
    assert lock_of(tmp_path)["sha256"] == storage.content_of(folder)
    asked = len(server.asked)
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    assert storage.resolve_backbone(f"https://www.kaggle.com/models/{HANDLE}/2", tmp_path) == folder
    assert len(server.asked) == asked
    assert capfd.readouterr().out == ""
    assert not (tmp_path / "home").exists()


def test_without_a_version_it_is_the_newest_which_the_lock_names(server, tmp_path):
    storage.resolve_backbone(HANDLE, tmp_path)
    assert server.asked[0][0] == "GetModelInstance"
    assert lock_of(tmp_path)["place"] == f"https://www.kaggle.com/models/{HANDLE}/3"


def test_a_model_of_many_files_comes_as_an_archive(environment, tmp_path, monkeypatch):
    with running(handler=LargeHandler) as server:
        monkeypatch.setenv("http_proxy", server.url())
        folder = storage.resolve_backbone(f"{HANDLE}/2", tmp_path)
    assert (folder / "assets" / "29.txt").read_bytes() == b"x"
    assert [method for method, _ in server.asked][1:] == ["DownloadModelInstanceVersion"]


def test_the_users_own_cache_of_kagglehub_is_used_where_it_lies(server, tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "mine"))
    folder = storage.resolve_backbone(f"{HANDLE}/2", tmp_path / "one")
    assert folder == tmp_path / "mine" / "models" / HANDLE / "2"
    asked = len(server.asked)
    assert storage.resolve_backbone(f"{HANDLE}/2", tmp_path / "two") == folder
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("method", "answer", "words"),
    [
        ("GetModelInstance", Answer(403), "the server answered 403: Kaggle wants you to sign in (KAGGLE_API_TOKEN)"),
        ("GetModelInstance", Answer(404), "the server answered 404 Not Found: it has no such model"),
        ("ListModelInstanceVersionFiles", Answer(500), "the server answered 500 Internal Server Error: its own fault"),
        ("saved_model.pb", Answer(404), "the server answered 404 Not Found"),
        ("saved_model.pb", Answer(200, b"gra", 5), "the answer broke off before its end"),
        ("GetModelInstance", Answer(0), "no answer within 1 seconds"),
    ],
)
def test_what_goes_wrong_is_one_clear_message_and_nothing_is_kept(server, tmp_path, monkeypatch, method, answer, words):
    monkeypatch.setattr(failures, "TIMEOUT", 1.0)
    server.answers[method] = answer
    assert f"could not be fetched: {words}" in message_of(HANDLE, tmp_path)


def test_a_demanded_content_is_compared(server, tmp_path):
    with pytest.raises(BackboneError, match="is not that of #sha256=0000"):
        storage.resolve_backbone(f"{HANDLE}#sha256={'0' * 64}", tmp_path)
    assert not list(tmp_path.glob("backbones/remote/*"))


def test_without_a_network_one_message_says_so(environment, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert "the proxy does not answer; check HTTPS_PROXY" in message_of(HANDLE, tmp_path)


def test_without_kagglehub_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    assert 'it needs kagglehub (run: pip install "tf_finetune[kaggle]")' in message_of(HANDLE, tmp_path)
