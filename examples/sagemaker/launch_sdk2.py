"""Starts a training job by SageMaker's Python SDK 2: see README.md beside this script for what to install.

The model becomes s3://BUCKET/JOB-NAME/output/model.tar.gz, the report and predictions output.tar.gz beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

IMAGES = "public.ecr.aws/deep-learning-containers/tensorflow-training"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bucket", required=True, help="name of the S3 bucket for results, code and checkpoints")
    parser.add_argument("--role", required=True, help="ARN of the execution role")
    parser.add_argument("--training", required=True, help="s3://... prefix of the class folders, ending in /")
    parser.add_argument("--validation", help="s3://... prefix like training; without it a part of training is taken")
    parser.add_argument("--instance-type", default="ml.g5.xlarge", help="default: ml.g5.xlarge, which has one GPU")
    parser.add_argument("--job-name", required=True, help="letters, digits and hyphens; new for each job")
    arguments = parser.parse_args()

    from sagemaker.inputs import TrainingInput
    from sagemaker.tensorflow import TensorFlow

    import tf_finetune

    has_gpu = arguments.instance_type.startswith(("ml.p", "ml.g"))
    estimator = TensorFlow(
        entry_point="finetune.py",
        source_dir=str(Path(__file__).parent),
        role=arguments.role,
        # Named whole, for the SDK's own table of framework versions ends at 2.19.
        image_uri=f"{IMAGES}:2.21-{'gpu-py312-cu129' if has_gpu else 'cpu-py312'}-amzn2023-sagemaker",
        instance_type=arguments.instance_type,
        instance_count=1,
        hyperparameters={"backbone": "efficientnet-lite0", "epochs": 10, "train_only_top_layer": True},
        metric_definitions=tf_finetune.METRIC_DEFINITIONS,
        # The bucket alone: SageMaker appends the job's name, and fit() gives exactly that name.
        output_path=f"s3://{arguments.bucket}",
        model_dir=False,  # SM_MODEL_DIR is where the model goes; no second place is needed.
        checkpoint_s3_uri=f"s3://{arguments.bucket}/{arguments.job_name}/checkpoints",
        max_run=4 * 60 * 60,  # Seconds.
    )
    channels = {"training": arguments.training, "validation": arguments.validation}
    inputs = {name: TrainingInput(place) for name, place in channels.items() if place}
    estimator.fit(inputs, job_name=arguments.job_name)
    print(estimator.model_data)


if __name__ == "__main__":
    main()
