"""What names the backbone: the hyperparameter, the model channel or the default, and its card."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_finetune import catalog, hyperparameters, storage
from tf_finetune.errors import UsageError, listed
from tf_finetune.job import earlier
from tf_finetune.job.earlier import Earlier

log = logging.getLogger(__name__)


def handle_of(values: Mapping[str, Any], model_channel: Path | None, task: str) -> str:
    """Returns what names the backbone; a model channel counts before the hyperparameter's default."""
    if model_channel is not None and "backbone" in values:
        log.warning("the model channel %s is not used: backbone=%s is given", model_channel, values["backbone"])
    if model_channel is None or "backbone" in values:
        default = hyperparameters.default("backbone", task)
        handle = str(values.get("backbone", default))
        if not _named_card(handle) and os.path.isdir(storage.expanded(handle)):
            folder = Path(storage.expanded(handle))
            found = storage.locate(folder)
            handle = handle if found in (None, folder) else str(found)
    else:
        handle = str(_in_model_channel(model_channel))
    card = _named_card(handle)
    place = card.handle if card else handle
    if not place.startswith(catalog.PACKAGED):
        storage.check_handle(place, task)
    return handle


def earlier_of(handle: str, task: str, may_fetch: bool) -> Earlier | None:
    """Returns the earlier result that a handle names, or None where it names anything else.

    Args:
        handle: Names the backbone.
        task: Of the training channel.
        may_fetch: Whether a remote archive or folder, which the job will need in any case, is fetched to see. What is
            on a hub is taken for a backbone.

    Raises:
        BackboneError: It is a broken one, or cannot be fetched.
    """
    if _named_card(handle):
        return None
    kind = storage.handles.parse(handle).kind
    if kind == "local":
        return earlier.find(Path(storage.expanded(handle)), handle)
    if kind not in ("archive", "s3") or not may_fetch:
        return None
    fetched = storage.resolve_whole(handle, storage.cache_folder(), task)
    return earlier.find(fetched.folder, storage.redacted(handle), fetched.archive_sha256)


def card_of(handle: str, task: str | None) -> catalog.Card | None:
    """Returns the catalog's card of a handle, if it has one.

    Raises:
        UsageError: It is for the other task.
    """
    card = _named_card(handle)
    if card and task and card.task != task:
        wanted = [other.id for other in catalog.cards(task)]
        takes, holds = hyperparameters.PLURALS[card.task], hyperparameters.PLURALS[task]
        raise UsageError(
            f"backbone {handle} takes {takes}, but the training channel holds {holds}. Choose {listed(wanted)}."
        )
    return card


def _named_card(handle: str) -> catalog.Card | None:
    """Returns the card whose id a handle is; an id is one word, and ./word a folder that happens to be called so."""
    return catalog.find(handle) if os.sep not in handle else None


def _in_model_channel(channel: Path) -> Path:
    """Returns the SavedModel's folder or the archive that a model channel holds."""
    found = storage.locate(channel)
    if found is None:
        raise UsageError(
            f"model channel {channel} should be a SavedModel's folder, or hold one .tar.gz of it or a model.tar.gz; "
            f"received {listed(file.name for file in sorted(channel.glob('*'))) or 'nothing'}."
        )
    return found
