"""Defaults from the config.yaml files of SageMaker's Python SDK: role, network, keys, tags, environment, bucket."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_finetune.errors import UsageError, listed

FILE = "config.yaml"
OVERRIDES = {"site": "SAGEMAKER_ADMIN_CONFIG_OVERRIDE", "user": "SAGEMAKER_USER_CONFIG_OVERRIDE"}
ROLE = re.compile(r"arn:aws[a-z-]*:iam::(?P<account>\d{12}):role/?[a-zA-Z_0-9+=,.@\-/]+")
# What the SDK's schema allows below SageMaker.TrainingJob: a type, or the keys below.
_TRAINING_JOB: Mapping[str, Any] = {
    "RoleArn": str,
    "VpcConfig": {"SecurityGroupIds": list, "Subnets": list},
    "OutputDataConfig": {"KmsKeyId": str},
    "ResourceConfig": {"VolumeKmsKeyId": str},
    "EnableInterContainerTrafficEncryption": bool,
    "EnableNetworkIsolation": bool,
    "Environment": dict,
    "ProfilerConfig": {"DisableProfiler": bool},
    "Tags": list,
}
_NOUNS = {str: "text", list: "a list", dict: "a mapping", bool: "true or false"}


@dataclass(frozen=True)
class Defaults:
    """What the files say; None or empty where they say nothing.

    Attributes:
        role: ARN of the execution role.
        subnets: Ids of the VPC's subnets.
        security_group_ids: Ids of its security groups.
        kms_key: Key for the results.
        volume_kms_key: Key for the instance's volume.
        encrypt_traffic: Whether traffic between instances is encrypted.
        network_isolation: Whether the job has no network.
        disable_profiler: Whether SageMaker's profiler is off.
        environment: Variables of the job's environment.
        tags: Tags of the job.
        bucket: Bucket for what has no other place.
        prefix: Prefix within it.
    """

    role: str | None = None
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    kms_key: str | None = None
    volume_kms_key: str | None = None
    encrypt_traffic: bool | None = None
    network_isolation: bool | None = None
    disable_profiler: bool | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    bucket: str | None = None
    prefix: str = ""


def places(environ: Mapping[str, str] = os.environ, platform: str = sys.platform) -> dict[str, str]:
    """Returns the site's and the user's file, as the SDK finds them; they need not exist.

    >>> places({"XDG_CONFIG_HOME": "/home/me/.config"}, "linux")
    {'site': '/etc/xdg/sagemaker/config.yaml', 'user': '/home/me/.config/sagemaker/config.yaml'}
    """
    home = environ.get("HOME") or str(Path.home())
    if platform == "darwin":
        folders = ["/Library/Application Support", f"{home}/Library/Application Support"]
    elif platform == "win32":
        site, user = environ.get("PROGRAMDATA", r"C:\ProgramData"), environ.get("LOCALAPPDATA", home)
        folders = [rf"{site}\sagemaker", rf"{user}\sagemaker"]
    else:
        site = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)[0]
        folders = [site, environ.get("XDG_CONFIG_HOME") or f"{home}/.config"]
    usual = {level: f"{folder}/sagemaker/{FILE}" for level, folder in zip(OVERRIDES, folders, strict=True)}
    return {level: environ.get(variable) or usual[level] for level, variable in OVERRIDES.items()}


def read(
    fetch: Callable[[str], str] | None, environ: Mapping[str, str] = os.environ, platform: str = sys.platform
) -> tuple[Defaults, list[str]]:
    """Returns the defaults, the user's file before the site's, and the files that were used.

    Args:
        fetch: Returns the text of an s3:// URL; None leaves such files out.
        environ: Variables of the environment.
        platform: As `sys.platform` has it.

    Raises:
        UsageError: A file is not what the SDK's schema asks for, or a file that a variable names is missing.
    """
    merged: dict[str, Any] = {}
    used = []
    for level, place in places(environ, platform).items():
        text = _text(place, fetch, OVERRIDES[level] if environ.get(OVERRIDES[level]) else None)
        if text is not None:
            merged = _merged(merged, _parsed(place, text))
            used.append(place)
    return _defaults(merged), used


def _text(place: str, fetch: Callable[[str], str] | None, variable: str | None) -> str | None:
    if place.startswith("s3://"):
        return fetch(place if place.endswith((".yaml", ".yml")) else f"{place.rstrip('/')}/{FILE}") if fetch else None
    file = Path(place).expanduser()
    file = file / FILE if file.is_dir() else file
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        if variable is None:
            return None
        raise UsageError(f"{variable}: there is no file {place}. Give a file, a folder or an s3:// URL.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"{place} cannot be read: {reason}.") from None


def _parsed(place: str, text: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise UsageError(f'{place} cannot be read without PyYAML. Run: pip install "pyyaml".') from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{place} is not valid YAML: {' '.join(str(error).split())[:300]}.") from None
    if not isinstance(content, dict) or str(content.get("SchemaVersion")) != "1.0":
        raise UsageError(f"{place}: expected the SDK's defaults, which begin with `SchemaVersion: '1.0'`.")
    problems = _problems(_below(content, "SageMaker", "TrainingJob"), _TRAINING_JOB, "SageMaker.TrainingJob")
    if problems:
        raise UsageError(f"{place}: {listed(problems, separator='; ')}.")
    return content


def _below(content: Any, *keys: str) -> Any:
    for key in keys:
        content = (content.get(key) if isinstance(content, dict) else None) or {}
    return content


def _problems(content: Any, schema: Mapping[str, Any], path: str) -> list[str]:
    if not isinstance(content, dict):
        return [f"{path} should be a mapping; received {str(content)[:80]!r}"]
    problems = []
    for key, value in content.items():
        expected = schema.get(key)
        if expected is None:
            problems.append(f"{path}.{key} is unknown; the SDK's keys there are {listed(schema, limit=9)}")
        elif isinstance(expected, dict):
            problems += _problems(value, expected, f"{path}.{key}")
        elif not isinstance(value, expected):
            problems.append(f"{path}.{key} should be {_NOUNS[expected]}; received {str(value)[:80]!r}")
    for tag in content.get("Tags", []) if isinstance(content.get("Tags", []), list) else []:
        if not isinstance(tag, dict) or set(tag) != {"Key", "Value"}:
            problems.append(f"{path}.Tags should hold mappings of Key and Value; received {str(tag)[:80]!r}")
    if isinstance(content.get("RoleArn"), str) and not ROLE.fullmatch(content["RoleArn"]):
        problems.append(f"{path}.RoleArn should be the ARN of a role; received {content['RoleArn']!r}")
    return problems


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Returns both, `above` first where both have a key; mappings are merged, lists replaced."""
    both = {key: _merged(below[key], above[key]) for key in below if _is_mapping(below.get(key), above.get(key))}
    return {**below, **above, **both}


def _is_mapping(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _defaults(content: dict[str, Any]) -> Defaults:
    job, session = (
        _below(content, "SageMaker", "TrainingJob"),
        _below(content, "SageMaker", "PythonSDK", "Modules", "Session"),
    )
    vpc = _below(job, "VpcConfig")
    return Defaults(
        role=job.get("RoleArn"),
        subnets=tuple(vpc.get("Subnets", ())),
        security_group_ids=tuple(vpc.get("SecurityGroupIds", ())),
        kms_key=_below(job, "OutputDataConfig").get("KmsKeyId"),
        volume_kms_key=_below(job, "ResourceConfig").get("VolumeKmsKeyId"),
        encrypt_traffic=job.get("EnableInterContainerTrafficEncryption"),
        network_isolation=job.get("EnableNetworkIsolation"),
        disable_profiler=_below(job, "ProfilerConfig").get("DisableProfiler"),
        environment={str(key): str(value) for key, value in job.get("Environment", {}).items()},
        tags={str(tag["Key"]): str(tag["Value"]) for tag in job.get("Tags", [])},
        bucket=session.get("DefaultS3Bucket"),
        prefix=str(session.get("DefaultS3ObjectKeyPrefix") or "").strip("/"),
    )
