"""The work of several hosts on the same examples: each computes its share, and the chief has the whole.

Dimension letters: D features, H hosts, N examples (or views of them), M those of one share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import features
from tf_finetune.feature_cache.space import SHARD_BYTES, Space
from tf_finetune.features import Source
from tf_finetune.hosts.team import Team

PIECE_BYTES = 16 * 2**20  # Of rows that are sent at a time.


def decided(team: Team, topic: str, decide: Callable[[], Any]) -> Any:
    """Returns what the chief decides, on all hosts.

    Args:
        team: The hosts.
        topic: Names the decision.
        decide: Called on the chief alone, as it may look at its own examples, cache and hardware.

    Raises:
        InvalidArgumentError: On all hosts, where the chief could not read an example.
    """
    decision, failure = None, None
    if team.is_chief:
        try:
            decision = decide()
        except tf.errors.InvalidArgumentError as error:
            failure = error
    decision, said = team.told(topic, (decision, str(failure) if failure else ""))
    if failure or said:
        raise failure or tf.errors.InvalidArgumentError(None, None, said)
    return decision


@dataclasses.dataclass(frozen=True)
class Found:
    """What came of a pass that several hosts shared.

    Attributes:
        new: int64 [M], the places that were computed by any host.
        received: int64 [M], the places that the chief has from others; on them none.
        reused: On the chief, how many places it has because another host knew them.
        spoilt: How many features are no numbers.
    """

    new: np.ndarray
    received: np.ndarray
    reused: int
    spoilt: int


@dataclasses.dataclass(frozen=True)
class Shares:
    """Who computes what, the same on all hosts. A place is an index into N; equal examples have one place.

    Attributes:
        computed: For each host int64 [M], the places whose features it computes.
        sent: For each host int64 [M], the places whose features the chief has from it alone; of the chief none.
        missing: bool [N]. Places that no host knew.
    """

    computed: list[np.ndarray]
    sent: list[np.ndarray]
    missing: np.ndarray


def shares(known: np.ndarray, keys: Sequence[bytes], lengths: np.ndarray | None) -> Shares:
    """Returns who computes what: what a host knows, no host computes; the rest is dealt out evenly, by length.

    Args:
        known: bool [H, N]. Which features each host has already.
        keys: N of them; equal ones stand for equal features.
        lengths: int64 [N], of texts; None for photos.
    """
    hosts = len(known)
    first: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    places = np.fromiter(first.values(), np.int64, len(first))
    missing: np.ndarray = np.logical_not(known.any(axis=0))
    todo = [int(place) for place in places[missing[places]]]
    todo.sort(key=lambda place: (0 if lengths is None else int(lengths[place % len(lengths)]), keys[place]))
    computed = [np.array(todo[host::hosts], np.int64) for host in range(hosts)]
    wanted = places[~missing[places] & ~known[0, places]]
    holder = known.argmax(axis=0)  # The first host that has it.
    held = [wanted[holder[wanted] == host] for host in range(hosts)]
    return Shares(computed, [np.sort(np.concatenate(both)) for both in zip(computed, held, strict=True)], missing)


def agreed_shares(team: Team, known: np.ndarray, keys: Sequence[bytes], lengths: np.ndarray | None) -> Shares:
    """Returns the shares, from what each host says that it knows: bool [N]."""
    bits = team.collected("known features", np.packbits(known))
    table = team.told("what is known", np.stack(bits) if bits else None)
    return shares(np.unpackbits(table, axis=1, count=len(known)).astype(bool), keys, lengths)


def computed(
    team: Team,
    compute: Callable[[np.ndarray], int],
    keys: Sequence[bytes],
    lengths: np.ndarray | None,
    rows: np.ndarray,
    known: np.ndarray,
) -> Found:
    """Has each host compute its share, and fills in all rows on the chief.

    Args:
        team: The hosts; all call this with the same keys.
        compute: Given bool [N], the places to leave out, fills in the rows of the others and counts the spoilt.
        keys: N of them; equal ones stand for equal features.
        lengths: As `shares` has it.
        rows: float32 [N, D].
        known: bool [N]. The rows that this host has already.

    Raises:
        InvalidArgumentError: On all hosts, where one could not read an example.
    """
    split = agreed_shares(team, known, keys, lengths)
    mine, failure, spoilt = split.computed[team.index], None, 0
    left_out = np.ones(len(keys), bool)
    left_out[mine] = False
    try:
        spoilt = compute(left_out) if len(mine) else 0
    except tf.errors.InvalidArgumentError as error:
        failure = error
    failures = team.collected("failures", str(failure) if failure else "")
    said = team.told("whether all could be read", next(filter(None, failures), ""))
    if said:  # All go the same way, or those that could read theirs would wait for the others.
        raise failure or tf.errors.InvalidArgumentError(None, None, said)
    spoilt = team.told("spoilt features", sum(team.collected("spoilt", spoilt)))
    _gather(team, split, rows)
    received, reused = np.zeros([0], np.int64), 0
    if team.is_chief:
        received = np.concatenate(split.sent[1:])
        reused = int((~split.missing & ~known).sum())
        first: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            rows[place] = rows[first.setdefault(key, place)]
    return Found(np.flatnonzero(split.missing), received, reused, spoilt)


def keep(space: Space, keys: Sequence[bytes], rows: np.ndarray, places: np.ndarray) -> None:
    """Keeps the rows of some places, unless another host has, in a folder that all share; those that are no numbers
    are left out."""
    _, known = space.read([keys[place] for place in places], rows.shape[1])
    places = places[~known]
    size = max(1, SHARD_BYTES // max(1, rows[:1].nbytes))
    for first in range(0, len(places), size):
        part = places[first : first + size]
        part = part[np.isfinite(rows[part]).all(axis=1)]
        space.write([keys[place] for place in part], rows[part])


def _gather(team: Team, split: Shares, rows: np.ndarray) -> None:
    """Fills in, on the chief, the rows that the other hosts have computed or had.

    Args:
        team: The hosts.
        split: Who has what.
        rows: float32 [N, D]. Only the first place of equal examples is filled in.
    """
    step = max(1, PIECE_BYTES // max(1, rows[:1].nbytes))
    for start in range(0, max(map(len, split.sent[1:])), step):
        pieces = team.collected("features", rows[split.sent[team.index][start : start + step]])
        for places, piece in zip(split.sent[1:], pieces[1:], strict=False):
            rows[places[start : start + step]] = piece


def outputs(
    forward: Callable[[tf.Tensor], tf.Tensor], examples: Source, strategy: tf.distribute.Strategy, team: Team
) -> np.ndarray:
    """Returns on the chief float32 [N, ...], what `features.outputs` does, and on the others its own share.

    Args:
        forward: From what `load` gives, batched, to the outputs; it may not add up over replicas.
        examples: With `load` of what the backbone takes.
        strategy: The replicas.
        team: The hosts.
    """
    if team.count == 1:
        return features.outputs(forward, examples, strategy)
    count, hosts = len(examples), team.count
    mine = np.arange(team.index, count, hosts)
    found = np.zeros([0], np.float32)
    if len(mine):
        seeds = np.zeros([len(mine), 2], np.int32)
        at_least = -(-count // hosts)  # One shape of batches on all hosts.
        parts = features.batches(forward, examples.load, mine, seeds, strategy, at_least)
        found = np.concatenate(list(parts))
    every = team.collected("answers", found)
    if not every:
        return found
    whole = np.empty([count, *found.shape[1:]], np.float32)  # The chief has a share, where there is any.
    for host, part in enumerate(every):
        if len(part):
            whole[host::hosts] = part
    return whole
