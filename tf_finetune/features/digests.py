"""What identifies a backbone and the views of an example, so that features are found again by it."""

from __future__ import annotations

import hashlib

from tf_finetune.features import Source


def keys_of_views(examples: Source) -> list[bytes]:
    """Returns what identifies each view of each example: 32 bytes for each of V x N."""
    marks = [view.to_bytes(4, "little") for view in range(examples.views)]
    return [hashlib.sha256(digest + mark).digest() for mark in marks for digest in examples.digests]
