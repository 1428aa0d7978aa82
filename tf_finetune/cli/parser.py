"""The commands and their flags."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tf_finetune import __version__
from tf_finetune.cli import commands
from tf_finetune.cli.arguments import BARE, Parser

Command = Callable[[str, Callable[..., Any], str], argparse.ArgumentParser]


def make() -> Parser:
    """Returns the parser of the whole command line; each command sets `run` to its function."""
    parser = Parser(
        prog="tf-finetune", description="Fine-tunes pretrained TensorFlow models on your own photos or texts."
    )
    parser.add_argument("--version", action="version", version=f"tf-finetune {__version__}")
    added_to = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_train(added_to)

    def command(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        added = added_to.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    _add_answering(command)
    _add_check(command)
    _add_tables(command)
    from tf_finetune import launch

    launch.add_commands(added_to)
    return parser


def _add_answering(command: Command) -> None:
    demo = command("demo", commands.demo, "run the whole job on photos or texts from a PyPI wheel")
    demo.add_argument("--task", choices=["image", "text"], default="image", help="what to classify (default: image)")
    demo.add_argument("--output", metavar="LOCATION", default=None, help="where results go (default: results)")
    predict = command("predict", commands.predict, "answer photos or texts by an archive, one JSON object a line")
    predict.add_argument("archive", metavar="ARCHIVE", help="model.tar.gz, or the folder that it was unpacked to")
    predict.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="a photo or a folder of photos; a text, a file of lines, or - for standard input",
    )
    evaluate = command("evaluate", commands.evaluate, "print an archive's figures on labelled photos or texts, as JSON")
    evaluate.add_argument("archive", metavar="ARCHIVE", help="model.tar.gz, or the folder that it was unpacked to")
    evaluate.add_argument("channel", metavar="CHANNEL", help="folder of class folders, or with data.csv")
    serve = command("serve", commands.serve, "answer over HTTP as SageMaker's endpoints do, with a page to try it")
    serve.add_argument("archive", metavar="ARCHIVE", help="model.tar.gz, or the folder that it was unpacked to")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    serve.add_argument("--port", metavar="N", help="default: SAGEMAKER_BIND_TO_PORT, else 8080; 0 is a free one")
    serve.add_argument("--max-batch", "--max_batch", metavar="N", help="examples answered at once (default: 32)")
    serve.add_argument("--max-delay", "--max_delay", metavar="MS", help="to wait for others, if any come (default: 5)")
    export = command("export", commands.export, "write a model of photos for phones and browsers: LiteRT or ONNX")
    export.add_argument("archive", metavar="ARCHIVE", help="model.tar.gz, or the folder that it was unpacked to")
    export.add_argument("--format", metavar="FORMAT", required=True, help="litert or onnx")
    export.add_argument("--output", metavar="FILE", help="default: model.tflite, or model.onnx, beside the archive")
    export.add_argument("--int8", action="store_true", help="compute in 8 bits (litert)")
    export.add_argument("--calibration", metavar="CHANNEL", help="photos to prove the file on; for --int8 the training")
    export.add_argument("--validation", metavar="CHANNEL", help="photos to measure --int8 on (default: some of those)")
    export.add_argument("--max-loss", "--max_loss", metavar="SHARE", help="of accuracy, by --int8 (default: 0.02)")
    for asked in (predict, evaluate, serve, export):
        asked.add_argument("--trust-backbone", "--trust_backbone", action="store_true", help="as in train")


def _add_check(command: Command) -> None:
    check = command("check", commands.check, "tell what is wrong with the data, before any training")
    check.add_argument("training", metavar="CHANNEL", help="folder of class folders of photos, or with data.csv")
    for name in ("validation", "test"):
        check.add_argument(f"--{name}", metavar="CHANNEL", help="likewise; also compared with the first")
    check.add_argument("--fix", metavar="quarantine=FOLDER", help="move photos that cannot be used to FOLDER")
    check.add_argument("--max-pixels", "--max_pixels", metavar="VALUE", help="as in train")
    check.add_argument("--group-by", "--group_by", metavar="VALUE", help="as in train")
    check.add_argument("--backbone", metavar="VALUE", help="as in train: whether texts are too long depends on it")
    check.add_argument("--max-sequence-length", "--max_sequence_length", metavar="VALUE", help="as in train")
    check.add_argument("--cache-dir", "--cache_dir", metavar="PLACE", help="where features are kept, or none")
    check.add_argument("--json", action="store_true", help="print JSON")


def _add_tables(command: Command) -> None:
    backbones = command("backbones", commands.backbones, "list the backbones that are known by name, or show one")
    backbones.add_argument("id", metavar="ID", nargs="?", help="a backbone's id")
    backbones.add_argument("--json", action="store_true", help="print JSON")
    cache = command(
        "cache", commands.cache, "show the features and the copies of S3 that are kept between runs, or remove them"
    )
    cache.add_argument("--clear", action="store_true", help="remove them")
    cache.add_argument("--cache-dir", "--cache_dir", metavar="PLACE", help="where they are (default: the cache folder)")
    cache.add_argument("--json", action="store_true", help="print JSON")
    buckets = command(
        "buckets", commands.buckets, "list the buckets of S3 that the credentials show, and their Regions"
    )
    buckets.add_argument("--region", metavar="REGION", help="the job's; buckets outside of it are marked")
    buckets.add_argument("--json", action="store_true", help="print JSON")
    table = command("hyperparameters", commands.hyperparameters, "print the table of hyperparameters")
    table.add_argument("--format", choices=["text", "markdown", "json"], default="text", help="default: text")


def _add_train(added_to: Any) -> None:
    from tf_finetune import hyperparameters

    text = "train a classifier on class folders or data.csv, and write a proven model.tar.gz and a report"
    train = added_to.add_parser("train", help=text, description=text, allow_abbrev=False)
    train.set_defaults(run=commands.train)
    places = train.add_argument_group("places")
    meanings = {
        "training": "folder of class folders of photos, or with data.csv, here or in S3 (required; on SageMaker the "
        "channel); default for the user guide's data set",
        "validation": "like training; without it a part of training is kept for validation",
        "test": "like training; scored once, at the end",
        "model": "a pretrained SavedModel or an earlier model.tar.gz: folder or .tar.gz",
    }
    for channel, meaning in meanings.items():
        places.add_argument(f"--{channel}", metavar="CHANNEL", help=meaning)
    places.add_argument(
        "--output", metavar="LOCATION", help="results go to LOCATION/NAME/output, here or s3://... (default: results)"
    )
    places.add_argument("--output-kms-key", "--output_kms_key", metavar="KEY", help="for results in S3 to be encrypted")
    places.add_argument("--model-name", "--model_name", metavar="NAME", help="default: the training folder's name")
    places.add_argument(
        "--cache-dir", "--cache_dir", metavar="PLACE", help="folder where features are kept between runs, or none"
    )
    places.add_argument("--checkpoints", metavar="FOLDER", help="where a training goes on that was interrupted")
    places.add_argument("--split", metavar="FILE", help="split.csv of an earlier job: its examples stay")
    places.add_argument("--replicas", metavar="N", help="devices to train on (default: all GPUs, or one CPU)")
    rows = train.add_argument_group("hyperparameters (hyphens or underscores)")
    for row in hyperparameters.table():
        names = dict.fromkeys([f"--{row['name'].replace('_', '-')}", f"--{row['name']}"])
        default = f"default: {row['default'] or 'empty'}" + (
            f", texts: {row['text_default']}" * bool(row["text_default"])
        )
        help_text = f"{row['meaning']} ({row['accepts']}; {default})".replace("%", "%%")
        rows.add_argument(
            *names, dest=f"hp:{row['name']}", metavar="VALUE", nargs="?", const=BARE, action="append", help=help_text
        )
