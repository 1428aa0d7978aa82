"""`submit --dry-run`, which must need neither network nor credentials, and what it refuses."""

from __future__ import annotations

import json
import socket

import pytest

from tests.builders import write_files
from tf_finetune import launch
from tf_finetune.cli import arguments
from tf_finetune.errors import FinetuneError, HyperparameterError
from tf_finetune.launch import limits, plan

pytest.importorskip("boto3")

ROLE = "arn:aws:iam::123456789012:role/mine"
PHOTOS = {"photos/a/1.jpg": b"1", "photos/b/2.jpg": b"2", "photos/.hidden/3.jpg": b"3"}
BASIC = ["--training", "s3://data/flowers", "--instance-type", "ml.m5.xlarge", "--role", ROLE]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No credentials, no settings of the person at the machine, and no connection to anywhere."""

    def refuse(*given):
        raise AssertionError(f"a connection to {given[1:]}")

    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    places = {"HOME": "home", "XDG_CONFIG_HOME": "home", "XDG_CONFIG_DIRS": "site", "AWS_CONFIG_FILE": "none"}
    for name, place in {**places, "AWS_SHARED_CREDENTIALS_FILE": "none"}.items():
        monkeypatch.setenv(name, str(tmp_path / place))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)


def run(*words: str) -> int:
    parser = arguments.Parser(prog="tf-finetune")
    launch.add_commands(parser.add_subparsers(dest="command", parser_class=arguments.Parser))
    flags, rest = parser.parse_known_args(arguments.tied([*words]))
    return flags.run(flags, rest)


@pytest.fixture
def dry(capsys):
    """A function of arguments that returns the request of a dry run."""

    def request(*words: str) -> dict:
        assert run("submit", *words, "--dry-run") == 0
        return json.loads(capsys.readouterr().out)

    return request


def test_the_smallest_job_is_a_whole_request(dry):
    sent = dry(*BASIC, "--output", "s3://bucket")
    assert sent["TrainingJobName"] == "flowers"
    assert sent["OutputDataConfig"] == {"S3OutputPath": "s3://bucket"}  # So bucket/flowers/output/model.tar.gz.
    assert sent["RoleArn"] == ROLE
    assert sent["HyperParameters"]["sagemaker_submit_directory"] == '"s3://bucket/flowers/source/sourcedir.tar.gz"'
    assert sent["InputDataConfig"] == [
        {
            "ChannelName": "training",
            "DataSource": {
                "S3DataSource": {
                    "S3DataType": "S3Prefix",
                    "S3Uri": "s3://data/flowers/",
                    "S3DataDistributionType": "FullyReplicated",
                }
            },
            "InputMode": "File",
        }
    ]
    assert sent["ResourceConfig"] == {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30}
    assert sent["StoppingCondition"] == {"MaxRuntimeInSeconds": 86_400}
    assert ".dkr.ecr.eu-west-1." in sent["AlgorithmSpecification"]["TrainingImage"]
    assert "cpu" in sent["AlgorithmSpecification"]["TrainingImage"]
    assert len(sent["AlgorithmSpecification"]["MetricDefinitions"]) == 4
    assert set(sent) == {
        "TrainingJobName",
        "HyperParameters",
        "AlgorithmSpecification",
        "RoleArn",
        "InputDataConfig",
        "OutputDataConfig",
        "ResourceConfig",
        "StoppingCondition",
    }


def test_every_flag_arrives(dry):
    sent = dry(
        *BASIC,
        *("--validation", "s3://data/more", "--test", "s3://data/most/", "--model", "s3://data/old/model.tar.gz"),
        *("--model-name", "my_flowers", "--output", "s3://bucket/team/", "--instance-count", "2"),
        *("--volume-size", "100", "--spot", "--max-run", "3600", "--max-wait", "7000", "--image", "mine:1"),
        *("--kms-key", "alias/k", "--subnets", "subnet-1", "subnet-2", "--security-group-ids", "sg-1"),
        *("--tags", "a=b", "c=d=e", "--environment", "X=1", "--encrypt-traffic"),
    )
    assert sent["TrainingJobName"] == "my-flowers"
    channels = {entry["ChannelName"]: entry for entry in sent["InputDataConfig"]}
    assert {name: entry["DataSource"]["S3DataSource"]["S3Uri"] for name, entry in channels.items()} == {
        "training": "s3://data/flowers/",
        "validation": "s3://data/more/",
        "test": "s3://data/most/",
        "model": "s3://data/old/model.tar.gz",
    }
    assert channels["model"]["ContentType"] == "application/x-sagemaker-model"
    assert sent["OutputDataConfig"] == {"S3OutputPath": "s3://bucket/team/", "KmsKeyId": "alias/k"}
    assert sent["CheckpointConfig"] == {
        "S3Uri": "s3://bucket/team/my-flowers/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert sent["EnableManagedSpotTraining"] is True
    assert sent["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7000}
    assert sent["ResourceConfig"] == {"InstanceType": "ml.m5.xlarge", "InstanceCount": 2, "VolumeSizeInGB": 100}
    assert sent["AlgorithmSpecification"]["TrainingImage"] == "mine:1"
    assert sent["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1", "subnet-2"]}
    assert sent["Tags"] == [{"Key": "a", "Value": "b"}, {"Key": "c", "Value": "d=e"}]
    assert sent["Environment"] == {"X": "1"}
    assert sent["EnableInterContainerTrafficEncryption"] is True


def test_the_sdks_defaults_arrive_and_flags_go_before_them(dry, tmp_path):
    config = """
SchemaVersion: '1.0'
SageMaker:
  PythonSDK: {Modules: {Session: {DefaultS3Bucket: team-bucket, DefaultS3ObjectKeyPrefix: p}}}
  TrainingJob:
    RoleArn: arn:aws:iam::123456789012:role/of-config
    VpcConfig: {SecurityGroupIds: [sg-1], Subnets: [subnet-1]}
    OutputDataConfig: {KmsKeyId: key}
    ResourceConfig: {VolumeKmsKeyId: volume}
    EnableNetworkIsolation: true
    ProfilerConfig: {DisableProfiler: true}
    Environment: {A: '1'}
    Tags: [{Key: team, Value: a}]
"""
    write_files(tmp_path, {"home/sagemaker/config.yaml": config.encode()})
    words = ["--training", "s3://data/flowers", "--model", "s3://data/m/"]
    sent = dry(*words, "--instance-type", "ml.m5.xlarge")
    assert sent["RoleArn"] == "arn:aws:iam::123456789012:role/of-config"
    assert sent["OutputDataConfig"] == {"S3OutputPath": "s3://team-bucket/p", "KmsKeyId": "key"}
    assert sent["ResourceConfig"]["VolumeKmsKeyId"] == "volume"
    assert sent["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert (sent["EnableNetworkIsolation"], sent["ProfilerConfig"]) == (True, {"DisableProfiler": True})
    assert (sent["Environment"], sent["Tags"]) == ({"A": "1"}, [{"Key": "team", "Value": "a"}])
    # Without a network the code is a channel, for the toolkit cannot fetch it.
    assert sent["HyperParameters"]["sagemaker_submit_directory"] == '"/opt/ml/input/data/code/sourcedir.tar.gz"'
    code = sent["InputDataConfig"][-1]
    assert code["DataSource"]["S3DataSource"]["S3Uri"] == "s3://team-bucket/p/flowers/source/"
    flagged = dry(*words, *("--instance-type", "ml.g5.xlarge", "--role", ROLE, "--output", "s3://other"),
                  *("--tags", "team=b", "--environment", "A=2", "--no-network-isolation", "--kms-key", "k2"),
                  *("--subnets", "subnet-2"))  # fmt: skip
    assert flagged["RoleArn"] == ROLE
    assert flagged["OutputDataConfig"] == {"S3OutputPath": "s3://other", "KmsKeyId": "k2"}
    assert "VolumeKmsKeyId" not in flagged["ResourceConfig"]  # Its disk is its own.
    assert flagged["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-2"]}
    assert "EnableNetworkIsolation" not in flagged
    assert (flagged["Environment"], flagged["Tags"]) == ({"A": "2"}, [{"Key": "team", "Value": "b"}])


@pytest.mark.parametrize(
    ("words", "batch_size"),
    [
        (["--instance-type", "ml.g5.12xlarge"], "128"),
        (["--instance-type", "ml.g5.xlarge"], "32"),
        (["--instance-type", "ml.g5.12xlarge", "--instance-count", "2"], "256"),
        (["--instance-type", "ml.g5.12xlarge", "--batch-size", "48"], "48"),
        (["--instance-type", "ml.g5.12xlarge", "--backbone", "tensorflow-tc-bert-en-uncased-L-12-H-768-A-12-2"], "256"),
        (["--instance-type", "ml.m5.xlarge"], None),
    ],
)
def test_the_batch_size_is_the_guides_for_the_gpus_unless_given(dry, caplog, words, batch_size):
    caplog.set_level("INFO", "tf_finetune")
    sent = dry("--training", "s3://data/x", "--role", ROLE, *words)
    assert sent["HyperParameters"].get("batch_size") == batch_size
    suggested = batch_size is not None and "--batch-size" not in words
    assert (f"batch_size is {batch_size}" in caplog.text) == suggested


def test_default_data_is_the_guides(dry):
    def training(*words):
        sent = dry("--training", "default", "--instance-type", "ml.m5.xlarge", "--role", ROLE, *words)
        return sent["TrainingJobName"], sent["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"]

    bucket = "s3://jumpstart-cache-prod-eu-west-1/training-datasets"
    assert training() == ("tf-flowers", f"{bucket}/tf_flowers/")
    assert training("--backbone", "minilm-l6") == ("SST2", f"{bucket}/SST2/")


def test_a_local_folder_is_announced_where_it_will_be(dry, tmp_path):
    write_files(tmp_path, PHOTOS)
    sent = dry("--training", "photos", "--instance-type", "ml.m5.xlarge", "--role", ROLE)
    where = "s3://sagemaker-eu-west-1-123456789012/photos/input/training/"
    assert sent["InputDataConfig"][0]["DataSource"]["S3DataSource"]["S3Uri"] == where


def test_a_roles_name_and_the_bucket_stand_for_what_only_aws_knows(dry):
    sent = dry("--training", "s3://data/x", "--instance-type", "ml.m5.xlarge", "--role", "service-role/mine")
    assert sent["RoleArn"] == "arn:aws:iam::ACCOUNT:role/service-role/mine"
    assert sent["OutputDataConfig"]["S3OutputPath"] == "s3://sagemaker-eu-west-1-ACCOUNT"


REFUSED = [
    (["--epochs", "0", "--optimizer", "adm"], ["2 hyperparameters are wrong", "mean adam?"]),
    (["--learnig-rate", "1"], ["mean learning_rate?"]),
    (["--backbone", "./mine"], ["does not see this machine", "--model"]),
    (["--group-by", "x" * 2500], ["group_by: SageMaker takes values of up to 2,500 characters"]),
    (["--backbone", "minilm-l6", "--augmentation", "True"], ["augmentation", "photos only"]),
    (["--instance-type", "ml.g5.13xlarge"], ["--instance-type: expected", "ml.g5.12xlarge"]),
    (["--instance-count", "none"], ["--instance-count: expected an integer of 1 or more"]),
    (["--model-name", "___"], ["--model-name: expected up to 63 letters"]),
    (["--role", "not a role"], ["--role: expected an ARN"]),
    (["--output", "results"], ["--output: ", "Expected s3://BUCKET/PREFIX"]),
    (["--checkpoints", "here"], ["--checkpoints: ", "Expected s3://BUCKET"]),
    (["--spot", "--max-run", "3600", "--max-wait", "60"], ["--max-wait: expected at least --max-run"]),
    (["--max-wait", "60"], ["--max-wait is for spot instances"]),
    (["--max-run", "9999999"], ["28 days"]),
    (["--subnets", "subnet-1"], ["--subnets without --security-group-ids"]),
    (["--security-group-ids", "sg-1"], ["--security-group-ids without --subnets"]),
    (["--security-group-ids", *[f"sg-{n}" for n in range(6)], "--subnets", "s"], ["up to 5 ids; received 6"]),
    (["--tags", "aws:x=1"], ["--tags: AWS takes", "aws:x"]),
    (["--tags", "a"], ["--tags: expected KEY=VALUE; received 'a'"]),
    (["--tags", "a=1", "a=2"], ["--tags: a is given twice"]),
    (["--tags", *[f"k{n}=v" for n in range(51)]], ["up to 50 tags", "received 51"]),
    (["--environment", "1x=1"], ["--environment: SageMaker takes", "1x"]),
    (["--kms-key", "a b"], ["--kms-key: expected"]),
    (["--image", "x" * 256], ["--image: expected a URI of up to 255"]),
    (["--region", "nowhere"], ["--region: expected a Region such as"]),
    (["--network-isolation"], ["Under network isolation", "--model"]),
    (["--training", "nowhere"], ["There is no such file or folder: nowhere"]),
    (["--training", "s3://X/y"], ["--training: ", "Expected s3://BUCKET"]),
    (["word"], ["unrecognized argument: word"]),
    (["--epochs", "0", "--max-wait", "60", "--tags", "a"], ["(1) Wrong hyperparameter", "(2) ", "(3) "]),
]


@pytest.mark.parametrize(("words", "parts"), REFUSED, ids=lambda value: " ".join(value)[:60])
def test_what_aws_would_refuse_is_refused_without_a_connection(words, parts):
    with pytest.raises(FinetuneError) as raised:
        run("submit", *BASIC, *words)
    for part in parts:
        assert part in str(raised.value)
    assert len(str(raised.value)) < 1024
    assert "\n" not in str(raised.value)


def test_there_must_be_a_role_and_a_region(monkeypatch):
    with pytest.raises(FinetuneError, match="There is no execution role. Give --role"):
        run("submit", "--training", "s3://data/x", "--instance-type", "ml.m5.xlarge")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(FinetuneError, match="There is no Region. Give --region"):
        run("submit", *BASIC)
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert run("submit", *BASIC, "--dry-run") == 0


def test_a_local_folder_that_cannot_be_trained_on_is_refused(tmp_path):
    write_files(tmp_path, {"one/a/1.jpg": b"1"})
    with pytest.raises(FinetuneError, match="one class folder only"):
        run("submit", "--training", "one", "--instance-type", "ml.m5.xlarge", "--role", ROLE)


def test_a_backbone_that_is_frozen_only_is_not_trained_whole(monkeypatch):
    from tf_finetune import catalog
    from tf_finetune.launch import settings

    card = catalog.Card("frozen", "image", "packaged:frozen", fine_tunable=False)
    settings.check_trainable({}, card)
    with pytest.raises(HyperparameterError, match="frozen can be used frozen only"):
        settings.check_trainable({"train_only_top_layer": False}, card)


@pytest.mark.parametrize(
    ("text", "name"),
    [("my_flowers", "my-flowers"), ("--a..b--", "a-b"), ("x" * 62 + "-yz", "x" * 62), ("äöü1", "1")],
)
def test_names_are_made_valid(text, name):
    assert plan.valid_name(text) == name


def test_spot_waits_twice_as_long_unless_told():
    assert limits.times(True, None, None) == (86_400, 172_800)
    assert limits.times(True, "60", "60") == (60, 60)
