"""What a caller must know of an exported file, as JSON: inside of the file and beside it.

Dimension letters: B batch, H W pixels, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

NAME = "tf_finetune.json"  # Of the description inside of a file.
LABELS = "labels.txt"  # One class name a line, in the order of the probabilities.
INPUT, OUTPUT = "pixels", "probabilities"
FORMAT_VERSION = 1


def make(archive: Mapping[str, Any], antialias_from: int, without_antialias: bool) -> dict[str, Any]:
    """Returns the description.

    Args:
        archive: The tf_finetune.json of the archive.
        antialias_from: By which factor a photo's sides must be larger, on average, for resizing to antialias.
        without_antialias: Whether the method of resizing never does.
    """
    size, method = archive["preprocessing"]["image_size"], archive["preprocessing"]["interpolation"]
    least = (antialias_from * size) ** 2
    never = f"never: {method} does not"
    names = list(archive["class_names"])
    return {
        "format_version": FORMAT_VERSION,
        "task": "image",
        "backbone": archive["backbone"],
        "class_names": names,
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": [None, size, size, 3],
            "layout": "batch, height, width, colour; any batch size",
            "colours": "RGB",
            "range": [0, 255],
            "scaling": "none by the caller: the model scales and shifts the values itself",
        },
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [None, len(names)], "order": "as class_names"},
        "preprocessing": {
            "1 decode": "to RGB of 8 bits (of 16 bits the upper 8); what is transparent is seen on white",
            "2 turn": "as the photo's EXIF orientation says: the model cannot know it",
            "3 resize": f"to {size} x {size} pixels, each side by its own factor: nothing is cropped, nothing is added",
            "method": f"{method} of tf.image.resize (half-pixel centres); no rounding afterwards",
            "antialias": never if without_antialias else f"if height x width of the photo is {least} pixels or more",
            # The same for programs.
            "resize": {
                "height": size,
                "width": size,
                "keeps_aspect_ratio": False,
                "method": method,
                "antialias_from_pixels": None if without_antialias else least,
            },
        },
    }


def as_text(description: Mapping[str, Any]) -> str:
    """Returns a description as it is written."""
    return json.dumps(description, indent=2, ensure_ascii=False) + "\n"


def labels(description: Mapping[str, Any]) -> str:
    """Returns the class names, one a line."""
    return "".join(" ".join(name.splitlines()) + "\n" for name in description["class_names"])
