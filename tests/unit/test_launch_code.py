"""The code that a job is sent: complete, the same bytes each time, and with what pip must install."""

from __future__ import annotations

import ast
import configparser
import json
import re
import tarfile
from pathlib import Path

from tf_finetune.launch import code, settings

SETUP = Path(code.PACKAGE).parent / "setup.cfg"
LATER = {"pyyaml"}  # For the commands that start jobs, not for the jobs.


def name_of(requirement: str) -> str:
    return re.split(r"[\s<>=!;\[]", requirement.strip())[0].lower()


def test_requirements_are_those_of_the_package_but_what_an_image_has():
    parser = configparser.ConfigParser()
    parser.read(SETUP, encoding="utf-8")
    lines = parser["options"]["install_requires"].strip().splitlines()
    declared = {name_of(line): line.strip() for line in lines if not line.startswith("#")}
    sent = {name_of(line): line for line in (*code.REQUIREMENTS, *code.OF_HUBS)}
    assert set(declared) - set(sent) <= {*code.OF_THE_IMAGE, *LATER}
    for name in set(declared) & set(sent):
        assert sent[name] == declared[name]


def test_hubs_and_texts_bring_no_other_tensorflow_than_the_images():
    plain = code.requirements("2.21", needs_hub=False, has_texts=False)
    assert "tensorflow" not in plain
    hub = code.requirements("2.19", needs_hub=True, has_texts=False).split()
    assert {"tensorflow-hub>=0.16.1", "setuptools>=65.5,<81", "tensorflow==2.19.*"} <= set(hub)
    texts = code.requirements("2.19", needs_hub=False, has_texts=True).split()
    assert {"tensorflow-text==2.19.*", "tensorflow==2.19.*"} <= set(texts)
    assert "tensorflow-hub>=0.16.1" not in texts
    assert "tensorflow-text" in code.requirements(None, needs_hub=False, has_texts=True).split()


def test_the_tarball_holds_package_script_and_settings_and_is_the_same_each_time(tmp_path):
    files = [tmp_path / "a" / "sourcedir.tar.gz", tmp_path / "b" / "sourcedir.tar.gz"]
    for file in files:
        code.pack(file, "rich\n", {"group_by": "(a b)"})
    assert files[0].read_bytes() == files[1].read_bytes()
    with tarfile.open(files[0]) as tar:
        names = {member.name for member in tar}
        assert json.load(tar.extractfile("settings.json")) == {"group_by": "(a b)"}
        assert tar.extractfile("requirements.txt").read() == b"rich\n"
    sources = {
        path.relative_to(code.PACKAGE.parent).as_posix()
        for path in code.PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names
    assert names - sources == {name for name in names if "." not in name.rpartition("/")[2]} | {
        "finetune.py",
        "settings.json",
        "requirements.txt",
    }
    assert not [name for name in names if "__pycache__" in name]


def test_a_job_without_network_has_no_requirements(tmp_path):
    code.pack(tmp_path / "sourcedir.tar.gz", None, {})
    with tarfile.open(tmp_path / "sourcedir.tar.gz") as tar:
        assert "requirements.txt" not in tar.getnames()


def test_the_entry_script_is_python_that_the_oldest_supported_version_reads():
    ast.parse(code.ENTRY_SCRIPT, feature_version=(3, 10))


def test_values_are_json_and_those_that_a_shell_would_break_go_with_the_code():
    values = {"epochs": 3, "train_only_top_layer": True, "optimizer": "adam", "pixel_range": "-1,1", "group_by": "(p+)"}
    inert, awkward = settings.split(values)
    assert awkward == {"group_by": "(p+)"}
    sent = settings.encoded(inert, "flowers", "eu-west-1", "s3://b/flowers/source/sourcedir.tar.gz")
    assert sent == {
        "epochs": "3",
        "train_only_top_layer": "true",
        "optimizer": '"adam"',
        "pixel_range": '"-1,1"',
        "sagemaker_program": '"finetune.py"',
        "sagemaker_submit_directory": '"s3://b/flowers/source/sourcedir.tar.gz"',
        "sagemaker_container_log_level": "20",
        "sagemaker_job_name": '"flowers"',
        "sagemaker_region": '"eu-west-1"',
    }


def test_values_longer_than_sagemaker_takes_are_refused():
    assert not settings.check_limits({"group_by": "x" * 2498})
    assert "group_by: SageMaker takes values of up to 2,500" in str(settings.check_limits({"group_by": "x" * 2499})[0])
