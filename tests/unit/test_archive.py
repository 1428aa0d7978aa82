from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import pytest

from tf_finetune import archive
from tf_finetune.errors import MESSAGE_LIMIT, ExportError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Returns a folder such as a model's."""
    folder = tmp_path / "model"
    write(folder / "1" / "saved_model.pb", b"graph")
    write(folder / "1" / "variables" / "variables.data-00000-of-00001", bytes(range(256)) * 1000)
    write(folder / "code" / "inference.py", b"pass\n")
    write(folder / "Grüße 猫 🐈.json", b"{}")
    write(folder / ("long" * 40) / "empty", b"")
    (folder / "1" / "assets").mkdir()
    return folder


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def content(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")
    }


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> bytes:
    """Returns one member as bytes, built without asking whether it makes sense."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT) + padded(data)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def checked(header: bytes) -> bytes:
    """Returns a header with its checksum set right."""
    return header[:148] + b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:512])) + header[156:]


def with_name(name: bytes) -> bytes:
    """Returns an empty member whose name may be any bytes."""
    return checked(name.ljust(100, b"\0") + member("x")[100:])


END = bytes(2 * tarfile.BLOCKSIZE)
GOOD = member("first", data=b"one")


def refuse(tmp_path: Path, data: bytes, words: str, name: str = "hostile.tar", **limits: int) -> None:
    """Unpacks an archive's bytes and holds that they are refused and that nothing stays."""
    tmp_path = tmp_path / "place"
    tmp_path.mkdir()
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ExportError, match=words) as caught:
        archive.unpack(path, tmp_path / "out", **limits)
    assert str(path) in str(caught.value)
    assert "Expected" in str(caught.value)
    assert len(str(caught.value)) < MESSAGE_LIMIT
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert not (tmp_path.parent / "escaped").exists()


# Packing


def test_a_packed_folder_comes_out_equal(model: Path, tmp_path: Path) -> None:
    archive.pack(model, tmp_path / "new" / "model.tar.gz")
    archive.unpack(tmp_path / "new" / "model.tar.gz", tmp_path / "out")
    assert content(tmp_path / "out") == content(model)


def test_equal_content_packs_to_equal_bytes(model: Path, tmp_path: Path) -> None:
    archive.pack(model, tmp_path / "a.tar.gz")
    copy = tmp_path / "elsewhere" / "copy"
    for name, data in sorted(content(model).items(), reverse=True):  # Made in another order, so another on the disk.
        (copy / name).mkdir(parents=True, exist_ok=True) if data is None else write(copy / name, data)
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    archive.pack(copy, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()


def test_gzip_header_has_no_time_and_no_name(model: Path, tmp_path: Path) -> None:
    archive.pack(model, tmp_path / "model.tar.gz")
    header = (tmp_path / "model.tar.gz").read_bytes()[:10]
    assert header[3] == 0, "a flag announces a name or more"
    assert header[4:8] == bytes(4), "a time"


def test_members_are_sorted_and_anonymous(model: Path, tmp_path: Path) -> None:
    archive.pack(model, tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        members = tar.getmembers()
    names = [member.name for member in members]
    assert names[:4] == ["1", "1/assets", "1/saved_model.pb", "1/variables"]
    assert [name.split("/") for name in names] == sorted(name.split("/") for name in names)
    facts = {(info.mtime, info.uid, info.gid, info.uname, info.gname, info.isdir(), info.mode) for info in members}
    assert facts == {(0, 0, 0, "", "", True, 0o755), (0, 0, 0, "", "", False, 0o644)}


def test_packing_replaces_an_earlier_archive(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "model.tar.gz", b"old")
    archive.pack(model, tmp_path / "model.tar.gz")
    archive.unpack(tmp_path / "model.tar.gz", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tar.gz", "out"]


def test_failed_packing_keeps_the_earlier_archive_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "model.tar.gz", b"old")
    (model / "link").symlink_to("/etc/hostname")
    with pytest.raises(ExportError, match="link is a link or a special file"):
        archive.pack(model, tmp_path / "model.tar.gz")
    assert (tmp_path / "model.tar.gz").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tar.gz"]


def test_packing_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent could not be packed .*No such file"):
        archive.pack(tmp_path / "absent", tmp_path / "model.tar.gz")
    assert not list(tmp_path.iterdir())


def test_packing_into_a_place_that_is_a_file_says_so(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    with pytest.raises(ExportError, match="could not be packed"):
        archive.pack(model, tmp_path / "file" / "model.tar.gz")


# Unpacking what is sound


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("name", "mode"), [("m.tar.gz", "w:gz"), ("m.tgz", "w:gz"), ("m.tar", "w"), ("m.tar.gz", "w")])
def test_tarballs_of_all_usual_kinds_unpack(model: Path, tmp_path: Path, name: str, mode: str, tar_format: int) -> None:
    shutil.rmtree(model / ("long" * 40))  # USTAR cannot hold it.
    with tarfile.open(tmp_path / name, mode, format=tar_format) as tar:  # type: ignore[call-overload]
        tar.add(model, arcname=".")
    archive.unpack(tmp_path / name, tmp_path / "out")
    assert content(tmp_path / "out") == content(model)


def test_unpacking_into_an_empty_folder_works_and_into_a_full_one_does_not(model: Path, tmp_path: Path) -> None:
    archive.pack(model, tmp_path / "model.tar.gz")
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "model.tar.gz", tmp_path / "out")
    (tmp_path / "out" / "code" / "inference.py").write_text("mine")
    with pytest.raises(ExportError, match="expected no or an empty folder"):
        archive.unpack(tmp_path / "model.tar.gz", tmp_path / "out")
    assert (tmp_path / "out" / "code" / "inference.py").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tar.gz", "out"]


def test_relative_folders_work(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.pack(model, tmp_path / "model.tar.gz")
    monkeypatch.chdir(tmp_path)
    archive.unpack(Path("model.tar.gz"), Path("deep/out"))
    (tmp_path / "here").mkdir()
    assert content(tmp_path / "deep" / "out") == content(model)


def test_permissions_of_members_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(member("folder", tarfile.DIRTYPE, mode=0) + member("s", mode=0o6777) + END)
    archive.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out" / "s").stat().st_mode & 0o7111 == 0
    assert (tmp_path / "out" / "folder").stat().st_mode & 0o700 == 0o700


def test_a_folder_named_twice_is_harmless(tmp_path: Path) -> None:
    folder = member("a", tarfile.DIRTYPE)
    (tmp_path / "a.tar").write_bytes(member("a/b", data=b"1") + folder + folder + member("./", tarfile.DIRTYPE) + END)
    archive.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert content(tmp_path / "out") == {"a": None, "a/b": b"1"}


def test_exactly_the_limits_are_allowed(tmp_path: Path) -> None:
    data = member("a", data=b"x" * 600) + member("b") + END
    (tmp_path / "a.tar").write_bytes(data)
    archive.unpack(tmp_path / "a.tar", tmp_path / "out", max_bytes=len(data), max_members=2)
    assert len(content(tmp_path / "out")) == 2


# Unpacking what is not


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/escaped", "outside the folder"),
        ("//escaped", "outside the folder"),
        ("../escaped", "outside the folder"),
        ("a/../../escaped", "outside the folder"),
        ("..", "outside the folder"),
        ("..\\escaped", "outside the folder"),
        ("C:/escaped", "outside the folder"),
        ("\\\\host\\escaped", "outside the folder"),
        ("a" * 256, "a name that is too long"),
        ("é" * 128, "a name that is too long"),
        ("/".join(["a" * 200] * 6), "a name that is too long"),
        ("a/" * 65 + "a", "a name that is too long"),
        ("", "without a proper name"),
        (".", "without a proper name"),
    ],
)
def test_unsafe_names_are_refused(tmp_path: Path, name: str, words: str) -> None:
    refuse(tmp_path, GOOD + member(name, data=b"bad") + END, words)


def test_a_name_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    record = b"path=a\0b\n"
    record = b"%d " % (len(record) + 3) + record
    refuse(tmp_path, GOOD + member("x", tarfile.XHDTYPE, record) + member("y") + END, "without a proper name")


def test_a_pax_header_cannot_smuggle_a_name(tmp_path: Path) -> None:
    record = b"21 path=/tmp/escaped\n"
    assert len(record) == 21
    refuse(tmp_path, GOOD + member("x", tarfile.XHDTYPE, record) + member("y") + END, "outside the folder")


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_members_that_are_no_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    refuse(tmp_path, GOOD + member("bad", kind, linkname="first") + END, "holds a link, device, pipe or sparse file")


def test_a_link_cannot_lead_a_later_member_out(tmp_path: Path) -> None:
    data = member("out", tarfile.SYMTYPE, linkname="..") + member("out/escaped", data=b"bad") + END
    refuse(tmp_path, data, "holds a link")


@pytest.mark.parametrize(
    "members",
    [
        [member("a", data=b"1"), member("a", data=b"2")],
        [member("a", data=b"1"), member("./a", data=b"2")],
        [member("a", data=b"1"), member("a", tarfile.DIRTYPE)],
        [member("a", data=b"1"), member("a/b", data=b"2")],
        [member("a/b", data=b"1"), member("a", data=b"2")],
        [member("a", tarfile.DIRTYPE), member("a", data=b"2")],
    ],
)
def test_a_member_cannot_replace_another(tmp_path: Path, members: list[bytes]) -> None:
    refuse(tmp_path, b"".join(members) + END, "twice")


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    data = b"".join(member(str(number), tarfile.DIRTYPE) for number in range(4))
    refuse(tmp_path, data + END, "more than the 3 members", max_members=3)


def test_too_many_bytes_are_refused_however_well_they_compress(tmp_path: Path) -> None:
    data = gzip.compress(member("big", data=bytes(5_000_000)) + END)
    assert len(data) < 10_000
    refuse(tmp_path, data, "more than the 1,000,000 bytes", "bomb.tar.gz", max_bytes=1_000_000)


def test_bytes_after_the_end_are_counted(tmp_path: Path) -> None:
    data = gzip.compress(GOOD + END + bytes(5_000_000))
    refuse(tmp_path, data, "more than the 1,000,000 bytes", "bomb.tar.gz", max_bytes=1_000_000)


def test_a_header_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    refuse(tmp_path, GOOD + member("lie", size=2**40) + END, "unexpected end of data")


def test_a_header_with_a_negative_size_is_refused(tmp_path: Path) -> None:
    header = member("lie")
    header = checked(header[:124] + b"\xff" * 10 + (2**16 - 1024).to_bytes(2, "big") + header[136:])
    refuse(tmp_path, GOOD + header + END, "negative size")


def test_nothing_makes_the_reader_go_back_and_so_round_and_round() -> None:
    reader = archive._Reader(io.BytesIO(b"abc"), max_bytes=10)
    reader.seek(2)
    with pytest.raises(archive._RefusedError, match="backwards"):
        reader.seek(1)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_huge_header_is_not_read_into_memory(tmp_path: Path, kind: bytes) -> None:
    data = gzip.compress(GOOD + member("x", kind, bytes(50_000_000)) + member("y") + END, 1)
    refuse(tmp_path, data, "has a header of 50,000,", "bomb.tar.gz")


def test_endless_headers_before_one_member_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, member("x", tarfile.XGLTYPE, b"8 a=bcd\n") * 5000 + GOOD + END, "is damaged")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a tarball", b"x" * 5000, gzip.compress(b"not a tarball")])
def test_what_is_no_tarball_is_refused(tmp_path: Path, data: bytes) -> None:
    refuse(tmp_path, data, "is no tarball", "model.tar.gz")


def test_a_cut_tarball_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = GOOD + member("a/b", data=b"x" * 2000) + member("c", data=b"y" * 511)
    for length in range(0, len(whole) + 1, 256):
        place = tmp_path / str(length)
        place.mkdir()
        refuse(place, whole[:length], "is cut short or is damaged")


def test_a_cut_gzip_stream_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = gzip.compress(GOOD + member("a", data=os.urandom(500)) + END)
    for length in range(0, len(whole), 41):
        place = tmp_path / str(length)
        place.mkdir()
        refuse(place, whole[:length], "is cut short or is damaged", "model.tar.gz")


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(member("a", data=os.urandom(5000)) + END, 0))
    whole[3000] ^= 1
    refuse(tmp_path, bytes(whole), "CRC", "model.tar.gz")


def test_a_damaged_header_does_not_hide_the_members_after_it(tmp_path: Path) -> None:
    refuse(tmp_path, GOOD + b"?" * 512 + member("second") + END, "its end is missing")


def test_a_message_shows_no_control_characters(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(with_name(b"../\x1b[31mred\xff") + END)
    with pytest.raises(ExportError) as caught:
        archive.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert str(caught.value).isprintable()
    str(caught.value).encode()


def test_an_absent_archive_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"absent\.tar\.gz could not be unpacked .*No such file"):
        archive.unpack(tmp_path / "absent.tar.gz", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_crash_leaves_nothing_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.pack(model, tmp_path / "model.tar.gz")
    monkeypatch.setattr(Path, "rename", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        archive.unpack(tmp_path / "model.tar.gz", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tar.gz"]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_random_damage_never_escapes_as_another_error(model: Path, tmp_path: Path) -> None:
    """Either it unpacks (where the damage does not matter) or it says so, in every one of 300 cases."""
    dice = random.Random(0)
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(model / "Grüße 猫 🐈.json", arcname="Grüße 猫.json")
        tar.add(model / "1" / "saved_model.pb", arcname="1/saved_model.pb")
    for trial in range(300):
        data = bytearray(whole.getvalue()[:4096])
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        (tmp_path / "a.tar").write_bytes(data)
        try:
            archive.unpack(tmp_path / "a.tar", tmp_path / f"out{trial}")
        except ExportError as error:
            assert "Expected" in str(error)  # noqa: PT017


# What an archive says of itself


def described(task: object, before: bytes = b"") -> bytes:
    return before + member("./tf_finetune.json", data=json.dumps({"task": task}).encode()) + END


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("task", ["image", "text"])
def test_the_task_is_told_by_the_archive_and_by_its_folder(tmp_path: Path, task: str, packed: bool) -> None:
    content = described(task, before=member("1/", tarfile.DIRTYPE) + member("code/inference.py", data=b"x" * 70_000))
    write(tmp_path / "model.tar.gz", gzip.compress(content) if packed else content)
    assert archive.task_of(tmp_path / "model.tar.gz") == task
    archive.unpack(tmp_path / "model.tar.gz", tmp_path / "out")
    assert archive.task_of(str(tmp_path / "out")) == task


def test_a_description_of_many_classes_is_read_whole(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(20_000)]
    data = json.dumps({"class_names": names, "task": "text"}).encode()
    assert len(data) > 4 * archive._CHUNK
    write(tmp_path / "model.tar", member("tf_finetune.json", data=data) + END)
    assert archive.task_of(tmp_path / "model.tar") == "text"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no tarball",
        GOOD + END,
        described("audio"),
        described(["image"]),
        described(None),
        member("tf_finetune.json", data=b'["task"]') + END,
        member("tf_finetune.json", data=b"{") + END,
        member("tf_finetune.json", data=b"[" * 200_000) + END,
        member("tf_finetune.json", data=b'{"task": ' + b"9" * 5000 + b"}") + END,
        member("tf_finetune.json", tarfile.SYMTYPE, linkname="/etc/passwd") + END,
        member("tf_finetune.json", tarfile.DIRTYPE) + END,
        member("other/tf_finetune.json", data=b'{"task": "image"}') + END,
        described("image", before=member("x", tarfile.XHDTYPE, size=2**40)),
        gzip.compress(described("image"))[:40],
    ],
)
def test_an_archive_of_something_else_has_no_task(tmp_path: Path, content: bytes) -> None:
    write(tmp_path / "model.tar", content)
    with pytest.raises(ExportError, match=r"holds no model of tf_finetune"):
        archive.task_of(tmp_path / "model.tar")


def test_a_damaged_archive_and_one_of_another_kind_are_told_apart(tmp_path: Path) -> None:
    whole = gzip.compress(described("image"))
    damaged, other = "it is no tarball, is cut short or is damaged", r"missing .* `tf-finetune train --model`"
    for content, why in ((whole[:40], damaged), (b"no tarball", damaged), (gzip.compress(GOOD + END), other)):
        write(tmp_path / "model.tar.gz", content)
        with pytest.raises(ExportError, match=why):
            archive.task_of(tmp_path / "model.tar.gz")


@pytest.mark.parametrize(
    "before",
    [member("x", tarfile.XHDTYPE, data=bytes(64 << 20)), member("empty") * 1000, member("tf_finetune.json")],
    ids=["a huge header", "endless members", "another one first"],
)
def test_asking_for_the_task_takes_little_memory_and_ends(
    tmp_path: Path, before: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_MEMBERS", 1000)
    write(tmp_path / "model.tar.gz", gzip.compress(before, 1) + gzip.compress(described("image")))
    tracemalloc.start()
    try:
        with pytest.raises(ExportError, match="holds no model"):
            archive.task_of(tmp_path / "model.tar.gz")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
