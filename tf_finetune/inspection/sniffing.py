"""What a photo is, by its bytes: names lie, and a decoder that is handed the wrong bytes may abort the process.

Plain Python over the header; nothing is decoded, and no bytes whatever make it raise.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Iterator

from tf_finetune.inspection.records import Header

# Bounds of what is walked through, so that a file made for it cannot hold up a thread.
MOST_BLOCKS = 200_000
HEIF_HEADER_BYTES = 2**20
HEAD_BYTES = 4096
PNG_MODES = {0: ("gray", False), 2: ("rgb", False), 3: ("palette", False), 4: ("gray", True), 6: ("rgb", True)}
PNG_ENDS = {b"IDAT", b"IEND"}
EXIF, ORIENTATION = b"Exif\0\0", 0x0112
OTHER_PHOTOS = {
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"\0\0\1\0": "an icon",
    b"II\x2b\0": "BigTIFF",
    b"MM\0\x2b": "BigTIFF",
}
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
OTHERS = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"\0\x05\x16\x07": "macOS metadata",
}


def sniff(content: bytes) -> Header | None:
    """Returns what the header of a photo says, or None where the bytes begin like no photo of a known format.

    >>> sniff(b"GIF89a" + bytes([2, 0, 3, 0, 0, 0, 0, 0x3B])).pixels
    6
    """
    readers = (
        (content.startswith(b"\xff\xd8\xff"), _jpeg, "jpeg"),
        (content.startswith(b"\x89PNG\r\n\x1a\n"), _png, "png"),
        (content.startswith((b"GIF87a", b"GIF89a")), _gif, "gif"),
        (content.startswith(b"BM") and len(content) >= 26, _bmp, "bmp"),
        (content[:4] == b"RIFF" and content[8:12] == b"WEBP", _webp, "webp"),
        (content.startswith((b"II*\0", b"MM\0*")), _tiff, "tiff"),
        (_heif_format(content) != "", _heif, _heif_format(content)),
    )
    for fits, reader, name in readers:
        if fits:
            try:
                return reader(content)
            except (struct.error, IndexError):  # It is cut off: the decoder will say so.
                return Header(name)
    return None


def looks_like(content: bytes) -> tuple[str, bool]:
    """Returns what bytes are that `sniff` does not know, in words, and whether that is a photo."""
    for magic, name in OTHER_PHOTOS.items():
        if content.startswith(magic):
            return name, True
    head = content[:HEAD_BYTES]
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if start.startswith(b"<svg") or start.startswith(b"<?xml") and b"<svg" in head:
        return "SVG", True
    for magic, name in OTHERS.items():
        if content.startswith(magic):
            return name, False
    answers = (
        (content[4:8] == b"ftyp", "a video"),
        (not content.strip(b"\0"), "zeros only"),
        (re.match(rb"<!doctype html|<html|<head|<body", start) is not None, "an HTML page"),
        (start.startswith(b"<?xml"), "XML"),
        (len(head) > 1 and not CONTROL.search(head) and _is_utf_8(head), "text"),
    )
    return next((name for fits, name in answers if fits), "nothing known"), False


def exif_orientation(block: bytes) -> int:
    """Returns the orientation, 1 to 8, of the TIFF structure in EXIF; 1 where it says none or is broken."""
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[block[:4]]
        tags = _tags(block, order)
    except (KeyError, struct.error, IndexError):
        return 1
    found = tags.get(ORIENTATION, 1)
    return found if 1 <= found <= 8 else 1


def has_end(content: bytes) -> bool:
    """Returns whether a JPEG's pixels are followed by its end; TensorFlow refuses others, Pillow not all of them."""
    pixels = next((place for marker, place in _segments(content) if marker == 0xDA), 0)
    return content.find(b"\xff\xd9", pixels) >= 0


def _jpeg(content: bytes) -> Header:
    header, is_told, is_adobe = Header("jpeg"), False, False
    try:
        for marker, place in _segments(content):
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not header.coding:
                header = _with_frame(header, content, place, marker)
            is_adobe = is_adobe or marker == 0xEE and content[place + 2 : place + 7] == b"Adobe"
            if marker == 0xE1 and not is_told and content[place + 2 : place + 8] == EXIF:  # The first, as in the graph.
                end = place + int.from_bytes(content[place : place + 2], "big")
                orientation, is_told = exif_orientation(content[place + 8 : end]), True
                header = dataclasses.replace(header, orientation=orientation)
    except struct.error:  # Cut off: this is what it says so far.
        pass
    if header.mode == "cmyk" and not is_adobe and header.coding in ("baseline", "progressive"):
        return dataclasses.replace(header, coding="ink")  # TensorFlow takes its inks for light, as Adobe's are.
    return header


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields the marker of each segment of a JPEG and where its length stands, up to the first of pixels."""
    place = 2
    for _ in range(MOST_BLOCKS):
        place = content.find(b"\xff", place)
        while 0 <= place < len(content) and content[place] == 0xFF:
            place += 1
        if place < 0 or place + 2 >= len(content):
            return
        marker, place = content[place], place + 1
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # They stand alone.
            continue
        yield marker, place
        if marker in (0xD9, 0xDA):  # The end, or the pixels.
            return
        place += int.from_bytes(content[place : place + 2], "big")


def _with_frame(header: Header, content: bytes, position: int, marker: int) -> Header:
    bits, height, width, colours = struct.unpack_from(">BHHB", content, position + 2)
    coding = {0: "baseline", 1: "baseline", 2: "progressive"}.get(marker & 3, "lossless")
    coding = "arithmetic" if marker >= 0xC9 else "lossless" if marker > 0xC3 else coding
    mode = {1: "gray", 4: "cmyk"}.get(colours, "rgb")
    return dataclasses.replace(header, width=width, height=height, mode=mode, bits=bits, coding=coding)


def _png(content: bytes) -> Header:
    width, height, bits, kind = struct.unpack_from(">IIBB", content, 16)
    mode, has_alpha = PNG_MODES.get(kind, ("rgb", False))
    frames, position = 1, 8
    for _ in range(MOST_BLOCKS):
        if position + 8 > len(content):
            break
        length, name = struct.unpack_from(">I4s", content, position)
        if name in PNG_ENDS:
            break
        if name == b"acTL":
            frames = min(struct.unpack_from(">I", content, position + 8)[0], 2) or 1
        has_alpha = has_alpha or name == b"tRNS"
        position += 12 + length
    return Header("png", width, height, mode, has_alpha, bits, frames=frames)


def _gif(content: bytes) -> Header:
    """Returns the header of a GIF with the number of its frames: TensorFlow unpacks them all to take the first."""
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    position = 13 + _colours(flags)
    frames, has_alpha, coding, canvas = 0, False, "other", (0, 0, width, height)
    fills = True
    try:
        for _ in range(MOST_BLOCKS):
            kind, position = content[position], position + 1
            if kind == 0x21:  # An extension.
                has_alpha = has_alpha or content[position] == 0xF9 and bool(content[position + 2] & 1)
                position += 1
            elif kind == 0x2C:
                left, top, wide, high, flags = struct.unpack_from("<HHHHB", content, position)
                fills = fills and (frames > 0 or (left, top, wide, high) == canvas)
                width, height, frames = max(width, left + wide), max(height, top + high), frames + 1
                position += 10 + _colours(flags)
            else:
                coding = "plain" if kind == 0x3B and fills else "other"
                break
            while content[position]:  # Blocks of up to 255 bytes, and one of none at the end.
                position += content[position] + 1
            position += 1
    except (struct.error, IndexError):  # Cut off after the frames so far.
        pass
    return Header("gif", width, height, "palette", has_alpha, coding=coding, frames=max(frames, 1))


def _colours(flags: int) -> int:
    """Returns the bytes of the table of colours that a GIF's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(content: bytes) -> Header:
    (size,) = struct.unpack_from("<I", content, 14)
    if size == 12:
        width, height, _, bits = struct.unpack_from("<HHHH", content, 18)
        packing = -1
    else:
        width, height, _, bits, packing = struct.unpack_from("<iiHHI", content, 18)
    mode = "palette" if bits <= 8 else "rgb"
    (start,) = struct.unpack_from("<I", content, 10)
    is_whole = len(content) == start + (abs(width) * 3 + 3) // 4 * 4 * abs(height)
    coding = "plain" if size >= 40 and bits == 24 and packing == 0 and is_whole else "other"
    return Header("bmp", abs(width), abs(height), mode, bits == 32, coding=coding)


def _webp(content: bytes) -> Header:
    kind = content[12:16]
    if kind == b"VP8X":
        flags = content[20]
        width = int.from_bytes(content[24:27], "little") + 1
        height = int.from_bytes(content[27:30], "little") + 1
        return Header("webp", width, height, has_alpha=bool(flags & 0x10), frames=2 if flags & 2 else 1)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return Header("webp", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, has_alpha=bool(bits >> 28 & 1))
    width, height = struct.unpack_from("<HH", content, 26)
    return Header("webp", width & 0x3FFF, height & 0x3FFF)


def _tiff(content: bytes) -> Header:
    order = "<" if content[:2] == b"II" else ">"
    tags = _tags(content, order)
    colours, photometric = tags.get(277, 1), tags.get(262, 2)
    mode = {0: "gray", 1: "gray", 3: "palette", 5: "cmyk"}.get(photometric, "rgb")
    has_alpha = colours in (2, 4) and mode in ("gray", "rgb")
    bits = tags.get(258, 1)
    width, height, orientation = tags.get(256, 0), tags.get(257, 0), tags.get(ORIENTATION, 1)
    orientation = orientation if 1 <= orientation <= 8 else 1
    return Header("tiff", width, height, mode, has_alpha, bits, "", orientation, 2 if tags.get(-1) else 1)


def _tags(content: bytes, order: str) -> dict[int, int]:
    """Returns the first number of each tag of the first directory of a TIFF; under -1 where the next one is."""
    (start,) = struct.unpack_from(order + "I", content, 4)
    (count,) = struct.unpack_from(order + "H", content, start)
    tags = {}
    end = start + 2 + 12 * count
    for place in range(start + 2, min(end, len(content) - 11), 12):  # A directory may be cut off.
        tag, kind, number = struct.unpack_from(order + "HHI", content, place)
        form = {3: "H", 4: "I"}.get(kind)
        if form is None or not number or tag in tags:
            continue
        value = place + 8
        if number * struct.calcsize(form) > 4:
            (value,) = struct.unpack_from(order + "I", content, place + 8)
        if value + 4 <= len(content):
            (tags[tag],) = struct.unpack_from(order + form, content, value)
    if end + 4 <= len(content):
        (tags[-1],) = struct.unpack_from(order + "I", content, end)
    return tags


def _heif_format(content: bytes) -> str:
    """Returns "avif" or "heif" where the brands of an ISO file say so, else nothing."""
    if content[4:8] != b"ftyp":
        return ""
    size = min(int.from_bytes(content[:4], "big"), 256)
    brands = {content[8:12], *(content[place : place + 4] for place in range(16, size, 4))}
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heif" if brands & {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"} else ""


def _heif(content: bytes) -> Header:
    """Returns the header of an AVIF or HEIF: its largest picture, since thumbnails and tiles have sizes too."""
    name, head = _heif_format(content), content[:HEIF_HEADER_BYTES]
    sizes = [(0, 0)]
    for match in re.finditer(b"ispe", head):
        if match.end() + 12 <= len(head):
            sizes.append(struct.unpack_from(">II", head, match.end() + 4))
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header(name, width, height, frames=2 if content[8:12] in (b"avis", b"msf1") else 1)


def _is_utf_8(head: bytes) -> bool:
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > HEAD_BYTES - 4  # The last character is cut.
    return True
