"""Starts a training job by SageMaker's Python SDK 3: see README.md beside this script for what to install.

The SDK adds the time to the job's name: the model becomes s3://BUCKET/JOB-NAME-YYYYMMDDHHMMSS/output/model.tar.gz.
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
    parser.add_argument("--job-name", required=True, help="letters, digits and hyphens; the start of the job's name")
    arguments = parser.parse_args()

    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training.configs import (
        CheckpointConfig,
        Compute,
        InputData,
        MetricDefinition,
        OutputDataConfig,
        SourceCode,
        StoppingCondition,
    )
    from sagemaker.train import ModelTrainer

    import tf_finetune

    has_gpu = arguments.instance_type.startswith(("ml.p", "ml.g"))
    trainer = ModelTrainer(
        sagemaker_session=Session(default_bucket=arguments.bucket),  # The code is uploaded there.
        training_image=f"{IMAGES}:2.21-{'gpu-py312-cu129' if has_gpu else 'cpu-py312'}-amzn2023-sagemaker",
        source_code=SourceCode(
            source_dir=str(Path(__file__).parent), entry_script="finetune.py", requirements="requirements.txt"
        ),
        compute=Compute(instance_type=arguments.instance_type, instance_count=1),
        role=arguments.role,
        base_job_name=arguments.job_name,
        hyperparameters={"backbone": "efficientnet-lite0", "epochs": 10, "train_only_top_layer": True},
        output_data_config=OutputDataConfig(s3_output_path=f"s3://{arguments.bucket}"),
        checkpoint_config=CheckpointConfig(s3_uri=f"s3://{arguments.bucket}/{arguments.job_name}/checkpoints"),
        stopping_condition=StoppingCondition(max_runtime_in_seconds=4 * 60 * 60),  # The SDK's default is one hour.
    ).with_metric_definitions(
        [MetricDefinition(name=metric["Name"], regex=metric["Regex"]) for metric in tf_finetune.METRIC_DEFINITIONS]
    )
    channels = {"training": arguments.training, "validation": arguments.validation}
    trainer.train(
        input_data_config=[InputData(channel_name=name, data_source=place) for name, place in channels.items() if place]
    )


if __name__ == "__main__":
    main()
