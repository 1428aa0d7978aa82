"""Trains and serves in our image on this machine by local mode of SageMaker's SDK 2: pip install "sagemaker[local]<3".

Needs Docker Compose and the image (`make image`), and no AWS account. The results belong to root, as the SDK runs the
container so: OUT/model.tar.gz and OUT/output.tar.gz. `make train-local` needs no SDK, and its results are yours.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", required=True, help="folder of class folders of photos, or with data.csv")
    parser.add_argument("--out", required=True, help="folder for the results")
    parser.add_argument("--image", default="tf-finetune", help="default: tf-finetune, as `make image` calls it")
    parser.add_argument("--gpu", action="store_true", help="use this machine's GPUs")
    parser.add_argument("--ask", metavar="PHOTO", help="serve the model afterwards and ask it for this photo")
    arguments = parser.parse_args()

    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")  # boto3 wants one; nothing is asked of AWS.
    from sagemaker.deserializers import JSONDeserializer
    from sagemaker.estimator import Estimator
    from sagemaker.local import LocalSession
    from sagemaker.serializers import DataSerializer

    estimator = Estimator(
        image_uri=arguments.image,
        role="arn:aws:iam::123456789012:role/nobody",  # Its form is looked at, and nothing else.
        instance_count=1,
        instance_type="local_gpu" if arguments.gpu else "local",
        hyperparameters={"backbone": "efficientnet-lite0", "epochs": 3},
        output_path=Path(arguments.out).resolve().as_uri(),
        sagemaker_session=LocalSession(),
    )
    estimator.fit({"training": Path(arguments.training).resolve().as_uri()})
    if arguments.ask:
        predictor = estimator.deploy(
            1,
            estimator.instance_type,
            serializer=DataSerializer("application/x-image"),
            deserializer=JSONDeserializer(),
        )
        print(predictor.predict(Path(arguments.ask).read_bytes()))
        predictor.delete_endpoint()


if __name__ == "__main__":
    main()
