"""Our own command, from the shell prompt to the proven archive, with what its report says of its stages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data as inputs
import measuring
from measuring import Run

STAGES = ("data", "backbone", "features", "head", "fine_tuning", "evaluation", "export")
EPOCH = re.compile(r"epoch (\d+)/\d+ - ")  # The line that the command logs at the end of each.


@dataclass(frozen=True)
class Command:
    """The tf-finetune command beside this Python.

    Attributes:
        words: How it is called.
        help: What `train --help` says.
        output: Where results go; each run replaces the last one's.
    """

    words: tuple[str, ...]
    help: str
    output: Path

    def takes(self, flag: str) -> bool:
        """Returns whether `train` knows a flag."""
        return flag in self.help


def command(output: Path) -> Command:
    """Returns the installed command."""
    script = Path(sys.executable).with_name("tf-finetune")
    words = (str(script),) if script.is_file() else (sys.executable, "-m", "tf_finetune.cli")
    told = subprocess.run([*words, "train", "--help"], capture_output=True, text=True, check=True).stdout
    return Command(words, told, output)


def train(
    tool: Command,
    channels: dict[str, Path],
    settings: dict[str, Any],
    cache: Path | None,
    job: dict[str, Any] | None = None,
) -> Run:
    """Trains by the command.

    Args:
        tool: The command.
        channels: Folder of each channel.
        settings: Hyperparameters; those of value None are left to their defaults.
        cache: Where features are kept; None keeps none.
        job: What the other contenders got, to compare the split with.

    Returns:
        seconds of the command, `stages` of its report, start_up, accuracy, peak_megabytes, backbone_calls, and the
        seconds at which each epoch ended.
    """
    words = [*tool.words, "train", "--output", str(tool.output), "--model-name", "benchmark"]
    words += _flags({f"--{name}": folder for name, folder in channels.items()})
    words += _flags({f"--{name}": value for name, value in settings.items() if value is not None})
    if tool.takes("--cache-dir"):
        words += ["--cache-dir", str(cache or "none")]
    ended = measuring.run(words)
    folder = tool.output / "benchmark" / "output"
    report = json.loads((folder / "data" / "report.json").read_text(encoding="utf-8"))
    if job:
        inputs.check_split(job, folder / "data" / "split.csv")
    shutil.rmtree(tool.output)
    stages = {name: report["seconds"].get(name, 0.0) for name in STAGES}
    return {
        "seconds": ended.seconds,
        "peak_megabytes": ended.peak_megabytes,
        "start_up": ended.seconds - report["seconds"]["total"],
        "stages": stages,
        "fit": stages["data"] + stages["features"] + stages["head"],
        "accuracy": report["metrics"]["validation"]["accuracy"],
        "backbone_calls": report["backbone_calls"],
        "gate_calls": report["gate_calls"],
        "precision": report.get("precision"),
        "epoch_ends": [second for second, line in ended.lines if EPOCH.match(line)],
    }


def _flags(values: dict[str, Any]) -> Sequence[str]:
    return [word for flag, value in values.items() for word in (flag, str(value))]
