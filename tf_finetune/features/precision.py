"""The choice of how training features are computed: the fastest way that agrees with float32 on the user's examples.

Dimension letters: D features, n examples of the sample.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tf_finetune import devices
from tf_finetune.features import Source
from tf_finetune.features.frozen import EXACT, LARGE, Passes, Way

log = logging.getLogger(__name__)

MEDIAN_COSINE, LEAST_COSINE = 0.998, 0.98
TRIED_FROM = 200  # Steps of a training from which it pays to time some of them in 16 bits.


def choose(
    passes: Passes,
    asked: str,
    is_image: bool,
    count: int,
    sample: Callable[[bool], Source],
    scales: Callable[[], bool],
) -> tuple[Way, dict[str, Any]]:
    """Returns how training features are computed, and what the report says of it.

    Args:
        passes: The passes through the frozen backbone.
        asked: The hyperparameter `precision`.
        is_image: Whether examples are photos.
        count: How many training examples there are.
        sample: The examples to check on, decoded at a smaller scale where it is allowed and asked for.
        scales: Whether some photo of the sample is decoded at a smaller scale; asked only where it matters.

    Returns:
        The way, and asked, features (their precision), scaled_decoding, reason, and of the last check examples,
        median_cosine, least_cosine.
    """
    wanted, reason = _wanted(asked, is_image, count)
    scaled = is_image and scales()
    candidates = [Way(wanted, scaled), Way(wanted, False)] if scaled else [Way(wanted, False)]
    verdict: dict[str, Any] = {}
    chosen = EXACT
    for way in candidates:
        if way == EXACT:
            break
        verdict = _checked(passes, way, sample)
        if verdict["agrees"]:
            chosen = way
            break
        decoding = " with scaled decoding" * way.scaled
        reason = f"{wanted}{decoding} does not agree with float32: {verdict.get('reason') or _figures(verdict)}"
        log.info("%s", reason)
    if chosen != EXACT:
        reason = f"agrees with float32 on {verdict['examples']} training examples" + f"; {reason}" * bool(reason)
    log.info("training features: %s%s (%s)", chosen.precision, ", large photos decoded smaller" * chosen.scaled, reason)
    found = {name: verdict.get(name) for name in ("examples", "median_cosine", "least_cosine")}
    return chosen, {
        "asked": asked,
        "features": chosen.precision,
        "scaled_decoding": chosen.scaled,
        "reason": reason,
        **found,
    }


def take_back(
    passes: Passes, way: Way, sample: Callable[[bool], Source], record: Mapping[str, Any], reason: str
) -> dict[str, Any]:
    """Returns what the report says when a way that was chosen fails on examples that the check did not look at.

    The verdict is kept, so that the next job does not try it again.
    """
    log.warning("training features: float32 after all: %s", reason)
    kept = {name: record[name] for name in ("examples", "median_cosine", "least_cosine")}
    digests = [digest.hex() for digest in sample(False).digests]
    passes.space(way).keep_verdict({**kept, "agrees": False, "reason": reason, "digests": digests})
    return {**record, "features": EXACT.precision, "scaled_decoding": EXACT.scaled, "reason": reason}


def for_fine_tuning(
    passes: Passes, asked: str, steps: int, batch_size: int, sample: Callable[[bool], Source]
) -> tuple[tuple[str, ...], str]:
    """Returns the precisions in which a whole network may be trained, of which the fastest is to be taken, and why.

    Args:
        passes: The passes through the backbone as its SavedModel has it.
        asked: The hyperparameter `precision`.
        steps: Of the training.
        batch_size: Of the training.
        sample: The examples to check on, decoded in full.
    """
    able = devices.sixteen_bit()
    reason = _against_fine_tuning(asked, able, steps)
    if reason or able is None:
        return ("float32",), reason
    verdict = _checked(passes, Way(able), sample)
    if not verdict["agrees"]:
        return ("float32",), f"{able} does not agree with float32: {_figures(verdict)}"
    agrees = f"agrees with float32: {_figures(verdict)}"
    if asked == able:
        return (able,), agrees
    for known in passes.space(Way(able)).verdicts():
        if known.get("fastest") in ("float32", able) and known.get("batch_size") == batch_size:
            return (known["fastest"],), f"{able} {agrees}; {known['fastest']} was the faster when it was timed before"
    return ("float32", able), agrees


def _against_fine_tuning(asked: str, able: str | None, steps: int) -> str:
    """Returns why a whole network is not trained in 16 bits, or nothing where that is worth a check."""
    if asked == "float32":
        return "as asked"
    if able is None:
        return "there are no 16 bits in hardware"
    if asked not in ("auto", able):
        return f"this machine has no {asked} in hardware"
    if able == "float16":
        return "gradients in float16 would need loss scaling, which is not done"
    if asked == "auto" and steps < TRIED_FROM:
        return f"with fewer than {TRIED_FROM} steps trying 16 bits would take longer than it could save"
    return ""


def keep_fastest(passes: Passes, batch_size: int, chosen: str) -> None:
    """Remembers which precision a trial found the fastest, so that the same job computes the same again."""
    able = devices.sixteen_bit()
    if able:
        passes.space(Way(able)).keep_verdict({"fastest": chosen, "batch_size": batch_size})


def _figures(verdict: Mapping[str, Any]) -> str:
    return (
        f"cosine {verdict['median_cosine']:.4f} (median), {verdict['least_cosine']:.4f} (least) on "
        f"{verdict['examples']} training examples"
    )


def _wanted(asked: str, is_image: bool, count: int) -> tuple[str, str]:
    """Returns the precision that is worth a check, and why it is not 16 bits where it is not."""
    able = devices.sixteen_bit()
    if asked == able:
        return asked, ""
    if asked == "float32":
        return asked, "as asked"
    if asked != "auto":
        reason = f"this machine has no {asked} in hardware" + (f", but {able}" if able else "")
    elif able is None:
        reason = "this machine computes in 16 bits no faster"
    elif not is_image:
        reason = "texts are encoded no faster in 16 bits"
    elif count < LARGE:
        reason = f"with fewer than {LARGE} training photos 16 bits save less than their check costs"
    else:
        return able, ""
    return "float32", reason


def _checked(passes: Passes, way: Way, sample: Callable[[bool], Source]) -> dict[str, Any]:
    """Returns how far a way agrees with float32 and full decoding; what was found before on these examples counts."""
    exact = sample(False)
    names = [digest.hex() for digest in exact.digests]
    space = passes.space(way)
    known = [verdict for verdict in space.verdicts() if _is_about(verdict, names)]
    if known:
        return dict(min(known, key=lambda verdict: bool(verdict["agrees"])))  # What failed once is not tried again.
    reference, tried = passes.check(exact, EXACT), passes.check(sample(way.scaled), way)
    cosines = _cosines(reference, tried)
    median, least = float(np.median(cosines)), float(cosines.min())
    verdict = {
        "agrees": median >= MEDIAN_COSINE and least >= LEAST_COSINE,
        "median_cosine": median,
        "least_cosine": least,
        "examples": len(names),
        "digests": names,
    }
    space.keep_verdict(verdict)
    return verdict


def _is_about(verdict: Mapping[str, Any], names: list[str]) -> bool:
    """Returns whether a verdict was found on at least half of these examples: added data does not void it."""
    known = verdict.get("digests")
    if not isinstance(known, list) or not {"agrees", "median_cosine", "least_cosine", "examples"} <= set(verdict):
        return False
    return 2 * len(set(known) & set(names)) >= len(names)


def _cosines(reference: np.ndarray, tried: np.ndarray) -> np.ndarray:
    """Returns float64 [n]: the cosine of each pair of features; 0 where one of them is no number."""
    one, other = reference.astype(np.float64), tried.astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    same = (one == other).all(axis=1)  # Both may be all zeros.
    with np.errstate(invalid="ignore", over="ignore"):
        cosines = np.where(same, 1.0, (one * other).sum(axis=1) / np.where(norms > 0, norms, 1.0))
    return np.where(np.isfinite(cosines), cosines, 0.0)
