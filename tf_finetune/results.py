"""Where results go: written aside on the destination's own disk, and renamed when whole."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_finetune import archive, examples, report, s3
from tf_finetune.errors import ExportError, FinetuneError
from tf_finetune.examples import Examples
from tf_finetune.inspection import quarantine
from tf_finetune.inspection.records import Unusable
from tf_finetune.job import Destination
from tf_finetune.report import label_errors, page, thumbnails

log = logging.getLogger(__name__)

ASIDE = ".tf-finetune-"
QUARANTINE, LABEL_ERRORS = "quarantine.csv", "label_errors.csv"
SOMETIMES = (QUARANTINE, LABEL_ERRORS)  # What not every result has.


@contextlib.contextmanager
def stage(destination: Destination) -> Iterator[Path]:
    """Gives a folder on the destination's own disk to write into; it is gone afterwards, whatever happens."""
    beside = destination.archive.parent.parent if destination.archive else destination.model_dir
    assert beside is not None
    _clear_abandoned(beside)
    missing = [place for place in (beside, *beside.parents) if not place.exists()]
    beside.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=beside, prefix=ASIDE))
    lock = _locked(staged)
    try:
        yield staged
    except Exception as error:
        if "No space left on device" not in str(error):  # TensorFlow wraps it in errors of its own.
            raise
        raise ExportError(
            f"There is no space left in {beside} for the results. Nothing was written. Free some, or give another "
            "--output."
        ) from None
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        if lock is not None:
            os.close(lock)
        for place in missing:  # Folders made for nothing go too.
            with contextlib.suppress(OSError):
                place.rmdir()


def _locked(folder: Path) -> int | None:
    """Returns a descriptor that locks a folder while it is open, or None where that cannot be done or is done."""
    descriptor = None
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def _clear_abandoned(beside: Path) -> None:
    """Removes what jobs that were killed had begun to write: folders that no process holds a lock on."""
    for folder in beside.glob(f"{ASIDE}*") if beside.is_dir() else ():
        lock = _locked(folder)
        if lock is not None:
            log.info("removing %s, which a job that was killed has left", folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def hand_over(staged: Path, destination: Destination) -> None:
    """Renames what is whole to where it belongs, or puts it to S3; an earlier result of the same name is replaced.

    Raises:
        ExportError: S3 does not take it; it then lies on this machine, where the message says.
    """
    if destination.archive is None:
        assert destination.model_dir is not None
        for source, target in ((staged / "data", destination.data), (staged / "model", destination.model_dir)):
            _move_into(source, target)
        return
    whole = staged / "output"
    whole.mkdir()
    for name in ("model.tar.gz", "data"):
        (staged / name).rename(whole / name)
    if destination.remote is None:
        _replace(destination.archive.parent, whole, staged / "earlier")
        return
    archive.pack(whole / "data", whole / "output.tar.gz")  # As SageMaker has it.
    try:
        s3.put(whole, destination.remote, destination.kms_key)
    except BaseException as error:  # Ctrl-C too must not cost the training.
        place = destination.archive.parent
        _replace(place, whole, staged / "earlier")
        kept = f"The result is whole in {place}: copy that folder there, or run again."
        if not isinstance(error, FinetuneError):
            log.warning(kept)
            raise
        raise ExportError(f"{error} {kept}") from error
    _remove_stale(whole, destination.remote)


def _remove_stale(whole: Path, remote: s3.Location) -> None:
    """Removes from S3 what only an earlier result of the same name had."""
    try:
        s3.remove(remote, [f"data/{name}" for name in SOMETIMES if not (whole / "data" / name).exists()])
    except FinetuneError as error:
        log.warning("of an earlier result something may be left: %s", error)


def _move_into(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if (target / entry.name).is_dir():
            shutil.rmtree(target / entry.name)
        shutil.move(str(entry), str(target / entry.name))


def _replace(place: Path, whole: Path, earlier: Path) -> None:
    """Renames a folder to its place; what lies there goes aside, and back if that fails."""
    if place.exists():
        log.info("replacing the earlier result in %s", place)
        place.rename(earlier)
    try:
        whole.rename(place)
    except OSError:
        if earlier.exists():
            earlier.rename(place)
        raise


def write_data(
    folder: Path,
    record: dict[str, Any],
    parts: Mapping[str, Examples],
    answers: Mapping[str, np.ndarray],
    pictured: Mapping[str, Path],
) -> None:
    """Writes report.json, report.html and predictions.csv.

    Args:
        folder: Where to; it is made.
        record: What report.json holds.
        parts: The examples.
        answers: Of validation, float32 [N, K].
        pictured: The photos that the page shows, by part and id.
    """
    folder.mkdir()
    report.write_json(folder / "report.json", record)
    (folder / "report.html").write_text(page.render(record, thumbnails.make(pictured)), encoding="utf-8")
    names = parts["training"].class_names
    scored = parts.get("validation", Examples(names, ()))
    ids = [example.id for example in scored.items]
    report.write_predictions(folder / "predictions.csv", ids, scored.labels, answers["validation"], names)


def write_lists(
    folder: Path, manifest: Mapping[str, Examples], unusable: Sequence[Unusable], doubtful: Sequence[Mapping[str, Any]]
) -> None:
    """Writes split.csv, and where there is something to list quarantine.csv and label_errors.csv."""
    examples.write_split(folder / "split.csv", manifest)
    if unusable:
        quarantine.write(folder / QUARANTINE, unusable)
    if doubtful:
        label_errors.write(folder / LABEL_ERRORS, doubtful)
