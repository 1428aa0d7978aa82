"""What names the backbone: the hyperparameter, the model channel or the default, and its card."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_finetune import catalog, hyperparameters, storage
from tf_finetune.errors import UsageError, listed

log = logging.getLogger(__name__)


def handle_of(values: Mapping[str, Any], model_channel: Path | None, task: str) -> str:
    """Returns what names the backbone; a model channel counts before the hyperparameter's default."""
    if model_channel is not None and "backbone" in values:
        log.warning("the model channel %s is not used: backbone=%s is given", model_channel, values["backbone"])
    if model_channel is None or "backbone" in values:
        default = hyperparameters.default("backbone", task)
        handle = str(values.get("backbone", default))
    else:
        handle = str(_in_model_channel(model_channel))
    card = _named_card(handle)
    place = card.handle if card else handle
    if not place.startswith(catalog.PACKAGED):
        storage.check_handle(place, task)
    return handle


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
    """Returns the SavedModel's folder or archive that a model channel holds."""
    if (channel / "tf_finetune.json").is_file():
        raise UsageError(f"model channel {channel} holds an earlier result; going on from one is not supported yet.")
    if channel.is_file() or any(channel.glob("saved_model.pb*")) or any(channel.glob("*/saved_model.pb*")):
        return channel
    archives = [file for file in sorted(channel.glob("*")) if file.name.endswith(storage.ARCHIVE_SUFFIXES)]
    if len(archives) == 1:
        return archives[0]
    raise UsageError(
        f"model channel {channel} should be a SavedModel's folder, or hold one .tar.gz of it; received "
        f"{listed(file.name for file in sorted(channel.glob('*'))) or 'nothing'}."
    )
