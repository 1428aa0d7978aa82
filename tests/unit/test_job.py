"""What a job is asked to do: what is taken, what is refused before TensorFlow is imported, and what is left behind."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

import tf_finetune
from tests.builders import write_files
from tf_finetune import catalog, job
from tf_finetune.errors import MESSAGE_LIMIT, DataError, FinetuneError, HyperparameterError, UsageError
from tf_finetune.feature_cache import Place

CLASSES = {"roses/1.jpg": b"1", "tulips/2.jpg": b"2"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> Path:
    """A working folder of its own, which holds a training channel called photos."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path / "photos", CLASSES)
    return tmp_path


def plan(given=None, *, training="photos", output="out", name=None, sagemaker=None, replicas=None, **others) -> job.Job:
    return job.plan({"training": training, **others}, given or {}, output, name, sagemaker, replicas)


def message_of(given=None, error=FinetuneError, **asked) -> str:
    """Returns the message of a plan that fails, having held that it is one message and that nothing is left behind."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(error) as caught:
        plan(given, **asked)
    assert sorted(Path().rglob("*")) == before
    message = str(caught.value)
    assert len(message) <= MESSAGE_LIMIT
    assert "\n" not in message
    return message


def test_features_are_kept_where_the_user_says_or_in_the_cache_folder(elsewhere, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(elsewhere / "cache"))
    monkeypatch.setenv("TF_FINETUNE_CACHE_GIB", "2")
    assert plan().feature_cache == Place(elsewhere / "cache" / "features", 2 * 2**30)
    for given, kept in (("mine", Place(elsewhere / "mine", 2 * 2**30)), ("none", Place(None)), (Path("m"), None)):
        planned = job.plan({"training": "photos"}, {}, "out", cache_dir=given)
        assert planned.feature_cache == (kept or Place(elsewhere / "m", 2 * 2**30))
    monkeypatch.delenv("TF_FINETUNE_CACHE")
    planned = job.plan({"training": "photos"}, {}, "out", feature_folder=elsewhere / "checkpoints")
    assert planned.feature_cache == Place(elsewhere / "checkpoints", None)
    assert not any((elsewhere / name).exists() for name in ("cache", "mine", "m", "checkpoints", "out"))


def test_a_wrong_place_or_size_of_the_cache_is_told_with_all_other_problems(monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_CACHE_GIB", "much")
    with pytest.raises(UsageError) as caught:
        job.plan({"training": "nowhere"}, {"epochs": 0}, "out", cache_dir="s3://bucket/features")
    for part in ("training channel nowhere", "epochs: expected", "TF_FINETUNE_CACHE_GIB: expected a number of GiB"):
        assert part in str(caught.value)


def test_a_plan_says_what_is_done_and_writes_nothing(elsewhere):
    write_files(elsewhere / "check", {"roses/3.jpg": b"3"})
    before = sorted(elsewhere.rglob("*"))
    planned = plan({"epochs": "3", "eps": 0.1}, name="flowers", validation="check", replicas=2)
    assert (planned.training, planned.validation, planned.test) == (Path("photos"), Path("check"), None)
    assert (planned.settings.epochs, planned.settings.epsilon, planned.settings.batch_size) == (3, 0.1, 32)
    assert {name for name, source in planned.sources.items() if source == "user"} == {"epochs", "epsilon"}
    assert (planned.handle, planned.card.id) == ("efficientnet-lite0", "efficientnet-lite0")
    assert (planned.name, planned.replicas, planned.arn) == ("flowers", 2, None)
    place = elsewhere / "out" / "flowers" / "output"
    assert planned.destination == job.Destination(place / "model.tar.gz", None, place / "data")
    assert sorted(elsewhere.rglob("*")) == before


def test_results_go_to_results_by_default(elsewhere):
    assert plan(output=None).destination.archive == elsewhere / "results/photos/output/model.tar.gz"


def test_on_sagemaker_results_go_where_it_says_unless_told_otherwise(elsewhere):
    places = (elsewhere / "ml/model", elsewhere / "ml/output/data")
    assert plan(output=None, sagemaker=places).destination == job.Destination(None, *places)
    assert plan(output="out", sagemaker=places).destination.archive == elsewhere / "out/photos/output/model.tar.gz"
    assert not (elsewhere / "ml").exists()
    (elsewhere / "ml").write_bytes(b"")
    assert "model cannot be written" in message_of(output=None, sagemaker=places)


@pytest.mark.parametrize(
    ("folder", "name"),
    [("my photos", "my-photos"), ("a_b.c", "a-b-c"), ("été 2", "t-2"), ("日本", "model"), ("x" * 80, "x" * 63)],
)
def test_a_job_is_named_after_its_training_folder(elsewhere, folder, name):
    write_files(elsewhere / folder, CLASSES)
    assert plan(training=folder).name == name
    assert plan(training=elsewhere / folder / ".." / folder).name == name


@pytest.mark.parametrize("name", ["", ".hidden", "-x", "a/b", "../x", "a b", "x" * 64, "é", "a\n"])
def test_a_name_that_is_no_folder_name_is_refused(name):
    assert "--model-name: expected up to 63 letters" in message_of(name=name, error=UsageError)


@pytest.mark.parametrize("replicas", [0, -1])
def test_less_than_one_device_is_refused(replicas):
    message = message_of(replicas=replicas, error=UsageError)
    assert f"--replicas: expected an integer of 1 or more; received {replicas}" in message


# Backbones and the model channel


@pytest.mark.parametrize(
    ("handle", "card"),
    [
        ("EfficientNet_Lite0", "efficientnet-lite0"),
        ("tensorflow-ic-imagenet-mobilenet-v3-large-100-224", None),
        ("https://tfhub.dev/google/x/1", None),
        ("bodies/one", None),
        ("bodies/one.tar.gz", None),
    ],
)
def test_a_backbone_is_an_id_a_folder_an_archive_or_a_url(elsewhere, handle, card):
    write_files(elsewhere / "bodies", {"one/saved_model.pb": b"", "one.tar.gz": b""})
    ids = [found.id for found in catalog.cards()]
    handle = next((found for found in ids if found.startswith(handle)), handle)
    planned = plan({"backbone": handle})
    assert planned.handle == handle
    assert (planned.card.id if planned.card else None) == (card or (handle if handle in ids else None))


@pytest.mark.parametrize(
    ("handle", "hint"),
    [
        ("eficientnet_lite0", "Did you mean efficientnet-lite0"),
        ("mobilenet_v3_large_100", "Did you mean tensorflow-ic-imagenet-mobilenet-v3-large-100-224"),
        ("./nowhere", "neither a folder, an archive, a URL nor an id of `tf-finetune backbones`"),
        ("x" * 300, "neither a folder"),
        ("a\0b", "neither a folder"),
    ],
)
def test_a_backbone_that_names_nothing_is_refused_with_a_suggestion(handle, hint):
    message = message_of({"backbone": handle})
    shown = handle if handle.isprintable() else repr(handle)[1:-1]
    assert message.startswith(f"backbone {shown[:50]}")
    assert hint in message


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"saved_model.pb": b"", "variables/x": b""}, ""),
        ({"1/saved_model.pb": b""}, ""),
        ({"model.tar.gz": b"", "README": b""}, "model.tar.gz"),
        ({"x.tgz": b""}, "x.tgz"),
    ],
    ids=str,
)
def test_a_model_channel_holds_the_backbone(elsewhere, files, found):
    write_files(elsewhere / "body", files)
    planned = plan(model="body")
    assert (Path(planned.handle), planned.card) == (Path("body", found), None)


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({"x/": b""}, "should be a SavedModel's folder, or hold one .tar.gz of it or a model.tar.gz; received x."),
        ({"a.tar.gz": b"", "b.tar.gz": b""}, "received a.tar.gz, b.tar.gz."),
        (None, "received nothing"),
    ],
    ids=str,
)
def test_a_model_channel_without_a_backbone_is_refused(elsewhere, files, part):
    if files:
        write_files(elsewhere / "body", files)
    message = message_of(model="body")
    assert message.startswith("model channel body ")
    assert part in message


def test_a_backbone_counts_before_a_model_channel_which_is_told(elsewhere, caplog):
    write_files(elsewhere / "body", {"saved_model.pb": b""})
    assert plan({"backbone": "efficientnet-lite0"}, model="body").handle == "efficientnet-lite0"
    assert "the model channel body is not used: backbone=efficientnet-lite0 is given" in caplog.text


# Channels


@pytest.mark.parametrize(
    ("channels", "files", "parts"),
    [
        ({"training": None}, {}, ["There is no training channel; received no channels", "--training FOLDER"]),
        ({"training": "", "train": "photos", "test": "photos"}, {}, ["no training channel; received train, test."]),
        ({"training": "nowhere"}, {}, ["training channel nowhere does not exist"]),
        ({"training": "x" * 300}, {}, ["x" * 300]),
        ({"training": "photos/roses/1.jpg"}, {}, ["1.jpg is a file"]),
        ({"training": "photos/roses"}, {}, ["photos/roses has no class folders", "1 file, no folders"]),
        ({"training": "one"}, {"one/a/1.jpg": b""}, ["one has one class folder only: a"]),
        ({"validation": "nowhere"}, {}, ["validation channel nowhere does not exist"]),
        ({"test": "photos/roses"}, {}, ["test channel photos/roses has no class folders"]),
        ({"validation": "v"}, {"v/dasies/1.jpg": b""}, ["validation channel v", "lacks: dasies", "roses, tulips"]),
        (
            {"validation": "v", "test": "t"},
            {"v/dasies/1.jpg": b"", "t/lilies/1.jpg": b""},
            ["(1) validation channel v", "dasies", "(2) test channel t", "lilies"],
        ),
        ({"training": "nowhere", "test": "gone"}, {}, ["training channel nowhere", "test channel gone"]),
    ],
    ids=str,
)
def test_channels_are_looked_at_before_anything_is_started(elsewhere, channels, files, parts):
    write_files(elsewhere, files)
    message = message_of(**channels)
    for part in parts:
        assert part in message


def test_a_validation_channel_may_lack_a_class_and_other_channels_are_no_concern(elsewhere):
    write_files(elsewhere, {"v/roses/1.jpg": b"", "code/x.py": b""})
    assert plan(validation="v", code="code").validation == Path("v")


# The output place


@pytest.mark.parametrize(
    ("output", "parts"),
    [
        ("file/out", ["The output place", "file: Not a directory. Give another --output."]),
        ("/proc/out", ["The output place /proc/out/photos/output cannot be written: /proc: "]),
        ("/dev/null", ["cannot be written: /dev/null: Not a directory"]),
        ("x" * 300, ["cannot be written", "File name too long"]),
        ("dangling/out", ["cannot be written"]),
        ("s3://B/prefix", ["--output: s3://B/prefix: 'B' is not the name of a bucket"]),
        ("https://host/x", ["--output https://host/x: expected a folder, or s3://BUCKET/PREFIX."]),
        ("photos", ["--output photos: results in", "inside the channel photos and become its data"]),
        ("photos/roses/deep", ["--output photos/roses/deep: "]),
        ("other/../photos/out", ["inside the channel photos"]),
        ("link", ["--output link: ", "inside the channel photos"]),
        (".", ["--output .: results would replace", "which holds the channel photos/output/more"]),
    ],
)
def test_an_output_place_that_cannot_be_written_or_would_harm_the_data_is_refused(elsewhere, output, parts):
    write_files(elsewhere, {"file": b"", "photos/output/more/a/1.jpg": b"", "photos/output/more/b/2.jpg": b""})
    Path("link").symlink_to("photos")
    Path("dangling").symlink_to("nowhere")
    training = "photos/output/more" if output == "." else "photos"
    message = message_of(training=training, output=output, name="photos", error=UsageError)
    for part in parts:
        assert part in message


def test_results_inside_a_training_folder_by_default_are_refused(elsewhere, monkeypatch):
    monkeypatch.chdir(elsewhere / "photos")
    assert "--output results: results in" in message_of(training=".", output=None)


@pytest.mark.parametrize("output", ["photos/../out", "photos-of-mine", "a/b/c/d", "."])
def test_an_output_place_beside_the_data_is_taken(elsewhere, output):
    before = sorted(elsewhere.rglob("*"))
    assert plan(output=output, name="flowers").destination.archive == elsewhere / output / "flowers/output/model.tar.gz"
    assert sorted(elsewhere.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission_is_refused(elsewhere):
    (elsewhere / "locked").mkdir(mode=0o500)
    assert "Permission denied" in message_of(output="locked")


# All at once


def test_all_that_is_wrong_comes_in_one_message(elsewhere):
    write_files(elsewhere, {"file": b"", "v/dasies/1.jpg": b""})
    given = {"epochs": "0", "learnig_rate": "1", "backbone": "./nowhere"}
    message = message_of(given, validation="v", test="gone", output="file/x", name="a/b", replicas=0, error=UsageError)
    parts = [
        "2 hyperparameters are wrong: epochs: expected an integer of 1 or more; received '0'; ",
        "learnig_rate: no such hyperparameter (did you mean learning_rate?)",
        "lacks: dasies",
        "test channel gone does not exist",
        "backbone ./nowhere is neither",
        "--model-name: ",
        "--replicas: ",
        "Not a directory",
        *(f"({number}) " for number in range(1, 8)),
    ]
    for part in parts:
        assert part in message


def test_of_too_many_words_the_end_of_the_longest_is_cut_and_no_problem_is_lost():
    given = {f"unknown_{number}": "x" * 500 for number in range(60)}
    message = message_of(given, training="nowhere", output="/proc/out", replicas=0)
    for part in ("training channel nowhere", "--replicas", "/proc/out", "60 hyperparameters are wrong"):
        assert part in message


@pytest.mark.parametrize(
    ("asked", "error"), [({"given": {"epochs": 0}}, HyperparameterError), ({"training": "photos/roses"}, DataError)]
)
def test_a_single_problem_keeps_its_kind(asked, error):
    message_of(error=error, **asked)


def test_the_python_function_refuses_what_the_command_refuses(elsewhere):
    before = sorted(elsewhere.rglob("*"))
    for training, settings in [("photos", {"epochs": 0}), ("nowhere", {"epochs": 1, "learning-rate": "0.1"})]:
        with pytest.raises(FinetuneError, match=r"epochs: expected an integer|nowhere does not exist"):
            tf_finetune.train(training, "out", **settings)
    assert sorted(elsewhere.rglob("*")) == before


# Settings without effect


@pytest.mark.parametrize(
    ("given", "channels", "reason"),
    [
        ({}, {}, None),
        ({"momentum": 0.5}, {}, "optimizer is auto, and it is used with sgd or nesterov or rmsprop"),
        (
            {"momentum": 0.5, "optimizer": "adam"},
            {},
            "optimizer is adam, and it is used with sgd or nesterov or rmsprop",
        ),
        ({"epochs": 3, "optimizer": "adam"}, {}, None),
        ({"epochs": 3, "train_only_top_layer": False}, {}, None),
        ({"momentum": 0.5, "optimizer": "sgd"}, {}, None),
        ({"validation_split_ratio": 0.1}, {}, None),
        ({"validation_split_ratio": 0.1}, {"validation": "photos"}, "there is a validation channel"),
        ({"reinitialize_top_layer": "True"}, {}, "there is no earlier result to take a head from"),
    ],
    ids=str,
)
def test_settings_without_effect_are_logged_as_such(caplog, given, channels, reason):
    lines = [f"{next(iter(given))} has no effect: {reason}"] if reason else []
    assert job.warn_of_settings_without_effect(plan(given, **channels)) == lines
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == lines


def test_an_output_folder_that_holds_something_else_is_refused_and_an_earlier_result_is_not(elsewhere):
    write_files(elsewhere, {"out/photos/output/diary.txt": b""})
    assert "holds something else than an earlier result" in message_of(output="out")
    write_files(elsewhere, {"out/photos/output/model.tar.gz": b""})
    assert plan(output="out").destination.archive == elsewhere / "out/photos/output/model.tar.gz"


def test_a_catalog_id_means_the_card_even_beside_a_folder_of_that_name(elsewhere):
    write_files(elsewhere, {"efficientnet-lite0/saved_model.pb": b""})
    assert plan({"backbone": "efficientnet-lite0"}).card is not None
    assert plan({"backbone": "./efficientnet-lite0"}).card is None
