"""Channels of photos: each file is read once, and hashed and looked at while it is at hand."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_finetune.errors import HyperparameterError
from tf_finetune.examples import Example, Examples, folders, grouping
from tf_finetune.examples.folders import Found
from tf_finetune.examples.records import counted
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection import decoding, duplicates, findings, photos, sniffing
from tf_finetune.inspection.records import NOTE, WARNING, Finding, Inspection, Look, Unusable

MAX_BYTES = 2**29  # Of one file, which is read into memory.
MOST_OF_A_START = 4096  # Bytes that tell whether a file is a photo.
NOUN = "photo"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What became of one file.

    Attributes:
        look: What its bytes say.
        digest: SHA-256 of its bytes; empty where they cannot be read.
        converted: Where the PNG is that takes its place, if there is one.
    """

    look: Look
    digest: str = ""
    converted: Path | None = None


def examine(
    channels: Mapping[str, Path], settings: Hyperparameters, scratch: Path, known: Sequence[str] = ()
) -> Inspection:
    """Returns the photos of all channels, and what is wrong with them; see `inspection.examine`."""
    pattern = _pattern(settings.group_by)
    class_names: tuple[str, ...] | None = None
    names: dict[str, tuple[str, ...]] = {}
    files: list[tuple[str, Found]] = []
    unnamed: list[tuple[str, Path]] = []
    suffixes = folders.IMAGE_SUFFIXES | folders.FOREIGN_SUFFIXES
    for channel, place in channels.items():
        others: list[Path] = []
        class_names, found = folders.find(place, class_names, channel, suffixes, others)
        names[channel] = class_names
        class_names = tuple(dict.fromkeys((*class_names, *known)))
        files += [(channel, one) for one in found]
        unnamed += [(f"{channel}/{path.relative_to(place).as_posix()}", path) for path in others]
    action = functools.partial(_see, max_pixels=settings.max_pixels, scratch=scratch)
    with decoding.quietly():
        seen = folders.over_files([one.path for _, one in files], action)
    unusable, usable, hashes = [], [], {}
    for (channel, one), saw in zip(files, seen, strict=True):
        if saw.look.kind:
            unusable.append(Unusable(channel, one.id, names[channel][one.label], saw.look.kind, saw.look.reason))
            continue
        content = saw.converted or one.path
        usable.append((channel, Example(one.id, one.label, content, saw.digest, _group(pattern, one.id))))
        if saw.look.hash and saw.look.thumbnail:
            hashes[saw.digest] = (saw.look.hash, saw.look.thumbnail)
    parts = {
        channel: Examples(names[channel], folders.ordered(example for of, example in usable if of == channel))
        for channel in channels
    }
    groups = grouping.groups(duplicates.near_photos(hashes))
    told = [
        *findings.of_unusable(unusable, NOUN),
        *findings.of_data(parts, groups, NOUN),
        *_odd(files, seen),
        *_of_others(unnamed),
    ]
    read = {channel: sum(of == channel for of, _ in files) for channel in channels}
    return Inspection(parts, tuple(unusable), tuple(told), groups, read)


def _of_others(files: list[tuple[str, Path]]) -> list[Finding]:
    """Returns the findings of files that are left out for their names; some are photos by their first bytes."""
    photographs: list[str] = []
    rest: list[str] = []
    for name, path in files:
        (photographs if _is_photo(path) else rest).append(name)
    told = [
        (
            WARNING,
            "unknown_extension",
            photographs,
            "left out for their names, though they are photos: rename them",
        ),
        (NOTE, "other_file", rest, "no photos by their names or their bytes: left out"),
    ]
    return [
        Finding(severity, kind, tuple(sorted(names)), f"{counted(len(names), 'file')} {words}")
        for severity, kind, names, words in told
        if names
    ]


def _is_photo(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return sniffing.sniff(stream.read(MOST_OF_A_START)) is not None
    except OSError:
        return False


def _see(path: Path, max_pixels: int, scratch: Path) -> Seen:
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):  # To open a pipe would take for ever.
            return Seen(Look(None, "unreadable", "it is no regular file"))
        if state.st_size > MAX_BYTES:
            return Seen(Look(None, "too_large", f"it has {state.st_size:,} bytes; at most {MAX_BYTES:,} are read"))
        content = path.read_bytes()
    except OSError as error:
        return Seen(Look(None, "unreadable", f"it cannot be read: {error.strerror}"))
    digest = hashlib.sha256(content).hexdigest()
    look = photos.look(content, max_pixels)
    if look.converted is None:
        return Seen(look, digest)
    place = scratch / f"{digest}.png"
    scratch.mkdir(parents=True, exist_ok=True)
    aside = scratch / f"{digest}-{os.getpid()}-{id(look)}"  # Copies of a photo may be written at once.
    aside.write_bytes(look.converted)
    aside.replace(place)
    return Seen(dataclasses.replace(look, converted=None), digest, place)


def _odd(files: list[tuple[str, Found]], seen: list[Seen]) -> list[Finding]:
    """Returns the findings of what is odd about photos that can be used."""
    ids: dict[str, list[str]] = {kind: [] for kind in photos.ODDITIES}
    for (channel, one), saw in zip(files, seen, strict=True):
        if saw.look.header and not saw.look.kind:
            for kind in photos.oddities(saw.look.header, one.path.name):
                ids[kind].append(f"{channel}/{one.id}")
    found = []
    for kind, (severity, words) in photos.ODDITIES.items():
        if ids[kind]:
            names = tuple(sorted(ids[kind], key=findings.natural))
            found.append(Finding(severity, kind, names, f"{counted(len(names), NOUN)}: {words}"))
    return found


def _pattern(group_by: str | None) -> re.Pattern[str] | None:
    if not group_by:
        return None
    try:
        return re.compile(group_by)
    except (re.error, RecursionError, OverflowError) as error:
        raise HyperparameterError(
            f"group_by: expected a regular expression; received {group_by[:80]!r}, which is none: {error}."
        ) from None


def _group(pattern: re.Pattern[str] | None, id: str) -> str:
    """Returns the first group of a match in a photo's id, or the whole match; nothing where there is none."""
    match = pattern.search(id) if pattern else None
    if match is None:
        return ""
    return (match[1] if match.re.groups else match[0]) or ""
