"""Labelled texts from data.csv: no header, first column the class, second the text.

Line numbers in messages are the file's, from 1; a text with line breaks in quotes spans several.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from tf_finetune.errors import DataError, UsageError, listed
from tf_finetune.examples import rows as csv_rows
from tf_finetune.examples.records import TRAINING, Example, Examples, check_known, counted
from tf_finetune.examples.rows import INTEGER, Row

ENDINGS = (".csv", ".csv.gz")
NAMES_FILE = "labels.txt"


def find(channel: Path, name: str) -> Path | None:
    """Returns the file of labelled texts in a channel: NAME.csv before data.csv, each also with .gz; or None.

    A channel may also be the file itself.
    """
    if channel.is_file():
        return channel if channel.name.lower().endswith(ENDINGS) else None
    candidates = [channel / f"{stem}.csv{ending}" for stem in dict.fromkeys([name, "data"]) for ending in ("", ".gz")]
    return next((file for file in candidates if file.is_file()), None)


def locate(channel: Path, name: str) -> Path:
    """Returns the file of labelled texts in a channel.

    Raises:
        UsageError: There is none.
    """
    file = find(channel, name)
    if file is None:
        what = "holds no data.csv" if channel.exists() else "does not exist"
        raise UsageError(f"{name} channel {channel} {what}. Expected a folder with data.csv, or the .csv file itself.")
    return file


def read(
    channel: Path,
    class_names: Sequence[str] | None = None,
    name: str = TRAINING,
    number_names: Mapping[int, str] | None = None,
) -> Examples:
    """Returns the texts of a channel, all of which must be good.

    Classes that are all integers keep their numerical order, others the alphabetical one. labels.txt beside the file
    gives integers their names.

    Args:
        channel: A folder that holds data.csv or data.csv.gz, or that file.
        class_names: The training classes, when another channel is read against them.
        name: What to call the channel in messages.
        number_names: What training calls the numbers, when another channel is read against it.

    Raises:
        UsageError: There is no such file.
        DataError: It is no CSV of two columns, or has one class only, or one that training lacks.
    """
    file = locate(channel, name)
    return labelled(file, csv_rows.read(file), class_names, name, number_names)


def labelled(
    file: Path,
    rows: Sequence[Row],
    class_names: Sequence[str] | None = None,
    name: str = TRAINING,
    number_names: Mapping[int, str] | None = None,
) -> Examples:
    """Returns rows as examples; the rest as in `read`."""
    written = [row.label for row in rows]
    number_names = _number_names(file, written, number_names or {})
    as_written = set(class_names or (() if all(map(_is_integer, written)) else written))
    labels = [_named(label, number_names, as_written) for label in written]
    if class_names is None:
        class_names = _ordered(file, written, labels)
    else:
        check_known(labels, class_names, name, file)
    indices = {class_name: index for index, class_name in enumerate(class_names)}
    items = [
        Example(
            f"{file.name}:{row.line}",
            indices[label],
            row.text,
            hashlib.sha256(row.text.encode("utf-8")).hexdigest(),
            row.group,
        )
        for row, label in zip(rows, labels, strict=True)
    ]
    ordered = tuple(sorted(items, key=lambda example: (example.digest, example.id)))
    return Examples(tuple(class_names), ordered, number_names)


def class_name_of(label: str, examples: Examples) -> str:
    """Returns what the class of a row that was left out is called among those that were not."""
    return _named(label, examples.number_names, examples.class_names)


def _number_names(file: Path, labels: Sequence[str], training: Mapping[int, str]) -> Mapping[int, str]:
    """Returns what labels.txt calls the numbers, where all classes are numbers; training's own come first."""
    if training or not all(_is_integer(label) for label in labels):
        return training
    return _names(file.parent / NAMES_FILE, sorted({int(label) for label in labels}))


def _named(label: str, number_names: Mapping[int, str], as_written: Collection[str]) -> str:
    """Returns a label's class name; a number is written the shortest way, unless a class is called as it stands."""
    if not _is_integer(label) or (label in as_written and int(label) not in number_names):
        return label
    return number_names.get(int(label), str(int(label)))


def _ordered(file: Path, labels: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names in their order.

    Raises:
        DataError: There are fewer than two.
    """
    by_label = dict(zip(labels, names, strict=True))
    numbers = all(_is_integer(label) for label in by_label)
    ordered = dict.fromkeys(by_label[label] for label in sorted(by_label, key=int if numbers else str))
    if len(ordered) < 2:
        raise DataError(f"{file} has one class only: {next(iter(ordered))}. Expected at least 2.")
    return tuple(ordered)


def _names(file: Path, numbers: Sequence[int]) -> Mapping[int, str]:
    """Returns the name of each number that labels.txt names: `number<TAB>name` lines, or a name a line.

    A name a line stands for the numbers in their order when there are as many; else for 0, 1, 2, ... or 1, 2, 3, ...

    Raises:
        DataError: A name stands there twice, or what it stands for cannot be told.
    """
    if not file.is_file():
        return {}
    lines = [line.strip() for line in re.split(r"[\r\n]+", csv_rows.decoded(file)) if line.strip()]
    pairs = [re.fullmatch(r"([+-]?\d{1,18})\t\s*(.+)", line) for line in lines]
    if lines and all(pairs):
        names = {int(pair[1]): pair[2].strip() for pair in pairs if pair}
    elif len(lines) == len(numbers):
        names = dict(zip(numbers, lines, strict=True))
    elif numbers[0] == 0 or numbers[0] > 0 and numbers[-1] == len(lines):
        names = dict(enumerate(lines, start=min(numbers[0], 1)))
    else:
        raise DataError(
            f"{file} has {counted(len(lines), 'name')}, and the data has the numbers {listed(numbers)}: it cannot be "
            "told which number each name is for. Expected lines of number<TAB>name."
        )
    if len(set(names.values())) < len(lines):
        raise DataError(f"{file}: a name or number stands there twice. Expected a name a line, or number<TAB>name.")
    return names


def _is_integer(label: str) -> bool:
    return INTEGER.fullmatch(label) is not None
