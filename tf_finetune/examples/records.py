"""What an example is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tf_finetune.errors import DataError, listed

TRAINING, VALIDATION = "training", "validation"


@dataclasses.dataclass(frozen=True)
class Example:
    """One labelled photo or text.

    Attributes:
        id: A photo's path below the channel, with forward slashes; a text's file and line, such as data.csv:17.
        label: Index of its class, in [0, K).
        content: Where a photo's bytes are; a text itself.
        digest: SHA-256 of the photo's bytes or of the text in UTF-8, as 64 hexadecimal digits.
        group: Examples of one name, unless it is empty, stay on one side of the split.
    """

    id: str
    label: int
    content: Path | str
    digest: str
    group: str = ""


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of one channel or split, in the order of their digests, so that file names and disks do not matter.

    Attributes:
        class_names: The K class names; an example's label is an index into them.
        items: The examples.
        number_names: The class name of each number, where labels.txt names those of data.csv.
    """

    class_names: tuple[str, ...]
    items: tuple[Example, ...]
    number_names: Mapping[int, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labels(self) -> list[int]:
        """The labels of all examples, in [0, K)."""
        return [example.label for example in self.items]

    def named(self, class_names: Sequence[str]) -> Examples:
        """Returns the same examples with labels among other class names, which have all of these that occur."""
        if tuple(class_names) == self.class_names:
            return self
        labels = {label: class_names.index(name) for label, name in enumerate(self.class_names) if name in class_names}
        items = (dataclasses.replace(example, label=labels[example.label]) for example in self.items)
        return dataclasses.replace(self, class_names=tuple(class_names), items=tuple(items))


def check_known(found: Iterable[str], class_names: Sequence[str], name: str, place: Path) -> None:
    """Compares the classes of a channel with those of training.

    Raises:
        DataError: One of them is unknown to training.
    """
    unknown = sorted(set(found) - set(class_names))
    if unknown:
        raise DataError(
            f"{name} channel {place} has {counted(len(unknown), 'class')} that training lacks: {listed(unknown)}. "
            f"Classes in training: {listed(class_names)}. Rename or remove the class, or add it to training."
        )


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun.

    >>> counted(1, "class"), counted(2000, "class")
    ('1 class', '2,000 classes')
    """
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"
