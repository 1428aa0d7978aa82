"""Defaults from the config.yaml files of SageMaker's Python SDK."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tf_finetune.errors import UsageError
from tf_finetune.launch import defaults

pytest.importorskip("yaml")

SITE = """
SchemaVersion: '1.0'
SageMaker:
  PythonSDK: {Modules: {Session: {DefaultS3Bucket: site-bucket, DefaultS3ObjectKeyPrefix: team/a}}}
  TrainingJob:
    RoleArn: arn:aws:iam::123456789012:role/site
    VpcConfig: {SecurityGroupIds: [sg-1], Subnets: [subnet-1, subnet-2]}
    OutputDataConfig: {KmsKeyId: key}
    ResourceConfig: {VolumeKmsKeyId: volume}
    EnableInterContainerTrafficEncryption: true
    EnableNetworkIsolation: false
    Environment: {A: 1, B: two}
    ProfilerConfig: {DisableProfiler: true}
    Tags: [{Key: team, Value: a}]
  Model: {ExecutionRoleArn: not-ours, Unknown: x}
"""
USER = """
SchemaVersion: '1.0'
SageMaker:
  TrainingJob:
    RoleArn: arn:aws:iam::123456789012:role/service-role/mine
    Environment: {B: three}
    VpcConfig: {Subnets: [subnet-9]}
"""


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    return file


def test_the_users_file_goes_before_the_sites_key_by_key(tmp_path):
    site, user = write(tmp_path / "xdg" / "sagemaker", SITE), write(tmp_path / "home" / "sagemaker", USER)
    environ = {"XDG_CONFIG_DIRS": str(tmp_path / "xdg"), "XDG_CONFIG_HOME": str(tmp_path / "home")}
    found, used = defaults.read(None, environ, "linux")
    assert used == [str(site), str(user)]
    assert found == defaults.Defaults(
        role="arn:aws:iam::123456789012:role/service-role/mine",
        subnets=("subnet-9",),
        security_group_ids=("sg-1",),
        kms_key="key",
        volume_kms_key="volume",
        encrypt_traffic=True,
        network_isolation=False,
        disable_profiler=True,
        environment={"A": "1", "B": "three"},
        tags={"team": "a"},
        bucket="site-bucket",
        prefix="team/a",
    )


def test_no_file_gives_no_defaults(tmp_path):
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path)}
    assert defaults.read(None, environ, "linux") == (defaults.Defaults(), [])


def test_variables_name_other_places_a_file_a_folder_or_s3(tmp_path):
    write(tmp_path / "site", SITE)
    environ = {
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(tmp_path / "site"),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": "s3://bucket/conf",
    }
    asked = []
    found, used = defaults.read(lambda url: asked.append(url) or USER, environ, "linux")
    assert asked == ["s3://bucket/conf/config.yaml"]
    assert (found.role, found.bucket, len(used)) == (
        "arn:aws:iam::123456789012:role/service-role/mine",
        "site-bucket",
        2,
    )
    without = defaults.read(None, environ, "linux")[0]
    assert without.role == "arn:aws:iam::123456789012:role/site"


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="SAGEMAKER_USER_CONFIG_OVERRIDE: there is no file"):
        defaults.read(None, {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(tmp_path / "gone.yaml")}, "linux")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "is not valid YAML"),
        ("SageMaker: {}", "begin with `SchemaVersion: '1.0'`"),
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {RoleARN: x}}", "SageMaker.TrainingJob.RoleARN is unknown"),
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {RoleArn: me}}", "should be the ARN of a role; received 'me'"),
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {Tags: [a]}}", "mappings of Key and Value; received 'a'"),
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {VpcConfig: {Subnets: a}}}", "should be a list"),
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {VpcConfig: no}}", "VpcConfig should be a mapping"),
        ("SchemaVersion: '1.0'\nSageMaker: {TrainingJob: {EnableNetworkIsolation: 1}}", "should be true or false"),
    ],
)
def test_what_the_schema_does_not_allow_is_named(tmp_path, text, part):
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        defaults.read(None, {"SAGEMAKER_USER_CONFIG_OVERRIDE": str(file)}, "linux")
    assert str(file) in str(raised.value)
    assert part in str(raised.value)


def test_places_follow_the_platform():
    assert defaults.places({"HOME": "/Users/me"}, "darwin") == {
        "site": "/Library/Application Support/sagemaker/config.yaml",
        "user": "/Users/me/Library/Application Support/sagemaker/config.yaml",
    }
