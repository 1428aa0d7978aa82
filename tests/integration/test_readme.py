"""The README's commands and its Python, run as they stand; its generated parts."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders, readme
from tests.needs import NEEDS_TEXT

TEXT = readme.README.read_text(encoding="utf-8")
COLOURS = {"daisy": (255, 255, 255), "roses": (200, 0, 30), "tulips": (250, 160, 0)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("readme")
    builders.write_class_folders(place / "photos", per_class=8, colours=COLOURS)
    for photo in (place / "photos").glob("*/*.png"):
        photo.rename(photo.with_suffix(".jpg"))  # Decoders go by the content.
    (place / "texts").mkdir()
    rows = [f'1,"See you at {n}, then?"\n2,WIN {n} pounds now! Call 0800\n' for n in range(12)]
    (place / "texts" / "data.csv").write_text("".join(rows), encoding="utf-8")
    (place / "more-messages.txt").write_text("Are you coming?\nFREE entry\n", encoding="utf-8")
    return place


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


@NEEDS_TEXT
def test_commands_of_the_readme_run_as_they_stand(folder):
    commands = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("tf-finetune ")]
    local = [command for command in commands if shlex.split(command)[1] != "submit"]  # Which needs AWS, or a role.
    words = [shlex.split(command)[1] for command in local]
    assert words == ["train", "train", "predict", "predict", "evaluate", "evaluate", "check", "check"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in local:
        done = subprocess.run(
            shlex.split(command, comments=True),
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        accepted = (0, 3) if " check " in command else (0,)  # 3: it has found something.
        assert done.returncode in accepted, done.stderr


def test_python_of_the_readme_runs_as_it_stands(folder):
    (source,) = blocks("python")
    done = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in COLOURS


def test_make_targets_of_the_readme_exist():
    makefile = (readme.ROOT / "Makefile").read_text(encoding="utf-8")
    code = re.findall(r"```.*?```|`[^`]+`", TEXT, flags=re.DOTALL)  # In prose, people make other things.
    targets = set(re.findall(r"\bmake ([a-z-]+)", "\n".join(code)))
    assert {"demo", "test", "check", "soak", "image", "train-local"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_generated_parts_of_the_readme_are_current():
    assert readme.current(TEXT) == TEXT
