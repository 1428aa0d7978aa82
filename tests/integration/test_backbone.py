"""The backbone layer: what it calls, what it trains, what it leaves alone, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import builders
from tf_finetune import job, pipeline, training
from tf_finetune.backbone import Backbone, interface
from tf_finetune.errors import BackboneError

EXACT = 1e-6
EXPORTED = 1e-5
PHOTOS = np.random.default_rng(1).random([5, 8, 8, 3], np.float32)
MEANS = PHOTOS.mean(axis=(1, 2))


def values(variables) -> list[np.ndarray]:
    return [variable.numpy() for variable in variables]


def is_same(before: list[np.ndarray], after: list[np.ndarray]) -> list[bool]:
    return [np.array_equal(old, new) for old, new in zip(before, after, strict=True)]


# What is trained, and what is left alone.


def test_all_variables_are_tracked_and_the_right_ones_train(batch_norm_backbone):
    body = Backbone(batch_norm_backbone, trainable=True)
    assert len(body.variables) == 6  # Kernel and bias, gamma and beta, moving mean and variance.
    assert len(body.trainable_variables) == 4
    own = {id(variable) for variable in body.loaded.__call__.concrete_functions[0].variables}
    assert {id(variable.value) for variable in body.variables} == own  # Not copies.


def test_a_frozen_backbone_has_nothing_to_train(batch_norm_backbone):
    body = Backbone(batch_norm_backbone)
    assert (len(body.variables), body.trainable_variables) == (6, [])


def test_a_list_of_trainable_variables_is_followed(tmp_path):
    first, second = tf.Variable(1.0), tf.Variable(2.0)
    lists = {"variables": [first, second], "trainable_variables": [second]}
    builders.save_reusable(tmp_path, lambda images: tf.reduce_mean(images, [1, 2]) * first * second, **lists)
    body = Backbone(tmp_path, trainable=True)
    assert values(body.trainable_variables) == [2.0]
    assert sorted(values(body.variables)) == [1.0, 2.0]


def test_the_real_mobilenet_is_trained_whole(real_data):
    body = Backbone(real_data / "backbones" / "mobilenet_v1_025_128_feature_vector", trainable=True)
    assert len(body.trainable_variables) == 54


@pytest.mark.parametrize("augmentation", [False, True])
def test_a_frozen_backbone_is_bit_identical_after_training(batch_norm_backbone, augmentation):
    settings = builders.plain_settings(augmentation=augmentation, epochs=2)
    photos, labels = builders.coloured_arrays(7)
    model = builders.make_classifier(batch_norm_backbone, settings)
    before = values(model.backbone.loaded.__call__.concrete_functions[0].variables)
    model, fitted = builders.train(batch_norm_backbone, builders.array_source(photos, labels, settings), None, settings)
    assert len(before) == 6
    assert all(is_same(before, values(model.backbone.loaded.__call__.concrete_functions[0].variables)))
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]  # The head did train.


def test_a_frozen_backbone_called_in_training_does_not_move(batch_norm_backbone):
    body = Backbone(batch_norm_backbone)
    before = values(body.variables)
    trained = body(PHOTOS, training=True)
    assert all(is_same(before, values(body.variables)))
    np.testing.assert_array_equal(trained, body(PHOTOS, training=False))


def test_a_trained_backbone_moves_its_batch_norm_statistics(batch_norm_backbone):
    settings = builders.plain_settings(train_only_top_layer=False)
    before = values(builders.make_classifier(batch_norm_backbone, settings).backbone.variables)
    source = builders.array_source(*builders.coloured_arrays(7))
    model, _ = builders.train(batch_norm_backbone, source, None, settings)
    assert is_same(before, values(model.backbone.variables)) == [False] * 6


def test_one_step_changes_the_affine_weight_as_computed_by_hand(affine_backbone, one):
    rate, l2, penalty, smoothing, batch = 0.5, 0.01, 0.1, 0.1, 5
    given = {"learning_rate": rate, "regularizers_l2": l2, "label_smoothing": smoothing, "batch_size": batch}
    settings = builders.plain_settings(train_only_top_layer=False, **given)
    labels = np.array([0, 1, 2, 0, 1])
    start = np.random.default_rng(2).normal(size=[3, 3]).astype(np.float32)
    model = builders.make_classifier(affine_backbone, settings)
    model.head.kernel.assign(start)
    training.fit(model, builders.array_source(PHOTOS, labels), None, settings, one)

    features = 0.5 * MEANS.astype(np.float64) + 1
    exponentials = np.exp(features @ start)
    targets = np.eye(3)[labels] * (1 - smoothing) + smoothing / 3
    errors = (exponentials / exponentials.sum(1, keepdims=True) - targets) / batch
    weight = 0.5 - rate * ((errors @ start.T * MEANS).sum() + 2 * penalty * 0.5)
    kernel = start - rate * (features.T @ errors + 2 * l2 * start)
    assert float(model.backbone.variables[0]) == pytest.approx(weight, abs=EXACT)
    np.testing.assert_allclose(builders.head_weights(model)[0], kernel, atol=EXACT)


def test_a_frozen_backbones_penalty_is_left_out(affine_backbone):
    body = Backbone(affine_backbone)
    body(PHOTOS, training=True)
    assert body.losses == []


# Two replicas.


def test_variables_assigned_in_training_are_the_mean_over_the_replicas(statistics_backbone, two):
    settings = builders.plain_settings(train_only_top_layer=False, batch_size=4)
    photos, labels = builders.coloured_arrays(4)
    model, _ = builders.train(statistics_backbone, builders.array_source(photos, labels), None, settings, two)
    (seen,) = model.backbone.non_trainable_variables
    copies = [float(copy) for copy in two.experimental_local_results(seen.value)]
    assert copies == pytest.approx([photos[..., 0].mean()] * 2, abs=EXACT)


def test_a_mirrored_backbone_finds_its_feature_size(convolution_backbone, two):
    with two.scope():
        assert Backbone(convolution_backbone, trainable=True).feature_size(8) == 4


# The ways in which `training` is taken.

BY_VALUE = {
    "python bool": ((True, False), False),
    "tensor": ((tf.TensorSpec([], tf.bool),), False),
    "keyword only": ((True, False), True),
    "keyword only tensor": ((tf.TensorSpec([], tf.bool),), True),
}


@pytest.mark.parametrize("way", BY_VALUE)
def test_training_is_passed_as_the_savedmodel_takes_it(tmp_path, way):
    traced, keyword_only = BY_VALUE[way]
    builders.save_mode_backbone(tmp_path, *traced, keyword_only=keyword_only)
    trained, frozen = Backbone(tmp_path, trainable=True), Backbone(tmp_path)
    assert trained.interface.has_training_mode
    np.testing.assert_allclose(trained(PHOTOS, training=True), MEANS + 1, atol=EXACT)
    np.testing.assert_allclose(trained(PHOTOS, training=False), MEANS, atol=EXACT)
    np.testing.assert_allclose(frozen(PHOTOS, training=True), MEANS, atol=EXACT)


@pytest.mark.parametrize("traced", [(), (None,), (False,)], ids=["absent", "None only", "False only"])
def test_without_a_training_mode_it_is_trained_as_it_answers(tmp_path, traced):
    builders.save_mode_backbone(tmp_path, *traced)
    body = Backbone(tmp_path, trainable=True)
    assert not body.interface.has_training_mode
    assert len(body.trainable_variables) == 1
    for mode in (True, False):
        np.testing.assert_allclose(body(PHOTOS, training=mode), MEANS, atol=EXACT)


def test_one_that_can_only_be_trained_is_refused(tmp_path):
    builders.save_mode_backbone(tmp_path, True)
    with pytest.raises(BackboneError, match="only be called with training=True") as raised:
        Backbone(tmp_path)
    assert str(tmp_path) in str(raised.value)


# The outputs.


def test_feature_maps_are_averaged_over_their_places(tmp_path):
    builders.save_reusable(tmp_path, lambda images: images[:, ::2, ::4] * 2.0)
    body = Backbone(tmp_path)
    np.testing.assert_allclose(body(PHOTOS), PHOTOS[:, ::2, ::4].mean(axis=(1, 2)) * 2, atol=EXACT)
    assert body.feature_size(8) == 3


OUTPUTS = {
    "default": {"a": 1.0, "default": 2.0, "feature_vector": 3.0},
    "feature_vector": {"a": 1.0, "b": 1.0, "feature_vector": 2.0},
    "single": {"whatever": 2.0},
}


@pytest.mark.parametrize("way", OUTPUTS)
def test_the_features_are_found_in_a_dict(tmp_path, way):
    builders.save_reusable(
        tmp_path, lambda images: {key: tf.reduce_mean(images, [1, 2]) * by for key, by in OUTPUTS[way].items()}
    )
    np.testing.assert_allclose(Backbone(tmp_path)(PHOTOS), MEANS * 2, atol=EXACT)


def test_a_dict_that_does_not_say_which_is_refused_with_its_keys(tmp_path):
    builders.save_reusable(tmp_path, lambda images: {"logits": images[:, 0, 0], "block_3": images})
    with pytest.raises(BackboneError, match="2 outputs: block_3, logits. Expected .*feature_vector") as raised:
        Backbone(tmp_path).feature_size(8)
    assert str(tmp_path) in str(raised.value)


def test_the_vector_among_tuple_outputs_is_taken(tmp_path):
    builders.save_reusable(tmp_path, lambda images: (images, tf.reduce_mean(images, [1, 2])))
    np.testing.assert_allclose(Backbone(tmp_path)(PHOTOS), MEANS, atol=EXACT)


def test_tuple_outputs_of_two_vectors_are_refused(tmp_path):
    builders.save_reusable(tmp_path, lambda images: (images[:, 0, 0], images[:, 1, 1]))
    with pytest.raises(BackboneError, match="2 outputs without names") as raised:
        Backbone(tmp_path).feature_size(8)
    assert str(tmp_path) in str(raised.value)


def test_features_of_another_rank_are_refused(tmp_path):
    builders.save_reusable(tmp_path, lambda images: tf.reduce_mean(images, [1]))
    with pytest.raises(BackboneError, match=r"features of shape .*8, 3\). Expected \[B, D\]") as raised:
        Backbone(tmp_path).feature_size(8)
    assert str(tmp_path) in str(raised.value)


def test_half_precision_features_become_float32(tmp_path):
    builders.save_reusable(tmp_path, lambda images: tf.cast(tf.reduce_mean(images, [1, 2]), tf.float16))
    assert Backbone(tmp_path)(PHOTOS).dtype == tf.float32


# Signatures only.


@pytest.fixture(scope="module")
def signature_backbone(saved) -> Path:
    module = tf.Module()
    module.weight = tf.Variable(3.0)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], name="photos")])
    def serve(photos):
        return {"default": tf.reduce_mean(photos, axis=[1, 2]) * module.weight}

    tf.saved_model.save(module, str(saved / "signature"), signatures=serve)
    return saved / "signature"


@pytest.fixture(scope="module")
def keras_export(saved) -> tuple[Path, keras.Model]:
    """What `model.export` of Keras 3 writes, and the model."""
    layers = [keras.Input([8, 8, 3]), keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential(layers)
    model.export(str(saved / "keras_export"))
    return saved / "keras_export", model


def test_a_signature_works_frozen(signature_backbone):
    body = Backbone(signature_backbone)
    np.testing.assert_allclose(body(PHOTOS, training=True), MEANS * 3, atol=EXACT)
    assert (len(body.variables), body.feature_size(8)) == (1, 3)


def test_a_keras_export_works_frozen(keras_export):
    folder, model = keras_export
    body = Backbone(folder)
    np.testing.assert_allclose(body(PHOTOS), model(PHOTOS), atol=EXACT)
    assert (interface.image_size(body.interface), body.feature_size()) == (8, 4)


def test_a_signature_cannot_be_trained(signature_backbone, keras_export):
    for folder in (signature_backbone, keras_export[0]):
        with pytest.raises(BackboneError, match="signatures only.*train_only_top_layer=True") as raised:
            Backbone(folder, trainable=True)
        assert str(folder) in str(raised.value)


def test_one_without_variables_cannot_be_trained(mean_backbone):
    with pytest.raises(BackboneError, match="no trainable variables.*train_only_top_layer=True"):
        Backbone(mean_backbone, trainable=True)


# The image size.


@pytest.fixture(scope="module")
def fixed_backbone(saved) -> Path:
    return builders.save_mean_backbone(saved / "fixed", image_size=16)


def plan(folder: Path, tmp_path: Path, **given) -> job.Job:
    channel = tmp_path / "photos"
    if not channel.exists():
        builders.write_class_folders(channel, per_class=4)
    return job.plan({"training": channel}, {"backbone": str(folder), "epochs": 1, **given}, output=tmp_path / "out")


def test_a_fixed_image_size_is_read_and_used(fixed_backbone, tmp_path):
    body = Backbone(fixed_backbone)
    assert interface.image_size(body.interface) == 16
    assert builders.preprocessing_of(plan(fixed_backbone, tmp_path), body).image_size == 16


def test_another_image_size_than_the_fixed_one_is_refused(fixed_backbone, tmp_path):
    with pytest.raises(BackboneError, match="16x16 photos only. Received: image_size=32") as raised:
        pipeline.run(plan(fixed_backbone, tmp_path, image_size=32))
    assert str(fixed_backbone) in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_a_free_image_size_is_the_users_else_224(mean_backbone, tmp_path):
    body = Backbone(mean_backbone)
    assert interface.image_size(body.interface) is None
    assert builders.preprocessing_of(plan(mean_backbone, tmp_path, image_size=48), body).image_size == 48
    assert builders.preprocessing_of(plan(mean_backbone, tmp_path), body).image_size == 224


def test_an_input_of_unknown_shape_is_taken(tmp_path):
    builders.save_reusable(tmp_path, lambda images: tf.reduce_mean(images, [1, 2]), spec=tf.TensorSpec(None))
    body = Backbone(tmp_path)
    assert (interface.image_size(body.interface), body.feature_size(8)) == (None, 3)
    np.testing.assert_allclose(body(PHOTOS), MEANS, atol=EXACT)


def test_the_real_module_of_unknown_shape_is_taken(real_data):
    body = Backbone(real_data / "backbones" / "hub-mini" / "saved_model_v2_mini")
    assert interface.image_size(body.interface) is None
    assert body(PHOTOS).shape == (5, body.feature_size(8))


# What is refused.


def assert_refused(folder: Path, expected: str, task: str = "image") -> str:
    """Checks that one clear message of a size that SageMaker shows names the path; returns it."""
    with pytest.raises(BackboneError, match=expected) as raised:
        Backbone(folder, task)
    message = str(raised.value)
    assert str(folder) in message
    assert "\n" not in message
    assert len(message) < 1024
    return message


def test_a_tf1_hub_module_is_refused(tmp_path, mean_backbone):
    folder = tmp_path / "tf1"
    shutil.copytree(mean_backbone, folder)
    (folder / "tfhub_module.pb").write_bytes(b"\b\3")
    assert_refused(folder, "TF1 hub module")


@pytest.mark.parametrize(
    "name", ["hub-mini/hub_module_v1_mini", "hub-mini/hub_module_v1_mini_train", "tf1-hub-segmenter"]
)
def test_a_real_tf1_hub_module_is_refused(real_data, name):
    assert_refused(real_data / "backbones" / name, "TF1 hub module")


def test_a_keras_file_is_refused_with_the_way_out(tmp_path):
    file = tmp_path / "model.keras"
    keras.Sequential([keras.Input([3]), keras.layers.Dense(1)]).save(file)
    assert_refused(file, r"no SavedModel.*model.export\(folder\)")
    assert_refused(tmp_path, r"no SavedModel.*model.export\(folder\)")


def test_a_folder_that_is_no_savedmodel_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    assert ".keras" not in assert_refused(tmp_path, "no saved_model.pb")


def test_a_missing_folder_is_refused(tmp_path):
    assert ".keras" not in assert_refused(tmp_path / "nothing", "nothing does not exist")


def test_damaged_files_are_refused(tmp_path, affine_backbone):
    for name, damage in {
        "truncated": lambda folder: (folder / "saved_model.pb").write_bytes(
            (affine_backbone / "saved_model.pb").read_bytes()[:-100]
        ),
        "html": lambda folder: (folder / "saved_model.pb").write_text("<html>Not found</html>"),
        "empty": lambda folder: (folder / "saved_model.pb").write_bytes(b""),
        "no variables": lambda folder: shutil.rmtree(folder / "variables"),
    }.items():
        shutil.copytree(affine_backbone, tmp_path / name)
        damage(tmp_path / name)
        assert_refused(tmp_path / name, "cannot be loaded: .*Expected a TF2 SavedModel")


WRONG_INPUTS = {
    "uint8": (tf.TensorSpec([None, 8, 8, 3], tf.uint8), r"It takes uint8 \(None, 8, 8, 3\)"),
    "fixed batch": (tf.TensorSpec([1, 8, 8, 3]), r"It takes float32 \(1, 8, 8, 3\)"),
    "not square": (tf.TensorSpec([None, 8, 16, 3]), r"It takes float32 \(None, 8, 16, 3\)"),
    "gray": (tf.TensorSpec([None, 8, 8, 1]), r"It takes float32 \(None, 8, 8, 1\)"),
    "vectors": (tf.TensorSpec([None, 8]), r"It takes float32 \(None, 8\)"),
    "texts": (tf.TensorSpec([None], tf.string), r"It takes string \(None,\)"),
}


@pytest.mark.parametrize("way", WRONG_INPUTS)
def test_another_input_is_refused(tmp_path, way):
    spec, expected = WRONG_INPUTS[way]
    builders.save_reusable(tmp_path, lambda given: tf.zeros([tf.shape(given)[0], 2]), spec=spec)
    assert_refused(tmp_path, r"does not take float32 \[None, height, width, 3\] photos. " + expected)


def test_an_image_backbone_is_refused_for_texts(mean_backbone):
    assert_refused(mean_backbone, r"does not take string \[None\] texts. It takes float32", "text")


def test_one_that_cannot_be_called_is_refused(tmp_path):
    tf.saved_model.save(tf.train.Checkpoint(weight=tf.Variable(1.0)), str(tmp_path))
    assert_refused(tmp_path, "nothing that can be called")


# As a Keras layer.


def test_it_works_in_a_keras_model(convolution_backbone, tmp_path):
    body = Backbone(convolution_backbone, trainable=True)
    model = keras.Sequential([keras.Input([8, 8, 3]), body, keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    photos, labels = builders.coloured_arrays(12)
    before = values(body.variables)
    model.fit(photos, labels, epochs=2, batch_size=4, verbose=0)
    assert is_same(before, values(body.variables)) == [False, False]
    predicted = model.predict(photos, verbose=0)
    model.export(str(tmp_path))
    exported = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(exported.serve(photos), predicted, atol=EXPORTED)


def test_keras_adds_the_penalty_to_its_loss(affine_backbone):
    body = Backbone(affine_backbone, trainable=True)
    head = keras.layers.Dense(3, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input([8, 8, 3]), body, head])
    model.compile(keras.optimizers.SGD(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit(PHOTOS, np.array([0, 1, 2, 0, 1]), epochs=1, batch_size=5, verbose=0)
    assert history.history["loss"] == pytest.approx([np.log(3) + 0.1 * 0.5**2], abs=EXACT)


def test_the_layer_is_made_again_from_its_config(affine_backbone):
    body = Backbone(affine_backbone, trainable=True, name="body")
    config = body.get_config()
    assert (config["path"], config["task"], config["trainable"]) == (str(affine_backbone), "image", True)
    again = Backbone.from_config(config)
    assert (again.name, len(again.trainable_variables)) == ("body", 1)
    np.testing.assert_array_equal(again(PHOTOS), body(PHOTOS))
