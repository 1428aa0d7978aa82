"""TensorFlow Lite's metadata: what MediaPipe's ImageClassifier and other programs for phones read off a file.

Without it they refuse a model of floats. It is a FlatBuffer within the file's own, which names the files of the ZIP
archive at its end. A table is written here as a dict from the numbers of its fields, which are those of
metadata_schema.fbs (of MediaPipe and tflite-support, the same in both), to their values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from tf_finetune.targets import description as descriptions

NAME = "TFLITE_METADATA"  # Of the buffer in the model.
MODEL, METADATA = b"TFL3", b"M001"  # Identifiers of the two FlatBuffers.
PARSER = "1.0.0"  # The oldest that knows all fields below.
IMAGE, RGB, NORMALIZATION, AXIS_LABELS = np.uint8(2), np.int8(1), np.uint8(1), np.int8(2)


def added(model: bytes, description: Mapping[str, Any]) -> bytes:
    """Returns a model with the metadata in it.

    Args:
        model: As the converter wrote it.
        description: See `description.make`.
    """
    parts = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_written(_of(description), METADATA), np.uint8)
    entry.name, entry.buffer = NAME, len(parts.buffers)
    parts.buffers.append(buffer)
    parts.metadata = [*(parts.metadata or ()), entry]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(parts.Pack(builder), MODEL)
    return bytes(builder.Output())


def _of(description: Mapping[str, Any]) -> dict[int, Any]:
    """Returns the table ModelMetadata."""
    _, height, width, _ = description["input"]["shape"]
    size = {0: np.uint32(width), 1: np.uint32(height)}
    low, high = description["input"]["range"]
    pixels = {
        0: descriptions.INPUT,
        1: f"Photos, upright, of {width} x {height} pixels, RGB from {low} to {high}.",
        3: {0: IMAGE, 1: {0: RGB, 1: size}},
        # The model scales by itself: callers subtract 0 and divide by 1.
        4: [{0: NORMALIZATION, 1: {0: np.zeros(1, np.float32), 1: np.ones(1, np.float32)}}],
        5: {0: np.array([high], np.float32), 1: np.array([low], np.float32)},
    }
    probabilities = {
        0: descriptions.OUTPUT,
        1: "The probability of each class.",
        5: {0: np.ones(1, np.float32), 1: np.zeros(1, np.float32)},
        6: [{0: descriptions.LABELS, 1: "The names of the classes.", 2: AXIS_LABELS}],
    }
    return {
        0: "tf_finetune",
        1: f"Tells photos of {len(description['class_names']):,} classes apart. Backbone: {description['backbone']}.",
        3: [{2: [pixels], 3: [probabilities]}],
        6: [{0: descriptions.NAME, 1: "What the model expects and gives, as JSON."}],
        7: PARSER,
    }


def _written(table: Mapping[int, Any], identifier: bytes) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(_placed(builder, table), identifier)
    return bytes(builder.Output())


def _placed(builder: Any, value: Any) -> int:
    """Writes a string, a vector of floats or of tables, or a table, and returns its place."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, np.ndarray):
        return builder.CreateNumpyVector(value)
    if isinstance(value, list):
        places = [_placed(builder, held) for held in value]
        builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()
    # What a table refers to comes before it.
    inside = {slot: held if isinstance(held, np.generic) else _placed(builder, held) for slot, held in value.items()}
    builder.StartObject(max(inside) + 1)
    for slot, held in inside.items():
        _SLOTS.get(type(held), flatbuffers.Builder.PrependUOffsetTRelativeSlot)(builder, slot, int(held), 0)
    return builder.EndObject()


_SLOTS: dict[type, Any] = {
    np.int8: flatbuffers.Builder.PrependInt8Slot,
    np.uint8: flatbuffers.Builder.PrependUint8Slot,
    np.uint32: flatbuffers.Builder.PrependUint32Slot,
}
