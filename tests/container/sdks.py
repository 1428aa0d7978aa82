"""SageMaker's SDKs, each in an environment of its own, and the jobs that they send, run as SageMaker runs them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tests import s3_servers
from tests.container import toolkit

ROOT = Path(__file__).parents[2]
BUCKET = "my-bucket"
ROLE = "arn:aws:iam::123456789012:role/my-role"
TIMEOUT = 600  # Seconds; installing an SDK takes one to five minutes, launching ten seconds, a job half a minute.
# Python runs this at its start: it has botocore note what CreateTrainingJob is sent, whoever made the client.
NOTE = """
import os
import botocore.session

plain = botocore.session.Session.__init__


def note(params, **rest):
    with open(os.environ["NOTE"], "wb") as file:
        file.write(params["body"] if isinstance(params["body"], bytes) else params["body"].encode())


def noting(self, *words, **more):
    plain(self, *words, **more)
    self.register("before-call.sagemaker.CreateTrainingJob", note)


botocore.session.Session.__init__ = noting
"""


@dataclass(frozen=True)
class Sent:
    """What a launcher did.

    Attributes:
        request: What CreateTrainingJob was sent.
        output: What the launcher wrote.
    """

    request: dict[str, Any]
    output: str

    @property
    def name(self) -> str:
        return self.request["TrainingJobName"]

    @property
    def channels(self) -> dict[str, dict[str, Any]]:
        """The S3 source of each channel."""
        return {each["ChannelName"]: each["DataSource"]["S3DataSource"] for each in self.request["InputDataConfig"]}


def installed(requirement: str, folder: Path) -> Path:
    """Returns the Python of an environment with an SDK, which is made once, by one process, and kept."""
    folder = folder.with_name(f"{folder.name}-py{sys.version_info[0]}.{sys.version_info[1]}")
    python, ready = folder / "bin" / "python", folder / ".ready"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists() or ready.read_text(encoding="utf-8") != requirement:
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            _run([python, "-m", "pip", "install", "--quiet", requirement])
            ready.write_text(requirement, encoding="utf-8")
    return python


def image(folder: Path) -> Path:
    """Returns the Python of an environment that has what this one has, but for the package itself.

    As in a training image, pip finds the dependencies there, and what it installs for the job stays in the folder.
    """
    venv.create(folder, with_pip=True)
    (here,) = folder.glob("lib/python*/site-packages")
    shared = folder / "shared"
    shared.mkdir()
    for place in map(Path, sys.path):
        for entry in place.iterdir() if place.name == "site-packages" else ():
            is_ours = "tf_finetune" in entry.name or entry.name.startswith(("pip", "distutils-precedence"))
            if not is_ours and not (shared / entry.name).exists():
                (shared / entry.name).symlink_to(entry)
    (here / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    return folder / "bin" / "python"


def examples(folder: Path) -> Path:
    """Returns a copy of the examples that is made ready as their README says: with the wheel, and for this image."""
    source = folder / "source"
    shutil.copytree(ROOT / "tf_finetune", source / "tf_finetune", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    target = folder / "examples"
    shutil.copytree(toolkit.EXAMPLES, target, ignore=shutil.ignore_patterns("*.whl", "__pycache__"))
    _run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", target, source])
    series = ".".join(metadata.version("tensorflow").split(".")[:2])
    requirements = target / "requirements.txt"
    lines = requirements.read_text(encoding="utf-8").replace("tensorflow==2.21.*", f"tensorflow=={series}.*")
    requirements.write_text(lines, encoding="utf-8")
    return target


@contextlib.contextmanager
def moto() -> Iterator[dict[str, str]]:
    """Gives the variables by which a process takes moto's server for AWS."""
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SAGEMAKER_", "SM_"))}
    try:
        yield {**kept, **s3_servers.VARIABLES, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    finally:
        server.stop()


def launch(python: Path, script: Path, variables: Mapping[str, str], place: Path, *words: str) -> Sent:
    """Starts a launcher in its SDK's environment, as a user would."""
    (place / "hook").mkdir(parents=True)
    (place / "hook" / "sitecustomize.py").write_text(NOTE, encoding="utf-8")
    note = place / "request.json"
    variables = {
        **variables,
        "NOTE": str(note),
        "PYTHONPATH": os.pathsep.join([str(place / "hook"), str(ROOT)]),
        "HOME": str(place),  # Nobody's config.yaml.
        "XDG_CONFIG_HOME": str(place),
    }
    output = _run([python, script, *words], variables, place)
    return Sent(json.loads(note.read_text(encoding="utf-8")), output)


def lay_out(sent: Sent, base: Path, s3: Any) -> None:
    """Makes the folder that a container has at /opt/ml from what was sent, and from what is in S3."""
    for folder in ("input/config", "model", "output/data", "code"):
        (base / folder).mkdir(parents=True)
    for name, source in sent.channels.items():
        bucket, _, prefix = source["S3Uri"].removeprefix("s3://").partition("/")
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                target = base / "input" / "data" / name / entry["Key"][len(prefix) :].lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, entry["Key"], str(target))
    resources = {
        "current_host": "localhost",
        "hosts": ["localhost"],
        "network_interface_name": "eth0",
        "current_instance_type": sent.request["ResourceConfig"]["InstanceType"],
    }
    inputs = {name: {"TrainingInputMode": "File"} for name in sent.channels}
    hyperparameters = sent.request["HyperParameters"]
    for name, content in (
        ("hyperparameters", hyperparameters),
        ("resourceconfig", resources),
        ("inputdataconfig", inputs),
    ):
        (base / "input" / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def run_toolkit(python: Path, base: Path, sent: Sent, variables: Mapping[str, str]) -> str:
    """Runs sagemaker-training's real `train` in an image; it fetches the code from where the request says."""
    command = [python, "-c", "from sagemaker_training.cli.train import main; main()"]
    return _run(command, _in_job(python, base, sent, variables), base)


def run_drivers(python: Path, base: Path, sent: Sent, variables: Mapping[str, str]) -> str:
    """Runs the command of the request on SDK 3's own drivers, with another folder in the place of /opt/ml."""
    container = [*sent.request["AlgorithmSpecification"]["ContainerEntrypoint"]]
    container += sent.request["AlgorithmSpecification"].get("ContainerArguments", [])
    for file in (base / "input" / "data" / "sm_drivers").rglob("*"):
        if file.suffix in (".py", ".sh"):
            file.write_text(file.read_text(encoding="utf-8").replace("/opt/ml", str(base)), encoding="utf-8")
    command = [word.replace("/opt/ml", str(base)) for word in container]
    return _run(command, _in_job(python, base, sent, variables), base)


def _in_job(python: Path, base: Path, sent: Sent, variables: Mapping[str, str]) -> dict[str, str]:
    region = variables["AWS_DEFAULT_REGION"]
    return {
        **variables,
        "PATH": os.pathsep.join([str(python.parent), variables["PATH"]]),
        "SAGEMAKER_BASE_DIR": str(base),
        "TRAINING_JOB_NAME": sent.name,
        "TRAINING_JOB_ARN": f"arn:aws:sagemaker:{region}:123456789012:training-job/{sent.name}",
        "AWS_REGION": region,
    }


def _run(command: list[Any], variables: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """Returns what a command wrote, which must succeed."""
    done = subprocess.run(
        list(map(str, command)),
        env=None if variables is None else dict(variables),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    return done.stdout
