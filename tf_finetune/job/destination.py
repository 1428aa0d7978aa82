"""Where results go, tried before the work that they cost."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tf_finetune import s3, storage
from tf_finetune.errors import FinetuneError, UsageError, listed

log = logging.getLogger(__name__)

DEFAULT_OUTPUT = "results"


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where results go.

    Attributes:
        archive: Path of model.tar.gz; None on SageMaker, which packs model_dir itself.
        model_dir: Folder of the unpacked archive on SageMaker; else None.
        data: Folder of report and predictions.
        remote: Where they are put in S3, s3://BUCKET/PREFIX/NAME/output/; `archive` and `data` are then where they lie
            until that is done. None for results on this machine.
        kms_key: With which S3 encrypts them; None leaves it to the bucket.
    """

    archive: Path | None
    model_dir: Path | None
    data: Path
    remote: s3.Location | None = None
    kms_key: str | None = None

    @property
    def artifact(self) -> str:
        """The model, as a user finds it: model.tar.gz, or on SageMaker the folder that becomes it."""
        return f"{self.remote}model.tar.gz" if self.remote else str(self.archive or self.model_dir)

    @property
    def report(self) -> str:
        """The report, as a user finds it."""
        return f"{self.remote}data/report.html" if self.remote else str(self.data / "report.html")

    @property
    def output(self) -> str | None:
        """What --output was; None on SageMaker."""
        if self.remote:
            return self.artifact.rsplit("/", 3)[0]
        return str(self.archive.parents[2]) if self.archive else None


def find(
    output: str | os.PathLike[str] | None,
    name: str,
    sagemaker_output: tuple[Path, Path] | None,
    channels: Iterable[str],
    kms_key: str | None = None,
) -> Destination:
    """Returns where results go, having tried that it can be written to; S3 is not asked yet, see `check_remote`."""
    if kms_key and not s3.is_s3(output):
        raise UsageError(
            f"--output-kms-key {kms_key}: expected --output s3://BUCKET/PREFIX with it; received {output}."
        )
    if output is None and sagemaker_output is not None:
        model_dir, data = sagemaker_output
        for folder in (model_dir, data):
            _check_writable(folder)
        return Destination(None, model_dir, data)
    if s3.is_s3(output):
        return _in_s3(str(output), name, channels, kms_key)
    if "://" in str(output or ""):
        raise UsageError(f"--output {output}: expected a folder, or s3://BUCKET/PREFIX.")
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


def _in_s3(output: str, name: str, channels: Iterable[str], kms_key: str | None) -> Destination:
    try:
        remote = s3.joined(output, name, "output/")
    except UsageError as error:
        raise UsageError(f"--output: {error}") from None
    for channel in filter(s3.is_s3, channels):
        source = s3.parse(channel)
        if source.bucket == remote.bucket and remote.prefix.startswith(source.prefix):
            raise UsageError(
                f"--output {output}: results in {remote} would lie inside the channel {channel} and become its data. "
                "Give another --output or --model-name."
            )
    told = hashlib.sha256(str(remote).encode()).hexdigest()[:16]
    place = storage.cache_folder() / "results" / told / name / "output"  # Until it is put there.
    _check_writable(place)
    return Destination(place / "model.tar.gz", None, place / "data", remote, kms_key)


def check_remote(destination: Destination, region: str | None = None) -> None:
    """Asks S3 whether results may be put there, so that no training is lost; leaves nothing behind.

    Args:
        destination: Of any kind.
        region: The job's Region, in which the bucket must then be.

    Raises:
        FinetuneError: They may not, or something else than an earlier result lies there.
    """
    where = destination.remote
    if where is None:
        return
    try:
        keys = s3.check_writable(where, destination.kms_key, region)
    except FinetuneError as error:
        raise type(error)(f"--output: {error}") from None
    if keys and f"{where.prefix}model.tar.gz" not in keys:
        names = [key.removeprefix(where.prefix) for key in keys]
        raise UsageError(
            f"--output {destination.output}: {where} holds something else than an earlier result: {listed(names)}. "
            "Give another --output or --model-name."
        )
    if keys:
        log.info("the earlier result in %s will be replaced", where)


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
