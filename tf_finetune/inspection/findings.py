"""What is the matter with a whole set of examples: copies, conflicts, leaks, classes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tf_finetune.errors import listed
from tf_finetune.examples import TRAINING, Example, Examples
from tf_finetune.examples.records import counted
from tf_finetune.inspection.records import ERROR, WARNING, Finding, Unusable

FEW = 10  # Examples of a class in training.
IMBALANCE = 10  # Times as many examples as the smallest class has.
SHOWN_GROUPS = 3  # Of copies, in the sentence for people.
Member = tuple[str, Example]  # With its channel.


def natural(id: str) -> list[Any]:
    """Returns a key that sorts data.csv:9 before data.csv:10.

    >>> sorted(["data.csv:10", "data.csv:9"], key=natural)
    ['data.csv:9', 'data.csv:10']
    """
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]{1,18})", id))]


def of_unusable(unusable: Sequence[Unusable], noun: str) -> list[Finding]:
    """Returns a finding for each kind of what was left out."""
    kinds: dict[str, list[Unusable]] = {}
    for one in unusable:
        kinds.setdefault(one.kind, []).append(one)
    found = []
    for kind, members in kinds.items():
        reasons = list(dict.fromkeys(one.reason for one in members))
        detail = f"{counted(len(members), noun)} left out: {listed(reasons, limit=2, separator=' | ')}"
        found.append(Finding(ERROR, kind, tuple(f"{one.channel}/{one.id}" for one in members), detail))
    return found


def of_data(parts: Mapping[str, Examples], groups: Mapping[str, str], noun: str) -> list[Finding]:
    """Returns what is the matter with the examples that can be used.

    Args:
        parts: Of each channel; training is among them.
        groups: Digest to the smallest digest of its near duplicates.
        noun: What to call an example.
    """
    members = [(channel, example) for channel, part in parts.items() for example in part.items]
    found = [*_conflicts(members, max((part.class_names for part in parts.values()), key=len), groups, noun)]
    found += _leaks(members, groups, noun)
    for channel in parts:
        found += _copies(channel, [member for member in members if member[0] == channel], groups, noun)
    return found + of_classes(parts[TRAINING])


def of_classes(training: Examples) -> list[Finding]:
    """Returns what is the matter with the classes: their sizes and their names."""
    names, counts, found = training.class_names, Counter(training.labels), []
    sizes = {name: counts[label] for label, name in enumerate(names)}
    largest, smallest = max(names, key=lambda name: sizes[name]), min(names, key=lambda name: sizes[name])
    if sizes[largest] > IMBALANCE * sizes[smallest]:
        detail = (
            f"class {largest} has {sizes[largest]:,} examples, class {smallest} {sizes[smallest]:,}: accuracy says "
            "little about small classes; consider class_weight=balanced, or more examples"
        )
        found.append(Finding(WARNING, "imbalance", (), detail))
    few = [f"{name} ({size:,})" for name, size in sizes.items() if size < FEW]
    if few:
        detail = f"{counted(len(few), 'class')} of fewer than {FEW} training examples: {listed(few)}"
        found.append(Finding(WARNING, "few_examples", (), detail))
    alike: dict[str, list[str]] = {}
    for name in names:
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        alike.setdefault(re.sub(r"[\s_-]+", "", folded), []).append(name)
    pairs = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    if pairs:
        detail = f"class names that differ in case, blanks or spelling of a letter only: {listed(pairs)}"
        found.append(Finding(WARNING, "similar_class_names", (), detail))
    return found


def of_pairs(
    pairs: Iterable[tuple[str, str]], parts: Mapping[str, Examples], groups: Mapping[str, str]
) -> Finding | None:
    """Returns the finding of pairs of digests whose features are alike, but for those that are groups already."""
    names: dict[str, str] = {}
    for channel, part in parts.items():
        for example in part.items:
            names.setdefault(example.digest, f"{channel}/{example.id}")
    new = [(one, other) for one, other in pairs if groups.get(one, one) != groups.get(other, other)]
    if not new:
        return None
    shown = [f"{names[one]} = {names[other]}" for one, other in new]
    ids = tuple(dict.fromkeys(names[digest] for pair in new for digest in pair))
    detail = (
        f"{counted(len(new), 'pair')} that the backbone of an earlier job hardly tells apart; they may be on both "
        f"sides of the split: {listed(shown, limit=SHOWN_GROUPS)}"
    )
    return Finding(WARNING, "near_duplicate_features", ids, detail)


def _copies(channel: str, members: Sequence[Member], groups: Mapping[str, str], noun: str) -> list[Finding]:
    """Returns the findings of copies within a channel, exact and near."""
    found = []
    exact = [same for same in _together(members, lambda example: example.digest) if len(same) > 1]
    if exact:
        spare = sum(map(len, exact)) - len(exact)
        detail = f"{counted(spare, noun)} of {channel} {_are(spare)} of others, byte for byte: {_shown(exact)}"
        found.append(Finding(WARNING, "exact_duplicate", _ids(exact), detail))
    near = [
        same
        for same in _together(members, lambda example: groups.get(example.digest, ""))
        if len({example.digest for _, example in same}) > 1
    ]
    if near:
        spare = sum(len({example.digest for _, example in same}) - 1 for same in near)
        detail = f"{counted(spare, noun)} of {channel} {_are(spare)} of others, nearly: {_shown(near)}"
        found.append(Finding(WARNING, "near_duplicate", _ids(near), detail))
    return found


def _are(count: int) -> str:
    return "is a copy" if count == 1 else "are copies"


def _conflicts(
    members: Sequence[Member], class_names: Sequence[str], groups: Mapping[str, str], noun: str
) -> list[Finding]:
    """Returns the finding of examples that two classes have, exactly or nearly."""
    found = [
        same
        for same in _together(members, lambda example: groups.get(example.digest, example.digest))
        if len({example.label for _, example in same}) > 1
    ]
    if not found:
        return []
    exact = sum(
        any(len({example.label for _, example in copies}) > 1 for copies in _together(same, lambda one: one.digest))
        for same in found
    )
    first = sorted({class_names[example.label] for _, example in found[0]})
    detail = (
        f"{counted(len(found), noun)} in more than one class, {exact:,} exactly and {len(found) - exact:,} nearly: "
        f"{_shown(found)} ({listed(first)})"
    )
    return [Finding(WARNING, "label_conflict", _ids(found), detail)]


def leaked(
    training: Iterable[Example], others: Iterable[Example], groups: Mapping[str, str]
) -> tuple[list[Example], list[Example]]:
    """Returns those of some other examples that are also in training: exactly, and nearly."""
    digests = {example.digest for example in training}
    alike = {groups[digest] for digest in digests if digest in groups}
    exact, near = [], []
    for example in others:
        if example.digest in digests:
            exact.append(example)
        elif groups.get(example.digest) in alike:
            near.append(example)
    return exact, near


def _leaks(members: Sequence[Member], groups: Mapping[str, str], noun: str) -> list[Finding]:
    """Returns a finding for each other channel that has examples of training, exactly or nearly, or of its groups."""
    training = [example for channel, example in members if channel == TRAINING]
    named = {example.group for example in training if example.group}
    found = []
    for channel in dict.fromkeys(channel for channel, _ in members if channel != TRAINING):
        there = [member for member in members if member[0] == channel]
        exact, near = leaked(training, [example for _, example in there], groups)
        if exact or near:
            detail = (
                f"{len(exact) + len(near):,} of {counted(len(there), noun)} of {channel} are also in training, "
                f"{len(exact):,} exactly and {len(near):,} nearly: figures of {channel} flatter"
            )
            found.append(Finding(WARNING, "leak", _ids([[(channel, example) for example in exact + near]]), detail))
        shared = [member for member in there if member[1].group in named]
        if shared:
            detail = f"{counted(len(shared), noun)} of {channel} {_have(shared)} a group that is also in training"
            found.append(Finding(WARNING, "group_leak", _ids([shared]), detail))
    return found


def _have(members: Sequence[Member]) -> str:
    return "has" if len(members) == 1 else "have"


def _together(members: Iterable[Member], key: Callable[[Example], str]) -> list[list[Member]]:
    """Returns members of the same key, which is not empty, in the order of their ids."""
    found: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda member: natural(member[1].id)):
        if key(member[1]):
            found.setdefault(key(member[1]), []).append(member)
    return list(found.values())


def _ids(groups: Iterable[Iterable[Member]]) -> tuple[str, ...]:
    return tuple(f"{channel}/{example.id}" for members in groups for channel, example in members)


def _shown(groups: Sequence[Sequence[Member]]) -> str:
    """Returns the first groups as people read them."""
    return listed([listed(_ids([members]), limit=3, separator=" = ") for members in groups], limit=SHOWN_GROUPS)
