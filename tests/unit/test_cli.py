"""The command line as a shell, a container and SageMaker's toolkit call it, up to where TensorFlow is imported."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.builders import write_files
from tf_finetune import catalog, cli, progress, tables
from tf_finetune.cli import commands
from tf_finetune.errors import MESSAGE_LIMIT, ExportError, shortened

REPOSITORY = Path(cli.__file__).parents[2]
HEAVY = {"tensorflow", "keras", "tensorflow_hub", "numpy", "pandas", "boto3", "sklearn", "matplotlib", "jinja2", "PIL"}
SECONDS = 1.0  # Of processor time, since the machine may be busy with something else.
DATA = {"good/a/1.jpg": b"1", "good/b/2.jpg": b"2", "empty/": b"", "one/a/1.jpg": b"1", "file": b""}

ANSWERS = [
    ("--help", "predict"),
    ("train --help", "--validation-split-ratio"),
    ("backbones", "efficientnet-lite0 "),
    ("hyperparameters", "regularizers_l2"),
    ("cache --cache-dir empty", "empty: 0 B of at most 10.0 GiB"),
    ("cache --cache-dir nowhere --json", '"spaces": []'),
    ("cache --clear --cache-dir nowhere", "removed 0 bytes"),
]
# A wrong command, and what its message says.
WRONG = [
    ("", ["COMMAND"]),
    ("train", ["There is no training channel", "--training FOLDER"]),
    ("train --training empty", ["empty has no class folders", "one folder per class"]),
    ("train --training one", ["one class folder only: a", "at least 2"]),
    ("train --training good --learnig-rate 0.1", ["learnig-rate: no such hyperparameter", "mean learning_rate?"]),
    (
        "train --training good --epochs 0 --optimizer adm --dropout-rate=2",
        [
            "3 hyperparameters are wrong",
            "epochs: expected",
            "mean adam?",
            "dropout_rate: expected a number from 0 to 1",
        ],
    ),
    ("train --training good --backbone ./nowhere", ["backbone ./nowhere is neither a folder"]),
    ("train --training good --output file/out", ["The output place", "Give another --output"]),
    ("predict nowhere.tar.gz gone.jpg", ["no such file or folder: nowhere.tar.gz"]),
    ("export good --format tflite", ["--format: expected litert or onnx; received 'tflite'"]),
    ("export good --format onnx --int8", ["--int8 is for --format litert only"]),
    ("cache --cache-dir file", ["--cache-dir: expected a folder on this machine, or none; received file"]),
    ("train --training good --cache-dir s3://b/c", ["--cache-dir: expected a folder", "received s3://b/c"]),
    ("backbones efficientnet-lite-0", ["There is no backbone efficientnet-lite-0.", "Did you mean"]),
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, SimpleNamespace]:
    """What each command did, in a process of its own: code, out, err, imported packages, seconds of processor time."""
    folder = write_files(tmp_path_factory.mktemp("commands"), DATA)
    before = sorted(folder.rglob("*"))
    taken = ("SM_", "SAGEMAKER_", "TRAINING_JOB_", "TF_FINETUNE_", "PYTHON", "COLUMNS")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    clean |= {"PYTHONPATH": str(REPOSITORY), "SAGEMAKER_BASE_DIR": str(folder / "ml"), "COLUMNS": "200"}

    def run(command: str) -> SimpleNamespace:
        words = [sys.executable, "-X", "importtime", "-m", "tf_finetune.cli", *command.split()]
        outs = [tmp_path_factory.mktemp("out") / name for name in ("out", "err")]
        with outs[0].open("w") as out, outs[1].open("w") as err:
            process = subprocess.Popen(words, cwd=folder, env=clean, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        lines = outs[1].read_text().splitlines()
        imports = [line for line in lines if line.startswith("import time:")]
        return SimpleNamespace(
            code=process.returncode,
            out=outs[0].read_text(),
            err="\n".join(line for line in lines if line not in imports),
            imported={line.rpartition("|")[2].strip().partition(".")[0] for line in imports},
            seconds=usage.ru_utime + usage.ru_stime,
        )

    commands = [command for command, _ in ANSWERS + WRONG]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        results = dict(zip(commands, pool.map(run, commands), strict=True))
    assert sorted(folder.rglob("*")) == before  # Neither answers nor wrong commands leave anything behind.
    return results


@pytest.mark.parametrize(("command", "part"), ANSWERS, ids=str)
def test_a_question_is_answered_on_standard_output_without_tensorflow(ran, command, part):
    done = ran[command]
    assert (done.code, done.err) == (0, "")
    assert part in done.out
    assert not done.imported & HEAVY
    assert "argparse" in done.imported


@pytest.mark.parametrize(("command", "parts"), WRONG, ids=str)
def test_a_wrong_command_ends_with_one_message_and_without_tensorflow(ran, command, parts):
    done = ran[command]
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("tf-finetune: ")
    assert "\n" not in done.err.strip()
    assert "Traceback" not in done.err
    assert len(done.err) < MESSAGE_LIMIT
    for part in parts:
        assert part in done.err
    assert not done.imported & HEAVY
    assert done.seconds < SECONDS


def test_backbones_are_listed_with_what_can_be_trained_and_shown_one_by_one(capsys):
    assert cli.main(["backbones"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "TASK", "SIZE", "PIXELS", "FEATURES", "FINE-TUNABLE", "LICENCE"]
    assert [row.split()[0] for row in rows] == [card.id for card in catalog.cards()]
    column = head.index("FINE-TUNABLE")
    assert [row[column:].split()[0] for row in rows] == [
        "yes" if card.fine_tunable else "no" for card in catalog.cards()
    ]
    assert cli.main(["backbones", "EfficientNet_Lite0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["feature_size"] == 1280
    assert cli.main(["backbones", "--json"]) == 0
    assert [card["id"] for card in json.loads(capsys.readouterr().out)] == [card.id for card in catalog.cards()]
    for card in catalog.cards():
        text = tables.backbones_table(card.id, as_json=False)
        assert card.handle in text
        assert ("fine-tunable: yes" in text) == card.fine_tunable
        assert json.loads(tables.backbones_table(card.id, as_json=True))["handle"] == card.handle


def test_bars_are_drawn_on_a_terminal_only(monkeypatch, capsys):
    with progress.bars() as advance:
        assert advance is None
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        with progress.bars() as advance:
            advance("training", 3, 7)
            advance("training", 4, 7)
    drawn = b""
    with contextlib.suppress(OSError):  # The end of what a terminal whose other side is closed has to give.
        while part := os.read(ours, 4096):
            drawn += part
    os.close(ours)
    drawn = drawn.decode()
    assert "training" in drawn
    assert "4/7" in drawn


# In this process, with only the training itself taken out.


@pytest.fixture
def main(tmp_path, monkeypatch, capsys):
    """A function of the words after `train` that returns the job which was about to run, exit code and messages."""
    write_files(tmp_path, DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAGEMAKER_BASE_DIR", str(tmp_path / "ml"))
    jobs = []
    monkeypatch.setattr(commands, "_run", jobs.append)
    monkeypatch.setattr(commands, "_tell_result", lambda record: None)

    def run(*words: str) -> SimpleNamespace:
        jobs.clear()
        code = cli.main(["train", *words])
        job = jobs[0] if jobs else None
        users = [name for name, source in job.sources.items() if source == "user"] if job else []
        given = {name: getattr(job.settings, name) for name in users}
        return SimpleNamespace(code=code, job=job, given=given, err=capsys.readouterr().err)

    return run


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("", {}),
        ("--learning-rate 0.1", {"learning_rate": 0.1}),
        ("--learning_rate 0.1", {"learning_rate": 0.1}),
        ("--learning-rate=0.1", {"learning_rate": 0.1}),
        ("--learning_rate=1e-1", {"learning_rate": 0.1}),
        ("--Learning-Rate 0.1", {"learning_rate": 0.1}),
        ("--learning-rate 0.1 --learning_rate 0.2", {"learning_rate": 0.2}),
        ("--eps 0.1", {"epsilon": 0.1}),
        ("--train-only-on-top False", {"train_only_top_layer": False}),
        ("--train_only_on_top_layer=false", {"train_only_top_layer": False}),
        ("--augmentation", {"augmentation": True}),
        ("--augmentation --epochs 2", {"augmentation": True, "epochs": 2}),
        ("--train-only-on-top --epochs 2", {"train_only_top_layer": True, "epochs": 2}),
        ("--augmentation false", {"augmentation": False}),
        ("--augmentation=", {}),
        ("--augmentation_random_rotation -0.2", {"augmentation_random_rotation": -0.2}),
        ("--augmentation-random-rotation -1e-1", {"augmentation_random_rotation": -0.1}),
        ("--augmentation-random-zoom -.5", {"augmentation_random_zoom": -0.5}),
        ("--pixel-range -1,1", {"pixel_range": "-1,1"}),
        ("--pixel_range=-1,1 --epochs 2", {"pixel_range": "-1,1", "epochs": 2}),
        ("--sagemaker_program x.py --epochs 2", {"epochs": 2}),
        ("--model_dir s3://bucket/job/model", {}),
        ("--model-dir=s3://bucket/job/model --rho .5", {"rho": 0.5}),
    ],
)
def test_hyperparameters_are_flags_in_every_spelling(main, words, given):
    done = main("--training", "good", *words.split())
    assert (done.code, done.given) == (0, given), done.err


def test_an_empty_word_means_not_given(main):
    assert main("--training", "good", "--image-size", "", "--epochs", "3").given == {"epochs": 3}


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--learning-rate", ["learning_rate: expected a number from 0 to 1; received 'nothing'"]),
        ("--optimizer --epochs 2", ["optimizer: expected one of auto"]),
        ("--eps 0.1 --epsilon 0.2", ["given twice", "eps", "epsilon"]),
        ("--eps 0.1 --epsilon=0.2", ["given twice"]),
        (
            "--learnig-rate 0.1 --unknown",
            ["2 hyperparameters", "mean learning_rate?", "unknown: no such hyperparameter"],
        ),
        ("--unknown=3", ["unknown: no such hyperparameter"]),
        ("--augmentation-random-rotation -1.5", ["augmentation_random_rotation: expected a number from -1 to 1"]),
        ("--learn 0.1", ["learn: no such hyperparameter"]),
        ("--epochs 3 stray", ["unrecognized argument: stray"]),
        ("--epochs 3 4", ["unrecognized argument: 4"]),
        ("stray --unknown 3", ["unrecognized argument: stray"]),
        ("--replicas 0", ["--replicas: expected an integer of 1 or more; received 0"]),
        ("--replicas two", ["--replicas: expected an integer of 1 or more; received 'two'"]),
        ("--test", ["argument --test: expected one argument. See `tf-finetune train --help`"]),
        ("--model-name a/b", ["--model-name: expected"]),
    ],
)
def test_wrong_flags_are_told(main, words, parts):
    done = main("--training", "good", *words.split())
    assert (done.code, done.job) == (1, None)
    for part in parts:
        assert part in done.err


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("trian --training good", ["invalid choice: 'trian'", "See `tf-finetune --help`"]),
        ("evaluate gone.tar.gz nowhere", ["no such file or folder: gone.tar.gz, nowhere."]),
        ("hyperparameters --format html", ["invalid choice: 'html'", "See `tf-finetune hyperparameters --help`"]),
        ("backbones --js", ["unrecognized arguments: --js", "See `tf-finetune backbones --help`"]),
        ("predict archive", ["the following arguments are required: INPUT", "See `tf-finetune predict --help`"]),
        ("demo --task sound", ["invalid choice: 'sound'"]),
        ("--unknown", ["the following arguments are required: COMMAND"]),
    ],
)
def test_wrong_words_of_other_commands_are_told(capsys, words, parts):
    assert cli.main(words.split()) == 1
    message = capsys.readouterr().err
    for part in parts:
        assert part in message


def test_places_and_devices_are_flags(main, tmp_path):
    write_files(tmp_path, {"body/saved_model.pb": b""})
    words = "--training good --validation good --test=good --model body --output out --model_name x --replicas 2"
    job = main(*words.split(), "--cache-dir", "kept").job
    assert job.feature_cache.folder == tmp_path / "kept"
    assert (job.training, job.validation, job.test, job.handle) == (Path("good"), Path("good"), Path("good"), "body")
    assert (job.destination.archive, job.replicas) == (tmp_path / "out/x/output/model.tar.gz", 2)


# SageMaker


@pytest.fixture
def sagemaker(main, tmp_path, monkeypatch):
    """Runs `train` as the toolkit does: hyperparameters in SM_HPS, and on the command line after the entry script."""

    def run(hyperparameters: object, words: str = "", as_files: bool = False, **variables: str) -> SimpleNamespace:
        base = tmp_path / "ml"
        text = hyperparameters if isinstance(hyperparameters, str) else json.dumps(hyperparameters)
        write_files(base, {"input/config/hyperparameters.json": text.encode(), "output/": b"", "model/": b""})
        write_files(base / "input/data/training", {"a/1.jpg": b"1", "b/2.jpg": b"2"})
        places = {"SM_CHANNEL_TRAINING": str(base / "input/data/training"), "SM_MODEL_DIR": str(base / "model")}
        for name, value in ({} if as_files else {"SM_HPS": text, "SM_NUM_GPUS": "0", **places, **variables}).items():
            monkeypatch.setenv(name, value)
        done = main(*words.split())
        file = base / "output" / "failure"
        done.failure = file.read_text(encoding="utf-8") if file.exists() else None
        return done

    return run


@pytest.mark.parametrize("as_files", [False, True], ids=["toolkit", "bare container"])
@pytest.mark.parametrize(
    ("sent", "words", "given"),
    [
        (
            {"epochs": "3", "optimizer": '"sgd"', "augmentation": '"True"'},
            "",
            {"epochs": 3, "optimizer": "sgd", "augmentation": True},
        ),
        ({"epochs": 3, "early_stopping": True, "eps": None}, "", {"epochs": 3, "early_stopping": True}),
        ({"train-only-on-top": "False", "batch_size": "64.0"}, "", {"train_only_top_layer": False, "batch_size": 64}),
        ({"model_dir": "s3://b/model", "sagemaker_program": "t.py"}, "--model_dir s3://b/model", {}),
        ({"_tuning_objective_metric": "x", "rho": "0.5"}, "--_tuning_objective_metric x", {"rho": 0.5}),
        ({"epochs": "3"}, "--epochs 3 --model_dir s3://b/model", {"epochs": 3}),
        ({"epochs": "3", "rho": "0.5"}, "--epochs 4", {"epochs": 4, "rho": 0.5}),
        ({"eps": "0.1"}, "--epsilon 0.2", {"epsilon": 0.2}),
        ({"train-only-top-layer": "True"}, "--train_only_on_top False", {"train_only_top_layer": False}),
        ({"optimizer": "", "rho": None}, "--optimizer --rho --epochs 3", {"epochs": 3}),  # As a shell leaves it.
        ({"early_stopping": "False"}, "--augmentation", {"early_stopping": False, "augmentation": True}),
        ({"augmentation": "False"}, "--augmentation", {"augmentation": True}),
        ({"pixel_range": "-1,1"}, "--pixel_range -1,1", {"pixel_range": "-1,1"}),
    ],
    ids=str,
)
def test_sagemakers_hyperparameters_are_read_from_json_and_the_command_line_overrides(
    sagemaker, as_files, sent, words, given
):
    done = sagemaker(sent, words, as_files)
    assert (done.code, done.given, done.failure) == (0, given, None), done.err
    assert done.job.training.parts[-4:] == ("ml", "input", "data", "training")
    assert done.job.destination.archive is None
    assert done.job.destination.model_dir.parts[-2:] == ("ml", "model")
    for name in ("model_dir", "sagemaker_program", "_tuning_objective_metric"):
        assert (f"{name} is ignored: " in done.err) == (name in sent or name in words)


def test_words_that_a_shell_cut_do_not_hide_what_the_json_says(sagemaker, tmp_path):
    write_files(tmp_path, {"my body/saved_model.pb": b""})
    sent = {"backbone": str(tmp_path / "my body"), "class_weight": "", "epochs": 3}
    written = ["--backbone", sent["backbone"], "--class_weight", "", "--epochs", "3"]
    done = sagemaker(sent, f"{' '.join(written)} --rho 0.5", SM_USER_ARGS=json.dumps(written))
    assert (done.code, done.job.handle) == (0, sent["backbone"]), done.err
    assert done.given == {"backbone": sent["backbone"], "epochs": 3, "rho": 0.5}


def test_on_sagemaker_features_are_kept_beside_the_checkpoints_of_a_job_that_has_them(sagemaker, tmp_path, monkeypatch):
    monkeypatch.delenv("TF_FINETUNE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert sagemaker({}).job.feature_cache.folder == tmp_path / "home/tf_finetune/features"
    (tmp_path / "ml/checkpoints").mkdir()
    kept = sagemaker({}, SM_CURRENT_HOST="algo-1").job.feature_cache
    assert (kept.folder, kept.limit) == (tmp_path / "ml/checkpoints/features-algo-1", None)
    assert sagemaker({}, "--cache-dir mine", SM_CURRENT_HOST="algo-1").job.feature_cache.folder == tmp_path / "mine"
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(tmp_path / "volume"))
    assert sagemaker({}).job.feature_cache.folder == tmp_path / "volume/features"


def test_flags_move_what_sagemaker_says(sagemaker, tmp_path):
    done = sagemaker(
        {}, "--training good --output out --model-name mine", TRAINING_JOB_NAME="theirs", TRAINING_JOB_ARN="arn:x"
    )
    assert (done.job.training, done.job.arn) == (Path("good"), "arn:x")
    assert done.job.destination.archive == tmp_path / "out/mine/output/model.tar.gz"
    assert sagemaker({}, TRAINING_JOB_NAME="theirs").job.name == "theirs"


@pytest.mark.parametrize("as_files", [False, True], ids=["toolkit", "bare container"])
@pytest.mark.parametrize(
    ("sent", "words", "parts"),
    [
        (
            {"learnig_rate": "0.1", "epochs": "0"},
            "--epochs 0",
            ["2 hyperparameters", "mean learning_rate?", "epochs: expected"],
        ),
        ('{"epochs": ', "", ["is not valid JSON"]),
        ("[]", "", ["should hold a JSON object"]),
        ({"backbone": "x" * 3000, "optimizer": "y" * 3000}, "", ["optimizer: expected", "backbone xxx"]),
        ({}, "--training nowhere", ["training channel nowhere does not exist"]),
        ({}, "stray", ["unrecognized argument: stray"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_users_mistake_is_sagemakers_failure_reason(sagemaker, as_files, sent, words, parts):
    done = sagemaker(sent, words, as_files)
    assert (done.code, done.job) == (1, None)
    assert done.err.splitlines()[-1] == f"tf-finetune: {done.failure}"
    assert len(done.failure) <= MESSAGE_LIMIT
    for part in parts:
        assert part in done.failure


def test_a_missing_training_channel_names_those_that_are_there(sagemaker, monkeypatch):
    monkeypatch.setenv("SM_CHANNEL_TRAIN", "somewhere")
    assert "There is no training channel; received train." in sagemaker({}, SM_CHANNEL_TRAINING="").failure


@pytest.mark.parametrize(
    ("error", "code", "parts"),
    [
        (ExportError("validation accuracy 0.1 is below min_accuracy=0.9."), 1, ["below min_accuracy=0.9."]),
        (RuntimeError("first\nsecond"), 2, ["Internal error, not your fault: RuntimeError: first. Please report it"]),
        (KeyboardInterrupt(), 1, ["Interrupted."]),
        (ExportError("x" * 3000), 1, ["xxx ..."]),
        (ExportError("caf\udce9 \u00e9"), 1, ["caf\\udce9 \u00e9"]),
    ],
    ids=str,
)
def test_errors_become_exit_codes(sagemaker, monkeypatch, error, code, parts):
    def fail(job):
        raise error

    monkeypatch.setattr(commands, "_run", fail)
    done = sagemaker({})
    assert done.code == code
    assert ("Traceback" in done.err) == (code == 2)
    for part in parts:
        assert part in done.failure
    assert len(done.failure) <= MESSAGE_LIMIT


def test_a_failure_file_that_cannot_be_written_changes_nothing_else(sagemaker, tmp_path):
    write_files(tmp_path, {"ml/output/failure/": b""})
    assert cli.main(["train", "stray"]) == 1
    assert (tmp_path / "ml/output/failure").is_dir()


def test_only_training_writes_a_failure_file(sagemaker, tmp_path):
    assert sagemaker({}).failure is None
    for words in (["backbones", "nowhere"], ["predict", "nowhere", "x.jpg"], ["trian"]):
        assert cli.main(words) == 1
    assert not (tmp_path / "ml/output/failure").exists()


def test_off_sagemaker_no_failure_file_is_written(main, tmp_path):
    (tmp_path / "ml").mkdir()
    assert main().code == 1
    assert not list((tmp_path / "ml").iterdir())


def test_a_cut_message_is_under_the_limit():
    assert len(shortened("x" * 3000)) < MESSAGE_LIMIT
