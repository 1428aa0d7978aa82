"""The image built and run for real, by the make targets: `make soak`, where docker, podman or buildah can.

Without a Docker engine: `apt-get install --no-install-recommends buildah debootstrap crun`, as root. The base is then a
Debian made by debootstrap. Takes some ten minutes and 10 GB.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import builders
from tests.container import toolkit
from tests.container.test_image import LONG, answer, make, wait_for

pytestmark = pytest.mark.soak

CONTAINER = Path(__file__).parents[2] / "container"
GIVEN = os.environ.get("TF_FINETUNE_TEST_IMAGE")  # An image that is there already and stays; with both BACKBONES.
IMAGE, BASE = GIVEN or "localhost/tf-finetune-test", "localhost/tf-finetune-test-base"
BACKBONES = "efficientnet-lite0 universal-sentence-encoder-multilingual"
STRANGER = 1234  # A user whom nobody knows.
PORT = 18080
FRONT = {"docker": "docker", "podman": "podman", "buildah": "dumb-init"}  # Who passes a signal to process 1, or is it.


def engines():
    spec = importlib.util.spec_from_file_location("engines", CONTAINER / "engines.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patched:
        if os.getuid() == 0:  # What works without rights of its own, as in a sandbox.
            patched.setenv("STORAGE_DRIVER", os.environ.get("STORAGE_DRIVER", "vfs"))
            patched.setenv("BUILDAH_ISOLATION", os.environ.get("BUILDAH_ISOLATION", "chroot"))
        module = engines()
        try:
            yield module.choose()
        except module.ProblemError as none:
            pytest.skip(str(none))


@pytest.fixture(scope="module")
def image(engine, tmp_path_factory) -> Iterator[str]:
    if GIVEN:
        yield GIVEN
        return
    given = {"IMAGE": IMAGE, "BACKBONES": BACKBONES, "ENGINE": engine}
    if engine == "buildah" and shutil.which("debootstrap") and os.getuid() == 0:
        make_base(tmp_path_factory.mktemp("base"))
        given["BASE_IMAGE"] = BASE
    try:
        done = make("image", **given)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        yield IMAGE
    finally:
        for name in (IMAGE, BASE):
            subprocess.run([engine, "rmi", name], capture_output=True, check=False)


def make_base(folder: Path) -> None:
    """Makes a Debian bookworm with its Python: no registry is needed for it."""
    command = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,python3-pip,ca-certificates"]
    subprocess.run([*command, "bookworm", str(folder / "fs")], check=True, capture_output=True)
    container = printed("buildah", "from", "scratch")
    printed("buildah", "add", "--quiet", container, str(folder / "fs"), "/")
    printed("buildah", "commit", "--quiet", container, BASE)
    printed("buildah", "rm", container)
    shutil.rmtree(folder / "fs")


def printed(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def process_1(above: int, name: str) -> int | None:
    """Returns the outermost process of a name below another."""
    # Each thread of a Go program has children of its own.
    for word in " ".join(file.read_text() for file in Path(f"/proc/{above}/task").glob("*/children")).split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{word}/comm").read_text().strip() == name:
                return int(word)
            found = process_1(int(word), name)
            if found:
                return found
    return None


@contextlib.contextmanager
def served(engine: str, model: Path) -> Iterator[None]:
    environ = {**os.environ, "MODEL": str(model), "PORT": str(PORT), "IMAGE": IMAGE, "ENGINE": engine}
    process = subprocess.Popen([sys.executable, str(CONTAINER / "local.py"), "serve"], env=environ)
    try:
        wait_for(lambda: answer(PORT, "GET", "/ping")[0] == 200 or process.poll() is not None, 180)
        yield
    finally:
        os.kill(process_1(process.pid, FRONT[engine]), signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    real = Path(os.environ.get("TF_FINETUNE_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if (real / "images" / "flowers-400").is_dir():
        return real / "images" / "flowers-400"
    return builders.write_class_folders(tmp_path_factory.mktemp("photos") / "photos")


def test_photos_are_trained_on_served_and_asked_for(engine, image, photos, tmp_path):
    out = tmp_path / "out"
    given = {"DATA": str(photos), "OUT": str(out), "IMAGE": image, "ENGINE": engine}
    done = make("train-local", HYPERPARAMETERS="epochs=3", **given)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((out / "output" / "data" / "report.json").read_text(encoding="utf-8"))
    assert report["metrics"]["validation"]["accuracy"] > 0.7
    assert {file.stat().st_uid for file in out.rglob("*")} == {os.getuid()}
    assert any((out / "checkpoints").iterdir())  # The features: the next job goes through no backbone.
    photo = next(file for file in photos.rglob("*") if file.is_file())
    with served(engine, out / "model"):
        done = make("predict-local", FILE=str(photo), PORT=str(PORT))
        assert json.loads(done.stdout)["predicted_label"] in report["class_names"], done.stderr
    done = make("train-local", HYPERPARAMETERS="epochs=3", **given)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads((out / "output" / "data" / "report.json").read_text(encoding="utf-8"))["backbone_calls"] == 0


def test_texts_are_trained_on_served_from_the_archive_and_asked_for(engine, image, tmp_path):
    rows = [(name, f"{words} number {number}") for number in range(20) for name, words in TEXTS.items()]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "data.csv").write_text("".join(f"{name},{text}\n" for name, text in rows), encoding="utf-8")
    out = tmp_path / "out"
    done = make("train-local", DATA=str(tmp_path / "texts"), OUT=str(out), IMAGE=image, ENGINE=engine)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    subprocess.run(["tar", "-czf", str(tmp_path / "model.tar.gz"), "-C", str(out / "model"), "."], check=True)
    question = tmp_path / "question.txt"
    question.write_text("a goal in the last minute of the match", encoding="utf-8")
    with served(engine, tmp_path / "model.tar.gz"):
        done = make("predict-local", FILE=str(question), PORT=str(PORT))
        assert json.loads(done.stdout)["predicted_label"] == "sport", done.stderr


TEXTS = {"sport": "the team won the match and scored a goal", "food": "bake the cake with butter and sugar"}


@contextlib.contextmanager
def started(engine: str, base: Path, *command: str) -> Iterator[subprocess.Popen]:
    """Runs the image by hand: another user, a whole tree at /opt/ml."""
    who, mounted = ["--user", f"{STRANGER}:{STRANGER}"], ["--volume", f"{base}:/opt/ml"]
    if engine == "buildah":
        container = printed("buildah", "from", "--pull-never", IMAGE)
        words = ["buildah", "run", *who, *mounted, container, "--", "dumb-init", "--", *command]
    else:
        container = ""
        words = [engine, "run", "--rm", "--network", "none", *who, *mounted, IMAGE, *command]
    process = subprocess.Popen(words)
    try:
        yield process
    finally:
        process.kill()
        if container:
            printed("buildah", "rm", container)


def test_sigterm_to_process_1_ends_a_strangers_training_with_a_model_and_a_checkpoint(engine, image, photos, tmp_path):
    if os.getuid():
        pytest.skip("only root can give a tree to another user")
    backbone = builders.save_affine_backbone(tmp_path / "affine")
    base = toolkit.prepare(tmp_path / "ml", {"training": photos, "model": backbone}, LONG)
    (base / "checkpoints").mkdir()
    for path in (base, *base.rglob("*")):
        os.chown(path, STRANGER, STRANGER)
    with started(engine, base, "train") as process:
        wait_for(lambda: list(base.glob("checkpoints/training-*/step-*")) or process.poll() is not None, 240)
        assert process.poll() is None
        target = process.pid if engine != "buildah" else process_1(process.pid, "dumb-init")
        os.kill(target, signal.SIGTERM)
        before = time.monotonic()
        assert process.wait(timeout=110) == 0
        assert time.monotonic() - before < 100
    report = json.loads((base / "output" / "data" / "report.json").read_text(encoding="utf-8"))
    assert "SIGTERM" in json.dumps(report["ended_early"])
    assert (base / "model" / "1" / "saved_model.pb").is_file()
    assert {file.stat().st_uid for file in (base / "model").rglob("*")} == {STRANGER}
