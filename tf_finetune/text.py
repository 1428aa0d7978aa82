"""Texts to what a backbone takes, which is texts: the tokenizer is part of the backbone.

Dimension letters: B batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_finetune.catalog import Card
from tf_finetune.examples import Examples
from tf_finetune.hyperparameters import Hyperparameters

INPUT_NAME = "text_inputs"


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a text becomes a backbone's input.

    Attributes:
        max_sequence_length: Tokens that the backbone reads, or None where that is the backbone's own affair.
    """

    max_sequence_length: int | None

    def as_json(self) -> dict[str, Any]:
        """Returns the record as tf_finetune.json holds it."""
        return dataclasses.asdict(self)


def plan(settings: Hyperparameters, card: Card | None, handle: str, fixed_size: int | None = None) -> Preprocessing:
    """Returns how texts are prepared."""
    return Preprocessing(settings.max_sequence_length)


def prepare(content: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Returns one text as it is: string []."""
    return content


def serving_inputs(preprocessing: Preprocessing) -> tuple[tf.TensorSpec, Callable[[tf.Tensor], tf.Tensor]]:
    """Returns the exported signature's input, string [B], and the function from it to the backbone's, string [B]."""
    return tf.TensorSpec([None], tf.string, name=INPUT_NAME), lambda contents: contents


def loader(
    examples: Examples, preprocessing: Preprocessing, settings: Hyperparameters | None = None, scaled: bool = False
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns the function of an example's index, int64 [], and an unused seed to its text, string []."""
    texts = tf.constant([str(example.content).encode("utf-8") for example in examples.items] or [b""])
    return lambda index, seed: prepare(tf.gather(texts, index), preprocessing)


def can_scale(examples: Examples, preprocessing: Preprocessing) -> bool:
    """Returns False: texts are read in full."""
    return False


@contextlib.contextmanager
def explaining_failures(parts: Iterable[Examples], preprocessing: Preprocessing) -> Iterator[None]:
    """Does nothing: what can be wrong with texts was found when they were read."""
    yield


def undecodable(parts: Iterable[Examples], preprocessing: Preprocessing) -> set[Path]:
    """Returns nothing: what can be wrong with texts was found when they were read."""
    return set()


def raw_inputs(examples: Examples) -> dict[str, list[str]]:
    """Returns what the parity gate's process answers: the texts."""
    return {"texts": [str(example.content) for example in examples.items]}
