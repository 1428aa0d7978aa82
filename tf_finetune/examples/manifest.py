"""split.csv: which example is in which part, written by one job and given back to another.

Columns: split (training, validation, left_out or test), id, label (class name), sha256.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from tf_finetune.errors import DataError, UsageError
from tf_finetune.examples.records import TRAINING, VALIDATION, Examples
from tf_finetune.examples.splitting import LEFT_OUT

COLUMNS = ("split", "id", "label", "sha256")
SIDES = (TRAINING, VALIDATION, LEFT_OUT)
MAX_BYTES = 2**30


def write(file: Path, parts: Mapping[str, Examples]) -> None:
    """Writes which example is in which part; names that a spreadsheet would take for formulas are made harmless."""
    from tf_finetune.report.cells import safe

    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        rows = [
            (side, safe(example.id), safe(part.class_names[example.label]), example.digest)
            for side, part in parts.items()
            for example in part.items
        ]
        writer.writerows(sorted(rows))


def read(file: Path) -> dict[str, str]:
    """Returns the side of each digest: training, validation or left_out; rows of test are passed over.

    Raises:
        UsageError: There is no such file.
        DataError: It is no split.csv, or has an example on two sides.
    """
    if not file.is_file():
        raise UsageError(f"--split {file}: there is no such file. Expected the split.csv of an earlier job.")
    sides: dict[str, str] = {}
    try:
        if file.stat().st_size > MAX_BYTES:
            raise DataError(f"--split {file}: it holds more than {MAX_BYTES:,} bytes. Expected a split.csv.")
        with file.open(newline="", encoding="utf-8") as stream:
            rows = csv.reader(stream, strict=True)
            if tuple(next(rows, ())) != COLUMNS:
                raise DataError(f"--split {file}: expected the columns {','.join(COLUMNS)} of an earlier split.csv.")
            for row in rows:
                side, _, _, digest = row
                if side not in (*SIDES, "test") or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                    raise ValueError(row)
                if side != "test" and sides.setdefault(digest, side) != side:
                    raise DataError(
                        f"--split {file} line {rows.line_num}: the same content is in {sides[digest]} and in {side}. "
                        "Expected each on one side."
                    )
    except (ValueError, csv.Error, OSError):
        raise DataError(
            f"--split {file} cannot be read as a split.csv. Expected lines of {','.join(COLUMNS)}, with split one of "
            f"{', '.join(SIDES)}, and sha256 in 64 hexadecimal digits."
        ) from None
    return sides
