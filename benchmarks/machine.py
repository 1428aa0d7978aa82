"""What the figures were measured on: the machine, how busy it was, and the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import tf_finetune

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorflow-hub", "tf_keras")
PACKAGES += ("tensorflow-text", "torch")  # Not everywhere.
SIXTEEN_BIT = {"avx512_bf16", "amx_bf16"}  # CPU flags, as Linux calls them.


def describe() -> dict[str, Any]:
    """Returns the CPU's model, its cores, whether it computes in bfloat16, and the load of the last minute."""
    facts = _cpu_facts()
    return {
        "cpu": facts.get("model name", platform.processor() or platform.machine()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "has_16_bit": bool(SIXTEEN_BIT & set(facts.get("flags", "").split())),
        "system": f"{platform.system()} {platform.machine()}",
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_facts() -> dict[str, str]:
    """Returns what Linux says of its first CPU; nothing elsewhere."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that are compared, where they are installed."""
    found = {"tf_finetune": tf_finetune.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
