"""What a job tells of itself: the record of report.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_finetune import export, storage, training
from tf_finetune.examples import Examples
from tf_finetune.features.frozen import Passes, Way
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.job import Job
from tf_finetune.pipeline import doubts


def describe(
    planned: Job,
    parts: Mapping[str, Examples],
    fitted: training.Fitted,
    figures: Mapping[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """Returns the record of report.json, but for seconds and parity, which are known last."""
    return {
        "task": planned.task,
        "backbone": planned.backbone,
        "class_names": list(parts["training"].class_names),
        "examples": {name: len(parts[name]) if name in parts else 0 for name in ("training", "validation", "test")},
        "hyperparameters": {**planned.settings.model_dump(), "backbone": storage.redacted(planned.handle)},
        "hyperparameter_sources": dict(planned.sources),
        "metrics": dict(figures),
        "history": fitted.history,
        "best_epoch": fitted.best_epoch,
        "head": fitted.head,
        "warnings": warnings,
        "command": command_of(planned),
        "job": {
            "parent_model": storage.redacted(planned.model_place) if planned.earlier else planned.backbone,
            "name": planned.name,
            "arn": planned.arn,
            "training_seconds": None,
            "model_artifact": planned.destination.artifact,
            "report": planned.destination.report,
        },
        "versions": export.versions(),
    }


def shown_doubts(
    parts: Mapping[str, Examples], answers: Mapping[str, np.ndarray], doubtful: list[dict[str, Any]]
) -> dict[str, Any]:
    """Returns what the report shows of mistakes and of labels that are likely wrong."""
    wrong = doubts.mistakes(parts["validation"], answers["validation"]) if "validation" in parts else []
    return {"mistakes": wrong, "label_errors": doubtful[: doubts.SHOWN_LABEL_ERRORS]}


def command_of(planned: Job) -> str:
    """Returns the command that does the job once more: what the user chose, quoted for a shell."""
    words = ["tf-finetune", "train"]
    for name, folder in planned.folders.items():
        words += [f"--{name}", planned.places.get(name, str(folder))]
    chosen = {name: value for name, value in planned.settings.model_dump().items() if planned.sources[name] == "user"}
    flag = "backbone" if planned.model_place == planned.handle else "model"
    for name, value in {**chosen, flag: storage.redacted(planned.model_place)}.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--split", planned.split] if planned.split else []
    words += ["--checkpoints", str(planned.checkpoints)] if planned.checkpoints else []
    words += ["--replicas", str(planned.replicas)] if planned.replicas else []
    output, key = planned.destination.output, planned.destination.kms_key
    words += ["--output", output] if output else []
    words += ["--output-kms-key", key] if key else []
    return shlex.join([*words, "--model-name", planned.name])


def account(
    parts: Mapping[str, Examples],
    passes: Passes,
    chosen: dict[str, Any],
    fitted: training.Fitted,
    settings: Hyperparameters,
) -> dict[str, Any]:
    """Returns what the report says of the backbone and of the passes through it: how many, and in which precision."""
    way = Way(chosen["features"], bool(chosen["scaled_decoding"])) if chosen["features"] else None
    calls, checks = passes.calls(way)
    if not settings.train_only_top_layer:  # Its epochs read every example.
        calls = len({example.digest for part in parts.values() for example in part.items})
        chosen = {**chosen, "fine_tuning": fitted.precision}
    return {
        "backbone_sha256": passes.digests[0],
        "backbone_calls": calls,
        "gate_calls": checks,
        "precision": chosen,
        "feature_cache": {"place": str(passes.place.folder) if passes.place.folder else None, "reused": passes.reused},
    }
