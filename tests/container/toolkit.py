"""Starts training as SageMaker does: by its training toolkit's `train`, or by SDK 3's drivers, which do without it."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples" / "sagemaker"
ENTRY_SCRIPT = EXAMPLES / "finetune.py"
TRAIN = Path(sys.executable).with_name("train")
IS_INSTALLED = TRAIN.is_file() and importlib.util.find_spec("sagemaker_training") is not None
TIMEOUT = 300  # Seconds; a run takes about 12.


def as_framework_estimator(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns hyperparameters as the framework estimators of SDK 2 send them: each value as JSON."""
    return {name: json.dumps(value) for name, value in values.items()}


def as_estimator(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns hyperparameters as SDK 2's generic Estimator sends them: str() of each value."""
    return {name: str(value) for name, value in values.items()}


def as_model_trainer(values: Mapping[str, Any]) -> dict[str, str]:
    """Returns hyperparameters as SDK 3's ModelTrainer sends them: strings as they are, the rest as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}


def prepare(
    base: Path,
    channels: Mapping[str, Path],
    hyperparameters: Mapping[str, str],
    hosts: Sequence[str] = ("localhost",),
    current: str = "localhost",
) -> Path:
    """Makes the folder that a container has at /opt/ml, as SageMaker leaves it before the start."""
    for folder in ("input/config", "input/data", "model", "output/data", "code"):
        (base / folder).mkdir(parents=True)
    for name, source in channels.items():
        target = base / "input" / "data" / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            target.mkdir()
            shutil.copy(source, target)
    # These host names must resolve; the toolkit would wait minutes for one that does not.
    resources = {"current_host": current, "hosts": list(hosts), "network_interface_name": "eth0"}
    inputs = {name: {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"} for name in channels}
    for name, content in (
        ("hyperparameters", dict(hyperparameters)),
        ("resourceconfig", resources),
        ("inputdataconfig", inputs),
    ):
        (base / "input" / "config" / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return base


def pack_code(folder: Path) -> Path:
    """Returns the sourcedir.tar.gz that SDK 2 makes of the entry script's folder (here of the script alone)."""
    with tarfile.open(folder / "sourcedir.tar.gz", "w:gz") as packed:
        packed.add(ENTRY_SCRIPT, ENTRY_SCRIPT.name)
    return folder / "sourcedir.tar.gz"


def run_toolkit(base: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the real `train` of sagemaker-training, as the image's command does."""
    return _run([str(TRAIN)], base, base, variables)


def run_driver(base: Path, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the entry script as SDK 3's drivers do: SM_* variables, and an argument list in the given order."""
    given = json.loads((base / "input" / "config" / "hyperparameters.json").read_text(encoding="utf-8"))
    values = {name: _decoded(value) for name, value in given.items()}
    arguments = []
    for name, value in values.items():
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    variables = {**variables_of(base, values), **variables}
    return _run([sys.executable, str(ENTRY_SCRIPT), *arguments], base, cwd, variables)


def run_in_shell(base: Path, values: Mapping[str, Any], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the entry script as older toolkits do: the command is one line, unquoted, for a shell."""
    arguments = [word for name, value in sorted(values.items()) for word in (f"--{name}", str(value))]
    variables = {**variables_of(base, values), "SM_USER_ARGS": json.dumps(arguments), **variables}
    line = " ".join([sys.executable, str(ENTRY_SCRIPT), *arguments])
    return _run(["/bin/sh", "-c", line], base, base / "code", variables)


def variables_of(base: Path, values: Mapping[str, Any]) -> dict[str, str]:
    """Returns the SM_* variables that toolkit and drivers have in common and that a script may rely on."""
    channels = [folder.name for folder in sorted((base / "input" / "data").iterdir())]
    return {
        "SM_MODEL_DIR": str(base / "model"),
        "SM_OUTPUT_DATA_DIR": str(base / "output" / "data"),
        "SM_CHANNELS": json.dumps(channels),
        **{f"SM_CHANNEL_{name.upper()}": str(base / "input" / "data" / name) for name in channels},
        "SM_HPS": json.dumps(dict(values)),
        **{f"SM_HP_{name.upper()}": str(value) for name, value in values.items()},
        "SM_HOSTS": '["localhost"]',
        "SM_CURRENT_HOST": "localhost",
        "SM_NUM_GPUS": "0",
        "SM_RESOURCE_CONFIG": (base / "input" / "config" / "resourceconfig.json").read_text(encoding="utf-8"),
    }


def files_below(folder: Path) -> set[str]:
    """Returns the paths of all files, and of all hidden folders, relative to a folder."""
    found = folder.rglob("*")
    return {str(path.relative_to(folder)) for path in found if path.is_file() or path.name.startswith(".")}


def _run(command: list[str], base: Path, cwd: Path, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
    cache = base.with_name(f"{base.name}-cache")
    environment = {**kept, "SAGEMAKER_BASE_DIR": str(base), "TF_FINETUNE_CACHE": str(cache), **variables}
    return subprocess.run(
        command,
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )


def _decoded(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value
