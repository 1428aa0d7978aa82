"""Probabilities to the bodies of answers, as the client accepts them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tf_finetune.serving.payloads import CSV, JSON, LINES
from tf_finetune.serving.records import Refusal

ANY = ("", "*", "*/*", "application/*")
OFFERED = f"{JSON}, {JSON};verbose, {LINES} or {CSV}"


def accepted(header: str) -> tuple[str, bool]:
    """Returns the type of the answer that a client asks for, and whether it is to name the classes too.

    Raises:
        Refusal: 406: it accepts none that there is.

    >>> accepted("application/json;verbose")
    ('application/json', True)
    """
    for part in (header or JSON).split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        if kind in (JSON, LINES, CSV, *ANY):
            return JSON if kind in ANY else kind, "verbose" in parameters
    raise Refusal(406, f"Expected to accept {OFFERED}. Received: {header[:200]}.")


def body(rows: Sequence[Sequence[float]], class_names: Sequence[str], kind: str, is_verbose: bool) -> bytes:
    """Returns the answer to a request.

    Args:
        rows: N rows of K probabilities.
        class_names: K.
        kind: What `accepted` returned.
        is_verbose: Likewise. CSV holds the probabilities alone.

    Returns:
        JSON: for one example {"probabilities": [...]}, for several {"predictions": [{"probabilities": [...]}, ...]}.
        JSON Lines: an object a line. CSV: a row of probabilities for each.
    """
    if kind == CSV:
        return "".join(",".join(map(repr, row)) + "\n" for row in rows).encode()
    found = [_prediction(row, class_names, is_verbose) for row in rows]
    if kind == LINES:
        return "".join(json.dumps(one) + "\n" for one in found).encode()
    return json.dumps(found[0] if len(found) == 1 else {"predictions": found}).encode()


def _prediction(row: Sequence[float], class_names: Sequence[str], is_verbose: bool) -> dict[str, Any]:
    if not is_verbose:
        return {"probabilities": row}
    best = max(range(len(row)), key=row.__getitem__)
    return {"probabilities": row, "labels": list(class_names), "predicted_label": class_names[best]}
