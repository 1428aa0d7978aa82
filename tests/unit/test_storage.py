"""Local handles, the cache's folders, and what is said when a handle names nothing."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import pytest

from tf_finetune import archive, storage
from tf_finetune.errors import MESSAGE_LIMIT, FinetuneError, UsageError


def write_saved_model(folder: Path, graph: bytes = b"graph") -> Path:
    """Writes what looks like a SavedModel to who does not load it."""
    (folder / "variables").mkdir(parents=True)
    (folder / "saved_model.pb").write_bytes(graph)
    (folder / "variables" / "variables.index").write_bytes(b"index")
    return folder


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def message_of(handle: str, cache: Path) -> str:
    with pytest.raises(FinetuneError) as caught:
        storage.resolve_backbone(handle, cache)
    assert len(str(caught.value)) < MESSAGE_LIMIT
    return str(caught.value)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A local handle that tried to import the hub would fail here.
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        ({}, "linux", "~/.cache/tf_finetune"),
        ({"XDG_CACHE_HOME": "/mnt/xdg"}, "linux", "/mnt/xdg/tf_finetune"),
        ({"XDG_CACHE_HOME": "relative"}, "linux", "~/.cache/tf_finetune"),
        ({"XDG_CACHE_HOME": "/mnt/xdg"}, "darwin", "~/Library/Caches/tf_finetune"),
        ({"LOCALAPPDATA": "/users/me/local"}, "win32", "/users/me/local/tf_finetune"),
        ({}, "win32", "~/AppData/Local/tf_finetune"),
        ({"TF_FINETUNE_CACHE": "/mnt/mine", "XDG_CACHE_HOME": "/mnt/xdg"}, "linux", "/mnt/mine"),
        ({"TF_FINETUNE_CACHE": "~/mine"}, "win32", "~/mine"),
        ({"TF_FINETUNE_CACHE": ""}, "linux", "~/.cache/tf_finetune"),
    ],
)
def test_cache_folder_is_the_users_else_the_platforms(environ, platform, expected):
    assert storage.cache_folder(environ, platform) == Path(expected).expanduser()


@pytest.mark.parametrize(
    "text",
    ["https://me:pa%40ss@host/simple", "at https://me:p@ss@host/x, sorry", "https://host/x?X-Signature=p@ss&a=b"],
)
def test_redacted_hides_credentials_and_keeps_the_host(text):
    assert "ss" not in storage.redacted(text)
    assert "host/" in storage.redacted(text)


def test_a_folder_is_used_where_it_lies(tmp_path, cache):
    folder = write_saved_model(tmp_path / "backbone")
    assert storage.resolve_backbone(str(folder), cache) == folder
    assert not cache.exists()


def test_a_saved_model_may_lie_in_one_subfolder(tmp_path, cache):
    write_saved_model(tmp_path / "backbone" / "1")
    assert storage.resolve_backbone(str(tmp_path / "backbone"), cache) == tmp_path / "backbone" / "1"


def test_a_home_folder_handle_is_expanded(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_saved_model(tmp_path / "backbone")
    assert storage.resolve_backbone("~/backbone", cache) == tmp_path / "backbone"


def test_a_folder_without_a_saved_model_is_refused(tmp_path, cache):
    assert "received: none" in message_of(str(tmp_path), cache)


def test_a_folder_with_two_saved_models_is_refused(tmp_path, cache):
    for name in ("1", "2"):
        write_saved_model(tmp_path / name)
    assert "received: several, in 1, 2" in message_of(str(tmp_path), cache)


@pytest.mark.parametrize("name", ["model.tar.gz", "model.TGZ", "model.tar"])
@pytest.mark.parametrize("prefix", ["", "1/", "./1/"])
def test_an_archive_is_unpacked_into_the_cache(tmp_path, cache, name, prefix):
    path = write_archive(tmp_path / name, {f"{prefix}saved_model.pb": b"graph", f"{prefix}variables/a": b"b"})
    folder = storage.resolve_backbone(str(path), cache)
    assert folder == cache / "backbones" / storage.sha256(path) / prefix
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    assert (folder / "variables" / "a").read_bytes() == b"b"


def test_an_archive_is_unpacked_once_whatever_its_name(tmp_path, cache, monkeypatch):
    path = write_archive(tmp_path / "model.tar.gz", {"saved_model.pb": b"graph"})
    folder = storage.resolve_backbone(str(path), cache)
    monkeypatch.delattr(archive, "unpack")
    assert storage.resolve_backbone(str(path.rename(tmp_path / "other-name.tar.gz")), cache) == folder


def test_another_archive_of_the_same_name_is_another_backbone(tmp_path, cache):
    write_archive(tmp_path / "model.tar.gz", {"saved_model.pb": b"old"})
    storage.resolve_backbone(str(tmp_path / "model.tar.gz"), cache)
    write_archive(tmp_path / "model.tar.gz", {"saved_model.pb": b"new"})
    folder = storage.resolve_backbone(str(tmp_path / "model.tar.gz"), cache)
    assert (folder / "saved_model.pb").read_bytes() == b"new"


def test_an_incomplete_folder_in_the_cache_is_made_anew(tmp_path, cache):
    path = write_archive(tmp_path / "model.tar.gz", {"saved_model.pb": b"graph"})
    half = cache / "backbones" / storage.sha256(path)
    half.mkdir(parents=True)
    (half / "saved_model.pb").write_bytes(b"gra")
    folder = storage.resolve_backbone(str(path), cache)
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    assert list(half.parent.iterdir()) == [half]


@pytest.mark.parametrize("member", ["../evil", "/tmp/evil-of-tf-finetune"])
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, cache, member):
    path = write_archive(tmp_path / "model.tar.gz", {"saved_model.pb": b"graph", member: b"evil"})
    assert message_of(str(path), cache).startswith(
        f"Backbone {path}: it cannot be unpacked: model.tar.gz holds {member!r}, "
    )
    assert not [entry for entry in cache.rglob("*") if entry.name != "backbones"]
    assert not Path("/tmp/evil-of-tf-finetune").exists()


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>"])
def test_a_broken_archive_is_refused_and_leaves_nothing(tmp_path, cache, content):
    (tmp_path / "model.tar.gz").write_bytes(content)
    message_of(str(tmp_path / "model.tar.gz"), cache)
    assert not [entry for entry in cache.rglob("*") if entry.name != "backbones"]


def test_an_archive_of_something_else_is_refused_and_leaves_nothing(tmp_path, cache):
    path = write_archive(tmp_path / "model.tar.gz", {"weights.h5": b"weights"})
    assert "received: none" in message_of(str(path), cache)
    assert not list((cache / "backbones").iterdir())


def test_a_file_that_is_no_archive_is_refused(tmp_path, cache):
    (tmp_path / "weights.h5").touch()
    assert "Received: a file named weights.h5" in message_of(str(tmp_path / "weights.h5"), cache)


@pytest.mark.parametrize(
    "handle", ["no/such/folder", "no-such-model.tar.gz", "", "a\0b", "~no-such-user/a", "long" * 2000]
)
def test_a_handle_that_names_nothing_says_what_it_could_be(handle, cache):
    message = message_of(handle, cache)
    assert message.startswith(f"backbone {repr(handle)[1:-1][:100]}")
    assert "is neither a folder, an archive, a URL nor an id of `tf-finetune backbones`" in message


def test_a_misspelt_catalog_id_is_answered_with_close_ones(cache):
    assert "Did you mean efficientnet-lite0" in message_of("eficientnet-lite0", cache)


@pytest.mark.parametrize("handle", ["gs://bucket/model", "file:///model"])
def test_other_schemes_are_refused_by_name(handle, cache):
    message = message_of(handle, cache)
    assert handle in message
    assert "is not supported" in message


def test_of_two_that_write_the_same_folder_the_first_wins(tmp_path):
    folder = tmp_path / "made"
    with storage.written_aside(folder) as slow:
        (slow / "who").write_text("slow")
        with storage.written_aside(folder) as fast:
            (fast / "who").write_text("fast")
    assert (folder / "who").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_whose_making_failed_never_appears(tmp_path):
    with pytest.raises(RuntimeError), storage.written_aside(tmp_path / "made") as aside:
        (aside / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path, cache):
    path = write_archive(tmp_path / "model.tar.gz", {"saved_model.pb": b"graph"})
    cache.write_text("a file where the folder should be")
    with pytest.raises(UsageError, match="Not a directory. Set TF_FINETUNE_CACHE"):
        storage.resolve_backbone(str(path), cache)
