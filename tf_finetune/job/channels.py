"""A job's channels: folders of this machine as they are, and local copies of those in S3.

The split of the examples is decided by their content, so training needs every byte of a channel before its first step.
All channels are fetched at once, and what needs no data, importing TensorFlow, is done meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from tf_finetune import catalog, errors, examples, s3
from tf_finetune.errors import FinetuneError, UsageError, collector, combined
from tf_finetune.s3.default_data import DEFAULT, default_channel

Progress = Callable[[str, int, int], None]
FALLBACK_REGION = "us-east-1"  # Of the default data, where no Region is configured.


def located(channels: Mapping[str, str | os.PathLike[str] | None], backbone: str | None) -> dict[str, str]:
    """Returns where each channel lies, without looking: a path as it was given, or a location in S3.

    Args:
        channels: As the user named them; `default` as training is the user guide's data set.
        backbone: The hyperparameter, whose card tells which of them; None without one.

    Raises:
        UsageError: One is in a place that cannot be read from.
    """
    found = {channel: os.fspath(place) for channel, place in channels.items() if place}
    for channel, place in found.items():
        if channel == "training" and place == DEFAULT:
            if os.path.exists(place):
                raise UsageError(
                    f"--training {DEFAULT} is the user guide's data set, and there is a folder of that name too. Give "
                    f"{os.path.join(os.curdir, DEFAULT)} for the folder, or the data set's location in S3."
                )
            card = catalog.find(backbone or "")
            region = s3.client.configured_region() or FALLBACK_REGION
            found[channel] = default_channel(card.task if card else "image", region)
        elif s3.is_s3(channels[channel]):
            try:
                s3.parse(channels[channel] or "")
            except UsageError as error:
                raise UsageError(f"{channel} channel: {error}") from None
        elif "://" in place:
            raise UsageError(f"{channel} channel {place}: expected a folder on this machine, or s3://BUCKET/PREFIX.")
    return found


def brought(
    places: Mapping[str, str],
    cache: Path,
    region: str | None,
    progress: Progress | None,
    meanwhile: Callable[[], None] | None,
) -> dict[str, Path]:
    """Returns the local folder of each channel, those in S3 fetched, all at once.

    Args:
        places: As `located` gives them.
        cache: The cache folder, which keeps the copies, so that a second job transfers only what has changed.
        region: The job's Region, in which the buckets must be; None for buckets anywhere.
        progress: Is called with a stage, objects done and objects in all.
        meanwhile: Is called while they are fetched.

    Raises:
        FinetuneError: All that went wrong, in one message.
    """
    started = {
        channel: s3.start_mirror(place, cache, region, _named(progress, channel), examples.COMPANIONS)
        for channel, place in places.items()
        if s3.is_s3(place)
    }
    if started and meanwhile:
        meanwhile()
    problems: list[FinetuneError] = []
    tried = collector(problems)
    fetched = {channel: tried(future.result) for channel, future in started.items()}
    if problems:
        raise combined(problems)
    return {channel: fetched.get(channel) or Path(place) for channel, place in places.items()}


def _named(progress: Progress | None, channel: str) -> Progress | None:
    return progress and (lambda stage, done, total: progress(f"{stage} {channel}", done, total))


def told_as_given(places: Mapping[str, str], folders: Mapping[str, Path]) -> AbstractContextManager[None]:
    """Has the messages of errors in the block name a channel in S3 as the user wrote it, not its local copy."""
    in_s3 = {channel: place for channel, place in places.items() if channel in folders and s3.is_s3(place)}
    return errors.told_as_given({str(folders[channel]): place for channel, place in in_s3.items()})
