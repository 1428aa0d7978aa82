"""Answers files by an exported model, knowing nothing of tf_finetune: the parity gate's other side.

It reads one line of JSON from standard input, once TensorFlow is imported:
{"archive": path of the archive or of its unpacked folder, "inputs": {"files": [path, ...]} or {"texts": [text, ...]},
"output": path}; and writes {"probabilities": [[float, ...], ...]} to that path.
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


def main() -> None:
    """Loads the archive's SavedModel, calls its serving signature on the raw inputs, writes the probabilities."""
    import tensorflow as tf

    line = sys.stdin.readline()
    if not line:  # Whoever started this process no longer needs it.
        return
    asked = json.loads(line)
    archive, contents = asked["archive"], asked["inputs"].get("texts")
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
        if contents is None:
            contents = [read(path) for path in asked["inputs"]["files"]]
        signature = model.signatures["serving_default"]
        (name,) = signature.structured_input_signature[1]
        rows = []
        for start in range(0, len(contents), 16):
            rows += signature(**{name: tf.constant(contents[start : start + 16])})["probabilities"].numpy().tolist()
    with open(asked["output"], "w", encoding="utf-8") as stream:
        json.dump({"probabilities": rows}, stream)


if __name__ == "__main__":
    main()
    os._exit(0)  # TensorFlow takes a second or two to be taken down, for nothing.
