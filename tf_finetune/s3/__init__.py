"""Folders and files in S3: fetched into local folders, put from them, and the buckets that there are.

The split of the examples is decided by their content, so training needs every byte of a channel before its first
step: nothing can be trained on while its download runs. What a job does not need the data for is importing TensorFlow
(seconds) and bringing and loading the backbone. `start_mirror` therefore fetches in threads of its own: begin all
channels, import and load, then ask each `Future` for its result.

A fetched folder mirrors its prefix. What is known of it is kept beside it (`manifest`), so a second fetch transfers
what has changed, and one that was interrupted goes on where it was. Memory does not grow with the number of objects.
boto3 is imported inside the functions that use it, for it is slow.
"""

from tf_finetune.s3 import copies
from tf_finetune.s3.buckets import Bucket, check_region, listing, table
from tf_finetune.s3.download import fetch, local, mirror, start_mirror
from tf_finetune.s3.locations import Location, is_s3, joined, parse
from tf_finetune.s3.upload import check_writable, put, remove

__all__ = [
    "Bucket",
    "Location",
    "check_region",
    "check_writable",
    "copies",
    "fetch",
    "is_s3",
    "joined",
    "listing",
    "local",
    "mirror",
    "parse",
    "put",
    "remove",
    "start_mirror",
    "table",
]
