"""Where results go, tried before the work that they cost."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tf_finetune.errors import UsageError

DEFAULT_OUTPUT = "results"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where results go.

    Attributes:
        archive: Path of model.tar.gz; None on SageMaker, which packs model_dir itself.
        model_dir: Folder of the unpacked archive on SageMaker; else None.
        data: Folder of report and predictions.
    """

    archive: Path | None
    model_dir: Path | None
    data: Path


def find(
    output: str | os.PathLike[str] | None,
    name: str,
    sagemaker_output: tuple[Path, Path] | None,
    channels: Iterable[Path],
) -> Destination:
    """Returns where results go, having tried that it can be written to."""
    if output is None and sagemaker_output is not None:
        model_dir, data = sagemaker_output
        for folder in (model_dir, data):
            _check_writable(folder)
        return Destination(None, model_dir, data)
    if str(output or "").startswith(("s3://", "https://", "http://")):
        raise UsageError(f"--output {output}: only folders are supported yet.")
    output = output or DEFAULT_OUTPUT
    place = Path(output).absolute() / name / "output"
    real = Path(os.path.realpath(place))
    for channel in filter(os.path.isdir, channels):
        source = Path(os.path.realpath(channel))
        if real.is_relative_to(source):
            raise UsageError(
                f"--output {output}: results in {place} would lie inside the channel {channel} and become its data. "
                "Give another --output."
            )
        if source.is_relative_to(real):
            raise UsageError(
                f"--output {output}: results would replace {place}, which holds the channel {channel}. "
                "Give another --output or --model-name."
            )
    _check_writable(place)
    if place.is_dir() and any(place.iterdir()) and not (place / "model.tar.gz").is_file():
        raise UsageError(
            f"--output {output}: {place} holds something else than an earlier result. Give another --output or "
            "--model-name."
        )
    return Destination(place / "model.tar.gz", None, place / "data")


def check_checkpoints(folder: str | os.PathLike[str] | None) -> None:
    """Raises UsageError where a folder for checkpoints cannot be made."""
    if not folder:
        return
    if "://" in str(folder) or (Path(folder).exists() and not Path(folder).is_dir()):
        raise UsageError(f"--checkpoints: expected a folder on this machine; received {folder}.")
    _check_writable(Path(folder).absolute())


def _check_writable(folder: Path) -> None:
    """Makes and removes such a folder in the nearest ancestor that exists, which leaves nothing behind.

    Raises:
        UsageError: That cannot be done.
    """
    nearest = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), folder)
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".trying-") as tried:
            Path(tried, *folder.parts[len(nearest.parts) :]).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"The output place {folder} cannot be written: {nearest}: {error.strerror}. Give another --output."
        ) from None
