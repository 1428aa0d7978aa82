"""Backbone cards: what a backbone is called, where it comes from and what it expects of its input.

The facts are in `images.csv` and `texts.csv`, one row a backbone. They are what the publishers' pages and code state;
what nobody states is left empty and stays None, because a wrong pixel range trains without an error, to a worse model.
Every id of SageMaker JumpStart's image classification names the feature vector of its network, not the classifier.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tf_finetune.errors import listed

DEFAULT_IMAGE = "efficientnet-lite0"
DEFAULT_TEXT = "universal-sentence-encoder-multilingual"
PACKAGED = "packaged:"
TABLES = ("images.csv", "texts.csv")


@dataclass(frozen=True)
class Card:
    """A backbone and what it expects of its input.

    Attributes:
        id: What users call it; for JumpStart's models, JumpStart's id.
        task: "image" or "text".
        handle: Where it is loaded from: a TF-Hub URL, or "packaged:NAME" for one made from a PyPI wheel.
        preprocessor: TF-Hub URL of the SavedModel that makes this encoder's inputs from texts; None: it takes photos or
            texts as they are.
        image_size: Height and width in pixels that it was trained for; None: none in particular, or not known.
        size_is_fixed: True: it takes no other size. False: it takes others (any, where `image_size` is None).
            None: not known.
        pixel_range: Lowest and highest pixel value; None: not known, or no mere range: `note` says what is.
        feature_size: D, the length of a feature vector; None: not known.
        fine_tunable: Whether it can be trained, not only used frozen.
        licence: SPDX identifier of the weights' licence; None: not known.
        defaults: Hyperparameter values that this backbone brings; they stand between the user's and the table's.
        whole_defaults: The same, for training it whole only; they go before `defaults`.
        note: What else a user should know; may be empty.
    """

    id: str
    task: str
    handle: str
    preprocessor: str | None = None
    image_size: int | None = None
    size_is_fixed: bool | None = None
    pixel_range: tuple[float, float] | None = None
    feature_size: int | None = None
    fine_tunable: bool = True
    licence: str | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    whole_defaults: Mapping[str, Any] = field(default_factory=dict, hash=False)
    note: str = ""


@functools.cache
def cards(task: str | None = None) -> tuple[Card, ...]:
    """Returns the cards of a task, or all: packaged ones first, then by id."""
    from importlib import resources

    found = []
    for table in TABLES:
        lines = resources.files(__name__).joinpath(table).read_text(encoding="utf-8").splitlines()
        found += [_card(row) for row in csv.DictReader(lines, strict=True)]
    found.sort(key=lambda card: (not card.handle.startswith(PACKAGED), card.id))
    return tuple(card for card in found if task in (None, card.task))


def find(id: str) -> Card | None:
    """Returns the card of an id in any case, hyphens and underscores being alike; None when there is none.

    >>> find("EfficientNet_Lite0").feature_size
    1280
    """
    return next((card for card in cards() if _plain(card.id) == _plain(id)), None)


def hint(id: str) -> str:
    """Returns a sentence that asks whether an id like this one was meant, with a blank before it; else nothing."""
    close = suggestions(id)
    return f" Did you mean {listed(close)}?" if close else ""


def suggestions(id: str) -> list[str]:
    """Returns at most three ids that resemble a misspelt one, best first.

    What most of JumpStart's ids share is left out of the comparison, so that the network's bare name is enough.

    >>> suggestions("mobilenet_v3_large_100")[0]
    'tensorflow-ic-imagenet-mobilenet-v3-large-100-224'
    """
    import difflib

    ids: dict[str, list[str]] = {}
    for card in cards():
        ids.setdefault(_short(card.id), []).append(card.id)
    close = difflib.get_close_matches(_short(id), ids, n=3)
    return [found for short in close for found in ids[short]][:3]


def _plain(id: str) -> str:
    return id.strip().lower().replace("_", "-")


def _short(id: str) -> str:
    return re.sub(r"^tensorflow-(ic|tc)-(imagenet-)?|-classification-\d+$", "", _plain(id))


def _card(row: Mapping[str, str]) -> Card:
    """Returns the card of a row, which may lack what has no meaning for its task.

    Empty cells are unknown; a pixel range is written "0,1", defaults as a JSON object.
    """
    low, _, high = row.get("pixel_range", "").partition(",")
    return Card(
        id=row["id"],
        task=row["task"],
        handle=row["handle"],
        preprocessor=row.get("preprocessor") or None,
        image_size=int(row["image_size"]) if row.get("image_size") else None,
        size_is_fixed={"yes": True, "no": False, "": None}[row.get("size_is_fixed", "")],
        pixel_range=(float(low), float(high)) if low else None,
        feature_size=int(row["feature_size"]) if row["feature_size"] else None,
        fine_tunable={"yes": True, "no": False}[row["fine_tunable"]],
        licence=row["licence"] or None,
        defaults=json.loads(row["defaults"] or "{}"),
        whole_defaults=json.loads(row.get("whole_defaults") or "{}"),
        note=row["note"],
    )
