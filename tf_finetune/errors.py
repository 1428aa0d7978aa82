"""What can go wrong for a reason that the person who started the job can mend.

FinetuneError            its text is one clear message: expected, received, what to do
├── UsageError           a wrong flag, a missing channel, an output place that cannot be written
├── HyperparameterError  unknown, unparsable or out of range
├── DataError            no class folders, an empty class, an unreadable photo, an unknown class
├── BackboneError        an unknown handle, not a reusable SavedModel, a wrong input or output
├── TrainingError        the loss became NaN
├── ExportError          accuracy below min_accuracy, the archive disagrees, an unreadable archive
└── HostError            a host of several did not come, differs, failed or was lost

Anything else that escapes is our own fault and keeps its traceback.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

Result = TypeVar("Result")

MESSAGE_LIMIT = 1024  # Characters: SageMaker shows no more of a failure's reason.
LIST_LIMIT = 5


class FinetuneError(Exception):
    """Something the person who started the job can mend; its text says how."""


class UsageError(FinetuneError):
    """A wrong flag, a missing channel, or an output place that cannot be written."""


class HyperparameterError(FinetuneError):
    """A hyperparameter that is unknown, unparsable, out of range or at odds with another."""


class DataError(FinetuneError):
    """Data that cannot be trained on."""


class BackboneError(FinetuneError):
    """A backbone that cannot be found, loaded or used."""


class TrainingError(FinetuneError):
    """Training that went wrong for a reason in the settings."""


class ExportError(FinetuneError):
    """A model that must not be handed over, or an archive that cannot be read."""


class HostError(FinetuneError):
    """A job of several hosts of which one did not come, differs from the others, failed or was lost."""


@contextlib.contextmanager
def told_as_given(copies: Mapping[str, str]) -> Iterator[None]:
    """Has the messages of errors in the block name places as the user wrote them, not their local copies.

    Args:
        copies: What the user wrote, by the local copy of it; looked at when an error comes.
    """
    try:
        yield
    except FinetuneError as error:
        text = str(error)
        for copy, place in copies.items():
            text = text.replace(copy, place.rstrip("/"))
        if text == str(error):
            raise
        raise type(error)(text) from error


def listed(items: Iterable[object], limit: int = LIST_LIMIT, separator: str = ", ") -> str:
    """Returns at most `limit` items and the count of the rest.

    >>> listed(["a", "b", "c"], limit=2)
    'a, b and 1 more'
    """
    words = [str(item) for item in items]
    rest = len(words) - limit
    return separator.join(words[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


def shortened(message: str) -> str:
    """Returns the message cut to what SageMaker shows of a failure's reason."""
    return message if len(message) < MESSAGE_LIMIT else message[: MESSAGE_LIMIT - 5] + " ..."


def collector(problems: list[FinetuneError]) -> Callable[[Callable[[], Result]], Result | None]:
    """Returns a function that gives what an action gives; or adds to `problems` why it cannot be done: None then."""

    def tried(action: Callable[[], Result]) -> Result | None:
        try:
            return action()
        except FinetuneError as error:
            problems.append(error)
        except OSError as error:  # A path that is too long, or that may not be looked into.
            problems.append(UsageError(f"{error.filename} cannot be used: {error.strerror}. Give another path."))
        return None

    return tried


def combined(problems: Sequence[FinetuneError]) -> FinetuneError:
    """Returns all problems as one error: one as it is, several numbered in one message."""
    if len(problems) == 1:
        return problems[0]
    texts = [str(problem) for problem in problems]
    if sum(map(len, texts)) > MESSAGE_LIMIT - 50:  # What is cut off is then the end of the longest.
        texts.sort(key=len)
    return UsageError(shortened(" ".join(f"({number}) {text}" for number, text in enumerate(texts, start=1))))
