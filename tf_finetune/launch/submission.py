"""What `submit` does: checks all, uploads, starts the job, and waits for it if asked to."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tf_finetune import hyperparameters, s3
from tf_finetune.errors import UsageError
from tf_finetune.launch import aws, checks, code, defaults, follow, images, past, plan, request, settings
from tf_finetune.launch.defaults import Defaults
from tf_finetune.launch.plan import Plan
from tf_finetune.launch.request import Account

log = logging.getLogger(__name__)

UNKNOWN = "ACCOUNT"  # Stands for the account's number where AWS must not be asked.


def run(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Submits a job; returns the exit code.

    Args:
        flags: As `commands` declares them.
        rest: The words that are no flags of `submit`: hyperparameters.

    Raises:
        FinetuneError: What AWS would refuse, all at once and before anything is uploaded; or why the job has failed.
    """
    given = _given(rest)
    made = aws.session(flags.region)
    brought = _defaults(made, flags.dry_run)
    wanted = plan.make(flags, given, brought, made.region_name, aws.instance_types)
    if brought.volume_kms_key and not wanted.volume_kms_key:
        log.info("VolumeKmsKeyId is left out: SageMaker takes none for the disk of %s", wanted.instance_type)
    for name, value in settings.split(wanted.values)[1].items():
        log.info("%s goes with the code and not as a hyperparameter, as shells in images would break %s", name, value)
    if flags.dry_run:
        known = _supposed(wanted)
        print(json.dumps(request.build(wanted, known), indent=2, ensure_ascii=False))
        return 0
    known = aws.account(made, wanted)
    name, task = checks.look(made, wanted, known)
    if name != wanted.name:
        log.info("the job is called %s: there is one called %s already", name, wanted.name)
    wanted = dataclasses.replace(wanted, name=name, task=task)
    settings.parse(given, task)  # Once more, for what only one of the tasks takes.
    _upload(made, wanted, known)
    arn = aws.create(made, wanted, known)
    log.info("started the training job %s", arn)
    if flags.wait:
        return _wait(made, wanted)
    print(f"training job: {wanted.name}\nARN: {arn}\noutput: {request.archive(wanted, known)}")
    log.info("`tf-finetune jobs` shows how it goes")
    return 0


def _defaults(made: Any, is_dry: bool) -> Defaults:
    found, used = defaults.read(None if is_dry else lambda url: aws.text_of(made, url))
    for place in used:
        log.info("defaults from %s", place)
    return found


def _supposed(wanted: Plan) -> Account:
    """Returns what can be told of the account without asking AWS."""
    role = wanted.role
    if not defaults.ROLE.fullmatch(role):
        role = f"arn:aws:iam::{UNKNOWN}:role/{role}"
    bucket = wanted.bucket or aws.default_bucket(role, wanted.region)
    if UNKNOWN in role + bucket:
        log.info("%s stands for the account's number, which is asked of AWS when the job is submitted", UNKNOWN)
    return Account(role, bucket)


def _given(rest: Sequence[str]) -> dict[str, str]:
    """Returns the hyperparameters among the words that are no flags of `submit`.

    Raises:
        UsageError: A word belongs to no flag.
    """
    pairs: dict[str, str | None] = {}
    name = None
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            pairs[name] = value if equals else None
        elif name is not None and pairs[name] is None:
            pairs[name] = word
        else:
            raise UsageError(f"unrecognized argument: {word}. Hyperparameters are given as --NAME VALUE.")
    bare = {True: "True", False: "nothing"}
    return {key: bare[hyperparameters.is_switch(key)] if value is None else value for key, value in pairs.items()}


def _upload(made: Any, wanted: Plan, known: Account) -> None:
    """Uploads the job's code and the channels that lie on this machine."""
    for channel in wanted.channels:
        if channel.files:
            place = request.place(wanted, known, channel)
            log.info("uploading %d files to %s", len(channel.files), place)
            size = aws.upload(made, [(path, s3.joined(place, key)) for path, key in channel.files], wanted.kms_key)
            log.info("uploaded %.1f MB", size / 1e6)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, request.SOURCE)
        version = images.tensorflow_version(wanted.image)
        needed = code.requirements(version, wanted.needs_hub, wanted.task != "image")
        code.pack(file, None if wanted.network_isolation else needed, settings.split(wanted.values)[1])
        aws.upload(made, [(file, request.source(wanted, known))], wanted.kms_key)


def _wait(made: Any, wanted: Plan) -> int:
    """Prints the job's log, and its result.

    Raises:
        FinetuneError: It has none.
    """
    try:
        for line in follow.lines(made, wanted.name):
            print(line, flush=True)
    except KeyboardInterrupt:
        log.info(
            "The training job goes on. See it by `tf-finetune jobs`; stop it by "
            "`aws sagemaker stop-training-job --training-job-name %s --region %s`",
            wanted.name,
            wanted.region,
        )
        return 1
    job = follow.describe(made, wanted.name)
    failed = past.failure(job)
    if failed:
        raise failed
    print(past.summary(job, wanted.backbone))
    return 0
