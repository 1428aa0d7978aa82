"""The archive of a job, and the proof that it answers as the job did."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import archive, classifier, devices, export, features, text_ops
from tf_finetune.classifier import Classifier
from tf_finetune.examples import Examples
from tf_finetune.job import Job
from tf_finetune.training import steps

log = logging.getLogger(__name__)


def export_and_prove(
    process: Popen[str],
    staged: Path,
    planned: Job,
    medium: Any,
    model: Classifier,
    strategy: tf.distribute.Strategy,
    preprocessing: Any,
    parts: Mapping[str, Examples],
    answers: Mapping[str, np.ndarray],
    figures: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the model and puts it through the parity gate.

    Returns:
        examples, the number asked; largest_difference of a probability; accelerator_difference, the same between the
        devices that trained and the CPU in float32, or None where that is what trained.
    """
    name = "validation" if "validation" in parts else "training"
    sample, rows = export.gate_sample(parts[name])
    given = answers[name][rows] if name in answers else None
    if given is not None and devices.is_one_cpu(strategy):
        on_cpu, expected, difference = model, given, None
    else:
        on_cpu = model if devices.is_one_cpu(strategy) else classifier.twin(model, planned.settings)
        source = features.source(sample, medium.loader(sample, preprocessing))
        expected = features.outputs(steps.make_answer(on_cpu, False), source, tf.distribute.get_strategy())
        difference = None if given is None else export.check_accelerator(given, expected)
    names = parts["training"].class_names
    proved = write_archive(staged, planned, medium, preprocessing, names, on_cpu, figures)
    log.info("proving the archive: a fresh process answers %d examples by it", len(sample))
    largest = export.check_parity(process, proved, medium.raw_inputs(sample), expected)
    return {"examples": len(sample), "largest_difference": largest, "accelerator_difference": difference}


def write_archive(
    staged: Path,
    planned: Job,
    medium: Any,
    preprocessing: Any,
    class_names: Sequence[str],
    model: Classifier,
    figures: Mapping[str, Any],
) -> Path:
    """Writes the archive, or on SageMaker its unpacked folder, and returns its path."""
    folder = staged / "model"
    folder.mkdir()
    write_folder(planned, medium, preprocessing, class_names, folder, model, figures)
    if planned.destination.archive is None:
        return folder
    archive.pack(folder, staged / "model.tar.gz")
    shutil.rmtree(folder)
    return staged / "model.tar.gz"


def write_folder(
    planned: Job,
    medium: Any,
    preprocessing: Any,
    class_names: Sequence[str],
    folder: Path,
    model: Classifier,
    figures: Mapping[str, Any] | None = None,
) -> None:
    """Writes the unpacked archive of a model as it is, unproved, into a folder; the figures, as far as it has any."""
    settings, validation = planned.settings, (figures or {}).get("validation")
    serving = medium.serving_inputs(preprocessing)
    export.write_saved_model(folder / "1", model, *serving)
    description = {
        "task": planned.task,
        "backbone": planned.backbone,
        "class_names": list(class_names),
        "binary_mode": model.is_binary,
        "signature": {"name": "serving_default", "input": serving[0].name, "output": "probabilities"},
        "custom_ops": text_ops.needed_ops(folder / "1"),
        "preprocessing": preprocessing.as_json(),
        "split": {
            "random_seed": settings.random_seed,
            "validation_split_ratio": settings.validation_split_ratio,
            "has_channel": planned.validation is not None,
        },
        "validation": {name: validation[name] for name in ("accuracy", "loss")} if validation else None,
        "parent_sha256": planned.earlier.sha256 if planned.earlier else None,
    }
    export.write_side_files(folder, class_names, description)
