"""Photos: every format becomes RGB, every hyperparameter of resizing and distortion does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import builders
from tf_finetune import examples, images, job, pipeline
from tf_finetune.errors import DataError
from tf_finetune.hyperparameters import choices
from tf_finetune.images import Preprocessing

METHODS = choices("image_resize_interpolation")
PIXEL = 1e-4  # Of 255, in float32.
AS_IT_IS = Preprocessing(32, (0.0, 255.0), "bilinear")


def picture(size: int = 32) -> np.ndarray:
    """Returns uint8 [size, size, 3]: smooth, different in each channel and corner."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    return np.stack([255 * x, 255 * y, 128 + 100 * np.sin(3 * x + 2 * y)], axis=-1).round().astype(np.uint8)


def bytes_of(image: Image.Image, folder: Path, name: str, **options) -> bytes:
    image.save(folder / name, **options)
    return (folder / name).read_bytes()


def decoded(content: bytes, preprocessing: Preprocessing = AS_IT_IS) -> np.ndarray:
    return images.prepare(tf.constant(content), preprocessing).numpy()


# Formats.

EXACT_FORMATS = {
    "png": ("RGB", "a.png", {}),
    "gray png": ("L", "a.png", {}),
    "palette png": ("P", "a.png", {}),
    "gray and alpha png": ("LA", "a.png", {}),
    "alpha png": ("RGBA", "a.png", {}),
    "gif": ("P", "a.gif", {}),
    "bmp": ("RGB", "a.bmp", {}),
    "lossless webp": ("RGB", "a.webp", {"lossless": True}),
}


@pytest.mark.parametrize("way", EXACT_FORMATS)
def test_a_lossless_photo_becomes_its_red_green_and_blue(tmp_path, way):
    mode, name, options = EXACT_FORMATS[way]
    image = Image.fromarray(picture()).convert(mode)
    np.testing.assert_array_equal(decoded(bytes_of(image, tmp_path, name, **options)), image.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "options"),
    [("a.jpg", {"quality": 95}), ("a.jpg", {"quality": 95, "progressive": True}), ("a.webp", {"quality": 95})],
    ids=["jpeg", "progressive jpeg", "webp"],
)
def test_a_lossy_photo_becomes_about_its_red_green_and_blue(tmp_path, name, options):
    pixels = decoded(bytes_of(Image.fromarray(picture()), tmp_path, name, **options))
    assert np.abs(pixels - picture()).mean() < 3


def test_a_gray_jpeg_becomes_three_equal_channels(tmp_path):
    pixels = decoded(bytes_of(Image.fromarray(picture()).convert("L"), tmp_path, "a.jpg", quality=95))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    assert np.abs(pixels[..., 0] - np.asarray(Image.fromarray(picture()).convert("L"))).mean() < 3


def test_sixteen_bits_become_eight(tmp_path):
    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    pixels = decoded(bytes_of(Image.fromarray(deep), tmp_path, "a.png"))
    np.testing.assert_allclose(pixels, np.repeat(deep[..., None] / 257, 3, axis=-1), atol=1)


def test_transparency_is_ignored(tmp_path):
    transparent = np.concatenate([picture(), np.zeros([32, 32, 1], np.uint8)], axis=-1)
    np.testing.assert_array_equal(decoded(bytes_of(Image.fromarray(transparent), tmp_path, "a.png")), picture())


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.fromarray(picture()).convert("P"), Image.new("P", (32, 32))]
    content = bytes_of(frames[0], tmp_path, "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(content), frames[0].convert("RGB"))


# Size and range.


@pytest.mark.parametrize("way", ["0,1", "-1,1", "0,255"])
def test_black_and_white_become_the_ends_of_the_pixel_range(tmp_path, way, mean_backbone):
    body = pipeline.backbone.Backbone(mean_backbone)
    low, high = (float(end) for end in way.split(","))
    task = plan(mean_backbone, tmp_path, pixel_range=way, image_size=16, image_resize_interpolation="area")
    preprocessing = builders.preprocessing_of(task, body)
    assert preprocessing == Preprocessing(16, (low, high), "area")
    shades = np.zeros([16, 16, 3], np.uint8)
    shades[:8], shades[8:, :8] = 255, 51
    pixels = decoded(bytes_of(Image.fromarray(shades), tmp_path, "a.png"), preprocessing)
    assert (pixels.min(), pixels.max()) == pytest.approx((low, high), abs=PIXEL)
    assert pixels[12, 4] == pytest.approx([low + (high - low) / 5] * 3, abs=PIXEL)


@pytest.mark.parametrize("size", [64, 24])
@pytest.mark.parametrize("method", METHODS)
def test_each_interpolation_is_tensorflows_own(tmp_path, method, size):
    """Antialiased where the photo is at least twice as large as what the backbone takes."""
    content = bytes_of(Image.fromarray(picture(size)), tmp_path, "a.png")
    pixels = picture(size).astype(np.float32)
    expected = tf.image.resize(pixels, [20, 20], method=method, antialias=size == 64) / 127.5 - 1
    given = decoded(content, Preprocessing(20, (-1.0, 1.0), method))
    np.testing.assert_allclose(given, expected, atol=PIXEL / 127.5)


def test_the_interpolations_differ(tmp_path):
    content = bytes_of(Image.fromarray(picture(64)), tmp_path, "a.png")
    results = {decoded(content, Preprocessing(20, (0.0, 1.0), method)).tobytes() for method in METHODS}
    assert len(results) == len(METHODS)


def test_fine_stripes_do_not_turn_into_a_pattern(tmp_path):
    stripes = np.zeros([120, 120, 3], np.uint8)
    stripes[:, ::2] = 255
    pixels = decoded(bytes_of(Image.fromarray(stripes), tmp_path, "a.png"), Preprocessing(20, (0.0, 255.0), "bilinear"))
    assert np.abs(pixels - 127.5).max() < 10


def test_the_exported_graph_prepares_photos_as_training_does(tmp_path):
    """Bit for bit, in every interpolation, from files of several formats and sizes in one batch."""
    channel = tmp_path / "photos"
    for name, size in (("a/1.jpg", 77), ("a/2.png", 33), ("b/3.gif", 20), ("b/4.bmp", 90), ("b/5.webp", 41)):
        (channel / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(size)).save(channel / name)
    part = examples.folders.read(channel)
    contents = tf.constant([example.content.read_bytes() for example in part.items])
    module, loaders = tf.Module(), {}
    signatures = {}
    for method in METHODS:
        preprocessing = Preprocessing(32, (-1.0, 1.0), method)
        spec, prepared = images.serving_inputs(preprocessing)
        assert (spec.name, spec.dtype, spec.shape.as_list()) == ("bytes_inputs", tf.string, [None])
        serve = tf.function(lambda given, prepared=prepared: {"pixels": prepared(given)})
        signatures[method] = serve.get_concrete_function(spec)
        loaders[method] = images.loader(part, preprocessing)
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=signatures)
    served = tf.saved_model.load(str(tmp_path / "saved")).signatures
    for method in METHODS:
        indices = tf.data.Dataset.range(len(part))
        load = loaders[method]
        trained = np.stack(list(indices.map(lambda index, load=load: load(index, [0, 0])).as_numpy_iterator()))
        np.testing.assert_array_equal(served[method](bytes_inputs=contents)["pixels"], trained)


# Photos that cannot be read.


def plan(backbone: Path, tmp_path: Path, **given) -> job.Job:
    channel = tmp_path / "photos"
    if not channel.exists():
        builders.write_class_folders(channel, per_class=5)
    return job.plan(
        {"training": channel}, {"backbone": str(backbone), "epochs": 1, "image_size": 16, **given}, tmp_path / "out"
    )


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a web page": lambda content: b"<html>Not found</html>",
}


@pytest.mark.parametrize("way", DAMAGE)
def test_a_broken_photo_is_named(tmp_path, mean_backbone, way):
    task = plan(mean_backbone, tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, [64, 64, 3], dtype=np.uint8)
    broken = task.training / "cyan" / "broken.jpg"
    broken.write_bytes(DAMAGE[way](bytes_of(Image.fromarray(noise), tmp_path, "whole.jpg")))
    with pytest.raises(DataError, match="1 of 16 files cannot be decoded as photos") as raised:
        pipeline.run(task)
    assert str(broken) in str(raised.value)
    assert not task.destination.archive.exists()


def test_all_broken_photos_are_counted_and_five_are_named(tmp_path, convolution_backbone):
    task = plan(convolution_backbone, tmp_path, train_only_top_layer=False)
    for number in range(7):
        (task.training / "cyan" / f"broken{number}.png").write_bytes(b"\x89PNG" + bytes([number]))
    with pytest.raises(DataError, match="7 of 22 files cannot be decoded .*broken4.png and 2 more"):
        pipeline.run(task)


# Augmentation.

SEEDS = np.stack([np.arange(400), np.full(400, 7)], axis=1).astype(np.int32)


def settings(flip="None", rotation=0.0, zoom=0.0, augmentation=True):
    return builders.plain_settings(
        augmentation=augmentation,
        augmentation_random_flip=flip,
        augmentation_random_rotation=rotation,
        augmentation_random_zoom=zoom,
    )


def distorted(image: np.ndarray, how, seeds=SEEDS) -> np.ndarray:
    """Returns float32 [seeds, H, W, 3]."""
    photo = tf.constant(image, tf.float32)
    return np.stack(
        list(
            tf.data.Dataset.from_tensor_slices(seeds)
            .map(lambda seed: images.augment(photo, seed, how))
            .as_numpy_iterator()
        )
    )


FLIPS = {
    "None": {""},
    "horizontal": {"", "x"},
    "vertical": {"", "y"},
    "horizontal_and_vertical": {"", "x", "y", "xy"},
}


@pytest.mark.parametrize("flip", FLIPS)
def test_flips_mirror_in_the_directions_named(flip):
    photo = picture(12).astype(np.float32)
    mirrored = {"": photo, "x": photo[:, ::-1], "y": photo[::-1], "xy": photo[::-1, ::-1]}
    counts = dict.fromkeys(mirrored, 0)
    for result in distorted(photo, settings(flip)):
        (name,) = [name for name, wanted in mirrored.items() if np.allclose(result, wanted, atol=1e-2)]
        counts[name] += 1
    assert {name for name, count in counts.items() if count} == FLIPS[flip]
    share = 1 / len(FLIPS[flip])
    assert all(abs(count / 400 - share) < 0.1 for count in counts.values() if count)


def spot(x: float, y: float, size: int = 65, width: float = 2.0) -> np.ndarray:
    """Returns float32 [size, size, 3]: a soft bright spot at (x, y) pixels from the centre."""
    rows, columns = np.mgrid[0:size, 0:size] - (size - 1) / 2
    return np.repeat(np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * width**2))[..., None], 3, axis=-1)


def centres(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns where the spots are: x and y, float [N], pixels from the centre."""
    size = photos.shape[1]
    place = np.arange(size) - (size - 1) / 2
    light = photos[..., 0]
    total = light.sum(axis=(1, 2))
    return (light * place).sum(axis=(1, 2)) / total, (light * place[:, None]).sum(axis=(1, 2)) / total


def test_a_rotation_of_a_fifth_stays_within_72_degrees_either_way():
    x, y = centres(distorted(spot(10, 0), settings(rotation=0.2)))
    degrees = np.degrees(np.arctan2(y, x))
    np.testing.assert_allclose(np.hypot(x, y), 10, atol=0.05)  # It turns about the centre, and nothing else.
    assert (degrees.min(), degrees.max()) == pytest.approx((-72, 72), abs=3)
    assert np.abs(degrees).max() <= 72.5
    assert abs(degrees.mean()) < 6


@pytest.mark.parametrize(("rotation", "degrees"), [(0.1, 36), (-0.05, 18)])
def test_a_rotation_is_a_fraction_of_a_full_turn(rotation, degrees):
    x, y = centres(distorted(spot(10, 0), settings(rotation=rotation)))
    assert np.degrees(np.abs(np.arctan2(y, x))).max() == pytest.approx(degrees, abs=2)


def test_a_zoom_of_a_tenth_stays_within_a_tenth_either_way():
    x, y = centres(distorted(spot(10, 0), settings(zoom=0.1)))
    np.testing.assert_allclose(y, 0, atol=0.05)
    assert (10 / x.max(), 10 / x.min()) == pytest.approx((0.9, 1.1), abs=0.01)
    np.testing.assert_allclose(np.mean(10 / x), 1.0, atol=0.02)


def test_what_leaves_the_frame_is_replaced_by_the_mirrored_photo():
    photo = np.full([16, 16, 3], 200, np.float32)
    np.testing.assert_allclose(distorted(photo, settings(rotation=0.5, zoom=0.5), SEEDS[:50]), 200, atol=1e-2)


def test_the_same_seed_distorts_alike_and_another_does_not():
    how = settings("horizontal_and_vertical", 0.2, 0.1)
    first, again, other = distorted(picture(), how, np.array([[1, 2], [1, 2], [1, 3]], np.int32))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1


def test_an_augmented_photo_keeps_its_range():
    results = distorted(picture() / 127.5 - 1, settings("horizontal_and_vertical", 1.0, 1.0), SEEDS[:100])
    assert results.min() >= -1 - PIXEL
    assert results.max() <= 1 + PIXEL


def test_only_augmentation_switches_the_distortions_on(tmp_path):
    channel = builders.write_class_folders(tmp_path / "photos", per_class=1)
    part, seed = examples.folders.read(channel), tf.constant([1, 2])
    strong = {"flip": "horizontal_and_vertical", "rotation": 0.5, "zoom": 0.5}
    plain, off, on = (
        images.loader(part, AS_IT_IS, given)(tf.constant(0, tf.int64), seed).numpy()
        for given in (None, settings(**strong, augmentation=False), settings(**strong))
    )
    np.testing.assert_array_equal(plain, off)
    assert np.abs(plain - on).max() > 1


def write_sides(channel: Path, count: int = 12) -> Path:
    """Writes photos that are bright on the left or on the right."""
    generator = np.random.default_rng(0)
    for name, first in (("left", 0), ("right", 8)):
        (channel / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 60, [16, 16, 3], dtype=np.uint8)
            pixels[:, first : first + 8] += 150
            Image.fromarray(pixels).save(channel / name / f"{number}.png")
    return channel


def test_training_photos_are_augmented_and_validation_photos_never(tmp_path, halves_backbone):
    write_sides(tmp_path / "photos")
    only = {"augmentation_random_rotation": 0.0, "augmentation_random_zoom": 0.0}
    task = plan(halves_backbone, tmp_path, augmentation=True, augmentation_random_flip="horizontal", **only)
    parts = pipeline.read_parts(task)
    model, preprocessing = pipeline.build_model(task, images, 2)
    read = pipeline.read_sources(parts, images, preprocessing, model, tf.distribute.get_strategy(), task.settings, None)
    seeds = [tf.constant([0, seed]) for seed in range(40)]
    brighter = [model.backbone(read["training"].load(0, seed)[tf.newaxis]).numpy().argmax() for seed in seeds]
    assert set(brighter) == {0, 1}
    for index, label in enumerate(parts["validation"].labels):
        rows = {tuple(read["validation"].load(index, seed).numpy()) for seed in seeds[:5]}
        assert [np.argmax(row) for row in rows] == [label]


def test_an_extreme_zoom_leaves_something_to_see():
    results = distorted(picture(), settings(zoom=-1.0), SEEDS[:100])
    assert np.isfinite(results).all()
    assert min(np.ptp(result) for result in results) > 5
