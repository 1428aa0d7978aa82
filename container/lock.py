"""Writes the exact versions of all that the image installs, from setup.cfg: `make lock`, which brings uv for it.

requirements.txt serves every Python from OLDEST_PYTHON on; requirements-cuda.txt is what tensorflow[and-cuda] adds.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
SETUP = FOLDER.parent / "setup.cfg"
LOCK, CUDA_LOCK = FOLDER / "requirements.txt", FOLDER / "requirements-cuda.txt"
EXTRAS = ("serve", "text", "kaggle", "container")
OLDEST_PYTHON = "3.11"  # Debian bookworm's.
HEADING = "# Written by `make lock` from setup.cfg; do not edit.\n"
PIN = re.compile(r"^([a-z0-9-]+)==.*(?:\n    .*)*\n", re.MULTILINE)


def main() -> int:
    """Writes both files."""
    locked = compiled("", {})
    LOCK.write_text(HEADING + "".join(locked.values()), encoding="utf-8")
    with_cuda = compiled("tensorflow[and-cuda]\n", locked)
    added = [text for name, text in with_cuda.items() if name not in locked]
    CUDA_LOCK.write_text(HEADING + "".join(added), encoding="utf-8")
    return 0


def pins(file: Path) -> dict[str, str]:
    """Returns the lines of each project of a lock, by its name; some have more than one version."""
    found: dict[str, str] = {}
    for match in PIN.finditer(file.read_text(encoding="utf-8")):
        found[match[1]] = found.get(match[1], "") + match[0]
    return found


def compiled(more: str, constraints: dict[str, str]) -> dict[str, str]:
    """Returns what uv makes of setup.cfg's requirements and some more, as `pins` does."""
    scratch = {name: FOLDER / f".{name}.tmp" for name in ("more", "constraints", "out")}
    try:
        scratch["more"].write_text(more, encoding="utf-8")
        scratch["constraints"].write_text("".join(constraints.values()), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--generate-hashes"]
        command += ["--fork-strategy", "fewest", "--python-version", OLDEST_PYTHON, "--no-header", "--no-annotate"]
        command += ["--constraints", str(scratch["constraints"]), "--output-file", str(scratch["out"])]
        command += [word for extra in EXTRAS for word in ("--extra", extra)]
        subprocess.run([*command, str(SETUP), str(scratch["more"])], check=True, cwd=FOLDER)
        return pins(scratch["out"])
    finally:
        for file in scratch.values():
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
