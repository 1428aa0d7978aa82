"""The command line: flags to records, errors to exit codes.

Exit code 0 is success, 1 something the user can mend (one message on standard error, and in SageMaker's failure file
during a job), 2 our own fault (a traceback), 3 that `check` has found an error or a warning.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tf_finetune import __version__, environment, interruption
from tf_finetune.errors import FinetuneError, UsageError, listed, shortened

log = logging.getLogger("tf_finetune")

CHANNELS = ("training", "validation", "test", "model")
BARE = "\0"  # A flag without a value; it cannot come from a shell.


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raises the message instead of exiting with code 2."""
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    in_job = arguments[:1] == ["train"]
    interruption.install()
    try:
        flags, rest = _parser().parse_known_args(_tied(environment.without_toolkit_arguments(arguments)))
        _start_log()
        if rest and flags.command != "train":
            raise UsageError(f"unrecognized arguments: {' '.join(rest)}. See `tf-finetune {flags.command} --help`.")
        return int(flags.run(flags, rest) or 0)
    except FinetuneError as error:
        return _failed(str(error), 1, in_job)
    except KeyboardInterrupt:
        return _failed("Interrupted.", 1, in_job)
    except BrokenPipeError:  # The reader of our output has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        traceback.print_exc()
        last = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(f"Internal error, not your fault: {last}. Please report it with the traceback.", 2, in_job)


def run() -> NoReturn:
    """Runs one command as the whole process."""
    code = main()
    if "tensorflow" in sys.modules:  # Which takes a second or two to be taken down, for nothing.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _failed(message: str, code: int, in_job: bool) -> int:
    message = shortened(message.encode("utf-8", "backslashreplace").decode())
    print(f"tf-finetune: {message}", file=sys.stderr)
    if in_job:
        try:
            place = environment.failure_file()
            if place is not None:
                place.write_text(message, encoding="utf-8")
        except OSError as error:  # A folder /opt/ml of someone else's, as on a notebook server.
            log.info("The message is on standard error only: %s", error)
    return code


def _tied(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with values such as -1,1 tied to their flags: argparse would take them for flags."""
    words: list[str] = []
    for word in arguments:
        if words and re.match(r"-[.\d]", word) and re.fullmatch(r"--[\w-]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def _parser() -> Parser:
    parser = Parser(
        prog="tf-finetune", description="Fine-tunes pretrained TensorFlow models on your own photos or texts."
    )
    parser.add_argument("--version", action="version", version=f"tf-finetune {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    _add_train(commands)

    def command(name: str, run: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    demo = command("demo", _demo, "run the whole job on photos or texts from a PyPI wheel")
    demo.add_argument("--task", choices=["image", "text"], default="image", help="what to classify (default: image)")
    demo.add_argument("--output", metavar="LOCATION", default=None, help="where results go (default: results)")
    predict = command("predict", _predict, "answer photos or texts by an archive, one JSON object a line")
    predict.add_argument("archive", metavar="ARCHIVE", help="model.tar.gz, or the folder that it was unpacked to")
    predict.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="a photo or a folder of photos; a text, a file of lines, or - for standard input",
    )
    evaluate = command("evaluate", _evaluate, "print the figures of an archive on labelled photos or texts, as JSON")
    evaluate.add_argument("archive", metavar="ARCHIVE", help="model.tar.gz, or the folder that it was unpacked to")
    evaluate.add_argument("channel", metavar="CHANNEL", help="folder of class folders, or with data.csv")
    check = command("check", _check, "tell what is wrong with the data, before any training")
    check.add_argument("training", metavar="CHANNEL", help="folder of class folders of photos, or with data.csv")
    for name in ("validation", "test"):
        check.add_argument(f"--{name}", metavar="CHANNEL", help="likewise; also compared with the first")
    check.add_argument("--fix", metavar="quarantine=FOLDER", help="move photos that cannot be used to FOLDER")
    check.add_argument("--max-pixels", "--max_pixels", metavar="VALUE", help="as in train")
    check.add_argument("--group-by", "--group_by", metavar="VALUE", help="as in train")
    check.add_argument("--cache-dir", "--cache_dir", metavar="PLACE", help="where features are kept, or none")
    check.add_argument("--json", action="store_true", help="print JSON")
    for asked in (predict, evaluate):
        asked.add_argument("--trust-backbone", "--trust_backbone", action="store_true", help="as in train")
    backbones = command("backbones", _backbones, "list the backbones that are known by name, or show one")
    backbones.add_argument("id", metavar="ID", nargs="?", help="a backbone's id")
    backbones.add_argument("--json", action="store_true", help="print JSON")
    cache = command("cache", _cache, "show the features that are kept between runs, or remove them")
    cache.add_argument("--clear", action="store_true", help="remove them")
    cache.add_argument("--cache-dir", "--cache_dir", metavar="PLACE", help="where they are (default: the cache folder)")
    cache.add_argument("--json", action="store_true", help="print JSON")
    table = command("hyperparameters", _hyperparameters, "print the table of hyperparameters")
    table.add_argument("--format", choices=["text", "markdown", "json"], default="text", help="default: text")
    return parser


def _add_train(commands: Any) -> None:
    from tf_finetune import hyperparameters

    text = "train a classifier on class folders or data.csv, and write a proven model.tar.gz and a report"
    train = commands.add_parser("train", help=text, description=text, allow_abbrev=False)
    train.set_defaults(run=_train)
    places = train.add_argument_group("places")
    meanings = {
        "training": "folder of class folders of photos, or with data.csv (required; on SageMaker the channel)",
        "validation": "like training; without it a part of training is kept for validation",
        "test": "like training; scored once, at the end",
        "model": "a pretrained SavedModel: folder or .tar.gz",
    }
    for channel, meaning in meanings.items():
        places.add_argument(f"--{channel}", metavar="CHANNEL", help=meaning)
    places.add_argument("--output", metavar="LOCATION", help="results go to LOCATION/NAME/output (default: results)")
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


def _train(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    place = environment.read()
    given = _hyperparameters_given(flags, rest, place)
    for name, reason in place.ignored.items():
        log.info("%s is ignored: %s", name, reason)
    typed = {channel: getattr(flags, channel) for channel in CHANNELS if getattr(flags, channel)}
    channels: dict[str, Any] = {**place.channels, **typed}
    from tf_finetune import job

    planned = job.plan(
        channels,
        given,
        output=flags.output,
        name=flags.model_name or place.job_name,
        sagemaker_output=(place.model_dir, place.output_data_dir) if place.on_sagemaker else None,
        replicas=_whole_number("--replicas", flags.replicas),
        arn=place.job_arn,
        cache_dir=flags.cache_dir,
        feature_folder=environment.feature_folder(place),
        split=flags.split,
        checkpoints=flags.checkpoints or environment.checkpoint_folder(place),
    )
    _tell_result(_run(planned))
    return 0


def _run(planned: Any) -> dict[str, Any]:
    log.info("backbone %s on %s", planned.handle, planned.training)
    from tf_finetune import devices, pipeline  # noqa: F401  (devices first: it imports TensorFlow without its noise)
    from tf_finetune.progress import bars

    with bars() as progress:
        return pipeline.run(planned, progress)


def _hyperparameters_given(
    flags: argparse.Namespace, rest: Sequence[str], place: environment.Environment
) -> dict[str, Any]:
    """Returns SageMaker's hyperparameters, overridden by the command line's; unknown flags are among them."""
    typed = {name[3:]: values[-1] for name, values in vars(flags).items() if name.startswith("hp:") and values}
    typed.update(_pairs(rest))
    from tf_finetune import hyperparameters

    canonical = hyperparameters.canonical
    # SageMaker's toolkit drops an empty value and keeps its flag; the empty value itself is in its JSON.
    empty = {canonical(name) for name, value in place.hyperparameters.items() if value in ("", None)}
    overridden = {canonical(name) for name, value in typed.items() if value != BARE or canonical(name) not in empty}
    given = {name: value for name, value in place.hyperparameters.items() if canonical(name) not in overridden}
    for name, value in typed.items():
        reason = environment.reason_to_ignore(name)
        if reason:
            log.info("--%s is ignored: %s", name, reason)
            continue
        if canonical(name) in overridden:
            bare = "True" if hyperparameters.is_switch(name) else "nothing"
            given[name] = bare if value == BARE else value
    return given


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Returns flags that the parser does not know, with their values.

    Raises:
        UsageError: A word belongs to no flag.
    """
    pairs: dict[str, str] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            pairs[name] = value or BARE
        elif name is not None and pairs[name] == BARE:
            pairs[name] = word
        else:
            raise UsageError(f"unrecognized argument: {word}. Channels and settings are given as --NAME VALUE.")
    return pairs


def _whole_number(flag: str, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"{flag}: expected an integer of 1 or more; received {value!r}.") from None


def _tell_result(record: dict[str, Any]) -> None:
    figures = record["metrics"]["validation"]
    if figures:
        print(f"validation accuracy: {figures['accuracy']:.4f} ({record['examples']['validation']:,} examples)")
    print(f"archive: {record['job']['model_artifact']}")
    print(f"report: {record['job']['report']}")


def _demo(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    from tf_finetune import demo

    return demo.run(flags.task, flags.output, _run)


def _predict(flags: argparse.Namespace, rest: Sequence[str]) -> int:
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
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    return 0


def _evaluate(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    _check_existence(flags.archive, flags.channel)
    from tf_finetune import examples

    examples.check(_task_of(flags.archive), Path(flags.channel), "evaluation")
    from tf_finetune import predictor

    _answer_in_utf_8()
    model = predictor.load(flags.archive, flags.trust_backbone)
    print(json.dumps(predictor.evaluate(model, flags.channel), indent=2, ensure_ascii=False))
    return 0


def _check(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    channels = {name: getattr(flags, name) for name in ("training", "validation", "test")}
    _check_existence(*filter(None, channels.values()))
    from tf_finetune import checking, feature_cache, storage

    given = {"max_pixels": flags.max_pixels, "group_by": flags.group_by}
    kept = feature_cache.place(flags.cache_dir, environment.feature_folder(environment.read()), storage.cache_folder())
    text, code = checking.run(channels, given, kept, flags.json, flags.fix)
    _answer_in_utf_8()
    print(text)
    return code


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
    if missing:
        raise UsageError(f"There is no such file or folder: {listed(missing)}. Check the path.")


def _backbones(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    from tf_finetune import tables

    print(tables.backbones_table(flags.id, flags.json))
    return 0


def _cache(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    from tf_finetune import feature_cache, storage, tables

    kept = feature_cache.place(flags.cache_dir, environment.feature_folder(environment.read()), storage.cache_folder())
    if flags.clear and kept.folder is None:
        print("features are not kept: there is nothing to remove")
    elif flags.clear:
        print(f"removed {feature_cache.clear(kept):,} bytes of features from {kept.folder}")
    else:
        print(tables.cache_table(kept, flags.json))
    return 0


def _hyperparameters(flags: argparse.Namespace, rest: Sequence[str]) -> int:
    from tf_finetune import tables

    print(tables.hyperparameters_table(flags.format))
    return 0


class _CurrentStandardError:
    """Standard error as it is at each write: progress bars put themselves in its place to stay below the lines."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _start_log() -> None:
    """Sends the package's log to standard error, a line each, at once."""
    handler = logging.StreamHandler(_CurrentStandardError())
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


if __name__ == "__main__":
    run()
