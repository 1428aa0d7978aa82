"""The launchers of examples/sagemaker: run by their SDKs against moto, and the jobs that they send, run for real."""

from __future__ import annotations

import ast
import json
import re
import tarfile
from pathlib import Path

import pytest

import tf_finetune
from tests import builders, s3_servers
from tests.container import sdks, toolkit
from tf_finetune import hyperparameters

pytest.importorskip("moto.server", reason="moto[server] is not installed")
needs_toolkit = pytest.mark.skipif(
    not toolkit.IS_INSTALLED, reason=f"sagemaker-training is not installed: there is no {toolkit.TRAIN} of it"
)
SETTINGS = {"backbone": "efficientnet-lite0", "epochs": 10, "train_only_top_layer": True}
TRAINING, VALIDATION = f"s3://{sdks.BUCKET}/flowers/", f"s3://{sdks.BUCKET}/more/"
IMAGE = "public.ecr.aws/deep-learning-containers/tensorflow-training:2.21-{}-amzn2023-sagemaker"
MODEL = {"1/saved_model.pb", "labels_info.json", "class_label_to_prediction_index.json", "code/inference.py"}
OUTPUT = {"predictions.csv", "report.html", "report.json", "split.csv"}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The examples, made ready as their README says."""
    return sdks.examples(tmp_path_factory.mktemp("ready"))


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return sdks.image(tmp_path_factory.mktemp("image") / "environment")


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """Moto's server with photos in a bucket: the variables of a user, and a client of S3."""
    with pytest.MonkeyPatch.context() as patched, sdks.moto() as variables:
        import boto3

        s3_servers.set_variables(patched)
        s3 = boto3.client("s3", endpoint_url=variables["AWS_ENDPOINT_URL"])
        s3.create_bucket(Bucket=sdks.BUCKET)
        folder = tmp_path_factory.mktemp("photos")
        builders.write_class_folders(folder / "flowers", per_class=6)
        builders.write_class_folders(folder / "more", per_class=2, seed=1)
        for file in folder.rglob("*.png"):
            s3.upload_file(str(file), sdks.BUCKET, file.relative_to(folder).as_posix())
        yield variables, s3


@pytest.fixture(scope="module")
def sdk_2(tmp_path_factory, cache_folder, source, aws) -> sdks.Sent:
    """What the launcher for SDK 2 sends, with a GPU, without a validation channel."""
    python = sdks.installed("sagemaker<3", cache_folder / "sdks" / "2")
    words = ["--bucket", sdks.BUCKET, "--role", sdks.ROLE, "--training", TRAINING, "--job-name", "flowers-1"]
    variables = {**aws[0], "SAGEMAKER_SUPPRESS_V2_WARNING": "1"}
    return sdks.launch(python, source / "launch_sdk2.py", variables, tmp_path_factory.mktemp("sdk2"), *words)


@pytest.fixture(scope="module")
def sdk_3(tmp_path_factory, cache_folder, source, aws) -> sdks.Sent:
    """What the launcher for SDK 3 sends, on a CPU, with a validation channel."""
    python = sdks.installed("sagemaker>=3", cache_folder / "sdks" / "3")
    words = ["--bucket", sdks.BUCKET, "--role", sdks.ROLE, "--training", TRAINING, "--job-name", "flowers-1"]
    words += ["--validation", VALIDATION, "--instance-type", "ml.m5.xlarge"]
    variables = {**aws[0], "SAGEMAKER_VALIDATE_ROLE": "false"}  # moto cannot simulate a role's policies.
    return sdks.launch(python, source / "launch_sdk3.py", variables, tmp_path_factory.mktemp("sdk3"), *words)


def check_common(sent: sdks.Sent) -> None:
    """Checks what a request has whichever SDK made it."""
    request = sent.request
    assert request["RoleArn"] == sdks.ROLE
    assert request["OutputDataConfig"]["S3OutputPath"].rstrip("/") == f"s3://{sdks.BUCKET}"
    assert request["CheckpointConfig"]["S3Uri"] == f"s3://{sdks.BUCKET}/flowers-1/checkpoints"
    assert request["CheckpointConfig"].get("LocalPath", "/opt/ml/checkpoints") == "/opt/ml/checkpoints"
    assert request["ResourceConfig"]["InstanceCount"] == 1
    assert request["StoppingCondition"]["MaxRuntimeInSeconds"] == 4 * 60 * 60
    assert request["AlgorithmSpecification"]["TrainingInputMode"] == "File"
    assert request["AlgorithmSpecification"]["MetricDefinitions"] == tf_finetune.METRIC_DEFINITIONS
    for source in sent.channels.values():
        assert source["S3DataType"] == "S3Prefix"
        assert source["S3DataDistributionType"] == "FullyReplicated"
    assert sent.channels["training"]["S3Uri"] == TRAINING


def check_result(base: Path, log: str, sent: sdks.Sent, image: Path, distinct: int) -> None:
    """Checks what a job left."""
    assert toolkit.files_below(base / "model") >= MODEL, log
    assert toolkit.files_below(base / "output" / "data") >= OUTPUT
    report = json.loads((base / "output" / "data" / "report.json").read_text(encoding="utf-8"))
    assert {name: report["hyperparameters"][name] for name in SETTINGS if name != "backbone"} == {
        name: value for name, value in SETTINGS.items() if name != "backbone"
    }
    assert report["backbone"] == SETTINGS["backbone"]
    assert report["job"]["name"] == sent.name
    assert sum(report["examples"].values()) == distinct
    assert report["metrics"]["validation"]["accuracy"] == 1.0
    metrics = {each["Name"]: re.findall(each["Regex"], log) for each in tf_finetune.METRIC_DEFINITIONS}
    assert all(metrics.values()), metrics
    # The package came with the job, TensorFlow with the image.
    (packages,) = image.parents[1].glob("lib/python*/site-packages")
    assert (packages / "tf_finetune").is_dir()
    assert not (packages / "tensorflow").exists()


def test_sdk_2_sends_a_job_of_exactly_the_name_that_was_given(sdk_2, source, aws):
    check_common(sdk_2)
    assert sdk_2.name == "flowers-1"
    assert sdk_2.request["ResourceConfig"]["InstanceType"] == "ml.g5.xlarge"
    assert sdk_2.request["AlgorithmSpecification"]["TrainingImage"] == IMAGE.format("gpu-py312-cu129")
    assert set(sdk_2.channels) == {"training"}
    sent = sdk_2.request["HyperParameters"]
    assert {name: json.loads(text) for name, text in sent.items() if not name.startswith("sagemaker_")} == SETTINGS
    assert json.loads(sent["sagemaker_program"]) == "finetune.py"
    assert "model_dir" not in sent
    tarball = json.loads(sent["sagemaker_submit_directory"])
    assert tarball == f"s3://{sdks.BUCKET}/flowers-1/source/sourcedir.tar.gz"
    body = aws[1].get_object(Bucket=sdks.BUCKET, Key="flowers-1/source/sourcedir.tar.gz")["Body"]
    with tarfile.open(fileobj=body, mode="r|gz") as packed:
        names = {name.removeprefix("./") for name in packed.getnames()}
    assert names >= {path.name for path in source.iterdir() if path.is_file()}
    assert f"tf_finetune-{tf_finetune.__version__}-py3-none-any.whl" in names
    assert sdk_2.output.rstrip().endswith(f"s3://{sdks.BUCKET}/flowers-1/output/model.tar.gz")


@needs_toolkit
def test_the_toolkit_trains_from_what_sdk_2_sent(sdk_2, aws, image, tmp_path):
    variables, s3 = aws
    base = tmp_path / "ml"
    sdks.lay_out(sdk_2, base, s3)
    log = sdks.run_toolkit(image, base, sdk_2, variables)
    check_result(base, log, sdk_2, image, distinct=18)
    assert (base / "output" / "success").exists()


@pytest.mark.parametrize("launcher", ["launch_sdk2.py", "launch_sdk3.py"])
def test_launchers_name_the_same_settings_as_they_stand(launcher):
    tree = ast.parse((toolkit.EXAMPLES / launcher).read_text(encoding="utf-8"))
    given = [node.value for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "hyperparameters"]
    assert [ast.literal_eval(node) for node in given] == [SETTINGS]
    hyperparameters.parse({name: json.dumps(value) for name, value in SETTINGS.items()}, "image")


@pytest.mark.soak  # Installing SDK 3 takes minutes and a gigabyte.
def test_sdk_3_sends_a_job_whose_name_begins_as_was_given(sdk_3, source):
    check_common(sdk_3)
    assert re.fullmatch(r"flowers-1-\d{14}", sdk_3.name)
    assert sdk_3.request["ResourceConfig"]["InstanceType"] == "ml.m5.xlarge"
    assert sdk_3.request["AlgorithmSpecification"]["TrainingImage"] == IMAGE.format("cpu-py312")
    assert set(sdk_3.channels) == {"training", "validation", "code", "sm_drivers"}
    assert sdk_3.channels["validation"]["S3Uri"] == VALIDATION
    assert sdk_3.request["HyperParameters"] == toolkit.as_model_trainer(SETTINGS)


@pytest.mark.soak
def test_the_drivers_train_from_what_sdk_3_sent(sdk_3, aws, image, source, tmp_path):
    variables, s3 = aws
    base = tmp_path / "ml"
    sdks.lay_out(sdk_3, base, s3)
    code = {path.name for path in (base / "input" / "data" / "code").iterdir()}
    assert code >= {path.name for path in source.iterdir() if path.is_file()}
    log = sdks.run_drivers(image, base, sdk_3, variables)
    check_result(base, log, sdk_3, image, distinct=24)
    assert not (base / "output" / "failure").exists()
