"""Backbones from elsewhere, on real servers on loopback: downloads, the mirror, locks, and life without a network."""

from __future__ import annotations

import base64
import datetime
import errno
import hashlib
import ipaddress
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers import Answer, Server, packed, running
from tf_finetune import archive, catalog, job, storage
from tf_finetune.errors import MESSAGE_LIMIT, BackboneError, FinetuneError
from tf_finetune.storage import downloads, failures

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"index", "README.md": b"words"}
TARBALL = packed(FILES)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with running() as started:
        started.answers["/x.tar.gz"] = Answer(200, TARBALL)
        yield started


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return tmp_path / "cache"


def lock_of(cache: Path) -> dict:
    (file,) = cache.glob("backbones/remote/*/lock.json")
    return json.loads(file.read_text())


def write(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def message_of(handle: str, cache: Path, task: str | None = None) -> str:
    """Returns what is said of a handle that fails, once it proved to name the ways out and to leave nothing behind."""
    with pytest.raises(BackboneError) as caught:
        storage.resolve_backbone(handle, cache, task)
    message = str(caught.value)
    assert message.startswith(f"Backbone {storage.handles.parse(handle).shown} could not be fetched: ")
    for way in ("a local folder or .tar.gz", "TF_FINETUNE_MIRROR", "which need"):
        assert way in message
    assert "\n" not in message
    assert len(message) < MESSAGE_LIMIT
    assert not list(cache.glob("backbones/remote/*"))
    assert not list(cache.glob("backbones/remote/.*"))
    return message


def test_a_tarball_comes_once_with_its_lock_and_is_used_offline_from_then_on(server, cache, monkeypatch):
    url = server.url("/x.tar.gz?token=secret")
    folder = storage.resolve_backbone(url, cache)
    assert (folder / "variables" / "variables.index").read_bytes() == b"index"
    lock = lock_of(cache)
    assert lock["sha256"] == storage.content_of(folder)
    assert lock["archive_sha256"] == hashlib.sha256(TARBALL).hexdigest()
    assert lock["bytes"] == len(b"graph") + len(b"index")
    assert lock["handle"] == lock["place"] == server.url("/x.tar.gz?token=***")
    fetched = datetime.datetime.fromisoformat(lock["fetched"])
    assert abs(datetime.datetime.now(datetime.timezone.utc) - fetched) < datetime.timedelta(minutes=5)
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    assert storage.resolve_backbone(url, cache) == folder
    assert len(server.asked) == 1
    assert sorted(path.name for path in folder.parent.iterdir()) == [".whole", "lock.json", "model"]


def test_a_relative_cache_gives_a_path_that_holds_from_any_folder(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.resolve_backbone(server.url("/x.tar.gz"), Path("cache")).is_relative_to(tmp_path)


def test_a_saved_model_in_a_subfolder_has_the_same_content_however_it_is_packed(server, cache, tmp_path):
    server.answers["/y.tgz"] = Answer(200, packed({f"1/{name}": content for name, content in FILES.items()}))
    first = storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    second = storage.resolve_backbone(server.url("/y.tgz"), cache)
    assert second.name == "1"
    assert storage.content_of(first) == storage.content_of(second) == storage.content_of(write(tmp_path / "folder"))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: (folder / "variables" / "variables.index").write_bytes(b"INDEX"),
        lambda folder: (folder / "variables" / "variables.index").unlink(),
        lambda folder: (folder / "saved_model.pb").write_bytes(b""),
        lambda folder: (folder.parent / "lock.json").unlink(),
        lambda folder: (folder.parent / "lock.json").write_text("{"),
        lambda folder: (folder.parent / "lock.json").write_text('{"handle": 1}'),
        lambda folder: (folder.parent / ".whole").unlink(),
        shutil.rmtree,
    ],
)
def test_a_cache_that_was_tampered_with_or_half_deleted_is_fetched_anew(server, cache, harm, caplog):
    folder = storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    harm(folder)
    assert storage.resolve_backbone(server.url("/x.tar.gz"), cache) == folder
    assert len(server.asked) == 2
    assert storage.content_of(folder) == lock_of(cache)["sha256"]
    assert "anew" in caplog.text


def test_what_does_not_make_up_the_model_may_change(server, cache):
    folder = storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    (folder / "README.md").unlink()
    assert storage.resolve_backbone(server.url("/x.tar.gz"), cache) == folder
    assert len(server.asked) == 1


def test_a_demanded_content_is_that_of_the_archive_or_of_the_model(server, cache):
    storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    lock = lock_of(cache)
    for demanded in (lock["archive_sha256"], lock["sha256"].upper()):
        assert storage.resolve_backbone(f"{server.url('/x.tar.gz')}#sha256={demanded}", cache)
        assert storage.resolve_backbone(f"{server.url('/x.tar.gz')}#sha256={demanded}", cache.parent / "other")
    assert len(server.asked) == 3  # Of the first cache, one for all.


def test_another_content_than_the_demanded_one_is_refused_and_not_kept(server, cache):
    message = message_of(f"{server.url('/x.tar.gz')}#sha256={'0' * 64}", cache)
    received = storage.content_of(write(cache / "x"))
    assert f"its content is not that of #sha256={'0' * 64}; received {received}" in message


def test_a_content_that_changed_at_its_place_is_refused_where_the_old_one_is_demanded(server, cache):
    storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    demanded = lock_of(cache)["sha256"]
    server.answers["/x.tar.gz"] = Answer(200, packed({**FILES, "saved_model.pb": b"other"}))
    assert "is not that of" in message_of(f"{server.url('/x.tar.gz')}#sha256={demanded}", cache.parent / "elsewhere")


def test_what_the_cache_has_does_not_stand_in_for_another_demanded_content(server, cache, tmp_path):
    old = storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    server.answers["/x.tar.gz"] = Answer(200, packed({**FILES, "saved_model.pb": b"other"}))
    demanded = storage.content_of(write(tmp_path / "model", {**FILES, "saved_model.pb": b"other"}))
    new = storage.resolve_backbone(f"{server.url('/x.tar.gz')}#sha256={demanded}", cache)
    assert [(folder / "saved_model.pb").read_bytes() for folder in (old, new)] == [b"graph", b"other"]


def test_a_content_may_be_demanded_of_what_is_local(tmp_path, cache):
    folder = write(tmp_path / "model")
    (tmp_path / "x.tar.gz").write_bytes(TARBALL)
    for place in (folder, tmp_path / "x.tar.gz"):
        assert storage.resolve_backbone(f"{place}#sha256={storage.content_of(folder)}", cache)
        with pytest.raises(BackboneError, match="is not that of #sha256=0000"):
            storage.resolve_backbone(f"{place}#sha256={'0' * 64}", cache)


# Errors


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(401), "the server answered 401 Unauthorized: it wants a login"),
        (Answer(403), "the server answered 403 Forbidden: it wants a login, or the model is no longer given away"),
        (Answer(404), "the server answered 404 Not Found: it has no such model"),
        (Answer(500), "the server answered 500 Internal Server Error: its own fault; try later"),
        (Answer(503), "the server answered 503 Service Unavailable: its own fault; try later"),
        (Answer(200, TARBALL[:50], len(TARBALL)), f"the answer broke off after 50 of {len(TARBALL)} bytes"),
        (Answer(200, TARBALL[:50]), "it cannot be unpacked: x.tar.gz is no tarball, is cut short or is damaged"),
        (Answer(200, b"<html>Sign in</html>"), "it cannot be unpacked: x.tar.gz is no tarball"),
        (Answer(200, b""), "it cannot be unpacked: x.tar.gz is no tarball"),
        (Answer(200, packed({"weights.h5": b""})), "expected one saved_model.pb at the top or in one subfolder"),
        (Answer(200, b"", archive.MAX_BYTES + 1), "it has 21,474,836,481 bytes, but "),
        (Answer(302, location="file:///etc/passwd"), "the server answered 302"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_clear_message_and_nothing_is_kept(server, cache, answer, words):
    server.answers["/x.tar.gz"] = answer
    assert f": {words}" in message_of(server.url("/x.tar.gz"), cache)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, None])
def test_a_hostile_tarball_writes_nothing_outside(server, cache, kind):
    member = tarfile.TarInfo("link" if kind else "../../../evil")
    if kind:
        member.type, member.linkname = kind, "/etc/passwd"
    server.answers["/x.tar.gz"] = Answer(200, packed({**FILES, "evil": member}))
    assert "it cannot be unpacked: x.tar.gz holds " in message_of(server.url("/x.tar.gz"), cache)
    assert not list(cache.parent.rglob("evil")) + list(cache.parent.rglob("link"))


def test_a_tarball_that_unpacks_to_too_much_is_refused(server, cache, monkeypatch):
    monkeypatch.setitem(archive.unpack.__kwdefaults__, "max_bytes", 1 << 20)
    server.answers["/x.tar.gz"] = Answer(200, packed({**FILES, "assets/zeros": bytes(2 << 20)}))
    assert "unpacks to more than the 1,048,576 bytes allowed" in message_of(server.url("/x.tar.gz"), cache)


def test_an_endless_answer_is_refused(server, cache, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 10)
    monkeypatch.setattr(downloads, "_BLOCK", 4)
    server.answers["/x.tar.gz"] = Answer(200, TARBALL, announced=-1)
    assert ": it has more than the 10 bytes allowed." in message_of(server.url("/x.tar.gz"), cache)


def test_a_redirection_is_followed(server, cache):
    server.answers["/latest.tar.gz"] = Answer(302, location="/x.tar.gz")
    assert storage.resolve_backbone(server.url("/latest.tar.gz"), cache)


def test_a_silent_server_is_given_up(server, cache, monkeypatch):
    monkeypatch.setattr(failures, "TIMEOUT", 0.2)
    server.answers["/x.tar.gz"] = Answer(302, location="/silent")
    start = time.monotonic()
    assert ": no answer within 0.2 seconds." in message_of(server.url("/x.tar.gz"), cache)
    assert time.monotonic() - start < 10


def test_a_refused_connection_is_named(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ": no connection (Connection refused)." in message_of("http://127.0.0.1:1/x.tar.gz", cache)


def test_a_host_that_nobody_knows_is_named(cache, monkeypatch):
    def unknown(*args: object, **named: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    words = ": no host of that name was found, or there is no network."
    assert words in message_of("https://no-such-host.invalid/x.tar.gz", cache)


def test_a_full_disk_is_named(server, cache, monkeypatch):
    def full(answer: object, file: Path) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(downloads, "_store", full)
    assert "no space is left on the disk of " in message_of(server.url("/x.tar.gz"), cache)


def test_a_disk_that_is_too_small_is_known_before_the_download(server, cache, monkeypatch):
    monkeypatch.setattr(downloads, "SPARE", 1 << 60)
    assert f"it has {len(TARBALL)} bytes, but -" in message_of(server.url("/x.tar.gz"), cache)


def certificate(folder: Path) -> Path:
    """Writes a certificate that its own key signed, for 127.0.0.1, with the key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file = folder / "certificate.pem"
    file.write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(encoding)
    )
    return file


def test_a_certificate_that_nobody_vouches_for_is_refused_until_it_is_named(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    file = certificate(tmp_path)
    with running(file) as server:
        server.answers["/x.tar.gz"] = Answer(200, TARBALL)
        message = message_of(server.url("/x.tar.gz"), cache)
        assert "the TLS connection failed (self-signed certificate)" in message
        assert "SSL_CERT_FILE" in message
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert storage.resolve_backbone(server.url("/x.tar.gz"), cache).is_dir()


@pytest.mark.parametrize(
    ("task", "offered"),
    [
        ("image", "or use efficientnet-lite0, which needs no hub."),
        ("text", "or use minilm-l6 or universal-sentence-encoder-multilingual, which need no hub."),
    ],
)
def test_the_packaged_backbones_of_the_task_are_offered(cache, monkeypatch, task, offered):
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    assert message_of("https://tfhub.dev/google/nnlm/1", cache, task).endswith(offered)


# The mirror


@pytest.mark.parametrize(
    ("handle", "name"),
    [
        ("https://tfhub.dev/google/nnlm/1", "tfhub.dev/google/nnlm/1.tar.gz"),
        ("https://tfhub.dev/google/nnlm/1?a=b", "tfhub.dev/google/nnlm/1.tgz"),
        ("https://host/x.tar.gz", "host/x.tar.gz"),
        ("google/bert/tensorFlow2/small/2", "kaggle.com/models/google/bert/tensorFlow2/small/2.tar"),
        ("s3://bucket/x.tgz", "bucket/x.tgz"),
        ("s3://bucket/models/x/", "bucket/models/x.tar.gz"),
        ("https://tfhub.dev/google/nnlm/1", "tfhub.dev/google/nnlm/1/"),
        ("google/bert/tensorFlow2/small/2", "kaggle.com/models/google/bert/tensorFlow2/small/2/"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "server"])
def test_a_mirror_serves_every_remote_handle(server, cache, tmp_path, monkeypatch, handle, name, kind):
    if name.endswith("/"):
        if kind == "server":
            return
        write(tmp_path / "mirror" / name)
    write(tmp_path / "mirror", {name: TARBALL} if not name.endswith("/") else {})
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path / "mirror") + "/")
    if kind == "folder":
        monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    else:
        monkeypatch.setenv("TF_FINETUNE_MIRROR", server.url("/base/"))
        server.answers[f"/base/{name}"] = Answer(200, TARBALL)
    folder = storage.resolve_backbone(handle, cache)
    assert (folder / "saved_model.pb").read_bytes() == b"graph"
    place = lock_of(cache)["place"]
    assert place.rstrip("/").endswith(name.rstrip("/"))
    asked = len(server.asked)
    assert storage.resolve_backbone(handle, cache) == folder
    assert len(server.asked) == asked


def test_a_name_that_is_no_url_reaches_a_mirror_quoted(server, cache, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_MIRROR", server.url())
    server.answers["/bucket/my%20model%231.tar.gz"] = Answer(200, TARBALL)
    assert storage.resolve_backbone("s3://bucket/my model#1.tar.gz", cache)


def test_a_mirror_that_lacks_it_is_passed_by_with_a_log_line(server, cache, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path))
    assert storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    assert lock_of(cache)["place"] == server.url("/x.tar.gz")
    assert f"the mirror {tmp_path}: it has neither a folder {server.name}/x.tar.gz nor" in caplog.text


def test_a_mirror_with_another_content_than_the_demanded_one_is_passed_by(server, cache, tmp_path, monkeypatch):
    storage.resolve_backbone(server.url("/x.tar.gz"), cache)
    demanded = lock_of(cache)["sha256"]
    write(tmp_path / "mirror", {f"{server.name}/x.tar.gz": packed({**FILES, "saved_model.pb": b"other"})})
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path / "mirror"))
    found = storage.resolve_backbone(f"{server.url('/x.tar.gz')}#sha256={demanded}", tmp_path / "other")
    assert (found / "saved_model.pb").read_bytes() == b"graph"
    assert (storage.resolve_backbone(server.url("/x.tar.gz"), tmp_path / "third") / "saved_model.pb").read_bytes() == (
        b"other"
    )


def test_when_all_fails_both_places_are_named(server, cache, monkeypatch):
    server.answers["/x.tar.gz"] = Answer(503)
    monkeypatch.setenv("TF_FINETUNE_MIRROR", server.url("/base"))
    message = message_of(server.url("/x.tar.gz"), cache)
    assert f"the mirror {server.url('/base')}: the server answered 404" in message
    assert "; the server answered 503" in message
    assert [path for path, _ in server.asked] == [f"/base/{server.name}/x.tar.gz", "/x.tar.gz"]


def test_the_longest_message_still_names_all_ways_out(cache, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    monkeypatch.setenv("TF_FINETUNE_MIRROR", "https://mirror/" + "m" * 500)
    message = message_of(f"https://host/{'a' * 500}/x.tar.gz", cache)
    assert message.endswith("minilm-l6 or universal-sentence-encoder-multilingual, which need no hub.")


def test_the_credentials_of_a_mirror_are_not_repeated(cache, monkeypatch, caplog):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("TF_FINETUNE_MIRROR", "http://me:secret@127.0.0.1:1")
    assert "secret" not in message_of("http://127.0.0.1:1/x.tar.gz", cache)
    assert "secret" not in caplog.text


def test_a_mirror_that_wants_a_password_gets_it_and_nobody_else_does(server, cache, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TF_FINETUNE_MIRROR", server.url("/base").replace("//", "//me:p%40ss@"))
    server.answers["/base/host/x.tar.gz"] = Answer(302, location=server.url("/x.tar.gz"))
    storage.resolve_backbone("https://host/x.tar.gz", cache)
    assert server.logins == ["Basic " + base64.b64encode(b"me:p@ss").decode(), None]
    assert lock_of(cache)["place"] == server.url("/base/host/x.tar.gz").replace("//", "//***@")
    assert "p%40ss" not in caplog.text


def test_nothing_outside_a_mirror_is_taken(cache, tmp_path, monkeypatch):
    write(tmp_path / "secret")
    (tmp_path / "mirror" / "host").mkdir(parents=True)
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    assert "whose name leads elsewhere" in message_of("https://host/../../secret", cache)


def test_a_mirrors_folder_that_changed_is_noticed(cache, tmp_path, monkeypatch, caplog):
    folder = write(tmp_path / "mirror" / "tfhub.dev/google/nnlm/1")
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path / "mirror"))
    assert storage.resolve_backbone("https://tfhub.dev/google/nnlm/1", cache) == folder
    before = lock_of(cache)["sha256"]
    (folder / "saved_model.pb").write_bytes(b"other")
    assert storage.resolve_backbone("https://tfhub.dev/google/nnlm/1", cache) == folder
    assert lock_of(cache)["sha256"] != before
    assert "is not as it was fetched" in caplog.text


# No network


def test_offline_refuses_at_once_and_says_where_to_put_what_is_needed(server, cache, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    message = message_of(server.url("/x.tar.gz"), cache)
    assert "TF_FINETUNE_OFFLINE is set, so no network is asked" in message
    assert f"that holds {server.name}/x.tar.gz;" in message
    monkeypatch.setenv("TF_FINETUNE_MIRROR", server.url("/base"))
    assert message_of(server.url("/x.tar.gz"), cache).count("TF_FINETUNE_OFFLINE is set") == 2
    assert server.asked == []
    assert not cache.exists()


def test_offline_a_wheel_that_is_not_there_is_named_with_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FinetuneError) as caught:
        storage.fetch_wheel(storage.Wheel("tiny-photos", "1.0", "0" * 64), tmp_path / "wheels")
    message = str(caught.value)
    assert "tiny-photos 1.0 (sha256 000000000000" in message
    assert "TF_FINETUNE_OFFLINE is set. Unset it once, or set TF_FINETUNE_CACHE to a folder that has it" in message
    assert message.endswith(f"or put its .whl into {tmp_path / 'wheels'}.")


def test_what_cannot_be_had_is_known_before_any_work(server, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(cache))
    url, kaggle = server.url("/x.tar.gz"), "google/bert/tensorFlow2/small"
    storage.check_handle(url)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(BackboneError, match="it needs kagglehub .*or use minilm-l6"):
        storage.check_handle(kaggle, "text")
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    with pytest.raises(BackboneError, match="TF_FINETUNE_OFFLINE is set"):
        storage.check_handle(url)
    card = next(card.id for card in catalog.cards("image") if card.handle.startswith("https"))
    with pytest.raises(BackboneError, match="TF_FINETUNE_OFFLINE is set"):
        job.backbones.handle_of({"backbone": card}, None, "image")
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path))
    storage.check_handle(url)
    storage.check_handle(kaggle)
    monkeypatch.delenv("TF_FINETUNE_MIRROR")
    monkeypatch.delenv("TF_FINETUNE_OFFLINE")
    storage.resolve_backbone(url, cache)
    monkeypatch.setenv("TF_FINETUNE_OFFLINE", "1")
    storage.check_handle(url)


NO_NETWORK = """
import os, socket, sys
from pathlib import Path

def forbidden(*args, **named):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = forbidden
from tf_finetune import job, storage

for handle in sys.argv[1:]:
    planned = job.plan({"training": "photos"}, {"backbone": handle}, output="results")
    print(storage.resolve_backbone(planned.handle, storage.cache_folder(), planned.task))
planned = job.plan({"training": "photos", "model": "model"}, {}, output="results")
print(storage.resolve_backbone(planned.handle, storage.cache_folder(), planned.task))
assert not {"tensorflow", "tensorflow_hub", "kagglehub", "boto3", "urllib3"} & set(sys.modules)
"""


def test_when_all_is_here_no_socket_is_opened_and_nothing_slow_imported(server, tmp_path):
    url = server.url("/x.tar.gz")
    storage.resolve_backbone(url, tmp_path / "cache")
    write(tmp_path / "model")
    (tmp_path / "x.tar.gz").write_bytes(TARBALL)
    mirrored = "google/bert/tensorFlow2/small"
    write(tmp_path / "mirror" / "kaggle.com/models" / mirrored)
    for name in ("photos/a/1.jpg", "photos/a/2.jpg", "photos/b/1.jpg", "photos/b/2.jpg"):
        write(tmp_path, {name: name.encode()})
    environ = {**os.environ, "TF_FINETUNE_CACHE": "cache", "TF_FINETUNE_MIRROR": "mirror"}
    environ["PYTHONPATH"] = str(Path(storage.__file__).parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, url, "model", "x.tar.gz", mirrored],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == 5
    assert len(server.asked) == 1
