"""The main job on data that comes in PyPI wheels: nothing to bring, nothing to configure."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from tf_finetune import job, storage

log = logging.getLogger(__name__)

NAMES = {"image": "demo", "text": "demo-text"}


def run(task: str, output: str | None, train: Callable[[job.Job], dict[str, Any]]) -> int:
    """Trains on the demonstration's data and tells what came out and how to go on.

    Args:
        task: "image" or "text".
        output: Where results go; None for the default.
        train: Runs a job and returns its record.
    """
    if task == "text":
        from tf_finetune.demo import messages as chosen
    else:
        from tf_finetune.demo import photos as chosen  # type: ignore[no-redef]
    data = storage.cache_folder() / "demo" / chosen.NAME
    if not storage.is_whole(data):
        chosen.make(data)
    channels = {part: data / part for part in ("training", "validation")}
    record = train(job.plan(channels, chosen.SETTINGS, output, NAMES[task]))
    accuracy = record["metrics"]["validation"]["accuracy"]
    print(f"\nvalidation accuracy: {accuracy:.3f}; {chosen.BASELINE}: {chosen.baseline(data):.3f}")
    print(f"archive: {record['job']['model_artifact']}")
    print(f"report:  {record['job']['report']}")
    holds, one = ("with data.csv (class,text)", "TEXT") if task == "text" else ("of class folders", "PHOTO")
    print(f"\nOn a folder {holds} of your own:\n  tf-finetune train --training FOLDER --output results")
    print(f"An answer from the archive:\n  tf-finetune predict {record['job']['model_artifact']} {one}")
    return 0
