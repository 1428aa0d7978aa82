"""label_errors.csv: every example whose label was tested, the likeliest error first."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_finetune.report.cells import safe

COLUMNS = ("part", "id", "label", "likely_label", "probability_of_label", "probability_of_likely")


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the rows of `pipeline.doubts.doubtful_labels`; probabilities with 6 significant digits."""
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            cells = [row[name] for name in COLUMNS]
            writer.writerow([safe(cell) if isinstance(cell, str) else f"{cell:.6g}" for cell in cells])
