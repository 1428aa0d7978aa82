"""What a job tells: the record that report.json holds, predictions.csv, and the lines that metrics are read from."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_finetune.report import cells

OTHER_COLUMNS = ("id", "label", "predicted_label")  # Of predictions.csv, besides one for each class.
# Regular expressions for SageMaker's `metric_definitions`. Each matches the line of one epoch once; figures are plain
# decimals, since the usual class [0-9\.] would cut 1e-05 to 1.
METRIC_DEFINITIONS = [
    {"Name": "training:loss", "Regex": r"- loss: ([0-9\.]+)"},
    {"Name": "training:accuracy", "Regex": r"- accuracy: ([0-9\.]+)"},
    {"Name": "validation:loss", "Regex": r"val_loss: ([0-9\.]+)"},
    {"Name": "validation:accuracy", "Regex": r"val_accuracy=([0-9\.]+)"},
]


def metric_line(record: Mapping[str, Any], epochs: int) -> str:
    """Returns an epoch's figures as one line, in the forms that SageMaker's metric definitions look for.

    >>> metric_line({"epoch": 1, "loss": 0.5, "accuracy": 0.75, "val_loss": 1.0, "val_accuracy": 0.5,
    ...              "learning_rate": 1e-05}, epochs=3)
    'epoch 1/3 - loss: 0.500000 - accuracy: 0.750000 - val_loss: 1.000000 - val_accuracy: 0.500000
     - val_accuracy=0.500000 - learning_rate: 0.00001000'
    """
    parts = [f"epoch {record['epoch']}/{epochs}", f"loss: {record['loss']:.6f}", f"accuracy: {record['accuracy']:.6f}"]
    if record["val_accuracy"] is not None:
        accuracy = f"{record['val_accuracy']:.6f}"
        parts += [f"val_loss: {record['val_loss']:.6f}", f"val_accuracy: {accuracy}", f"val_accuracy={accuracy}"]
    if record["learning_rate"] is not None:  # A head that was solved has none.
        parts.append(f"learning_rate: {record['learning_rate']:.8f}")
    return " - ".join(parts)


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON that other languages read: no NaN, UTF-8, keys in the order given."""
    text = json.dumps(record, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    file.write_text(
        text, encoding="utf-8", errors="backslashreplace"
    )  # Bytes of no character: \\udc.., as JSON has it.


def write_predictions(
    file: Path, ids: Sequence[str], labels: Sequence[int], probabilities: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes predictions.csv: id, label, predicted_label (class names), and one column of probability per class.

    A class's column is called as the class is; only a class called id, label or predicted_label has the column
    `probability:NAME`, for else two columns would have one name. Ids and names that a spreadsheet would take for
    formulas have an apostrophe in front (see `cells.safe`).

    Args:
        file: Where to.
        ids: The N examples' ids.
        labels: Their true classes, in [0, K).
        probabilities: float32 [N, K]; written with 9 significant digits, which give back the same float32.
        class_names: The K class names.
    """
    names = [cells.safe(name) for name in class_names]
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*OTHER_COLUMNS, *map(cells.safe, _columns(class_names))])
        for example_id, label, row in sorted(zip(ids, labels, probabilities, strict=True), key=lambda item: item[0]):
            answer = names[int(np.argmax(row))]
            writer.writerow([cells.safe(example_id), names[label], answer, *(f"{value:.9g}" for value in row)])


def _columns(class_names: Sequence[str]) -> list[str]:
    """Returns what the column of each class is called: never as another column is."""
    taken, columns = {*OTHER_COLUMNS, *class_names}, []
    for name in class_names:
        column = name
        while column in taken and (column in OTHER_COLUMNS or column != name):
            column = f"probability:{column}"
        columns.append(column)
    return columns
