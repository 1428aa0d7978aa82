"""The code that a job runs: sourcedir.tar.gz with this package, the entry script and what else pip must install."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_finetune import archive

PROGRAM = "finetune.py"
SETTINGS = "settings.json"
REQUIREMENTS_FILE = "requirements.txt"
PACKAGE = Path(__file__).parents[1]
# What the package needs, as setup.cfg has it; pip leaves alone what an image has. TensorFlow, Keras and NumPy are the
# image's: naming them would let pip replace them.
REQUIREMENTS = (
    "pillow>=10.2",
    "scikit-learn>=1.3",
    "scipy>=1.10.1",
    "threadpoolctl>=3.1",
    "pydantic>=2.6",
    "rich>=13.0",
    "matplotlib>=3.7",
    "jinja2>=3.1",
    "boto3>=1.36",
    "pyyaml>=6.0.1",
)
OF_THE_IMAGE = ("tensorflow", "keras", "numpy")
OF_HUBS = ("tensorflow-hub>=0.16.1", "setuptools>=65.5,<81", "kagglehub>=1")
# A value that passes a shell unquoted, as some of AWS's images have it do, and arrives as it was.
_INERT = re.compile(r"[\w@%+=:,./-]+", re.ASCII)

ENTRY_SCRIPT = '''"""Entry script that `tf-finetune submit` sends: `tf-finetune train` with the job's channels."""

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

try:
    from tf_finetune import cli
except ModuleNotFoundError as missing:
    message = (
        f"The training image lacks {missing.name}, which tf_finetune needs. Take an image that has it (--image), or "
        "let the job have network, so that pip can install it."
    )
    # SageMaker shows this file's text as the reason of the failure; its toolkit would show the exit code only.
    output = Path(os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml"), "output")
    if output.is_dir():
        (output / "failure").write_text(message, encoding="utf-8")
    sys.exit(message)

if __name__ == "__main__":
    # Values with characters that older images' shells would take for their own.
    settings = json.loads((HERE / "settings.json").read_text(encoding="utf-8"))
    sys.exit(cli.main(["train", *(f"--{name}={value}" for name, value in settings.items()), *sys.argv[1:]]))
'''


def passes_a_shell(value: Any) -> bool:
    """Returns whether a hyperparameter arrives as it was where an image's toolkit hands it to a shell.

    >>> passes_a_shell("-1,1"), passes_a_shell(0.1), passes_a_shell(r"(patient[0-9]+)")
    (True, True, False)
    """
    return bool(_INERT.fullmatch(str(value)))


def requirements(tensorflow: str | None, needs_hub: bool, has_texts: bool) -> str:
    """Returns requirements.txt for a job.

    Args:
        tensorflow: Version of the image's TensorFlow, e.g. "2.21"; None where it is not known.
        needs_hub: Whether a backbone is fetched from a hub.
        has_texts: Whether the job is, or may be, on texts.
    """
    lines = list(REQUIREMENTS)
    pin = f"=={tensorflow}.*" if tensorflow else ""
    if needs_hub:
        lines += OF_HUBS
    if has_texts:
        lines.append(f"tensorflow-text{pin}")
    if pin and (needs_hub or has_texts):  # Both bring TensorFlow along, and would bring the newest.
        lines.append(f"tensorflow{pin}")
    return "\n".join(lines) + "\n"


def pack(file: Path, requirements_text: str | None, settings: Mapping[str, Any]) -> None:
    """Writes sourcedir.tar.gz, whose bytes depend on its content only.

    Args:
        file: Where to.
        requirements_text: Content of requirements.txt; None for a job without network, where pip must not be run.
        settings: Hyperparameters that do not pass a shell.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "code")
        shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
        (folder / PROGRAM).write_text(ENTRY_SCRIPT, encoding="utf-8")
        (folder / SETTINGS).write_text(json.dumps(settings, sort_keys=True) + "\n", encoding="utf-8")
        if requirements_text is not None:
            (folder / REQUIREMENTS_FILE).write_text(requirements_text, encoding="utf-8")
        archive.pack(folder, file)
