"""Answers pixels by an exported file, knowing neither tf_finetune nor TensorFlow: the other side of the file's gate.

Its arguments are the format, "litert" or "onnx", and the file. It reads batches from standard input: a line of JSON
with their shape, [B, H, W, 3], then so many float32. It answers each on standard output: a line with the shape, [B, K],
then so many float32.
"""

import json
import os
import sys

for _name in ("tf_finetune", "tensorflow"):
    sys.modules[_name] = None  # type: ignore[assignment]  # Importing it is an error from here on.

import numpy as np  # noqa: E402


def litert(path):
    """Returns a function from pixels to probabilities."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=path).get_signature_runner()
    return lambda pixels: runner(pixels=pixels)["probabilities"]


def onnx(path):
    """Returns a function from pixels to probabilities."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probabilities"], {"pixels": pixels})[0]


def main(kind, path):
    """Answers batches until there are no more."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What libraries write to standard output is no answer.
    answer = {"litert": litert, "onnx": onnx}[kind](path)
    while line := sys.stdin.buffer.readline():
        shape = json.loads(line)
        content = sys.stdin.buffer.read(4 * int(np.prod(shape)))
        rows = np.ascontiguousarray(answer(np.frombuffer(content, np.float32).reshape(shape)), np.float32)
        out.write(json.dumps(rows.shape).encode() + b"\n" + rows.tobytes())
        out.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
