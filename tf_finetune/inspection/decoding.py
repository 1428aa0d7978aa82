"""Photos to pixels by Pillow, behind limits: only formats that are known, never more pixels than allowed."""

from __future__ import annotations

import contextlib
import importlib
import io
import threading
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tf_finetune.inspection import sniffing
from tf_finetune.inspection.records import Header

if TYPE_CHECKING:
    from PIL.Image import Image

# The class that decodes each format. Pillow's own `open` would try all that it has, some of which start programs.
DECODERS = {
    "jpeg": ("JpegImagePlugin", "JpegImageFile"),
    "png": ("PngImagePlugin", "PngImageFile"),
    "gif": ("GifImagePlugin", "GifImageFile"),
    "bmp": ("BmpImagePlugin", "BmpImageFile"),
    "webp": ("WebPImagePlugin", "WebPImageFile"),
    "tiff": ("TiffImagePlugin", "TiffImageFile"),
    "avif": ("AvifImagePlugin", "AvifImageFile"),
}
LARGE = 2**24  # Pixels; photos above are decoded one at a time, so that threads together stay within memory.
CRITICAL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_one_large = threading.Lock()


class UndecodableError(Exception):
    """Bytes that are no photo that can be decoded: why, in one word and in a sentence."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind, self.reason = kind, reason


def check(content: bytes, header: Header | None, max_pixels: int) -> Header:
    """Returns the header, having looked at what can be told without decoding.

    Raises:
        UndecodableError: It is empty, no photo, of a format that nothing decodes, or has too many pixels.
    """
    if not content:
        raise UndecodableError("empty", "the file is empty")
    if header is None:
        what, is_photo = sniffing.looks_like(content)
        if not is_photo:
            raise UndecodableError("not_an_image", f"it is no photo and looks like {what}")
    else:
        what = "" if header.format in DECODERS else header.format.upper()
    if header is None or what:
        raise UndecodableError("unsupported_format", f"it is {what}, which is not supported; save it as JPEG or PNG")
    if header.format == "jpeg" and (header.bits != 8 or header.coding == "lossless"):
        what = f"a JPEG of {header.bits} bits a colour" if header.bits != 8 else "a lossless JPEG"
        raise UndecodableError("unsupported_format", f"it is {what}, which is not supported; save it with 8 bits")
    _check_pixels(header.width, header.height, max_pixels)
    return header


def first_frame(content: bytes, header: Header, max_pixels: int, least: int | None = None) -> Image:
    """Returns the first picture, decoded to its end, so that one that is cut off or damaged is found.

    Args:
        content: The bytes of a photo.
        header: What `sniff` says of them.
        max_pixels: The most that are decoded.
        least: Both sides may become as small as this many pixels, which JPEGs are decoded to in a fraction of the
            time; every byte is read all the same. None for full size.

    Raises:
        UndecodableError: It cannot be decoded.
    """
    try:
        if header.format == "png":
            _check_chunks(content)
        if header.format == "jpeg" and not sniffing.has_end(content):
            raise UndecodableError("truncated", "it is cut off")
        image = _opened(content, header)
        _check_pixels(*image.size, max_pixels)
        if header.format == "jpeg" and least is not None:
            image.draft(None, (least, least))
        image.load()
    except UndecodableError:
        raise
    except MemoryError:
        raise UndecodableError("too_many_pixels", "there is not enough memory to decode it") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on bytes that were made for it.
        raise _explained(error) from None
    return image


def turn(header: Header) -> contextlib.AbstractContextManager[Any]:
    """Returns what is entered to decode a photo: large ones wait for one another."""
    is_small = header.pixels <= LARGE or header.format == "jpeg" and not header.is_progressive
    return contextlib.nullcontext() if is_small else _one_large


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps Pillow's warnings to itself; any number of threads may be inside at once.

    Filters of warnings are the process's, so the first to come saves them and the last to go restores them.
    """
    with _guard:
        _inside.append(warnings.catch_warnings())
        if len(_inside) == 1:
            _inside[0].__enter__()
            warnings.simplefilter("ignore")
    try:
        yield
    finally:
        with _guard:
            if len(_inside) == 1:
                _inside[0].__exit__(None, None, None)
            _inside.pop()


_guard = threading.Lock()
_inside: list[Any] = []


def _opened(content: bytes, header: Header) -> Image:
    module, name = DECODERS[header.format]
    try:
        decoder = getattr(importlib.import_module(f"PIL.{module}"), name)
    except ImportError:
        raise UndecodableError("unsupported_format", f"this Pillow has no decoder of {header.format.upper()}") from None
    opened: Image = decoder(io.BytesIO(content))
    return opened


def _check_pixels(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        size = f"{width:,} x {height:,} pixels"
        raise UndecodableError("too_many_pixels", f"{size} are more than max_pixels, which is {max_pixels:,}")


def _check_chunks(content: bytes) -> None:
    """Compares a PNG's checksums, which Pillow leaves alone and TensorFlow refuses.

    Raises:
        UndecodableError: One is wrong, or the end is missing.
    """
    view, position, name = memoryview(content), 8, b""
    while name != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        name = content[position + 4 : position + 8]
        end = position + 8 + length
        if end + 4 > len(content):
            raise UndecodableError("truncated", "it is cut off")
        expected = int.from_bytes(content[end : end + 4], "big")
        if name in CRITICAL_CHUNKS and zlib.crc32(view[position + 4 : end]) != expected:
            raise UndecodableError("damaged", f"it was altered: the checksum of {name.decode()} is wrong")
        position = end + 4


def _explained(error: Exception) -> UndecodableError:
    text = str(error) or type(error).__name__
    if type(error).__name__ == "DecompressionBombError":
        return UndecodableError("too_many_pixels", f"Pillow refuses it: {text}")
    cut = "truncated" in text.lower() or "not enough" in text.lower() or "eof" in text.lower()
    if cut or isinstance(error, (EOFError, IndexError, KeyError)) or type(error).__name__ == "error":  # struct's.
        return UndecodableError("truncated", "it is cut off")
    first = text.splitlines()[0][:200]
    return UndecodableError("damaged", f"it cannot be decoded: {first}")
