"""The examples of a job: read once, looked at, split, and what the report says of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tf_finetune import examples, inspection
from tf_finetune.errors import listed
from tf_finetune.examples import LEFT_OUT, TRAINING, VALIDATION, Examples
from tf_finetune.examples.records import counted
from tf_finetune.feature_cache import Place
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection import findings
from tf_finetune.inspection.records import Inspection, Unusable
from tf_finetune.job import Job
from tf_finetune.job.earlier import union

log = logging.getLogger(__name__)

SHOWN_EXAMPLES = 20  # Of one finding, in report.json.


@dataclasses.dataclass(frozen=True)
class Data:
    """The examples of a job.

    Attributes:
        parts: Of training, and of validation and test where they have any.
        left_out: Of validation, since near duplicates have come to training.
        seen: What is wrong with them.
        warnings: Of settings that had no effect.
        leak: With a validation channel, how many of its examples are also in training: exact, near, of; else None.
    """

    parts: Mapping[str, Examples]
    left_out: Examples
    seen: Inspection
    leak: Mapping[str, int] | None
    warnings: tuple[str, ...] = ()


def read(planned: Job, scratch: Path) -> Data:
    """Returns the examples of training, and of validation and test where there are any.

    Args:
        planned: The job.
        scratch: A folder for photos that must be converted; it is to last as long as they are read.

    Raises:
        DataError: Too many cannot be used, or `on_bad_data` is fail.
    """
    kept = planned.earlier if planned.keeps_head else None
    known = kept.class_names if kept else ()
    seen = inspection.inspect(planned.task, planned.folders, planned.settings, scratch, known)
    everything, settings = seen.parts[TRAINING], planned.settings
    parts, left_out = dict(seen.parts), dataclasses.replace(everything, items=())
    leak = None
    if VALIDATION in parts:
        exact, near = findings.leaked(everything.items, parts[VALIDATION].items, seen.groups)
        leak = {"exact": len(exact), "near": len(near), "of": len(parts[VALIDATION])}
    else:
        rule = (settings.validation_split_ratio, settings.random_seed)
        if planned.earlier_split is None:
            parts[TRAINING], parts[VALIDATION] = examples.split(everything, *rule, seen.groups)
        else:
            again = examples.split_again(everything, *rule, planned.earlier_split, seen.groups)
            parts[TRAINING], parts[VALIDATION], left_out = again
    parts = {name: parts[name] for name in (TRAINING, VALIDATION, "test") if name in parts}
    warnings = _without_effect(planned, everything, parts)
    counts = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
    log.info("data: %d classes, examples: %s", len(everything.class_names), counts)
    names = union(kept, everything.class_names)
    parts, left_out = {name: part.named(names) for name, part in parts.items()}, left_out.named(names)
    missing = [name for name in names if name not in everything.class_names]
    if missing:
        warnings.append(
            f"{counted(len(missing), 'class')} of the earlier result without training examples stay in the model: "
            f"{listed(missing)}"
        )
    for line in warnings:
        log.warning("%s", line)
    if leak and leak["exact"] + leak["near"]:
        log.warning(
            "leak: %d of %d validation examples are also in training, %d of them exactly: validation figures flatter",
            leak["exact"] + leak["near"],
            leak["of"],
            leak["exact"],
        )
    return Data({name: part for name, part in parts.items() if len(part)}, left_out, seen, leak, tuple(warnings))


def _without_effect(planned: Job, everything: Examples, parts: Mapping[str, Examples]) -> list[str]:
    """Returns a line for each setting of the split that changed nothing, or everything."""
    lines = []
    if planned.settings.group_by and not any(one.group for one in everything.items):
        lines.append(f"group_by={planned.settings.group_by} has no effect: it names a group for no example")
    known = planned.earlier_split
    if known is not None and not any(one.digest in known for one in everything.items):
        lines.append(f"--split {planned.split} has no effect: it knows none of the examples")
    if planned.settings.validation_split_ratio > 0 and VALIDATION in parts and not len(parts[VALIDATION]):
        lines.append("there are no validation examples, so nothing is measured: give more examples, or smaller groups")
    return lines


def without(data: Data, files: Collection[Path], settings: Hyperparameters) -> Data:
    """Returns the data without some photos, which are listed as unusable.

    Raises:
        DataError: As `inspection.stop_at_bad_data` has it.
    """
    bad = [(name, one) for name, part in data.parts.items() for one in part.items if one.content in files]
    names = data.parts[TRAINING].class_names
    reason = "TensorFlow cannot decode it"
    known = set(data.seen.read)
    added = tuple(
        Unusable(name if name in known else TRAINING, one.id, names[one.label], "damaged", reason) for name, one in bad
    )
    log.warning("%s left out: %s: %s", counted(len(bad), "photo"), reason, listed(one.id for _, one in bad))
    seen = dataclasses.replace(
        data.seen,
        parts=_kept(data.seen.parts, files),
        unusable=(*data.seen.unusable, *added),
        findings=(*findings.of_unusable(added, "photo"), *data.seen.findings),
    )
    inspection.stop_at_bad_data(seen, settings)
    kept = _kept(data.parts, files)
    return dataclasses.replace(data, parts={name: part for name, part in kept.items() if len(part)}, seen=seen)


def _kept(parts: Mapping[str, Examples], files: Collection[Path]) -> dict[str, Examples]:
    """Returns the parts without some photos."""
    return {
        name: dataclasses.replace(part, items=tuple(one for one in part.items if one.content not in files))
        for name, part in parts.items()
    }


def with_alike_features(data: Data, place: Place) -> Data:
    """Returns the data with one more finding, if the features that are kept show photos that are nearly the same."""
    if isinstance(data.parts[TRAINING].items[0].content, str):
        return data
    more = inspection.by_features(data.seen, place)
    return dataclasses.replace(data, seen=dataclasses.replace(data.seen, findings=(*data.seen.findings, *more)))


def manifest(data: Data) -> dict[str, Examples]:
    """Returns the parts as split.csv lists them."""
    return {**data.parts, LEFT_OUT: data.left_out} if len(data.left_out) else dict(data.parts)


def describe(data: Data) -> dict[str, Any]:
    """Returns what report.json says of the data: its faults, and how the classes are spread over the parts."""
    names = data.parts[TRAINING].class_names
    counts = {part: [0] * len(names) for part in ("training", "validation", "test")}
    for part, found in data.parts.items():
        for label in found.labels:
            counts[part][label] += 1
    told = [
        {
            "severity": finding.severity,
            "kind": finding.kind,
            "count": len(finding.examples),
            "examples": list(finding.examples[:SHOWN_EXAMPLES]),
            "detail": finding.detail,
        }
        for finding in data.seen.findings
    ]
    return {
        "classes": [
            {"name": name, **{part: found[label] for part, found in counts.items()}} for label, name in enumerate(names)
        ],
        "read": dict(data.seen.read),
        "findings": told,
        "unusable": [dataclasses.asdict(one) for one in data.seen.unusable],
        "leak": dict(data.leak) if data.leak else None,
        "groups": len(set(data.seen.groups.values())),
        "left_out_of_validation": len(data.left_out),
    }
