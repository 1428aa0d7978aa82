"""What the exported graph decodes, and what Pillow must turn the rest into before the graph sees it.

The graph decodes by TensorFlow: JPEG of 8 bits, PNG, GIF, BMP and WebP, as far as it does so rightly and safely.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from tf_finetune import versions
from tf_finetune.errors import DataError
from tf_finetune.inspection import decoding, sniffing
from tf_finetune.inspection.records import Header

if TYPE_CHECKING:
    from PIL.Image import Image

# Modes of Pillow that a PNG holds as they are with 8 or 16 bits; the graph handles its alpha.
PNG_MODES = frozenset({"L", "LA", "RGB", "RGBA", "I;16"})
JPEG_CODINGS = frozenset({"baseline", "progressive"})
# Pixels of all frames together: TensorFlow unpacks the whole GIF, a byte a pixel, to take the first frame.
MOST_GIF_PIXELS = 2**28
TRANSPOSITIONS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # By EXIF orientation, as Pillow numbers them.


def is_decodable(content: bytes) -> bool:
    """Returns whether the exported graph decodes these bytes as it should, as far as their header tells.

    It does so for JPEG of 8 bits, PNG, GIF, WebP without animation, and BMP of 24 bits that is not packed.
    """
    header = sniffing.sniff(content)
    return header is not None and decodable(header)


def decodable(header: Header) -> bool:
    """Returns the same of a header."""
    if header.format == "jpeg":
        return header.bits == 8 and header.coding in JPEG_CODINGS
    if header.format == "bmp":  # TensorFlow takes a palette's indices for grays, and refuses 32 bits or other lengths.
        return header.coding == "plain"
    if header.format == "gif":  # It refuses one that does not end as it should, and takes a frame for the whole.
        return header.coding == "plain" and header.pixels * header.frames <= MOST_GIF_PIXELS
    if header.format == "webp":  # An animated one aborts TensorFlow's process or is refused.
        return header.frames == 1 and versions.decodes_webp()
    return header.format == "png"


def graph_ready(content: bytes, max_pixels: int) -> bytes:
    """Returns bytes that the exported graph decodes: the same where it does, else the first picture as a PNG.

    Whether whole bytes are also sound is for the graph to find out; only what is converted is decoded here.

    Args:
        content: The bytes of a photo.
        max_pixels: The most that are decoded; more are refused by the header.

    Raises:
        DataError: It is no photo, of a format that neither the graph nor Pillow decodes, too large, or damaged.
    """
    try:
        header = decoding.check(content, sniffing.sniff(content), max_pixels)
        if decodable(header):
            return content
        with decoding.quietly(), decoding.turn(header):
            return as_png(decoding.first_frame(content, header, max_pixels), header)
    except decoding.UndecodableError as error:
        raise DataError(f"not a photo that can be decoded: {error.reason}.") from None


def as_png(image: Image, header: Header) -> bytes:
    """Returns a decoded picture as a PNG, upright.

    Raises:
        UndecodableError: Its numbers are of a kind whose range is not known, as 32-bit floats.
    """
    if image.mode in ("F", "I"):
        raise decoding.UndecodableError(
            "unsupported_format", "its pixels are 32-bit numbers of no known range: save it with 8 or 16 bits"
        )
    try:
        # Pillow has turned a TIFF by now, and says so here.
        turned = header.orientation if header.format == "jpeg" else image.getexif().get(sniffing.ORIENTATION, 1)
        if image.mode.startswith("I;16"):
            image = image if image.mode == "I;16" else image.convert("I").convert("I;16")
        elif image.mode not in PNG_MODES:
            image = image.convert("RGBA" if image.has_transparency_data else "RGB")
        written = io.BytesIO()
        upright(image, turned).save(written, "PNG", compress_level=1)
    except Exception as error:
        raise decoding.UndecodableError("damaged", f"it cannot be converted: {error}") from None
    return written.getvalue()


def upright(image: Image, orientation: object) -> Image:
    """Returns a picture turned as EXIF's orientation, 1 to 8, says; anything else turns nothing."""
    if orientation not in TRANSPOSITIONS:
        return image
    from PIL.Image import Transpose

    return image.transpose(Transpose(TRANSPOSITIONS[orientation]))
