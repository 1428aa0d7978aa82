"""Exports to LiteRT and ONNX: real files of tiny networks, answered by the runtimes that phones and browsers have."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from flatbuffers import number_types as kinds

import tf_finetune
from tests import builders
from tests.container import sdks
from tf_finetune import cli, export, images, predictor, storage, targets
from tf_finetune.errors import DataError, ExportError
from tf_finetune.targets import description, graph, litert, onnx

import tensorflow as tf  # isort: skip
from tensorflow.lite.python import schema_py_generated as schema  # isort: skip

for _package in ("ai_edge_litert", "onnx", "tf2onnx", "onnxruntime"):
    pytest.importorskip(_package, reason="the extras [litert] and [onnx] are not installed")

NAMES = tuple(sorted(builders.COLOURS))
SIZE = 16


def write_archive(folder: Path, backbone: Path, kernel, bias, pixel_range=(-1.0, 1.0), names=NAMES, size=SIZE) -> Path:
    """Writes an unpacked archive of a backbone and a head of given weights."""
    settings = builders.plain_settings(train_only_top_layer=True, binary_mode=len(bias) == 1)
    model = builders.make_classifier(backbone, settings, num_classes=len(names))
    for variable, value in zip(model.head.variables, (kernel, bias), strict=True):
        variable.assign(np.array(value, np.float32))
    preprocessing = images.Preprocessing(size, pixel_range, "bilinear")
    export.write_saved_model(folder / "1", model, *images.serving_inputs(preprocessing))
    about = {"task": "image", "backbone": backbone.name, "class_names": list(names), "custom_ops": []}
    about["signature"] = {"name": "serving_default", "input": images.INPUT_NAME, "output": "probabilities"}
    export.write_side_files(folder, names, {**about, "preprocessing": preprocessing.as_json()})
    return folder


@pytest.fixture(scope="module")
def archive(tmp_path_factory, batch_norm_backbone) -> Path:
    """Of a network with convolutions and batch norm, which takes pixels in [-1, 1]."""
    kernel = np.random.default_rng(1).normal(0, 2, [8, 3])
    return write_archive(tmp_path_factory.mktemp("archive") / "model", batch_norm_backbone, kernel, [0.1, 0, -0.1])


@pytest.fixture(scope="module")
def channel(tmp_path_factory) -> Path:
    """Photos of another size than the model's, 14 a class."""
    return builders.write_class_folders(tmp_path_factory.mktemp("photos") / "channel", per_class=14, size=40)


def described_by(file: Path, format: str) -> dict:
    """Returns the description inside of a file, read as the README says."""
    if format == "litert":
        return json.loads(zipfile.ZipFile(file).read("tf_finetune.json"))
    import onnxruntime

    return json.loads(onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map["tf_finetune.json"])


def answered_by(file: Path, format: str, pixels: np.ndarray) -> np.ndarray:
    if format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        return Interpreter(model_path=str(file)).get_signature_runner()(pixels=pixels)["probabilities"]
    import onnxruntime

    return onnxruntime.InferenceSession(file).run(["probabilities"], {"pixels": pixels})[0]


def png(pixels: np.ndarray) -> bytes:
    return tf.io.encode_png(pixels.astype(np.uint8)).numpy()


@pytest.mark.parametrize("format", list(targets.FORMATS))
def test_a_file_answers_pixels_as_the_archive_answers_the_photo_of_them(format, archive, channel, tmp_path):
    record = targets.export(archive, format, tmp_path / "new" / "file", calibration=channel)
    file = tmp_path / "new" / "file"
    assert sorted(path.name for path in file.parent.iterdir()) == ["file", "file.json"]
    pixels = np.random.default_rng(0).integers(0, 256, [5, SIZE, SIZE, 3]).astype(np.float32)
    expected = predictor.load(archive).probabilities([png(one) for one in pixels])
    assert np.ptp(expected, axis=0).max() > 0.01  # The answers differ, so that there is something to compare.
    for count in (1, 5, 2):
        answered = answered_by(file, format, pixels[:count])
        assert answered.dtype == np.float32
        np.testing.assert_allclose(answered, expected[:count], atol=1e-5)

    inside, beside = described_by(file, format), json.loads((file.parent / "file.json").read_text())
    assert inside.items() <= beside.items() and beside["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert inside["class_names"] == list(NAMES) and inside["input"]["shape"] == [None, SIZE, SIZE, 3]
    assert record["proof"]["examples"] == 42 and record["proof"]["on"] == "photos of the calibration channel"
    assert record["proof"]["largest_difference"] < 1e-5


def test_the_same_model_gives_the_same_litert_file_with_its_labels(archive, tmp_path):
    model = graph.load(targets.plan(archive, "litert", tmp_path / "file"))
    about = description.make(model.whole.description, images.ANTIALIAS_FROM, without_antialias=False)
    first, second = (litert.described(litert.convert(model, None), about) for _ in range(2))
    assert first == second
    (tmp_path / "file").write_bytes(first)
    assert zipfile.ZipFile(tmp_path / "file").read("labels.txt").decode().splitlines() == list(NAMES)


def test_a_litert_file_has_the_metadata_by_which_programs_for_phones_feed_it(archive, tmp_path):
    targets.export(archive, "litert", tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    held = {entry.name: model.buffers[entry.buffer].data for entry in model.metadata}
    assert set(held) >= {b"TFLITE_METADATA", b"min_runtime_version"}  # The converter's own stays.
    about = held[b"TFLITE_METADATA"].tobytes()
    assert about[4:8] == b"M001"
    whole = flatbuffers.table.Table(about, int.from_bytes(about[:4], "little"))
    pixels, probabilities = (first(first(whole, 3), slot) for slot in (2, 3))
    assert (text(pixels, 0), text(probabilities, 0)) == (b"pixels", b"probabilities")
    assert (number(inside(pixels, 3), 0, "Uint8"), number(inside(inside(pixels, 3), 1), 0, "Int8")) == (2, 1)  # RGB.
    size = inside(inside(inside(pixels, 3), 1), 1)
    assert [number(size, slot, "Uint32") for slot in (0, 1)] == [SIZE, SIZE]
    assert number(first(pixels, 4), 0, "Uint8") == 1  # Of mean 0 and deviation 1.
    scaling = inside(first(pixels, 4), 1)
    assert [scaling.GetVectorAsNumpy(kinds.Float32Flags, scaling.Offset(slot))[0] for slot in (4, 6)] == [0, 1]
    labels = first(probabilities, 6)
    assert (text(labels, 0), number(labels, 2, "Int8")) == (b"labels.txt", 2)


def inside(table, slot: int):
    """Returns the table that a field of a FlatBuffer's table refers to."""
    return flatbuffers.table.Table(table.Bytes, table.Indirect(table.Pos + table.Offset(4 + 2 * slot)))


def first(table, slot: int):
    return flatbuffers.table.Table(table.Bytes, table.Indirect(table.Vector(table.Offset(4 + 2 * slot))))


def text(table, slot: int) -> bytes:
    return table.String(table.Pos + table.Offset(4 + 2 * slot))


def number(table, slot: int, kind: str) -> int:
    return table.Get(getattr(kinds, f"{kind}Flags"), table.Pos + table.Offset(4 + 2 * slot))


def test_a_model_of_one_unit_answers_both_classes(mean_backbone, tmp_path, capsys):
    archive = write_archive(tmp_path / "model", mean_backbone, [[4.0], [-3], [2]], [-1.0], (0.0, 1.0), ("no", "yes"))
    assert cli.main(["export", str(archive), "--format", "onnx"]) == 0
    told = capsys.readouterr().out
    assert "largest difference of a probability" in told and "noise and gradients" in told
    assert str(tmp_path / "model.onnx") in told
    pixels = np.full([1, SIZE, SIZE, 3], 51, np.float32)
    probability = 1 / (1 + np.exp(-(0.2 * (4 - 3 + 2) - 1)))
    answered = answered_by(tmp_path / "model.onnx", "onnx", pixels)
    np.testing.assert_allclose(answered, [[1 - probability, probability]], atol=1e-6)


def test_int8_is_calibrated_on_some_photos_and_measured_on_others(archive, channel, tmp_path, monkeypatch):
    seen = []
    pixels_of = graph.pixels_of

    def noted(model, photos):
        seen.append(list(photos))
        return pixels_of(model, photos)

    monkeypatch.setattr(graph, "pixels_of", noted)
    file = tmp_path / "file"
    other = builders.write_class_folders(tmp_path / "other", 1, size=SIZE)
    given = {"calibration": channel, "validation": other}
    found = targets.export(archive, "litert", file, int8=True, max_loss=1, **given)["proof"]
    assert (found["calibrated_on"], found["measured_on"], found["on"]) == (42, 3, "photos of the validation channel")
    assert all(path.startswith(str(other)) for path in seen[-1]) and len(seen[-1]) == 3
    found = targets.export(archive, "litert", file, int8=True, calibration=channel, max_loss=0.5)["proof"]
    assert (found["calibrated_on"], found["measured_on"]) == (21, 21)
    calibrated, measured = (set(paths) for paths in seen[-2:])
    assert not calibrated & measured and {Path(path).parent.name for path in calibrated} == set(NAMES)
    assert found["largest_difference"] < 0.2 and found["same_prediction"] > 0.8

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    kinds = [tensor["dtype"] for tensor in interpreter.get_tensor_details()]
    # Float comes in and goes out; everything between is in whole numbers.
    assert kinds.count(np.float32) == 2 and kinds.count(np.int8) > 5
    assert json.loads(zipfile.ZipFile(file).read("tf_finetune.json"))["computes_in"] == "int8"


def test_int8_that_loses_too_much_is_refused_and_what_was_there_stays(tmp_path):
    def call(inputs):  # The second feature needs a scale by which the first is nothing.
        means = tf.reduce_mean(inputs, axis=[1, 2])
        return tf.concat([means[:, :1], 100 * means[:, 1:2]], axis=1)

    backbone = builders.save_reusable(tmp_path / "uneven", call)
    colours = {"dark": (5, 200, 0), "light": (20, 200, 0)}
    channel = builders.write_class_folders(tmp_path / "channel", 12, colours, size=SIZE)
    archive = write_archive(tmp_path / "model", backbone, [[0, 1000.0], [0, 0]], [0, -50.0], (0.0, 1.0), list(colours))
    file = tmp_path / "out" / "file"
    builders.write_files(file.parent, {"file": b"old", "file.json": b"older"})
    with pytest.raises(ExportError, match=r"int8 loses too much: accuracy 0\.\d{4} instead of 1\.0000 .* 12 photos"):
        targets.export(archive, "litert", file, int8=True, calibration=channel)
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == {"file": b"old", "file.json": b"older"}
    with pytest.raises(DataError, match="has 12 photos. Expected at least 20"):
        few = builders.write_class_folders(tmp_path / "few", 6, colours, size=SIZE)
        targets.export(archive, "litert", file, int8=True, calibration=few)


@pytest.mark.parametrize("harm", [lambda png: png[:8] + b"broken" * 9, lambda png: png[: len(png) // 2]])
def test_a_damaged_photo_of_the_calibration_is_named(harm, archive, channel, tmp_path):
    for folder in channel.iterdir():
        copy = tmp_path / "channel" / folder.name
        builders.write_files(copy, {path.name: path.read_bytes() for path in folder.iterdir()})
    damaged = tmp_path / "channel" / NAMES[0] / "0.png"
    damaged.write_bytes(harm(damaged.read_bytes()))
    with pytest.raises(DataError, match=r"0\.png"):
        targets.export(archive, "litert", tmp_path / "file", int8=True, calibration=tmp_path / "channel")


@pytest.mark.parametrize("format", list(targets.FORMATS))
def test_operations_that_a_format_lacks_are_named(format, tmp_path):
    backbone = builders.save_reusable(
        tmp_path / "strange", lambda inputs: tf.math.bessel_i1e(tf.reduce_mean(inputs, axis=[1, 2]))
    )
    archive = write_archive(tmp_path / "model", backbone, np.eye(3), [0, 0, 0])
    title = targets.FORMATS[format].title
    with pytest.raises(ExportError, match=rf"cannot be written as {title}: {title} has no operations for BesselI1e"):
        targets.export(archive, format, tmp_path / "out" / "file")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("format", "module"), [("litert", litert), ("onnx", onnx)])
def test_a_file_that_does_not_answer_as_the_archive_is_not_handed_over(format, module, archive, tmp_path, monkeypatch):
    described = module.described
    monkeypatch.setattr(module, "described", lambda *given: described(*given)[:2000])
    with pytest.raises(ExportError, match="file does not answer in a fresh process"):
        targets.export(archive, format, tmp_path / "file")
    monkeypatch.setattr(module, "described", described)
    scaled = graph.pixels_of
    monkeypatch.setattr(graph, "pixels_of", lambda *given: (batch * 0.9 for batch in scaled(*given)))
    with pytest.raises(ExportError, match="answers otherwise than the archive: a probability differs by"):
        targets.export(archive, format, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_the_process_that_proves_a_file_knows_neither_us_nor_tensorflow():
    source = (Path(targets.__file__).parents[1] / "assets" / "answer_pixels.py").read_text()
    names = {"__name__": "proof"}
    kept = {name: sys.modules.get(name) for name in ("tf_finetune", "tensorflow")}
    try:
        exec(compile(source, "answer_pixels.py", "exec"), names)
        assert sys.modules["tf_finetune"] is None and sys.modules["tensorflow"] is None
    finally:
        sys.modules.update(kept)


PHONE = """
import json, sys
import mediapipe
from mediapipe.tasks import python
from mediapipe.tasks.python import vision

base = python.BaseOptions(model_asset_path=sys.argv[1])
with vision.ImageClassifier.create_from_options(vision.ImageClassifierOptions(base_options=base)) as classifier:
    for photo in sys.argv[2:]:
        found = classifier.classify(mediapipe.Image.create_from_file(photo)).classifications[0].categories
        print(json.dumps({each.category_name: each.score for each in found}))
"""


@pytest.mark.soak
def test_mediapipes_classifier_answers_photos_by_a_litert_file_alone(archive, channel, tmp_path):
    targets.export(archive, "litert", tmp_path / "model.tflite")
    photos = [str(sorted((channel / name).iterdir())[0]) for name in NAMES]
    python = sdks.installed("mediapipe==1.2.2", storage.cache_folder() / "sdks" / "mediapipe")
    command = [python, "-c", PHONE, tmp_path / "model.tflite", *photos]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.splitlines()
    expected = predictor.load(archive).probabilities(photos)
    answered = [[json.loads(line)[name] for name in NAMES] for line in lines]
    np.testing.assert_allclose(answered, expected, atol=0.01)  # It resizes in its own way.


@pytest.mark.soak
def test_the_packaged_backbone_on_real_photos_keeps_its_accuracy_in_each_format(real_data, tmp_path):
    photos = real_data / "images" / "flowers-400"
    record = tf_finetune.train(photos, tmp_path, "flowers")
    archive = Path(record["job"]["model_artifact"])
    for format in targets.FORMATS:
        assert targets.export(archive, format, calibration=photos)["proof"]["largest_difference"] < 1e-5
    found = targets.export(archive, "litert", int8=True, calibration=photos)
    assert found["proof"]["same_prediction"] > 0.95 and found["bytes"] < 4.2e6
    names = {"model.tar.gz", "data", "model.tflite", "model.onnx", "model.int8.tflite"}
    assert names <= {path.name for path in archive.parent.iterdir()}
