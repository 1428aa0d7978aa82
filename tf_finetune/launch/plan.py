"""What a job on SageMaker is asked to be, checked as far as that goes without AWS, with all problems at once."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from tf_finetune import hyperparameters
from tf_finetune.errors import FinetuneError, UsageError, collector, combined
from tf_finetune.launch import channels, images, instances, limits, places, settings
from tf_finetune.launch.channels import Channel
from tf_finetune.launch.defaults import ROLE, Defaults
from tf_finetune.s3 import Location, default_data

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """One training job.

    Attributes:
        region: The Region that it runs in.
        name: Its name, which is also the folder of its results.
        is_named: Whether the user gave the name.
        task: "image" or "text", or None where only S3 knows.
        channels: Its data.
        values: Typed hyperparameters that the user gave, and the suggested batch size.
        backbone: What it starts from, in words.
        needs_hub: Whether it fetches a backbone from a hub.
        instance_type: As SageMaker calls it.
        instance_count: Instances.
        gpus: GPUs of one instance; None where not known.
        volume_size: GB of each instance's volume.
        image: The training image.
        role: ARN, or name, of the execution role.
        bucket: Bucket of code, uploads and results; None for the account's default one.
        output: Where results go: output/NAME/output/; None for the bucket's top.
        prefix: Prefix of code and uploads within the bucket.
        checkpoints: Where checkpoints go; "" for a place below the results, None for none.
        max_run: Seconds that it may train.
        max_wait: Seconds that it may take with all waiting for spot instances; None for no spot instances.
        kms_key: Key for results and uploads.
        volume_kms_key: Key for the instances' volumes.
        subnets: Of a VPC.
        security_group_ids: Of a VPC.
        encrypt_traffic: Whether traffic between instances is encrypted.
        network_isolation: Whether it has no network.
        disable_profiler: Whether SageMaker's profiler is off; None for its own default.
        environment: Variables of its environment.
        tags: Its tags.
    """

    region: str
    name: str
    is_named: bool
    task: str | None
    channels: tuple[Channel, ...]
    values: Mapping[str, Any]
    backbone: str
    needs_hub: bool
    instance_type: str
    instance_count: int
    gpus: int | None
    volume_size: int
    image: str
    role: str
    bucket: str | None
    output: Location | None
    prefix: str
    checkpoints: str | None
    max_run: int
    max_wait: int | None
    kms_key: str | None = None
    volume_kms_key: str | None = None
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    encrypt_traffic: bool = False
    network_isolation: bool = False
    disable_profiler: bool | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def make(
    flags: argparse.Namespace,
    given: Mapping[str, object],
    defaults: Defaults,
    region: str,
    instance_types: Callable[[], Collection[str]],
) -> Plan:
    """Returns the job, or every reason why SageMaker would refuse it.

    Args:
        flags: As `commands.add_commands` declares them.
        given: The user's hyperparameters, as text.
        defaults: Of the SDK's configuration; flags go before them.
        region: The job's Region.
        instance_types: Returns more instance types than our table has.

    Raises:
        FinetuneError: Names all that is wrong.
    """
    problems: list[FinetuneError] = []
    tried = collector(problems)
    backbone = next((str(value) for name, value in given.items() if hyperparameters.canonical(name) == "backbone"), "")
    asked = {name: getattr(flags, name) for name in channels.NAMES if getattr(flags, name)}
    found, task = tried(lambda: channels.find(asked, backbone, region)) or ((), None)
    values = tried(lambda: settings.parse(given, task)) or {}
    gpus = tried(lambda: (instances.gpus(flags.instance_type, instance_types),))
    times = tried(lambda: limits.times(flags.spot, flags.max_run, flags.max_wait))
    output = tried(lambda: places.parse("--output", flags.output)) if flags.output else None
    network = tried(lambda: limits.network(flags, defaults)) or ((), ())
    isolated = bool(_first(flags.network_isolation, defaults.network_isolation))
    chosen = settings.card(values, task, has_model="model" in asked)
    for check in (
        lambda: settings.check_trainable(values, chosen),
        lambda: limits.key(flags.kms_key or defaults.kms_key),
        lambda: places.parse("--checkpoints", flags.checkpoints) if flags.checkpoints else None,
        lambda: _check_isolation(isolated, "model" in asked, backbone),
    ):
        tried(check)
    count = tried(lambda: limits.whole("--instance-count", flags.instance_count)) or 1
    volume = tried(lambda: limits.whole("--volume-size", flags.volume_size))
    role = tried(lambda: _role(flags.role, defaults))
    name = tried(lambda: _name(flags.model_name, asked, task))
    environment = tried(lambda: limits.environment({**defaults.environment, **limits.pairs("--environment", flags)}))
    tags = tried(lambda: limits.tags({**defaults.tags, **limits.pairs("--tags", flags)}))
    if gpus == (None,):
        log.warning("%s is not known here: its GPUs are not counted, so batch_size stays as it is", flags.instance_type)
    has_gpu = bool(gpus and (gpus[0] or gpus[0] is None and flags.instance_type.startswith(("ml.p", "ml.g"))))
    image = tried(lambda: _image(flags.image, region, has_gpu)) if gpus else None
    problems += settings.check_limits(values)
    if problems or gpus is None or times is None:
        raise combined(problems)
    values = _with_batch_size(values, (gpus[0] or 0) * count, chosen)
    return Plan(
        region=region,
        name=name or "",
        is_named=bool(flags.model_name),
        task=task,
        channels=tuple(found),
        values=values,
        backbone=str(values.get("backbone") or (asked.get("model") if "model" in asked else chosen and chosen.id)),
        needs_hub=settings.needs_hub(values, chosen),
        instance_type=flags.instance_type,
        instance_count=count,
        gpus=gpus[0],
        volume_size=volume or limits.VOLUME_SIZE,
        image=image or "",
        role=role or "",
        bucket=output.bucket if output else defaults.bucket,
        output=output,
        prefix="" if output else defaults.prefix,
        checkpoints=flags.checkpoints if flags.checkpoints is not None else ("" if flags.spot else None),
        max_run=times[0],
        max_wait=times[1],
        kms_key=flags.kms_key or defaults.kms_key,
        volume_kms_key=None if instances.has_own_disk(flags.instance_type) else defaults.volume_kms_key,
        subnets=network[0],
        security_group_ids=network[1],
        encrypt_traffic=bool(_first(flags.encrypt_traffic, defaults.encrypt_traffic)),
        network_isolation=isolated,
        disable_profiler=defaults.disable_profiler,
        environment=environment or {},
        tags=tags or {},
    )


def valid_name(text: str) -> str:
    """Returns a name as SageMaker takes it: up to 63 letters, digits and hyphens, none of these at an end.

    >>> valid_name("my_flowers (2)")
    'my-flowers-2'
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:63].rstrip("-")


def _first(*values: bool | None) -> bool | None:
    return next((value for value in values if value is not None), None)


def _name(given: str | None, asked: Mapping[str, str], task: str | None) -> str:
    if given and re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}", given):
        return given
    training = asked.get("training", "")
    if given:
        text = given
    elif training == default_data.DEFAULT:
        text = default_data.DATA_SETS[task or "image"]
    else:
        text = os.path.basename(training.rstrip("/") if "://" in training else os.path.abspath(training))
    name = valid_name(text)
    if not name:
        raise UsageError(
            f"--model-name: expected up to 63 letters, digits and hyphens; received {text[:80]!r}. Give another."
        )
    if given:
        log.info("the job is called %s: SageMaker takes up to 63 letters, digits and hyphens", name)
    return name


def _role(given: str | None, defaults: Defaults) -> str:
    role = given or defaults.role
    if not role:
        raise UsageError(
            "There is no execution role. Give --role ARN, or a role's name; or set SageMaker.TrainingJob.RoleArn in "
            "~/.config/sagemaker/config.yaml. SageMaker acts by it: it must be allowed to read the data and to write "
            "the results."
        )
    if not ROLE.fullmatch(role) and not re.fullmatch(r"([\w+=,.@-]+/)*[\w+=,.@-]{1,64}", role):
        raise UsageError(
            f"--role: expected an ARN such as arn:aws:iam::123456789012:role/NAME, or a name; received {role[:200]!r}."
        )
    return role


def _image(given: str | None, region: str, has_gpu: bool) -> str:
    if not given:
        return images.default(region, has_gpu)
    images.check(given, region)
    return given


def _check_isolation(isolated: bool, has_model: bool, backbone: str) -> None:
    if isolated and (backbone or not has_model):
        raise UsageError(
            "Under network isolation the job cannot fetch a backbone. Give a pretrained SavedModel, or an earlier "
            "result, as --model" + (" and leave --backbone away." if backbone else ".")
        )


def _with_batch_size(values: Mapping[str, Any], gpus: int, chosen: Any) -> dict[str, Any]:
    if "batch_size" in values or not gpus:
        return dict(values)
    batch_size, each = settings.suggested_batch_size(gpus, chosen)
    log.info("batch_size is %d, %d for %s; --batch-size sets another", batch_size, each, _counted(gpus))
    return {**values, "batch_size": batch_size}


def _counted(gpus: int) -> str:
    return f"each of {gpus} GPUs" if gpus > 1 else "the one GPU"
