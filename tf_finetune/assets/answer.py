"""Answers files by an exported model, knowing nothing of tf_finetune: the parity gate's other side.

Usage: python answer.py ARCHIVE_OR_FOLDER INPUTS.json OUTPUT.json
INPUTS.json is {"files": [path, ...]} or {"texts": [text, ...]}.
OUTPUT.json becomes {"probabilities": [[float, ...], ...]}.
"""

import json
import os
import sys
import tarfile
import tempfile

sys.modules["tf_finetune"] = None  # type: ignore[assignment]  # Importing it is an error from here on.
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def read(path: str) -> bytes:
    """Returns a file's raw bytes."""
    with open(path, "rb") as stream:
        return stream.read()


def main(archive: str, inputs_file: str, output_file: str) -> None:
    """Loads the archive's SavedModel, calls its serving signature on the raw inputs, writes the probabilities."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        if os.path.isfile(archive):
            with tarfile.open(archive) as tar:
                if hasattr(tarfile, "data_filter"):
                    tar.extraction_filter = tarfile.data_filter
                tar.extractall(folder)
            archive = folder
        with open(os.path.join(archive, "tf_finetune.json"), encoding="utf-8") as stream:
            if json.load(stream)["custom_ops"]:
                import tensorflow_text  # noqa: F401  (makes its operations known)
        model = tf.saved_model.load(os.path.join(archive, "1"))
        with open(inputs_file, encoding="utf-8") as stream:
            inputs = json.load(stream)
        contents = inputs.get("texts")
        if contents is None:
            contents = [read(path) for path in inputs["files"]]
        signature = model.signatures["serving_default"]
        (name,) = signature.structured_input_signature[1]
        rows = []
        for start in range(0, len(contents), 16):
            rows += signature(**{name: tf.constant(contents[start : start + 16])})["probabilities"].numpy().tolist()
    with open(output_file, "w", encoding="utf-8") as stream:
        json.dump({"probabilities": rows}, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
