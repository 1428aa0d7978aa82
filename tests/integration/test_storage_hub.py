"""What is fetched: hub URLs from a real server on loopback, wheels by a real pip from a local folder."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf

import tf_finetune
from tests import builders
from tests.hub_servers import Answer, Server, packed, running
from tests.needs import NEEDS_HUB
from tf_finetune import storage
from tf_finetune.errors import MESSAGE_LIMIT, BackboneError, FinetuneError, UsageError
from tf_finetune.storage import failures

COMPRESSED = {"tf-hub-format": ["compressed"]}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("TFHUB_CACHE_DIR", raising=False)
    with running() as started:
        yield started


@pytest.fixture(scope="session")
def module_tarball(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A SavedModel that doubles, as hubs send one: a .tar.gz with the model at its top."""
    module = tf.Module()
    module.__call__ = tf.function(lambda x: 2.0 * x, input_signature=[tf.TensorSpec([None], tf.float32)])
    folder = tmp_path_factory.mktemp("doubling")
    tf.saved_model.save(module, str(folder))
    members: dict[str, bytes | tarfile.TarInfo] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        members[name] = path.read_bytes() if path.is_file() else tarfile.TarInfo(name)
        if path.is_dir():  # tensorflow_hub makes no folder that the tarball does not name.
            members[name].type = tarfile.DIRTYPE
    return packed(members)


def message_of(handle: str, cache: Path) -> str:
    """Returns what is said of a handle that fails, once it proved to name the handle and the ways out."""
    with pytest.raises(BackboneError) as caught:
        storage.resolve_backbone(handle, cache)
    message = str(caught.value)
    assert message.startswith(f"Backbone {handle} could not be fetched: ")
    assert ".tar.gz of the SavedModel as --backbone" in message
    assert "efficientnet-lite0" in message
    assert len(message) < MESSAGE_LIMIT
    return message


@NEEDS_HUB
def test_a_url_is_resolved_and_its_model_answers(server, module_tarball, tmp_path):
    server.answers["/doubling/1"] = Answer(200, module_tarball)
    folder = storage.resolve_backbone(server.url("/doubling/1"), tmp_path)
    assert server.asked == [("/doubling/1", COMPRESSED)]
    assert folder.is_relative_to(tmp_path / "backbones" / "remote")
    assert tf.saved_model.load(str(folder))(tf.constant([1.5])).numpy() == [3.0]


@NEEDS_HUB
def test_a_resolved_url_needs_no_server_any_more(module_tarball, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        server.answers["/doubling/1"] = Answer(200, module_tarball)
        url = server.url("/doubling/1")
        first = storage.resolve_backbone(url, tmp_path)
    assert storage.resolve_backbone(url, tmp_path) == first


@NEEDS_HUB
def test_the_users_hub_cache_is_used_and_the_process_is_left_as_it_was(server, module_tarball, tmp_path, monkeypatch):
    server.answers["/doubling/1"] = Answer(200, module_tarball)
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "mine"))
    assert storage.resolve_backbone(server.url("/doubling/1"), tmp_path).parent == tmp_path / "mine"
    assert os.environ["TFHUB_CACHE_DIR"] == str(tmp_path / "mine")
    assert socket.getdefaulttimeout() is None
    monkeypatch.delenv("TFHUB_CACHE_DIR")
    storage.resolve_backbone(server.url("/doubling/1"), tmp_path)
    assert "TFHUB_CACHE_DIR" not in os.environ


@NEEDS_HUB
@pytest.mark.parametrize(
    ("status", "body", "cause"),
    [
        (404, b"", "the server answered 404 Not Found"),
        (403, b"<html>Forbidden</html>", "the server answered 403 Forbidden"),
        (500, b"", "the server answered 500 Internal Server Error"),
        (200, b"<html>Sign in to download</html>", "what the server sent is not a whole tarball"),
        (200, b"", "what the server sent is not a whole tarball"),
    ],
)
def test_what_is_no_module_is_one_clear_error_and_is_not_kept(server, tmp_path, status, body, cause):
    server.answers["/module/1"] = Answer(status, body)
    assert f": {cause}" in message_of(server.url("/module/1"), tmp_path)
    assert not list((tmp_path / "backbones" / "remote").iterdir())


@NEEDS_HUB
def test_a_module_that_failed_once_can_be_had_later(server, module_tarball, tmp_path):
    message_of(server.url("/doubling/1"), tmp_path)
    server.answers["/doubling/1"] = Answer(200, module_tarball)
    assert storage.resolve_backbone(server.url("/doubling/1"), tmp_path).is_dir()


@NEEDS_HUB
def test_a_tarball_cut_short_is_not_kept(server, module_tarball, tmp_path):
    server.answers["/module/1"] = Answer(200, module_tarball[: len(module_tarball) // 2])
    assert "not a whole tarball" in message_of(server.url("/module/1"), tmp_path)
    assert not list((tmp_path / "backbones" / "remote").iterdir())


@NEEDS_HUB
@pytest.mark.parametrize("name", ["../../evil", "link"])
def test_a_hostile_tarball_writes_nothing_outside(server, tmp_path, name):
    member = tarfile.TarInfo(name)
    if name == "link":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
    server.answers["/module/1"] = Answer(200, packed({name: member}))
    assert "not a safe tarball" in message_of(server.url("/module/1"), tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("evil")) + list(tmp_path.rglob("link"))


@NEEDS_HUB
def test_a_tarball_of_something_else_is_refused(server, tmp_path):
    server.answers["/module/1"] = Answer(200, packed({"weights.h5": b""}))
    with pytest.raises(BackboneError, match=r"expected one saved_model\.pb"):
        storage.resolve_backbone(server.url("/module/1"), tmp_path)


@NEEDS_HUB
def test_a_refused_connection_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as server:
        url = server.url("/module/1")
    assert "no connection (Connection refused)" in message_of(url, tmp_path)


@NEEDS_HUB
def test_a_silent_server_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(failures, "TIMEOUT", 0.2)
    assert "no answer within 0.2 seconds" in message_of(server.url("/silent"), tmp_path)


@NEEDS_HUB
def test_a_failed_tls_handshake_is_named(server, tmp_path):
    assert "the TLS connection failed (" in message_of(server.url("/module/1", scheme="https"), tmp_path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1"])
def test_a_password_in_a_url_is_not_repeated(tmp_path, host):
    with pytest.raises(BackboneError) as caught:
        storage.resolve_backbone(f"https://me:secret@{host}/module", tmp_path)
    assert "secret" not in str(caught.value)
    assert f"https://***@{host}/module" in str(caught.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(UsageError, match="Not a directory. Set TF_FINETUNE_CACHE"):
        storage.resolve_backbone("http://127.0.0.1:1/module", tmp_path / "cache")


@NEEDS_HUB
def test_uncompressed_models_are_never_asked_for(server, module_tarball, tmp_path, monkeypatch):
    server.answers["/doubling/1"] = Answer(200, module_tarball)
    monkeypatch.setenv("TFHUB_MODEL_LOAD_FORMAT", "UNCOMPRESSED")
    assert storage.resolve_backbone(server.url("/doubling/1"), tmp_path).is_dir()
    assert os.environ["TFHUB_MODEL_LOAD_FORMAT"] == "UNCOMPRESSED"


def test_a_job_from_a_url_tells_its_content_and_not_its_token(server, mean_backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(tmp_path / "cache"))
    members = {file.relative_to(mean_backbone).as_posix(): file for file in mean_backbone.rglob("*") if file.is_file()}
    server.answers["/mean.tar.gz"] = Answer(200, packed({name: file.read_bytes() for name, file in members.items()}))
    photos = builders.write_class_folders(tmp_path / "photos", per_class=6)
    record = tf_finetune.train(photos, tmp_path / "out", "job", backbone=server.url("/mean.tar.gz?token=secret"))
    assert record["backbone_sha256"] == storage.content_of(mean_backbone)
    assert record["backbone"] == record["job"]["parent_model"] == server.url("/mean.tar.gz?token=***")
    written = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.suffix in {".json", ".html", ".csv"}]
    assert len(written) > 3
    assert not any(b"secret" in content for content in written)


@NEEDS_HUB
def test_without_pkg_resources_a_url_names_setuptools(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorflow_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    with pytest.raises(BackboneError, match='pip install "setuptools<81"'):
        storage.resolve_backbone("http://127.0.0.1:1/module", tmp_path)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index that pip has."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder: Path, tag: str = "py3-none-any") -> storage.Wheel:
    """Writes a wheel of data without code, and returns its pin."""
    path = folder / f"tiny_photos-1.0-{tag}.whl"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("tiny_photos/data.txt", "photos")
        opened.writestr(
            "tiny_photos-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-photos\nVersion: 1.0\n"
        )
        opened.writestr("tiny_photos-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
        opened.writestr("tiny_photos-1.0.dist-info/RECORD", "")
    return storage.Wheel("tiny-photos", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_wheel_is_fetched_once_then_found_without_pip(index, tmp_path, monkeypatch):
    wheel = write_wheel(index)
    fetched = storage.fetch_wheel(wheel, tmp_path / "wheels")
    assert storage.sha256(fetched) == wheel.sha256
    assert list((tmp_path / "wheels").iterdir()) == [fetched]
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    assert storage.fetch_wheel(wheel, tmp_path / "wheels") == fetched


def test_a_damaged_wheel_in_the_cache_is_fetched_again(index, tmp_path):
    wheel = write_wheel(index)
    storage.fetch_wheel(wheel, tmp_path / "wheels").write_bytes(b"damaged")
    assert storage.sha256(storage.fetch_wheel(wheel, tmp_path / "wheels")) == wheel.sha256


def test_platform_arguments_choose_one_file_for_every_machine(index, tmp_path):
    pin = write_wheel(index, tag="cp310-cp310-win_amd64")
    platform = ("--platform", "win_amd64", "--python-version", "3.10", "--implementation", "cp", "--abi", "cp310")
    wheel = storage.Wheel(pin.name, pin.version, pin.sha256, platform)
    assert storage.fetch_wheel(wheel, tmp_path / "wheels").name == "tiny_photos-1.0-cp310-cp310-win_amd64.whl"


def failure_of(wheel: storage.Wheel, folder: Path) -> str:
    with pytest.raises(FinetuneError) as caught:
        storage.fetch_wheel(wheel, folder)
    message = str(caught.value)
    assert f"Could not fetch tiny-photos 1.0 (sha256 {wheel.sha256[:12]}" in message
    assert "TF_FINETUNE_CACHE" in message
    assert len(message) < MESSAGE_LIMIT
    assert not list(folder.iterdir())
    return message


def test_a_wheel_of_another_content_is_refused(index, tmp_path):
    write_wheel(index)
    message = failure_of(storage.Wheel("tiny-photos", "1.0", "0" * 64), tmp_path / "wheels")
    assert "it served another file (Got" in message


def test_a_wheel_that_is_nowhere_ends_with_pips_last_words(index, tmp_path):
    message = failure_of(storage.Wheel("tiny-photos", "1.0", "0" * 64), tmp_path / "wheels")
    assert "No matching distribution found for tiny-photos==1.0" in message


def test_an_interpreter_without_pip_is_named(index, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr(sys, "executable", str(bare))
    assert f"{bare} has no pip" in failure_of(write_wheel(index), tmp_path / "wheels")


def test_the_password_of_an_index_is_not_repeated(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:secret@127.0.0.1:1/simple")
    message = failure_of(storage.Wheel("tiny-photos", "1.0", "0" * 64), tmp_path / "wheels")
    assert "no connection to it" in message
    assert "secret" not in message


def test_a_password_that_pip_repeats_is_hidden(tmp_path):
    said = "WARNING: retrying\nERROR: 403 Client Error for url: https://me:secret@host/simple/tiny-photos/\n"
    message = storage.wheels._pip_failure(storage.Wheel("tiny-photos", "1.0", "0" * 64), tmp_path, said)
    assert "403 Client Error for url: https://***@host/simple/tiny-photos/" in message
