"""Labelled texts from data.csv: no header, first column the class, second the text.

Line numbers in messages are the file's, from 1; a text with line breaks in quotes spans several.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import logging
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tf_finetune.errors import DataError, UsageError, listed
from tf_finetune.examples.records import TRAINING, Example, Examples, check_known, counted

log = logging.getLogger(__name__)

ENDINGS = (".csv", ".csv.gz")
NAMES_FILE = "labels.txt"
MAX_BYTES = 4 * 2**30  # Of the unpacked file, which is read into memory.
WANTED = "Expected two columns and no header: class,text. Quote texts that hold commas, quotes or line breaks."
HEADER_WORDS = frozenset(["label", "labels", "class", "classes", "category", "target", "sentiment", "intent", "y"])


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
    """Returns the texts of a channel.

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
    rows = _rows(file)
    _check_header(file, rows)
    written = [label for _, label, _ in rows]
    number_names = _number_names(file, written, number_names or {})
    as_written = set(class_names or (() if all(map(_is_integer, written)) else written))
    labels = [_named(label, number_names, as_written) for label in written]
    if class_names is None:
        class_names = _ordered(file, written, labels)
    else:
        check_known(labels, class_names, name, channel)
    indices = {class_name: index for index, class_name in enumerate(class_names)}
    items = [
        Example(f"{file.name}:{line}", indices[label], text, hashlib.sha256(text.encode("utf-8")).hexdigest())
        for (line, _, text), label in zip(rows, labels, strict=True)
    ]
    ordered = tuple(sorted(items, key=lambda example: (example.digest, example.id)))
    return Examples(tuple(class_names), ordered, number_names)


def _rows(file: Path) -> list[tuple[int, str, str]]:
    """Returns line number, label and text of each row.

    Raises:
        DataError: Names every line that is not two columns with a label.
    """
    rows, wrong, unlabelled = [], [], []
    for line, cells in _parsed(file):
        if len(cells) < 2 and not "".join(cells).strip():
            continue  # A blank line.
        if len(cells) != 2:
            wrong.append(f"line {line} has {len(cells)}")
        elif not cells[0].strip():
            unlabelled.append(f"line {line}")
        else:
            rows.append((line, cells[0].strip(), cells[1]))
    if wrong:
        hint = _other_separator(file) if not rows else ""
        raise DataError(f"{file}: {counted(len(wrong), 'row')} not of two columns: {listed(wrong)}. {WANTED}{hint}")
    if unlabelled:
        raise DataError(f"{file}: {counted(len(unlabelled), 'row')} without a class: {listed(unlabelled)}. {WANTED}")
    if not rows:
        raise DataError(f"{file} is empty. {WANTED}")
    return rows


def _parsed(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields each row's first line number and cells.

    Raises:
        DataError: A quote is not closed, or text follows a closing quote.
    """
    text = _decoded(file)
    csv.field_size_limit(2**31 - 1)  # Texts of any length that fits in memory.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise DataError(f"{file} line {line}: a quote is opened and never closed. {WANTED}") from None
        raise DataError(
            f"{file} line {line}: text follows a closing quote. Double the quotes inside a quoted text. {WANTED}"
        ) from None


def _decoded(file: Path) -> str:
    """Returns the file's text, which must be UTF-8, with or without a byte order mark.

    Raises:
        DataError: It is not, or is no text at all.
    """
    content = _content(file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line_of(content[: error.start].decode("latin-1"))
        hint = " It looks like UTF-16." if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(
            f"{file} line {line}: byte 0x{content[error.start]:02x} at offset {error.start:,} is not UTF-8.{hint} "
            "Save the file as CSV in UTF-8."
        ) from None
    if "\0" in text:
        raise DataError(f"{file} line {_line_of(text[: text.index(chr(0))])}: a NUL byte; this is no CSV. {WANTED}")
    return text


def _line_of(before: str) -> int:
    """Returns the number of the line that follows a text."""
    return len(re.findall(r"\r\n|\r|\n", before)) + 1


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            is_packed = stream.read(2) == b"\x1f\x8b"
        with gzip.open(file) if is_packed else file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}. Mend the file.") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{file} holds more than {MAX_BYTES:,} bytes, the most that is read. Split it, or take a part.")
    return content


def _check_header(file: Path, rows: Sequence[tuple[int, str, str]]) -> None:
    """Refuses a first row that can only be a header: a word over a column of integers, or a word for "class"."""
    line, first, text = rows[0]
    others = {label for _, label, _ in rows[1:]}
    over_integers = bool(others) and not _is_integer(first) and all(_is_integer(label) for label in others)
    if over_integers or (first.lower() in HEADER_WORDS and first not in others):
        raise DataError(f"{file} line {line} looks like a header: {first},{text[:40]}. {WANTED} Remove that line.")


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
    lines = [line.strip() for line in re.split(r"[\r\n]+", _decoded(file)) if line.strip()]
    pairs = [re.fullmatch(r"([+-]?\d+)\t\s*(.+)", line) for line in lines]
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
    return re.fullmatch(r"[+-]?\d{1,18}", label) is not None


def _other_separator(file: Path) -> str:
    first = _decoded(file).split("\n", 1)[0]
    found = next((name for mark, name in (("\t", "tabs"), (";", "semicolons")) if mark in first), None)
    return f" The columns look separated by {found}: separate them by commas." if found else ""
