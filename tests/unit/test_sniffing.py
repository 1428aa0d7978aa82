"""What a photo's first bytes say, whatever its name: format, size, colours, coding, orientation, animation."""

from __future__ import annotations

import struct

import pytest
from PIL import Image, features

from tests import photographs
from tests.photographs import encoded, exif, picture, png, tagged, with_frame
from tf_finetune.inspection import sniffing
from tf_finetune.inspection.records import Header

JPEG = encoded(picture())
HAS_AVIF = features.check("avif") is True

HEADERS = {
    "jpeg": (JPEG, Header("jpeg", 120, 90, coding="baseline")),
    "jpeg after filling bytes": (JPEG[:2] + b"\xff\xff" + JPEG[2:], Header("jpeg", 120, 90, coding="baseline")),
    "gray jpeg": (encoded(picture().convert("L")), Header("jpeg", 120, 90, "gray", coding="baseline")),
    "cmyk jpeg": (encoded(picture().convert("CMYK")), Header("jpeg", 120, 90, "cmyk", coding="baseline")),
    "progressive jpeg": (encoded(picture(), progressive=True), Header("jpeg", 120, 90, coding="progressive")),
    "jpeg of 12 bits": (with_frame(JPEG, bits=12), Header("jpeg", 120, 90, bits=12, coding="baseline")),
    "arithmetic jpeg": (with_frame(JPEG, 0xC9), Header("jpeg", 120, 90, coding="arithmetic")),
    "lossless jpeg": (with_frame(JPEG, 0xC3), Header("jpeg", 120, 90, coding="lossless")),
    "png": (png(7, 5), Header("png", 7, 5)),
    "gray png": (png(7, 5, 8, 0), Header("png", 7, 5, "gray")),
    "png of 16 bits": (png(7, 5, 16, 0), Header("png", 7, 5, "gray", bits=16)),
    "palette png": (png(7, 5, 4, 3), Header("png", 7, 5, "palette", bits=4)),
    "png with alpha": (png(7, 5, 8, 6), Header("png", 7, 5, has_alpha=True)),
    "gray png with alpha": (png(7, 5, 8, 4), Header("png", 7, 5, "gray", has_alpha=True)),
    "png with a clear colour": (
        png(7, 5, 8, 3, photographs.chunk(b"tRNS", b"\0")),
        Header("png", 7, 5, "palette", True),
    ),
    "animated png": (photographs.animated("PNG"), Header("png", 40, 40, frames=2)),
    "gif": (encoded(picture(), "GIF"), Header("gif", 120, 90, "palette", coding="plain")),
    "animated gif": (photographs.animated("GIF"), Header("gif", 40, 40, "palette", True, coding="plain", frames=3)),
    "bmp": (photographs.bmp("RGB"), Header("bmp", 120, 90, coding="plain")),
    "bmp with more behind it": (photographs.bmp("RGB") + b"x", Header("bmp", 120, 90, coding="other")),
    "palette bmp": (photographs.bmp("P"), Header("bmp", 120, 90, "palette", coding="other")),
    "bmp of 32 bits": (photographs.bmp("RGBA"), Header("bmp", 120, 90, "rgb", True, coding="other")),
    "webp": (encoded(picture(), "WEBP"), Header("webp", 120, 90)),
    "lossless webp": (encoded(picture(), "WEBP", lossless=True), Header("webp", 120, 90)),
    "lossless webp with alpha": (
        encoded(picture().convert("RGBA").rotate(5), "WEBP", lossless=True),
        Header("webp", 120, 90, has_alpha=True),
    ),
    "webp with alpha": (encoded(picture().convert("RGBA").rotate(5), "WEBP"), Header("webp", 120, 90, has_alpha=True)),
    "tiff": (encoded(picture(), "TIFF"), Header("tiff", 120, 90)),
    "gray tiff": (encoded(picture().convert("L"), "TIFF"), Header("tiff", 120, 90, "gray")),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_says_what_the_photo_is(case):
    content, expected = HEADERS[case]
    assert sniffing.sniff(content) == expected


def test_an_animated_webp_is_told_from_a_still_one():
    header = sniffing.sniff(photographs.animated("WEBP"))
    assert (header.format, header.width, header.height, header.frames) == ("webp", 40, 40, 2)


@pytest.mark.skipif(not HAS_AVIF, reason="this Pillow has no AVIF")
def test_an_avif_is_known_with_its_size():
    header = sniffing.sniff(encoded(picture(), "AVIF"))
    assert (header.format, header.width, header.height, header.frames) == ("avif", 120, 90, 1)


def test_a_phones_heif_is_known_by_its_brand():
    brands = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    size = b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 4032, 3024)
    thumbnail = b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", 320, 240)
    header = sniffing.sniff(brands + thumbnail + size)
    assert (header.format, header.width, header.height) == ("heif", 4032, 3024)


def test_a_gif_whose_first_frame_does_not_fill_it_or_that_has_no_end_is_not_plain():
    whole = encoded(picture(), "GIF")
    wider = whole[:6] + struct.pack("<H", 200) + whole[8:]
    assert sniffing.sniff(wider) == Header("gif", 200, 90, "palette", coding="other")
    narrower = whole[:6] + struct.pack("<H", 50) + whole[8:]
    assert sniffing.sniff(narrower) == Header("gif", 120, 90, "palette", coding="other")  # What it unpacks to counts.
    assert sniffing.sniff(whole[:-1]).coding == "other"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_jpeg_is_read_in_either_byte_order(orientation):
    assert sniffing.sniff(encoded(picture(), exif=exif(orientation))).orientation == orientation
    for order in "<>":
        start = b"II*\0" if order == "<" else b"MM\0*"
        other = struct.pack(order + "HHIHH", 0x0100, 3, 1, 7, 0)
        entry = struct.pack(order + "HHIHH", photographs.ORIENTATION, 3, 1, orientation, 0)
        block = b"Exif\0\0" + start + struct.pack(order + "IH", 8, 2) + other + entry + bytes(4)
        assert sniffing.sniff(tagged(JPEG, block)).orientation == orientation


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\x7f",
        b"Exif\0\0XX*\0" + bytes(40),
        b"http://ns.adobe.com/xap/1.0/\0II*\0\x08\0\0\0",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(12),
        b"Exif\0\0II*\0" + struct.pack("<IHHHIHH", 8, 1, photographs.ORIENTATION, 3, 1, 9, 0) + bytes(4),
        b"Exif\0\0II*\0" + struct.pack("<IHHHIHH", 8, 1, photographs.ORIENTATION, 3, 1, 0, 0) + bytes(4),
    ],
    ids=["empty", "bare", "far", "order", "xmp", "many", "nine", "zero"],
)
def test_a_broken_orientation_counts_as_none(block):
    header = sniffing.sniff(tagged(JPEG, block))
    assert (header.orientation, header.width) == (1, 120)


def test_exif_behind_another_block_is_found():
    twice = tagged(encoded(picture(), exif=exif(6)), b"http://ns.adobe.com/xap/1.0/\0<x/>")
    assert sniffing.sniff(twice).orientation == 6


def test_the_first_exif_counts_as_in_the_graph():
    for first, second, seen in [(6, 3, 6), (1, 6, 1)]:
        assert sniffing.sniff(tagged(encoded(picture(), exif=exif(second)), exif(first))).orientation == seen


def test_the_first_of_two_orientations_counts_as_in_the_graph():
    entries = [struct.pack("<HHIHH", photographs.ORIENTATION, 3, 1, value, 0) for value in (8, 3)]
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(entries) + bytes(4)
    assert sniffing.sniff(tagged(JPEG, block)).orientation == 8


def test_a_directory_of_exif_that_is_cut_off_is_read_as_far_as_it_goes():
    entry = struct.pack("<HHIHH", photographs.ORIENTATION, 3, 1, 8, 0)
    block = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 9) + entry + struct.pack("<HHI", 0x0100, 3, 1)
    assert sniffing.sniff(tagged(JPEG, block)).orientation == 8


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_are_cut_off_are_still_of_their_format(case):
    content, expected = HEADERS[case]
    for length in (30, 60, 150):
        header = sniffing.sniff(content[:length])
        assert header is None or header.format == expected.format
    assert sniffing.sniff(content[:30]).format == expected.format


@pytest.mark.parametrize(
    ("content", "what", "is_photo"),
    [
        (b"<!DOCTYPE html><html>", "an HTML page", False),
        (b"\xef\xbb\xbf \n<HTML><head>", "an HTML page", False),
        (b"<?xml version='1.0'?><a/>", "XML", False),
        (b"<?xml version='1.0'?><svg xmlns='x'/>", "SVG", True),
        (b"<svg width='1'/>", "SVG", True),
        (b"not a photo", "text", False),
        ("größer".encode() * 2000, "text", False),
        (b"%PDF-1.4", "a PDF", False),
        (b"PK\x03\x04rest", "a ZIP archive", False),
        (b"\0" * 100, "zeros only", False),
        (b"\0\x05\x16\x07" + bytes(80), "macOS metadata", False),
        (b"\0\0\0\x18ftypmp42rest", "a video", False),
        (b"8BPS\0\1", "Photoshop", True),
        (b"\0\0\0\x0cjP  \r\n", "JPEG 2000", True),
        (b"\xff\x0a\x00", "JPEG XL", True),
        (b"\x07\x9a\x01\xfe" * 9, "nothing known", False),
        (b"\xe9t\xe9" * 9, "nothing known", False),
    ],
)
def test_what_is_no_photo_is_called_by_what_it_looks_like(content, what, is_photo):
    assert sniffing.sniff(content) is None
    assert sniffing.looks_like(content) == (what, is_photo)


def test_the_end_of_a_jpeg_is_looked_for_behind_its_thumbnail():
    small = encoded(picture().resize((16, 16)))
    whole = tagged(JPEG, b"Exif\0\0" + small)
    assert sniffing.has_end(whole)
    assert sniffing.has_end(whole + b"more")
    assert not sniffing.has_end(whole[:-2] + b"behind")


def test_pillow_agrees_on_the_sizes():
    import io

    for content, header in HEADERS.values():
        if header.format in ("png", "gif") and len(content) < 200 or header.bits == 12 or header.coding == "arithmetic":
            continue  # Made without pixels, or altered.
        if header.coding != "lossless":
            assert Image.open(io.BytesIO(content)).size == (header.width, header.height)
