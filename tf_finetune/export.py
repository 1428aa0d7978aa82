"""The archive: a SavedModel that takes raw bytes, its class names, and the proof that it answers as it did here."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import classifier as heads
from tf_finetune.classifier import Classifier
from tf_finetune.errors import ExportError
from tf_finetune.examples import Examples

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
GATE_EXAMPLES = 64
GATE_TOLERANCE = 1e-4
ACCELERATOR_TOLERANCE = 2e-2
GATE_SECONDS = 900
PACKAGES = ("tf_finetune", "tensorflow", "keras", "numpy")


def write_saved_model(
    folder: Path, model: Classifier, input_spec: tf.TensorSpec, prepare: Callable[[tf.Tensor], tf.Tensor]
) -> None:
    """Writes the SavedModel: serving_default takes raw examples, string [B], and gives probabilities, float32 [B, K].

    Args:
        folder: Where saved_model.pb and variables/ go.
        model: The trained classifier.
        input_spec: Name, shape and dtype of the signature's input.
        prepare: From that input to what the backbone takes.
    """

    @tf.function(input_signature=[input_spec], autograph=False)
    def serve(contents: tf.Tensor) -> dict[str, tf.Tensor]:
        features = model.backbone(prepare(contents), training=False)
        return {"probabilities": heads.probabilities(model.head(features))}

    # The SavedModel keeps only what hangs on the saved object: the backbone with its tables, and all variables.
    served = tf.Module()
    served.backbone = [model.backbone.loaded, getattr(model.backbone, "loaded_preprocessor", None)]
    served.weights = [variable.value for variable in [*model.backbone.variables, *model.head.variables]]
    with _quiet_saving():
        tf.saved_model.save(served, str(folder), signatures={"serving_default": serve})


def write_side_files(folder: Path, class_names: Sequence[str], description: Mapping[str, Any]) -> None:
    """Writes what lies beside the SavedModel: class names in both of JumpStart's forms, code, tf_finetune.json."""
    labels = {"labels": list(class_names)}
    indices = {name: index for index, name in enumerate(class_names)}
    _write(folder / "labels_info.json", labels)
    _write(folder / "class_label_to_prediction_index.json", indices)
    _write(folder / "tf_finetune.json", {"format_version": FORMAT_VERSION, **description, "versions": versions()})
    (folder / "code").mkdir()
    shutil.copyfile(str(_asset("inference.py")), folder / "code" / "inference.py")


def versions(others: Sequence[str] = ()) -> dict[str, str]:
    """Returns the versions of Python and of the packages that made the model, and of others that did."""
    installed = {}
    for package in (*PACKAGES, *others):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed}


@contextlib.contextmanager
def fresh_process() -> Iterator[subprocess.Popen[str]]:
    """Gives a process that knows nothing of this package, and imports TensorFlow while the caller still writes.

    It waits for one line of JSON, as assets/answer.py says, and is ended with the block.
    """
    with tempfile.TemporaryDirectory() as scratch:
        script = Path(scratch, "answer.py")
        shutil.copyfile(str(_asset("answer.py")), script)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            [sys.executable, str(script)], cwd=scratch, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


def check_parity(
    process: subprocess.Popen[str], archive: Path, inputs: Mapping[str, Sequence[str]], expected: np.ndarray
) -> float:
    """Has a fresh process, in which tf_finetune cannot be imported, answer raw inputs by the archive.

    Args:
        process: As `fresh_process` gave it; it answers once.
        archive: The .tar.gz, or its unpacked folder.
        inputs: {"files": paths} or {"texts": texts}; n of them.
        expected: float32 [n, K]. The probabilities that this process gave.

    Returns:
        The largest difference of any probability.

    Raises:
        ExportError: The archive does not load there, or a probability differs by more than GATE_TOLERANCE.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch, "output.json")
        asked = {"archive": str(archive.absolute()), "inputs": inputs, "output": str(output)}
        _, said = process.communicate(json.dumps(asked) + "\n", timeout=GATE_SECONDS)
        if process.returncode != 0:
            last = (said.strip().splitlines() or ["no message"])[-1]
            raise ExportError(
                f"The exported model does not load in a fresh process: {last[:500]}. Nothing was exported."
            )
        answers = np.array(json.loads(output.read_text(encoding="utf-8"))["probabilities"], np.float64)
    difference = float(np.abs(answers - expected).max())
    if not difference <= GATE_TOLERANCE:  # NaN fails too.
        raise ExportError(
            f"The exported model answers otherwise than in training: a probability differs by {difference:.2g}, more "
            f"than {GATE_TOLERANCE:g}. Nothing was exported. Please report this with the backbone's name."
        )
    return difference


def check_accelerator(answers: np.ndarray, expected: np.ndarray) -> float:
    """Returns the largest difference between the training devices' probabilities and the CPU's in float32.

    Args:
        answers: float32 [n, K]. What the devices that trained gave.
        expected: float32 [n, K]. What the CPU gave for the same examples.

    Raises:
        ExportError: It is more than ACCELERATOR_TOLERANCE.
    """
    difference = float(np.abs(answers - expected).max())
    log.info("the training devices' probabilities differ from the CPU's by at most %.2g", difference)
    if not difference <= ACCELERATOR_TOLERANCE:
        raise ExportError(
            f"The CPU answers otherwise than the devices that trained: a probability differs by {difference:.2g}, more "
            f"than {ACCELERATOR_TOLERANCE:g}. Nothing was exported. Please report this with the backbone's name."
        )
    return difference


def gate_sample(examples: Examples) -> tuple[Examples, list[int]]:
    """Returns up to 64 examples, evenly spread over all, and their places in them."""
    places = sorted({round(place) for place in np.linspace(0, len(examples) - 1, min(len(examples), GATE_EXAMPLES))})
    return dataclasses.replace(examples, items=tuple(examples.items[place] for place in places)), places


def _asset(name: str) -> Path:
    return Path(str(resources.files("tf_finetune") / "assets" / name))


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet_saving() -> Any:
    """Keeps TensorFlow's "Assets written to" line from the log."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
