"""Files for other runtimes, LiteRT and ONNX: from decoded pixels to probabilities, proved before they are handed over.

Neither has operations for strings or JPEGs, so decoding and resizing are left to the caller; `description` says how.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_finetune import archive as archives
from tf_finetune import examples
from tf_finetune.errors import ExportError, UsageError

MAX_LOSS = 0.02  # Of accuracy, by int8.
CALIBRATION, VALIDATION = "calibration", "validation"  # Names of channels.


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of file.

    Attributes:
        title: Its name among people.
        suffix: Of the files.
        needed: Packages that write and run it; the extra of the format's name installs them.
    """

    title: str
    suffix: str
    needed: tuple[str, ...]


FORMATS = {
    "litert": Format("LiteRT", ".tflite", ("ai_edge_litert",)),
    "onnx": Format("ONNX", ".onnx", ("tf2onnx", "onnx", "onnxruntime")),
}


@dataclasses.dataclass(frozen=True)
class Order:
    """What is to be exported, and where to.

    Attributes:
        archive: model.tar.gz, or the folder that it was unpacked to.
        format: A key of FORMATS.
        output: The file to write or replace; its description goes to the same name with .json behind.
        is_int8: Whether it computes in 8 bits.
        calibration: Channel of labelled photos, to prove the file on and to calibrate int8 with.
        validation: Likewise, to measure int8 on; without it on one half of the former.
        max_loss: Most accuracy that int8 may lose, a fraction.
        is_trusted: Whether the archive's graph may reach out of itself.
    """

    archive: Path
    format: str
    output: Path
    is_int8: bool
    calibration: Path | None
    validation: Path | None
    max_loss: float
    is_trusted: bool


def export(
    archive: str | Path,
    format: str,
    output: str | Path | None = None,
    *,
    int8: bool = False,
    calibration: str | Path | None = None,
    validation: str | Path | None = None,
    max_loss: float = MAX_LOSS,
    trust_backbone: bool = False,
) -> dict[str, Any]:
    """Writes an archive's model as a file of another format, and what it expects and gives beside it, as JSON.

    Args:
        archive: model.tar.gz of photos, or the folder that it was unpacked to.
        format: "litert" or "onnx".
        output: The file; by default beside the archive: model.tflite, model.int8.tflite or model.onnx.
        int8: Whether a LiteRT file computes in 8 bits.
        calibration: Folder of class folders of photos, best those of the training; needed for int8.
        validation: Likewise, best photos that the model was not trained on: they measure int8. Without it one half of
            the calibration's photos do, and the other half calibrates.
        max_loss: Most accuracy that int8 may lose, a fraction in [0, 1].
        trust_backbone: Whether the graph may read or write files, or run Python code.

    Returns:
        What the JSON beside the file holds.

    Raises:
        FinetuneError: It cannot be exported, or the file does not answer as the archive does. Nothing is written then.
    """
    order = plan(archive, format, output, int8, calibration, validation, max_loss, trust_backbone)
    from tf_finetune.targets import writing

    return writing.write(order)


def plan(
    archive: str | Path,
    format: str,
    output: str | Path | None = None,
    int8: bool = False,
    calibration: str | Path | None = None,
    validation: str | Path | None = None,
    max_loss: float = MAX_LOSS,
    trust_backbone: bool = False,
) -> Order:
    """Returns what `export` is to do; refuses what cannot be done, before TensorFlow is imported."""
    check_format(format, int8, calibration)
    title = FORMATS[format].title
    if archives.task_of(archive) != "image":
        raise ExportError(
            f"{archive} is a model of texts, and {title} has no operations for them: only models of photos can be "
            "exported. Serve this one by `tf-finetune serve`, or by its SavedModel."
        )
    place = default_output(Path(archive).absolute().parent, format, int8) if output is None else Path(output)
    _check_output(place, Path(archive), format)
    channels = {CALIBRATION: calibration, VALIDATION: validation}
    for name, channel in channels.items():
        if channel is not None:
            examples.check("image", Path(channel), name)
    first, second = (None if channel is None else Path(channel) for channel in channels.values())
    return Order(Path(archive), format, place, int8, first, second, max_loss, trust_backbone)


def default_output(folder: Path, format: str, int8: bool) -> Path:
    """Returns the file's place where none was given."""
    return folder / f"model{'.int8' if int8 else ''}{FORMATS[format].suffix}"


def described_at(file: Path) -> Path:
    """Returns the place of a file's description."""
    return file.with_name(f"{file.name}.json")


def summary(record: Mapping[str, Any]) -> str:
    """Returns what people are told of an export, of which `export` returned the record."""
    found = record["proof"]
    if "loss" in found:
        told = (
            f"accuracy: {found['accuracy_int8']:.4f} in int8, {found['accuracy_float32']:.4f} in float32 "
            f"({found['measured_on']:,} photos; calibrated on {found['calibrated_on']:,} others)"
        )
    else:
        told = f"largest difference of a probability: {found['largest_difference']:.2g} ({found['on']})"
    return (
        f"{told}\n{record['format']}: {record['path']} ({record['bytes']:,} bytes)\ndescription: {record['path']}.json"
    )


def check_format(format: str, int8: bool, calibration: str | Path | None) -> None:
    """Raises UsageError where the flags do not fit, or the format's packages are not installed."""
    if format not in FORMATS:
        raise UsageError(f"--format: expected {' or '.join(FORMATS)}; received {format!r}.")
    if int8 and format != "litert":
        raise UsageError(f"--int8 is for --format litert only. Received: --format {format}. Leave --int8 out.")
    if int8 and calibration is None:
        raise UsageError(
            "--int8 needs --calibration CHANNEL: the folder of class folders that the model was trained on, of which "
            "some photos set the scales of the 8 bits and others measure what they cost."
        )
    missing = [name for name in FORMATS[format].needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f'export --format {format} needs {", ".join(missing)}. Run: pip install "tf_finetune[{format}]"'
        )


def _check_output(place: Path, archive: Path, format: str) -> None:
    """Raises UsageError where the file cannot be written, or would take the place of something else than a file."""
    if "://" in str(place) or str(place).startswith("s3:"):
        raise UsageError(f"--output: expected a file on this machine; received {place}. Copy it from there.")
    if place.is_dir():
        example = place / f"model{FORMATS[format].suffix}"
        raise UsageError(f"--output {place} is a folder. Expected the file to write, such as {example}.")
    for written in (place, described_at(place)):
        if not written.exists():
            continue
        if not written.is_file():
            raise UsageError(f"--output {place}: {written} is there and is no file. Give another name.")
        if archive.resolve() in (written.resolve(), *written.resolve().parents):
            raise UsageError(
                f"--output {place} would replace {written}, which belongs to the archive. Give another name, or remove "
                "that file first if it does not."
            )
    above = place.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UsageError(f"--output {place} cannot be written: {above} is no folder that may be written to.")
