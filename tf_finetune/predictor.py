"""An archive answers: load, predict, evaluate, from the archive alone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tf_finetune import devices  # isort: skip  (first: it imports TensorFlow without its noise)

import numpy as np
import tensorflow as tf

from tf_finetune import archive, evaluation, examples, safety, text_ops
from tf_finetune.errors import DataError, ExportError, UsageError
from tf_finetune.inspection import conversion

BATCH = 32
MOST_PIXELS = 200_000_000  # Of a photo that has to be converted.

__all__ = ["Predictor", "devices", "evaluate", "load"]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A loaded archive.

    Attributes:
        class_names: The K class names, in the order of the probabilities.
        task: "image" or "text".
        description: What the archive's tf_finetune.json holds.
    """

    class_names: tuple[str, ...]
    task: str
    description: dict[str, Any]
    _signature: Any
    _input_name: str

    @property
    def saved_model(self) -> Any:
        """What TensorFlow loaded: it holds the parts that were trained, see `backbone.earlier`."""
        return self._signature._keeps_alive

    def predict(self, inputs: str | Path | bytes | Iterable[str | Path | bytes]) -> list[dict[str, Any]]:
        """Returns one answer per input, in order.

        Args:
            inputs: Texts; or paths of photos, or their bytes. One or many.

        Returns:
            For each: input (the text or path, None for bytes), predicted_label (a class name) and probabilities
            (K floats in [0, 1], in the order of class_names).

        Raises:
            DataError: A file cannot be read, or is no photo that can be decoded.
        """
        given = [inputs] if isinstance(inputs, (str, Path, bytes, bytearray)) else list(inputs)
        given = [bytes(item) if isinstance(item, bytearray) else item for item in given]
        rows = self.probabilities(given)
        return [
            {
                "input": None if isinstance(item, bytes) else str(item),
                "predicted_label": self.class_names[int(row.argmax())],
                "probabilities": [float(f"{value:.9g}") for value in row],
            }
            for item, row in zip(given, rows, strict=True)
        ]

    def probabilities(self, inputs: Sequence[str | Path | bytes]) -> np.ndarray:
        """Returns float32 [N, K]: the probabilities of N texts, or of N photos, each a path or its bytes."""
        rows = [self._answer(inputs[start : start + BATCH]) for start in range(0, len(inputs), BATCH)]
        return np.concatenate(rows) if rows else np.zeros([0, len(self.class_names)], np.float32)

    def _answer(self, inputs: Sequence[str | Path | bytes]) -> np.ndarray:
        if self.task == "text":
            contents = [item if isinstance(item, bytes) else str(item).encode("utf-8", "replace") for item in inputs]
        else:
            contents = [encoded(item) for item in inputs]
        try:
            return self._signature(**{self._input_name: tf.constant(contents)})["probabilities"].numpy()
        except tf.errors.InvalidArgumentError:
            if self.task == "text":
                raise
            if len(inputs) > 1:  # Ask one by one, to name the one that cannot be decoded.
                return np.concatenate([self._answer([item]) for item in inputs])
            what = f"{len(inputs[0]):,} bytes" if isinstance(inputs[0], bytes) else str(inputs[0])
            raise DataError(
                f"{what}: not a photo that can be decoded. Expected a whole JPEG, PNG, BMP, GIF or WebP file."
            ) from None


def load(place: str | Path, trust_backbone: bool = False) -> Predictor:
    """Returns a model from its archive.

    Args:
        place: model.tar.gz, or a folder that it was unpacked to.
        trust_backbone: Whether its graph may read or write files, or run Python code.

    Raises:
        UsageError: There is nothing at that path.
        ExportError: It is no archive of ours, or of a newer format.
        BackboneError: Its graph does more than compute, and is not trusted.
    """
    place = Path(place)
    if not place.exists():
        raise UsageError(f"{place} does not exist. Expected a model.tar.gz or the folder that it was unpacked to.")
    if place.is_dir():
        return _load_folder(place, place, trust_backbone)
    scratch = Path(tempfile.mkdtemp(prefix="tf-finetune-"))
    try:
        archive.unpack(place, scratch / "model")
        predictor = _load_folder(scratch / "model", place, trust_backbone)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    # Files that the graph reads (vocabularies) must last as long as the model.
    weakref.finalize(predictor._signature, shutil.rmtree, scratch, ignore_errors=True)
    return predictor


def evaluate(predictor: Predictor, channel: str | Path) -> dict[str, Any]:
    """Returns the figures of an archive on labelled examples, as report.json holds them, and `examples`, their number.

    Args:
        predictor: What `load` gave.
        channel: Folder of class folders, or with data.csv; the classes must be the model's.

    Raises:
        DataError: A class is unknown to the model, or a photo cannot be decoded.
    """
    labelled = examples.read(predictor.task, Path(channel), predictor.class_names, "evaluation")
    rows = predictor.probabilities([example.content for example in labelled.items])
    figures = evaluation.metrics(rows, np.array(labelled.labels), predictor.class_names)
    return {"examples": len(labelled), **figures}


def _load_folder(folder: Path, place: Path, trusted: bool) -> Predictor:
    try:
        description = json.loads((folder / "tf_finetune.json").read_text(encoding="utf-8"))
        version, names, signature = (description[key] for key in ("format_version", "class_names", "signature"))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ExportError(
            f"{place} holds no model of tf_finetune: its tf_finetune.json is missing or broken."
        ) from None
    if description.get("custom_ops"):
        text_ops.register_text_ops()
    if version not in archive.FORMATS:
        raise ExportError(
            f"{place} has format {version}; this tf_finetune reads {archive.FORMATS[-1]}. Install a newer one."
        )
    safety.check(folder / "1", trusted)
    try:
        model = tf.saved_model.load(str(folder / "1"))
    except Exception as error:  # TensorFlow raises anything from OSError to DecodeError on damaged files.
        raise ExportError(f"{place} cannot be loaded: {str(error).splitlines()[0][:300]}") from None
    function = model.signatures[signature["name"]]
    function._keeps_alive = model
    return Predictor(tuple(names), description["task"], description, function, signature["input"])


def encoded(item: str | Path | bytes) -> bytes:
    """Returns the bytes of a photo as the graph decodes them; a format that it does not know is converted.

    Raises:
        DataError: It is no photo that can be decoded.
    """
    try:
        return conversion.graph_ready(item if isinstance(item, bytes) else _read(Path(item)), MOST_PIXELS)
    except DataError as error:
        if isinstance(item, bytes) or str(item) in str(error):
            raise
        raise DataError(f"{item}: {error}") from None


def _read(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path} is no file. Expected a photo.")  # To open a pipe would take for ever.
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def batches(task: str, names: Iterable[str]) -> Iterator[list[Any]]:
    """Returns what the command line names, a batch at a time.

    Args:
        task: For "image" each name is a photo or a folder of photos. For "text" a file stands for its lines, - for
            those of standard input, and anything else is a text itself.
        names: The words of the command line.

    Raises:
        DataError: A file cannot be read.
    """
    batch: list[Any] = []
    for name in names:
        for item in _lines(name) if task == "text" else _photos(name):
            batch.append(item)
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _photos(name: str) -> list[Path]:
    path = Path(name)
    return examples.folders.photos(path) if path.is_dir() else [path]


def _lines(name: str) -> Iterator[str]:
    if name != "-" and not os.path.isfile(name):
        yield name
        return
    source = sys.stdin.fileno() if name == "-" else name
    try:
        with open(source, encoding="utf-8-sig", closefd=name != "-") as stream:  # Whatever the locale's encoding is.
            yield from (line.rstrip("\n") for line in stream)
    except UnicodeDecodeError as error:
        what = "standard input" if name == "-" else name
        raise DataError(f"{what} is not UTF-8: {error.reason}. Expected a text a line.") from None
