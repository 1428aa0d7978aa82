"""What is wrong with the data: one parallel read of the bytes, before any training, without TensorFlow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_finetune.errors import DataError, listed
from tf_finetune.examples import TRAINING
from tf_finetune.examples.records import counted
from tf_finetune.feature_cache import Place
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection.records import Finding, Inspection, Look, Unusable

__all__ = ["Finding", "Inspection", "Look", "Unusable", "by_features", "examine", "inspect"]


def inspect(
    task: str, channels: Mapping[str, Path], settings: Hyperparameters, scratch: Path, known: Sequence[str] = ()
) -> Inspection:
    """Returns the examples of a job without those that cannot be used, and what is wrong with them.

    Args:
        task: "image" or "text".
        channels: "training" first, then validation and test where there are any; they are read against its classes.
        settings: on_bad_data, max_bad_fraction, max_pixels and group_by are used.
        scratch: A folder for photos that must be converted; it is to last as long as they are read.
        known: Classes that validation and test may have besides those of training.

    Raises:
        HyperparameterError: group_by means nothing.
        DataError: A channel is missing, empty or broken as a whole; on_bad_data=fail and an example cannot be used;
            more than max_bad_fraction of a channel cannot; or none of a class can.
    """
    found = examine(task, channels, settings, scratch, known)
    stop_at_bad_data(found, settings)
    return found


def examine(
    task: str, channels: Mapping[str, Path], settings: Hyperparameters, scratch: Path, known: Sequence[str] = ()
) -> Inspection:
    """Returns the same however much cannot be used; only what is broken as a whole is an error."""
    from tf_finetune.inspection import photo_channels, text_channels

    return (text_channels if task == "text" else photo_channels).examine(channels, settings, scratch, known)


def by_features(found: Inspection, place: Place) -> tuple[Finding, ...]:
    """Returns the finding of photos whose features, as earlier jobs kept them, are alike; none where there are none.

    They are reported and join no group: features of another backbone, or of none yet, would make another split.

    Args:
        found: Of photos.
        place: Where features are kept.
    """
    from tf_finetune.inspection import duplicates, findings

    digests = [example.digest for part in found.parts.values() for example in part.items]
    finding = findings.of_pairs(duplicates.by_features(digests, place), found.parts, found.groups)
    return () if finding is None else (finding,)


def stop_at_bad_data(found: Inspection, settings: Hyperparameters) -> None:
    """Raises DataError where on_bad_data, max_bad_fraction or a class without a usable example ends the job."""
    bad = Counter(one.channel for one in found.unusable)
    if found.unusable and settings.on_bad_data == "fail":
        raise DataError(
            f"{len(found.unusable):,} of {counted(sum(found.read.values()), 'example')} cannot be used: "
            f"{_listed(found)}. Mend or remove them, or leave them out with on_bad_data=skip."
        )
    for channel, count in bad.items():
        if count > settings.max_bad_fraction * found.read[channel]:
            raise DataError(
                f"{count:,} of {counted(found.read[channel], 'example')} of {channel} cannot be used, more than "
                f"max_bad_fraction={settings.max_bad_fraction:g}: {_listed(found, channel)}. Mend or remove them; "
                "`tf-finetune check` lists all."
            )
    present = {found.parts[TRAINING].class_names[label] for label in set(found.parts[TRAINING].labels)}
    wanted = [*found.parts[TRAINING].class_names, *(one.label for one in found.unusable if one.channel == TRAINING)]
    lost = [name for name in dict.fromkeys(wanted) if name and name not in present]
    if lost:
        raise DataError(
            f"{counted(len(lost), 'class')} of training without an example that can be used: {listed(lost)}. "
            f"{_listed(found, TRAINING)}. Mend them, or remove the class."
        )


def _listed(found: Inspection, channel: str | None = None) -> str:
    rows = [one for one in found.unusable if channel in (None, one.channel)]
    return listed(f"{one.channel}/{one.id} ({one.reason[:100]})" for one in rows)
