"""What an inspection finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from tf_finetune.examples import Examples

ERROR, WARNING, NOTE = "error", "warning", "note"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is the matter with the data.

    Attributes:
        severity: "error": these examples cannot be used. "warning": figures or the model may suffer. "note": it is
            handled, and good to know.
        kind: What it is, in one word that programs can tell by.
        examples: Ids of all examples it is about, with their channel first, such as training/roses/1.jpg; empty where
            it is about classes.
        detail: The same in a sentence for people.
    """

    severity: str
    kind: str
    examples: tuple[str, ...]
    detail: str


@dataclasses.dataclass(frozen=True)
class Unusable:
    """An example that is left out.

    Attributes:
        channel: training, validation or test.
        id: A photo's path below the channel; a text's file and line.
        label: Its class name; empty where a row has none.
        kind: Why, in one word.
        reason: Why, in a sentence.
    """

    channel: str
    id: str
    label: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of a photo say.

    Attributes:
        format: "jpeg", "png", "gif", "bmp", "webp", "tiff", "avif" or "heif".
        width: Pixels, before the photo is turned; 0 where the header does not say.
        height: Likewise.
        mode: "gray", "rgb", "cmyk" or "palette".
        has_alpha: Whether pixels may be transparent.
        bits: Of each colour of a pixel.
        coding: How a JPEG is coded: "baseline", "progressive", "lossless", "arithmetic"; "ink" where
            it is CMYK without Adobe's mark. Of a BMP "plain" where it is
            24 bits a pixel, not packed and of the right length, else "other"; of a GIF "plain" where its blocks are
            whole and its first frame fills it, else "other". Empty for others.
        orientation: EXIF's, 1 to 8; 1 is upright.
        frames: Pictures in it; of WebP, PNG and AVIF as far as the header tells, so 2 stands for any number.
    """

    format: str
    width: int = 0
    height: int = 0
    mode: str = "rgb"
    has_alpha: bool = False
    bits: int = 8
    coding: str = ""
    orientation: int = 1
    frames: int = 1

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.width * self.height

    @property
    def is_progressive(self) -> bool:
        """Whether it is a progressive JPEG."""
        return self.coding == "progressive"


@dataclasses.dataclass(frozen=True)
class Look:
    """What one photo's bytes say.

    Attributes:
        header: What its first bytes say; None where they are no photo's.
        kind: Why it cannot be used, in one word; empty where it can.
        reason: Why, in a sentence.
        hash: 32 bytes that look-alikes share but for a few bits; None where the photo has too little in it.
        thumbnail: uint8 [8, 8, 3] as bytes, the photo being upright; None with `hash`.
        converted: A PNG to take in its place, where the graph cannot decode it.
    """

    header: Header | None
    kind: str = ""
    reason: str = ""
    hash: bytes | None = None
    thumbnail: bytes | None = None
    converted: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The examples of a job, without those that cannot be used, and what was found.

    Attributes:
        parts: Usable examples of each channel. One that the graph cannot decode has the path of a PNG as its content;
            its digest stays that of the original bytes.
        unusable: Those that are left out, each once.
        findings: Everything, errors first.
        groups: Of each example that has near duplicates, digest to the smallest digest among them, over all channels.
        read: How many examples each channel had before any was left out.
    """

    parts: Mapping[str, Examples]
    unusable: tuple[Unusable, ...]
    findings: tuple[Finding, ...]
    groups: Mapping[str, str]
    read: Mapping[str, int]
