"""Probabilities to the bodies of answers, as the client accepts them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tf_finetune.serving.payloads import CSV, JSON, LINES, LINES_TOO
from tf_finetune.serving.records import Refusal

OFFERED = f"{JSON}, {JSON};verbose, {LINES} or {CSV}"
QUALITY = re.compile(r"q=(\d*\.?\d*)")
BLOCK = 10_000  # Probabilities that are written at a time: other threads have their turn in between.


def accepted(header: str, default: str = JSON) -> tuple[str, bool]:
    """Returns the type of the answer that a client asks for, and whether it is to name the classes too.

    Args:
        header: Its Accept headers, with commas between: of what is offered the one with the highest quality is taken,
            and of equals the one that is named before wildcards, with "verbose" before without it, the first.
        default: Likewise, for no header, and the type that comes first where anything will do.

    Raises:
        Refusal: 406: it accepts none that there is.

    >>> accepted("text/html, application/json;q=0.5, application/json;verbose;q=0.9")
    ('application/json', True)
    """
    first, is_verbose = (JSON, False) if default == JSON else accepted(default)
    ranges = [_range(part) for part in header.split(",") if part.strip()]
    if not ranges:
        return first, is_verbose
    named = {kind for kind, _, _ in ranges}
    wanted = [one for one in ranges if one[2] > 0]
    for kind, verbose, _ in sorted(wanted, key=lambda one: (-one[2], one[0].count("*"), not one[1])):
        for offered in (first, JSON, LINES, CSV):
            is_any = kind in ("*", "*/*", f"{offered.split('/')[0]}/*") and offered not in named
            if kind == offered or is_any:
                return offered, verbose or is_any and is_verbose and offered == first
    raise Refusal(406, f"Expected to accept {OFFERED}. Received: {header[:200]}.")


def _range(part: str) -> tuple[str, bool, float]:
    """Returns a type or wildcard, whether it is to be verbose, and its quality in [0, 1]."""
    kind, *parameters = (word.strip().lower() for word in part.split(";"))
    told = next((found[1] for word in parameters if (found := QUALITY.fullmatch(word))), "")
    quality = min(float(told), 1.0) if told.strip(".") else 1.0
    return LINES if kind in LINES_TOO else kind, "verbose" in parameters, quality


def body(rows: np.ndarray, class_names: Sequence[str], kind: str, is_verbose: bool) -> bytes:
    """Returns the answer to a request.

    Args:
        rows: float32 [N, K], probabilities.
        class_names: K.
        kind: What `accepted` returned.
        is_verbose: Likewise. CSV holds the probabilities alone.

    Returns:
        JSON: for one example {"probabilities": [...]}, for several {"predictions": [{"probabilities": [...]}, ...]}.
        JSON Lines: an object a line. CSV: a row of probabilities for each.
    """
    if kind == CSV:
        return b"".join("".join(",".join(map(repr, row)) + "\n" for row in block).encode() for block in _blocks(rows))
    found = ([_prediction(row, class_names, is_verbose) for row in block] for block in _blocks(rows))
    if kind == LINES:
        return b"".join("".join(json.dumps(one) + "\n" for one in block).encode() for block in found)
    if len(rows) == 1:
        return json.dumps(next(found)[0]).encode()
    return b'{"predictions": [' + b", ".join(json.dumps(block)[1:-1].encode() for block in found) + b"]}"


def _blocks(rows: np.ndarray) -> Iterator[list[list[float]]]:
    """Yields the rows, some at a time, with the digits that `predict` gives."""
    size = max(1, BLOCK // max(1, rows.shape[1]))
    for start in range(0, len(rows), size):
        yield [[float(f"{value:.9g}") for value in row] for row in rows[start : start + size].tolist()]


def _prediction(row: list[float], class_names: Sequence[str], is_verbose: bool) -> dict[str, Any]:
    if not is_verbose:
        return {"probabilities": row}
    best = max(range(len(row)), key=row.__getitem__)
    return {"probabilities": row, "labels": list(class_names), "predicted_label": class_names[best]}
