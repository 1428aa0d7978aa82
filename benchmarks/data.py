"""The photos and texts that all contenders get: the same files, split once, by the package's own split."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_finetune import examples, inspection, storage
from tf_finetune.examples import Examples
from tf_finetune.hyperparameters import Hyperparameters

# What Keras's own reader takes; what it does not take is left out for everyone.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
RATIO = 0.2  # The package's default validation_split_ratio.


@dataclass(frozen=True)
class Data:
    """Labelled examples of one task.

    Attributes:
        task: "image" or "text".
        channel: The folder that our command gets.
        name: What to call them in the table.
        everything: All of them that can be used.
        groups: Near duplicates, which stay on one side of the split.
    """

    task: str
    channel: Path
    name: str
    everything: Examples
    groups: dict[str, str]


def photos(folder: Path | None, place: Path, limit: int | None) -> Data:
    """Returns photos as links in a folder of class folders.

    Args:
        folder: Class folders of photos; None for those of the package's demonstration, from a PyPI wheel.
        place: Where the links go.
        limit: Most photos of a class; None for all.
    """
    name = folder.name if folder else "surfaces (of a PyPI wheel)"
    roots = [folder] if folder else [_demonstration("image") / part for part in ("training", "validation")]
    for class_folder in sorted(one for root in roots for one in root.iterdir() if one.is_dir() and one.name[0] != "."):
        (place / class_folder.name).mkdir(parents=True, exist_ok=True)
        for file in sorted(one for one in class_folder.rglob("*") if one.suffix.lower() in SUFFIXES):
            number = len(list((place / class_folder.name).iterdir()))
            if limit is None or number < limit:
                (place / class_folder.name / f"{number:05}{file.suffix.lower()}").symlink_to(file.resolve())
    return _inspected("image", place, name)


def texts(folder: Path | None, place: Path, limit: int | None) -> Data:
    """Returns texts in a data.csv whose classes are names. The arguments are as those of `photos`."""
    name = folder.name if folder else "topics (of a PyPI wheel)"
    found = examples.read("text", folder or _demonstration("text") / "all")
    rows: list[tuple[str, str]] = []
    for label, class_name in enumerate(found.class_names):
        those = [item for item in found.items if item.label == label]
        rows += [(class_name, str(item.content)) for item in those[:limit]]
    _write(place, rows)
    return _inspected("text", place, name)


def _inspected(task: str, place: Path, name: str) -> Data:
    """Returns what our command would use of a channel, and what it would keep together."""
    converted = place.with_name(f"{place.name}-converted")
    converted.mkdir()
    seen = inspection.inspect(task, {"training": place}, Hyperparameters(), converted)
    return Data(task, place, name, seen.parts["training"], dict(seen.groups))


def _write(place: Path, rows: Sequence[tuple[str, str]]) -> None:
    place.mkdir(parents=True)
    with (place / "data.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def _demonstration(task: str) -> Path:
    """Returns the folder of the demonstration's data, made from its PyPI wheel if need be."""
    if task == "text":
        from tf_finetune.demo import messages as chosen
    else:
        from tf_finetune.demo import photos as chosen  # type: ignore[no-redef]
    folder = storage.cache_folder() / "demo" / chosen.NAME
    if not storage.is_whole(folder):
        chosen.make(folder)
    return folder


def split(data: Data, seed: int, place: Path) -> dict[str, Any]:
    """Returns what a contender gets of the data: class names, each part's rows, and for photos its class folders.

    Args:
        data: All of the examples.
        seed: As our command's random_seed, whose split this is.
        place: Where the folders of links go; made once for each seed.
    """
    sides = examples.split(data.everything, RATIO, seed, data.groups)
    parts = dict(zip(("training", "validation"), sides, strict=True))
    job: dict[str, Any] = {"class_names": list(data.everything.class_names), "seed": seed, "digests": {}}
    for part, chosen in parts.items():
        job[part] = [(os.fspath(item.content), item.label) for item in chosen.items]
        job["digests"][part] = sorted(item.digest for item in chosen.items)
    if data.task == "image":
        job["folders"] = {part: str(link(job[part], job["class_names"], place / part)) for part in parts}
    return job


def link(rows: Sequence[tuple[str, int]], class_names: Sequence[str], place: Path) -> Path:
    """Returns a folder of class folders that hold links to some photos; classes without photos are empty folders."""
    if place.is_dir():
        return place
    for class_name in class_names:
        (place / class_name).mkdir(parents=True)
    for path, label in rows:
        (place / class_names[label] / Path(path).name).symlink_to(Path(path).resolve())
    return place


def check_split(job: dict[str, Any], split_csv: Path) -> None:
    """Makes sure that our command split the examples as the others' lists do.

    Raises:
        ValueError: It did not, so that no figure would compare like with like.
    """
    found: dict[str, list[str]] = {"training": [], "validation": []}
    with split_csv.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        for row in csv.DictReader(stream):
            found[row["split"]].append(row["sha256"])
    if {part: sorted(digests) for part, digests in found.items()} != job["digests"]:
        raise ValueError(f"{split_csv}: our command did not split the examples as the other contenders' lists have it")


def enlarge(data: Data, place: Path, count: int) -> Path:
    """Writes as many photos as asked for: copies, each with other bytes after its end, where no decoder looks."""
    for number, item in zip(range(count), itertools.cycle(data.everything.items), strict=False):
        file = Path(item.content)
        folder = place / data.everything.class_names[item.label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06}{file.suffix}").write_bytes(file.read_bytes() + b"copy %d" % number)
    return place
