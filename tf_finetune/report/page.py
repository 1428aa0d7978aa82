"""The report for people: report.json's record as one HTML file that needs nothing else, neither network nor scripts.

Class names, texts, file names, the command, and all else that users name, are hostile: they reach the page escaped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_finetune.report import contents, pictures

if TYPE_CHECKING:
    import jinja2

UNKNOWN = "–"
LONG_TABLE = 40  # With more rows a table of the classes is folded away on a screen.
SHOWN_CASES = 12  # More of the likely label errors are folded away.


@dataclasses.dataclass(frozen=True)
class Section:
    """One section of the page.

    Attributes:
        id: What a link inside the page leads to.
        title: Its heading.
        about: What its template speaks of; a section with nothing in it is left out.
        template: The file of its template, without its ending; None: that of its id.
    """

    id: str
    title: str
    about: Any
    template: str | None = None


def render(record: Mapping[str, Any], thumbnails: Mapping[str, str] | None = None) -> str:
    """Returns the record of a job as one HTML page; the same record gives the same page.

    Args:
        record: What report.json holds. Whatever is missing in it is left out of the page.
        thumbnails: Data URIs of photos, by "PART/ID" of the mistakes and likely label errors, such as
            "validation/roses/1.jpg".
    """
    import matplotlib.style

    names = [str(name) for name in record.get("class_names") or []]
    with matplotlib.style.context(["default", pictures.STYLE]):  # Whatever the user's own matplotlibrc says.
        parts = [part(record, name, names) for name in contents.SCORED if (record.get("metrics") or {}).get(name)]
        shown = [section for section in sections(record, parts, thumbnails or {}) if section.about]
    page = template().render(
        record=record,
        names=names,
        parts=parts,
        sections=shown,
        leak=contents.leak(record),
        severities=contents.severities(record),
        severity_names=contents.SEVERITIES,
        long_table=LONG_TABLE,
        shown_cases=SHOWN_CASES,
    )
    # A folder's name may hold what is no Unicode text and could not be written as UTF-8.
    return page.encode("utf-8", "replace").decode("utf-8")


def part(record: Mapping[str, Any], name: str, names: Sequence[str]) -> dict[str, Any]:
    """Returns what the page says, and draws, of one part of the data: "validation" or "test"."""
    metrics = record["metrics"][name]
    matrix = metrics.get("confusion_matrix") or []
    class_names = [*names, *(f"class {k}" for k in range(len(names), len(matrix)))]
    return {
        **contents.part(record, name, class_names),
        "matrix": pictures.confusion_picture(matrix, class_names, name),
        "is_named": len(matrix) <= pictures.LABELLED_CLASSES,
        "reliability": pictures.reliability_picture(metrics.get("reliability") or [], name),
    }


def sections(
    record: Mapping[str, Any], parts: Sequence[Mapping[str, Any]], thumbnails: Mapping[str, str]
) -> list[Section]:
    """Returns the sections that follow the headline, those with nothing in them too."""
    history, head = record.get("history") or [], record.get("head")
    curves = [pictures.learning_curve(history, name) for name in ("accuracy", "loss")]
    is_solved = bool(head) and len(history) == 1  # The one epoch is the solution.
    is_drawn = any(part["reliability"] for part in parts)
    return [
        *(Section(part["name"], part["title"], part, "part") for part in parts),
        Section("earlier", "Beside the earlier result", record.get("earlier")),
        Section("calibration", "Can its probabilities be believed?", is_drawn or record.get("calibration")),
        Section("mistakes", "Most confident mistakes", contents.cases(record.get("mistakes") or [], thumbnails)),
        Section("label-errors", "Likely label errors", contents.cases(record.get("label_errors") or [], thumbnails)),
        Section("data", "The data", contents.data(record)),
        Section("head", "The head", {"curve": pictures.strength_curve(head)} if head else None),
        Section("curves", "Learning curves", [] if is_solved else list(filter(None, curves))),
        Section("stages", "Where the time went", contents.stages(record.get("seconds") or {})),
        Section("job", "To reproduce it", contents.job(record)),
        Section("settings", "Hyperparameters", contents.settings(record)),
    ]


@functools.cache
def template() -> jinja2.Template:
    """Returns the page's template, in which whatever a record lacks is left out."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, interval=interval, count=count, duration=duration, place=place)
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


def interval(bounds: Any) -> str:
    """Returns two fractions in [0, 1] as a range of percentages, or nothing where there are no two.

    >>> interval([0.7561, 0.9146]), interval(None)
    ('75.6 – 91.5 %', '')
    """
    if not bounds or None in bounds:
        return ""
    low, high = map(percent, bounds)
    return f"{low.removesuffix(' %')} – {high}"


def place(fraction: Any) -> str:
    """Returns a fraction as a length of a style sheet, from nothing to all.

    >>> place(0.1234), place(7)
    ('12.34%', '100.00%')
    """
    return f"{100 * min(max(fraction, 0), 1):.2f}%"


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
