"""What each command does: flags in, an exit code out. Slow modules are imported where they are needed."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tf_finetune import environment
from tf_finetune.cli import arguments, failure
from tf_finetune.errors import UsageError, listed

log = logging.getLogger(__name__)

CHANNELS = ("training", "validation", "test", "model")


def train(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Trains, proves and writes a model."""
    place = environment.read()
    given = arguments.hyperparameters_given(flags, rest, place)
    for name, reason in place.ignored.items():
        log.info("%s is ignored: %s", name, reason)
    typed = {channel: getattr(flags, channel) for channel in CHANNELS if getattr(flags, channel)}
    channels: dict[str, Any] = {**place.channels, **typed}
    from tf_finetune import hosts, job, s3
    from tf_finetune.progress import bars

    in_s3 = any(map(s3.is_s3, [*channels.values(), flags.output]))
    with bars() as progress, hosts.declining(place.cluster):
        planned = job.plan(
            channels,
            given,
            output=flags.output,
            name=flags.model_name or place.job_name,
            replicas=arguments.whole_number("--replicas", flags.replicas),
            cache_dir=flags.cache_dir,
            split=flags.split,
            checkpoints=flags.checkpoints or environment.checkpoint_folder(place),
            output_kms_key=flags.output_kms_key,
            region=s3.client.configured_region() if place.on_sagemaker and in_s3 else None,
            progress=progress,
            meanwhile=_import_tensorflow,
            **environment.of_job(place),
        )
    if place.cluster and place.cluster.index:
        names, mine = place.cluster.names, place.cluster.index
        log.info(
            "this is %s, host %d of %d; the log of %s tells of the job", names[mine], mine + 1, len(names), names[0]
        )
        logging.getLogger("tf_finetune").setLevel(logging.WARNING)
        _run(planned)
        return 0
    _tell_result(_run(planned))
    return 0


def _run(planned: Any) -> dict[str, Any]:
    from tf_finetune import storage

    log.info("backbone %s on %s", storage.redacted(planned.handle), planned.places["training"])
    _import_tensorflow()
    from tf_finetune import pipeline
    from tf_finetune.progress import bars

    with bars() as progress:
        return pipeline.run(planned, progress, _end)


def _end(message: str) -> NoReturn:
    """Ends the process from any of its threads: the main one may be waiting for a host that is lost."""
    failure.tell(message, in_job=True)
    os._exit(1)


def _import_tensorflow() -> None:
    from tf_finetune import devices, pipeline  # noqa: F401  (devices first: it imports TensorFlow without its noise)


def _tell_result(record: dict[str, Any]) -> None:
    figures = record["metrics"]["validation"]
    if figures:
        print(f"validation accuracy: {figures['accuracy']:.4f} ({record['examples']['validation']:,} examples)")
    print(f"archive: {record['job']['model_artifact']}")
    print(f"report: {record['job']['report']}")


def demo(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs the whole job on data of a PyPI wheel."""
    from tf_finetune import demo

    return demo.run(flags.task, flags.output, _run)


def predict(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints an answer for each input, a JSON object a line."""
    _bring(flags, "archive")
    _check_existence(flags.archive)
    from tf_finetune import examples

    if _task_of(flags.archive) == "image":
        _check_existence(*flags.inputs)
        for folder in filter(os.path.isdir, flags.inputs):
            examples.folders.check_any(Path(folder))
    from tf_finetune import predictor

    model = predictor.load(flags.archive, flags.trust_backbone)
    _answer_in_utf_8()
    for batch in predictor.batches(model.task, flags.inputs):
        for answer in model.predict(batch):
            text = json.dumps(answer, ensure_ascii=False)
            print(text.encode("utf-8", "backslashreplace").decode(), flush=True)  # \\udc.. for bytes of no character.
    return 0


def evaluate(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the figures of an archive on labelled examples."""
    _bring(flags, "archive", "channel")
    _check_existence(flags.archive, flags.channel)
    from tf_finetune import examples

    examples.check(_task_of(flags.archive), Path(flags.channel), "evaluation")
    from tf_finetune import predictor

    _answer_in_utf_8()
    model = predictor.load(flags.archive, flags.trust_backbone)
    print(json.dumps(predictor.evaluate(model, flags.channel), indent=2, ensure_ascii=False))
    return 0


def serve(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Serves an archive over HTTP until it is told to end."""
    from tf_finetune import serving
    from tf_finetune.serving import records

    given = {**records.of_environment(), **_limits_of(flags)}
    serving.check_installed()
    _bring(flags, "archive")
    _check_existence(flags.archive)
    _task_of(flags.archive)
    from tf_finetune import predictor

    model = predictor.load(flags.archive, flags.trust_backbone)
    serving.run(model, records.Settings(**given), lambda address: log.info("serving %s at %s", flags.archive, address))
    return 0


def export(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Writes an archive's model in another format."""
    from tf_finetune import targets

    most = targets.MAX_LOSS if flags.max_loss is None else arguments.fraction("--max-loss", flags.max_loss)
    for name in ("max_loss", "validation") if not flags.int8 else ():
        if getattr(flags, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')} is for --int8. Add --int8, or leave it out.")
    targets.check_format(flags.format, flags.int8, flags.calibration)
    _bring(flags, "archive", "calibration", "validation")
    archive, *channels = flags.archive, flags.calibration, flags.validation
    _check_existence(*filter(None, [archive, *channels]))
    output = flags.output
    if output is None and archive in flags.copies:  # Of S3, in the cache folder: no place for results.
        output = targets.default_output(Path(), flags.format, flags.int8)
    given = dict(zip((targets.CALIBRATION, targets.VALIDATION), channels, strict=True))
    record = targets.export(
        archive, flags.format, output, int8=flags.int8, max_loss=most, trust_backbone=flags.trust_backbone, **given
    )
    print(targets.summary(record))
    return 0


def _limits_of(flags: argparse.Namespace) -> dict[str, Any]:
    numbers = {
        name: arguments.whole_number(f"--{name.replace('_', '-')}", getattr(flags, name), least)
        for name, least in (("port", 0), ("max_batch", 1))
    }
    found: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if flags.max_delay is not None:
        found["max_delay"] = arguments.milliseconds("--max-delay", flags.max_delay)
    return {**found, "host": flags.host}


def check(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints what is wrong with the data."""
    names = ("training", "validation", "test")
    _bring(flags, *names)
    channels = {name: getattr(flags, name) for name in names}
    _check_existence(*filter(None, channels.values()))
    from tf_finetune import checking, feature_cache, storage

    given = {name: getattr(flags, name) for name in ("max_pixels", "group_by", "backbone", "max_sequence_length")}
    kept = feature_cache.place(flags.cache_dir, environment.feature_folder(environment.read()), storage.cache_folder())
    text, code = checking.run(channels, given, kept, flags.json, flags.fix)
    _answer_in_utf_8()
    print(text)
    return code


def _bring(flags: argparse.Namespace, *names: str) -> None:
    """Puts copies of this machine in the place of flags that name something in S3; `flags.copies` tells of which."""
    from tf_finetune import examples, s3, storage

    for name in names:
        given = getattr(flags, name)
        if s3.is_s3(given):
            copy = s3.local(given, storage.cache_folder(), examples.COMPANIONS)
            setattr(flags, name, copy)
            flags.copies[copy] = given


def _answer_in_utf_8() -> None:
    """Makes standard output UTF-8, as JSON is, whatever the locale; file names come out as the bytes that they are."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")


def _task_of(place: str) -> str:
    """Returns the task of an archive, before the seconds that TensorFlow takes to be imported."""
    from tf_finetune import archive

    return archive.task_of(place)


def _check_existence(*places: str) -> None:
    """Raises UsageError where there is nothing, before the seconds that TensorFlow takes to be imported."""
    missing = [place for place in places if not os.path.exists(place)]
    remote = [place for place in missing if "://" in place]
    if remote:
        raise UsageError(f"Expected a file or folder on this machine; received {listed(remote)}. Fetch it first.")
    if missing:
        raise UsageError(f"There is no such file or folder: {listed(missing)}. Check the path.")


def backbones(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the catalog, or a card of it."""
    from tf_finetune import tables

    print(tables.backbones_table(flags.id, flags.json))
    return 0


def cache(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints what is kept of features and of what lies in S3, or removes it."""
    from tf_finetune import feature_cache, s3, storage, tables

    held = storage.cache_folder()
    kept = feature_cache.place(flags.cache_dir, environment.feature_folder(environment.read()), held)
    if not flags.clear:
        print(tables.cache_table(kept, flags.json, [] if flags.cache_dir else s3.copies.listing(held)))
        return 0
    if kept.folder is None:
        print("features are not kept: there is nothing to remove")
    else:
        print(f"removed {feature_cache.clear(kept):,} bytes of features from {kept.folder}")
    if not flags.cache_dir:
        print(f"removed {s3.copies.clear(held):,} bytes of copies of S3 from {held / 's3'}")
    return 0


def buckets(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the buckets that the credentials show."""
    from tf_finetune import s3

    region = s3.client.configured_region(flags.region)
    print(s3.table(s3.listing(region), region, flags.json))
    return 0


def hyperparameters(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    """Prints the table."""
    from tf_finetune import tables

    print(tables.hyperparameters_table(flags.format))
    return 0
