"""Pixels mean the same everywhere: orientation, transparency, CMYK, gray and 16 bits, in training and in the graph."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_finetune import images, versions
from tf_finetune.images import decoding, orientation
from tf_finetune.inspection import conversion

PLAIN = images.Preprocessing(32, (0.0, 255.0), "bilinear")
STORED = {  # What a camera stores for a picture that is to be seen upright, by orientation.
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(width: int = 96, height: int = 64) -> Image.Image:
    """Returns a picture without any symmetry: colours change to the right and down, with a bright corner."""
    right, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 120, height))
    pixels = np.stack([right, down, np.full_like(right, 60)], axis=2).astype(np.uint8)
    pixels[: height // 4, : width // 4] = 250
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "JPEG", **given) -> bytes:
    made = io.BytesIO()
    image.save(made, kind, **given)
    return made.getvalue()


def noted(number: int, kind: int = 3, order: str = "<", padding: int = 0) -> bytes:
    """Returns EXIF data that notes an orientation, after some other entries."""
    value = struct.pack(f"{order}H", number) + b"\0\0" if kind == 3 else struct.pack(f"{order}I", number)
    entries = [struct.pack(f"{order}HHI", 0x010F, 3, 1) + struct.pack(f"{order}H", 77) + b"\0\0"] * 2
    entries.append(struct.pack(f"{order}HHI", 0x0112, kind, 1) + value)
    start = struct.pack(f"{order}HI", 42, 8 + padding)
    table = struct.pack(f"{order}H", len(entries)) + b"".join(entries) + b"\0\0\0\0"
    return b"Exif\0\0" + (b"II" if order == "<" else b"MM") + start + b"\0" * padding + table


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def stored(number: int, width: int = 96, height: int = 64) -> bytes:
    way = STORED[number]
    seen = picture(width, height)
    jpeg = encoded(seen if way is None else seen.transpose(way), quality=95, subsampling=0)
    return with_segments(jpeg, segment(0xE1, noted(number)))


def prepared(content: bytes, preprocessing: images.Preprocessing = PLAIN, scaled: bool = False) -> np.ndarray:
    return images.prepare(tf.constant(content), preprocessing, scaled).numpy()


def oriented(content: bytes) -> int:
    return int(orientation.of_photo(tf.constant(content)))


@pytest.mark.parametrize("scaled", [False, True], ids=["in full", "scaled"])
@pytest.mark.parametrize(("width", "height"), [(96, 64), (352, 240)], ids=["small", "large"])
@pytest.mark.parametrize("number", range(2, 9))
def test_the_eight_orientations_of_a_photo_are_the_same_pixels(number, width, height, scaled):
    upright = prepared(stored(1, width, height), scaled=scaled)
    difference = np.abs(prepared(stored(number, width, height), scaled=scaled) - upright)
    assert difference.mean() < 1
    assert difference.max() < 12
    assert np.abs(prepared(stored(number, width, height).replace(b"Exif\0\0", b"xxxx\0\0")) - upright).mean() > 15


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4], ids=["short", "long"])
def test_either_order_of_bytes_and_either_kind_of_number_is_read(order, kind):
    for number in range(1, 9):
        jpeg = with_segments(encoded(picture()), segment(0xE1, noted(number, kind, order, padding=6)))
        assert oriented(jpeg) == number


def test_what_comes_before_is_passed_over():
    other = [segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000)), segment(0xFE, b"a comment \xff\xe1"), b"\xff\xff"]
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + bytes(40))
    assert oriented(with_segments(encoded(picture()), *other, xmp, segment(0xE1, noted(6)))) == 6
    assert oriented(with_segments(encoded(picture()), segment(0xE1, noted(6)), segment(0xE1, noted(3)))) == 6


EXIF = noted(6)
BROKEN = {
    "no entries": EXIF[:14] + b"\0\0",
    "an order of bytes that is none": EXIF.replace(b"II*", b"IX*"),
    "a start beyond the end": EXIF[:10] + b"\xff\xff\0\0" + EXIF[14:],
    "a negative start": EXIF[:10] + b"\xff\xff\xff\xff" + EXIF[14:],
    "more entries than there are": EXIF[:14] + b"\xff\xff" + bytes(30),
    "cut in the entry": EXIF[:-8],
    "nothing": b"Exif\0\0",
    "orientation 0": noted(0),
    "orientation 9": noted(9),
    "orientation 2**31": noted(2**31, kind=4),
    "a text": EXIF.replace(b"\x12\x01\x03", b"\x12\x01\x02"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_exif_that_makes_no_sense_turns_nothing(name):
    jpeg = with_segments(encoded(picture()), segment(0xE1, BROKEN[name]))
    assert oriented(jpeg) == 1
    np.testing.assert_array_equal(prepared(jpeg), prepared(encoded(picture())))


def test_headers_that_are_cut_off_anywhere_turn_nothing_and_fail_nowhere():
    jpeg = with_segments(encoded(picture()), segment(0xE0, b"JFIF\0" + bytes(9)), segment(0xE1, noted(6)))
    for length in range(3, jpeg.index(noted(6)) + len(noted(6)) - 8):
        assert oriented(jpeg[:length]) == 1


def test_other_formats_are_not_looked_into():
    for content in (encoded(picture(), "PNG"), encoded(picture(), "WEBP"), b"", b"\xff", EXIF):
        assert oriented(content) == 1


def pixels_of(content: bytes) -> np.ndarray:
    return decoding.decoded(tf.constant(content)).numpy().astype(int)


def as_graph_gets_it(content: bytes) -> bytes:
    """Returns a photo as TensorFlow gets it from this package: before 2.20 a WebP is a PNG by then."""
    return conversion.graph_ready(content, 10**6)


def on_white(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")).astype(int)


def transparent() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.fromarray(np.linspace(0, 255, 96 * 64).reshape(64, 96).astype(np.uint8)))
    return image


def palette() -> bytes:
    image = picture().quantize(16)
    return encoded(image, "PNG", transparency=0)


TRANSPARENT = {
    "PNG": lambda: encoded(transparent(), "PNG"),
    "PNG, gray": lambda: encoded(transparent().convert("LA"), "PNG"),
    "PNG, palette": palette,
    "WebP, lossy": lambda: encoded(transparent(), "WEBP"),
    "WebP, lossless": lambda: encoded(transparent(), "WEBP", lossless=True),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_seen_on_white(name):
    content = TRANSPARENT[name]()
    pixels = pixels_of(as_graph_gets_it(content))
    assert np.abs(pixels - on_white(content)).max() <= 2
    assert np.abs(pixels - np.array(picture())).mean() > 3


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "GIF"])
def test_what_is_opaque_stays_as_it_is(kind):
    content = encoded(picture(), kind)
    expected = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    np.testing.assert_array_equal(pixels_of(as_graph_gets_it(content)), expected)
    opaque = encoded(picture().convert("RGBA"), "PNG")
    np.testing.assert_array_equal(pixels_of(opaque), np.array(picture()))


@pytest.mark.parametrize("colours", [2, 4, 16, 200], ids=["1 bit", "2 bits", "4 bits", "8 bits"])
@pytest.mark.parametrize("with_alpha", [False, True], ids=["opaque", "transparent"])
def test_palettes_of_few_bits_keep_their_colours(colours, with_alpha):
    given = {"transparency": 0} if with_alpha else {}
    content = encoded(picture().quantize(colours), "PNG", **given)
    np.testing.assert_allclose(pixels_of(content), on_white(content), atol=1)


@pytest.mark.parametrize("mode", ["1", "L"])
def test_gray_pngs_of_one_bit_and_of_eight_keep_their_gray(mode):
    content = encoded(picture().convert(mode), "PNG")
    np.testing.assert_array_equal(pixels_of(content), np.array(picture().convert(mode).convert("RGB")))


def test_cmyk_agrees_with_pillow_to_five_levels():
    colours = np.random.default_rng(0).integers(0, 256, [8, 12, 4]).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    content = encoded(Image.fromarray(colours, "CMYK"), quality=95)
    assert np.abs(pixels_of(content) - np.array(Image.open(io.BytesIO(content)).convert("RGB"))).max() <= 5


def test_cmyk_without_adobes_mark_is_converted_as_pillow_does_it():
    """TensorFlow takes inks for light, as Adobe stores them; without the mark they are inks."""
    colours = np.random.default_rng(0).integers(0, 256, [8, 12, 4]).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    content = encoded(Image.fromarray(colours, "CMYK"), quality=95)
    start = content.index(b"\xff\xee\x00\x0eAdobe")
    unmarked = content[:start] + content[start + 16 :]
    assert conversion.is_decodable(content)
    assert not conversion.is_decodable(unmarked)
    expected = np.array(Image.open(io.BytesIO(unmarked)).convert("RGB")).astype(int)
    assert np.abs(pixels_of(conversion.graph_ready(unmarked, 10**6)) - expected).max() <= 5
    assert np.abs(pixels_of(unmarked) - expected).mean() > 30


def test_gray_is_gray_and_16_bits_are_their_high_byte():
    gray = np.array(picture().convert("L"))
    for kind in ("JPEG", "PNG"):
        pixels = pixels_of(encoded(Image.fromarray(gray), kind, **({"quality": 95} if kind == "JPEG" else {})))
        assert np.abs(pixels - gray[:, :, None]).max() <= 4
    deep = gray.astype(np.uint16) * 256 + 255
    np.testing.assert_array_equal(pixels_of(encoded(Image.fromarray(deep), "PNG")), gray[:, :, None].repeat(3, 2))


def test_the_exported_graph_sees_what_training_sees():
    see_through = [as_graph_gets_it(make()) for make in TRANSPARENT.values()]
    contents = [stored(6), stored(8, 352, 240), *see_through, encoded(picture(), "GIF")]
    spec, serve = images.serving_inputs(PLAIN)
    given = tf.function(serve, input_signature=[spec])(tf.constant(contents)).numpy()
    np.testing.assert_array_equal(given, np.stack([prepared(content) for content in contents]))


@pytest.mark.skipif(not versions.decodes_webp(), reason="this TensorFlow decodes no WebP")
def test_an_animated_webp_is_an_ordinary_error_or_its_first_frame():
    """And never the end of the process, which it is for TensorFlow's decoder without a number of channels."""
    frames = [picture(), picture().transpose(Image.Transpose.ROTATE_180)]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 100, "lossless": True}
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoding.decoded(tf.constant(encoded(frames[0], "WEBP", **animated)))
    content = encoded(transparent(), "WEBP", **animated)
    np.testing.assert_allclose(pixels_of(content), on_white(content), atol=2)
