"""make image, train-local, serve-local and predict-local: SageMaker's contract on this machine, without AWS or an SDK.

What they are told comes from the environment, where make puts the variables of its command line. Needs Python alone.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import engines
from engines import ProblemError

ROOT = Path(__file__).resolve().parents[1]
BUILD_ARGUMENTS = ("BASE_IMAGE", "TENSORFLOW", "BACKBONES", "PIP_CERT")
CHANNELS = {"training": "DATA", "validation": "VALIDATION", "test": "TEST", "model": "MODEL"}
ARCHIVES = (".tar.gz", ".tgz")
CONTENT_TYPES = {".txt": "application/x-text", ".csv": "text/csv", ".json": "application/json"}
CONTENT_TYPES[".jsonl"] = "application/jsonlines"
ML = "/opt/ml"


def image(given: Mapping[str, str]) -> int:
    """Builds the image."""
    engine = engines.choose(given.get("ENGINE", ""))
    arguments = {name: given[name] for name in BUILD_ARGUMENTS if name in given}
    initial = (ROOT / "tf_finetune" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"', initial, re.MULTILINE)
    arguments["VERSION"] = version[1] if version else "unknown"
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    arguments["REVISION"] = asked.stdout.strip() or "unknown"
    return engines.build(engine, _image(given), ROOT, arguments)


def train(given: Mapping[str, str]) -> int:
    """Runs a training job on DATA, whose results go to OUT."""
    data, out = _path(given, "DATA", "a folder of class folders of photos, or with data.csv"), given.get("OUT")
    if not data.is_dir():
        raise ProblemError(f"DATA: expected a folder; {data} is none.")
    if not out:
        raise ProblemError("OUT: expected a folder for the results; received nothing. make train-local DATA=… OUT=…")
    channels = {name: _path(given, variable, "a folder") for name, variable in CHANNELS.items() if given.get(variable)}
    hyperparameters = hyperparameters_of(given.get("HYPERPARAMETERS", ""))
    engine = engines.choose(given.get("ENGINE", ""))
    folder = Path(out)
    mounts: dict[str, tuple[Path, bool]] = {}
    for name in ("model", "output", "checkpoints"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        mounts[f"{ML}/{name}"] = folder / name, True
    for last in ("failure", "success"):  # Of an earlier job in the same place; the toolkit would leave them.
        (folder / "output" / last).unlink(missing_ok=True)
    for name, place in channels.items():
        inside = f"{ML}/input/data/{name}"
        mounts[inside if place.is_dir() else f"{inside}/{place.name}"] = place, False
    with tempfile.TemporaryDirectory() as config:
        write_config(Path(config), channels, hyperparameters)
        mounts[f"{ML}/input/config"] = Path(config), False
        code = engines.run(engine, _image(given), ["train"], mounts)
    if code == 0:
        print(f"model: {folder / 'model'}\nreport: {folder / 'output' / 'data' / 'report.html'}")
        print(f"to ask it: make serve-local MODEL={shlex.quote(str(folder / 'model'))}")
    return code


def write_config(folder: Path, channels: Mapping[str, Any], hyperparameters: Mapping[str, str]) -> None:
    """Writes what SageMaker tells a container of its job."""
    folder.chmod(0o755)  # For a container's other users.
    inputs = {name: {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"} for name in channels}
    # A host of a name that resolves: the toolkit waits for others for minutes.
    resources = {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "eth0"}
    for name, content in (
        ("hyperparameters", hyperparameters),
        ("inputdataconfig", inputs),
        ("resourceconfig", resources),
    ):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def hyperparameters_of(text: str) -> dict[str, str]:
    """Returns hyperparameters as SageMaker passes them, as strings.

    Args:
        text: `name=value name=value`, a JSON object, or the path of a .json file that holds one.
    """
    text = text.strip()
    if text.endswith(".json"):
        try:
            text = Path(text).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ProblemError(f"HYPERPARAMETERS: {text} cannot be read: {error.strerror}.") from None
    if text.startswith("{"):
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ProblemError(f"HYPERPARAMETERS: expected a JSON object; {error}.") from None
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    words = [word.partition("=") for word in text.split()]
    wrong = [name for name, sign, _ in words if not sign]
    if wrong:
        raise ProblemError(
            f"HYPERPARAMETERS: expected name=value with blanks between, or JSON; received {', '.join(wrong)}. "
            "For example: HYPERPARAMETERS='epochs=3 backbone=minilm-l6'"
        )
    return {name: value for name, _, value in words}


def serve(given: Mapping[str, str]) -> int:
    """Serves MODEL until it is told to end."""
    model = _path(given, "MODEL", "a model.tar.gz, or the folder that it was unpacked to")
    if not model.is_dir() and not model.name.endswith(ARCHIVES):
        raise ProblemError(f"MODEL: expected a model.tar.gz, or the folder that it was unpacked to; received {model}.")
    engine = engines.choose(given.get("ENGINE", ""))
    inside = f"{ML}/model" if model.is_dir() else f"{ML}/model/model.tar.gz"
    print(f"http://127.0.0.1:{_port(given)} when it has started; Ctrl-C ends it", file=sys.stderr)
    return engines.run(engine, _image(given), ["serve"], {inside: (model, False)}, _port(given))


def predict(given: Mapping[str, str]) -> int:
    """Asks the model that `make serve-local` serves for FILE: a photo; texts as .txt, .csv, .json or .jsonl."""
    file = _path(given, "FILE", "a photo, or texts as .txt, .csv, .json or .jsonl")
    address = f"http://127.0.0.1:{_port(given)}"
    kind = CONTENT_TYPES.get(file.suffix.lower(), "application/x-image")
    headers = {"Content-Type": kind, "Accept": "application/json;verbose"}
    request = urllib.request.Request(f"{address}/invocations", file.read_bytes(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # It is this machine.
    try:
        with direct.open(request, timeout=60) as answer:
            print(answer.read().decode().strip())
        return 0
    except urllib.error.HTTPError as error:
        raise ProblemError(f"{address} refused {file}: {error.read().decode(errors='replace').strip()}") from None
    except OSError as error:
        why = getattr(error, "reason", error)
        raise ProblemError(f"Nothing answers at {address} ({why}). Start it: make serve-local MODEL=…") from None


def _image(given: Mapping[str, str]) -> str:
    return given.get("IMAGE") or "tf-finetune"


def _port(given: Mapping[str, str]) -> int:
    text = given.get("PORT") or "8080"
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise ProblemError(f"PORT: expected an integer from 1 to 65535; received {text}.")
    return int(text)


def _path(given: Mapping[str, str], variable: str, wanted: str) -> Path:
    """Returns the path that a variable holds; there must be something."""
    text = given.get(variable)
    if not text:
        raise ProblemError(f"{variable}: expected {wanted}; received nothing. Give {variable}=…")
    path = Path(text).expanduser()
    if not path.exists():
        raise ProblemError(f"{variable}: expected {wanted}; there is no {text}.")
    return path


if __name__ == "__main__":
    try:
        sys.exit({"image": image, "train": train, "serve": serve, "predict": predict}[sys.argv[1]](os.environ))
    except ProblemError as problem:
        sys.exit(f"{problem}")
