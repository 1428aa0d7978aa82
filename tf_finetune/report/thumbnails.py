"""Photos made so small that the report can hold them.

A photo comes from anywhere and is the one thing that is decoded here: its size is limited, whatever Pillow raises means
no thumbnail, and nothing but its pixels goes on (a place in EXIF, or a comment, stays behind).
"""

from __future__ import annotations

import base64
import io
import logging
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

Range = tuple[float, float]
# What can be trained on. Pillow knows more, some of which start other programs.
FORMATS = {"JPEG", "MPO", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"}
MAX_PIXELS = 100_000_000  # Of a photo: all coefficients of a progressive JPEG are in memory, at whatever scale.
MAX_DECODED = 50_000_000  # Of what remains at the scale at which it is decoded.
QUALITIES = (70, 55, 40, 25)  # Tried until the thumbnail is small enough.
MAX_LENGTH = 8192  # Of a data URI, in characters.
WHITE = (255, 255, 255)


def make(paths: Mapping[str, Path], size: int = 160) -> dict[str, str]:
    """Returns thumbnails as data URIs of JPEGs; a photo that cannot be read has none.

    Args:
        paths: A photo's file by whatever names it.
        size: The longer side, in pixels; a smaller photo stays as it is.

    Returns:
        The data URIs by the names of the photos, in their order.
    """
    found = {}
    for name, path in paths.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of large photos, and of EXIF that is damaged.
                found[name] = encoded(shrunk(path, size))
        except Exception as error:  # Pillow's readers raise what they like.
            log.debug("no thumbnail of %s: %s", path, error)
    return found


def shrunk(path: Path, size: int) -> Image.Image:
    """Returns a photo upright, in RGB, on white, its longer side at most `size` pixels.

    Raises:
        Exception: Whatever Pillow raises; ValueError where the photo is too large, or no file.
    """
    from PIL import Image, ImageOps

    if not path.is_file():  # A pipe would be waited for.
        raise ValueError("it is not a file")
    Image.init()
    with Image.open(path, formats=sorted(FORMATS & Image.OPEN.keys())) as photo:
        if photo.width * photo.height > MAX_PIXELS:
            raise ValueError("it has too many pixels")
        photo.draft(None, (2 * size, 2 * size))  # A JPEG is decoded at a half, a quarter or an eighth of its sides.
        if photo.width * photo.height > MAX_DECODED:
            raise ValueError("it has too many pixels")
        small = eight_bit(photo)
        small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=2.0)
        small = ImageOps.exif_transpose(small)
    shown = Image.new("RGB", small.size, WHITE)
    shown.paste(small, mask=small.getchannel("A") if small.mode == "RGBA" else None)
    return shown


def eight_bit(photo: Image.Image) -> Image.Image:
    """Returns a photo as RGB, or as RGBA where it may be transparent, with 8 bits for a value."""
    if photo.mode[:1] in ("I", "F"):  # One value of 16 or 32 bits a pixel, which Pillow would cut off at 255.
        values = photo.convert("F")
        lowest, highest = (0.0, 65535.0) if photo.mode[:1] == "I" else typing.cast(Range, values.getextrema())
        scale = 255 / ((highest - lowest) or 1)
        return values.point(lambda value: value * scale + -lowest * scale).convert("RGB")
    is_transparent = photo.mode in ("RGBA", "LA", "PA") or "transparency" in photo.info
    return photo.convert("RGBA" if is_transparent else "RGB")


def encoded(photo: Image.Image) -> str:
    """Returns an RGB photo as a JPEG's data URI, of less quality where it would be too long."""
    text = ""
    for quality in QUALITIES:
        stream = io.BytesIO()
        photo.save(stream, format="JPEG", quality=quality, optimize=True)
        text = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"
        if len(text) <= MAX_LENGTH:
            break
    return text
