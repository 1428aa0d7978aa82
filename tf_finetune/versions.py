"""The oldest TensorFlow and Keras that the package runs with; what is older is refused in one message.

pip sees to it where it installs the package, but not where an image brings TensorFlow along, or `--no-deps` was said.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re

from tf_finetune.errors import UsageError

LOWEST = {"tensorflow": "2.18", "keras": "3.5"}  # As in setup.cfg, which cannot be read where the package is installed.


def check(name: str, found: str | None = None) -> None:
    """Refuses a version that is too old.

    Args:
        name: "tensorflow" or "keras".
        found: Its version, e.g. "2.18.0rc1"; None looks among the installed packages, and takes it that one that is
            not installed under this name will say so when it is imported.

    Raises:
        UsageError: It is older than the lowest version that works.
    """
    if found is None:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return
    if _numbers(found) < _numbers(LOWEST[name]):
        wanted = " ".join(f'"{other}>={lowest}"' for other, lowest in LOWEST.items())
        raise UsageError(
            f"Expected {name} {LOWEST[name]} or newer; received {found}. Run `pip install --upgrade {wanted}`, or take "
            "an image or environment that has them."
        )


@functools.cache
def decodes_webp(found: str | None = None) -> bool:
    """Returns whether a TensorFlow of this version, by default the installed one, decodes WebP: since 2.20."""
    if found is None:
        try:
            found = importlib.metadata.version("tensorflow")
        except importlib.metadata.PackageNotFoundError:  # Builds of other names are mostly new.
            return True
    return _numbers(found) >= (2, 20)


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
