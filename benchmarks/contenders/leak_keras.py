"""The photos of the two parts as TF-Hub's make_image_classifier had them, by Keras's own reader.

Its default since TensorFlow 2.5 asks Keras twice for a part of one folder: for training shuffled by seed 123, for
validation not shuffled. Keras shuffles the list of files before it cuts it in two, so the two parts are cut from
different lists. Nothing is decoded and nothing trained.
"""

from __future__ import annotations

import os
from typing import Any

import child

os.environ["TF_USE_LEGACY_KERAS"] = "1"
RATIO, SEED = 0.2, 123  # The tool's.


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the files of training and of validation."""
    import tf_keras as keras

    def files(part: str, **order: Any) -> list[str]:
        read = keras.utils.image_dataset_from_directory(
            job["folder"],
            validation_split=RATIO,
            subset=part,
            label_mode="categorical",
            seed=SEED,
            image_size=(8, 8),
            batch_size=1,
            **order,
        )
        return list(read.file_paths)

    return {"training": files("training"), "validation": files("validation", shuffle=False)}


if __name__ == "__main__":
    child.serve(main)
