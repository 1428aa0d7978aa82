"""Plain functions that make things whose answers are known by hand: class folders of flat colours, tiny SavedModels."""

from __future__ import annotations

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
