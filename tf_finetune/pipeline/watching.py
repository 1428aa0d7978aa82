"""What watches over a training in steps: checkpoints, the best model so far on disk, and reasons to end early."""

from __future__ import annotations

import contextlib
import logging
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tf_finetune import export, interruption
from tf_finetune.classifier import Classifier
from tf_finetune.examples import Examples
from tf_finetune.features.frozen import Passes
from tf_finetune.hosts.team import Team
from tf_finetune.job import Job
from tf_finetune.pipeline import together
from tf_finetune.training import Watched
from tf_finetune.training.checkpoints import Keeper, fingerprint

log = logging.getLogger(__name__)

BEST = "best"
OF_NO_CONSEQUENCE = frozenset({"checkpoint_seconds", "max_seconds", "min_accuracy", "calibrate"})  # For the steps.


@contextlib.contextmanager
def watched(
    planned: Job,
    parts: Mapping[str, Examples],
    passes: Passes,
    crew: Team,
    replicas: int,
    started: float,
    write: Callable[[Path, Classifier], None],
) -> Iterator[Watched]:
    """Gives what watches over a job's training.

    Args:
        planned: The job.
        parts: Its examples.
        passes: Which knows the backbone's content, and all hosts of the job.
        crew: The hosts that train together; only the first of them keeps anything.
        replicas: Devices; one and two round differently.
        started: `time.monotonic()` at the job's start.
        write: Writes an unpacked archive of the model as it is into a folder.
    """
    settings, folder = planned.settings, planned.checkpoints
    keeper = Keeper()
    if folder is not None and crew.is_chief and not (settings.train_only_top_layer and settings.optimizer == "auto"):
        chosen = {name: value for name, value in settings.model_dump().items() if name not in OF_NO_CONSEQUENCE}
        about: dict[str, Any] = {
            "settings": chosen,
            "examples": {name: [(one.digest, one.label) for one in part.items] for name, part in parts.items()},
            "class_names": parts["training"].class_names,
            "backbone": passes.digests,
            "earlier": planned.earlier.sha256 if planned.earlier else None,
            "versions": export.versions(),
            "replicas": replicas,
        }
        keeper = Keeper(folder, fingerprint(about), settings.checkpoint_seconds)

    keeps = crew.told("whether checkpoints are kept", keeper.folder is not None)

    def improved(model: Classifier) -> None:
        if keeps:
            model = together.own_model(crew, model, planned)
        if keeper.folder is not None:
            _keep(keeper.folder / BEST, lambda place: write(place, model))

    with interruption.heeded(settings.max_seconds, started) as stop:

        def reason() -> str:
            own = stop()
            if own:
                passes.team.ask_to_stop(own)
            return own or passes.team.asked

        yield Watched(keeper, reason, improved)


def _keep(folder: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder aside and puts it in the place of an earlier one; a disk that refuses costs a warning."""
    aside, earlier = (folder.with_name(f".{folder.name}-{uuid.uuid4().hex}") for _ in range(2))
    try:
        aside.mkdir(parents=True)
        write(aside)
        if folder.exists():
            folder.rename(earlier)
        aside.rename(folder)
    except OSError as error:
        log.warning("the best model so far is not in %s: %s. Training goes on.", folder, error.strerror or error)
    finally:
        for leftover in (aside, earlier, *folder.parent.glob(f".{folder.name}-*")):
            shutil.rmtree(leftover, ignore_errors=True)
