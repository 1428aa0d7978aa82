"""Fine-tunes pretrained TensorFlow models on a user's own photos or texts.

`train` and `load` do what the commands `tf-finetune train` and `tf-finetune predict` do. Importing the package does not
import TensorFlow; the first call does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tf_finetune.predictor import Predictor

__all__ = ["METRIC_DEFINITIONS", "__version__", "load", "train"]
__version__ = "0.1.0"


def train(
    training: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    model_name: str | None = None,
    *,
    validation: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    model: str | os.PathLike[str] | None = None,
    replicas: int | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    split: str | os.PathLike[str] | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    output_kms_key: str | None = None,
    **hyperparameters: Any,
) -> dict[str, Any]:
    """Trains on class folders or data.csv and writes archive and report; returns what report.json holds.

    What the arguments leave open is as the command has it: on SageMaker results, features and checkpoints go to its
    folders, and several hosts, which TF_CONFIG or SageMaker names, do one job together: each of them calls this alike,
    before anything else of TensorFlow runs; the first one writes, and all return the same. When one of them is lost,
    the processes of the others end.

    Args:
        training: Folder, or s3://BUCKET/PREFIX, that holds one folder of photos per class, or data.csv.
        output: Results go to output/model_name/output/, here or in S3; by default below `results`, and on SageMaker
            to SM_MODEL_DIR and SM_OUTPUT_DATA_DIR.
        model_name: Name of the job; by default SageMaker's, else that of the training folder.
        validation: Like training; without it a part of training is kept for validation.
        test: Like training; scored once, at the end.
        model: Folder or .tar.gz of a pretrained SavedModel or of an earlier result, instead of the hyperparameter
            `backbone`.
        replicas: Devices to train on; by default all GPUs, or the CPU.
        cache_dir: Folder where features are kept between jobs, or "none"; by default below TF_FINETUNE_CACHE.
        split: The split.csv of an earlier job, whose examples stay where they were; new ones join them.
        checkpoints: Folder from which a training goes on that was interrupted.
        output_kms_key: With which S3 encrypts the results; by default as the bucket has it.
        **hyperparameters: See `tf-finetune hyperparameters`.

    Raises:
        tf_finetune.errors.FinetuneError: Something the caller can mend; its text says how. Nothing is written then.
    """
    from tf_finetune import environment, hosts, job

    place = environment.read()
    channels = {"training": training, "validation": validation, "test": test, "model": model}
    with hosts.declining(place.cluster):
        planned = job.plan(
            channels,
            hyperparameters,
            output,
            model_name or place.job_name,
            replicas=replicas,
            cache_dir=cache_dir,
            split=split,
            checkpoints=checkpoints or environment.checkpoint_folder(place),
            output_kms_key=output_kms_key,
            **environment.of_job(place),
        )
    from tf_finetune import devices, pipeline  # noqa: F401  (devices first: it imports TensorFlow without its noise)

    return pipeline.run(planned)


def load(archive: str | os.PathLike[str], trust_backbone: bool = False) -> Predictor:
    """Returns a trained model that answers: `.predict(examples)`, `.class_names`, `.task`.

    Args:
        archive: A model.tar.gz, here or in S3, or the folder that it was unpacked to.
        trust_backbone: Whether its graph may read or write files, or run Python code: it can do whatever you can.

    Raises:
        tf_finetune.errors.FinetuneError: It is no archive of tf_finetune.
    """
    from tf_finetune import predictor, s3, storage

    return predictor.load(s3.local(archive, storage.cache_folder()), trust_backbone)


def __getattr__(name: str) -> Any:
    if name == "METRIC_DEFINITIONS":
        from tf_finetune import report

        return report.METRIC_DEFINITIONS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
