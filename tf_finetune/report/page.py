"""The report for people: report.json's record as one HTML file that needs nothing else, neither network nor scripts.

Class names, and all else that users name, are hostile: they reach the page escaped.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_finetune.report import pictures

if TYPE_CHECKING:
    import jinja2

SHOWN_MISTAKES = 8

UNKNOWN = "–"
SOURCES = {"user": "set by you", "card": "backbone's card", "default": "default"}
PARTS = {"validation": "Validation", "test": "Test"}


def render(record: Mapping[str, Any]) -> str:
    """Returns the record of a job as one HTML page; the same record gives the same page.

    Args:
        record: What report.json holds. Whatever is missing in it is left out of the page.
    """
    import matplotlib.style

    names = [str(name) for name in record.get("class_names") or []]
    with matplotlib.style.context(["default", pictures.STYLE]):  # Whatever the user's own matplotlibrc says.
        parts = [part(record, name, names) for name in PARTS if (record.get("metrics") or {}).get(name)]
        curves = [pictures.learning_curve(record.get("history") or [], name) for name in ("accuracy", "loss")]
        strengths = pictures.strength_curve(record.get("head"))
    rows = {"settings": settings(record), "stages": stages(record.get("seconds") or {})}
    page = template().render(
        record=record, names=names, parts=parts, curves=list(filter(None, curves)), strengths=strengths, **rows
    )
    # A folder's name may hold what is no Unicode text and could not be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def template() -> jinja2.Template:
    """Returns the page's template, in which whatever a record lacks is left out."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, count=count, duration=duration)
    return environment.get_template("report.html.j2")


def percent(fraction: Any) -> str:
    """Returns a fraction in [0, 1] as a percentage that says 100 or 0 of nothing less and nothing more.

    >>> [percent(fraction) for fraction in (1, 0.9999, 0.1234, 0.0001, 0)]
    ['100.0 %', '99.9 %', '12.3 %', '0.1 %', '0.0 %']
    """
    if not isinstance(fraction, int | float):
        return UNKNOWN
    shown = fraction * 100
    if 0 < fraction < 1:
        shown = min(max(shown, 0.1), 99.9)
    return f"{shown:.1f} %"


def count(number: Any) -> str:
    """Returns a whole number with its thousands apart.

    >>> count(12345)
    '12,345'
    """
    return f"{number:,}" if isinstance(number, int | float) else UNKNOWN


def duration(seconds: Any) -> str:
    """Returns seconds as people say them.

    >>> [duration(seconds) for seconds in (0.1234, 59.94, 125, 7325)]
    ['0.12 s', '59.9 s', '2 min 05 s', '2 h 02 min']
    """
    if not isinstance(seconds, int | float):
        return UNKNOWN
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s" if seconds >= 10 else f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def value(setting: Any) -> str:
    """Returns a hyperparameter's value as a user would write it.

    >>> [value(setting) for setting in (True, 1e-05, None, "adam", [1, 2])]
    ['true', '1e-05', 'none', 'adam', '[1, 2]']
    """
    if isinstance(setting, str):
        return setting
    return "none" if setting is None else json.dumps(setting, ensure_ascii=False, default=str)


def part(record: Mapping[str, Any], name: str, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns what the page says of one part of the data: "validation" or "test"."""
    metrics = record["metrics"][name]
    matrix = metrics.get("confusion_matrix") or []
    class_names = [*class_names, *(f"class {k}" for k in range(len(class_names), len(matrix)))]
    answered = sum(map(sum, matrix)) or (record.get("examples") or {}).get(name) or 0
    right = sum(row[k] for k, row in enumerate(matrix)) if matrix else round((metrics.get("accuracy") or 0) * answered)
    return {
        "title": PARTS[name],
        "name": name,
        "metrics": metrics,
        "right": right,
        "answered": answered,
        "matrix": pictures.confusion_picture(matrix, class_names, name),
        "named": len(matrix) <= pictures.LABELLED_CLASSES,
        "mistakes": mistakes(matrix, class_names),
    }


def mistakes(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the commonest mistakes, the most frequent first: true class, answer, times, and examples of the class."""
    pairs: list[dict[str, Any]] = [
        {"true": class_names[i], "answer": class_names[k], "times": times, "of": sum(row)}
        for i, row in enumerate(matrix)
        for k, times in enumerate(row)
        if i != k and times
    ]
    return sorted(pairs, key=lambda pair: -pair["times"])[:SHOWN_MISTAKES]


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
