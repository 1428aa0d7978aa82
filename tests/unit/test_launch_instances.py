"""Instance types, images and S3 locations of training jobs."""

from __future__ import annotations

from importlib import metadata

import pytest

from tf_finetune.errors import UsageError
from tf_finetune.launch import images, instances, places
from tf_finetune.s3 import default_data

ENUM = ["ml.g7.2xlarge", "ml.trn1.2xlarge"]


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        ("ml.g5.12xlarge", 4),
        ("ml.g5.16xlarge", 1),
        ("ml.g5.48xlarge", 8),
        ("ml.g4dn.16xlarge", 1),
        ("ml.g6e.24xlarge", 4),
        ("ml.g7e.12xlarge", 2),
        ("ml.p2.8xlarge", 8),
        ("ml.p3.8xlarge", 4),
        ("ml.p5.4xlarge", 1),
        ("ml.p6e-gb200.36xlarge", 4),
        ("ml.m5.24xlarge", 0),
        ("ml.t3.medium", 0),
    ],
)
def test_gpus_are_those_of_the_contract(name, gpus):
    assert instances.gpus(name, list) == gpus


def test_every_type_of_the_table_is_one_of_sagemaker():
    session = pytest.importorskip("botocore.session")
    version = metadata.version("botocore")
    if tuple(map(int, version.split(".")[:2])) < (1, 43):
        pytest.skip(f"botocore {version} is older than the table")
    known = session.get_session().get_service_model("sagemaker").shape_for("TrainingInstanceType").enum
    assert set(instances.table()) <= set(known)


def test_a_type_that_boto3_knows_or_of_a_new_family_passes_without_a_count():
    assert instances.gpus("ml.g7.2xlarge", lambda: ENUM) is None
    assert instances.gpus("ml.z9.xlarge", lambda: ENUM) is None


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("ml.g5.13xlarge", "ml.g5.12xlarge"),
        ("g5.12xlarge", "ml.g5.12xlarge"),
        ("ml.g5.12xlarge ", "ml.g5.12xlarge"),
        ("ml.g4nd.xlarge", "ml.g4dn.xlarge"),
        ("ml.m5", "ml.m5"),
    ],
)
def test_a_slip_is_refused_with_what_is_close(name, close):
    with pytest.raises(UsageError, match="Did you mean") as raised:
        instances.gpus(name, lambda: ENUM)
    assert close in str(raised.value).partition("Did you mean")[2]


def test_nonsense_is_refused():
    for name in ("", "gpu", "ml..", "ML.G5.XLARGE"):
        with pytest.raises(UsageError, match="--instance-type: expected"):
            instances.gpus(name, lambda: ENUM)


def test_families_with_their_own_disk():
    own = {name.split(".")[1] for name in instances.table() if instances.has_own_disk(name)}
    assert own == {"p3dn", "p4d", "p4de", "p5", "p5e", "p5en", "p6-b200", "p6-b300", "p6e-gb200"} | {
        "g4dn",
        "g5",
        "g6",
        "g6e",
        "g7e",
        "r5d",
    }


def test_the_image_follows_region_and_processor():
    assert images.default("us-east-1", True) == (
        "763104351884.dkr.ecr.us-east-1.amazonaws.com/tensorflow-training:2.21.0-gpu-py312-cu129-amzn2023-sagemaker"
    )
    assert images.default("cn-north-1", False).startswith("727897471807.dkr.ecr.cn-north-1.amazonaws.com.cn/")
    assert images.default("eu-south-1", False).startswith("692866216735.dkr.ecr.eu-south-1.amazonaws.com/")
    with pytest.raises(UsageError, match="--image: it is not known where AWS serves .* xx-nowhere-1"):
        images.default("xx-nowhere-1", True)


def test_an_image_of_another_region_is_refused():
    images.check("public.ecr.aws/deep-learning-containers/tensorflow-training:2.21-cpu-py312", "eu-west-1")
    with pytest.raises(UsageError, match="lies in us-east-1, and the job runs in eu-west-1"):
        images.check("123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:1", "eu-west-1")
    with pytest.raises(UsageError, match="without spaces"):
        images.check("a b", "eu-west-1")


def test_the_version_of_tensorflow_is_that_of_an_aws_tag_only():
    assert images.tensorflow_version(images.default("us-east-1", True)) == "2.21"
    assert images.tensorflow_version("public.ecr.aws/x/tensorflow-training:2.19.0-cpu-py312-ubuntu22.04") == "2.19"
    assert images.tensorflow_version("123456789012.dkr.ecr.us-east-1.amazonaws.com/mine:2.19-x") is None


@pytest.mark.parametrize(
    ("given", "channel"),
    [
        ("s3://bucket/flowers", "s3://bucket/flowers/"),
        ("s3://bucket/flowers/", "s3://bucket/flowers/"),
        ("s3://bucket", "s3://bucket/"),
        ("s3://bucket/texts/data.csv", "s3://bucket/texts/data.csv"),
        ("S3://bucket/old/model.tar.gz", "s3://bucket/old/model.tar.gz"),
    ],
)
def test_a_channel_is_a_folder_unless_it_names_a_file(given, channel):
    assert str(places.as_channel(places.parse("--training", given))) == channel


@pytest.mark.parametrize("text", ["s3://", "s3:///a", "s3://Bucket/a", "https://bucket/a", "bucket/a", "s3://b/a"])
def test_what_is_no_bucket_is_refused(text):
    with pytest.raises(UsageError, match="--output: .*Expected s3://BUCKET/PREFIX"):
        places.parse("--output", text)


def test_default_data_is_in_the_regions_jumpstart_bucket():
    bucket = "s3://jumpstart-cache-prod-ap-south-1/training-datasets"
    assert default_data.default_channel("image", "ap-south-1") == f"{bucket}/tf_flowers/"
    assert default_data.default_channel("text", "ap-south-1") == f"{bucket}/SST2/"
