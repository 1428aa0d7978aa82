"""Plain functions that make photo-like pictures and the bytes of every kind of photo, sound and broken."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112


def picture(seed: int = 0, width: int = 120, height: int = 90, cells: int = 12) -> Image.Image:
    """Returns a picture of smooth noise; another seed is another picture."""
    coarse = np.random.default_rng(seed).integers(0, 256, [cells, cells, 3], dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    """Returns a picture's bytes in a format of Pillow's."""
    written = io.BytesIO()
    image.save(written, format, **options)
    return written.getvalue()


def exif(orientation: int) -> bytes:
    """Returns EXIF that holds an orientation, as Pillow writes it."""
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags.tobytes()


def tagged(content: bytes, block: bytes) -> bytes:
    """Returns a JPEG with a block of any bytes as its first APP1 segment."""
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + content[2:]


def with_frame(content: bytes, marker: int | None = None, bits: int | None = None) -> bytes:
    """Returns a baseline JPEG whose frame says another coding, or other bits a colour."""
    place = content.index(b"\xff\xc0")
    changed = bytearray(content)
    changed[place + 1] = changed[place + 1] if marker is None else marker
    changed[place + 4] = changed[place + 4] if bits is None else bits
    return bytes(changed)


def chunk(name: bytes, body: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int = 8, kind: int = 2, *chunks: bytes) -> bytes:
    """Returns a PNG that claims such a size, with chunks before no pixels at all."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated(format: str, frames: int = 3, size: int = 40) -> bytes:
    """Returns an animation of different pictures."""
    first, *others = (picture(seed, size, size) for seed in range(frames))
    return encoded(first, format, save_all=True, append_images=others, duration=50)


def bmp(mode: str) -> bytes:
    """Returns a BMP of a mode of Pillow's."""
    return encoded(picture().convert(mode), "BMP")
