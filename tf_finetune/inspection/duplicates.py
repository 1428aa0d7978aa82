"""Which examples are alike: photos by their hashes and thumbnails, texts by their words, both by their features.

Dimension letters: D features, N examples.
"""

from __future__ import annotations

import functools
import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from tf_finetune.feature_cache import Place, listing
from tf_finetune.feature_cache.space import opened

log = logging.getLogger(__name__)

HASH_BITS = 256
# Bits of 256 in which two hashes of look-alikes differ, and of how many set bits one may differ: a photo that is mostly
# background has few bits to be told by. Measured on 839 real photos: unlike ones differ in 20 bits or more; 99 % of
# those encoded anew, of half the size or 5 % brighter are found, and 90 % of those cut by 2 %.
MOST_BITS = 16
SET_BITS = 7
MOST_LEVELS = 10  # Of 255, the mean difference of two thumbnails.
NINE_IN_TEN = 16  # Levels that nine in ten of their numbers differ by at most: backgrounds agree anyway.
WINDOW = 64  # Neighbours that one is compared with, where very many share a part of their hash.
# Examples whose features are compared, each with each; fewer have no mean worth the name.
LEAST_EXAMPLES, MOST_EXAMPLES = 20, 10_000
LEAST_FEATURES = 64  # D; with fewer, such as a mean colour, all is alike.
# Cosine of features less their mean. By EfficientNet-Lite0 and MobileNet no two of 840 real photos came above 0.92;
# flowers that were mirrored, 20 % brighter or cut by 2 % mostly come above 0.94 with themselves.
ALIKE = 0.94
BLOCK = 1024


def near_photos(hashes: Mapping[str, tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Returns the pairs of photos that look alike.

    Two hashes that differ in at most MOST_BITS are equal in one of MOST_BITS + 1 parts at least, so only photos that
    share a part are compared: the time grows with N, not with its square.

    Args:
        hashes: Of each digest the hash, 32 bytes, and the thumbnail, uint8 [8, 8, 3] as bytes.
    """
    if len(hashes) < 2:
        return []
    digests = sorted(hashes)
    packed = np.frombuffer(b"".join(hashes[digest][0] for digest in digests), np.uint8).reshape(len(digests), -1)
    thumbnails = np.frombuffer(b"".join(hashes[digest][1] for digest in digests), np.uint8).reshape(len(digests), -1)
    brightness = thumbnails.mean(axis=1)
    found = [np.empty([0, 2], np.int64)]
    for part in _parts(packed):
        order = np.lexsort((brightness, part))
        ordered = part[order]
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            first = np.flatnonzero(ordered[step:] == ordered[:-step])
            if not len(first):
                break
            # No thumbnails differ by less than their means do, and most pairs differ by more in that already.
            first = first[brightness[order[first + step]] - brightness[order[first]] <= MOST_LEVELS]
            pairs = np.sort(np.stack([order[first], order[first + step]], axis=1), axis=1)
            found.append(pairs[_are_alike(pairs, packed, thumbnails)])
    return [(digests[one], digests[other]) for one, other in np.unique(np.concatenate(found), axis=0).tolist()]


def _parts(packed: np.ndarray) -> list[np.ndarray]:
    """Returns MOST_BITS + 1 arrays, int64 [N]: a share of the bits of each hash, uint8 [N, 32].

    The bits of a part come from all over the photo: in one corner, skies and backgrounds are alike.
    """
    bits = np.unpackbits(packed, axis=1)
    order = np.random.default_rng(0).permutation(HASH_BITS)
    shares = np.array_split(order, MOST_BITS + 1)
    return [bits[:, share].astype(np.int64) @ (1 << np.arange(len(share), dtype=np.int64)) for share in shares]


def _are_alike(pairs: np.ndarray, packed: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """Returns bool [M] of pairs, int64 [M, 2]."""
    alike = np.zeros(len(pairs), bool)
    for start in range(0, len(pairs), 2**16):
        part = pairs[start : start + 2**16]
        one, other = packed[part[:, 0]], packed[part[:, 1]]
        differing, common = _COUNTS[one ^ other].sum(axis=1), _COUNTS[one | other].sum(axis=1)
        close = np.flatnonzero((differing <= MOST_BITS) & (differing * SET_BITS <= common))
        pictures = [thumbnails[part[close, side]].astype(np.int16) for side in (0, 1)]
        levels = np.sort(np.abs(pictures[0] - pictures[1]), axis=1)
        is_close = levels[:, levels.shape[1] * 9 // 10] <= NINE_IN_TEN
        alike[start + close] = is_close & (levels.mean(axis=1) <= MOST_LEVELS)
    return alike


_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1).astype(np.uint16)


def near_texts(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Returns the pairs of texts that have the same words; each is paired with the first of its like.

    Args:
        texts: Of each digest the text.
    """
    first: dict[str, str] = {}
    pairs = []
    for digest in sorted(texts):
        words = plain(texts[digest])
        if words and first.setdefault(words, digest) != digest:
            pairs.append((first[words], digest))
    return pairs


def plain(text: str) -> str:
    """Returns the words of a text in lower case, whatever stands between them; nothing where it has none.

    >>> plain("  FREE-entry,\\tcall ０８７１!!"), plain(":-)")
    ('free entry call 0871', '')
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    if folded.isascii():
        return re.sub(r"[\W_]+", " ", folded).strip()
    # Marks belong to the letters before them: in many scripts they are the vowels.
    return " ".join("".join(char if _is_of_a_word(char) else " " for char in folded).split())


@functools.lru_cache(2**14)
def _is_of_a_word(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNM"


def by_features(digests: Sequence[str], place: Place) -> list[tuple[str, str]]:
    """Returns the pairs whose features, as earlier jobs kept them, are alike.

    Args:
        digests: Of the examples.
        place: Where features are kept. Of the spaces without augmentation the one that knows the most is taken.
    """
    wanted = sorted(set(digests))
    if not LEAST_EXAMPLES <= len(wanted) <= MOST_EXAMPLES:
        return []
    known: dict[str, np.ndarray] = {}
    for space in listing(place):
        about = space["about"]
        is_plain = about.get("precision") == "float32" and not about.get("augmentation")
        if is_plain and place.folder is not None and space["examples"] > len(known):
            found = _kept(place, space["name"], set(wanted))
            known = found if len(found) > len(known) else known
    return _pairs_of_features(known)


def _kept(place: Place, space: str, wanted: set[str]) -> dict[str, np.ndarray]:
    """Returns the features, float32 [D], of the digests that a space knows."""
    found: dict[str, np.ndarray] = {}
    assert place.folder is not None
    for file in sorted((place.folder / space).glob("*.npy")):
        shard = opened(file, None, remove=False)
        for row, key in enumerate(shard.keys if shard else ()):
            digest = key.tobytes().hex()
            if digest in wanted and shard is not None:
                found[digest] = np.array(shard.features[row])
    sizes = {len(features) for features in found.values()}
    return found if len(sizes) == 1 else {}


def _pairs_of_features(known: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    digests = sorted(digest for digest, row in known.items() if np.isfinite(row).all())
    if len(digests) < LEAST_EXAMPLES or len(known[digests[0]]) < LEAST_FEATURES:
        return []
    rows = np.stack([known[digest] for digest in digests])
    rows = rows - rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    pairs = []
    for start in range(0, len(rows), BLOCK):
        cosines = rows[start : start + BLOCK] @ rows[start:].T
        for one, other in zip(*np.nonzero(np.triu(cosines >= ALIKE, 1)), strict=True):
            pairs.append((digests[start + one], digests[start + other]))
    return pairs
