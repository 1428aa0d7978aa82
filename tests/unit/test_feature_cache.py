"""Features on disk: found again by what they were computed from, whatever happens to processes, files and disks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import builders
from tf_finetune import cli, feature_cache, tables
from tf_finetune.errors import UsageError
from tf_finetune.feature_cache import Place
from tf_finetune.feature_cache.space import Space

ABOUT = {"backbone": ["abc", None], "precision": "float32", "scaled": False, "augmentation": None}
SIZE = 5
DAY = 24 * 3600
NOW = time.time()


def keys_of(numbers) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in numbers]


def rows_of(numbers, size: int = SIZE) -> np.ndarray:
    return np.array([[number + place / 8 for place in range(size)] for number in numbers], np.float32)


def space_in(folder: Path | None, **about) -> Space:
    return Space(Place(folder), {**ABOUT, **about}, "a-backbone")


def filled(folder: Path, *parts, **about) -> Space:
    """Returns a space with a shard of each of `parts`, which are numbers."""
    space = space_in(folder, **about)
    for numbers in parts:
        space.write(keys_of(numbers), rows_of(numbers))
    return space


def check(space: Space, numbers, known) -> None:
    """Holds that of the examples of these numbers those in `known` are known, and right."""
    rows, found = space.read(keys_of(numbers), SIZE)
    assert rows.dtype == np.float32
    assert [number for number, there in zip(numbers, found, strict=True) if there] == list(known)
    np.testing.assert_array_equal(rows[found], rows_of(known).reshape(-1, SIZE))


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.npy"))


def shard_of(space: Space, number: int) -> Path:
    """Returns the shard that holds the example of a number."""
    (file,) = [file for file in space.folder.glob("*.npy") if keys_of([number])[0] in file.read_bytes()]
    return file


def warnings_in(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# Where features are kept.


@pytest.mark.parametrize(
    ("cache_dir", "checkpoints", "variables", "folder", "is_limited"),
    [
        (None, None, {}, "/home/features", True),
        ("", None, {}, "/home/features", True),
        (None, "/ml/features-a", {}, "/ml/features-a", False),
        (None, "/ml/features-a", {"TF_FINETUNE_CACHE": ""}, "/ml/features-a", False),
        (None, "/ml/features-a", {"TF_FINETUNE_CACHE": "/home"}, "/home/features", True),
        ("/mine", "/ml/features-a", {"TF_FINETUNE_CACHE": "/home"}, "/mine", True),
        (Path("/mine"), None, {}, "/mine", True),
        ("mine", None, {}, str(Path("mine").absolute()), True),
        ("~/mine", None, {}, str(Path("~/mine").expanduser()), True),
        ("none", "/ml/features-a", {"TF_FINETUNE_CACHE": "/home"}, None, False),
        ("None", None, {}, None, False),
    ],
)
def test_the_flag_goes_first_then_the_variable_then_the_checkpoints_then_the_cache_folder(
    cache_dir, checkpoints, variables, folder, is_limited
):
    place = feature_cache.place(cache_dir, checkpoints and Path(checkpoints), Path("/home"), variables)
    assert place == Place(folder and Path(folder), 10 * 2**30 if is_limited else None)


@pytest.mark.parametrize(
    ("given", "limit"), [("1", 2**30), ("0.5", 2**29), ("0", 0), ("", 10 * 2**30), ("1e3", 1000 * 2**30)]
)
def test_the_limit_is_a_number_of_gib(given, limit):
    assert feature_cache.place(None, None, Path("/home"), {"TF_FINETUNE_CACHE_GIB": given}).limit == limit


@pytest.mark.parametrize("given", ["much", "-1", "nan", "inf", "10 GiB", "1e30"])
def test_a_limit_that_is_no_number_is_told(given):
    with pytest.raises(UsageError) as caught:
        feature_cache.place(None, None, Path("/home"), {"TF_FINETUNE_CACHE_GIB": given})
    assert str(caught.value) == f"TF_FINETUNE_CACHE_GIB: expected a number of GiB of 0 or more; received {given!r}."


def test_a_place_that_is_no_folder_of_this_machine_is_told(tmp_path):
    (tmp_path / "file").touch()
    for given in ("s3://bucket/x", tmp_path / "file"):
        with pytest.raises(UsageError) as caught:
            feature_cache.place(given, None, tmp_path, {})
        assert str(caught.value) == f"--cache-dir: expected a folder on this machine, or none; received {given}."


# What is kept is found again, by what it was computed from alone.


def test_features_are_found_again_whatever_the_order_and_however_often_they_are_asked_for(tmp_path):
    filled(tmp_path, range(10), range(10, 13))
    check(space_in(tmp_path), [12, 3, 77, 3, 0], [12, 3, 3, 0])
    check(space_in(tmp_path), [], [])
    assert len(shards_in(tmp_path)) == 2


def test_the_bits_are_those_that_were_given(tmp_path):
    rows = np.frombuffer(np.random.default_rng(0).bytes(SIZE * 400), np.float32).reshape(-1, SIZE)  # NaNs among them.
    space = space_in(tmp_path)
    space.write(keys_of(range(len(rows))), rows)
    found, known = space_in(tmp_path).read(keys_of(range(len(rows))), SIZE)
    assert known.all()
    assert found.tobytes() == rows.tobytes()


def test_a_space_is_for_one_way_of_computing(tmp_path):
    filled(tmp_path, range(3))
    check(Space(Place(tmp_path), dict(reversed(ABOUT.items())), "another name"), range(3), range(3))
    for other in ({"precision": "bfloat16"}, {"scaled": True}, {"augmentation": {"random_seed": 1}}, {"more": 1}):
        check(space_in(tmp_path, **other), range(3), [])


def test_nothing_is_kept_where_there_is_no_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space = filled(None, range(3))
    space.keep_verdict({"agrees": True})
    check(space, range(3), [])
    assert space.verdicts() == []
    assert list(tmp_path.iterdir()) == []


def test_verdicts_are_kept_and_altered_ones_do_not_count(tmp_path):
    verdicts = [{"agrees": True, "digests": ["ab"]}, {"agrees": False, "median_cosine": 0.5}]
    for verdict in verdicts * 2:
        space_in(tmp_path).keep_verdict(verdict)
    space = space_in(tmp_path)
    assert sorted(space.verdicts(), key=str) == sorted(verdicts, key=str)
    assert space_in(tmp_path, precision="bfloat16").verdicts() == []
    for file in space.folder.glob("verdict-*"):
        file.write_text(file.read_text().replace("false", "true"))
    assert space.verdicts() == verdicts[:1]
    for file in space.folder.glob("verdict-*"):
        file.write_bytes(b"")
    assert space.verdicts() == []


# What is damaged is noticed, removed and computed anew; what is whole beside it counts.


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def of_another_size(content: bytes) -> bytes:
    return saved(np.load(io.BytesIO(content)), np.zeros([10, SIZE + 1], np.float32))


def of_three_dimensions(content: bytes) -> bytes:
    return saved(np.load(io.BytesIO(content)), np.zeros([10, SIZE, 1], np.float32))


def of_fewer_rows(content: bytes) -> bytes:
    return saved(np.load(io.BytesIO(content)), rows_of(range(9)))


def of_another_type(content: bytes) -> bytes:
    return saved(np.load(io.BytesIO(content)), rows_of(range(10)).astype(np.float64))


def saved(*arrays: np.ndarray) -> bytes:
    made = io.BytesIO()
    for array in arrays:
        np.save(made, array)
    return made.getvalue()


HEAD = 128  # Bytes of NumPy's header.
DAMAGE = {
    "cut in half": lambda content: content[: len(content) // 2],
    "last byte lost": lambda content: content[:-1],
    "cut in the header": lambda content: content[:60],
    "empty": lambda content: b"",
    "a bit of the last feature": lambda content: flip(content, len(content) - 1),
    "a bit of the first key": lambda content: flip(content, HEAD),
    "a bit of the format's name": lambda content: flip(content, 1),
    "bytes added": lambda content: content + b"\0",
    "garbage": lambda content: b"garbage\n" * 40,
    "a pickle": lambda content: b"\x80\x04K\x01." + content,
    "a zip": lambda content: b"PK\x03\x04" + content,
    "of another size": of_another_size,
    "of another shape": of_three_dimensions,
    "of another type": of_another_type,
    "of fewer rows": of_fewer_rows,
}


@pytest.mark.parametrize("way", DAMAGE)
def test_a_damaged_shard_is_told_removed_and_computed_anew(tmp_path, caplog, way):
    filled(tmp_path, range(10), range(10, 20))
    file = shard_of(space_in(tmp_path), 4)
    whole = file.read_bytes()
    file.write_bytes(DAMAGE[way](whole))
    check(space_in(tmp_path), range(20), range(10, 20))
    (line,) = warnings_in(caplog)
    assert line == f"{file} is damaged: its features are computed anew"
    assert not file.exists()
    filled(tmp_path, range(10))
    assert file.read_bytes() == whole  # The same content has the same name.
    check(space_in(tmp_path), range(20), range(20))
    assert len(warnings_in(caplog)) == 1


def test_every_single_bit_of_a_header_may_flip(tmp_path):
    filled(tmp_path, range(3))
    file = shards_in(tmp_path)[0]
    whole = file.read_bytes()
    for place in range(HEAD):
        file.write_bytes(flip(whole, place))
        rows, known = space_in(tmp_path).read(keys_of(range(3)), SIZE)
        assert not known.any()


def test_damage_to_a_key_that_hides_its_example_is_noticed_by_the_others(tmp_path, caplog):
    filled(tmp_path, range(10))
    (file,) = shards_in(tmp_path)
    content = file.read_bytes()
    file.write_bytes(flip(content, content.index(keys_of([3])[0])))
    check(space_in(tmp_path), [3], [])
    check(space_in(tmp_path), range(10), [])
    assert not file.exists()
    assert len(warnings_in(caplog)) == 1


def test_what_a_damaged_shard_holds_is_taken_from_a_whole_one(tmp_path):
    filled(tmp_path, range(10), range(5, 15), range(3, 12))
    for number in (0, 14):
        file = shard_of(space_in(tmp_path), number)
        file.write_bytes(flip(file.read_bytes(), -1 + file.stat().st_size))
    check(space_in(tmp_path), range(15), range(3, 12))


def test_a_shard_that_cannot_be_read_just_now_is_let_be(tmp_path, monkeypatch, caplog):
    filled(tmp_path, range(3))

    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(np, "memmap", fail)
        check(space_in(tmp_path), range(3), [])
    assert warnings_in(caplog) == []
    check(space_in(tmp_path), range(3), range(3))


def test_a_shard_that_another_process_removes_meanwhile_is_no_failure(tmp_path, monkeypatch, caplog):
    space = filled(tmp_path, range(3), range(3, 6))
    gone = shard_of(space, 0)
    listed = space._shards()
    gone.unlink()
    monkeypatch.setattr(space, "_shards", lambda: listed)
    check(space, range(6), range(3, 6))
    assert warnings_in(caplog) == []


def test_what_a_killed_process_was_writing_is_harmless_and_goes_after_a_day(tmp_path):
    space = filled(tmp_path, range(3))
    content = shards_in(tmp_path)[0].read_bytes()
    old, new = space.folder / ".writing-old", space.folder / ".writing-new"
    for file in (old, new):
        file.write_bytes(content[:50])
    elsewhere = builders.write_files(tmp_path, {"other/.writing-old": b""}) / "other/.writing-old"
    for file in (old, elsewhere):
        os.utime(file, (old.stat().st_mtime - DAY - 60,) * 2)
    check(space_in(tmp_path), range(3), range(3))
    assert feature_cache.evict(Place(tmp_path, 2**30)) == 0
    assert (old.exists(), new.exists(), elsewhere.exists()) == (False, True, True)
    check(space_in(tmp_path), range(3), range(3))


# Disks that refuse.

FULL_DISK = """
import logging, resource, signal, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
logging.basicConfig(format="%(message)s")
from tests.unit import test_feature_cache as made

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # No file may grow beyond: a real OSError at the write.
space = made.space_in(Path(sys.argv[2]))
space.write(made.keys_of(range(3)), made.rows_of(range(3)))
space.write(made.keys_of(range(100)), made.rows_of(range(100)))
space.write(made.keys_of(range(3, 6)), made.rows_of(range(3, 6)))
space.keep_verdict({"agrees": True})
"""


def test_a_full_disk_costs_one_warning_and_leaves_nothing_half_written(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", FULL_DISK, str(root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    (line,) = done.stderr.splitlines()
    assert line == (
        f"features cannot be kept in {tmp_path}: File too large. Training goes on without; --cache-dir PLACE keeps "
        "them elsewhere."
    )
    check(space_in(tmp_path), range(6), range(3))
    assert not list(tmp_path.glob("*/.writing-*"))
    assert len(shards_in(tmp_path)) == 1


def test_a_place_below_a_file_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    space = space_in(tmp_path / "file" / "features")
    for _ in range(3):
        space.write(keys_of([1]), rows_of([1]))
        check(space, [1], [])
    assert space.verdicts() == []
    (line,) = warnings_in(caplog)
    assert "features: Not a directory. Training goes on without; --cache-dir PLACE" in line


def test_a_read_only_cache_is_read_none_the_less(tmp_path, caplog, monkeypatch):
    filled(tmp_path, range(3))

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for call in ("write_bytes", "mkdir", "unlink"):
        monkeypatch.setattr(Path, call, refuse)
    monkeypatch.setattr(os, "utime", refuse)
    space = space_in(tmp_path)
    check(space, range(5), range(3))
    for _ in range(2):
        space.write(keys_of([4]), rows_of([4]))
    (line,) = warnings_in(caplog)
    assert "Read-only file system" in line
    assert feature_cache.evict(Place(tmp_path, 0)) == 0
    check(space_in(tmp_path), range(3), range(3))


# The limit.


def sized(folder: Path, ages: dict[int, int], **about) -> list[int]:
    """Writes a shard of 100 rows from each number on, last used so many seconds ago; returns the bytes of each."""
    space = filled(folder, *(range(first, first + 100) for first in ages), **about)
    for first, age in ages.items():
        os.utime(shard_of(space, first), (NOW - age,) * 2)
    return [shard_of(space, first).stat().st_size for first in ages]


def left(folder: Path, numbers) -> list[int]:
    return [
        number for number in numbers if any(keys_of([number])[0] in file.read_bytes() for file in shards_in(folder))
    ]


def test_the_least_recently_used_go_first_and_the_limit_is_kept(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    size = sized(tmp_path, {0: 50, 1000: 10, 2000: 40})[0]
    sized(tmp_path, {3000: 30, 4000: 20}, precision="bfloat16")
    everything = [0, 1000, 2000, 3000, 4000]
    assert feature_cache.evict(Place(tmp_path, 5 * size)) == 0
    assert left(tmp_path, everything) == everything
    assert feature_cache.evict(Place(tmp_path, 3 * size + 1)) == 2
    assert left(tmp_path, everything) == [1000, 3000, 4000]
    assert f"the feature cache {tmp_path} was full: 2 of its oldest shards were removed" in caplog.text
    assert feature_cache.evict(Place(tmp_path, 3 * size - 1)) == 1
    assert left(tmp_path, everything) == [1000, 4000]
    assert feature_cache.evict(Place(tmp_path, 0)) == 2
    assert shards_in(tmp_path) == []


def test_what_was_just_read_survives(tmp_path):
    size = sized(tmp_path, {0: 500, 1000: 100, 2000: 200})[0]
    check(space_in(tmp_path), [7], [7])
    feature_cache.evict(Place(tmp_path, size))
    assert left(tmp_path, [0, 1000, 2000]) == [0]


def test_beside_checkpoints_nothing_is_ever_removed(tmp_path):
    sized(tmp_path, {0: 10 * DAY, 1000: 0})
    old = next(tmp_path.iterdir()) / ".writing-x"
    old.touch()
    os.utime(old, (0, 0))
    assert feature_cache.evict(Place(tmp_path, None)) == 0
    assert feature_cache.evict(Place(None, 0)) == 0
    assert left(tmp_path, [0, 1000]) == [0, 1000]
    assert old.exists()


THEIRS = {
    "numbers.npy": b"theirs",
    "arrays/numbers.npy": b"theirs",
    "0123456789abcdef0123456789abcdef/numbers.npy": b"theirs",  # A name like ours, without our about.json.
    "deep/er/x.npy": b"theirs",
    "backbones/about.json": b"{}",
}


def test_what_else_lies_in_a_users_folder_is_neither_counted_nor_removed(tmp_path):
    builders.write_files(tmp_path, THEIRS)
    for name in THEIRS:
        os.utime(tmp_path / name, (0, 0))
    filled(tmp_path, range(3))
    place = Place(tmp_path, 0)
    (space,) = feature_cache.listing(place)
    assert space["examples"] == 3
    assert feature_cache.evict(place) == 1
    filled(tmp_path, range(3))
    size = shard_of(space_in(tmp_path), 0).stat().st_size
    assert feature_cache.clear(place) == size
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == THEIRS


# Several processes.

HAMMER = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from tests.unit import test_feature_cache as made
from tf_finetune import feature_cache
from tf_finetune.feature_cache import Place

space = made.space_in(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
wrong = 0
for turn in range(40):
    numbers = range(turn * 10, turn * 10 + 30)
    rows, known = space.read(made.keys_of(numbers), made.SIZE)
    wrong += int((rows[known] != made.rows_of(numbers)[known]).any())
    space.write(made.keys_of(numbers), made.rows_of(numbers))
    if turn % 10 == 9:
        feature_cache.evict(Place(Path(sys.argv[2]), 5000))
print(wrong, space.writable)
"""


def test_two_processes_that_read_write_and_evict_at_once_get_right_features(tmp_path):
    command = [sys.executable, "-c", HAMMER, str(Path(__file__).parents[2]), str(tmp_path)]
    assert builders.race(command) == ["0 True\n"] * 2
    check(filled(tmp_path, range(430)), range(430), range(430))
    assert not list(tmp_path.glob("*/.writing-*"))


# The command.


@pytest.fixture
def held(tmp_path) -> Path:
    """A folder with features of two ways; the later one was used in 2001."""
    filled(tmp_path, range(1000))
    filled(tmp_path, range(10), precision="bfloat16", scaled=True, augmentation={"random_seed": 1})
    for file in shards_in(tmp_path):
        os.utime(file, (10**9,) * 2 if file.stat().st_size < 10_000 else (10**9 - DAY,) * 2)
    return tmp_path


def test_the_listing_says_what_is_kept(held):
    sizes = sorted(file.stat().st_size for file in shards_in(held))
    spaces = sorted(feature_cache.listing(Place(held)), key=lambda space: space["bytes"])
    assert [space["bytes"] for space in spaces] == sizes
    assert [space["examples"] for space in spaces] == [10, 1000]
    assert [space["last_used"] for space in spaces] == [10**9, 10**9 - DAY]
    assert spaces[1]["about"] == {"shown": "a-backbone", **ABOUT}
    assert spaces[1]["name"] == space_in(held).folder.name


def test_the_listing_counts_no_damaged_shard_and_removes_none(held):
    file = max(shards_in(held), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1])
    (Path(held) / space_in(held).folder.name / "about.json").write_text("{")
    assert sorted(space["examples"] for space in feature_cache.listing(Place(held))) == [0, 10]
    assert file.exists()
    assert "?" in tables.cache_table(Place(held), as_json=False)


def test_the_listing_leaves_out_what_was_emptied(tmp_path):
    filled(tmp_path, range(3)).keep_verdict({"agrees": True})
    shards_in(tmp_path)[0].unlink()
    assert feature_cache.listing(Place(tmp_path)) == []


def test_looking_for_a_key_reads_no_features(tmp_path, monkeypatch):
    space = filled(tmp_path, range(10))
    monkeypatch.setattr("tf_finetune.feature_cache.space._is_sound", lambda file: pytest.fail(f"{file} was read"))
    check(space, [77], [])
    file = shards_in(tmp_path)[0]
    assert file.read_bytes().index(keys_of([9])[0]) == HEAD + 9 * 32


def test_the_command_shows_the_cache(held, capsys):
    assert cli.main(["cache", "--cache-dir", str(held)]) == 0
    first, head, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{held}: ")
    assert first.endswith(" KiB of at most 10.0 GiB")
    assert head.split() == ["BACKBONE", "PRECISION", "EXAMPLES", "SIZE", "LAST", "USED"]
    assert [row.split()[:2] for row in rows] == [["a-backbone", "bfloat16,"], ["a-backbone", "float32"]]
    assert "bfloat16, augmented, scaled" in rows[0]
    assert " 1,000 " in rows[1]
    assert "2001-09-0" in rows[0]
    assert cli.main(["cache", "--cache-dir", str(held), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["place"], told["limit"]) == (str(held), 10 * 2**30)
    assert told["bytes"] == sum(file.stat().st_size for file in shards_in(held))
    assert sorted(space["examples"] for space in told["spaces"]) == [10, 1000]


def test_the_command_removes_features_and_nothing_else(held, capsys, monkeypatch):
    size = sum(file.stat().st_size for file in shards_in(held))
    builders.write_files(held, THEIRS)
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(held.parent / "unused"))
    assert cli.main(["cache", "--clear", "--cache_dir", str(held)]) == 0
    assert capsys.readouterr().out == f"removed {size:,} bytes of features from {held}\n"
    assert sorted(path.relative_to(held).as_posix() for path in held.rglob("*") if path.is_file()) == sorted(THEIRS)
    assert not (held.parent / "unused").exists()


@pytest.mark.parametrize("words", [[], ["--json"], ["--clear"]], ids=str)
@pytest.mark.parametrize("place", ["empty", "missing", "none"])
def test_an_empty_a_missing_and_no_cache_are_answered(tmp_path, capsys, words, place):
    (tmp_path / "empty").mkdir()
    given = "none" if place == "none" else str(tmp_path / place)
    assert cli.main(["cache", "--cache-dir", given, *words]) == 0
    told = capsys.readouterr().out
    if words == ["--json"]:
        limit = None if place == "none" else 10 * 2**30
        expected = {"place": None if place == "none" else given, "limit": limit, "bytes": 0, "spaces": [], "copies": []}
        assert json.loads(told) == expected
    elif words:
        assert told.startswith("features are not kept" if place == "none" else "removed 0 bytes of features")
    else:
        assert told == ("features are not kept\n" if place == "none" else f"{given}: 0 B of at most 10.0 GiB\n")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_without_a_flag_the_command_is_about_the_cache_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(tmp_path))
    filled(tmp_path / "features", range(3))
    assert cli.main(["cache", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["spaces"][0]["examples"] == 3


def test_the_command_needs_no_tensorflow(held):
    program = (
        "import sys\nfrom tf_finetune import cli\n"
        "codes = [cli.main(['cache', '--cache-dir', sys.argv[1], *words]) for words in ([], ['--json'], ['--clear'])]\n"
        "print(codes, sorted({'tensorflow', 'keras', 'sklearn', 'pandas'} & set(sys.modules)), file=sys.stderr)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(held)], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stderr == "[0, 0, 0] []\n"
