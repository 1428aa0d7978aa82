"""Whether an exported file answers as the archive does, asked in a process that knows neither us nor TensorFlow.

Dimension letters: B batch, H W pixels, K classes, N examples.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from tf_finetune.errors import ExportError
from tf_finetune.targets import FORMATS

TOLERANCE = 1e-4
SECONDS = 900  # That the process may take for everything.


def answers(file: Path, format: str, batches: Iterable[np.ndarray]) -> np.ndarray:
    """Returns float32 [N, K]: what a file answers in a fresh process.

    Args:
        file: The exported file.
        format: "litert" or "onnx".
        batches: float32 [B, H, W, 3] each.

    Raises:
        ExportError: The file does not load, or does not answer.
    """
    with _process(file, format) as ask:
        return np.concatenate([ask(batch) for batch in batches])


@contextlib.contextmanager
def _process(file: Path, format: str) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Gives the function that asks the process; see assets/answer_pixels.py."""
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryFile() as said:
        script = Path(scratch, "answer_pixels.py")
        shutil.copyfile(str(resources.files("tf_finetune") / "assets" / script.name), script)
        command = [sys.executable, str(script), format, str(file.absolute())]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=scratch, stdin=pipe, stdout=pipe, stderr=said) as process:
            assert process.stdin is not None and process.stdout is not None
            limit = threading.Timer(SECONDS, process.kill)
            limit.start()
            try:
                yield lambda batch: _asked(process, batch)
            except (BrokenPipeError, EOFError):
                process.wait()
                said.seek(0)
                lines = said.read().decode("utf-8", "replace").strip().splitlines() or [
                    f"exit code {process.returncode}"
                ]
                raise ExportError(
                    f"The {FORMATS[format].title} file does not answer in a fresh process: {lines[-1][:300]}. "
                    "Nothing was written. Please report this with the backbone's name."
                ) from None
            finally:
                limit.cancel()
                process.kill()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


def _asked(process: subprocess.Popen[bytes], batch: np.ndarray) -> np.ndarray:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(batch.shape).encode() + b"\n" + np.ascontiguousarray(batch, np.float32).tobytes())
    process.stdin.flush()
    line = process.stdout.readline()
    shape = json.loads(line) if line else [0]
    content = process.stdout.read(4 * int(np.prod(shape)))
    if not line or len(content) < 4 * int(np.prod(shape)):
        raise EOFError
    return np.frombuffer(content, np.float32).reshape(shape)


def check_parity(answered: np.ndarray, expected: np.ndarray, format: str) -> dict[str, Any]:
    """Returns how far a float32 file is from the archive.

    Args:
        answered: float32 [N, K]. The file's probabilities.
        expected: float32 [N, K]. Those of the archive's SavedModel, from the photos' bytes.
        format: "litert" or "onnx".

    Raises:
        ExportError: A probability differs by more than TOLERANCE.
    """
    difference = _largest(answered, expected)
    if not difference <= TOLERANCE:  # NaN fails too.
        raise ExportError(
            f"The {FORMATS[format].title} file answers otherwise than the archive: a probability differs by "
            f"{difference:.2g}, more than {TOLERANCE:g}. Nothing was written. Please report this with the "
            "backbone's name."
        )
    return {"examples": len(expected), "largest_difference": difference, "tolerance": TOLERANCE}


def check_loss(
    answered: np.ndarray, expected: np.ndarray, labels: np.ndarray, calibrated_on: int, max_loss: float
) -> dict[str, Any]:
    """Returns what computing in 8 bits costs on photos that it was not calibrated with.

    Args:
        answered: float32 [N, K]. The file's probabilities.
        expected: float32 [N, K]. Those of the archive's SavedModel.
        labels: int [N], in [0, K).
        calibrated_on: The number of the photos that it was calibrated with.
        max_loss: Most accuracy that may be lost, a fraction.

    Raises:
        ExportError: More is lost.
    """
    right, right_before = ((rows.argmax(axis=1) == labels) for rows in (answered, expected))
    loss = (int(right_before.sum()) - int(right.sum())) / len(labels)
    figures = {
        "calibrated_on": calibrated_on,
        "measured_on": len(labels),
        "accuracy_float32": float(right_before.mean()),
        "accuracy_int8": float(right.mean()),
        "loss": loss,
        "max_loss": max_loss,
        "same_prediction": float((answered.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "largest_difference": _largest(answered, expected),
    }
    if loss > max_loss or not np.isfinite(answered).all():
        raise ExportError(
            f"int8 loses too much: accuracy {figures['accuracy_int8']:.4f} instead of "
            f"{figures['accuracy_float32']:.4f} in float32, on {len(labels):,} photos that it was not calibrated with. "
            f"Expected a loss of at most {max_loss:g}; received {loss:.4f}. Nothing was written. Calibrate with more "
            f"photos (they were {calibrated_on:,}), allow more by --max-loss, or export without --int8."
        )
    return figures


def _largest(answered: np.ndarray, expected: np.ndarray) -> float:
    if answered.shape != expected.shape:
        return float("nan")
    return float(np.abs(answered.astype(np.float64) - expected).max())
