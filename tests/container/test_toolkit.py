"""Training as SageMaker starts it, with files as its SDKs write them."""

from __future__ import annotations

import csv
import json
import py_compile
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tf_finetune
from tests import builders, several
from tests.container import toolkit

needs_toolkit = pytest.mark.skipif(
    not toolkit.IS_INSTALLED, reason=f"sagemaker-training is not installed: there is no {toolkit.TRAIN} of it"
)
SETTINGS = {
    "epochs": 3,
    "optimizer": "rmsprop",
    "learning_rate": 0.1,
    "batch_size": 8,
    "train_only_top_layer": True,
    "early_stopping": False,
    "augmentation_random_flip": "None",
    "pixel_range": "-1,1",
}
NOT_OURS = {
    "model_dir": "s3://bucket/flowers/model",
    "sagemaker_container_log_level": 20,
    "sagemaker_job_name": "flowers",
    "sagemaker_region": "eu-west-1",
    "sagemaker_distribution_instance_groups": ["homogeneousCluster"],
    "_tuning_objective_metric": "validation:accuracy",
}
MODEL = {
    "1/fingerprint.pb",
    "1/saved_model.pb",
    "1/variables/variables.data-00000-of-00001",
    "1/variables/variables.index",
    "class_label_to_prediction_index.json",
    "code/inference.py",
    "labels_info.json",
    "tf_finetune.json",
}
OUTPUT = {"data/label_errors.csv", "data/predictions.csv", "data/report.html", "data/report.json", "data/split.csv"}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return builders.save_mean_backbone(tmp_path_factory.mktemp("backbone") / "mean")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return builders.write_class_folders(tmp_path_factory.mktemp("photos") / "training")


@pytest.fixture(scope="module")
def framework_job(tmp_path_factory, backbone, photos):
    """A job of SDK 2's TensorFlow estimator: all channels, settings of SageMaker's own, code in a tarball."""
    place = tmp_path_factory.mktemp("framework")
    channels = {
        "training": photos,
        "validation": builders.write_class_folders(place / "validation", per_class=4, seed=1),
        "test": builders.write_class_folders(place / "test", per_class=3, seed=2),
        "code": toolkit.pack_code(place),
    }
    base = place / "ml"
    code = {
        "sagemaker_program": "finetune.py",
        "sagemaker_submit_directory": str(base / "input" / "data" / "code" / "sourcedir.tar.gz"),
    }
    values = {**SETTINGS, **NOT_OURS, **code, "backbone": str(backbone), "image_size": "", "class_weight": None}
    toolkit.prepare(base, channels, toolkit.as_framework_estimator(values))
    arn = "arn:aws:sagemaker:eu-west-1:123456789012:training-job/flowers"
    return base, toolkit.run_toolkit(base, TRAINING_JOB_NAME="flowers", TRAINING_JOB_ARN=arn)


@pytest.fixture(scope="module")
def estimator_job(tmp_path_factory, backbone, photos):
    """A job of SDK 2's generic Estimator: code in the image, no job's name, the backbone as a channel's tarball."""
    place = tmp_path_factory.mktemp("estimator")
    packed = place / "mean.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(backbone, "mean")
    values = toolkit.as_estimator(SETTINGS)
    base = toolkit.prepare(place / "ml", {"training": photos, "model": packed}, values)
    (base / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    return base, toolkit.run_toolkit(base, SAGEMAKER_PROGRAM="finetune.py")


@pytest.fixture(scope="module")
def model_trainer_job(tmp_path_factory, backbone, photos):
    """A job of SDK 3, which does without the toolkit: the backbone as a channel's folder, another working folder."""
    place = tmp_path_factory.mktemp("model_trainer")
    values = toolkit.as_model_trainer(SETTINGS)
    base = toolkit.prepare(place / "ml", {"training": photos, "model": backbone}, values)
    return base, toolkit.run_driver(base, cwd=place, TRAINING_JOB_NAME="flowers-20260101000000")


@pytest.fixture(scope="module")
def job_of_two_hosts(tmp_path_factory, backbone, photos):
    """The same job as the estimator's, by two toolkits, each of which takes itself for one of two hosts."""
    place = tmp_path_factory.mktemp("two")
    packed = place / "mean.tar.gz"
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(backbone, "mean")
    values, names = toolkit.as_estimator(SETTINGS), ("localhost", "127.0.0.2")
    bases = []
    for index, name in enumerate(names):
        channels = {"training": photos, "model": packed}
        bases.append(toolkit.prepare(place / f"ml-{index}", channels, values, names, name))
        (bases[-1] / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    (address,) = several.free_addresses(1)  # Where SageMaker's hosts have 8890, which here others may have.
    variables = {"SAGEMAKER_PROGRAM": "finetune.py", "TF_FINETUNE_PORT": address.rpartition(":")[2]}
    with ThreadPoolExecutor() as pool:
        return bases, list(pool.map(lambda base: toolkit.run_toolkit(base, **variables), bases))


def report_of(base: Path) -> dict:
    return json.loads((base / "output" / "data" / "report.json").read_text(encoding="utf-8"))


def failure_of(base: Path) -> str:
    return (base / "output" / "failure").read_text(encoding="utf-8")


@needs_toolkit
def test_a_job_of_the_toolkit_leaves_the_archive_the_report_and_nothing_else(framework_job):
    base, done = framework_job
    assert done.returncode == 0, done.stdout
    assert toolkit.files_below(base / "model") == MODEL
    assert toolkit.files_below(base / "output") == OUTPUT | {"success"}


@needs_toolkit
def test_every_epoch_is_logged_as_the_metric_definitions_read_it(framework_job):
    base, done = framework_job
    keys = ("loss", "accuracy", "val_loss", "val_accuracy")
    for definition, key in zip(tf_finetune.METRIC_DEFINITIONS, keys, strict=True):
        read = [float(value) for value in re.findall(definition["Regex"], done.stdout)]
        assert read == pytest.approx([epoch[key] for epoch in report_of(base)["history"]], abs=1e-6)
        assert len(read) == SETTINGS["epochs"]


@needs_toolkit
def test_validation_and_test_channels_are_scored_as_given(framework_job):
    base, _ = framework_job
    report = report_of(base)
    assert report["examples"] == {"training": 30, "validation": 12, "test": 9}
    assert report["metrics"]["validation"]["accuracy"] == report["metrics"]["test"]["accuracy"] == 1.0
    with (base / "output" / "data" / "predictions.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert all(row["label"] == row["predicted_label"] for row in rows)


@needs_toolkit
def test_settings_of_sagemaker_are_ignored_each_with_one_line(framework_job):
    _, done = framework_job
    for name in NOT_OURS:
        if name.startswith("sagemaker_"):  # The toolkit keeps these to itself.
            assert f"{name} is ignored" not in done.stdout
    assert done.stdout.count("model_dir is ignored: the model goes to SM_MODEL_DIR") == 1


@needs_toolkit
def test_the_report_names_the_training_job(framework_job):
    job = report_of(framework_job[0])["job"]
    assert job["name"] == "flowers"
    assert job["arn"].endswith(":training-job/flowers")


@needs_toolkit
def test_a_model_channel_may_hold_a_tarball_and_a_job_may_have_no_name(estimator_job):
    base, done = estimator_job
    assert done.returncode == 0, done.stdout
    assert toolkit.files_below(base / "model") == MODEL
    report = report_of(base)
    assert report["backbone"] == str(base / "input" / "data" / "model" / "mean.tar.gz")
    assert report["examples"]["validation"] > 0


def test_a_job_of_sdk_3_needs_no_toolkit_and_no_certain_working_folder(model_trainer_job):
    base, done = model_trainer_job
    assert done.returncode == 0, done.stdout
    assert toolkit.files_below(base / "model") == MODEL
    assert toolkit.files_below(base / "output") == OUTPUT
    assert report_of(base)["backbone"] == str(base / "input" / "data" / "model")


@pytest.mark.parametrize(
    "job",
    [
        pytest.param("framework_job", marks=needs_toolkit),
        pytest.param("estimator_job", marks=needs_toolkit),
        "model_trainer_job",
    ],
)
def test_hyperparameters_arrive_alike_in_each_encoding(request, job):
    report = report_of(request.getfixturevalue(job)[0])
    assert {name: report["hyperparameters"][name] for name in SETTINGS} == SETTINGS
    assert {report["hyperparameter_sources"][name] for name in SETTINGS} == {"user"}
    assert report["hyperparameter_sources"]["image_size"] == "default"


@needs_toolkit
def test_all_wrong_hyperparameters_are_in_the_failure_file_at_once(tmp_path, photos):
    values = {"epoch": 3, "batch_size": 0, "optimizer": "adamm", "dropout_rate": 7, "sagemaker_program": "finetune.py"}
    base = toolkit.prepare(tmp_path / "ml", {"training": photos}, toolkit.as_framework_estimator(values))
    (base / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    done = toolkit.run_toolkit(base)
    assert done.returncode == 1
    heading, problems = failure_of(base).removesuffix(".").split(": ", 1)
    assert heading == "4 hyperparameters are wrong"
    assert set(problems.split("; ")) >= {
        "epoch: no such hyperparameter (did you mean epochs?)",
        "batch_size: expected an integer of 1 or more",
        "dropout_rate: expected a number from 0 to 1",
        "optimizer: expected one of auto | adam | adamw | sgd | nesterov | rmsprop | adagrad | adadelta",
        "received 'adamm' (did you mean adam?)",
    }
    assert f"tf-finetune: {failure_of(base)}" in done.stdout
    assert toolkit.files_below(base / "model") == set()
    assert toolkit.files_below(base / "output") == {"failure"}


@needs_toolkit
def test_a_missing_training_channel_fails_even_where_no_output_folder_is(tmp_path, photos):
    base = toolkit.prepare(tmp_path / "ml", {"train": photos}, {"sagemaker_program": "finetune.py"})
    (base / "code" / "finetune.py").write_bytes(toolkit.ENTRY_SCRIPT.read_bytes())
    (base / "output" / "data").rmdir()
    (base / "output").rmdir()
    done = toolkit.run_toolkit(base)
    assert done.returncode == 1, done.stdout
    assert failure_of(base).startswith("There is no training channel; received")
    assert toolkit.files_below(base / "model") == set()


def test_what_a_shell_made_of_the_arguments_does_not_count(tmp_path, photos):
    trap = tmp_path / "trap"  # A user's mistake is answered before TensorFlow is imported.
    trap.mkdir()
    (trap / "tensorflow.py").write_text("raise RuntimeError('TensorFlow was imported')", encoding="utf-8")
    base = toolkit.prepare(tmp_path / "ml", {"training": photos}, {})
    values = {"backbone": "no such folder", "image_size": "", "pixel_range": "-1,1", "epochs": 3}
    done = toolkit.run_in_shell(base, values, PYTHONPATH=str(trap))
    assert done.returncode == 1
    assert failure_of(base).startswith("backbone no such folder is neither a folder, an archive, a URL nor an id")
    assert failure_of(base) in done.stdout


def test_a_job_that_fails_late_leaves_its_message_and_no_model(tmp_path, backbone):
    photos = builders.write_class_folders(tmp_path / "photos", random_colours=True)
    values = {"epochs": 1, "min_accuracy": 1.0, "backbone": str(backbone)}
    base = toolkit.prepare(tmp_path / "ml", {"training": photos}, toolkit.as_model_trainer(values))
    done = toolkit.run_driver(base, cwd=base)
    assert done.returncode == 1, done.stdout
    assert failure_of(base).startswith("Expected a validation accuracy of at least min_accuracy=1;")
    assert toolkit.files_below(base / "model") == set()
    assert toolkit.files_below(base / "output") == {"failure"}


def test_the_entry_script_says_how_to_get_the_package_where_it_is_missing(tmp_path):
    (tmp_path / "output").mkdir()
    # -S: without site-packages, where the package is.
    command = [sys.executable, "-S", str(toolkit.ENTRY_SCRIPT)]
    variables = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == failure_of(tmp_path)
    assert "requirements.txt" in failure_of(tmp_path)


def test_requirements_name_the_wheel_of_this_version():
    lines = (toolkit.EXAMPLES / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert f"./tf_finetune-{tf_finetune.__version__}-py3-none-any.whl" in lines


@pytest.mark.parametrize("launcher", ["launch_sdk2.py", "launch_sdk3.py"])
def test_launchers_compile_and_show_help_without_an_sdk(tmp_path, launcher):
    file = toolkit.EXAMPLES / launcher
    py_compile.compile(str(file), cfile=str(tmp_path / "compiled"), doraise=True)
    command = [sys.executable, "-S", str(file), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "--job-name" in done.stdout


@needs_toolkit
def test_two_hosts_of_resourceconfig_give_the_result_of_one_and_the_first_alone_writes_it(
    job_of_two_hosts, estimator_job
):
    bases, done = job_of_two_hosts
    assert [one.returncode for one in done] == [0, 0], [one.stdout for one in done]
    assert "2 hosts have met: localhost, 127.0.0.2" in done[0].stdout
    alone, _ = estimator_job
    for name in ("predictions.csv", "split.csv"):
        assert (bases[0] / "output/data" / name).read_bytes() == (alone / "output/data" / name).read_bytes()
    assert report_of(bases[0])["history"] == report_of(alone)["history"]
    assert toolkit.files_below(bases[0] / "model") == MODEL
    assert toolkit.files_below(bases[1] / "model") == set()
    assert toolkit.files_below(bases[1] / "output") == {"success"}
    assert "epoch 1" not in done[1].stdout  # SageMaker would count each of its metrics twice.
