"""Photos as people have them: the right verdict for each, one conversion where there must be one, and no surprise."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from tests import photographs
from tests.builders import write_files
from tests.photographs import bmp, encoded, exif, picture, png, with_frame
from tf_finetune import inspection, versions
from tf_finetune.errors import MESSAGE_LIMIT, DataError, HyperparameterError
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection import conversion, decoding, findings, photo_channels, photos, quarantine, sniffing
from tf_finetune.inspection.records import ERROR, NOTE, WARNING, Header, Unusable

LIMIT = 10**8
JPEG = encoded(picture())
PNG = encoded(picture(), "PNG")
GIF = encoded(picture(), "GIF")


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0xFF
    return bytes(changed)


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.arange(120 * 90, dtype=np.uint16).reshape(90, 120) * 6)


UNUSABLE = {
    "empty": (b"", "empty", "is empty"),
    "one byte": (b"\xff", "not_an_image", "nothing known"),
    "html": (b"<!doctype html><p>404", "not_an_image", "an HTML page"),
    "text": (b"see attachment", "not_an_image", "looks like text"),
    "zeros": (bytes(999), "not_an_image", "zeros only"),
    "svg": (b"<svg xmlns='x'/>", "unsupported_format", "it is SVG"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "unsupported_format", "HEIF, which is not supported"),
    "jpeg of 12 bits": (with_frame(JPEG, bits=12), "unsupported_format", "12 bits"),
    "lossless jpeg": (with_frame(JPEG, 0xC3), "unsupported_format", "a lossless JPEG"),
    "half a jpeg": (JPEG[: len(JPEG) // 2], "truncated", "cut off"),
    "header of a jpeg": (JPEG[:300], "truncated", "cut off"),
    "jpeg without its end": (JPEG[:-2], "truncated", "cut off"),
    "jpeg with garbage for its end": (JPEG[:-2] + b"garbage", "truncated", "cut off"),
    "half a progressive jpeg": (encoded(picture(), progressive=True)[:-500], "truncated", "cut off"),
    "half a png": (PNG[: len(PNG) // 2], "truncated", "cut off"),
    "png without its end": (PNG[:-12], "truncated", "cut off"),
    "png with a flipped byte": (flipped(PNG, len(PNG) // 2), "damaged", "checksum of IDAT"),
    "png without pixels": (png(7, 5), "truncated", "cut off"),
    "half a gif": (GIF[: len(GIF) // 2], "truncated", "cut off"),
    "half a bmp": (bmp("RGB")[:999], "truncated", "cut off"),
    "half a webp": (encoded(picture(), "WEBP")[:-99], "damaged", "cannot be decoded"),
    "half a tiff": (encoded(picture(), "TIFF")[:999], "truncated", "cut off"),
    "tiff of floats": (encoded(picture().convert("F"), "TIFF"), "unsupported_format", "32-bit numbers"),
    "png of many pixels": (png(100_000, 100_000), "too_many_pixels", "100,000 x 100,000 pixels are more"),
    "gif of many pixels": (b"GIF89a\xff\xff\xff\xff\0\0\0;", "too_many_pixels", "65,535 x 65,535"),
}
# What is used, what is odd about it, and whether the graph needs a PNG in its place.
USABLE = {
    "ok.jpg": (JPEG, []),
    "ok.JPEG": (JPEG, []),
    "ok.png": (PNG, []),
    "ok.gif": (GIF, []),
    "ok.bmp": (bmp("RGB"), []),
    "ok.webp": (encoded(picture(), "WEBP"), [] if versions.decodes_webp() else ["converted"]),
    "with more behind.jpg": (JPEG + b"garbage" * 9, []),
    "turned.jpg": (encoded(picture(), exif=exif(6)), ["exif_rotated"]),
    "gray.jpg": (encoded(picture().convert("L")), ["gray"]),
    "progressive.jpg": (encoded(picture(), progressive=True), ["progressive"]),
    "cmyk.jpg": (encoded(picture().convert("CMYK")), ["cmyk"]),
    "deep.png": (encoded(sixteen_bits(), "PNG"), ["gray", "sixteen_bit"]),
    "palette.png": (encoded(picture().convert("P"), "PNG"), ["palette"]),
    "clear.png": (encoded(picture().convert("RGBA"), "PNG"), ["alpha"]),
    "moving.png": (photographs.animated("PNG"), ["animated"]),
    "moving.gif": (photographs.animated("GIF"), ["animated"]),
    "moving.webp": (photographs.animated("WEBP"), ["animated", "converted"]),
    "photo.tif": (encoded(picture(), "TIFF"), ["converted"]),
    "palette.bmp": (bmp("P"), ["palette", "converted"]),
    "clear.bmp": (bmp("RGBA"), ["alpha", "converted"]),
    "jpeg.png": (JPEG, ["wrong_extension"]),
    "png.jpg": (PNG, ["wrong_extension"]),
    "tiff.jpg": (encoded(picture(), "TIFF"), ["wrong_extension", "converted"]),
    "small.png": (encoded(picture(0, 15, 40), "PNG"), ["tiny"]),
    "long.png": (encoded(picture(0, 16, 330), "PNG"), ["tiny"]),
    "not so long.png": (encoded(picture(0, 16, 320), "PNG"), []),
    "point.jpg": (encoded(picture(0, 1, 1)), ["tiny"]),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_what_cannot_be_used_is_told_with_the_reason(case):
    content, kind, reason = UNUSABLE[case]
    look = photos.look(content, LIMIT)
    assert (look.kind, look.hash, look.converted) == (kind, None, None)
    assert reason in look.reason


@pytest.mark.parametrize("name", USABLE)
def test_what_can_be_used_is_used_and_what_is_odd_is_told(name):
    content, odd = USABLE[name]
    look = photos.look(content, LIMIT)
    assert (look.kind, look.reason) == ("", "")
    assert photos.oddities(look.header, name) == odd
    assert (look.converted is not None) == ("converted" in odd) == (not conversion.is_decodable(content))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_an_avif_is_converted():
    look = photos.look(encoded(picture(), "AVIF"), LIMIT)
    assert (look.kind, photos.oddities(look.header, "1.avif")) == ("", ["converted"])
    assert np.abs(pixels_of(look.converted) - pixels_of(PNG)).mean() < 8


def test_max_pixels_counts_before_anything_is_decoded():
    assert photos.look(JPEG, 120 * 90).kind == ""
    assert photos.look(JPEG, 120 * 90 - 1).kind == "too_many_pixels"
    huge = encoded(Image.new("1", (20_000, 20_000)), "PNG")
    assert photos.look(huge, LIMIT).kind == "too_many_pixels"
    assert photos.look(png(20_000, 20_000, 1, 0), 10**9).kind != "too_many_pixels"


def test_pixels_are_counted_again_where_the_header_did_not_tell():
    content = encoded(Image.new("L", (300, 300)), "TIFF")
    place = next(at for at in range(8, len(content)) if content[at : at + 4] == b"\x00\x01\x04\x00")
    signed = content[: place + 2] + b"\x09" + content[place + 3 :]  # A type of number that nobody uses here.
    assert sniffing.sniff(signed).width == 0
    assert photos.look(signed, 300 * 300).kind == ""
    assert photos.oddities(sniffing.sniff(signed), "1.tif") == ["gray", "converted"]
    assert photos.look(signed, 300 * 299).kind == "too_many_pixels"


# The verdicts on the files of the issue.

VERDICTS = {
    "bitflips_middle.jpg": "damaged",
    "empty.jpg": "empty",
    "header_only.jpg": "truncated",
    "html_error_page.jpg": "not_an_image",
    "huge_12000x12000_gray.jpg": "too_many_pixels",
    "no_eoi.jpg": "truncated",
    "one_byte.jpg": "not_an_image",
    "random_bytes.jpg": "not_an_image",
    "text.jpg": "not_an_image",
    "truncated_half.jpg": "truncated",
    "truncated_last_byte.jpg": "truncated",
}
WEBP = "" if versions.decodes_webp() else " converted"  # Older ones of TensorFlow do not decode it.
ODD = {
    "1x1.jpg": "tiny",
    "1x4000.jpg": "tiny",
    "4000x1.jpg": "tiny",
    "animated.gif": "animated",
    "animated.webp": "animated converted",
    "bmp_named.jpg": "wrong_extension",
    "cmyk.jpg": "cmyk",
    **{f"exif_orientation_{number}.jpg": "exif_rotated" for number in range(2, 9)},
    "gif_named.jpg": "animated wrong_extension",
    "gray.jpg": "gray",
    "jpeg_named.png": "wrong_extension",
    "photo.tif": "converted",
    "png_16bit_gray.png": "gray sixteen_bit",
    "png_1bit.png": "gray",
    "png_la.png": "gray alpha",
    "png_named.jpg": "alpha wrong_extension",
    "png_palette.png": "palette",
    "png_rgba.png": "alpha",
    "progressive.jpg": "progressive",
    "tiff_named.jpg": "wrong_extension converted",
    "webp_named.jpg": f"wrong_extension{WEBP}",
    **dict.fromkeys(["lossless.webp", "lossy.webp"] if WEBP else [], WEBP.strip()),
}
PLAIN = [
    "extension_jpeg.jpeg",
    "large_8000x6000.jpg",
    "name with spaces.jpg",
    *([] if WEBP else ["lossless.webp", "lossy.webp"]),
]
PLAIN += ["ok_baseline.jpg", "photo.bmp", "quality1.jpg", "subsampling_444.jpg", "trailing_garbage.jpg"]
PLAIN += ["unicode_ü_花.jpg", "upper_case.JPG"]


def test_every_file_of_the_collection_gets_the_right_verdict(real_data, tmp_path):
    channel = tmp_path / "photos"
    channel.mkdir()
    (channel / "broken").symlink_to(real_data / "broken-images" / "derived")
    write_files(channel, {"sound/1.jpg": JPEG})
    found = inspection.examine("image", {"training": channel}, Hyperparameters(), tmp_path / "scratch")
    assert {Path(one.id).name: one.kind for one in found.unusable} == VERDICTS
    odd: dict[str, list[str]] = {name: [] for name in PLAIN}
    for finding in found.findings:
        if finding.kind in photos.ODDITIES:
            for name in finding.examples:
                odd.setdefault(Path(name).name, []).append(finding.kind)
    used = {Path(example.id).name for example in found.parts["training"].items if example.id != "sound/1.jpg"}
    assert used == {*ODD, *PLAIN}  # Neither hidden files nor Thumbs.db.
    assert {name: " ".join(sorted(kinds)) for name, kinds in odd.items()} == {
        **{name: " ".join(sorted(kinds.split())) for name, kinds in ODD.items()},
        **dict.fromkeys(PLAIN, ""),
    }


# Conversion


def pixels_of(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", [name for name, (_, odd) in USABLE.items() if "converted" not in odd])
def test_what_the_graph_decodes_passes_as_it_is(name):
    content = USABLE[name][0]
    assert conversion.graph_ready(content, LIMIT) is content


@pytest.mark.parametrize("name", [name for name, (_, odd) in USABLE.items() if "converted" in odd])
def test_what_the_graph_does_not_decode_becomes_a_png_of_the_first_frame(name):
    content = USABLE[name][0]
    made = conversion.graph_ready(content, LIMIT)
    assert made.startswith(b"\x89PNG")
    assert conversion.is_decodable(made)
    assert made[24] == 8  # Bits: of fewer, TensorFlow takes the opacity wrongly.
    np.testing.assert_array_equal(pixels_of(made), pixels_of(content))


@pytest.mark.parametrize("case", [name for name, (_, kind, _) in UNUSABLE.items() if kind in ("empty", "not_an_image")])
def test_what_is_no_photo_is_refused_in_words(case):
    with pytest.raises(DataError, match="not a photo that can be decoded"):
        conversion.graph_ready(UNUSABLE[case][0], LIMIT)


def test_what_must_be_converted_and_cannot_be_is_refused_in_words():
    for case in ("heic", "jpeg of 12 bits", "half a tiff", "tiff of floats", "png of many pixels"):
        with pytest.raises(DataError, match="not a photo that can be decoded"):
            conversion.graph_ready(UNUSABLE[case][0], LIMIT)
    with pytest.raises(DataError, match="more than max_pixels, which is 100"):
        conversion.graph_ready(JPEG, 100)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_converted_photo_is_upright(orientation):
    tags = Image.Exif()
    tags[photographs.ORIENTATION] = orientation
    upright = picture(3, 40, 30)
    stored = conversion.upright(upright, {6: 8, 8: 6}.get(orientation, orientation))  # The way back.
    made = conversion.graph_ready(encoded(stored, "TIFF", exif=tags), LIMIT)
    np.testing.assert_array_equal(pixels_of(made), pixels_of(encoded(upright, "PNG")))


def test_a_converted_animation_is_upright():
    upright, other = picture(3, 40, 30), picture(4, 40, 30)
    stored = [conversion.upright(image, 8) for image in (upright, other)]
    options = {"save_all": True, "append_images": stored[1:], "lossless": True, "exif": exif(6)}
    made = conversion.graph_ready(encoded(stored[0], "WEBP", **options), LIMIT)
    np.testing.assert_array_equal(pixels_of(made), pixels_of(encoded(upright, "PNG")))


def test_what_the_graph_gets_wrong_is_not_for_it():
    for content in (with_frame(JPEG, bits=12), with_frame(JPEG, 0xC9), GIF[:-1], bmp("RGB") + b"x", b"", b"text"):
        assert not conversion.is_decodable(content)
    assert conversion.graph_ready(GIF[:-1], LIMIT).startswith(b"\x89PNG")
    assert conversion.graph_ready(bmp("RGB") + b"x", LIMIT).startswith(b"\x89PNG")


def test_sixteen_bits_stay_sixteen_bits_in_a_conversion():
    deep = sixteen_bits()
    made = conversion.graph_ready(encoded(deep, "TIFF"), LIMIT)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made))), np.asarray(deep))
    assert made[24] == 16


def test_a_gif_of_more_frames_than_memory_is_not_for_the_graph():
    assert conversion.decodable(Header("gif", 1000, 1000, "palette", coding="plain", frames=268))
    assert not conversion.decodable(Header("gif", 1000, 1000, "palette", coding="plain", frames=269))


def test_photos_may_be_looked_at_by_many_threads_without_a_warning_or_a_changed_filter():
    before = list(warnings.filters)
    content = encoded(picture(), "TIFF")
    cut = content[:-20] + b"\xff" * 20

    def look() -> None:
        for _ in range(20):
            with decoding.quietly():
                photos.look(cut, LIMIT)
                warnings.warn("heard", stacklevel=1)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        inside = list(warnings.filters)
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == inside
    assert warned == []
    assert warnings.filters == before


def test_large_photos_take_turns(monkeypatch):
    monkeypatch.setattr(decoding, "LARGE", 100)
    at_once, most, lock = [], [], threading.Lock()
    real = decoding.first_frame

    def counted(*arguments):
        with lock:
            at_once.append(1)
            most.append(len(at_once))
        try:
            return real(*arguments)
        finally:
            with lock:
                at_once.pop()

    monkeypatch.setattr(decoding, "first_frame", counted)
    threads = [threading.Thread(target=photos.look, args=(PNG, LIMIT)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1


# Whole channels


def channel_of(folder: Path, files: dict[str, bytes] | None = None, per_class: int = 12) -> Path:
    """Writes different pictures of two classes, a and b, and further files; each class has enough."""
    for label, name in enumerate("ab"):
        pictures = {
            f"{name}/{number}.png": encoded(picture(100 * label + number), "PNG") for number in range(per_class)
        }
        write_files(folder, pictures)
    return write_files(folder, files or {})


def examined(folder: Path, scratch: Path | None = None, others: dict[str, Path] | None = None, **given):
    scratch = scratch or folder.parent / "scratch"
    return inspection.examine("image", {"training": folder, **(others or {})}, Hyperparameters(**given), scratch)


def kinds_of(found) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns kind -> severity and examples; each kind there is once."""
    assert len({finding.kind for finding in found.findings}) == len(found.findings)
    return {finding.kind: (finding.severity, finding.examples) for finding in found.findings}


def test_sound_photos_give_no_finding_and_the_examples_that_reading_gives(tmp_path):
    from tf_finetune.examples import folders

    channel = channel_of(tmp_path / "photos")
    found = examined(channel)
    assert (found.findings, found.unusable, found.groups) == ((), (), {})
    assert found.parts["training"] == folders.read(channel)
    assert found.read == {"training": 24}
    assert not (tmp_path / "scratch").exists()


def test_each_file_is_read_once(tmp_path, monkeypatch):
    channel, reads = channel_of(tmp_path / "photos", {"a/x.tif": USABLE["photo.tif"][0]}), []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path), real(path))[1])
    examined(channel)
    assert len(reads) == len(set(reads)) == 25


def test_what_cannot_be_used_is_left_out_and_listed_with_its_class(tmp_path):
    channel = channel_of(tmp_path / "photos", {"a/x/bad.jpg": b"", "b/page.jpg": b"<html>"})
    (channel / "b" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    found = examined(channel)
    assert {(one.channel, one.id, one.label, one.kind) for one in found.unusable} == {
        ("training", "a/x/bad.jpg", "a", "empty"),
        ("training", "b/page.jpg", "b", "not_an_image"),
        ("training", "b/gone.jpg", "b", "unreadable"),
    }
    assert (len(found.parts["training"]), found.read) == (24, {"training": 27})
    assert kinds_of(found)["empty"] == (ERROR, ("training/a/x/bad.jpg",))
    assert {finding.severity for finding in found.findings} == {ERROR}


def test_a_pipe_is_not_opened_and_a_file_too_large_not_read(tmp_path, monkeypatch):
    channel = channel_of(tmp_path / "photos")
    os.mkfifo(channel / "a" / "pipe.jpg")
    with (channel / "b" / "large.jpg").open("wb") as stream:
        stream.truncate(photo_channels.MAX_BYTES + 1)
    found = examined(channel)
    assert {(one.id, one.kind) for one in found.unusable} == {
        ("a/pipe.jpg", "unreadable"),
        ("b/large.jpg", "too_large"),
    }


def test_phones_formats_are_found_by_their_names_and_told(tmp_path):
    channel = channel_of(tmp_path / "photos", {"a/1.HEIC": UNUSABLE["heic"][0], "a/2.heif": JPEG})
    found = examined(channel)
    assert [(one.id, one.kind) for one in found.unusable] == [("a/1.HEIC", "unsupported_format")]
    assert kinds_of(found)["wrong_extension"] == (NOTE, ("training/a/2.heif",))


def test_converted_photos_lie_in_the_scratch_folder_and_keep_their_digest(tmp_path):
    content = USABLE["photo.tif"][0]
    channel = channel_of(tmp_path / "photos", {"a/x.tif": content, "a/y.jpg": content, "b/x.tif": content})
    found = examined(channel, tmp_path / "scratch")
    made = [example for example in found.parts["training"].items if example.content.parent == tmp_path / "scratch"]
    assert sorted(example.id for example in made) == ["a/x.tif", "a/y.jpg", "b/x.tif"]
    assert {example.digest for example in made} == {hashlib.sha256(content).hexdigest()}
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    np.testing.assert_array_equal(pixels_of(made[0].content.read_bytes()), pixels_of(content))


def test_oddities_are_notes_and_tiny_ones_a_warning(tmp_path):
    files = {f"a/{name}": content for name, (content, odd) in USABLE.items() if odd}
    found = kinds_of(examined(channel_of(tmp_path / "photos", files)))
    severities = {kind: found[kind][0] for kind in photos.ODDITIES}
    assert severities == {kind: WARNING if kind == "tiny" else NOTE for kind in photos.ODDITIES}
    for kind in photos.ODDITIES:
        assert found[kind][1] == tuple(
            sorted((f"training/a/{name}" for name, (_, odd) in USABLE.items() if kind in odd), key=findings.natural)
        )


def test_errors_come_first_then_warnings_then_notes(tmp_path):
    files = {"a/gray.jpg": USABLE["gray.jpg"][0], "a/bad.jpg": b"", "b/0 again.png": encoded(picture(100), "PNG")}
    assert [finding.severity for finding in examined(channel_of(tmp_path / "photos", files)).findings] == [
        ERROR, WARNING, NOTE
    ]  # fmt: skip


# Copies, conflicts and leaks


def test_copies_within_a_class_are_told(tmp_path):
    first = encoded(picture(0), "PNG")
    found = examined(channel_of(tmp_path / "photos", {"a/again.png": first, "a/smaller.jpg": encoded(picture(0))}))
    kinds = kinds_of(found)
    assert kinds["exact_duplicate"] == (WARNING, ("training/a/0.png", "training/a/again.png"))
    assert kinds["near_duplicate"] == (WARNING, ("training/a/0.png", "training/a/again.png", "training/a/smaller.jpg"))
    digests = {hashlib.sha256(content).hexdigest() for content in (first, encoded(picture(0)))}
    assert found.groups == dict.fromkeys(digests, min(digests))
    assert set(kinds) == {"exact_duplicate", "near_duplicate"}


@pytest.mark.parametrize(("content", "words"), [(encoded(picture(0), "PNG"), "1 exactly"), (JPEG, "1 nearly")])
def test_a_photo_in_two_classes_is_a_conflict(tmp_path, content, words):
    found = examined(channel_of(tmp_path / "photos", {"b/other.png": content}))
    assert kinds_of(found)["label_conflict"] == (WARNING, ("training/a/0.png", "training/b/other.png"))
    (finding,) = [finding for finding in found.findings if finding.kind == "label_conflict"]
    assert words in finding.detail


def test_validation_and_test_photos_that_are_in_training_are_a_leak(tmp_path):
    validation = write_files(
        tmp_path / "validation",
        {
            "a/same.png": encoded(picture(0), "PNG"),
            "b/near.jpg": encoded(picture(100)),
            "a/new.png": encoded(picture(7777), "PNG"),
        },
    )
    test = write_files(tmp_path / "test", {"b/new.png": encoded(picture(8888), "PNG")})
    found = examined(channel_of(tmp_path / "photos"), None, {"validation": validation, "test": test})
    nearly = examined(channel_of(tmp_path / "more", {"a/0.jpg": encoded(picture(0))}), None, {"validation": validation})
    (leak,) = [finding for finding in nearly.findings if finding.kind == "leak"]
    assert "1 exactly and 1 nearly" in leak.detail  # What is there exactly is not counted as a near one too.
    assert kinds_of(found)["leak"] == (WARNING, ("validation/a/same.png", "validation/b/near.jpg"))
    assert set(kinds_of(found)) == {"leak"}
    (finding,) = found.findings
    assert "2 of 3 photos of validation are also in training, 1 exactly and 1 nearly" in finding.detail
    assert found.read == {"training": 24, "validation": 3, "test": 1}
    assert found.parts["test"].class_names == ("a", "b")


def test_the_same_photo_twice_in_validation_counts_there(tmp_path):
    twice = encoded(picture(5555), "PNG")
    validation = write_files(tmp_path / "validation", {"a/1.png": twice, "a/2.png": twice})
    found = kinds_of(examined(channel_of(tmp_path / "photos"), None, {"validation": validation}))
    assert found == {"exact_duplicate": (WARNING, ("validation/a/1.png", "validation/a/2.png"))}


# Classes


def counts_of(*sizes: int, names=None):
    from tf_finetune.examples import Example, Examples

    names = names or tuple(f"c{label}" for label in range(len(sizes)))
    items = [
        Example(f"{label}/{n}", label, "", f"{label}-{n}") for label, size in enumerate(sizes) for n in range(size)
    ]
    return [finding.kind for finding in findings.of_classes(Examples(tuple(names), tuple(items)))]


@pytest.mark.parametrize(
    ("sizes", "kinds"),
    [((10, 10), []), ((100, 10), []), ((101, 10), ["imbalance"]), ((9, 10), ["few_examples"])]
    + [((1000, 9), ["imbalance", "few_examples"]), ((5, 0), ["imbalance", "few_examples"])],
)
def test_small_classes_are_told(sizes, kinds):
    assert counts_of(*sizes) == kinds


@pytest.mark.parametrize(
    "names",
    [
        ("Rose", "rose"),
        ("red rose", "red_rose"),
        ("red-rose", "redrose"),
        ("rose ", "rose"),
        ("é", "e\u0301"),
        ("ﬁr", "fir"),
    ],
)
def test_class_names_that_differ_in_spelling_only_are_told(names):
    assert counts_of(20, 20, names=names) == ["similar_class_names"]
    assert counts_of(20, 20, names=(names[0], "tulip")) == []


# What stops a job


def inspected(folder: Path, **given):
    return inspection.inspect("image", {"training": folder}, Hyperparameters(**given), folder.parent / "scratch")


def test_a_share_of_bad_photos_is_left_out_and_more_stops_with_the_list(tmp_path):
    channel = channel_of(tmp_path / "photos", {"a/x0.jpg": b"", "a/x1.jpg": b""})
    assert len(inspected(channel).unusable) == 2  # Of 26.
    write_files(channel, {f"a/x{number}.jpg": b"" for number in range(7)})
    with pytest.raises(DataError) as caught:
        inspected(channel)
    message = str(caught.value)
    for part in (
        "7 of 31 examples of training",
        "max_bad_fraction=0.1",
        "training/a/x0.jpg (the file is empty)",
        "and 2 more",
    ):
        assert part in message
    assert len(message) < MESSAGE_LIMIT
    assert len(inspected(channel, max_bad_fraction=7 / 31).parts["training"]) == 24
    assert len(examined(channel).unusable) == 7  # `check` lists them however many they are.


def test_on_bad_data_fail_stops_at_the_first_and_lists_all(tmp_path):
    channel = channel_of(tmp_path / "photos", {"a/x.jpg": b""})
    with pytest.raises(DataError, match=r"1 of 25 examples cannot be used: training/a/x\.jpg \(the file is empty\)\."):
        inspected(channel, on_bad_data="fail", max_bad_fraction=1.0)
    (channel / "a" / "x.jpg").unlink()
    assert len(inspected(channel, on_bad_data="fail").parts["training"]) == 24


def test_a_class_without_a_usable_photo_stops_the_job(tmp_path):
    channel = channel_of(tmp_path / "photos", {"c/1.jpg": b"", "c/2.jpg": b"none"})
    with pytest.raises(DataError, match="1 class of training without an example that can be used: c"):
        inspected(channel)
    assert len(examined(channel).unusable) == 2


def test_bad_photos_of_each_channel_count_by_themselves(tmp_path):
    channel = channel_of(tmp_path / "photos")
    validation = write_files(tmp_path / "validation", {"a/1.jpg": b"", "b/2.png": encoded(picture(999), "PNG")})
    with pytest.raises(DataError, match="1 of 2 examples of validation cannot be used"):
        channels = {"training": channel, "validation": validation}
        inspection.inspect("image", channels, Hyperparameters(), tmp_path / "scratch")


# Groups of names


@pytest.mark.parametrize(
    ("pattern", "groups"),
    [
        (r"p\d", {"a/p1-x.png": "p1", "b/p2-y.png": "p2", "b/none.png": ""}),
        (r"p(\d)", {"a/p1-x.png": "1", "b/p2-y.png": "2", "b/none.png": ""}),
        (r"^(a)?", {"a/p1-x.png": "a", "b/p2-y.png": "", "b/none.png": ""}),
        (None, {"a/p1-x.png": "", "b/p2-y.png": "", "b/none.png": ""}),
    ],
)
def test_group_by_names_the_group_of_a_photo(tmp_path, pattern, groups):
    files = {name: encoded(picture(number), "PNG") for number, name in enumerate(groups)}
    found = examined(write_files(tmp_path / "photos", files), group_by=pattern)
    assert {example.id: example.group for example in found.parts["training"].items} == groups


@pytest.mark.parametrize("pattern", ["(", "[", "*", "(?P<a>x)(?P<a>y)"])
def test_a_group_by_that_is_no_regular_expression_is_refused(tmp_path, pattern):
    with pytest.raises(HyperparameterError, match="group_by: expected a regular expression"):
        examined(channel_of(tmp_path / "photos", per_class=1), group_by=pattern)


def test_a_group_that_is_in_training_and_in_validation_is_told(tmp_path):
    channel = channel_of(tmp_path / "photos", {"a/p1-1.png": encoded(picture(901), "PNG")})
    validation = write_files(tmp_path / "validation", {"a/p1-2.png": encoded(picture(902), "PNG")})
    found = examined(channel, None, {"validation": validation}, group_by=r"p\d")
    assert kinds_of(found) == {"group_leak": (WARNING, ("validation/a/p1-2.png",))}


# quarantine.csv


def test_quarantine_lists_each_once_and_is_no_formula(tmp_path):
    one = Unusable("training", "=cmd()/1.jpg", "=cmd()", "empty", "the file is empty")
    other = Unusable("test", os.fsdecode(b"a/\xff.jpg"), "a", "damaged", 'it says "no", twice')
    quarantine.write(tmp_path / "q.csv", [one, other, one])
    quarantine.add(tmp_path / "q.csv", [dataclasses.replace(other, channel="validation")])
    with (tmp_path / "q.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["channel", "id", "label", "kind", "reason"],
        ["training", "'=cmd()/1.jpg", "'=cmd()", "empty", "the file is empty"],
        ["test", "a/\\udcff.jpg", "a", "damaged", 'it says "no", twice'],
        ["validation", "a/\\udcff.jpg", "a", "damaged", 'it says "no", twice'],
    ]


# Any bytes at all

pytest.importorskip("hypothesis", reason="hypothesis is not installed; it is part of the dev extra")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

SEEDS = [content for content, *_ in (*UNUSABLE.values(), *USABLE.values()) if len(content) < 100_000]


@st.composite
def mutants(draw) -> bytes:
    """Draws the bytes of a photo, cut, with bytes changed, and with bytes put in."""
    content = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        if content:
            place = draw(st.one_of(st.integers(0, min(len(content), 64) - 1), st.integers(0, len(content) - 1)))
            content[place] = draw(st.integers(0, 255))
    place = draw(st.integers(0, len(content)))
    change = draw(st.sampled_from(["none", "cut", "put in", "take out"]))
    if change == "cut":
        del content[place:]
    elif change == "put in":
        content[place:place] = draw(st.binary(max_size=20))
    elif change == "take out":
        del content[place : place + draw(st.integers(1, 20))]
    return bytes(content)


def look_at_anything(content: bytes) -> None:
    header = sniffing.sniff(content)
    assert header is None or header.width >= 0 and 1 <= header.orientation <= 8 and header.frames >= 1
    assert sniffing.looks_like(content)[0]
    with decoding.quietly():
        look = photos.look(content, 10**6)
    assert bool(look.kind) == bool(look.reason)
    assert look.converted is None or conversion.is_decodable(look.converted)
    try:
        ready = conversion.graph_ready(content, 10**6)
    except DataError:
        assert look.kind
    else:
        assert conversion.is_decodable(ready)


@pytest.mark.parametrize(
    "count", [pytest.param(200, id="brief"), pytest.param(10_000, id="long", marks=pytest.mark.soak)]
)
def test_any_bytes_get_a_verdict(count):
    options = {"max_examples": count, "deadline": None, "database": None, "derandomize": count == 200}
    fuzzed = settings(**options, suppress_health_check=list(HealthCheck))
    fuzzed(given(st.one_of(mutants(), st.binary(max_size=200)))(look_at_anything))()


def test_inspecting_photos_needs_no_tensorflow(tmp_path):
    import subprocess

    channel = channel_of(tmp_path / "photos", {"a/x.tif": USABLE["photo.tif"][0]}, per_class=1)
    program = (
        "import pathlib, sys\n"
        "from tf_finetune import inspection\n"
        "from tf_finetune.hyperparameters import Hyperparameters\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "inspection.inspect('image', {'training': place}, Hyperparameters(), place.parent / 'scratch')\n"
        "print(sorted({'tensorflow', 'keras', 'pandas', 'scipy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(channel)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(inspection.__file__).parents[2])
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_files_of_other_names_are_found_whether_or_not_they_are_photos(tmp_path):
    files = {
        f"{label}/{number}.jpg": encoded(picture(seed=10 * label + number)) for label in (1, 2) for number in (1, 2)
    }
    write_files(tmp_path, {**files, "1/photo": JPEG, "2/deep/photo.tmp": PNG, "1/notes.txt": b"roses", "2/empty": b""})
    found = inspection.examine("image", {"training": tmp_path}, Hyperparameters(), tmp_path / "scratch")
    told = {finding.kind: finding for finding in found.findings}
    assert (told["unknown_extension"].severity, told["other_file"].severity) == (WARNING, NOTE)
    assert told["unknown_extension"].examples == ("training/1/photo", "training/2/deep/photo.tmp")
    assert told["other_file"].examples == ("training/1/notes.txt", "training/2/empty")
    assert len(found.parts["training"]) == 4
