"""What a person should look at: the most confident mistakes, and the labels that are likely wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tf_finetune.evaluation import label_errors
from tf_finetune.examples import Example, Examples

SHOWN_MISTAKES, SHOWN_LABEL_ERRORS = 12, 24
SHOWN_TEXT = 500  # Characters.
Row = dict[str, Any]


def mistakes(part: Examples, answers: np.ndarray, name: str = "validation") -> list[Row]:
    """Returns the wrong answers that the model is surest of, the surest first.

    Args:
        part: The N examples.
        answers: float32 [N, K], their probabilities.
        name: Of the part.
    """
    given = answers.argmax(axis=1)
    wrong = np.flatnonzero(given != np.array(part.labels))
    order = sorted(wrong, key=lambda place: (-answers[place, given[place]], part.items[place].id))
    return [
        {
            **_about(part, part.items[place], name),
            "predicted_label": part.class_names[given[place]],
            "probability": float(answers[place, given[place]]),
        }
        for place in order[:SHOWN_MISTAKES]
    ]


def doubtful_labels(parts: Mapping[str, Examples], answers: Mapping[str, np.ndarray]) -> tuple[list[Row], int]:
    """Returns all examples whose probabilities are out of sample, the one whose label is the least likely first.

    The number besides says how many labels are likely wrong.

    Args:
        parts: The examples of each part.
        answers: Of some parts float32 [N, K], each example's probabilities by a model that has not seen it; rows of NaN
            where there is none.
    """
    items = [(name, example) for name in answers for example in parts[name].items]
    if not items:
        return [], 0
    rows = np.concatenate(list(answers.values()))
    labels = np.array([example.label for _, example in items])
    found = []
    ranking = label_errors.rank(rows, labels)
    for place, likely in zip(ranking.indices, ranking.likely, strict=True):
        name, example = items[place]
        found.append(
            {
                **_about(parts[name], example, name),
                "likely_label": parts[name].class_names[likely],
                "probability_of_label": float(rows[place, example.label]),
                "probability_of_likely": float(rows[place, likely]),
            }
        )
    return found, ranking.suspects


def photos_of(rows: list[Row], parts: Mapping[str, Examples]) -> dict[str, Path]:
    """Returns the file of each photo that is shown, by part and id."""
    files = {f"{name}/{one.id}": one.content for name, part in parts.items() for one in part.items}
    wanted = [f"{row['part']}/{row['id']}" for row in rows]
    return {key: Path(files[key]) for key in wanted if isinstance(files.get(key), Path)}


def _about(part: Examples, example: Example, name: str) -> Row:
    text = example.content[:SHOWN_TEXT] if isinstance(example.content, str) else None
    return {"id": example.id, "part": name, "label": part.class_names[example.label], "text": text}
