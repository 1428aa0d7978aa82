"""Imports go down the levels of the design, and what is slow or heavy waits until it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import tf_finetune

PACKAGE = Path(tf_finetune.__file__).parent
# The design's table. A module that outgrew its room is a folder of the same name, and counts as one module.
LEVELS = {
    0: {"errors"},
    1: {"hyperparameters", "environment", "catalog", "storage", "archive", "examples", "feature_cache", "report"}
    | {"progress", "interruption", "s3", "hosts", "versions"},
    2: {"devices", "images", "text", "text_ops", "inspection", "job", "tables", "results", "safety", "launch"},
    3: {"checking", "packaged", "backbone", "features", "classifier", "training", "evaluation", "export"},
    4: {"pipeline", "predictor", "serving", "demo", "targets"},
    5: {"cli", "__init__"},
}
LEVEL_OF = {module: level for level, modules in LEVELS.items() for module in modules}
# Sideways within a level only for records, which are classes, and for these.
SIDEWAYS = {
    ("environment", "hosts"),
    ("storage", "archive"),
    ("storage", "catalog"),
    ("storage", "s3"),
    ("training", "classifier"),
    ("training", "evaluation"),
    ("training", "features"),
    ("export", "classifier"),
    ("examples", "report"),
    ("results", "inspection"),
    ("targets", "predictor"),
}
WITHOUT_TENSORFLOW = (
    LEVELS[0]
    | LEVELS[1]
    | LEVELS[5]
    | {"job", "tables", "results", "demo", "inspection", "checking", "launch", "serving"}
)
TENSORFLOW = {"tensorflow", "keras", "tensorflow_hub", "tensorflow_text", "keras_hub", "tf_keras"}
SLOW = {
    "pandas",
    "boto3",
    "sklearn",
    "matplotlib",
    "jinja2",
    "tensorflow_hub",
    "PIL",
    "rich",
    "markupsafe",
    "scipy",
    "yaml",
    "kagglehub",
    "onnx",
    "tf2onnx",
    "onnxruntime",
    "ai_edge_litert",
}


class Import(NamedTuple):
    """One name that a module imports: `source` is the third-party package, or our module where `ours`."""

    module: str
    source: str
    ours: bool
    is_record: bool
    at_once: bool


def imports_of(file: Path) -> list[Import]:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    found = []

    def visit(node: ast.AST, at_once: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                names = [(alias.name, None) for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert not child.level, f"{file}: relative import"
                names = [(child.module or "", alias.name) for alias in child.names]
            else:
                names = []
            for source, name in names:
                package, *path = source.split(".")
                ours = package == PACKAGE.name
                module = (path[0] if path else name or "__init__") if ours else package
                module = "__init__" if ours and module not in LEVEL_OF else module
                is_record = bool(path) and bool(name) and name[:1].isupper() and not name.isupper()
                found.append(Import(parts[0], module, ours, is_record, at_once))
            visit(child, at_once and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    visit(ast.parse(file.read_text(encoding="utf-8")), at_once=True)
    return found


FILES = [file for file in sorted(PACKAGE.rglob("*.py")) if file.relative_to(PACKAGE).parts[0] != "assets"]
IMPORTS = [found for file in FILES for found in imports_of(file)]
OURS = [found for found in IMPORTS if found.ours and found.source != found.module]


def test_every_module_has_a_level():
    assert {file.relative_to(PACKAGE).with_suffix("").parts[0] for file in FILES} <= set(LEVEL_OF)


def test_imports_go_down_and_sideways_only_for_records():
    assert len(OURS) > 50
    for found in OURS:
        if (found.module, found.source) == ("cli", "__init__"):
            continue  # The version.
        here, there = LEVEL_OF[found.module], LEVEL_OF[found.source]
        is_sideways = here == there
        assert there < here or is_sideways and (found.is_record or (found.module, found.source) in SIDEWAYS), found


def test_every_exception_is_needed():
    used = {(found.module, found.source) for found in OURS if not found.is_record}
    assert used >= SIDEWAYS


def test_the_command_line_and_the_package_import_of_higher_levels_only_inside_functions():
    for found in OURS:
        if LEVEL_OF[found.module] == 5 and found.at_once and found.source != "__init__":
            assert LEVEL_OF[found.source] <= 1, found


def test_only_the_pipeline_knows_the_order_and_only_the_edge_knows_the_environment():
    users = {target: {found.module for found in OURS if found.source == target} for target in LEVEL_OF}
    assert users["pipeline"] <= {"cli", "__init__"}
    assert users["environment"] <= {"cli", "__init__"}
    assert users["cli"] == set()


def test_modules_that_answer_at_once_never_import_tensorflow():
    for found in IMPORTS:
        if found.module in WITHOUT_TENSORFLOW and not found.ours and (found.module, found.source) != HUB_RESOLVER:
            assert found.source not in TENSORFLOW, found


HUB_RESOLVER = ("storage", "tensorflow_hub")  # Inside the function that resolves a hub's URL.


def test_slow_packages_are_imported_inside_the_functions_that_use_them():
    for found in IMPORTS:
        if found.at_once and not found.ours:
            assert found.source not in SLOW, found


@pytest.mark.parametrize(
    "modules",
    [
        ["tf_finetune"],
        ["tf_finetune.cli", "tf_finetune.job", "tf_finetune.tables", "tf_finetune.demo", "tf_finetune.results"]
        + [
            f"tf_finetune.{name}"
            for name in sorted(LEVELS[1])
            if any(PACKAGE.glob(f"{name}.py")) or (PACKAGE / name).is_dir()
        ]
        + ["tf_finetune.feature_cache.space", "tf_finetune.checking", "tf_finetune.inspection.photo_channels"]
        + ["tf_finetune.inspection.text_channels", "tf_finetune.inspection.quarantine", "tf_finetune.hosts.team"],
    ],
    ids=["the package", "all that answers at once"],
)
def test_importing_in_a_fresh_process_loads_nothing_heavy(modules):
    program = (
        f"import sys, {', '.join(modules)}\n"
        "tf_finetune.METRIC_DEFINITIONS, tf_finetune.train, tf_finetune.load, tf_finetune.__version__\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    loaded = set(ran.stdout.split())
    assert "tf_finetune" in loaded
    assert not loaded & (TENSORFLOW | SLOW)
    assert ran.stderr == ""
