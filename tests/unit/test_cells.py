"""predictions.csv in a spreadsheet: nothing in it is run, and no two columns have one name."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from tf_finetune import report
from tf_finetune.report import cells

FORMULAS = [
    "=1+1",
    "=HYPERLINK(0)",
    "+1+1",
    "-1+1",
    "-2+3+cmd|' /C calc'!A0",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "\tx",
    "\rx",
    " =1",
    "\u00a0=1",
    "\u3000=1",
    "\u200b=1",
    "\ufeff=1",
    "\0=1",
    "＝1+1",
    "＋1",
    "－1",
    "＠A1",
    "=",
    "-",
    "+",
    "-x",
    "--1",
    "-1.5 ",
    "+49 30 123",
    "-٣",
    "-1e5x",
    "-inf",
    "-0x10",
    "'=1",
]
PLAIN = [
    "",
    "roses",
    "a=b",
    "roses/1.jpg",
    "1",
    "-1",
    "+1",
    "-1.5",
    "-.5",
    "-5.",
    "1e-05",
    "-1E+5",
    "'quoted'",
    "a-b",
    " x",
]


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_formula_gets_an_apostrophe(cell):
    assert cells.safe(cell) == "'" + cell


@pytest.mark.parametrize("cell", PLAIN)
def test_numbers_and_words_stay_as_they_are(cell):
    assert cells.safe(cell) == cell


def test_no_two_cells_become_the_same():
    several = [prefix + cell for prefix in ("", "'", "''") for cell in FORMULAS + PLAIN]
    assert len({cells.safe(cell) for cell in several}) == len(set(several))


def written(tmp_path, class_names, ids):
    """Returns predictions.csv's rows; example i is of class i, and all are taken for the last one."""
    probabilities = np.tile(np.linspace(0.1, 0.5, len(class_names), dtype=np.float32), [len(ids), 1])
    report.write_predictions(tmp_path / "p.csv", ids, range(len(ids)), probabilities, class_names)
    return list(csv.reader(io.StringIO((tmp_path / "p.csv").read_text(encoding="utf-8"), newline="")))


def test_predictions_hold_no_formula_in_any_place(tmp_path):
    names = ("=cmd|' /C calc'!A0", "@x", "-1", "roses")
    head, *rows = written(tmp_path, names, ["=cmd/1.jpg", "@x/1.jpg", "-1/1.jpg", "+1"])
    shown = ["'=cmd|' /C calc'!A0", "'@x", "-1", "roses"]
    assert head == ["id", "label", "predicted_label", *shown]
    assert {row[0] for row in rows} == {"'=cmd/1.jpg", "'@x/1.jpg", "'-1/1.jpg", "+1"}
    assert {row[1] for row in rows} == set(shown)
    assert {row[2] for row in rows} == {"roses"}
    assert written(tmp_path, names[::-1], ["a"])[1][2] == shown[0]


def test_a_class_with_the_name_of_another_column_has_a_column_of_its_own(tmp_path):
    head, row = written(tmp_path, ("id", "label", "predicted_label", "Id", "probability:x"), ["a"])
    renamed = ["probability:id", "probability:label", "probability:predicted_label"]
    assert head == ["id", "label", "predicted_label", *renamed, "Id", "probability:x"]
    assert row[:3] == ["a", "id", "probability:x"]
    head, _ = written(tmp_path, ("id", "probability:id"), ["a"])
    assert head[3:] == ["probability:probability:id", "probability:id"]
