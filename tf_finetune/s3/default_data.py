"""The user guide's default data sets, which lie in a public bucket of each Region."""

from __future__ import annotations

DEFAULT = "default"  # As --training: the data set of the task.
DATA_SETS = {"image": "tf_flowers", "text": "SST2"}


def default_channel(task: str, region: str) -> str:
    """Returns the user guide's default data set of a task, in the Region's JumpStart bucket.

    Args:
        task: "image" or "text".
        region: An AWS Region.

    >>> default_channel("image", "eu-west-1")
    's3://jumpstart-cache-prod-eu-west-1/training-datasets/tf_flowers/'
    """
    return f"s3://jumpstart-cache-prod-{region}/training-datasets/{DATA_SETS[task]}/"
