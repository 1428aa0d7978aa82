"""Photos and texts that are alike are found, others are not, in time that grows with their number."""

from __future__ import annotations

import hashlib
import itertools
import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from tests import builders
from tests.photographs import encoded, exif, picture
from tf_finetune import feature_cache
from tf_finetune.examples import grouping
from tf_finetune.feature_cache import Place
from tf_finetune.feature_cache.space import Space
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection import by_features, conversion, duplicates, examine, photos

LIMIT = 10**8
LARGE = picture(1, 640, 480, cells=14)
CHANGES = {
    "worse": lambda image: encoded(image, quality=40),
    "another format": lambda image: encoded(image, "PNG"),
    "half": lambda image: encoded(image.resize((320, 240), Image.Resampling.LANCZOS)),
    "a thumbnail": lambda image: encoded(image.resize((160, 120), Image.Resampling.BICUBIC)),
    "cropped": lambda image: encoded(image.crop((6, 5, 634, 475))),
    "brighter": lambda image: encoded(ImageEnhance.Brightness(image).enhance(1.05)),
    "more contrast": lambda image: encoded(ImageEnhance.Contrast(image).enhance(1.1)),
    "a tiff": lambda image: encoded(image, "TIFF"),
    "a palette": lambda image: encoded(image.quantize(256), "PNG"),
    "of one alpha": lambda image: encoded(image.convert("RGBA"), "PNG"),
}


def hash_of(content: bytes) -> tuple[bytes | None, bytes | None]:
    look = photos.look(content, LIMIT)
    assert not look.kind
    return look.hash, look.thumbnail


def are_alike(one: bytes, other: bytes) -> bool:
    hashes = {name: hash_of(content) for name, content in (("a", one), ("b", other))}
    assert all(found[0] for found in hashes.values())
    return duplicates.near_photos(hashes) == [("a", "b")]


@pytest.mark.parametrize("change", CHANGES)
def test_a_photo_is_alike_to_itself_changed_a_little(change):
    assert are_alike(encoded(LARGE, quality=95), CHANGES[change](LARGE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_that_is_stored_turned_is_alike_to_the_upright_one(orientation):
    stored = conversion.upright(LARGE, {6: 8, 8: 6}.get(orientation, orientation))
    turned = encoded(stored, exif=exif(orientation))
    assert are_alike(encoded(LARGE), turned)
    if orientation > 1:
        assert not are_alike(encoded(LARGE), encoded(stored))


def test_sixteen_bits_are_looked_at_from_above():
    gray = np.asarray(LARGE.convert("L")).astype(np.uint16)
    deep = encoded(Image.fromarray(gray * 257), "PNG")
    assert are_alike(deep, encoded(LARGE.convert("L"), "PNG"))


def test_what_is_transparent_is_seen_on_white():
    drawn = LARGE.convert("RGBA")
    drawn.paste((0, 0, 0, 0), (0, 0, 300, 480))
    seen = LARGE.copy()
    seen.paste((255, 255, 255), (0, 0, 300, 480))
    assert are_alike(encoded(drawn, "PNG"), encoded(seen, "PNG"))


def test_photos_of_other_colours_are_not_alike():
    red, green, blue = LARGE.split()
    assert not are_alike(encoded(LARGE), encoded(Image.merge("RGB", (green, blue, red))))


def test_different_pictures_are_not_alike():
    hashes = {str(seed): hash_of(encoded(picture(seed), "PNG")) for seed in range(200)}
    assert all(found[0] for found in hashes.values())
    assert duplicates.near_photos(hashes) == []


def test_different_things_on_one_background_are_not_alike():
    def thing(seed: int) -> bytes:
        background = Image.new("RGB", (200, 200), "white")
        background.paste(picture(seed, 90, 90, cells=7), (55, 55))
        return encoded(background)

    hashes = {str(seed): hash_of(thing(seed)) for seed in range(150)}
    hashes = {name: found for name, found in hashes.items() if found[0]}
    assert duplicates.near_photos(hashes) == []


def test_photos_with_little_in_them_have_no_hash(tmp_path):
    builders.write_class_folders(tmp_path, per_class=4)  # Flat colours.
    for file in sorted(tmp_path.glob("*/[01].png")):
        builders.paint_right_half(file, 90)
    for file in tmp_path.glob("*/*.png"):
        assert hash_of(file.read_bytes()) == (None, None)
    generator = np.random.default_rng(0)
    faint = generator.integers(120, 128, [90, 120, 3], dtype=np.uint8)
    stripes = np.repeat(np.array([0, 255, 0], np.uint8), 30)[:, None, None] * np.ones([1, 120, 3], np.uint8)
    gradient = np.linspace(0, 30, 120)[None, :, None].astype(np.uint8) * np.ones([90, 1, 3], np.uint8)
    blocks = np.kron(generator.integers(120, 132, [16, 17, 1], dtype=np.uint8), np.ones([8, 8, 3], np.uint8))
    for pixels in (faint, stripes, gradient, blocks):
        assert hash_of(encoded(Image.fromarray(pixels), "PNG")) == (None, None)


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def with_flipped(hash: bytes, bits) -> bytes:
    changed = bytearray(hash)
    for bit in bits:
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize("seed", range(10))
def test_no_pair_within_the_limit_is_missed_and_none_beyond_is_found(seed):
    generator = np.random.default_rng(seed)
    hash, thumbnail = generator.bytes(32), bytes(generator.integers(50, 200, 192, dtype=np.uint8))
    packed = np.frombuffer(hash, np.uint8)[None]
    assert len(duplicates._parts(packed)) > duplicates.MOST_BITS  # So that one of them is always the same.
    for count in range(20):
        other = with_flipped(hash, generator.choice(256, count, replace=False))
        found = duplicates.near_photos({"a": (hash, thumbnail), "b": (other, thumbnail)})
        assert found == ([("a", "b")] if count <= duplicates.MOST_BITS else [])


def test_thumbnails_must_agree_on_average_and_nearly_everywhere():
    hash, gray = bytes(range(32)), np.full(192, 100, np.uint8)
    for change, alike in [
        (np.full(192, 10), True),
        (np.full(192, 11), False),
        (np.repeat([0, 60], [173, 19]), True),
        (np.repeat([0, 40], [172, 20]), False),
        (np.tile([12, -12], 96), False),
    ]:
        pair = {"a": (hash, gray.tobytes()), "b": (hash, (gray + change).astype(np.uint8).tobytes())}
        assert duplicates.near_photos(pair) == ([("a", "b")] if alike else [])


def test_a_photo_of_few_steps_must_agree_in_more_of_them():
    few, thumbnail = with_flipped(bytes(32), range(0, 256, 8)), bytes(range(192))  # 32 bits are set.
    for count, alike in ((4, True), (6, False)):
        other = with_flipped(few, range(1, 8 * count, 8))
        assert bool(duplicates.near_photos({"a": (few, thumbnail), "b": (other, thumbnail)})) == alike


def test_many_photos_are_compared_in_seconds_and_each_pair_is_found():
    generator, count = np.random.default_rng(0), 20_000
    hashes = [generator.bytes(32) for _ in range(count)]
    thumbnails = generator.integers(0, 256, [count, 192], dtype=np.uint8)
    for number in range(0, 1000, 2):
        hashes[number + 1] = with_flipped(hashes[number], generator.choice(256, 12, replace=False))
        thumbnails[number + 1] = thumbnails[number]
    thumbnails[2000:, :] = 128  # As alike as can be in brightness.
    for number in range(3000, count):
        hashes[number] = hashes[number][:4] + bytes(16) + hashes[number][20:]  # Half of the photo is background.
    names = digests(count)
    started = time.process_time()
    found = duplicates.near_photos(dict(zip(names, zip(hashes, map(bytes, thumbnails), strict=True), strict=True)))
    assert time.process_time() - started < 20
    assert {tuple(sorted((names[number], names[number + 1]))) for number in range(0, 1000, 2)} <= set(found)
    assert len(found) < 510  # Of 200 million pairs.


def test_very_many_alike_photos_form_one_group():
    thumbnail = bytes(range(192))
    alike = {name: (with_flipped(b"\xa5" * 32, [n % 256]), thumbnail) for n, name in enumerate(digests(1000))}
    groups = grouping.groups(duplicates.near_photos(alike))
    assert set(groups.values()) == {min(alike)}
    assert len(groups) == 1000


def test_one_photo_or_none_has_no_like():
    assert duplicates.near_photos({}) == []
    assert duplicates.near_photos({"a": (bytes(32), bytes(192))}) == []


@pytest.mark.parametrize("pairs", [*itertools.permutations([("a", "b"), ("c", "d"), ("d", "b"), ("x", "y")])])
def test_groups_do_not_depend_on_the_order_of_pairs(pairs):
    assert grouping.groups(pairs) == {**dict.fromkeys("abcd", "a"), "x": "x", "y": "x"}


# Texts


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Free entry!", "free  ENTRY", True),
        ("free-entry", "free entry", True),
        ("  hello\t\n", "hello", True),
        ("ＦＲＥＥ entry", "free entry", True),
        ("straße", "STRASSE", True),
        ("e\u0301t\u00e9", "\u00e9te\u0301", True),
        ("call 0871", "call 0872", False),
        ("hello you", "helloyou", False),
        ("की", "का", False),
        ("कि!", "कि", True),
        (":-)", ":-(", False),
        ("!!!", "???", False),
        ("我 爱你", "我恨你", False),
        ("👍", "👎", False),
    ],
)
def test_texts_are_alike_when_their_words_are(one, other, alike):
    assert duplicates.near_texts({"a": one, "b": other}) == ([("a", "b")] if alike else [])


# Features


def keep(place: Place, digests_: list[str], rows: np.ndarray, **about) -> None:
    about = {"precision": "float32", "augmentation": None, "scaled": False, **about}
    Space(place, about, "test").write([bytes.fromhex(digest) for digest in digests_], rows.astype(np.float32))


def features_of(count: int, size: int = 80, seed: int = 0) -> np.ndarray:
    """Returns float32 [count, size] of features that all have much in common, as those of networks do."""
    return np.abs(np.random.default_rng(seed).normal(0, 1, [count, size]) + 5).astype(np.float32)


def test_features_of_the_cache_tell_pairs_that_are_alike(tmp_path):
    place, names, rows = Place(tmp_path), sorted(digests(30)), features_of(30)
    rows[4] = rows[1] + 0.01
    rows[5] = np.nan
    keep(place, names, rows)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    assert duplicates.by_features(names, place) == [(names[1], names[4])]
    assert duplicates.by_features(names * 2, place) == [(names[1], names[4])]
    assert duplicates.by_features([name for name in names if name != names[4]], place) == []
    assert duplicates.by_features(names, Place(tmp_path / "nowhere")) == []
    assert duplicates.by_features(names, Place(None)) == []
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("count", "size", "about"),
    [(30, 80, {"precision": "bfloat16"}), (30, 80, {"augmentation": {"views": 4}}), (30, 63, {}), (19, 80, {})],
    ids=["16 bits", "distorted", "few features", "few examples"],
)
def test_some_features_tell_nothing(tmp_path, count, size, about):
    rows = features_of(count, size)
    rows[1] = rows[0]
    keep(Place(tmp_path), digests(count), rows, **about)
    assert duplicates.by_features(digests(count), Place(tmp_path)) == []


def test_the_space_that_knows_the_most_is_asked(tmp_path):
    place, names, one, other = Place(tmp_path), sorted(digests(40)), features_of(40), features_of(40, 70, seed=1)
    one[1], other[3] = one[0], other[2]
    keep(place, names[:30], one[:30], backbone="one")
    keep(place, names, other, backbone="other")
    for number in range(8):
        keep(place, [digest[::-1] for digest in digests(90)], np.ones([90, 70]), backbone=f"of others {number}")
    assert duplicates.by_features(names, place) == [(names[2], names[3])]


def test_features_are_compared_in_blocks_and_not_at_all_where_there_are_too_many(tmp_path, monkeypatch):
    place, names, rows = Place(tmp_path), sorted(digests(50)), features_of(50)
    rows[[3, 20, 49]] = rows[0]
    keep(place, names, rows)
    whole = duplicates.by_features(names, place)
    assert whole == [(names[one], names[other]) for one, other in itertools.combinations([0, 3, 20, 49], 2)]
    monkeypatch.setattr(duplicates, "BLOCK", 7)
    assert duplicates.by_features(names, place) == whole
    monkeypatch.setattr(duplicates, "MOST_EXAMPLES", 49)
    assert duplicates.by_features(names, place) == []


def test_equal_features_of_all_examples_tell_nothing(tmp_path):
    keep(Place(tmp_path), digests(30), np.full([30, 80], 3.0))
    assert duplicates.by_features(digests(30), Place(tmp_path)) == []


def test_a_damaged_cache_is_left_as_it_is(tmp_path):
    place, names = Place(tmp_path), digests(30)
    keep(place, names, np.ones([30, 80]))
    (shard,) = tmp_path.glob("*/*.npy")
    shard.write_bytes(shard.read_bytes()[:-20])
    assert duplicates.by_features(names, place) == []
    assert shard.is_file()


def test_pairs_by_features_are_a_finding_and_no_group(tmp_path):
    names = [f"{'ab'[number % 2]}/{number}.png" for number in range(20)]
    files = {name: encoded(picture(number), "PNG") for number, name in enumerate(names)}
    channel = builders.write_files(tmp_path / "photos", {**files, "a/copy.jpg": encoded(picture(0))})
    found = examine("image", {"training": channel}, Hyperparameters(), tmp_path / "scratch")
    by_id = {example.id: example.digest for example in found.parts["training"].items}
    rows = features_of(21)
    rows[2] = rows[1]  # Alike by features only.
    rows[20] = rows[0]  # Near duplicates that are a group already.
    place = feature_cache.place(tmp_path / "features", None, tmp_path)
    keep(place, [by_id[name] for name in [*names, "a/copy.jpg"]], rows)
    (finding,) = by_features(found, place)
    assert (finding.severity, finding.kind) == ("warning", "near_duplicate_features")
    assert sorted(finding.examples) == ["training/a/2.png", "training/b/1.png"]
    assert set(found.groups) == {by_id["a/0.png"], by_id["a/copy.jpg"]}
    assert by_features(found, Place(None)) == ()


# Real photos


@pytest.mark.parametrize("name", ["flowers-400", "sign-digits-400", "gestures-40"])
def test_no_real_photo_is_taken_for_another(real_data, tmp_path, name):
    found = examine("image", {"training": real_data / "images" / name}, Hyperparameters(), tmp_path)
    assert (found.findings, found.unusable, found.groups) == ((), (), {})


def test_most_real_photos_are_found_again_when_they_are_changed(real_data):
    files = sorted((real_data / "images" / "flowers-400").rglob("*.jpg"))[::10]
    least = {"worse": 0.95, "half": 0.95, "a thumbnail": 0.95, "cropped": 0.8, "brighter": 0.9, "more contrast": 0.9}
    found = dict.fromkeys(least, 0)
    for file in files:
        image = Image.open(file).convert("RGB")
        wide, high = image.size
        changed = {
            **{change: CHANGES[change](image) for change in ("worse", "brighter", "more contrast")},
            "half": encoded(image.resize((wide // 2, high // 2))),
            "a thumbnail": encoded(image.resize((160, 160 * high // wide))),
            "cropped": encoded(image.crop((wide // 100, high // 100, wide - wide // 100, high - high // 100))),
        }
        one = hash_of(file.read_bytes())
        for change, content in changed.items():
            other = hash_of(content)
            if one[0] and other[0]:
                found[change] += len(duplicates.near_photos({"a": one, "b": other}))
    shares = {change: number / len(files) for change, number in found.items()}
    assert all(shares[change] >= share for change, share in least.items()), shares
