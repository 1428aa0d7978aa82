"""The split that cannot leak: decided by content, class by class."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_finetune.examples.records import TRAINING, VALIDATION, Examples

log = logging.getLogger(__name__)


def split(examples: Examples, ratio: float, seed: int) -> tuple[Examples, Examples]:
    """Splits examples into training and validation by a hash of each one's content.

    Each example's side depends on its bytes and the seed alone, so order, names and added files move nothing, and
    exact duplicates share a side. Repair: a class of two or more distinct examples that fell on one side whole has
    its example nearest to the threshold changed over. A class of one distinct example goes to training.

    Args:
        examples: All of them.
        ratio: Expected share of validation, in [0, 1].
        seed: Another seed, another split.
    """
    position = {example.digest: _position(example.digest, seed) for example in examples.items}
    sides = {digest: VALIDATION if place < ratio else TRAINING for digest, place in position.items()}
    classes_of: dict[str, set[int]] = {}
    for example in examples.items:
        classes_of.setdefault(example.digest, set()).add(example.label)
    members: list[set[str]] = [set() for _ in examples.class_names]
    for example in examples.items:
        members[example.label].add(example.digest)
    # Classes of one example first: other classes that hold a copy of it are then repaired with another one.
    for class_name, digests in sorted(zip(examples.class_names, members, strict=True), key=lambda item: len(item[1])):
        _repair(class_name, sorted(digests), sides, position, ratio, classes_of)
    return _on_side(examples, sides, TRAINING), _on_side(examples, sides, VALIDATION)


def _repair(
    class_name: str,
    digests: Sequence[str],
    sides: dict[str, str],
    position: Mapping[str, float],
    ratio: float,
    classes_of: Mapping[str, set[int]],
) -> None:
    """Moves at most one distinct example of a class, so that the class is on both sides where it can be."""
    if not digests:
        return
    if len(digests) == 1:
        sides[digests[0]] = TRAINING
        log.warning("class %s has one distinct example: it is in training only, and is not validated", class_name)
        return
    present = {sides[digest] for digest in digests}
    if len(present) == 2:
        return
    missing = VALIDATION if present == {TRAINING} else TRAINING
    # A photo that other classes hold too would take their copies along: it is moved only when there is no other.
    nearest = min(digests, key=lambda digest: (len(classes_of[digest]), abs(position[digest] - ratio), digest))
    sides[nearest] = missing
    log.info("class %s had no %s example: the one nearest to the threshold changed over", class_name, missing)


def write_split(file: Path, parts: Mapping[str, Examples]) -> None:
    """Writes which example is in which part: columns split, id, label (class name), sha256."""
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["split", "id", "label", "sha256"])
        rows = [
            (side, example.id, part.class_names[example.label], example.digest)
            for side, part in parts.items()
            for example in part.items
        ]
        writer.writerows(sorted(rows))


def _on_side(examples: Examples, sides: Mapping[str, str], side: str) -> Examples:
    return dataclasses.replace(
        examples, items=tuple(example for example in examples.items if sides[example.digest] == side)
    )


def _position(digest: str, seed: int) -> float:
    """Returns where in [0, 1) an example's content falls; 53 bits, as many as a float holds exactly."""
    mixed = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    return (int.from_bytes(mixed[:8], "big") >> 11) / 2**53
