"""Cells of CSV files that a spreadsheet shows rather than runs."""

from __future__ import annotations

import re

# What a spreadsheet may take for a formula: it overlooks blanks and characters without width, and knows the full-width
# forms. Apostrophes in front are counted in, so that no two cells become the same.
_FORMULA = re.compile(r"'*[\s\u200b-\u200f\u2060\ufeff\0]*[=+\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n]")
_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def safe(cell: str) -> str:
    """Returns a cell with an apostrophe in front where a spreadsheet would else take it for a formula and run it.

    Numbers stay as they are. Whoever reads the file by program takes one apostrophe away from a cell that has one
    before such a beginning.

    >>> safe("=1+1"), safe("  @SUM(A1)"), safe("-x"), safe("-1.5"), safe("roses")
    ("'=1+1", "'  @SUM(A1)", "'-x", '-1.5', 'roses')
    """
    return f"'{cell}" if _FORMULA.match(cell) and not _NUMBER.fullmatch(cell) else cell
