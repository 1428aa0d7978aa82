"""LiteRT (TensorFlow Lite) files."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_finetune import devices
from tf_finetune.errors import ExportError, FinetuneError, listed
from tf_finetune.targets import description as descriptions
from tf_finetune.targets import metadata
from tf_finetune.targets.graph import Model, each


def convert(model: Model, calibration: Callable[[], Iterator[np.ndarray]] | None) -> bytes:
    """Returns the file; its input and output are float32, also where it computes in 8 bits.

    Args:
        model: What it is to answer as.
        calibration: Gives batches of pixels to set the scales of 8 bits by; None for float32.

    Raises:
        ExportError: The graph has operations that LiteRT lacks.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([model.cut.get_concrete_function()], model.module)
    if calibration is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.representative_dataset = lambda: ([pixels] for pixels in each(calibration()))
    failure = ""
    with devices.without_noise():
        try:
            return converter.convert()
        except (OSError, MemoryError, FinetuneError):  # Of the calibration's photos, too.
            raise
        except Exception as error:  # ConverterError, ValueError, RuntimeError: the converter's choice.
            failure = str(error)
    raise ExportError(f"The model cannot be written as LiteRT: {_reason(failure)}. Nothing was written.")


def _reason(failure: str) -> str:
    """Returns the names of the operations that LiteRT lacks, out of the converter's message, or its beginning."""
    lines = re.findall(r"^\s*(?:Custom|Flex) ops: (.+)$", failure, re.MULTILINE)
    names = {name for line in lines for name in line.split(", ")} | set(
        re.findall(r"'tf\.(\w+)' op is neither", failure)
    )
    if names:
        return f"LiteRT has no operations for {listed(sorted(names))}"
    return (failure.strip().splitlines() or ["the converter says nothing"])[0][:300]


def described(content: bytes, description: Mapping[str, Any]) -> bytes:
    """Returns the file with its metadata, and with its description and its class names as a ZIP archive at its end.

    That is where TensorFlow Lite's metadata keeps label files, and any ZIP reader finds them.
    """
    stream = io.BytesIO()
    stream.write(metadata.added(content, description))
    with zipfile.ZipFile(stream, "a") as archive:
        for name, text in (
            (descriptions.NAME, descriptions.as_text(description)),
            (descriptions.LABELS, descriptions.labels(description)),
        ):
            archive.writestr(zipfile.ZipInfo(name), text)  # Of 1980, so that the same model gives the same bytes.
    return stream.getvalue()
