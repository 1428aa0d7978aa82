"""Labelled examples: photos from class folders, texts from data.csv; the data decides which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_finetune.examples import folders, texts
from tf_finetune.examples.manifest import read as read_split
from tf_finetune.examples.manifest import write as write_split
from tf_finetune.examples.records import TRAINING, VALIDATION, Example, Examples
from tf_finetune.examples.splitting import LEFT_OUT, split, split_again

COMPANIONS = (texts.NAMES_FILE,)  # Files that belong to a file of examples which is named by itself.

__all__ = [
    "COMPANIONS",
    "LEFT_OUT",
    "TRAINING",
    "VALIDATION",
    "Example",
    "Examples",
    "check",
    "folders",
    "read",
    "read_split",
    "split",
    "split_again",
    "task_of",
    "texts",
    "write_split",
]


def task_of(channel: Path) -> str:
    """Returns "text" for a channel that holds data.csv, or is a file; "image" for any other."""
    return "text" if texts.find(channel, TRAINING) else "image"


def check(task: str, channel: Path, name: str = TRAINING, class_names: Sequence[str] | None = None) -> list[str] | None:
    """Looks at a channel as far as that takes no time: the names of class folders, whether there is a file of texts.

    Returns:
        The training classes as far as they are known by then.

    Raises:
        FinetuneError: It cannot be a channel of this task.
    """
    if task == "text":
        texts.locate(channel, name)
        return None
    if name == TRAINING:
        classes = folders.training_classes(channel)
        folders.check_filled(channel, classes)
        return sorted(classes)
    if class_names is None:
        return sorted(folders.class_folders(channel, name))
    return sorted(folders.check_classes(channel, class_names, name))


def read(
    task: str,
    channel: Path,
    class_names: Sequence[str] | None = None,
    name: str = TRAINING,
    number_names: Mapping[int, str] | None = None,
) -> Examples:
    """Returns the examples of a channel.

    Args:
        task: "image" or "text".
        channel: Folder of class folders, or with data.csv; or the file of texts.
        class_names: The training classes, when another channel is read against them.
        name: What to call the channel in messages.
        number_names: What training calls the numbers of data.csv, when another channel is read against it.

    Raises:
        FinetuneError: The channel is missing, empty, broken, has one class only or one unknown to training.
    """
    if task == "text":
        return texts.read(channel, class_names, name, number_names)
    return folders.read(channel, class_names, name)
