"""The straight line of an export: load, convert, describe, prove, hand over."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tf_finetune import devices  # isort: skip  (first: it imports TensorFlow without its noise)

import numpy as np

from tf_finetune import examples, export, images
from tf_finetune.errors import DataError, ExportError
from tf_finetune.examples import Examples
from tf_finetune.targets import CALIBRATION, FORMATS, VALIDATION, Order, described_at, graph, litert, onnx, proof
from tf_finetune.targets import description as descriptions
from tf_finetune.targets.graph import Model

__all__ = ["devices", "write"]

log = logging.getLogger(__name__)

LEAST_PHOTOS = 20  # Of a channel for int8: half of them calibrate, half of them measure.
CALIBRATED_ON, MEASURED_ON, PROVED_ON = 300, 1000, 64  # Photos at most.


def write(order: Order) -> dict[str, Any]:
    """Does what `tf_finetune.targets.export` says."""
    model = graph.load(order)
    first, second = _samples(order, model)
    log.info("converting to %s%s", FORMATS[order.format].title, " in 8 bits" if order.is_int8 else "")
    with _aside(order.output) as (file, beside):
        described = descriptions.make(
            model.whole.description, images.ANTIALIAS_FROM, model.preprocessing.interpolation not in images.KERNELS
        )
        described["computes_in"] = "int8" if order.is_int8 else "float32"
        content = _content(order, model, described, first)
        file.write_bytes(content)
        record = {
            **described,
            "format": order.format,
            "file": order.output.name,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "opset": onnx.OPSET if order.format == "onnx" else None,
            "proof": _proof(order, model, file, first, second),
            "versions": export.versions(FORMATS[order.format].needed),
        }
        beside.write_text(descriptions.as_text(record), encoding="utf-8")
    return {**record, "path": str(order.output)}


def _samples(order: Order, model: Model) -> tuple[Examples | None, Examples | None]:
    """Returns the photos to calibrate with, or to prove the file on, and those to measure int8 on.

    Raises:
        DataError: A channel has another class, or too few photos for int8.
    """
    if order.calibration is None:
        return None, None
    first, second = (
        None if channel is None else examples.read("image", channel, model.whole.class_names, name)
        for channel, name in ((order.calibration, CALIBRATION), (order.validation, VALIDATION))
    )
    assert first is not None
    if not order.is_int8:
        return _spread(first, PROVED_ON), None
    if second is None:
        if len(first) < LEAST_PHOTOS:
            raise DataError(
                f"{order.calibration} has {len(first)} photos. Expected at least {LEAST_PHOTOS} to calibrate 8 bits "
                "with and to measure what they cost, better some hundreds. Give the channel that the model was "
                "trained on."
            )
        # They come class by class, so that every other one leaves either half with all classes.
        first, second = (dataclasses.replace(first, items=first.items[start::2]) for start in (0, 1))
    return _spread(first, CALIBRATED_ON), _spread(second, MEASURED_ON)


def _spread(photos: Examples, most: int) -> Examples:
    """Returns at most so many examples, evenly spread over all."""
    places = sorted({round(place) for place in np.linspace(0, len(photos) - 1, min(len(photos), most))})
    return dataclasses.replace(photos, items=tuple(photos.items[place] for place in places))


def _content(order: Order, model: Model, described: dict[str, Any], calibration: Examples | None) -> bytes:
    if order.format == "onnx":
        return onnx.described(onnx.convert(model), described)
    if not order.is_int8 or calibration is None:
        return litert.described(litert.convert(model, None), described)
    paths = _paths(calibration)
    return litert.described(litert.convert(model, lambda: graph.pixels_of(model, paths)), described)


def _proof(order: Order, model: Model, file: Path, first: Examples | None, second: Examples | None) -> dict[str, Any]:
    """Returns the figures of the file beside the archive's.

    Raises:
        ExportError: They are too far from each other.
    """
    measured = second or first
    photos: list[Any] = graph.synthetic_photos(model.preprocessing.image_size) if measured is None else _paths(measured)
    expected = graph.probabilities(model, photos)  # First: it names a photo that cannot be decoded.
    answered = proof.answers(file, order.format, graph.pixels_of(model, photos))
    channel = VALIDATION if order.validation else CALIBRATION
    on = {"on": "noise and gradients" if measured is None else f"photos of the {channel} channel"}
    if order.is_int8 and first is not None and measured is not None:
        labels = np.array(measured.labels)
        return {**on, **proof.check_loss(answered, expected, labels, len(first), order.max_loss)}
    return {**on, **proof.check_parity(answered, expected, order.format)}


def _paths(photos: Examples) -> list[str]:
    return [str(example.content) for example in photos.items]


@contextlib.contextmanager
def _aside(output: Path) -> Iterator[tuple[Path, Path]]:
    """Gives places for the file and its description, which are renamed when the body has ended well.

    Raises:
        ExportError: The disk does not cooperate.
    """
    token = uuid.uuid4().hex
    pairs = [(place.with_name(f".{place.name}.{token}"), place) for place in (output, described_at(output))]
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield pairs[0][0], pairs[1][0]
        for aside, place in pairs:
            aside.replace(place)
    except OSError as error:
        raise ExportError(
            f"{output} could not be written: {error.strerror or error}. Expected a place with enough room. Free some, "
            "or give another --output."
        ) from error
    finally:
        for aside, _ in pairs:
            with contextlib.suppress(OSError):
                aside.unlink()
