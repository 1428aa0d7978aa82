"""Photos as small pictures of the report."""

from __future__ import annotations

import base64
import io
import os
import random

import pytest
from PIL import EpsImagePlugin, Image, PngImagePlugin

from tf_finetune.report import thumbnails

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 160, 60), (40, 60, 200), (255, 255, 255)


def opened(uri: str) -> Image.Image:
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(body)))


def made(path, **settings) -> Image.Image:
    photo = opened(thumbnails.make({"a": path}, **settings)["a"])
    assert photo.mode == "RGB"
    return photo


def is_near(colour, expected) -> bool:
    return all(abs(one - other) <= 24 for one, other in zip(colour, expected, strict=True))


def halves(size=(400, 200)) -> Image.Image:
    """Returns a photo that is red on the left and blue on the right."""
    photo = Image.new("RGB", size, RED)
    photo.paste(BLUE, (size[0] // 2, 0, *size))
    return photo


def test_a_photo_becomes_a_small_jpeg_of_its_proportions(tmp_path):
    halves().save(tmp_path / "a.jpg")
    photo = made(tmp_path / "a.jpg")
    assert photo.size == (160, 80)
    assert is_near(photo.getpixel((20, 40)), RED)
    assert is_near(photo.getpixel((140, 40)), BLUE)
    assert made(tmp_path / "a.jpg", size=50).size == (50, 25)


def test_a_small_photo_is_not_enlarged(tmp_path):
    halves((30, 20)).save(tmp_path / "a.png")
    assert made(tmp_path / "a.png").size == (30, 20)


UPRIGHT = {  # Of red left and blue right as stored: where red is when it is shown.
    1: "left",
    2: "right",
    3: "right",
    4: "left",
    5: "top",
    6: "top",
    7: "bottom",
    8: "bottom",
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_photos_stand_upright(tmp_path, orientation, mode):
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = halves()
    if mode == "I;16":
        row = 200 * (10_000).to_bytes(2, "little") + 200 * (60_000).to_bytes(2, "little")
        photo = Image.frombytes("I;16", photo.size, 200 * row)
    else:
        photo = photo.convert(mode)
    path = tmp_path / ("a.png" if mode == "I;16" else "a.jpg")
    photo.save(path, exif=exif)
    shown = made(path).convert("L")
    across, up = shown.size
    spots = {
        "left": (5, up // 2),
        "right": (across - 5, up // 2),
        "top": (across // 2, 5),
        "bottom": (across // 2, up - 5),
    }
    first, opposite = UPRIGHT[orientation], {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
    one, other = shown.getpixel(spots[first]), shown.getpixel(spots[opposite[first]])
    reference = halves().convert("L")
    if mode == "I;16":
        assert abs(one - 39) < 6
        assert abs(other - 233) < 6
    else:
        assert abs(one - reference.getpixel((5, 5))) < 12
        assert abs(other - reference.getpixel((395, 5))) < 12


def test_cmyk_has_its_colours(tmp_path):
    halves().convert("CMYK").save(tmp_path / "a.jpg")
    photo = made(tmp_path / "a.jpg")
    assert is_near(photo.getpixel((20, 40)), RED)
    assert is_near(photo.getpixel((140, 40)), BLUE)


def test_values_of_16_and_32_bits_are_scaled_and_not_cut_off(tmp_path):
    Image.new("I;16", (40, 40), 32_768).save(tmp_path / "a.png")
    assert abs(made(tmp_path / "a.png").getpixel((20, 20))[0] - 128) <= 3
    ramp = Image.new("F", (40, 40), -1.0)
    ramp.paste(3.0, (20, 0, 40, 40))
    ramp.save(tmp_path / "a.tif")
    photo = made(tmp_path / "a.tif")
    assert photo.getpixel((4, 20))[0] <= 6
    assert photo.getpixel((36, 20))[0] >= 249


def transparent(mode: str) -> Image.Image:
    """Returns a photo that is green on the left and, though red, transparent on the right."""
    photo = Image.new("RGBA", (200, 100), (*GREEN, 255))
    photo.paste((*RED, 0), (100, 0, 200, 100))
    return photo.quantize(8) if mode == "P" else photo.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    transparent(mode).save(tmp_path / "a.png")
    photo = made(tmp_path / "a.png")
    assert is_near(photo.getpixel((140, 40)), WHITE)
    shade = GREEN if mode != "LA" else (Image.new("RGB", (1, 1), GREEN).convert("L").getpixel((0, 0)),) * 3
    assert is_near(photo.getpixel((20, 40)), shade)


def test_a_colour_that_stands_for_transparency_is_white(tmp_path):
    halves().save(tmp_path / "a.png", transparency=BLUE)
    assert is_near(made(tmp_path / "a.png").getpixel((140, 40)), WHITE)


def test_what_cannot_be_read_has_no_thumbnail_and_the_others_have(tmp_path):
    halves().save(tmp_path / "whole.jpg", quality=95)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("<html>")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = ["cut", "empty", "text", "folder", "pipe", "absent", "whole"]
    assert list(thumbnails.make({name: tmp_path / f"{name}.jpg" for name in names})) == ["whole"]


def test_a_photo_of_too_many_pixels_has_none(tmp_path, monkeypatch):
    for name in ("a.jpg", "a.png"):
        halves((800, 800)).save(tmp_path / name)
    monkeypatch.setattr(thumbnails, "MAX_PIXELS", 640_000)
    monkeypatch.setattr(thumbnails, "MAX_DECODED", 640_000)
    paths = {name: tmp_path / name for name in ("a.jpg", "a.png")}
    assert list(thumbnails.make(paths)) == ["a.jpg", "a.png"]
    monkeypatch.setattr(thumbnails, "MAX_DECODED", 639_999)
    assert list(thumbnails.make(paths)) == ["a.jpg"]  # A JPEG is decoded at a smaller scale.
    monkeypatch.setattr(thumbnails, "MAX_PIXELS", 639_999)
    assert thumbnails.make(paths) == {}


@pytest.mark.filterwarnings("error")
def test_a_large_photo_is_not_warned_of(tmp_path, monkeypatch):
    halves().save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # Of its 80,000; Pillow warns up to twice as many.
    assert list(thumbnails.make({"a": tmp_path / "a.jpg"})) == ["a"]


def test_no_program_outside_is_started_for_a_photo(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **named: started.append(given))
    halves().save(tmp_path / "a.jpg", format="EPS")
    assert thumbnails.make({"a": tmp_path / "a.jpg"}) == {}
    assert not started


def test_thumbnails_are_short_however_much_is_in_the_photo(tmp_path):
    noise = Image.frombytes("RGB", (160, 160), random.Random(0).randbytes(160 * 160 * 3))
    noise.resize((1600, 1600), Image.Resampling.NEAREST).save(tmp_path / "a.png")
    halves().save(tmp_path / "b.png")
    found = thumbnails.make({"a": tmp_path / "a.png", "b": tmp_path / "b.png"})
    assert len(found["a"]) <= 2 * thumbnails.MAX_LENGTH  # Pure noise, at the least quality.
    assert len(found["b"]) < 2_000


def test_nothing_but_pixels_goes_on(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "at home"
    halves().save(tmp_path / "a.jpg", exif=exif, comment=b"at home", icc_profile=b"at home")
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "at home")
    halves().save(tmp_path / "a.png", pnginfo=text)
    for uri in thumbnails.make({name: tmp_path / name for name in ("a.jpg", "a.png")}).values():
        assert b"at home" not in base64.b64decode(uri.partition(",")[2])


def test_equal_files_give_equal_thumbnails(tmp_path):
    halves().save(tmp_path / "a.jpg")
    paths = {"a": tmp_path / "a.jpg"}
    assert thumbnails.make(paths) == thumbnails.make(paths)
