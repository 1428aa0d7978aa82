"""The flags of `submit` and `jobs`; what they do is imported when they do it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

JOBS = 20  # Listed unless another number is asked for.


def add_commands(commands: Any) -> None:
    """Declares `submit` and `jobs` among the command line's commands; each sets `run`, a function of flags and rest.

    Args:
        commands: What `add_subparsers` returned.
    """
    text = "start a training job on SageMaker; hyperparameters as in train: --HYPERPARAMETER VALUE"
    submit = commands.add_parser("submit", help=text, description=text, allow_abbrev=False)
    submit.set_defaults(run=_submit)
    for title, rows in _FLAGS.items():
        group = submit.add_argument_group(title)
        for name, given in rows.items():
            spellings = dict.fromkeys([f"--{name}", f"--{name.replace('-', '_')}"])
            group.add_argument(*spellings, **given)
    text = "list the latest training jobs on SageMaker"
    jobs = commands.add_parser("jobs", help=text, description=text, allow_abbrev=False)
    jobs.set_defaults(run=_jobs)
    jobs.add_argument("--max", metavar="N", type=_count, default=JOBS, help=f"how many at most (default: {JOBS})")
    jobs.add_argument("--region", metavar="REGION", help="default: as AWS's own settings have it")
    jobs.add_argument("--json", action="store_true", help="print JSON")


def _switch(text: str) -> dict[str, Any]:
    return {"action": argparse.BooleanOptionalAction, "default": None, "help": text}


_FLAGS: dict[str, dict[str, dict[str, Any]]] = {
    "data": {
        "training": {
            "metavar": "CHANNEL",
            "required": True,
            "help": "s3://... prefix, or a folder to upload, of class folders or with data.csv; or `default`, the user "
            "guide's data",
        },
        "validation": {"metavar": "CHANNEL", "help": "likewise; without it a part of training is kept for validation"},
        "test": {"metavar": "CHANNEL", "help": "likewise; scored once, at the end"},
        "model": {"metavar": "CHANNEL", "help": "a pretrained SavedModel or an earlier model.tar.gz, in S3 or here"},
    },
    "results": {
        "model-name": {"metavar": "NAME", "help": "the job's name (default: the training folder's)"},
        "output": {
            "metavar": "s3://BUCKET",
            "help": "results go to s3://BUCKET/NAME/output/model.tar.gz (default: the SDK's default bucket)",
        },
        "checkpoints": {
            "metavar": "s3://...",
            "nargs": "?",
            "const": "",
            "help": "keep checkpoints, there or below the results; with --spot always",
        },
        "kms-key": {"metavar": "KEY", "help": "key for results and uploads"},
    },
    "instances": {
        "instance-type": {"metavar": "TYPE", "required": True, "help": "e.g. ml.g5.12xlarge, which has 4 GPUs"},
        "instance-count": {"metavar": "N", "help": "default: 1"},
        "volume-size": {"metavar": "GB", "help": "disk of each instance (default: 30)"},
        "spot": {"action": "store_true", "help": "take spot instances, which cost less and may be taken away"},
        "max-run": {"metavar": "SECONDS", "help": "end training after this time (default: 86400, a day)"},
        "max-wait": {"metavar": "SECONDS", "help": "with --spot: waiting and training (default: twice --max-run)"},
        "image": {"metavar": "URI", "help": "training image (default: AWS's for TensorFlow 2.21)"},
    },
    "account and network": {
        "region": {"metavar": "REGION", "help": "default: as AWS's own settings have it"},
        "role": {"metavar": "ARN", "help": "ARN or name of the execution role (default: the SDK's config.yaml)"},
        "subnets": {"metavar": "ID", "nargs": "+", "help": "of a VPC, together with --security-group-ids"},
        "security-group-ids": {"metavar": "ID", "nargs": "+", "help": "of a VPC, together with --subnets"},
        "network-isolation": _switch("run without network; --model is needed then"),
        "encrypt-traffic": _switch("encrypt traffic between instances"),
        "environment": {"metavar": "K=V", "nargs": "+", "help": "variables of the job's environment"},
        "tags": {"metavar": "K=V", "nargs": "+", "help": "tags of the job"},
    },
    "this command": {
        "wait": {"action": "store_true", "help": "follow the log to the job's end; Ctrl-C leaves the job running"},
        "dry-run": {"action": "store_true", "help": "print the request, touch nothing, ask nothing of AWS"},
    },
}


def _count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"expected an integer of 1 or more; received {text!r}")
    return int(text)


def _submit(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    from tf_finetune.launch import submission

    return submission.run(flags, rest)


def _jobs(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    from tf_finetune.launch import aws, past

    rows = past.listing(aws.session(flags.region), flags.max)
    print(past.as_json(rows) if flags.json else past.table(rows))
    return 0
