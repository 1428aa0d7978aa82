"""One photo: whether it can be used, what is odd about it, and what look-alikes have in common with it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tf_finetune.inspection import conversion, decoding, sniffing
from tf_finetune.inspection.records import NOTE, WARNING, Header, Look

if TYPE_CHECKING:
    from PIL.Image import Image

ACROSS, DOWN = 17, 16  # Cells of the hash: each of 16 rows has 16 steps from a cell to the next.
THUMBNAIL = (8, 8)
LEAST = 64  # Pixels of a side that a JPEG is decoded to at least: about four to a cell.
STEP = 2  # Levels of gray in [0, 255] by which a cell must be brighter than the one before it.
LEAST_SPREAD = 16  # Levels between the 10th and the 90th percentile of the cells.
LEAST_STEPS = 64  # Of 256: steps of more than STEP either way. A photo of fewer is a flat one, or two.
TINY, EXTREME = 16, 20  # Pixels of the shorter side; how many times as long the longer one is.

FORMATS = {".png": "png", ".bmp": "bmp", ".gif": "gif", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff"}
FORMATS |= {".avif": "avif", ".heic": "heif", ".heif": "heif"}
FORMATS |= dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg")

# What is odd about photos that can be used: severity, warnings first, and what to say of them.
ODDITIES = {
    "tiny": (WARNING, f"under {TINY} pixels on a side, or over {EXTREME} times as long as wide: little is to be seen"),
    "exif_rotated": (NOTE, "turned upright as their EXIF orientation says, here and in the exported model"),
    "gray": (NOTE, "without colours; their gray becomes red, green and blue"),
    "progressive": (NOTE, "progressive JPEGs; they are decoded like others"),
    "cmyk": (NOTE, "CMYK; they are converted to red, green and blue"),
    "sixteen_bit": (NOTE, "16 bits a colour, of which the upper 8 are used"),
    "palette": (NOTE, "of a palette; its colours are used"),
    "alpha": (NOTE, "partly transparent; they are seen on white"),
    "animated": (NOTE, "animated; the first frame is used"),
    # The format is found by the bytes everywhere, so a wrong name costs nothing here; other programs may stumble.
    "wrong_extension": (NOTE, "of another format than their names say; the bytes count, so they are used"),
    "converted": (NOTE, "converted to PNG here; the exported model does not decode their format"),
}


def look(content: bytes, max_pixels: int) -> Look:
    """Returns what one photo's bytes say, after one decoding, which reads them to their end.

    Args:
        content: The bytes.
        max_pixels: The most that are decoded; more make it unusable.
    """
    header = sniffing.sniff(content)
    try:
        header = decoding.check(content, header, max_pixels)
        as_it_is = conversion.decodable(header)
        with decoding.turn(header):
            image = decoding.first_frame(content, header, max_pixels, LEAST if as_it_is else None)
            converted = None if as_it_is else conversion.as_png(image, header)
            # The graph turns JPEGs alone; what is converted is upright by then.
            hash, thumbnail = fingerprint(image, header.orientation if header.format == "jpeg" else 1)
    except decoding.UndecodableError as error:
        return Look(header, error.kind, error.reason)
    return Look(header, hash=hash, thumbnail=thumbnail, converted=converted)


def fingerprint(image: Image, orientation: int) -> tuple[bytes | None, bytes | None]:
    """Returns what a photo shares with its look-alikes; Nones where it has too little in it to be told by.

    Args:
        image: The decoded picture, of any size and mode.
        orientation: EXIF's, 1 to 8.

    Returns:
        The hash, 32 bytes: for each step from a cell of a coarse grid to the next in its row, whether it gets brighter.
        The thumbnail, uint8 [8, 8, 3] as bytes.
    """
    import numpy as np
    from PIL.Image import Resampling

    size = (DOWN, ACROSS) if orientation >= 5 else (ACROSS, DOWN)
    # The triangle weighs pixels smoothly, so that other sizes of a photo give nearly the same cells.
    small = _in_colour(image).resize(size, Resampling.BILINEAR, reducing_gap=4.0).convert("RGB")
    small = conversion.upright(small, orientation)
    cells = np.asarray(small, np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    steps = np.diff(cells, axis=1)
    low, high = np.percentile(cells, [10, 90])
    if high - low < LEAST_SPREAD or (np.abs(steps) > STEP).sum() < LEAST_STEPS:
        return None, None
    return np.packbits(steps > STEP).tobytes(), small.resize(THUMBNAIL, Resampling.BOX).tobytes()


def _in_colour(image: Image) -> Image:
    """Returns a picture of a mode that can be made smaller; what is transparent is seen on white, as in the graph."""
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    if image.mode.startswith("I"):  # 16 bits, of which Pillow would keep the lower 8.
        import numpy as np
        from PIL.Image import fromarray

        return fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "1" or not image.has_transparency_data:
        return image.convert("RGB")
    from PIL.Image import new

    background = new("RGB", image.size, "white")
    clear = image.convert("RGBA")
    background.paste(clear, mask=clear)
    return background


def oddities(header: Header, name: str) -> list[str]:
    """Returns the kinds of what is odd about a photo that can be used: keys of ODDITIES.

    Args:
        header: What its bytes say.
        name: Its file's name.
    """
    short, long = sorted((header.width, header.height))
    expected = FORMATS.get(os.path.splitext(name)[1].lower())
    found = {
        "tiny": short > 0 and (short < TINY or long > EXTREME * short),
        "exif_rotated": header.format == "jpeg" and header.orientation != 1,
        "gray": header.mode == "gray",
        "progressive": header.is_progressive,
        "cmyk": header.mode == "cmyk",
        "sixteen_bit": header.bits == 16,
        "palette": header.mode == "palette" and header.format != "gif",  # A GIF has no other.
        "alpha": header.has_alpha and header.format != "gif",  # The graph takes a GIF as opaque.
        "animated": header.frames > 1,
        "wrong_extension": expected != header.format,
        "converted": not conversion.decodable(header),
    }
    return [kind for kind, applies in found.items() if applies]
