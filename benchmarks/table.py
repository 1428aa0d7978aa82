"""The results as Markdown, for the terminal and for README.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

START, END = "<!-- table -->", "<!-- /table -->"
STAGES = ("start_up", "data", "backbone", "features", "head", "fine_tuning", "evaluation", "export")


def markdown(results: Mapping[str, Any]) -> str:
    """Returns all tables of results.json's record."""
    parts = [_conditions(results), _figures(results["figures"])]
    for section, runs in results["runs"].items():
        parts.append(_contenders(section, runs))
    parts.append(_stages(results["runs"]))
    parts += [f"Left out: {name}: {reason.rstrip('.')}." for name, reason in results["left_out"].items()]
    return "\n\n".join(part for part in parts if part) + "\n"


def _conditions(results: Mapping[str, Any]) -> str:
    machine, settings = results["machine"], results["settings"]
    sixteen = "with" if machine["has_16_bit"] else "without"
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    data = ", ".join(f"{one['count']:,} examples of {one['name']}" for one in settings["data"].values())
    return (
        f"{results['when']}; {machine['cpu']}, {machine['cores']} cores, {sixteen} bfloat16, {machine['system']}; load "
        f"average {machine['load_average']} before and {machine['load_average_after']} after. {versions}.\n"
        f"Data: {data or 'none'}; {settings['epochs']} epochs, {settings['repeats']} repeats"
        f"{'; --quick: small data, no goals' * settings['quick']}."
    )


def _figures(figures: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [one["section"], one["what"], _number(one), _range(one), one["goal"] or "", one["verdict"]] for one in figures
    ]
    return _table(["section", "figure", "measured", "from … to", "goal", ""], rows)


def _number(figure: Mapping[str, Any]) -> str:
    if figure["is_mean"]:
        return f"{figure['value']:+.4f}"
    return f"{figure['value']:.3g}{figure['unit']}"


def _range(figure: Mapping[str, Any]) -> str:
    if len(figure["values"]) == 1:
        return ""
    return " … ".join(_number({**figure, "value": end(figure["values"])}) for end in (min, max))


def _contenders(section: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns the medians of each contender's runs; an accuracy is the mean."""
    columns = {
        "whole process, s": ("seconds", ".1f"),
        "fit, s": ("fit", ".2f"),
        "one pass, s": ("pass", ".2f"),
        "photos/s": ("photos_per_second", ".1f"),
        "accuracy": ("accuracy", ".4f"),
        "peak memory, MB": ("peak_megabytes", ",.0f"),
        "validation photos": ("validation_photos", ",.0f"),
        "of them in training": ("leaked_photos", ",.0f"),
    }
    used = {title: column for title, column in columns.items() if any(column[0] in run for run in runs)}
    rows = []
    for name in dict.fromkeys(run["contender"] for run in runs):
        mine = [run for run in runs if run["contender"] == name]
        cells = [_typical([run[key] for run in mine if key in run], form, key) for key, form in used.values()]
        rows.append([name, *cells])
    return _table([f"contenders: {section}", *used], rows)


def _typical(values: Sequence[float], form: str, key: str) -> str:
    if not values:
        return ""
    return format(statistics.mean(values) if key == "accuracy" else statistics.median(values), form)


def _stages(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the seconds of the stages of our command, first and second run."""
    rows = []
    for section in ("frozen", "text"):
        for name in ("ours", "ours, again"):
            mine = [run for run in runs.get(section, ()) if run["contender"] == name]
            if mine:
                every = [{"start_up": run["start_up"], **run["stages"]} for run in mine]
                cells = [f"{statistics.median(one[stage] for one in every):.2f}" for stage in STAGES]
                rows.append([f"{section}: {name}", *cells])
    return _table(["seconds of our stages", *(stage.replace("_", "-") for stage in STAGES)], rows) if rows else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table whose columns line up, so that it can be read as it is."""
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def write_between_marks(file: Path, text: str) -> None:
    """Replaces what stands between the marks of a file.

    Raises:
        ValueError: The marks are missing.
    """
    before, start, rest = file.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{file} has no {START} and {END} between which the table could be written")
    file.write_text(f"{before}{START}\n{text}{END}{after}", encoding="utf-8")
