"""The hyperparameters of a job: checked, the batch size suggested, encoded as SageMaker's toolkit decodes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tf_finetune import catalog, hyperparameters, storage
from tf_finetune.errors import FinetuneError, HyperparameterError, UsageError
from tf_finetune.launch import code

MAX_COUNT, MAX_VALUE = 100, 2500  # Hyperparameters, and characters of a value: SageMaker's limits.
REPLICA_BATCH = 32  # Examples for each GPU, as the user guide has it; BERT-like cards bring 64.


def parse(given: Mapping[str, object], task: str | None) -> dict[str, Any]:
    """Returns the typed hyperparameters.

    Raises:
        HyperparameterError: Some are wrong, or no job on another machine can use them.
    """
    values = hyperparameters.parse(given, task)
    for name in ("backbone", "preprocessor"):
        handle = str(values.get(name, ""))
        if handle and not catalog.find(handle) and not storage.is_remote(handle):
            raise HyperparameterError(
                f"{name}: {handle} is no id of `tf-finetune backbones` nor a URL, and a job on SageMaker does not see "
                f"this machine.{catalog.hint(handle)} Give a local SavedModel as --model."
            )
    return values


def card(values: Mapping[str, Any], task: str | None, has_model: bool) -> catalog.Card | None:
    """Returns the card of the backbone that the job will take, as far as that can be told."""
    if "backbone" in values:
        return catalog.find(str(values["backbone"]))
    return None if has_model else catalog.find(hyperparameters.default("backbone", task or "image"))


def suggested_batch_size(gpus: int, chosen: catalog.Card | None) -> tuple[int, int]:
    """Returns the batch size for all GPUs of a job, and that for each.

    >>> suggested_batch_size(4, None)
    (128, 32)
    """
    brought = {**chosen.defaults, **chosen.whole_defaults} if chosen else {}
    each = int(brought.get("batch_size", REPLICA_BATCH))
    return gpus * each, each


def check_trainable(values: Mapping[str, Any], chosen: catalog.Card | None) -> None:
    """Raises HyperparameterError where a frozen-only backbone is to be trained whole."""
    if chosen and not chosen.fine_tunable and values.get("train_only_top_layer") is False:
        raise HyperparameterError(f"train_only_top_layer: {chosen.id} can be used frozen only. Leave it at True.")


def needs_hub(values: Mapping[str, Any], chosen: catalog.Card | None) -> bool:
    """Returns whether the job fetches a backbone, or what prepares its texts, from a hub."""
    cards = [chosen, catalog.find(str(values.get("preprocessor", "")))]
    handles = [values.get("backbone"), values.get("preprocessor")]
    handles += [place for found in cards if found for place in (found.handle, found.preprocessor)]
    remote = [str(handle) for handle in handles if handle and storage.is_remote(str(handle))]
    return any(not handle.lower().startswith("s3://") for handle in remote)


def split(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values that go as hyperparameters, and those that a shell would break, which go with the code."""
    inert = {name: value for name, value in values.items() if code.passes_a_shell(value)}
    return inert, {name: value for name, value in values.items() if name not in inert}


def encoded(values: Mapping[str, Any], job_name: str, region: str, submit_directory: str) -> dict[str, str]:
    """Returns all hyperparameters of the request: each value is JSON, as the framework estimators of SDK 2 send it.

    Args:
        values: Hyperparameters that go as such.
        job_name: The job's name.
        region: The job's Region.
        submit_directory: Where sourcedir.tar.gz is.
    """
    own = {
        "sagemaker_program": code.PROGRAM,
        "sagemaker_submit_directory": submit_directory,
        "sagemaker_container_log_level": 20,
        "sagemaker_job_name": job_name,
        "sagemaker_region": region,
    }
    return {name: json.dumps(value) for name, value in {**values, **own}.items()}


def check_limits(values: Mapping[str, Any]) -> list[FinetuneError]:
    """Returns what is wrong with values that are right in themselves, but more than SageMaker takes."""
    long = [name for name, value in values.items() if len(json.dumps(value)) > MAX_VALUE]
    problems: list[FinetuneError] = [
        UsageError(f"{name}: SageMaker takes values of up to {MAX_VALUE:,} characters. Shorten it.") for name in long
    ]
    if len(values) + len(encoded({}, "", "", "")) > MAX_COUNT:
        problems.append(UsageError(f"SageMaker takes {MAX_COUNT} hyperparameters; received {len(values)}."))
    return problems
