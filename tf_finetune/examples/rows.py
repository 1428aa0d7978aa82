"""The rows of a CSV of labelled texts: no header, first column the class, second the text, perhaps third a group.

Line numbers are the file's, from 1; a text with line breaks in quotes spans several.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tf_finetune.errors import DataError, listed
from tf_finetune.examples.records import counted

MAX_BYTES = 4 * 2**30  # Of the unpacked file, which is read into memory.
WANTED = "Expected two columns and no header: class,text. Quote texts that hold commas, quotes or line breaks."
HEADER_WORDS = frozenset(["label", "labels", "class", "classes", "category", "target", "sentiment", "intent", "y"])
# What stands for bytes that are not UTF-8 (Python's surrogateescape) and for NUL; neither is a character of any text.
NUL = "\ud800"
UNREADABLE = re.compile("[\ud800-\udfff]")
INTEGER = re.compile(r"[+-]?\d{1,18}")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the file.

    Attributes:
        line: Its first line, from 1.
        label: Its class as it stands there.
        text: The text.
        group: What the third column says, where there is one.
    """

    line: int
    label: str
    text: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class BadRow:
    """One row that cannot be used.

    Attributes:
        line: Its first line, from 1.
        label: Its class as it stands there, where that can be told.
        kind: Why, in one word.
        reason: Why; it follows "line 7".
    """

    line: int
    label: str
    kind: str
    reason: str


def read(file: Path) -> list[Row]:
    """Returns the rows of a file, all of which must be good.

    Raises:
        DataError: It cannot be read, is no CSV of two columns in UTF-8, has a row without a class, a header or no rows.
    """
    rows, bad = _sorted_out(file, decoded(file), (2,), strict=True)
    _refuse(file, rows, bad)
    if _is_header(rows):
        first = rows[0]
        raise DataError(f"{file} line {first.line} {_header(first)}. {WANTED} Remove that line.")
    return rows


def read_leniently(file: Path, columns: Sequence[int] = (2,)) -> tuple[list[Row], list[BadRow]]:
    """Returns the good rows of a file, and those that cannot be used.

    Left out are a header, rows without a class or of another number of columns, whose text is empty, that have a NUL
    byte, that are not UTF-8, and those where text follows a closing quote. A quote that is never closed, or a broken
    one in a text of several lines, swallows rows of which nobody can tell where they end: that is an error.

    Args:
        file: What `locate` gave.
        columns: How many a row may have: two, and three where the third names a group.

    Raises:
        DataError: The file cannot be read, is UTF-16, has such a quote, or has no good row.
    """
    rows, bad = _sorted_out(file, _decoded_leniently(file), columns)
    if _is_header(rows):
        first = rows.pop(0)
        bad.append(BadRow(first.line, "", "header", _header(first)))
    empty = [row for row in rows if not row.text.strip()]
    bad += [BadRow(row.line, row.label, "empty", "has no text") for row in empty]
    rows = [row for row in rows if row.text.strip()]
    if not rows:
        _refuse(file, rows, bad)
        reasons = [f"line {row.line} {row.reason}" for row in bad]
        raise DataError(f"{file}: none of its {counted(len(bad), 'row')} can be used: {listed(reasons)}. {WANTED}")
    return rows, sorted(bad, key=lambda row: row.line)


def _sorted_out(file: Path, text: str, columns: Sequence[int], strict: bool = False) -> tuple[list[Row], list[BadRow]]:
    """Returns the rows of so many columns with a class, and the others; blank lines are neither."""
    rows, bad = [], []
    is_readable = not UNREADABLE.search(text)
    for line, cells in _parsed(file, text, strict):
        if isinstance(cells, str):
            bad.append(BadRow(line, "", "broken_quote", cells))
        elif len(cells) < 2 and not "".join(cells).strip():
            continue
        elif not is_readable and any(UNREADABLE.search(cell) for cell in cells):
            bad.append(_undecoded(line, cells))
        elif len(cells) not in columns:
            bad.append(BadRow(line, "", "columns", f"has {counted(len(cells), 'column')}"))
        elif not cells[0].strip():
            bad.append(BadRow(line, "", "no_class", "has no class"))
        else:
            rows.append(Row(line, cells[0].strip(), cells[1], cells[2].strip() if len(cells) > 2 else ""))
    return rows, bad


def _undecoded(line: int, cells: Sequence[str]) -> BadRow:
    label = "" if len(cells) < 2 or UNREADABLE.search(cells[0]) else cells[0].strip()
    if any(NUL in cell for cell in cells):
        return BadRow(line, label, "nul", "has a NUL byte")
    return BadRow(line, label, "wrong_encoding", "is not UTF-8")


def _refuse(file: Path, rows: Sequence[Row], bad: Sequence[BadRow]) -> None:
    """Raises for rows that are not two columns with a class, and where there are no rows.

    Raises:
        DataError: Names every such line.
    """
    for kind, what in (("columns", "not of two columns"), ("no_class", "without a class")):
        found = [f"line {row.line}" + f" {row.reason}" * (kind == "columns") for row in bad if row.kind == kind]
        if found:
            hint = _other_separator(file) if not rows else ""
            raise DataError(f"{file}: {counted(len(found), 'row')} {what}: {listed(found)}. {WANTED}{hint}")
    if not rows and not bad:
        raise DataError(f"{file} is empty. {WANTED}")


def _parsed(file: Path, text: str, strict: bool) -> Iterator[tuple[int, list[str] | str]]:
    """Yields each row's first line number and cells; of one with a broken quote, what is wrong with it.

    Raises:
        DataError: A quote is not closed, or text follows a closing quote and `strict`, or in a row of several lines.
    """
    csv.field_size_limit(2**31 - 1)  # Texts of any length that fits in memory.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(f"{file} line {line}: a quote is opened and never closed. {WANTED}") from None
            if strict or reader.line_num > line:
                raise DataError(
                    f"{file} line {line}: text follows a closing quote. Double the quotes inside a quoted text. "
                    f"{WANTED}"
                ) from None
            yield line, "has text after a closing quote; double the quotes inside a quoted text"


def decoded(file: Path) -> str:
    """Returns the file's text, which must be UTF-8, with or without a byte order mark.

    Raises:
        DataError: It is not, or is no text at all.
    """
    content = _content(file)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line_of(content[: error.start].decode("latin-1"))
        raise DataError(
            f"{file} line {line}: byte 0x{content[error.start]:02x} at offset {error.start:,} is not UTF-8."
            f"{_encoding_hint(content)} Save the file as CSV in UTF-8."
        ) from None
    if "\0" in text:
        raise DataError(f"{file} line {_line_of(text[: text.index(chr(0))])}: a NUL byte; this is no CSV. {WANTED}")
    return text


def _decoded_leniently(file: Path) -> str:
    """Returns the file's text; what is not UTF-8 in it is marked by characters of UNREADABLE.

    Raises:
        DataError: It is UTF-16, of which nothing could be used.
    """
    content = _content(file)
    hint = _encoding_hint(content)
    if hint:
        raise DataError(f"{file} is not UTF-8.{hint} Save the file as CSV in UTF-8.")
    return content.decode("utf-8-sig", "surrogateescape").replace("\0", NUL)


def _encoding_hint(content: bytes) -> str:
    is_utf_16 = content[:2] in (b"\xff\xfe", b"\xfe\xff") or content[:4096].count(0) > len(content[:4096]) / 3
    return " It looks like UTF-16." if is_utf_16 else ""


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


def _is_header(rows: Sequence[Row]) -> bool:
    """Returns whether the first row can only be a header: a word over a column of integers, or a word for "class"."""
    if not rows:
        return False
    first, others = rows[0].label, {row.label for row in rows[1:]}
    if first.lower() in HEADER_WORDS and first not in others:
        return True
    return bool(others) and not INTEGER.fullmatch(first) and all(map(INTEGER.fullmatch, others))


def _header(row: Row) -> str:
    return f"looks like a header: {row.label},{row.text[:40]}"


def _other_separator(file: Path) -> str:
    first = decoded(file).split("\n", 1)[0]
    found = next((name for mark, name in (("\t", "tabs"), (";", "semicolons")) if mark in first), None)
    return f" The columns look separated by {found}: separate them by commas." if found else ""
