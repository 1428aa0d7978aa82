"""What the report's page says, section by section: a job's record put in the order and the words of people.

Whatever a record lacks, an older one for instance, is left out.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SHOWN_PAIRS = 8
SHOWN_UNUSABLE = 50
LONGEST_TEXT = 400  # Characters of an example that is a text.
SOURCES = {"user": "set by you", "earlier": "the earlier result's", "card": "backbone's card", "default": "default"}
PARTS = {"training": "Training", "validation": "Validation", "test": "Test"}
SCORED = ("validation", "test")
SEVERITIES = {
    "error": ("error", "Errors: what could not be used"),
    "warning": ("warning", "Warnings: what to look at"),
    "note": ("note", "Notes: what was handled"),
}
# What is said of a part besides its accuracy: its key, its name, and what it is.
FIGURES = {
    "accuracy": ("accuracy", "right answers, of all"),
    "balanced_accuracy": ("balanced accuracy", "mean recall of the classes, each counting the same"),
    "macro_f1": ("macro F1", "mean F1 of the classes"),
    "top_k": ("", "the true class is among the likeliest"),
    "loss": ("loss", "mean cross-entropy, in nats"),
    "calibration_error": ("calibration error", "how far probabilities are from the truth, on average"),
}


def value(setting: Any) -> str:
    """Returns a hyperparameter's value as a user would write it.

    >>> [value(setting) for setting in (True, 1e-05, None, "adam", [1, 2])]
    ['true', '1e-05', 'none', 'adam', '[1, 2]']
    """
    if isinstance(setting, str):
        return setting
    return "none" if setting is None else json.dumps(setting, ensure_ascii=False, default=str)


def part(record: Mapping[str, Any], name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what the page says of one part of the data that has metrics: "validation" or "test"."""
    metrics = record["metrics"][name]
    matrix = metrics.get("confusion_matrix") or []
    answered = sum(map(sum, matrix)) or (record.get("examples") or {}).get(name) or 0
    right = sum(row[k] for k, row in enumerate(matrix)) if matrix else round((metrics.get("accuracy") or 0) * answered)
    low = ((metrics.get("intervals") or {}).get("accuracy") or [None])[0]
    baseline = (metrics.get("baseline") or {}).get("accuracy")
    return {
        "title": PARTS[name],
        "name": name,
        "metrics": metrics,
        "right": right,
        "answered": answered,
        "figures": figures(metrics),
        "is_no_better": low is not None and baseline is not None and low <= baseline,
        "pairs": pairs(matrix, class_names),
    }


def figures(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the figures of one part of the data, with their intervals and what they mean."""
    rows = []
    for key, (name, meaning) in FIGURES.items():
        number = metrics.get(key)
        if key == "top_k" and number:
            name, number = f"top-{number.get('k')} accuracy", number.get("accuracy")
        if isinstance(number, int | float):
            interval = (metrics.get("intervals") or {}).get(key)
            rows.append({"key": key, "name": name, "value": number, "interval": interval, "meaning": meaning})
    return rows


def pairs(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the commonest mistakes, the most frequent first: true class, answer, times, and examples of the class."""
    found: list[dict[str, Any]] = [
        {"true": class_names[i], "answer": class_names[k], "times": times, "of": sum(row)}
        for i, row in enumerate(matrix)
        for k, times in enumerate(row)
        if i != k and times
    ]
    return sorted(found, key=lambda pair: -pair["times"])[:SHOWN_PAIRS]


def cases(rows: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, str]) -> list[dict[str, Any]]:
    """Returns examples to look at, each with its thumbnail or its text.

    Args:
        rows: Records with `id`, `part`, `label`, and what else is said of them.
        thumbnails: Data URIs by "PART/ID".
    """
    found = []
    for row in rows:
        place = "/".join(str(row[key]) for key in ("part", "id") if row.get(key))
        picture = thumbnails.get(place)
        text = row.get("text")
        found.append(
            {
                **row,
                "place": place,
                "picture": picture if picture and picture.startswith("data:image/") else None,
                "text": excerpt(text) if isinstance(text, str) else None,
            }
        )
    return found


def excerpt(text: str, longest: int = LONGEST_TEXT) -> str:
    """Returns the beginning of a text, cut between words.

    >>> excerpt("well, that was it", longest=12)
    'well, that …'
    """
    return text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0].rstrip() + " …"


def leak(record: Mapping[str, Any]) -> dict[str, int] | None:
    """Returns how many validation examples are also in training, or None where that was not looked for."""
    found = (record.get("data") or {}).get("leak")
    if not found:
        return None
    exact, near, of = (found.get(key) or 0 for key in ("exact", "near", "of"))
    return {"exact": exact, "near": near, "total": exact + near, "of": of}


def severities(record: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the findings in the data by their severity, the gravest first."""
    findings = (record.get("data") or {}).get("findings") or []
    names = [*SEVERITIES, *sorted({str(finding.get("severity")) for finding in findings} - SEVERITIES.keys())]
    grouped = {name: [finding for finding in findings if str(finding.get("severity")) == name] for name in names}
    return {name: group for name, group in grouped.items() if group}


def data(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what the page says of the data: what was read and left out, what was found in it, and its classes."""
    found = record.get("data")
    if not found:
        return None
    unusable = found.get("unusable") or []
    left_out = Counter(row.get("channel") for row in unusable)
    return {
        "channels": [
            {"name": name, "read": read, "unusable": left_out[name], "used": read - left_out[name]}
            for name, read in (found.get("read") or {}).items()
            if read is not None
        ],
        "unusable": unusable[:SHOWN_UNUSABLE],
        "hidden": max(0, len(unusable) - SHOWN_UNUSABLE),
        "was_searched": found.get("findings") is not None,
        "groups": found.get("groups"),
        "left_out_of_validation": found.get("left_out_of_validation"),
        "balance": balance(found.get("classes") or []),
    }


def balance(classes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns how many examples each class has in each part, as counts and as shares of the largest class."""
    rows: list[dict[str, Any]] = [
        {"name": row.get("name"), **{name: row.get(name) or 0 for name in PARTS}} for row in classes
    ]
    totals = [sum(row[name] for name in PARTS) for row in rows]
    if not any(totals):
        return None
    for row in rows:
        row["shares"] = [(name, row[name] / max(totals)) for name in PARTS if row[name]]
    by_size = sorted(rows, key=lambda row: row["training"])
    smallest, largest = by_size[0], by_size[-1]
    ratio = largest["training"] / smallest["training"] if smallest["training"] else None
    shown = [name for name in PARTS if any(row[name] for row in rows)]
    return {"rows": rows, "parts": shown, "smallest": smallest, "largest": largest, "ratio": ratio}


def job(record: Mapping[str, Any]) -> dict[str, list[str]] | None:
    """Returns the command in pieces, its flags apart, so that no line ends within one; None where no job is told of."""
    if not any(record.get(key) for key in ("command", "job", "versions", "parity")):
        return None
    command = record.get("command")
    return {"command": re.split(r"((?<!\S)--[\w-]+)", command) if command else []}


def settings(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the hyperparameters with where their values come from, those that somebody chose first."""
    sources = record.get("hyperparameter_sources") or {}
    rows = [
        {"name": name, "value": value(setting), "source": sources.get(name, "")}
        for name, setting in (record.get("hyperparameters") or {}).items()
    ]
    order = list(SOURCES)
    rows.sort(key=lambda row: order.index(row["source"]) if row["source"] in order else len(order))
    return [{**row, "said": SOURCES.get(row["source"], row["source"])} for row in rows]


def stages(seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Returns the stages of a job, the slowest first, each with its share of the total in [0, 1]."""
    named = {name.replace("_", " "): spent for name, spent in seconds.items() if name != "total" and spent}
    total = seconds.get("total") or sum(named.values())
    if (rest := total - sum(named.values())) > 0.01 * total:
        named["everything else"] = rest
    slowest = sorted(named.items(), key=lambda item: (-item[1], item[0]))
    return [{"name": name, "seconds": spent, "share": spent / total} for name, spent in slowest]
