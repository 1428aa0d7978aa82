"""What can go wrong for a reason that the person who started the job can mend.

FinetuneError            its text is one clear message: expected, received, what to do
├── UsageError           a wrong flag, a missing channel, an output place that cannot be written
├── HyperparameterError  unknown, unparsable or out of range
├── DataError            no class folders, an empty class, an unreadable photo, an unknown class
├── BackboneError        an unknown handle, not a reusable SavedModel, a wrong input or output
├── TrainingError        the loss became NaN
└── ExportError          accuracy below min_accuracy, the archive disagrees, an unreadable archive

Anything else that escapes is our own fault and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

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
