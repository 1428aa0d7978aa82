"""Class folders as people and systems leave them, and the split of their photos."""

from __future__ import annotations

import csv
import hashlib
import itertools
import logging
import os
import random
from pathlib import Path

import pytest

from tests.builders import write_class_folders, write_files
from tf_finetune import examples
from tf_finetune.errors import MESSAGE_LIMIT, DataError, UsageError
from tf_finetune.examples import Example, Examples

SEED, RATIO = 123, 0.2


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def made(*contents_of_classes) -> Examples:
    """Returns examples of which a class's contents are given, one example per entry."""
    items = [
        Example(f"c{label}/{number}.jpg", label, Path(f"c{label}/{number}.jpg"), digest_of(str(content).encode()))
        for label, contents in enumerate(contents_of_classes)
        for number, content in enumerate(contents)
    ]
    return Examples(tuple(f"c{label}" for label in range(len(contents_of_classes))), tuple(items))


def sides_of(whole: Examples, ratio: float = RATIO, seed: int = SEED) -> tuple[set[str], set[str]]:
    """Returns the digests of training and validation, having held what holds for every split."""
    training, validation = examples.split(whole, ratio, seed)
    assert sorted(training.items + validation.items, key=str) == sorted(whole.items, key=str)
    assert training.class_names == validation.class_names == whole.class_names
    sides = tuple({example.digest for example in part.items} for part in (training, validation))
    assert not sides[0] & sides[1]  # No content on both sides: nothing leaks.
    return sides


def ids_of(channel: Path, *arguments) -> list[str]:
    return sorted(example.id for example in examples.folders.read(channel, *arguments).items)


# Class folders


def test_photos_are_read_with_class_path_and_digest(tmp_path):
    channel = write_files(tmp_path / "train", {"b/1.jpg": b"one", "a/x/y/2.PNG": b"two", "B/3.jpeg": b"three"})
    found = examples.folders.read(channel)
    assert found.class_names == ("B", "a", "b")  # The order of their characters, as in the built-in.
    assert {(item.id, found.class_names[item.label], item.content, item.digest) for item in found.items} == {
        ("b/1.jpg", "b", channel / "b/1.jpg", digest_of(b"one")),
        ("a/x/y/2.PNG", "a", channel / "a/x/y/2.PNG", digest_of(b"two")),
        ("B/3.jpeg", "B", channel / "B/3.jpeg", digest_of(b"three")),
    }
    assert [item.digest for item in found.items] == sorted(item.digest for item in found.items)
    assert found.labels == [item.label for item in found.items]
    assert len(found) == 3


@pytest.mark.parametrize(
    "clutter",
    [
        ".ipynb_checkpoints/1.jpg",
        ".git/objects/1.jpg",
        "__MACOSX/a/1.jpg",
        "@eaDir/1.jpg",
        "a/.ipynb_checkpoints/1-checkpoint.jpg",
        "a/nested/.cache/1.jpg",
        "a/__MACOSX/1.jpg",
        "a/Thumbs.db",
        "a/desktop.ini",
        "a/._1.jpg",
        "a/.DS_Store",
        "a/.hidden.jpg",
        ".DS_Store",
        "._1.jpg",
        "README.txt",
        "labels.csv",
    ],
)
def test_hidden_and_metadata_files_are_neither_classes_nor_photos(tmp_path, clutter, caplog):
    write_files(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2", clutter: b"clutter"})
    found = examples.folders.read(tmp_path)
    assert (found.class_names, {item.id for item in found.items}) == (("a", "b"), {"a/1.jpg", "b/2.jpg"})
    assert not caplog.records  # They are not worth a word.


def test_names_may_have_spaces_signs_and_letters_of_any_language(tmp_path):
    names = ["été/fleur d'été.JPG", "日本/桜 (1).jpeg", 'a,b"c/#1 100%.png', "новая папка/ü/1.2.3.webp", "x=y/z\n.gif"]
    write_files(tmp_path, {name: name.encode() for name in names})
    assert ids_of(tmp_path) == sorted(names)


@pytest.mark.parametrize("suffix", [".jpg", ".JPG", ".JpEg", ".PNG", ".bmp", ".gif", ".webp", ".jpe", ".tif", ".AVIF"])
def test_suffixes_count_in_upper_and_lower_case(tmp_path, suffix):
    write_files(tmp_path, {f"a/1{suffix}": b"1", "b/2.jpg": b"2"})
    assert f"a/1{suffix}" in ids_of(tmp_path)


def test_what_is_no_photo_is_left_out_with_a_word(tmp_path, caplog):
    write_files(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2", "a/notes.txt": b"", "a/3.svg": b"", "a/jpg": b""})
    write_files(tmp_path, {"loose.jpg": b"3", "notes.md": b""})
    assert ids_of(tmp_path) == ["a/1.jpg", "b/2.jpg"]
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(lines) == 2
    assert "1 photo beside the class folders left out: loose.jpg" in lines[0]
    assert "3 files left out" in lines[1]
    assert "3.svg, jpg, notes.txt" in lines[1]


def test_links_are_followed_and_loops_of_links_end(tmp_path):
    channel = write_files(tmp_path / "train", {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    elsewhere = write_files(tmp_path / "elsewhere", {"3.jpg": b"3", "deep/4.jpg": b"4"})
    (channel / "c").symlink_to(elsewhere)
    (channel / "a" / "more").symlink_to(elsewhere / "deep")
    (channel / "b" / "5.jpg").symlink_to(elsewhere / "3.jpg")
    for loop, target in [("a/self", "a"), ("b/x/up", "b"), ("b/itself", "b/itself"), ("c/deep/up", "c/deep")]:
        (channel / loop).parent.mkdir(exist_ok=True)
        (channel / loop).symlink_to(channel / target)
    assert ids_of(channel) == ["a/1.jpg", "a/more/4.jpg", "b/2.jpg", "b/5.jpg", "c/3.jpg", "c/deep/4.jpg"]


def test_many_photos_are_each_found_once(tmp_path):
    write_class_folders(tmp_path / "train", per_class=20)
    found = examples.folders.read(tmp_path / "train")
    assert found.class_names == ("cyan", "magenta", "yellow")
    assert (len(found), len({item.id for item in found.items}), len({item.digest for item in found.items})) == (60,) * 3


@pytest.mark.parametrize(
    ("files", "error", "parts"),
    [
        ({}, DataError, ["no class folders", "Received: 0 files, no folders", "train/roses/1.jpg"]),
        ({"1.jpg": b"", "2.jpg": b"", "x.csv": b""}, DataError, ["no class folders", "Received: 3 files, no folders"]),
        ({".hidden/1.jpg": b"", "__MACOSX/1.jpg": b""}, DataError, ["no class folders"]),
        ({"roses/1.jpg": b""}, DataError, ["one class folder only: roses", "at least 2"]),
        ({"roses/1.jpg": b"", ".git/1.jpg": b""}, DataError, ["one class folder only: roses"]),
        ({"a/1.jpg": b"", "b/": b""}, DataError, ["1 class folder of", "without photos: b.", "remove the folder"]),
        ({"a/1.jpg": b"", "b/x.txt": b"", "c/": b""}, DataError, ["2 class folders of", "without photos: b, c."]),
        ({f"{i}/": b"" for i in range(9)}, DataError, ["9 class folders", "0, 1, 2, 3, 4 and 4 more"]),
        (None, UsageError, ["training channel", "does not exist", "Expected a folder"]),
        (b"file", UsageError, ["training channel", "is a file"]),
    ],
    ids=["empty", "files only", "hidden only", "one", "one and hidden", "empty class", "two", "nine", "none", "file"],
)
def test_a_channel_that_cannot_be_trained_on_is_named_with_what_it_holds(tmp_path, files, error, parts):
    channel = tmp_path / "train"
    if isinstance(files, bytes):
        channel.write_bytes(files)
    elif files is not None:
        channel.mkdir()
        write_files(channel, files)
    with pytest.raises(error) as caught:
        examples.folders.read(channel)
    for part in [str(channel), *parts]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < MESSAGE_LIMIT


def test_a_photo_that_cannot_be_read_is_named(tmp_path):
    write_files(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    (tmp_path / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    with pytest.raises(DataError, match=r"b/gone\.jpg cannot be read: No such file or directory\. Mend or remove"):
        examples.folders.read(tmp_path)


def test_a_folder_that_cannot_be_read_is_named_and_not_passed_over(tmp_path):
    write_files(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    name, place = "d" * 250, os.open(tmp_path / "b", os.O_RDONLY)
    for _ in range(17):  # Deeper than any path can say, which stops the superuser too.
        os.mkdir(name, dir_fd=place)
        deeper = os.open(name, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = deeper
    os.close(place)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        examples.folders.read(tmp_path)


def test_photos_may_have_names_in_another_encoding_but_classes_may_not(tmp_path):
    write_files(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    latin = os.fsdecode(b"caf\xe9")
    try:
        write_files(tmp_path, {f"b/{latin}.jpg": b"3"})
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    found = examples.folders.read(tmp_path)
    assert f"b/{latin}.jpg" in {item.id for item in found.items}
    examples.write_split(tmp_path / "split.csv", {"training": found})
    assert "b/caf\\udce9.jpg" in (tmp_path / "split.csv").read_text(encoding="utf-8")
    write_files(tmp_path, {f"{latin}/4.jpg": b"4"})
    with pytest.raises(DataError, match=r"class folders whose names are not UTF-8: 'caf\\udce9'\. Rename"):
        examples.folders.read(tmp_path)


# Validation and test channels


def test_another_channel_is_read_against_the_training_classes(tmp_path, caplog):
    write_files(tmp_path, {"c/1.jpg": b"1", "a/2.jpg": b"2", "a/x/3.jpg": b"3", "b/": b"", ".git/1.jpg": b""})
    found = examples.folders.read(tmp_path, ("a", "b", "c", "d"), "validation")  # d is missing, b is empty.
    assert found.class_names == ("a", "b", "c", "d")
    assert {(item.id, item.label) for item in found.items} == {("c/1.jpg", 2), ("a/2.jpg", 0), ("a/x/3.jpg", 0)}
    one_class = write_files(tmp_path / "one", {"c/1.jpg": b"1"})
    assert examples.folders.read(one_class, ("a", "b", "c", "d"), "test").labels == [2]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_class_unknown_to_training_is_an_error_that_names_it(tmp_path, name):
    write_files(tmp_path, {"dasies/1.jpg": b"1", "roses/2.jpg": b"2", "Roses/": b""})
    with pytest.raises(DataError) as caught:
        examples.folders.read(tmp_path, ("daisies", "roses"), name)
    message = str(caught.value)
    assert message.startswith(f"{name} channel {tmp_path} has 2 classes that training lacks: Roses, dasies.")
    assert "Classes in training: daisies, roses." in message


def test_an_empty_validation_channel_is_an_error(tmp_path):
    write_files(tmp_path, {"a/": b""})
    with pytest.raises(DataError, match="validation channel .* holds no photos"):
        examples.folders.read(tmp_path, ("a", "b"), "validation")


# The split


@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("counts", [(0, 10), (1, 10), (2, 10), (2, 2), (1, 1), (10, 10), (3, 200)])
def test_a_class_of_two_or_more_is_on_both_sides_and_a_single_photo_in_training(counts, ratio):
    whole = made(*([f"{label}-{number}" for number in range(count)] for label, count in enumerate(counts)))
    for seed, (label, count) in itertools.product((0, 1, 2, 3, 123), enumerate(counts)):
        sides_of(whole, ratio, seed)
        here, there = (part.labels.count(label) for part in examples.split(whole, ratio, seed))
        assert here + there == count
        assert here >= min(count, 1)
        assert there >= (count >= 2)
        if count >= 2 and ratio in (0, 1):  # One example is on the other side, by repair.
            assert (there if ratio == 0 else here) == 1


def test_repairs_and_single_examples_are_told(caplog):
    caplog.set_level(logging.INFO)
    sides_of(made(["only one"], ["p", "q"], range(50)), ratio=0.0)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert len(lines) == 3
    assert ("WARNING", "class c0 has one distinct example: it is in training only, and is not validated") in lines
    repair = "class {} had no validation example: the one nearest to the threshold changed over"
    assert {line for level, line in lines if level == "INFO"} == {repair.format(name) for name in ("c1", "c2")}


def test_the_repair_moves_the_example_nearest_to_the_threshold():
    whole = made(range(40))
    by_ratio = [sides_of(whole, ratio)[1] for ratio in (0.0, 0.02, 0.1, 0.3, 0.6, 1.0)]
    lowest = next(iter(by_ratio[0]))
    assert all(lowest in validation for validation in by_ratio)  # At 0 the lowest is nearest: the first at any ratio.
    for smaller, larger in itertools.pairwise(by_ratio):
        assert smaller <= larger


def test_the_split_of_known_contents_never_changes_between_versions():
    whole = made(range(20), "abcdefghij")
    _, validation = examples.split(whole, RATIO, SEED)
    assert sorted(example.id for example in validation.items) == ["c0/17.jpg", "c1/2.jpg", "c1/8.jpg", "c1/9.jpg"]


def test_renamed_moved_and_reordered_files_give_the_same_split(tmp_path):
    contents = {label: [f"{label}{number}".encode() for number in range(10)] for label in "ab"}
    write_files(tmp_path / "one", {f"{c}/{i}.jpg": content for c in "ab" for i, content in enumerate(contents[c])})
    renamed = {
        f"{c}/deep/{99 - i:02} x.PNG": content for c in "ba" for i, content in reversed([*enumerate(contents[c])])
    }
    write_files(tmp_path / "two", renamed)
    one, two = (sides_of(examples.folders.read(tmp_path / name)) for name in ("one", "two"))
    assert one == two
    shuffled = made(range(30), range(100, 130))
    items = list(shuffled.items)
    random.Random(0).shuffle(items)
    assert sides_of(shuffled) == sides_of(Examples(shuffled.class_names, tuple(items)))


@pytest.mark.parametrize("seed", range(5))
def test_added_files_move_none_except_out_of_a_repair(seed):
    contents = [f"photo {number}" for number in range(60)]
    by_hash = sides_of(made(contents), seed=seed)[1]  # Sixty photos are on both sides without a repair.
    assert 4 <= len(by_hash) <= 24
    repairs = 0
    for count in range(2, 61):
        present = {digest_of(content.encode()) for content in contents[:count]}
        moved = sides_of(made(contents[:count], ["other", "class"]), seed=seed)[1] & present ^ by_hash & present
        needs_repair = not by_hash & present or present <= by_hash
        assert len(moved) == needs_repair
        repairs += needs_repair
    assert repairs < 59


def test_duplicates_share_a_side_and_do_not_shift_it():
    contents = [f"photo {number}" for number in range(30)]
    once, thrice = made(contents), made(contents * 3)
    assert sides_of(once) == sides_of(thrice)
    assert len(examples.split(thrice, RATIO, SEED)[1]) == 3 * len(examples.split(once, RATIO, SEED)[1])
    same = made(["x"] * 10, range(10))  # Ten copies are one distinct example.
    assert examples.split(same, 1.0, SEED)[0].labels.count(0) == 10


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_duplicates_across_classes_share_a_side_and_every_class_is_still_on_both(seed, ratio):
    draw = random.Random(seed)
    shared = [f"shared {number}" for number in range(6)]
    for _ in range(10):
        classes = [
            draw.sample(shared, draw.randint(1, 4)) + [f"own {label} {number}" for number in range(draw.randint(1, 2))]
            for label in range(4)
        ]
        whole = made(*classes, [shared[0]])  # The last class has one photo, which others may have too.
        sides_of(whole, ratio, seed)
        training, validation = examples.split(whole, ratio, seed)
        assert set(training.labels) == {0, 1, 2, 3, 4}
        assert set(validation.labels) == {0, 1, 2, 3}


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    whole = made(range(100), range(100, 200))
    splits = {frozenset(sides_of(whole, seed=seed)[1]) for seed in range(10)}
    assert len(splits) == 10
    assert sides_of(whole, seed=7) == sides_of(whole, seed=7)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.5, 0.9])
def test_the_share_of_validation_is_the_ratio_in_expectation_in_every_class(ratio):
    count = 1000
    whole = made(range(count), range(count, 2 * count))
    _, validation = examples.split(whole, ratio, SEED)
    for label in (0, 1):
        share = validation.labels.count(label) / count
        assert abs(share - ratio) < 4 * (ratio * (1 - ratio) / count) ** 0.5  # Four standard deviations.


def test_split_csv_says_where_each_example_is(tmp_path):
    write_files(tmp_path / "train", {f"{c}/{i}, x.jpg": f"{c}{i}".encode() for c in ("a", 'b"') for i in range(5)})
    whole = examples.folders.read(tmp_path / "train")
    training, validation = examples.split(whole, RATIO, SEED)
    file = tmp_path / "split.csv"
    examples.write_split(file, {"training": training, "validation": validation})
    with file.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["split", "id", "label", "sha256"]
    assert {(row["split"], row["id"], row["label"], row["sha256"]) for row in rows} == {
        (side, item.id, whole.class_names[item.label], item.digest)
        for side, part in (("training", training), ("validation", validation))
        for item in part.items
    }
    assert len(rows) == 10
    assert rows == sorted(rows, key=lambda row: (row["split"], row["id"]))


def test_loose_photos_are_told_once_though_a_job_looks_before_it_reads(tmp_path, caplog):
    write_files(tmp_path, {"a/1.jpg": b"1", "b/2.jpg": b"2", "loose.jpg": b"3"})
    examples.check("image", tmp_path)
    examples.read("image", tmp_path)
    assert [record.getMessage().count("loose.jpg") for record in caplog.records] == [1]
