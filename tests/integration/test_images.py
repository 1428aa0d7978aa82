"""Photos: every format becomes RGB, every hyperparameter of resizing and distortion does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import builders
from tf_finetune import backbone, examples, images, job, pipeline, versions
from tf_finetune.errors import DataError
from tf_finetune.hosts.team import ALONE
from tf_finetune.hyperparameters import choices
from tf_finetune.images import Preprocessing
from tf_finetune.inspection import conversion
from tf_finetune.pipeline import data, inputs
from tf_finetune.report.stopwatch import Stopwatch

METHODS = choices("image_resize_interpolation")
PIXEL = 1e-4  # Of 255, in float32.
AS_IT_IS = Preprocessing(32, (0.0, 255.0), "bilinear")


def picture(size: int = 32) -> np.ndarray:
    """Returns uint8 [size, size, 3]: smooth, different in each channel and corner."""
    y, x = np.mgrid[0:size, 0:size] / (size - 1)
    return np.stack([255 * x, 255 * y, 128 + 100 * np.sin(3 * x + 2 * y)], axis=-1).round().astype(np.uint8)


def bytes_of(image: Image.Image, folder: Path, name: str, **options) -> bytes:
    """Returns a photo as the graph gets it: with TensorFlow before 2.20 a WebP is a PNG by then."""
    image.save(folder / name, **options)
    return conversion.graph_ready((folder / name).read_bytes(), 10**8)


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


@pytest.mark.parametrize("options", [{"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}, {"progressive": True}])
def test_a_jpeg_becomes_the_pixels_that_other_decoders_see(tmp_path, options):
    """Who feeds an exported file decodes with Pillow, a browser or a phone: all accurately, to the same bits."""
    content = bytes_of(photo_of(32, 32), tmp_path, "a.jpg", quality=75, **options)
    np.testing.assert_array_equal(decoded(content), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_a_gray_jpeg_becomes_three_equal_channels(tmp_path):
    pixels = decoded(bytes_of(Image.fromarray(picture()).convert("L"), tmp_path, "a.jpg", quality=95))
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    assert np.abs(pixels[..., 0] - np.asarray(Image.fromarray(picture()).convert("L"))).mean() < 3


def test_sixteen_bits_become_eight(tmp_path):
    deep = (np.arange(32 * 32).reshape(32, 32) * 64).astype(np.uint16)
    pixels = decoded(bytes_of(Image.fromarray(deep), tmp_path, "a.png"))
    np.testing.assert_allclose(pixels, np.repeat(deep[..., None] / 257, 3, axis=-1), atol=1)


def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.fromarray(picture()).convert("P"), Image.new("P", (32, 32))]
    content = bytes_of(frames[0], tmp_path, "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decoded(content), frames[0].convert("RGB"))


# Size and range.


@pytest.mark.parametrize("way", ["0,1", "-1,1", "0,255"])
def test_black_and_white_become_the_ends_of_the_pixel_range(tmp_path, way, mean_backbone):
    body = backbone.Backbone(mean_backbone)
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
    sizes = {"a/1.jpg": 77, "a/2.png": 33, "b/3.gif": 20, "b/4.bmp": 90, "b/6.jpg": 457}
    sizes |= {"b/5.webp": 41} if versions.decodes_webp() else {}
    for name, size in sizes.items():
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


# Scaled decoding, at a target of 16 pixels.

SMALL = Preprocessing(16, (0.0, 255.0), "bilinear")
SCALABLE = [method for method in METHODS if method not in ("nearest", "area")]


def photo_of(width: int, height: int) -> Image.Image:
    """Returns a colourful photo: smooth, with a little noise as cameras have."""
    pixels = np.asarray(Image.fromarray(picture(64)).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    pixels = 20 + 0.8 * pixels + np.random.default_rng(0).normal(0, 4, [height, width, 3])
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg_of(folder: Path, width: int, height: int, mode: str = "RGB", **options) -> bytes:
    return bytes_of(photo_of(width, height).convert(mode), folder, f"{width}x{height}.jpg", quality=90, **options)


def as_tensorflow_decodes(content: bytes) -> tf.Tensor:
    """Returns uint8 [H, W, 3], by TensorFlow's own operations."""
    if tf.io.is_jpeg(content):
        return tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
    return tf.io.decode_image(content, channels=3, expand_animations=False)


def both(contents: list[bytes], preprocessing: Preprocessing = SMALL) -> tuple[np.ndarray, np.ndarray]:
    """Returns float32 [N, H, W, 3] twice: as training reads photos with scaling, and in full. Made in a graph."""
    photos = tf.data.Dataset.from_tensor_slices(contents)
    scaled, full = (
        np.stack(list(photos.map(lambda c, way=way: images.prepare(c, preprocessing, scaled=way)).as_numpy_iterator()))
        for way in (True, False)
    )
    return scaled, full


def ratios_of(contents: list[bytes], preprocessing: Preprocessing = SMALL) -> list[int]:
    ratios = tf.data.Dataset.from_tensor_slices(contents).map(lambda content: images.ratio(content, preprocessing))
    assert (ratios.element_spec.dtype, ratios.element_spec.shape.as_list()) == (tf.int32, [])
    return [int(ratio) for ratio in ratios.as_numpy_iterator()]


@pytest.mark.parametrize("is_tall", [False, True])
def test_a_jpeg_is_decoded_at_the_smallest_scale_that_is_large_enough(tmp_path, is_tall):
    """1.75 times the target, on the shorter side."""
    expected = {16: 1, 55: 1, 56: 2, 111: 2, 112: 4, 223: 4, 224: 8, 600: 8}
    contents = [jpeg_of(tmp_path, *((short, 640) if is_tall else (640, short))) for short in expected]
    assert ratios_of(contents) == list(expected.values())
    scaled, _ = both(contents)
    for (short, ratio), content, pixels in zip(expected.items(), contents, scaled, strict=True):
        reduced = tf.io.decode_jpeg(content, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")
        if ratio > 1 and short % ratio == 0:
            np.testing.assert_allclose(pixels, tf.image.resize(reduced, [16, 16], antialias=True), atol=PIXEL)


def test_a_margin_that_is_no_whole_number_is_rounded_up(tmp_path):
    """52.5 pixels are needed."""
    contents = [jpeg_of(tmp_path, side, side) for side in (52, 53)]
    assert ratios_of(contents, Preprocessing(15, (0.0, 1.0), "bilinear")) == [1, 2]


@pytest.mark.parametrize("method", SCALABLE)
def test_scaled_decoding_is_close_to_full_decoding(tmp_path, method):
    """Neither stretched where the sides are no multiples of the scale, nor tinted."""
    sides = {(120, 80): 2, (113, 119): 4, (225, 231): 8, (449, 233): 8}
    preprocessing = Preprocessing(16, (0.0, 255.0), method)
    for subsampling in ("4:4:4", "4:2:0"):
        contents = [jpeg_of(tmp_path, *size, subsampling=subsampling) for size in sides]
        assert ratios_of(contents, preprocessing) == list(sides.values())
        scaled, full = both(contents, preprocessing)
        for content, one, other in zip(contents, scaled, full, strict=True):
            assert 0 < np.abs(one - other).max() < 4
            np.testing.assert_allclose(one.mean(axis=(0, 1)), other.mean(axis=(0, 1)), atol=0.25)
            whole = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE")
            expected = tf.image.resize(whole, [16, 16], method=method, antialias=True)
            np.testing.assert_allclose(other, expected, atol=PIXEL)


def test_every_kind_of_jpeg_can_be_scaled(tmp_path):
    contents = [
        jpeg_of(tmp_path, 240, 300, "L"),
        jpeg_of(tmp_path, 240, 300, "CMYK"),
        jpeg_of(tmp_path, 240, 300, progressive=True),
    ]
    assert ratios_of(contents) == [8, 8, 8]
    scaled, full = both(contents)
    for one, other in zip(scaled, full, strict=True):
        assert 0 < np.abs(one - other).max() < 4
    np.testing.assert_array_equal(scaled[0, ..., 0], scaled[0, ..., 2])


@pytest.mark.parametrize("method", METHODS)
def test_all_but_large_jpegs_are_prepared_alike_with_and_without_scaling(tmp_path, method):
    """Bit for bit, and as TensorFlow's own decoders and resizing do it from floats."""
    photo = photo_of(300, 260)
    contents = [bytes_of(photo.convert("P"), tmp_path, "a.gif")]
    contents += [bytes_of(photo, tmp_path, name) for name in ("a.png", "a.bmp", "a.webp")]
    contents += [jpeg_of(tmp_path, side, side) for side in (9, 16, 40, 55)]
    preprocessing = Preprocessing(16, (-1.0, 1.0), method)
    assert ratios_of(contents, preprocessing) == [1] * len(contents)
    scaled, full = both(contents, preprocessing)
    np.testing.assert_array_equal(scaled, full)
    for content, given in zip(contents, full, strict=True):
        pixels = tf.cast(as_tensorflow_decodes(content), tf.float32)
        antialias = pixels.shape[0] * pixels.shape[1] >= 32**2
        expected = tf.image.resize(pixels, [16, 16], method=method, antialias=antialias) * (2.0 / 255.0) - 1.0
        np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("method", ["nearest", "area"])
def test_where_scaling_would_change_too_much_a_photo_is_decoded_in_full(tmp_path, method):
    content = jpeg_of(tmp_path, 301, 299)
    preprocessing = Preprocessing(16, (0.0, 255.0), method)
    assert ratios_of([content], preprocessing) == [1]
    scaled, full = both([content], preprocessing)
    np.testing.assert_array_equal(scaled, full)
    pixels = as_tensorflow_decodes(content)
    np.testing.assert_allclose(full[0], tf.image.resize(pixels, [16, 16], method=method, antialias=True), atol=PIXEL)


def test_a_tall_narrow_photo_is_not_scaled_below_its_short_side(tmp_path):
    narrow = [jpeg_of(tmp_path, width, height) for width, height in ((40, 2000), (2000, 40))]
    assert ratios_of([*narrow, jpeg_of(tmp_path, 60, 2000)]) == [1, 1, 2]
    np.testing.assert_array_equal(*both(narrow))


def test_the_exported_graph_never_scales(tmp_path):
    contents = [jpeg_of(tmp_path, 300, 260), jpeg_of(tmp_path, 61, 73)]
    _, prepared = images.serving_inputs(SMALL)
    served = tf.function(prepared)(tf.constant(contents)).numpy()
    scaled, full = both(contents)
    np.testing.assert_array_equal(served, full)
    assert (np.abs(served - scaled).max(axis=(1, 2, 3)) > PIXEL).all()


def test_a_loader_scales_only_where_it_is_told_to(tmp_path):
    channel = tmp_path / "photos"
    for name in "ab":
        (channel / name).mkdir(parents=True)
        jpeg_of(channel / name, 300, 260)
    part, first, seed = examples.folders.read(channel), tf.constant(0, tf.int64), tf.constant([1, 2])
    scaled, full = both([(channel / "a" / "300x260.jpg").read_bytes()])
    for options, expected in (({}, full), ({"scaled": False}, full), ({"scaled": True}, scaled)):
        np.testing.assert_array_equal(images.loader(part, SMALL, **options)(first, seed), expected[0])
    strong = settings("horizontal_and_vertical", 0.5, 0.5)
    distortions = [images.loader(part, SMALL, strong, scaled)(first, seed).numpy() for scaled in (False, True)]
    assert 0 < np.abs(distortions[0] - distortions[1]).max() < 4


@pytest.mark.parametrize("share", [0.5, 0.005], ids=["half of it", "a piece of its header"])
def test_a_broken_photo_that_would_be_scaled_is_named(tmp_path, share):
    content = jpeg_of(tmp_path, 300, 260)
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "whole.jpg").write_bytes(content)
    broken = tmp_path / "photos" / "b" / "broken.jpg"
    broken.write_bytes(content[: int(len(content) * share)])
    part = examples.folders.read(tmp_path / "photos")
    load = images.loader(part, SMALL, scaled=True)
    photos = tf.data.Dataset.range(len(part)).map(lambda index: load(index, [0, 0]))
    with (
        pytest.raises(DataError, match="1 of 3 files cannot be decoded as photos") as raised,
        images.explaining_failures([part], SMALL),
    ):
        list(photos)
    assert str(broken) in str(raised.value)


def test_features_of_scaled_photos_are_those_of_photos_decoded_in_full(real_data, tmp_path):
    """A real network, real photos enlarged to just beyond each margin, to sides that no scale divides."""
    network = tf.saved_model.load(real_data / "backbones" / "mobilenet_v1_025_128_feature_vector")
    preprocessing, contents = Preprocessing(128, (0.0, 1.0), "bilinear"), []
    for path in sorted((real_data / "images" / "flowers-400").glob("*/*.jpg"))[::50]:
        photo, short = Image.open(path), (451, 899, 1795)[len(contents) % 3]
        sides = [round(side * short / min(photo.size)) for side in photo.size]
        contents.append(bytes_of(photo.resize(sides, Image.Resampling.BICUBIC), tmp_path, path.name, quality=90))
    assert ratios_of(contents, preprocessing) == [2, 4, 8, 2, 4, 8, 2, 4]
    scaled, full = (network(tf.constant(pixels)).numpy() for pixels in both(contents, preprocessing))
    cosines = (scaled * full).sum(axis=1) / np.linalg.norm(scaled, axis=1) / np.linalg.norm(full, axis=1)
    assert cosines.min() > 0.995


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
    task = plan(mean_backbone, tmp_path, on_bad_data="fail")
    noise = np.random.default_rng(0).integers(0, 256, [64, 64, 3], dtype=np.uint8)
    broken = task.training / "cyan" / "broken.jpg"
    broken.write_bytes(DAMAGE[way](bytes_of(Image.fromarray(noise), tmp_path, "whole.jpg")))
    with pytest.raises(DataError, match=r"1 of 16 examples.*cyan/broken\.jpg"):
        pipeline.run(task)
    assert not task.destination.archive.exists()


def test_all_broken_photos_are_counted_and_five_are_named(tmp_path, convolution_backbone):
    task = plan(convolution_backbone, tmp_path, train_only_top_layer=False)
    for number in range(7):
        (task.training / "cyan" / f"broken{number}.png").write_bytes(b"\x89PNG" + bytes([number]))
    with pytest.raises(DataError, match=r"7 of 22 examples.*broken4\.png .* and 2 more"):
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


def read_sides(backbone: Path, folder: Path, **given):
    """Returns the parts of photos of two sides, flipped at random in training, and how the pipeline reads them."""
    write_sides(folder / "photos")
    only = {"augmentation_random_rotation": 0.0, "augmentation_random_zoom": 0.0}
    task = plan(backbone, folder, augmentation=True, augmentation_random_flip="horizontal", **only, **given)
    parts = data.read(task, folder).parts
    model, preprocessing = inputs.build_model(task, images, ("a", "b"))
    watch, strategy = Stopwatch(), tf.distribute.get_strategy()
    passes = inputs.make_passes(task, model, preprocessing, len(parts["training"]), strategy, watch, None, ALONE)
    return parts, model, inputs.read_sources(parts, images, preprocessing, passes, task.settings)


def test_training_photos_are_augmented_and_validation_photos_never(tmp_path, halves_backbone):
    parts, _, read = read_sides(halves_backbone, tmp_path, augmentation_views=9)
    views = read.sources["training"].rows.reshape(9, len(parts["training"]), 2).argmax(axis=2)
    assert read.sources["training"].views == 9
    assert all(set(views[:, example]) == {0, 1} for example in range(3))
    assert read.sources["validation"].rows.argmax(axis=1).tolist() == parts["validation"].labels


def test_photos_of_a_whole_network_are_augmented_anew_and_validation_photos_never(tmp_path, convolution_backbone):
    parts, model, read = read_sides(convolution_backbone, tmp_path, train_only_top_layer=False, optimizer="adam")
    seeds = [tf.constant([0, seed]) for seed in range(40)]
    rows = {tuple(model.backbone(read.sources["training"].load(0, seed)[tf.newaxis])[0].numpy()) for seed in seeds}
    assert len(rows) == 2
    for index in range(len(parts["validation"])):
        assert len({read.sources["validation"].load(index, seed).numpy().tobytes() for seed in seeds[:5]}) == 1


def test_an_extreme_zoom_leaves_something_to_see():
    results = distorted(picture(), settings(zoom=-1.0), SEEDS[:100])
    assert np.isfinite(results).all()
    assert min(np.ptp(result) for result in results) > 5


def test_a_few_photos_tell_whether_scaling_matters(tmp_path):
    small, large = jpeg_of(tmp_path, 40, 40), jpeg_of(tmp_path, 400, 400)
    for number, contents in enumerate(([small, small], [small, large])):
        folder = builders.write_files(tmp_path / str(number), {"a/1.jpg": contents[0], "b/2.jpg": contents[1]})
        assert images.can_scale(examples.read("image", folder), Preprocessing(16, (0.0, 1.0), "bilinear")) == (
            number == 1
        )
