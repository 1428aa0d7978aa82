"""`submit` and `jobs` against moto's server over HTTP, and the job that was sent, run by SageMaker's real toolkit."""

from __future__ import annotations

import io
import json
import logging
import tarfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("moto.server", reason="moto[server] is not installed")
import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server
from werkzeug.wrappers import Request, Response

from tests import builders
from tests.container import toolkit
from tf_finetune import launch
from tf_finetune.cli import arguments
from tf_finetune.errors import FinetuneError
from tf_finetune.launch import follow

ROLE = "arn:aws:iam::123456789012:role/mine"
REGION = "eu-west-1"
TYPE = ["--instance-type", "ml.g5.12xlarge"]


class Server:
    """moto behind a door where requests are noted and answers may be changed."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.requests: list[tuple[str, bytes]] = []
        self.changes: dict[str, Callable[[Response], Response]] = {}

    def __call__(self, environ: dict, start: Any) -> Any:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if "chunked" in environ.get("HTTP_TRANSFER_ENCODING", ""):
            body = environ["wsgi.input"].read()
        environ["wsgi.input"] = io.BytesIO(body)
        request = Request(environ)
        name = request.headers.get("X-Amz-Target", "").rpartition(".")[2] or f"{request.method} {request.path}"
        self.requests.append((name, body))
        answer = Response.from_app(self.moto, environ)
        change = self.changes.get(name)
        return (change(answer) if change else answer)(environ, start)

    def names(self) -> list[str]:
        return [name for name, _ in self.requests]

    def writes(self) -> list[str]:
        return [name for name in self.names() if name.startswith(("PUT", "POST")) or name == "CreateTrainingJob"]

    def sent(self) -> dict:
        """The request of CreateTrainingJob, as it came over the wire."""
        return json.loads(next(body for name, body in self.requests if name == "CreateTrainingJob"))


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Server, str]]:
    server = Server()
    http = make_server("127.0.0.1", 0, server, threaded=True)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    thread.join()


@pytest.fixture
def server(running, monkeypatch, tmp_path) -> Server:
    """moto, empty but for three buckets, and an environment that knows nothing else."""
    server, url = running
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "XDG_CONFIG_HOME": str(tmp_path / "none"),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.05)
    import urllib.request

    urllib.request.urlopen(urllib.request.Request(f"{url}/moto-api/reset", method="POST"))
    s3 = boto3.client("s3")
    for bucket in ("data", "results", "sagemaker-eu-west-1-123456789012"):
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket="data", Key="flowers/a/1.jpg", Body=b"1")
    s3.put_object(Bucket="data", Key="flowers2/a/1.jpg", Body=b"1")
    s3.put_object(Bucket="data", Key="texts/data.csv", Body=b"0,a\n1,b\n")
    server.requests.clear()
    server.changes.clear()
    return server


def run(*words: str) -> int:
    parser = arguments.Parser(prog="tf-finetune")
    launch.add_commands(parser.add_subparsers(dest="command", parser_class=arguments.Parser))
    flags, rest = parser.parse_known_args(arguments.tied([*words]))
    return flags.run(flags, rest)


def submit(*words: str) -> int:
    return run("submit", *TYPE, "--role", ROLE, *words)


def code_at(bucket: str, key: str) -> tarfile.TarFile:
    body = boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    return tarfile.open(fileobj=io.BytesIO(body))


def edited(**changes: Any) -> Callable[[Response], Response]:
    def change(answer: Response) -> Response:
        return Response(json.dumps({**json.loads(answer.get_data()), **changes}), answer.status, answer.headers)

    return change


def refusing(code: str, words: str) -> Callable[[Response], Response]:
    return lambda answer: Response(json.dumps({"__type": code, "message": words}), 400)


def test_a_job_on_s3_data_is_created_as_asked_and_its_code_is_there(server, capsys):
    code = submit("--training", "s3://data/flowers", "--output", "s3://results", "--epochs", "3", "--group-by", "(p+)")
    assert code == 0
    sent = server.sent()
    assert sent["TrainingJobName"] == "flowers"
    assert sent["OutputDataConfig"] == {"S3OutputPath": "s3://results"}
    assert (sent["HyperParameters"]["epochs"], sent["HyperParameters"]["batch_size"]) == ("3", "128")
    assert "group_by" not in sent["HyperParameters"]
    held = boto3.client("sagemaker").describe_training_job(TrainingJobName="flowers")
    assert held["ModelArtifacts"]["S3ModelArtifacts"] == "s3://results/flowers/output/model.tar.gz"
    with code_at("results", "flowers/source/sourcedir.tar.gz") as tar:
        assert {"finetune.py", "requirements.txt", "tf_finetune/errors.py"} <= set(tar.getnames())
        assert json.load(tar.extractfile("settings.json")) == {"group_by": "(p+)"}
        assert b"tensorflow" not in tar.extractfile("requirements.txt").read()
    out = capsys.readouterr().out
    assert "training job: flowers" in out
    assert "ARN: arn:aws:sagemaker:eu-west-1:123456789012:training-job/flowers" in out
    assert "output: s3://results/flowers/output/model.tar.gz" in out
    assert server.writes() == ["PUT /results/flowers/source/sourcedir.tar.gz", "CreateTrainingJob"]


def test_texts_in_s3_are_known_by_their_file_and_bring_tensorflow_text(server):
    submit("--training", "s3://data/texts", "--output", "s3://results")
    with code_at("results", "texts/source/sourcedir.tar.gz") as tar:
        assert b"tensorflow-text==2.21.*\n" in tar.extractfile("requirements.txt").read()


def test_local_folders_are_uploaded_to_the_default_bucket(server, tmp_path):
    photos = builders.write_class_folders(tmp_path / "photos", per_class=3)
    (photos / ".hidden").mkdir()
    for name in (".hidden/x.jpg", ".DS_Store"):
        (photos / name).write_bytes(b"x")
    texts = tmp_path / "more.csv"
    texts.write_text("0,a\n1,b\n", encoding="utf-8")
    assert submit("--training", str(photos), "--validation", str(photos)) == 0
    listed = boto3.client("s3").list_objects_v2(Bucket="sagemaker-eu-west-1-123456789012")["Contents"]
    keys = {entry["Key"] for entry in listed}
    names = {path.relative_to(photos).as_posix() for path in photos.glob("[!.]*/[!.]*")}
    assert keys == {f"photos/input/{channel}/{name}" for channel in ("training", "validation") for name in names} | {
        "photos/source/sourcedir.tar.gz"
    }
    assert submit("--training", str(texts)) == 0
    held = boto3.client("s3").get_object(
        Bucket="sagemaker-eu-west-1-123456789012", Key="more-csv/input/training/data.csv"
    )
    assert held["Body"].read() == b"0,a\n1,b\n"


def test_uploads_carry_the_key(server):
    submit("--training", "s3://data/flowers", "--output", "s3://results", "--kms-key", "alias/k")
    head = boto3.client("s3").head_object(Bucket="results", Key="flowers/source/sourcedir.tar.gz")
    assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/k")


def test_a_roles_name_is_looked_up(server):
    policy = json.dumps({"Version": "2012-10-17", "Statement": []})
    boto3.client("iam").create_role(RoleName="ours", Path="/service-role/", AssumeRolePolicyDocument=policy)
    assert run("submit", *TYPE, "--role", "ours", "--training", "s3://data/flowers") == 0
    assert server.sent()["RoleArn"] == "arn:aws:iam::123456789012:role/service-role/ours"
    with pytest.raises(FinetuneError, match="Could not look up the role nobody: AWS answers NoSuchEntity"):
        run("submit", *TYPE, "--role", "nobody", "--training", "s3://data/flowers")


REFUSED = [
    (["--training", "s3://data/flowers", "--epochs", "0"], "Wrong hyperparameter", 0),
    (["--training", "s3://data/flowers", "--instance-type", "ml.g5.xl"], "--instance-type: expected", 0),
    (["--training", "s3://data/flowers", "--subnets", "subnet-1"], "--subnets without", 0),
    (["--training", "s3://data/flowers", "--model-name", "_"], "--model-name: expected", 0),
    (["--training", "s3://data/flowers", "--spot", "--max-wait", "9"], "--max-wait: expected at least", 0),
    (["--training", "s3://data/flowers", "--tags", "aws:a=1"], "--tags: AWS takes", 0),
    (["--training", "s3://data/nothing"], "--training: there is nothing at s3://data/nothing/", None),
    (["--training", "s3://data/flower"], "--training: there is nothing at s3://data/flower/", None),
    (["--training", "s3://nowhere/x"], "--training: there is no bucket nowhere. Check its name", None),
    (["--training", "s3://data/flowers", "--output", "s3://gone"], "aws s3 mb s3://gone --region eu-west-1", None),
    (["--training", "s3://far/x", "--output", "s3://data"], "bucket far is in the Region us-west-2, and the job", None),
    (
        ["--training", "s3://data/flowers", "--region", "us-east-1", "--output", "s3://data"],
        "is in the Region eu-",
        None,
    ),
    (["--training", "s3://data/texts", "--augmentation", "True"], "augmentation: it is for photos only", None),
]


@pytest.mark.parametrize(("words", "message", "requests"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_aws_would_refuse_is_refused_before_any_upload(server, tmp_path, words, message, requests):
    far = {"LocationConstraint": "us-west-2"}
    boto3.client("s3", region_name="us-west-2").create_bucket(Bucket="far", CreateBucketConfiguration=far)
    photos = builders.write_class_folders(tmp_path / "photos", per_class=2)
    server.requests.clear()
    local = [] if "texts" in words[1] else ["--validation", str(photos)]  # Something to upload.
    with pytest.raises(FinetuneError) as raised:
        submit(*words, *local)
    assert message in str(raised.value)
    assert server.writes() == []
    if requests is not None:
        assert len(server.requests) == requests


def test_a_name_that_is_taken_is_refused_with_a_free_one_or_numbered_where_nobody_chose_it(server):
    words = ["--training", "s3://data/flowers", "--output", "s3://results"]
    submit(*words)
    server.requests.clear()
    with pytest.raises(FinetuneError, match="job flowers already, .* such as --model-name flowers-2"):
        submit(*words, "--model-name", "flowers")
    assert server.writes() == []
    submit(*words)
    assert server.sent()["TrainingJobName"] == "flowers-2"
    assert server.sent()["OutputDataConfig"] == {"S3OutputPath": "s3://results"}


def test_a_dry_run_asks_nothing_and_needs_no_credentials(server, monkeypatch, tmp_path, capsys):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    photos = builders.write_class_folders(tmp_path / "photos", per_class=2)
    assert submit("--training", str(photos), "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["TrainingJobName"] == "photos"
    assert server.requests == []


@pytest.mark.parametrize(
    ("code", "words", "part"),
    [
        ("AccessDeniedException", "User is not authorized", "Ask for the permission"),
        ("ResourceLimitExceeded", "The account-level service limit is 0 Instances", "Service Quotas"),
        ("ValidationException", "1 validation error detected", "Correct what it names"),
        ("ExpiredTokenException", "The security token is expired", "credentials have expired"),
    ],
)
def test_what_aws_answers_is_one_clear_message(server, code, words, part):
    server.changes["CreateTrainingJob"] = refusing(code, words)
    with pytest.raises(FinetuneError) as raised:
        submit("--training", "s3://data/flowers", "--output", "s3://results")
    message = str(raised.value)
    assert message.startswith(f"Could not start the training job flowers: AWS answers {code}: {words}")
    assert part in message
    assert "\n" not in message


def test_no_credentials_and_no_connection_are_one_clear_message(server, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with monkeypatch.context() as patched:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patched.delenv(name)
        with pytest.raises(FinetuneError, match="there are no AWS credentials .*aws configure"):
            submit("--training", "s3://data/flowers")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tf_finetune.launch.aws.ATTEMPTS", 1)
    with pytest.raises(FinetuneError, match="there is no connection to AWS .*AWS_ENDPOINT_URL"):
        submit("--training", "s3://data/flowers")


def write_log(streams: dict[str, list[str]]) -> None:
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName=follow.LOG_GROUP)
    import time

    now = int(time.time() * 1000)
    for name, lines in streams.items():
        logs.create_log_stream(logGroupName=follow.LOG_GROUP, logStreamName=name)
        for start in range(0, len(lines), 500):
            events = [{"timestamp": now + n, "message": lines[n]} for n in range(start, min(start + 500, len(lines)))]
            logs.put_log_events(logGroupName=follow.LOG_GROUP, logStreamName=name, logEvents=events)


def test_waiting_prints_each_line_of_the_log_once_and_ends_with_the_guides_list(server, capsys):
    lines = [f"line {n}" for n in range(35_000)]  # More than CloudWatch gives at once.
    write_log({"flowers/algo-1-1700000000": lines, "flowers2/algo-1-1": ["another job"]})
    states = iter(["InProgress"])

    def change(answer: Response) -> Response:
        return edited(TrainingJobStatus=next(states, "Completed"), TrainingTimeInSeconds=312)(answer)

    words = ["--training", "s3://data/flowers", "--output", "s3://results", "--wait"]
    server.changes["CreateTrainingJob"] = lambda answer: (
        server.changes.update(DescribeTrainingJob=change) or answer  # type: ignore[func-returns-value]
    )
    assert submit(*words) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line for line in out if line.startswith("line ")] == lines
    assert "another job" not in out
    rest = out[out.index("line 34999") + 1 :]
    assert rest[:5] == [
        "parent model: efficientnet-lite0",
        "training job: flowers",
        "ARN: arn:aws:sagemaker:eu-west-1:123456789012:training-job/flowers",
        "training time: 312 seconds",
        "output: s3://results/flowers/output/model.tar.gz",
    ]
    assert "TensorFlowModel" in "".join(rest[5:])


def test_lines_of_several_instances_say_whose_they_are(server, capsys):
    write_log({"flowers/algo-1-17": ["a"], "flowers/algo-2-17": ["b"]})
    submit("--training", "s3://data/flowers", "--output", "s3://results", "--wait", "--instance-count", "2")
    assert {"algo-1: a", "algo-2: b"} <= set(capsys.readouterr().out.splitlines())


def test_a_job_without_a_log_ends_all_the_same(server, capsys):
    assert submit("--training", "s3://data/flowers", "--output", "s3://results", "--wait") == 0
    assert "training job: flowers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"TrainingJobStatus": "Failed", "FailureReason": "AlgorithmError: one class only: a"}, "one class only: a"),
        ({"TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxRuntimeExceeded"}, "longer than --max-run"),
        ({"TrainingJobStatus": "Stopped", "SecondaryStatus": "Stopped"}, "somebody stopped it"),
    ],
)
def test_a_job_that_ends_badly_is_an_error_with_its_reason(server, state, message):
    server.changes["CreateTrainingJob"] = lambda answer: (
        server.changes.update(DescribeTrainingJob=edited(**state)) or answer  # type: ignore[func-returns-value]
    )
    with pytest.raises(FinetuneError, match="The training job flowers (failed|was stopped): .*") as raised:
        submit("--training", "s3://data/flowers", "--output", "s3://results", "--wait")
    assert message in str(raised.value)


def test_an_interrupt_leaves_the_job_running_and_says_so(server, monkeypatch, caplog):
    caplog.set_level("INFO", "tf_finetune")

    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("tf_finetune.launch.follow.time.sleep", interrupt)
    assert submit("--training", "s3://data/flowers", "--output", "s3://results", "--wait") == 1
    assert "The training job goes on." in caplog.text
    assert "stop-training-job --training-job-name flowers" in caplog.text
    assert "StopTrainingJob" not in server.names()


def test_jobs_are_listed_the_newest_first(server, capsys):
    names = ["one", "two", "three"]
    for name in names:
        submit("--training", "s3://data/flowers", "--output", "s3://results", "--model-name", name)
    capsys.readouterr()
    assert run("jobs", "--max", "2", "--json") == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == 2
    asked = json.loads(next(body for name, body in server.requests if name == "ListTrainingJobs"))
    assert asked == {"SortBy": "CreationTime", "SortOrder": "Descending", "MaxResults": 2}  # moto does not sort.
    row = rows["two"]
    assert row["output"] == "s3://results/two/output/model.tar.gz"
    assert (row["instance"], row["count"], row["status"]) == ("ml.g5.12xlarge", 1, "Completed")
    assert run("jobs") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "STATUS", "STARTED", "SECONDS", "INSTANCE", "OUTPUT"]
    assert {line.split()[0] for line in lines[1:]} == set(names)


@pytest.mark.skipif(not toolkit.IS_INSTALLED, reason="sagemaker-training is not installed")
def test_the_job_that_was_sent_runs_by_the_real_toolkit(server, tmp_path, mean_backbone):
    """The toolkit fetches the code from S3 itself; the channels are what was uploaded."""
    photos = builders.write_class_folders(tmp_path / "photos")
    words = ["--training", str(photos), "--model", str(mean_backbone), "--output", "s3://results"]
    settings = ["--optimizer", "rmsprop", "--learning-rate", "0.1", "--epochs", "3", "--batch-size", "8"]
    assert submit(*words, *settings, "--pixel-range=-1,1", "--group-by", r"(\d+\.(jpg|png))$") == 0
    sent = server.sent()
    channels, s3 = {}, boto3.client("s3")
    for entry in sent["InputDataConfig"]:
        prefix = entry["DataSource"]["S3DataSource"]["S3Uri"].removeprefix("s3://results/")
        folder = channels[entry["ChannelName"]] = tmp_path / "channels" / entry["ChannelName"]
        for held in s3.list_objects_v2(Bucket="results", Prefix=prefix)["Contents"]:
            file = folder / held["Key"].removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file("results", held["Key"], str(file))
    base = toolkit.prepare(tmp_path / "ml", channels, sent["HyperParameters"])
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    import os

    variables = {name: os.environ[name] for name in names}
    done = toolkit.run_toolkit(base, **variables, AWS_REGION=REGION, TRAINING_JOB_NAME=sent["TrainingJobName"])
    assert done.returncode == 0, done.stdout
    assert (base / "model" / "1" / "saved_model.pb").is_file()
    record = json.loads((base / "output" / "data" / "report.json").read_text(encoding="utf-8"))
    assert record["job"]["name"] == "photos"
    expected = {"optimizer": "rmsprop", "learning_rate": 0.1, "epochs": 3, "batch_size": 8, "pixel_range": "-1,1"}
    assert {name: record["hyperparameters"][name] for name in expected} == expected
    assert record["hyperparameters"]["group_by"] == r"(\d+\.(jpg|png))$"
    assert record["metrics"]["validation"]["accuracy"] == 1.0
