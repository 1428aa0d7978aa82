"""Plain functions that make things whose answers are known by hand: class folders of flat colours, tiny SavedModels."""

from __future__ import annotations

import hashlib
import inspect
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"cyan": (0, 255, 255), "magenta": (255, 0, 255), "yellow": (255, 255, 0)}


def write_class_folders(folder: Path, per_class: int = 10, colours=None, random_colours=False, size=24, seed=0) -> Path:
    """Writes flat-coloured PNGs, each unlike the others in one pixel; with random_colours no class can be told."""
    generator = np.random.default_rng(seed)
    for name, colour in (colours or COLOURS).items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            shade = generator.integers(0, 256, 3) if random_colours else np.array(colour)
            pixels = np.full([size, size, 3], shade, np.uint8)
            pixels[0, 0] = generator.integers(0, 256, 3)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def paint_right_half(photo: Path, shade: int) -> None:
    """Makes the right half of a photo grey, of a shade in [0, 255]."""
    pixels = np.array(Image.open(photo))
    pixels[:, pixels.shape[1] // 2 :] = shade
    Image.fromarray(pixels).save(photo)


def save_mean_backbone(folder: Path, image_size: int | None = None) -> Path:
    """Saves a backbone without variables: features are the mean red, green and blue of [0, 1] pixels."""
    import tensorflow as tf

    class Mean(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, image_size, image_size, 3], tf.float32)])
        def __call__(self, images):
            return tf.reduce_mean(images, axis=[1, 2])

    tf.saved_model.save(Mean(), str(folder))
    return folder


def save_affine_backbone(folder: Path, penalty: float = 0.0) -> Path:
    """Saves features = weight x mean + 1, with one trainable weight of 0.5 and a penalty on its square."""
    import tensorflow as tf

    class Affine(tf.Module):
        def __init__(self):
            self.weight = tf.Variable(0.5)
            self.trainable_variables_ = None
            self.regularization_losses = [self.loss] if penalty else []

        @tf.function(input_signature=[])
        def loss(self):
            return penalty * self.weight**2

        @tf.function
        def __call__(self, images, training=False):
            return tf.reduce_mean(images, axis=[1, 2]) * self.weight + 1.0

    module = Affine()
    spec = tf.TensorSpec([None, None, None, 3], tf.float32)
    for training in (True, False):
        module.__call__.get_concrete_function(spec, training=training)
    tf.saved_model.save(module, str(folder))
    return folder


def save_batch_norm_backbone(folder: Path) -> Path:
    """Saves a small Keras network with batch norm in TF-Hub's format: statistics move when it is trained."""
    import keras
    import tensorflow as tf

    inputs = keras.Input([None, None, 3])
    hidden = keras.layers.Conv2D(8, 3, padding="same", kernel_initializer=keras.initializers.GlorotUniform(1))(inputs)
    hidden = keras.layers.BatchNormalization(momentum=0.9)(hidden)
    outputs = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(hidden))
    model = keras.Model(inputs, outputs)

    class Reusable(tf.Module):
        def __init__(self):
            self.model = model
            self.variables_ = None

        @tf.function
        def __call__(self, images, training=False):
            return model(images, training=training)

    module = Reusable()
    spec = tf.TensorSpec([None, None, None, 3], tf.float32)
    for training in (True, False):
        module.__call__.get_concrete_function(spec, training=training)
    tf.saved_model.save(module, str(folder))
    return folder


def save_reusable(folder: Path, call, *traces, spec=None, **attributes) -> Path:
    """Saves `call` as the __call__ of a SavedModel, traced with each of `traces` (keyword arguments) or once without.

    Args:
        folder: Where to.
        call: A function of the inputs, and of what `traces` name.
        *traces: Keyword arguments of one trace each.
        spec: Of the inputs; float32 [None, None, None, 3] by default.
        **attributes: What hangs on the saved object, such as variables or regularization_losses.
    """
    import tensorflow as tf

    saved = tf.train.Checkpoint(**attributes)
    saved.__call__ = tf.function(call)
    for trace in traces or ({},):
        saved.__call__.get_concrete_function(spec or tf.TensorSpec([None, None, None, 3]), **trace)
    tf.saved_model.save(saved, str(folder))
    return folder


def change_weights(folder: Path) -> Path:
    """Adds 1 to the first weight of a SavedModel, and leaves all its other files as they are."""
    import tensorflow as tf

    prefix = str(folder / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    values = {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}
    changed = next(name for name, value in values.items() if getattr(value, "dtype", None) == np.float32)
    values[changed] = values[changed] + 1
    tensors = [tf.constant(value) for value in values.values()]
    tf.raw_ops.SaveV2(prefix=prefix, tensor_names=list(values), shape_and_slices=[""] * len(values), tensors=tensors)
    return folder


def save_mode_backbone(folder: Path, *values, keyword_only=False) -> Path:
    """Saves features = weight (1.0) x mean, plus 1 in training; traced with each of `values` as `training`."""
    import tensorflow as tf

    weight = tf.Variable(1.0)

    def answer(images, training):
        added = tf.cast(False if training is None else training, tf.float32)
        return weight * tf.reduce_mean(images, axis=[1, 2]) + added

    def by_keyword(images, *, training=False):
        return answer(images, training)

    def without(images):
        return answer(images, False)

    call = by_keyword if keyword_only else answer if values else without
    return save_reusable(folder, call, *({"training": value} for value in values), weight=weight)


def save_convolution_backbone(folder: Path, penalty: float = 0.01, channels: int = 4) -> Path:
    """Saves a convolution and an average over the places: trainable, with a penalty, without batch statistics.

    It lists its variables as TF-Hub's own do. It tells left from right, unlike the mean.
    """
    import tensorflow as tf

    kernel = tf.Variable(np.random.default_rng(0).normal(0, 0.5, [3, 3, 3, channels]).astype(np.float32))
    bias = tf.Variable(tf.zeros([channels]))

    def call(images, training=False):
        return tf.reduce_mean(tf.nn.tanh(tf.nn.conv2d(images, kernel, 1, "SAME") + bias), axis=[1, 2])

    loss = tf.function(lambda: penalty * tf.reduce_sum(kernel**2), input_signature=[])
    lists = {name: [kernel, bias] for name in ("variables", "trainable_variables")}
    return save_reusable(folder, call, {"training": True}, {"training": False}, regularization_losses=[loss], **lists)


def save_statistics_backbone(folder: Path) -> Path:
    """Saves features = weight (1.0) x mean, beside a `seen` that training sets to the mean red it saw last."""
    import tensorflow as tf

    weight, seen = tf.Variable(1.0), tf.Variable(0.0, trainable=False)

    def call(images, training=False):
        features = tf.reduce_mean(images, axis=[1, 2])
        if training:
            seen.assign(tf.reduce_mean(features[:, 0]))
        return weight * features + 0.0 * seen

    return save_reusable(folder, call, {"training": True}, {"training": False}, weight=weight, seen=seen)


def save_moving_mean_backbone(folder: Path) -> Path:
    """Saves features = weight (1.0) x (mean - its moving mean over batches), which each replica moves for itself.

    As in the SavedModels of TF-Hub, the moving mean can only be read by all replicas at once.
    """
    import tensorflow as tf

    weight = tf.Variable([1.0, 1.0, 1.0])
    moving = tf.Variable(
        [0.5, 0.5, 0.5],
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.MEAN,
    )

    def call(images, training=False):
        means = tf.reduce_mean(images, axis=[1, 2])
        if not training:
            return weight * (means - moving)
        centre = tf.reduce_mean(means, axis=0)
        moving.assign(0.9 * moving + 0.1 * centre)
        return weight * (means - centre)

    lists = {"variables": [weight, moving], "trainable_variables": [weight]}
    return save_reusable(folder, call, {"training": True}, {"training": False}, **lists)


def save_halves_backbone(folder: Path, image_size: int | None = None) -> Path:
    """Saves features = the mean of the left half and of the right half."""
    import tensorflow as tf

    def call(images):
        middle = tf.shape(images)[2] // 2
        halves = images[:, :, :middle], images[:, :, middle:]
        return tf.stack([tf.reduce_mean(half, axis=[1, 2, 3]) for half in halves], axis=1)

    return save_reusable(folder, call, spec=tf.TensorSpec([None, image_size, image_size, 3]))


def plain_settings(**given):
    """Returns hyperparameters by which nothing but plain gradient descent happens, apart from what is given."""
    from tf_finetune.hyperparameters import Hyperparameters

    plain = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5, "epochs": 1, "batch_size": 4}
    neutral = {"dropout_rate": 0.0, "regularizers_l2": 0.0, "label_smoothing": 0.0}
    return Hyperparameters(**{**plain, **neutral, **given})


def coloured_arrays(count: int, num_classes: int = 3, size: int = 8, seed: int = 0):
    """Returns float32 [N, size, size, 3] in [0, 1] and int [N]: noise that is brighter in the channel of its class."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % num_classes
    pixels = generator.random([count, size, size, 3]) * 0.6
    pixels[np.arange(count), :, :, labels % 3] += 0.3
    return pixels.astype(np.float32), labels


def array_source(inputs: np.ndarray, labels, settings=None):
    """Returns a Source of arrays: photos, augmented if `settings` says so, or features, [N, D].

    An example's key is 1000 + its index.
    """
    import tensorflow as tf

    from tf_finetune import features, images

    rows = tf.constant(inputs, tf.float32)

    def load(index, seed):
        row = tf.gather(rows, index)
        return images.augment(row, seed, settings) if settings and settings.augmentation else row

    keys = 1000 + np.arange(len(inputs), dtype=np.int64)
    digests = [hashlib.sha256(one.tobytes()).digest() for one in inputs]
    given = np.asarray(inputs, np.float32) if rows.ndim == 2 else None
    return features.Source(load, np.array(labels, np.int32), keys, digests, rows=given)


def make_passes(body, folder: Path | None = None, strategy=None, about=None, **given):
    """Returns the passes of photos of 8 pixels through a frozen backbone.

    Args:
        body: The backbone.
        folder: Where features are kept; None for nowhere.
        strategy: One replica by default.
        about: What features depend on besides the backbone.
        **given: Further arguments of Passes.
    """
    import tensorflow as tf

    from tf_finetune.feature_cache import Place
    from tf_finetune.features.frozen import Passes

    strategy = strategy or tf.distribute.get_strategy()
    about = about or {"preprocessing": "none"}
    return Passes(body, body.feature_size(8), 8, strategy, Place(folder), about, "test", **given)


def make_classifier(folder: Path, settings, strategy=None, num_classes: int = 3):
    """Returns a classifier with a new head on the SavedModel of a folder."""
    from tf_finetune import backbone, classifier, devices

    with (strategy or devices.strategy(1)).scope():
        body = backbone.Backbone(folder, "image", trainable=not settings.train_only_top_layer)
        return classifier.build(body, body.feature_size(8), num_classes, settings)


def train(
    folder: Path,
    examples,
    validation,
    settings,
    strategy=None,
    num_classes: int = 3,
    progress=None,
    precisions=("float32",),
    remember=None,
):
    """Returns the classifier that training.fit trained on a SavedModel, and what it gave.

    Args:
        folder: The SavedModel.
        examples: The Source to train on.
        validation: The Source to validate on, or None.
        settings: The hyperparameters.
        strategy: One replica by default.
        num_classes: K.
        progress: As training.fit's.
        precisions, remember: As training.fit's.
    """
    from tf_finetune import devices, training

    strategy = strategy or devices.strategy(1)
    devices.make_deterministic(settings.random_seed)
    model = make_classifier(folder, settings, strategy, num_classes)
    return model, training.fit(model, examples, validation, settings, strategy, progress, precisions, remember)


def head_weights(model) -> list[np.ndarray]:
    """Returns kernel, float32 [D, K], and bias, float32 [K]."""
    return [variable.numpy() for variable in model.head.variables]


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    """Writes files of the given bytes below a folder, by their paths; a path that ends with / is an empty folder."""
    for name, content in files.items():
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    return folder


def preprocessing_of(planned, body):
    """Returns how a planned job prepares photos for a backbone."""
    from tf_finetune import images
    from tf_finetune.backbone import interface

    return images.plan(planned.settings, planned.card, planned.handle, interface.image_size(body.interface))


def save_jumpstart_model(
    folder: Path, colours: dict, image_size: int = 16, pixels=(0.0, 1.0), units: int | None = None, info=None
) -> Path:
    """Writes a fine-tuned model as SageMaker JumpStart's training does, which tells flat colours with certainty.

    Args:
        folder: Gets 1/, labels_info.json and __models_info__.json.
        colours: RGB in [0, 255] of each class name.
        image_size: Pixels.
        pixels: Values of black and white that its Keras model takes.
        units: 1 for a sigmoid of the second class.
        info: What the model info says otherwise.
    """
    import json

    import keras
    import tensorflow as tf

    low, high = pixels
    inputs = keras.Input([image_size, image_size, 3])
    hidden = keras.layers.Conv2D(6, 3, activation="tanh", kernel_initializer=keras.initializers.GlorotUniform(1))(
        inputs
    )
    body = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(hidden))
    head = keras.layers.Dense(units or len(colours))
    model = keras.Sequential([body, keras.layers.Dropout(0.2), head])
    flat = np.stack([np.full([image_size, image_size, 3], colour, np.float32) for colour in colours.values()])
    features = body(flat / 255 * (high - low) + low).numpy()
    wanted = 8.0 * np.eye(len(colours)) if units is None else np.array([[-8.0], [8.0]])
    model.build([None, image_size, image_size, 3])
    head.set_weights([np.linalg.pinv(features) @ wanted, np.zeros(wanted.shape[1])])

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="bytes_inputs")])
    def serve(bytes_inputs):
        def decoded(content):
            photo = tf.io.decode_image(content, channels=3, expand_animations=False)
            return tf.image.resize(photo, [image_size, image_size])

        photos = tf.map_fn(decoded, bytes_inputs, fn_output_signature=tf.float32)
        logits = model(photos / 255.0 * (high - low) + low, training=False)
        return {"probabilities": tf.nn.softmax(logits) if units is None else tf.sigmoid(logits)}

    saved = tf.Module()
    saved.model = model
    tf.saved_model.save(saved, str(folder / "1"), signatures={"serving_default": serve})
    told = {"image_size": image_size, "finetuned": True, "signature": "serving_default", "output_key": "probabilities"}
    told |= {"pixel_scaling_method": "zero_mean_unit_variance", **(info or {})}
    (folder / "labels_info.json").write_text(json.dumps({"labels": list(colours)}))
    (folder / "__models_info__.json").write_text(json.dumps(told))
    return folder


def write_csv(folder: Path, rows, name: str = "data.csv", encoding: str = "utf-8", newline: str = "\n") -> Path:
    """Writes rows, (class, text) each, quoted where they must be, and returns the folder; .gz at the end packs them."""
    import csv
    import gzip
    import io

    lines = []
    for row in rows:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\r\n").writerow(row)  # Which has line breaks of any kind quoted.
        lines.append(line.getvalue().removesuffix("\r\n") + newline)
    content = "".join(lines).encode(encoding)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder


def texts_by_length(count: int, classes=("short", "long"), seed: int = 0, lengths=((3, 9), (40, 60))):
    """Returns rows of (class, text): random letters, all different; a class's texts have lengths of its own range."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghij klmnopqrstuvwxyz"))
    rows: dict[str, str] = {}
    while len(rows) < count:
        number = len(rows) % len(classes)
        text = "".join(generator.choice(letters, generator.integers(*lengths[number])))
        if text == text.strip():
            rows.setdefault(text, classes[number])
    return [(label, text) for text, label in rows.items()]


def save_length_backbone(folder: Path) -> Path:
    """Saves features = weight (1.0) x [length, length squared] / [50, 2500] of texts, in characters; core ops only."""
    import tensorflow as tf

    weight = tf.Variable(1.0)

    def call(texts, training=False):
        length = tf.cast(tf.strings.length(texts, "UTF8_CHAR"), tf.float32) / 50
        return weight * tf.stack([length, length**2], axis=1)

    spec = tf.TensorSpec([None], tf.string)
    return save_reusable(folder, call, {"training": True}, {"training": False}, spec=spec, weight=weight)


BERT_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "fine", "poor", "the", "film", "was", "##s", "!", ".")


def save_bert_pair(folder: Path, fixed_length: bool = False, width: int = 8, seed: int = 0) -> tuple[Path, Path]:
    """Saves a random BERT of one layer in TF-Hub's interface, and its preprocessing; returns (encoder, preprocessing).

    Args:
        folder: Where both go.
        fixed_length: Leaves out `tokenize` and `bert_pack_inputs`, so that there is the default length only.
        width: Numbers in each token's state.
        seed: Of the weights.
    """
    import tensorflow as tf
    import tensorflow_text

    tokens = tf.lookup.KeyValueTensorInitializer(list(BERT_WORDS), list(range(len(BERT_WORDS))), tf.string, tf.int64)
    table = tf.lookup.StaticVocabularyTable(tokens, 1)
    tokenizer = tensorflow_text.BertTokenizer(table, token_out_type=tf.int32, lower_case=True)
    texts = tf.TensorSpec([None], tf.string)

    def pack(segments, seq_length):
        segments = [part.merge_dims(1, -1) if part.ragged_rank > 1 else part for part in segments]
        room = seq_length - len(segments) - 1
        trimmed = tensorflow_text.RoundRobinTrimmer(room).trim(segments)
        ids, types = tensorflow_text.combine_segments(trimmed, BERT_WORDS.index("[CLS]"), BERT_WORDS.index("[SEP]"))
        words, mask = tensorflow_text.pad_model_inputs(ids, seq_length)
        kinds, _ = tensorflow_text.pad_model_inputs(types, seq_length)
        made = {"input_word_ids": words, "input_mask": mask, "input_type_ids": kinds}
        return {name: tf.cast(value, tf.int32) for name, value in made.items()}

    preprocessing = tf.train.Checkpoint(table=table, tokenizer=tokenizer)
    preprocessing.__call__ = tf.function(lambda given: pack([tokenizer.tokenize(given)], 128), input_signature=[texts])
    if not fixed_length:
        preprocessing.tokenize = tf.train.Checkpoint()
        preprocessing.tokenize.__call__ = tf.function(tokenizer.tokenize, input_signature=[texts])
        preprocessing.bert_pack_inputs = tf.train.Checkpoint()
        preprocessing.bert_pack_inputs.__call__ = tf.function(
            lambda segments, seq_length=128: pack(segments, seq_length)
        )
        for rank in (1, 2):
            for count in (1, 2):
                spec = tf.RaggedTensorSpec([None] * (rank + 1), tf.int32, rank)
                trace = preprocessing.bert_pack_inputs.__call__.get_concrete_function
                trace([spec] * count, seq_length=tf.TensorSpec([], tf.int32))
    tf.saved_model.save(preprocessing, str(folder / "preprocessing"))
    _save_bert_encoder(folder / "encoder", width, seed)
    return folder / "encoder", folder / "preprocessing"


def _save_bert_encoder(folder: Path, width: int, seed: int) -> None:
    import tensorflow as tf

    generator = np.random.default_rng(seed)

    def variable(*shape):
        return tf.Variable(generator.normal(0, 0.5, shape).astype(np.float32))

    words, places, kinds = variable(len(BERT_WORDS) + 1, width), variable(512, width), variable(2, width)
    query, key, value, pooler = (variable(width, width) for _ in range(4))
    bias = tf.Variable(tf.zeros([width]))
    weights = [words, places, kinds, query, key, value, pooler, bias]

    def call(inputs, training=False, mask=None):
        ids, given = inputs["input_word_ids"], tf.cast(inputs["input_mask"], tf.float32)
        state = tf.gather(words, ids) + 0.1 * places[: tf.shape(ids)[1]] + tf.gather(kinds, inputs["input_type_ids"])
        scores = tf.matmul(state @ query, state @ key, transpose_b=True) / width**0.5 - 1e9 * (1 - given[:, None, :])
        state += tf.nn.softmax(scores) @ (state @ value)
        pooled = tf.tanh(state[:, 0] @ pooler + bias)
        return {"pooled_output": pooled, "sequence_output": state, "encoder_outputs": [state], "default": pooled}

    names = ("input_word_ids", "input_mask", "input_type_ids")
    spec = {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in names}
    traces = ({"training": True}, {"training": False})
    save_reusable(folder, call, *traces, spec=spec, variables=weights, trainable_variables=weights)


def terminated(command: list[str], line: str) -> tuple[int, str, str]:
    """Returns the exit code of a command that is sent SIGTERM when it logs such a line, and what it printed then."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            for told in process.stderr:
                if told.startswith(line):
                    break
            process.terminate()
            printed, rest = process.communicate(timeout=120)
        finally:
            process.kill()
    return process.returncode, printed, rest


def race(command: list[str]) -> list[str]:
    """Returns what two processes of a command print that say "ready" and are let go at the same time."""
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    return [printed for printed, _ in answers]


def signal_after(at_step: int, number: int) -> None:
    """Has this process send itself a signal after a step of its training, and keep a checkpoint after each step.

    `SIGNAL_AFTER` is its source, for programs of processes of their own.
    """
    import os

    from tf_finetune import devices  # noqa: F401  (first)
    from tf_finetune.training import checkpoints, steps

    made, count = steps.make_step, 0

    def make_step(*arguments):
        step = made(*arguments)

        def counted(batch):
            nonlocal count
            result = step(batch)
            count += 1
            if count == at_step:
                os.kill(os.getpid(), number)
            return result

        return counted

    steps.make_step = make_step
    checkpoints.Keeper.is_due = lambda self: self.folder is not None


SIGNAL_AFTER = inspect.getsource(signal_after)
