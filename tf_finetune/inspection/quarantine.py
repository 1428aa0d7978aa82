"""quarantine.csv: what was left out, and why."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from tf_finetune.inspection.records import Unusable

COLUMNS = ("channel", "id", "label", "kind", "reason")


def write(file: Path, unusable: Iterable[Unusable]) -> None:
    """Writes what was left out, each once; cells that a spreadsheet would take for formulas are made harmless."""
    _write(file, unusable, "w")


def add(file: Path, unusable: Iterable[Unusable]) -> None:
    """Adds to what the file lists, if there is one."""
    _write(file, unusable, "a" if file.is_file() else "w")


def _write(file: Path, unusable: Iterable[Unusable], mode: str) -> None:
    from tf_finetune.report.cells import safe

    with file.open(mode, newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        if mode == "w":
            writer.writerow(COLUMNS)
        for one in dict.fromkeys(unusable):
            writer.writerow([safe(cell) for cell in dataclasses.astuple(one)])
