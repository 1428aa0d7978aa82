"""The training image: AWS's TensorFlow image of the Region, and the TensorFlow in an image."""

from __future__ import annotations

import re

from tf_finetune.errors import UsageError

TENSORFLOW = "2.21"
TAGS = {True: "2.21.0-gpu-py312-cu129-amzn2023-sagemaker", False: "2.21.0-cpu-py312-amzn2023-sagemaker"}
_USUAL = "763104351884"
# The account that serves AWS's images in each Region.
_ACCOUNTS = {
    **dict.fromkeys(("us-east-1", "us-east-2", "us-west-1", "us-west-2", "ca-central-1", "sa-east-1"), _USUAL),
    **dict.fromkeys(("eu-central-1", "eu-north-1", "eu-west-1", "eu-west-2", "eu-west-3"), _USUAL),
    **dict.fromkeys(("ap-northeast-1", "ap-northeast-2", "ap-south-1", "ap-southeast-1", "ap-southeast-2"), _USUAL),
    "af-south-1": "626614931356",
    "ap-east-1": "871362719292",
    "ap-east-2": "975050140332",
    "ap-northeast-3": "364406365360",
    "ap-south-2": "772153158452",
    "ap-southeast-3": "907027046896",
    "ap-southeast-4": "457447274322",
    "ap-southeast-5": "550225433462",
    "ap-southeast-7": "590183813437",
    "ca-west-1": "204538143572",
    "cn-north-1": "727897471807",
    "cn-northwest-1": "727897471807",
    "eu-central-2": "380420809688",
    "eu-south-1": "692866216735",
    "eu-south-2": "503227376785",
    "il-central-1": "780543022126",
    "me-central-1": "914824155844",
    "me-south-1": "217643126080",
    "mx-central-1": "637423239942",
    "us-gov-east-1": "446045086412",
    "us-gov-west-1": "442386744353",
}
_REGISTRY = re.compile(r"\d{12}\.dkr\.ecr(-fips)?\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/")


def default(region: str, has_gpu: bool) -> str:
    """Returns AWS's TensorFlow training image in a Region.

    Raises:
        UsageError: It is not known which account serves it there.

    >>> default("eu-west-1", has_gpu=False)
    '763104351884.dkr.ecr.eu-west-1.amazonaws.com/tensorflow-training:2.21.0-cpu-py312-amzn2023-sagemaker'
    """
    if region not in _ACCOUNTS:
        raise UsageError(
            f"--image: it is not known where AWS serves its TensorFlow image in the Region {region}. Give --image URI, "
            "as the page of AWS's deep learning containers has it, or an image of your own."
        )
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    return f"{_ACCOUNTS[region]}.dkr.ecr.{region}.{domain}/tensorflow-training:{TAGS[has_gpu]}"


def check(image: str, region: str) -> None:
    """Looks at an image's URI as far as that goes without asking.

    Raises:
        UsageError: It is too long, has a space, or is served in another Region.
    """
    if not re.fullmatch(r"[^\s]{1,255}", image):
        raise UsageError(f"--image: expected a URI of up to 255 characters without spaces; received {image[:80]!r}.")
    registry = _REGISTRY.match(image)
    if registry and registry["region"] != region:
        raise UsageError(
            f"--image: {image} lies in {registry['region']}, and the job runs in {region}. SageMaker takes images of "
            "the job's Region only: push it there too, or give --region."
        )


def tensorflow_version(image: str) -> str | None:
    """Returns the TensorFlow in an image of AWS's, as its tag says; None for any other image.

    >>> tensorflow_version("763104351884.dkr.ecr.us-east-1.amazonaws.com/tensorflow-training:2.19-gpu-py312")
    '2.19'
    """
    tag = re.search(r"/tensorflow-training:(\d+\.\d+)[.-]", image)
    return tag[1] if tag else None
