"""The work of `tf-finetune check`: what is wrong with the data, as a table or JSON; and what cannot be used, set apart.

It finds what a training job would find, by the same code, and trains nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_finetune import examples, hyperparameters, inspection
from tf_finetune.errors import UsageError, listed
from tf_finetune.examples.records import counted
from tf_finetune.feature_cache import Place
from tf_finetune.inspection import quarantine
from tf_finetune.inspection.records import ERROR, NOTE, WARNING, Finding, Inspection

FOUND = 3  # The exit code for errors and warnings.
SHOWN = 3  # Examples of one finding in the table.
LIST = "quarantine.csv"


def run(
    channels: Mapping[str, str | None],
    given: Mapping[str, object],
    place: Place,
    as_json: bool = False,
    fix: str | None = None,
) -> tuple[str, int]:
    """Returns what to print of the data, and the exit code: FOUND where there is an error or a warning, else 0.

    Args:
        channels: Places of training, and of validation and test where there are any.
        given: Hyperparameters, as text or None: max_pixels and group_by.
        place: Where earlier jobs kept features.
        as_json: Whether to print JSON instead of a table.
        fix: What to do about what cannot be used: quarantine=FOLDER moves it there. None moves nothing.

    Raises:
        FinetuneError: A channel is missing or broken as a whole, or a setting is wrong.
    """
    folders = {channel: Path(where) for channel, where in channels.items() if where}
    task = examples.task_of(folders["training"])
    values = hyperparameters.parse({name: value for name, value in given.items() if value is not None}, task)
    settings, _ = hyperparameters.resolve(values, {}, task=task)
    apart = _quarantine(fix, task, folders)
    with tempfile.TemporaryDirectory(prefix="tf-finetune-") as scratch:
        found = inspection.examine(task, folders, settings, Path(scratch))
    told = found.findings
    if task == "image":
        told = _sorted([*told, *inspection.by_features(found, place)])
    moves = _move(found, folders, apart) if apart and found.unusable else []
    text = _as_json(found, told, folders, moves) if as_json else _as_table(found, told, moves)
    return text, FOUND if any(finding.severity != NOTE for finding in told) else 0


def _sorted(found: list[Finding]) -> tuple[Finding, ...]:
    order = (ERROR, WARNING, NOTE)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def _quarantine(fix: str | None, task: str, channels: Mapping[str, Path]) -> Path | None:
    """Returns the folder that --fix names, or None without it.

    Raises:
        UsageError: It says something else, is for texts, is no folder, or lies in a channel and would become its data.
    """
    if fix is None:
        return None
    action, _, name = fix.partition("=")
    if action != "quarantine" or not name:
        raise UsageError(f"--fix: expected quarantine=FOLDER; received {fix}.")
    if task == "text":
        raise UsageError(
            "--fix moves files, and texts are rows of one file, which is never altered. Remove the listed lines by "
            "hand; training leaves them out anyway."
        )
    folder = Path(name).absolute()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--fix: {name} is a file. Expected a folder, which may be missing yet.")
    for channel in channels.values():
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(channel)):
            raise UsageError(f"--fix: {name} lies inside the channel {channel} and would become its data.")
    return folder


def _move(found: Inspection, channels: Mapping[str, Path], folder: Path) -> list[tuple[Path, Path]]:
    """Moves what cannot be used to FOLDER/channel/class/name, and adds it to FOLDER/quarantine.csv.

    Raises:
        UsageError: A file cannot be moved, or would replace one; those before it are moved and listed by then.
    """
    moves, moved = [], []
    try:
        for one in found.unusable:
            source, target = channels[one.channel] / one.id, folder / one.channel / one.id
            if os.path.lexists(target):
                raise UsageError(f"--fix: {target} is there already; nothing is replaced. Give another folder.")
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source, target)
            except OSError as error:
                raise UsageError(f"--fix: {source} cannot be moved to {target}: {error.strerror or error}.") from None
            moves.append((source, target))
            moved.append(one)
    finally:
        if moved:
            quarantine.add(folder / LIST, moved)
    return moves


def _as_table(found: Inspection, told: tuple[Finding, ...], moves: list[tuple[Path, Path]]) -> str:
    rows = [["SEVERITY", "KIND", "COUNT", "EXAMPLES", ""]] if told else []
    for finding in told:
        count = f"{len(finding.examples):,}" if finding.examples else "-"
        names = [_printable(name) for name in finding.examples]
        rows.append([finding.severity, finding.kind, count, listed(names, limit=SHOWN), _printable(finding.detail)])
    # The details have lines of their own, so that a terminal does not break the columns.
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    lines = []
    for row in rows:
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())
        lines += [f"         {row[4]}"] if row[4] else []
    lines += [f"moved {_printable(str(source))} to {_printable(str(target))}" for source, target in moves]
    return "\n".join([*lines, _summary(found, told)])


def _summary(found: Inspection, told: tuple[Finding, ...]) -> str:
    counts = Counter(finding.severity for finding in told)
    said = [counted(counts[severity], severity) for severity in (ERROR, WARNING, NOTE) if counts[severity]]
    read = ", ".join(f"{number:,} {channel}" for channel, number in found.read.items())
    bad = f", {len(found.unusable):,} of them unusable" if found.unusable else ""
    return f"{read} examples{bad}: {', '.join(said) or 'nothing is wrong'}"


def _printable(text: str) -> str:
    """Returns a name or sentence without what would steer the terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _as_json(
    found: Inspection, told: tuple[Finding, ...], channels: Mapping[str, Path], moves: list[tuple[Path, Path]]
) -> str:
    record: dict[str, Any] = {
        "channels": {channel: str(folder) for channel, folder in channels.items()},
        "examples": {
            channel: {"read": number, "usable": len(found.parts[channel])} for channel, number in found.read.items()
        },
        "findings": [{**dataclasses.asdict(finding), "count": len(finding.examples)} for finding in told],
        "unusable": [dataclasses.asdict(one) for one in found.unusable],
        "moved": [[str(source), str(target)] for source, target in moves],
    }
    return json.dumps(record, indent=2)  # In ASCII, so that names of any bytes come through.
