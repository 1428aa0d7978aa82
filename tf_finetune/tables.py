"""The tables that the command line prints: backbones and hyperparameters."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tf_finetune import catalog, feature_cache, hyperparameters, s3
from tf_finetune.errors import UsageError, listed


def hyperparameters_table(form: str) -> str:
    """Returns the table of hyperparameters as text, markdown or json."""
    rows = hyperparameters.table()
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "markdown":
        head = ["| name | for | default | accepts | meaning |", "|---|---|---|---|---|"]
        cells = [[f"`{row['name']}`", row["task"], _default(row), row["accepts"], row["meaning"]] for row in rows]
        return "\n".join(
            [*head, *("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells)]
        )
    cells = [["NAME", "FOR", "DEFAULT", "ACCEPTS", "MEANING"]]
    cells += [
        [row["name"], row["task"], _default(row) or "-", _cut(row["accepts"], 44), row["meaning"]] for row in rows
    ]
    return _aligned(cells)


def cache_table(place: feature_cache.Place, as_json: bool, copies: Sequence[s3.copies.Copy] = ()) -> str:
    """Returns what is kept of features: where, for which backbones, how many examples and bytes, when last used.

    Args:
        place: Where features are kept.
        as_json: Whether as JSON.
        copies: Of what lies in S3, which are told too.
    """
    spaces = feature_cache.listing(place)
    total = sum(space["bytes"] for space in spaces)
    if as_json:
        shown = {"place": str(place.folder) if place.folder else None, "limit": place.limit, "bytes": total}
        return json.dumps({**shown, "spaces": spaces, "copies": list(map(dataclasses.asdict, copies))}, indent=2)
    limit = f" of at most {_bytes(place.limit)}" if place.limit is not None else ""
    head = f"{place.folder}: {_bytes(total)}{limit}" if place.folder else "features are not kept"
    cells = [["BACKBONE", "PRECISION", "EXAMPLES", "SIZE", "LAST USED"]]
    for space in sorted(spaces, key=lambda space: -(space["last_used"] or 0)):
        about = space["about"]
        used = _moment(space["last_used"]) if space["last_used"] else "-"
        notes = ", augmented" * bool(about.get("augmentation")) + ", scaled" * bool(about.get("scaled"))
        precision = f"{about.get('precision', '?')}{notes}"
        row = [about.get("shown") or "?", precision, f"{space['examples']:,}", _bytes(space["bytes"]), used]
        cells.append(row)
    parts = [head, *([_aligned(cells)] if spaces else [])]
    if copies:
        rows = [[one.location, f"{one.objects:,}", _bytes(one.bytes), _moment(one.last_used)] for one in copies]
        parts += ["", _aligned([["COPY OF", "FILES", "SIZE", "LAST USED"], *rows])]
    return "\n".join(parts)


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _bytes(number: int) -> str:
    """Returns a number of bytes as people say it.

    >>> _bytes(0), _bytes(1536), _bytes(10 * 2**30)
    ('0 B', '1.5 KiB', '10.0 GiB')
    """
    size, units = float(number), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def backbones_table(wanted: str | None, as_json: bool) -> str:
    """Returns all cards as a table, or one card whole.

    Raises:
        UsageError: There is no such card.
    """
    if wanted is None:
        cards = catalog.cards()
        if as_json:
            return json.dumps([dataclasses.asdict(card) for card in cards], indent=2, default=dict)
        cells = [["ID", "TASK", "SIZE", "PIXELS", "FEATURES", "FINE-TUNABLE", "LICENCE"]]
        cells += [
            [
                card.id,
                card.task,
                _size(card),
                _range(card),
                _known(card.feature_size),
                "yes" if card.fine_tunable else "no",
                _known(card.licence),
            ]
            for card in cards
        ]
        return _aligned(cells)
    card = catalog.find(wanted)
    if card is None:
        close = catalog.suggestions(wanted)
        hint = f" Did you mean {listed(close)}?" if close else ""
        raise UsageError(f"There is no backbone {wanted}.{hint} `tf-finetune backbones` lists all.")
    if as_json:
        return json.dumps(dataclasses.asdict(card), indent=2, default=dict)
    only_images = {
        "image size": _size(card) + {True: ", fixed", False: ", others too", None: ""}[card.size_is_fixed],
        "pixel range": _range(card),
    }
    rows = {
        "id": card.id,
        "task": card.task,
        "handle": card.handle,
        **(only_images if card.task == "image" else {"preprocessor": card.preprocessor or "none needed"}),
        "features": _known(card.feature_size),
        "fine-tunable": "yes" if card.fine_tunable else "no",
        "licence": _known(card.licence),
        "own defaults": _settings(card.defaults),
        "when whole": _settings(card.whole_defaults),
        "note": card.note or "-",
    }
    return "\n".join(f"{name + ':':14}{value}" for name, value in rows.items())


def _default(row: dict[str, str]) -> str:
    return row["default"] + (f" (text: {row['text_default']})" if row["text_default"] else "")


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items()) or "none"


def _size(card: catalog.Card) -> str:
    if card.task == "text":
        return "-"
    if card.image_size is not None:
        return str(card.image_size)
    return "any" if card.size_is_fixed is False else "unknown"


def _range(card: catalog.Card) -> str:
    if card.task == "text":
        return "-"
    return ",".join(f"{value:g}" for value in card.pixel_range) if card.pixel_range else "unknown"


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
