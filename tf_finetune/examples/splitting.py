"""The split that cannot leak: decided by content, class by class, and never within a group."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence

from tf_finetune.examples import grouping
from tf_finetune.examples.records import TRAINING, VALIDATION, Examples

log = logging.getLogger(__name__)

LEFT_OUT = "left_out"  # Of the score: near duplicates in validation of what has come to training since.


@dataclasses.dataclass(frozen=True)
class Unit:
    """What stays together: examples of one content, of near duplicates, or of one group that the user names.

    Attributes:
        digests: Of its members; the first is the smallest, which decides its side.
        labels: The classes of its members.
        position: Where in [0, 1) that digest falls.
    """

    digests: tuple[str, ...]
    labels: frozenset[int]
    position: float


def split(
    examples: Examples, ratio: float, seed: int, groups: Mapping[str, str] | None = None
) -> tuple[Examples, Examples]:
    """Splits examples into training and validation by a hash of each one's content.

    Each example's side depends on its bytes and the seed alone, so order, names and added files move nothing, and
    exact duplicates share a side. A group shares the side of its smallest digest. Repair: a class of two or more units
    that fell on one side whole has its unit nearest to the threshold changed over. A class of one unit goes to
    training.

    Args:
        examples: All of them; `Example.group` names what belongs together.
        ratio: Expected share of validation, in [0, 1].
        seed: Another seed, another split.
        groups: A digest to one that it belongs together with, such as near duplicates.
    """
    units = _units(examples, groups or {}, seed)
    sides = {unit.digests[0]: VALIDATION if unit.position < ratio else TRAINING for unit in units}
    _repair(examples.class_names, units, sides, ratio)
    by_digest = _by_digest(units, sides)
    return _on_side(examples, by_digest, TRAINING), _on_side(examples, by_digest, VALIDATION)


def split_again(
    examples: Examples, ratio: float, seed: int, earlier: Mapping[str, str], groups: Mapping[str, str] | None = None
) -> tuple[Examples, Examples, Examples]:
    """Splits examples as they were split before: training, validation, and what is left out of the score.

    What was there before stays where it was. A newcomer goes where the rest of its group is; one whose group is on both
    sides goes to training, and the group's members in validation are left out, since they would be no test any more.

    Args:
        examples, ratio, seed, groups: As in `split`.
        earlier: The side of each digest that was there, TRAINING, VALIDATION or LEFT_OUT.
    """
    units = _units(examples, groups or {}, seed)
    sides: dict[str, str] = {}
    new = []
    for unit in units:
        known = {digest: earlier[digest] for digest in unit.digests if digest in earlier}
        sides.update(known)
        there = set(known.values()) - {LEFT_OUT}
        newcomers = [digest for digest in unit.digests if digest not in earlier]
        if not known:
            new.append(unit)
            continue
        side = VALIDATION if there == {VALIDATION} else TRAINING
        sides.update(dict.fromkeys(newcomers, side))
        if newcomers and len(there) == 2:
            sides.update({digest: LEFT_OUT for digest, old in known.items() if old == VALIDATION})
    fresh = {unit.digests[0]: VALIDATION if unit.position < ratio else TRAINING for unit in new}
    present = {example.label for example in examples.items if example.digest in earlier}
    _repair(examples.class_names, [unit for unit in new if not unit.labels & present], fresh, ratio)
    sides.update(_by_digest(new, fresh))
    training, validation, left_out = (_on_side(examples, sides, side) for side in (TRAINING, VALIDATION, LEFT_OUT))
    if left_out.items:
        log.info("%d validation examples are left out: they are near duplicates of new ones", len(left_out))
    return training, validation, left_out


def _units(examples: Examples, groups: Mapping[str, str], seed: int) -> list[Unit]:
    """Returns the units of some examples, in the order of their smallest digests."""
    named = [(one.digest, f"group:{one.group}") for one in examples.items if one.group]  # No digest has a colon.
    roots = grouping.groups([*groups.items(), *named])
    members: dict[str, set[str]] = {}
    labels: dict[str, set[int]] = {}
    for example in examples.items:
        root = roots.get(example.digest, example.digest)
        members.setdefault(root, set()).add(example.digest)
        labels.setdefault(root, set()).add(example.label)
    units = [
        Unit(tuple(sorted(digests)), frozenset(labels[name]), _position(min(digests), seed))
        for name, digests in members.items()
    ]
    return sorted(units, key=lambda unit: unit.digests)


def _repair(class_names: Sequence[str], units: Iterable[Unit], sides: dict[str, str], ratio: float) -> None:
    """Moves at most one unit of each class, so that the class is on both sides where it can be."""
    of_class: list[list[Unit]] = [[] for _ in class_names]
    for unit in units:
        for label in unit.labels:
            of_class[label].append(unit)
    # Classes of one unit first: other classes that share it are then repaired with another one.
    for class_name, own in sorted(zip(class_names, of_class, strict=True), key=lambda item: len(item[1])):
        if not own:
            continue
        if len(own) == 1:
            sides[own[0].digests[0]] = TRAINING
            what = "one distinct example" if len(own[0].digests) == 1 else "one group of examples"
            log.warning("class %s has %s: it is in training only, and is not validated", class_name, what)
            continue
        present = {sides[unit.digests[0]] for unit in own}
        if len(present) == 2:
            continue
        missing = VALIDATION if present == {TRAINING} else TRAINING
        # A unit that other classes hold too would take their copies along: it is moved only when there is no other.
        nearest = min(own, key=lambda unit: (len(unit.labels), abs(unit.position - ratio), unit.digests))
        sides[nearest.digests[0]] = missing
        log.info("class %s had no %s example: the one nearest to the threshold changed over", class_name, missing)


def _by_digest(units: Iterable[Unit], sides: Mapping[str, str]) -> dict[str, str]:
    return {digest: sides[unit.digests[0]] for unit in units for digest in unit.digests}


def _on_side(examples: Examples, sides: Mapping[str, str], side: str) -> Examples:
    return dataclasses.replace(
        examples, items=tuple(example for example in examples.items if sides[example.digest] == side)
    )


def _position(digest: str, seed: int) -> float:
    """Returns where in [0, 1) an example's content falls; 53 bits, as many as a float holds exactly."""
    mixed = hashlib.sha256(f"{seed}:{digest}".encode()).digest()
    return (int.from_bytes(mixed[:8], "big") >> 11) / 2**53
