"""Where things are, from tables of what SageMaker, its toolkit and a bare container leave behind."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.builders import write_files
from tf_finetune import environment
from tf_finetune.errors import UsageError


def read(base: Path, **variables: str) -> environment.Environment:
    return environment.read({"SAGEMAKER_BASE_DIR": str(base), **variables})


def write_config(base: Path, **files: object) -> Path:
    """Writes input/config/NAME.json files; bytes are written as they are."""
    contents = {name: text if isinstance(text, bytes) else json.dumps(text).encode() for name, text in files.items()}
    return write_files(base, {f"input/config/{name}.json": content for name, content in contents.items()})


def test_without_sagemaker_there_is_nothing_but_its_usual_places():
    found = environment.read({"SM_NUM_GPUS": ""})
    assert found == environment.Environment(
        on_sagemaker=False,
        channels={},
        model_dir=Path("/opt/ml/model"),
        output_data_dir=Path("/opt/ml/output/data"),
        checkpoint_dir=Path("/opt/ml/checkpoints"),
        hyperparameters={},
        ignored={},
        hosts=("localhost",),
        current_host="localhost",
        cluster=None,
        num_gpus=None,
        job_name=None,
        job_arn=None,
    )


@pytest.mark.parametrize(
    ("variables", "field", "expected"),
    [
        ({"SM_HPS": "{}"}, "on_sagemaker", True),
        ({"SM_MODEL_DIR": "/m"}, "on_sagemaker", True),
        ({"SM_TRAINING_ENV": "{}"}, "on_sagemaker", True),
        ({"SM_NUM_GPUS": "8"}, "on_sagemaker", False),
        ({"SM_MODEL_DIR": "/m"}, "model_dir", Path("/m")),
        ({"SM_OUTPUT_DATA_DIR": "/o/data"}, "output_data_dir", Path("/o/data")),
        ({"SM_CHANNEL_TRAINING": "/a b"}, "channels", {"training": Path("/a b")}),
        ({"SM_CHANNEL_MY-OWN": "/a", "SM_CHANNEL_TEST": ""}, "channels", {"my-own": Path("/a")}),
        ({"SM_CHANNELS": '["training"]'}, "channels", {}),
        ({"SM_HPS": '{"a": 3, "b": true, "c": null}'}, "hyperparameters", {"a": 3, "b": True, "c": None}),
        ({"SM_HP_EPOCHS": "3"}, "hyperparameters", {}),
        ({"SM_HPS": ""}, "hyperparameters", {}),
        ({"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2"}, "hosts", ("algo-1", "algo-2")),
        ({"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2"}, "current_host", "algo-2"),
        ({"SM_HOSTS": '["algo-1", "algo-2"]'}, "current_host", "algo-1"),
        ({"SM_HOSTS": "[]"}, "current_host", "localhost"),
        ({"SM_RESOURCE_CONFIG": '{"current_host": "b", "hosts": ["a", "b"]}'}, "hosts", ("a", "b")),
        ({"SM_RESOURCE_CONFIG": '{"current_host": "b", "hosts": ["a", "b"]}'}, "current_host", "b"),
        ({"SM_NUM_GPUS": "0"}, "num_gpus", 0),
        ({"SM_NUM_GPUS": "4"}, "num_gpus", 4),
        ({"SM_NUM_GPUS": "unknown"}, "num_gpus", None),
        ({"TRAINING_JOB_NAME": "flowers-1"}, "job_name", "flowers-1"),
        ({"SAGEMAKER_JOB_NAME": "flowers-2"}, "job_name", "flowers-2"),
        ({"TRAINING_JOB_NAME": "", "SAGEMAKER_JOB_NAME": ""}, "job_name", None),
        ({"TRAINING_JOB_ARN": "arn:aws:sagemaker:x:1:a/b"}, "job_arn", "arn:aws:sagemaker:x:1:a/b"),
    ],
    ids=str,
)
def test_each_variable_is_read(tmp_path, variables, field, expected):
    assert getattr(read(tmp_path, **variables), field) == expected


@pytest.mark.parametrize(
    "name",
    [
        "sagemaker_program",
        "sagemaker_submit_directory",
        "sagemaker_container_log_level",
        "sagemaker_job_name",
        "sagemaker_region",
        "sagemaker_multi_worker_mirrored_strategy_enabled",
        "sagemaker-something-new",
        "model_dir",
        "model-dir",
        "_tuning_objective_metric",
        "default_user_module_name",
    ],
)
def test_settings_that_are_not_ours_are_set_aside_with_a_reason(tmp_path, name):
    found = read(tmp_path, SM_HPS=json.dumps({name: "x", "epochs": "3"}))
    assert found.hyperparameters == {"epochs": "3"}
    assert list(found.ignored) == [name]
    assert len(found.ignored[name]) > 10
    assert environment.reason_to_ignore(name) == found.ignored[name]


@pytest.mark.parametrize("name", ["epochs", "model", "model_dirs", "sagemaker", "tuning_objective_metric"])
def test_other_settings_are_ours_to_judge(name):
    assert environment.reason_to_ignore(name) is None


def test_a_container_without_the_toolkit_is_read_from_its_files(tmp_path):
    write_config(
        tmp_path,
        hyperparameters={"epochs": '"3"', "model_dir": '"s3://bucket/x"', "optimizer": "sgd"},
        resourceconfig={"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]},
    )
    write_files(tmp_path / "input/data", {"training/a/1.jpg": b"", "test/a/1.jpg": b"", "manifest.json": b""})
    found = read(tmp_path)
    assert found.on_sagemaker
    assert found.channels == {name: tmp_path / "input/data" / name for name in ("training", "test")}
    assert found.hyperparameters == {"epochs": '"3"', "optimizer": "sgd"}
    assert list(found.ignored) == ["model_dir"]
    assert (found.hosts, found.current_host) == (("algo-1", "algo-2"), "algo-2")
    assert (found.model_dir, found.output_data_dir) == (tmp_path / "model", tmp_path / "output/data")
    assert found.checkpoint_dir == tmp_path / "checkpoints"


def test_the_toolkits_variables_count_before_the_files(tmp_path):
    write_config(tmp_path, hyperparameters={"epochs": "3"}, resourceconfig={"current_host": "x", "hosts": ["x"]})
    write_files(tmp_path / "input/data", {"training/": b""})
    found = read(tmp_path, SM_HPS='{"epochs": 4}', SM_CHANNEL_TEST="/t", SM_HOSTS='["a", "b"]', SM_CURRENT_HOST="b")
    assert (found.hyperparameters, found.channels) == ({"epochs": 4}, {"test": Path("/t")})
    assert (found.hosts, found.current_host) == (("a", "b"), "b")


@pytest.mark.parametrize(
    ("variables", "files", "parts"),
    [
        ({"SM_HPS": "{epochs: 3}"}, {}, ["SM_HPS is not valid JSON"]),
        ({"SM_HPS": '["epochs"]'}, {}, ["SM_HPS should hold a JSON object", "['epochs']"]),
        ({"SM_HPS": '"epochs"'}, {}, ["SM_HPS should hold a JSON object"]),
        ({"SM_HOSTS": '{"a": 1}'}, {}, ["SM_HOSTS should hold a JSON array"]),
        ({"SM_HOSTS": "algo-1"}, {}, ["SM_HOSTS is not valid JSON"]),
        ({"SM_RESOURCE_CONFIG": "x"}, {}, ["SM_RESOURCE_CONFIG is not valid JSON"]),
        ({}, {"hyperparameters": b'{"epochs": '}, ["hyperparameters.json is not valid JSON"]),
        ({}, {"hyperparameters": b""}, ["hyperparameters.json is not valid JSON"]),
        ({}, {"hyperparameters": b'{"backbone": "caf\xe9"}'}, ["hyperparameters.json is not valid JSON"]),
        ({}, {"hyperparameters": b"3"}, ["hyperparameters.json should hold a JSON object", "received 3"]),
        ({}, {"resourceconfig": b"[]"}, ["resourceconfig.json should hold a JSON object"]),
    ],
    ids=str,
)
def test_broken_json_is_named_by_its_place(tmp_path, variables, files, parts):
    write_config(tmp_path, **files)
    with pytest.raises(UsageError) as caught:
        read(tmp_path, **variables)
    for part in parts:
        assert part in str(caught.value)


def test_features_lie_beside_the_checkpoints_of_a_job_that_has_them_for_each_host(tmp_path):
    on_sagemaker = {"SM_HPS": "{}", "SM_CURRENT_HOST": "algo-2"}
    assert environment.feature_folder(read(tmp_path, **on_sagemaker)) is None
    (tmp_path / "checkpoints").mkdir()
    folder = environment.feature_folder(read(tmp_path, **on_sagemaker))
    assert folder == tmp_path / "checkpoints" / "features-algo-2"
    assert not folder.exists()
    assert environment.feature_folder(read(tmp_path)) is None  # Some other program's folder.


def test_the_failure_file_is_where_sagemaker_looks_for_it_and_nowhere_else(tmp_path):
    variables = {"SAGEMAKER_BASE_DIR": str(tmp_path)}
    assert environment.failure_file(variables) is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "input/config").mkdir(parents=True)
    file = tmp_path / "output" / "failure"
    assert environment.failure_file(variables) == file  # Its folder is made where there is a job.
    assert file.parent.is_dir()
    assert not file.exists()


@pytest.mark.parametrize(
    ("written", "arguments", "left"),
    [
        ("", "train --epochs 3", "train --epochs 3"),
        ("--epochs 3", "train --epochs 3", "train"),
        ("--epochs 3", "train --output x --epochs 3 --rho 0", "train --output x --rho 0"),
        ("--epochs 3", "train --epochs 3 --epochs 3", "train --epochs 3"),
        ("--epochs 3", "train --epochs 4", "train --epochs 4"),
        ("--epochs 3", "train", "train"),
        ("--backbone 'a b' --eps ''", "train --backbone 'a b' --eps ''", "train"),
        ("--backbone 'a b' --eps '' --rho 1", "train --backbone a b --eps --rho 1", "train"),  # Through a shell.
    ],
)
def test_the_toolkits_copy_of_the_hyperparameters_is_taken_off_the_command_line(written, arguments, left):
    variables = {"SM_USER_ARGS": json.dumps(shlex.split(written))}
    assert environment.without_toolkit_arguments(shlex.split(arguments), variables) == left.split()
    assert environment.without_toolkit_arguments(shlex.split(arguments), {}) == shlex.split(arguments)
