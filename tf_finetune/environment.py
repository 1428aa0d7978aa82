"""Where things are: channels, model, output, checkpoints, hosts, GPUs.

On SageMaker they come from the `SM_*` variables of its training toolkit, else from the files and folders below
`/opt/ml` (movable by `SAGEMAKER_BASE_DIR`), which is all that a container started without the toolkit has.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_finetune import hosts as several
from tf_finetune.errors import UsageError
from tf_finetune.hosts import Cluster

# Settings that SageMaker and its SDK add to the hyperparameters; they are not ours and change nothing here.
IGNORED = {
    "model_dir": "the model goes to SM_MODEL_DIR, which SageMaker uploads",
    "_tuning_objective_metric": "it is for SageMaker's tuner",
    "default_user_module_name": "it is for SageMaker's toolkit",
}
IGNORED_PREFIX = "sagemaker_"


@dataclasses.dataclass(frozen=True)
class Environment:
    """The places and facts of one job.

    Attributes:
        on_sagemaker: Whether SageMaker, or its toolkit on any machine, started the process.
        channels: Folder of each input channel by name.
        model_dir: Where the unpacked archive goes on SageMaker.
        output_data_dir: Where report and predictions go on SageMaker.
        checkpoint_dir: Folder that SageMaker keeps in step with S3; it exists only when the job asked for it.
        hyperparameters: As SageMaker gave them: names to strings or JSON values; settings that are not ours left out.
        ignored: Those that were left out, each with the reason.
        hosts: Names of all hosts of the job.
        current_host: Name of this one.
        cluster: The hosts that do the job together, from TF_CONFIG or else from `hosts`; None where there is but one.
        num_gpus: GPUs of this host, or None where nobody said.
        job_name: Name of the training job, or None.
        job_arn: ARN of the training job, or None.
    """

    on_sagemaker: bool
    channels: Mapping[str, Path]
    model_dir: Path
    output_data_dir: Path
    checkpoint_dir: Path
    hyperparameters: Mapping[str, Any]
    ignored: Mapping[str, str]
    hosts: tuple[str, ...]
    current_host: str
    cluster: Cluster | None
    num_gpus: int | None
    job_name: str | None
    job_arn: str | None


def read(environ: Mapping[str, str] = os.environ) -> Environment:
    """Returns the job's places and facts.

    Raises:
        UsageError: A variable or file that SageMaker writes is not the JSON that it should be, or the hosts are not
            what they should be.
    """
    base = _base(environ)
    config = base / "input" / "config"
    on_sagemaker = any(name in environ for name in ("SM_HPS", "SM_MODEL_DIR", "SM_TRAINING_ENV")) or config.is_dir()
    given = _json("SM_HPS", environ, config / "hyperparameters.json", {}, dict)
    resources = _json("SM_RESOURCE_CONFIG", environ, config / "resourceconfig.json", {}, dict)
    hosts = tuple(_json("SM_HOSTS", environ, None, resources.get("hosts"), list) or ["localhost"])
    current = environ.get("SM_CURRENT_HOST") or str(resources.get("current_host", hosts[0]))
    inputs = _json("SM_INPUT_DATA_CONFIG", environ, config / "inputdataconfig.json", {}, dict)
    num_gpus = environ.get("SM_NUM_GPUS", "")
    return Environment(
        on_sagemaker=on_sagemaker,
        channels=_channels(environ, base / "input" / "data"),
        model_dir=Path(environ.get("SM_MODEL_DIR") or base / "model"),
        output_data_dir=Path(environ.get("SM_OUTPUT_DATA_DIR") or base / "output" / "data"),
        checkpoint_dir=base / "checkpoints",
        hyperparameters={name: value for name, value in given.items() if not reason_to_ignore(name)},
        ignored={name: reason for name in given if (reason := reason_to_ignore(name))},
        hosts=hosts,
        current_host=current,
        cluster=several.cluster_of(environ, hosts, current, inputs),
        num_gpus=int(num_gpus) if num_gpus.isdigit() else None,
        job_name=environ.get("TRAINING_JOB_NAME") or environ.get("SAGEMAKER_JOB_NAME") or None,
        job_arn=environ.get("TRAINING_JOB_ARN"),
    )


def feature_folder(place: Environment) -> Path | None:
    """Returns where features are kept on SageMaker: beside the checkpoints, for each host, so that a job that was
    interrupted finds them again. None where the job has no checkpoints."""
    folder = checkpoint_folder(place)
    return folder / f"features-{place.current_host}" if folder else None


def checkpoint_folder(place: Environment) -> Path | None:
    """Returns SageMaker's folder for checkpoints, or None where the job has none."""
    return place.checkpoint_dir if place.on_sagemaker and place.checkpoint_dir.is_dir() else None


def of_job(place: Environment) -> dict[str, Any]:
    """Returns what a job has of its environment where the user says nothing else, as `job.plan` calls it."""
    return {
        "sagemaker_output": (place.model_dir, place.output_data_dir) if place.on_sagemaker else None,
        "arn": place.job_arn,
        "feature_folder": feature_folder(place),
        "cluster": place.cluster,
    }


def failure_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Returns the file whose text SageMaker shows as the reason of a failure, or None where there is no such place."""
    base = _base(environ)
    file = base / "output" / "failure"
    if (base / "input" / "config").is_dir():  # Without this folder SageMaker's toolkit would report a success.
        file.parent.mkdir(exist_ok=True)
    return file if file.parent.is_dir() else None


def without_toolkit_arguments(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """Returns the arguments of the command line that SageMaker's toolkit did not write.

    What it writes are the hyperparameters once more, less exactly than SM_HPS has them: some versions pass them
    through a shell unquoted, so that empty values vanish and others are cut at a space.
    """
    written = _json("SM_USER_ARGS", environ, None, [], list)
    words = list(arguments)
    for part in (written, " ".join(map(str, written)).split()):
        for start in range(len(words) - len(part) + 1) if part else ():
            if words[start : start + len(part)] == part:
                return words[:start] + words[start + len(part) :]
    return words


def reason_to_ignore(name: str) -> str | None:
    """Returns why a setting of SageMaker's is not ours, or None when it is ours."""
    name = name.replace("-", "_")
    if name.startswith(IGNORED_PREFIX):
        return "it is for SageMaker's toolkit"
    return IGNORED.get(name)


def _base(environ: Mapping[str, str]) -> Path:
    return Path(environ.get("SAGEMAKER_BASE_DIR") or "/opt/ml")


def _channels(environ: Mapping[str, str], data: Path) -> dict[str, Path]:
    prefix = "SM_CHANNEL_"
    named = {
        name.removeprefix(prefix).lower(): Path(place)
        for name, place in environ.items()
        if name.startswith(prefix) and place
    }
    if named or not data.is_dir():
        return named
    return {folder.name: folder for folder in sorted(data.iterdir()) if folder.is_dir()}


def _json(variable: str, environ: Mapping[str, str], file: Path | None, default: Any, kind: type) -> Any:
    """Returns the JSON value of a variable, else of a file, else the default."""
    text: str | bytes
    if environ.get(variable):
        text, place = environ[variable], variable
    elif file is not None and file.is_file():
        text, place = file.read_bytes(), str(file)
    else:
        return default
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"{place} is not valid JSON: {error}. Expected what SageMaker writes there.") from None
    if not isinstance(value, kind):
        noun = "object" if kind is dict else "array"
        raise UsageError(f"{place} should hold a JSON {noun}, as SageMaker writes it; received {str(value)[:100]}.")
    return value
