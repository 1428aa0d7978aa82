"""The data of a job: what the user named, in S3 or on this machine, and which files of it are uploaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tf_finetune import catalog, examples
from tf_finetune.errors import UsageError, listed
from tf_finetune.launch import places
from tf_finetune.s3 import Location
from tf_finetune.s3.default_data import DEFAULT, default_channel

NAMES = ("training", "validation", "test", "model")
MODEL_TYPE = "application/x-sagemaker-model"
ARCHIVES = (".tar.gz", ".tgz", ".tar")


@dataclass(frozen=True)
class Channel:
    """One channel.

    Attributes:
        name: As the job knows it.
        place: Where it lies in S3; None for one that is uploaded.
        files: What is uploaded: each file on this machine and its key within the channel.
    """

    name: str
    place: Location | None
    files: tuple[tuple[Path, str], ...] = ()


def find(asked: Mapping[str, str], backbone: str, region: str) -> tuple[tuple[Channel, ...], str | None]:
    """Returns the channels, and the task as far as they or the backbone tell it.

    Args:
        asked: Each channel as the user named it.
        backbone: The hyperparameter; may be empty.
        region: The job's Region, for the default data.

    Raises:
        FinetuneError: One is not there, or holds no such data.
    """
    local = {name: Path(os.path.expanduser(text)) for name, text in asked.items() if not _is_remote(name, text)}
    missing = [str(path) for path in local.values() if not os.path.exists(path)]
    if missing:
        raise UsageError(
            f"There is no such file or folder: {listed(missing)}. Give a folder on this machine, or s3://BUCKET/PREFIX."
        )
    card = catalog.find(backbone) if backbone else None
    task = examples.task_of(local["training"]) if "training" in local else None
    task = task or (card.task if card else None) or _task_of(asked.get("training", ""))
    classes = examples.check(task, local["training"]) if task and "training" in local else None
    found = []
    for name, text in asked.items():
        if name not in local:
            url = default_channel(task or "image", region) if text == DEFAULT else text
            found.append(Channel(name, places.as_channel(places.parse(f"--{name}", url))))
            continue
        if name in ("validation", "test") and task:
            examples.check(task, local[name], name, classes)
        files = _of_model(local[name]) if name == "model" else _of_data(task or "image", local[name], name)
        if not files:
            raise UsageError(f"--{name}: {local[name]} holds no files to upload. Check the path.")
        found.append(Channel(name, None, tuple(files)))
    return tuple(found), task


def _is_remote(name: str, text: str) -> bool:
    return "://" in text or name == "training" and text == DEFAULT


def _task_of(text: str) -> str | None:
    """Returns the task that a place in S3 tells by its name."""
    if text == DEFAULT:
        return "image"
    return "text" if text.lower().endswith((".csv", ".csv.gz")) else None


def _of_data(task: str, place: Path, name: str) -> list[tuple[Path, str]]:
    if task == "image":
        return _below(place)
    file = examples.texts.locate(place, name)
    key = file.name if place.is_dir() else "data.csv" + ".gz" * file.name.lower().endswith(".gz")
    names = file.with_name(examples.texts.NAMES_FILE)
    return [(file, key)] + [(names, names.name)] * names.is_file()


def _of_model(place: Path) -> list[tuple[Path, str]]:
    if place.is_dir():
        return _below(place)
    if not place.name.lower().endswith(ARCHIVES):
        raise UsageError(f"--model: expected a SavedModel's folder or a {', '.join(ARCHIVES)} of it; received {place}.")
    return [(place, place.name)]


def _below(folder: Path) -> list[tuple[Path, str]]:
    """Returns all files below a folder but hidden ones, each with its path within."""
    if not folder.is_dir():
        raise UsageError(f"Expected a folder; {folder} is a file. Give the folder that it lies in.")
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = [Path(place, name) for name in sorted(files) if not name.startswith(".")]
        found += [(path, path.relative_to(folder).as_posix()) for path in paths if path.is_file()]
    return found
