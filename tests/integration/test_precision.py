"""16 bits where the hardware has them and they agree with float32; what is reported and exported is float32."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tf_finetune
from tests import builders
from tf_finetune import backbone as backbones
from tf_finetune import devices, predictor
from tf_finetune.backbone import freezing
from tf_finetune.feature_cache.space import opened
from tf_finetune.features import frozen, precision
from tf_finetune.features.frozen import EXACT, Way

SHORT = devices.sixteen_bit()
OTHER = {"bfloat16": "float16", "float16": "bfloat16"}.get(SHORT, "float16")
in_hardware = pytest.mark.skipif(SHORT is None, reason="this machine has no 16-bit arithmetic in hardware")
IN_16_BITS = Way(SHORT or "bfloat16")
SAMPLE = 32


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """A convolution of 16 channels: its features survive 16 bits."""
    return builders.save_convolution_backbone(tmp_path_factory.mktemp("wide") / "b", channels=16)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory) -> Path:
    """Features are the mean red, green and blue as the difference of two convolutions a thousand times as large."""
    large = tf.constant(1000 * np.random.default_rng(0).random([1, 1, 3, 3]), tf.float32)
    plain = tf.reshape(tf.eye(3), [1, 1, 3, 3])

    def call(images):
        both = tf.nn.conv2d(images, tf.concat([large + plain, large], axis=3), 1, "SAME")
        apart = tf.nn.conv2d(both, tf.concat([plain, -plain], axis=2), 1, "SAME")
        return tf.reduce_mean(apart, axis=[1, 2])

    return builders.save_reusable(tmp_path_factory.mktemp("fragile") / "b", call)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """So many photos that 16 bits pay: more than 256 of them are trained on."""
    return builders.write_class_folders(tmp_path_factory.mktemp("data") / "photos", 130, size=16)


@pytest.fixture
def heard(caplog):
    """The package's log."""
    caplog.set_level(logging.INFO, "tf_finetune")
    return caplog


@pytest.fixture
def computed_in(monkeypatch) -> list[str]:
    """The precisions that functions were run in."""
    asked, rewriting = [], devices.rewriting

    def watched(precision: str):
        asked.append(precision)
        return rewriting(precision)

    monkeypatch.setattr(devices, "rewriting", watched)
    return asked


def source_of(count: int):
    return builders.array_source(*builders.coloured_arrays(count))


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def passes_on(folder: Path, kept: Path | None = None, **given) -> frozen.Passes:
    return builders.make_passes(backbones.Backbone(folder), kept, as_constants=True, **given)


def choose(passes: frozen.Passes, asked: str = "auto", is_image: bool = True, count: int = 1000, scales: bool = False):
    return precision.choose(passes, asked, is_image, count, lambda scaled: source_of(SAMPLE), lambda: scales)


# The hardware and the rewriter.


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags\t\t: fpu sse avx512f avx512_bf16 amx_tile", "bfloat16"),
        ("flags\t\t: fpu amx_bf16", "bfloat16"),
        ("flags\t\t: fpu avx512f avx512_bf16x", None),
        ("processor : 0\nmodel name : avx512_bf16\nflags : fpu\nflags : avx512_bf16", None),
        ("", None),
    ],
)
@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="a GPU goes before the CPU")
def test_a_cpu_says_whether_it_multiplies_in_16_bits(tmp_path, flags, found):
    (tmp_path / "cpuinfo").write_text(flags)
    assert devices.sixteen_bit(tmp_path / "cpuinfo") == found
    assert devices.sixteen_bit(tmp_path / "nowhere") is None


def options() -> dict[str, bool]:
    names = devices.REWRITERS.values()
    return {name: bool(tf.config.optimizer.get_experimental_options().get(name)) for name in names}


def test_the_rewriter_is_on_inside_the_block_and_nowhere_else():
    assert set(options().values()) == {False}
    for asked, option in devices.REWRITERS.items():
        with pytest.raises(KeyError), devices.rewriting(asked):
            assert {name for name, on in options().items() if on} == {option}
            with devices.rewriting("float32"), devices.rewriting(asked):
                pass
            assert options()[option]
            raise KeyError
        assert set(options().values()) == {False}


@in_hardware
@pytest.mark.parametrize("replicas", ["one", "two"])
def test_features_in_16_bits_are_a_little_different_and_float32_stays_as_it_is(request, wide, replicas):
    strategy, source = request.getfixturevalue(replicas), source_of(70)
    with strategy.scope():
        body = backbones.Backbone(wide)
    alone = builders.make_passes(body, strategy=strategy, as_constants=True).features(source).rows
    both = builders.make_passes(body, strategy=strategy, as_constants=True)
    short, whole = both.features(source, IN_16_BITS).rows, both.features(source).rows
    assert whole.tobytes() == alone.tobytes()
    assert whole.dtype == short.dtype == np.float32
    differences = np.abs(short - whole).max(axis=1)
    assert (differences > 0).all()
    assert differences.max() < 0.02 * np.abs(whole).max()
    assert both.calls(EXACT) == (70, 0)  # Each distinct example counts once, however often it is sent.


# Constants instead of variables.


def test_a_frozen_function_has_the_values_of_now(convolution_backbone):
    body = backbones.Backbone(convolution_backbone)
    photos = tf.constant(builders.coloured_arrays(5)[0])
    before = body(photos).numpy()
    function = body.forward(8, as_constants=True)
    assert not function.get_concrete_function().captured_inputs
    np.testing.assert_allclose(function(photos), before, atol=1e-6)
    body.adopted[0].assign(body.adopted[0].numpy() + 1)
    np.testing.assert_allclose(function(photos), before, atol=1e-6)
    assert np.abs(body.forward(8)(photos) - before).max() > 0.1


def test_a_frozen_functions_tables_still_look_up(bert_pair):
    body = backbones.Backbone(bert_pair[0], "text", preprocessor=bert_pair[1], max_sequence_length=8)
    texts = tf.constant(["the film was good", "", "films !"])
    expected, function = body(texts).numpy(), body.forward(as_constants=True)
    del body
    np.testing.assert_allclose(function(texts), expected, atol=1e-6)


def test_a_backbone_that_cannot_be_frozen_runs_as_it_is_and_is_told(wide, monkeypatch, heard):
    def fail(*args):
        raise ValueError("no such thing\nand more of it")

    expected = passes_on(wide).features(source_of(5)).rows
    monkeypatch.setattr(freezing, "with_constants", fail)
    rows = passes_on(wide).features(source_of(5)).rows
    np.testing.assert_allclose(rows, expected, atol=1e-6)
    told = "the backbone cannot be turned into constants, and runs as it is: no such thing"
    assert [record.getMessage() for record in heard.records].count(told) == 1


# The choice.


@in_hardware
def test_16_bits_are_chosen_where_they_agree_and_the_sample_is_not_sent_again(wide, tmp_path):
    passes = passes_on(wide, tmp_path)
    way, record = choose(passes)
    assert way == IN_16_BITS
    assert (record["asked"], record["features"], record["scaled_decoding"]) == ("auto", SHORT, False)
    assert record["reason"] == "agrees with float32 on 32 training examples"
    assert record["examples"] == SAMPLE
    assert 0.998 <= record["median_cosine"] <= 1
    assert 0.98 <= record["least_cosine"] <= record["median_cosine"]
    assert passes.calls(way) == (SAMPLE, SAMPLE)
    passes.features(source_of(100), way)
    assert passes.calls(way) == (100, SAMPLE)
    again = passes_on(wide, tmp_path)
    assert choose(again) == (way, record)
    again.features(source_of(100), way)
    assert again.calls(way) == (0, 0)


@in_hardware
def test_the_sample_is_not_sent_again_where_nothing_is_kept_either(wide):
    told = []
    passes = passes_on(wide, progress=lambda stage, done, total: told.append(total))
    way, _ = choose(passes)
    passes.features(source_of(100), way)
    passes.features(source_of(40))
    assert told == [SAMPLE, SAMPLE, 68, 68, 68, 8]  # The check's two passes, and the rest of each part.


@in_hardware
def test_16_bits_that_disagree_are_not_used_and_the_record_says_by_how_much(fragile, tmp_path, heard):
    passes = passes_on(fragile, tmp_path)
    for asked in ("auto", SHORT):
        way, record = choose(passes, asked)
        assert way == EXACT
        assert (record["asked"], record["features"]) == (asked, "float32")
        assert record["least_cosine"] < 0.98
        figures = (
            f"{record['median_cosine']:.4f} (median), {record['least_cosine']:.4f} (least) on 32 training examples"
        )
        assert record["reason"] == f"{SHORT} does not agree with float32: cosine {figures}"
        assert record["reason"] in heard.text
    passes.features(source_of(40), way)
    assert passes.calls(way) == (40, SAMPLE)  # The float32 features of the sample were of use.
    again = passes_on(fragile, tmp_path)
    assert choose(again)[0] == EXACT
    assert again.calls(EXACT) == (0, 0)


@in_hardware
def test_a_verdict_counts_while_half_of_its_examples_are_there(wide, tmp_path):
    def chosen(first: int) -> tuple[int, int]:
        photos, labels = builders.coloured_arrays(200)
        source = builders.array_source(photos[first : first + SAMPLE], labels[first : first + SAMPLE])
        passes = passes_on(wide, tmp_path)
        precision.choose(passes, "auto", True, 1000, lambda scaled: source, lambda: False)
        return passes.calls(IN_16_BITS)

    assert chosen(0) == (SAMPLE, SAMPLE)
    assert chosen(16) == (0, 0)
    assert chosen(17) == (17, 17)


@pytest.mark.parametrize(
    ("asked", "is_image", "count", "reason"),
    [
        ("float32", True, 1000, "as asked"),
        (OTHER, True, 1000, f"this machine has no {OTHER} in hardware" + (f", but {SHORT}" if SHORT else "")),
        ("auto", False, 1000, "texts are encoded no faster in 16 bits"),
        ("auto", True, 255, "with fewer than 256 training photos 16 bits save less than their check costs"),
    ],
)
def test_float32_is_taken_without_a_check_and_the_reason_is_told(
    wide, computed_in, heard, asked, is_image, count, reason
):
    passes = passes_on(wide)
    way, record = choose(passes, asked, is_image, count)
    passes.features(source_of(40), way)
    if SHORT is None and asked == "auto":
        reason = "this machine computes in 16 bits no faster"
    assert (way, record["features"], record["reason"]) == (EXACT, "float32", reason)
    assert (record["examples"], record["median_cosine"], record["least_cosine"]) == (None, None, None)
    assert passes.calls(way) == (40, 0)
    assert set(computed_in) == {"float32"}
    assert f"training features: float32 ({reason})" in heard.text


def test_a_machine_without_16_bits_computes_in_float32(wide, monkeypatch):
    monkeypatch.setattr(devices, "sixteen_bit", lambda: None)
    for asked, reason in (
        ("auto", "this machine computes in 16 bits no faster"),
        ("bfloat16", "this machine has no bfloat16 in hardware"),
    ):
        way, record = choose(passes_on(wide), asked)
        assert (way, record["reason"]) == (EXACT, reason)


@pytest.mark.parametrize(
    ("scaled_agrees", "plain_agrees", "asked", "expected"),
    [
        (True, True, "auto", Way("bfloat16", True)),
        (False, True, "auto", Way("bfloat16", False)),
        (False, False, "auto", EXACT),
        (True, True, "float32", Way("float32", True)),
        (False, False, "float32", EXACT),
    ],
)
def test_the_fastest_way_that_agrees_is_taken(wide, monkeypatch, scaled_agrees, plain_agrees, asked, expected):
    monkeypatch.setattr(devices, "sixteen_bit", lambda: "bfloat16")
    tried = []

    def checked(passes, way, sample):
        tried.append(way)
        agrees = scaled_agrees if way.scaled else plain_agrees
        return {"agrees": agrees, "examples": 32, "median_cosine": 0.5 + agrees / 2, "least_cosine": 0.25}

    monkeypatch.setattr(precision, "_checked", checked)
    way, record = choose(passes_on(wide), asked, scales=True)
    assert way == expected
    assert (record["features"], record["scaled_decoding"]) == (expected.precision, expected.scaled)
    assert EXACT not in tried
    assert tried[0].scaled
    assert ("does not agree with float32" in record["reason"]) == (not scaled_agrees)


def test_cosines_of_zeros_and_of_what_is_no_number():
    reference = np.array([[3, 4], [0, 0], [0, 0], [1, 0], [1, 1], [1e-30, 0], [np.inf, 1]], np.float32)
    tried = np.array([[6, 8], [0, 0], [1, 0], [0, 1], [np.nan, 1], [1e-30, 0], [np.inf, 1]], np.float32)
    np.testing.assert_allclose(precision._cosines(reference, tried), [1, 1, 0, 0, 0, 1, 1])
    assert precision._cosines(reference[:1], -tried[:1])[0] == pytest.approx(-1)


@in_hardware
@pytest.mark.parametrize(
    ("median", "least", "agrees"), [(0.9981, 0.981, True), (0.9979, 0.99, False), (0.999, 0.979, False)]
)
def test_the_gates_thresholds_are_those_of_the_design(wide, monkeypatch, median, least, agrees):
    monkeypatch.setattr(precision, "_cosines", lambda one, other: np.array([least, median, 1.0]))
    assert (choose(passes_on(wide))[0] == IN_16_BITS) == agrees


# Whole networks.


@in_hardware
@pytest.mark.skipif(SHORT != "bfloat16", reason="a whole network is trained in 16 bits on CPUs only")
@pytest.mark.parametrize(
    ("asked", "steps", "precisions", "reason"),
    [
        ("float32", 1000, ("float32",), "as asked"),
        ("float16", 1000, ("float32",), "this machine has no float16 in hardware"),
        ("auto", 10, ("float32",), "with fewer than 200 steps trying 16 bits would take longer than it could save"),
        ("auto", 200, ("float32", "bfloat16"), "agrees with float32: cosine "),
        ("bfloat16", 1, ("bfloat16",), "agrees with float32: cosine "),
    ],
)
def test_a_whole_network_is_trained_in_16_bits_only_where_they_agree(wide, asked, steps, precisions, reason):
    given, told = precision.for_fine_tuning(passes_on(wide), asked, steps, 32, lambda scaled: source_of(SAMPLE))
    assert given == precisions
    assert told.startswith(reason)


@in_hardware
@pytest.mark.skipif(SHORT != "bfloat16", reason="a whole network is trained in 16 bits on CPUs only")
def test_what_a_trial_found_counts_for_the_next_job_of_that_batch_size(wide, tmp_path):
    def asked(batch_size: int):
        sample = lambda scaled: source_of(SAMPLE)  # noqa: E731
        return precision.for_fine_tuning(passes_on(wide, tmp_path), "auto", 1000, batch_size, sample)

    assert asked(32)[0] == ("float32", "bfloat16")
    for chosen, batch_size in (("float32", 32), ("bfloat16", 64)):
        precision.keep_fastest(passes_on(wide, tmp_path), batch_size, chosen)
        assert asked(batch_size)[0] == (chosen,)
        assert f"{chosen} was the faster when it was timed before" in asked(batch_size)[1]
    assert asked(16)[0] == ("float32", "bfloat16")


@in_hardware
def test_a_whole_network_that_16_bits_would_spoil_is_trained_in_float32(fragile):
    given, told = precision.for_fine_tuning(passes_on(fragile), "auto", 1000, 32, lambda scaled: source_of(SAMPLE))
    assert given == ("float32",)
    assert told.startswith(f"{SHORT} does not agree with float32: cosine")


# Whole jobs.


def train(photos: Path, backbone: Path, folder: Path, **given) -> dict:
    given = {"image_size": 16, "cache_dir": folder / "kept", **given}
    return tf_finetune.train(photos, folder, "job", backbone=str(backbone), **given)


def spaces_in(folder: Path) -> dict[str, Path]:
    """Returns the folder of each space by its precision."""
    return {json.loads(file.read_text())["precision"]: file.parent for file in folder.glob("*/about.json")}


def rows_in(space: Path) -> dict[bytes, np.ndarray]:
    shards = [opened(file, None) for file in space.glob("*.npy")]
    rows = [(key.tobytes(), row) for shard in shards for key, row in zip(shard.keys, shard.features, strict=True)]
    return dict(rows)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos, wide) -> tuple[dict, Path]:
    """A job that chose 16 bits by itself, and its folder."""
    folder = tmp_path_factory.mktemp("auto")
    return train(photos, wide, folder, test=photos), folder


@in_hardware
def test_training_features_alone_are_in_16_bits(trained, photos, wide):
    record, folder = trained
    assert record["precision"]["features"] == SHORT
    assert (record["backbone_calls"], record["gate_calls"]) == (390, SAMPLE)
    spaces = spaces_in(folder / "kept")
    assert set(spaces) == {SHORT, "float32"}
    short, whole = rows_in(spaces[SHORT]), rows_in(spaces["float32"])
    assert len(short) == record["examples"]["training"]
    assert len(whole) == 390  # `test` is all of them.
    body = backbones.Backbone(wide)
    for split in ("validation", "training"):
        lines = [line.split(",") for line in (folder / "job/output/data/split.csv").read_text().splitlines()]
        _, name, _, digest = next(line for line in lines if line[0] == split)
        pixels = tf.io.decode_image(tf.io.read_file(str(photos / name))) / 255
        np.testing.assert_allclose(whole[bytes.fromhex(digest)], body(pixels[None])[0], atol=1e-5)


@in_hardware
def test_report_evaluate_and_archive_agree_to_float32(trained, photos):
    record, folder = trained
    assert record["parity"]["largest_difference"] < 1e-6
    told = predictor.evaluate(tf_finetune.load(folder / "job/output/model.tar.gz"), photos)
    assert told["accuracy"] == record["metrics"]["test"]["accuracy"]
    assert told["loss"] == pytest.approx(record["metrics"]["test"]["loss"], abs=1e-6)
    saved = tf.saved_model.load(str(unpacked(folder)))
    assert {variable.dtype for variable in saved.weights} == {tf.float32}


def unpacked(folder: Path) -> Path:
    from tf_finetune import archive

    if not (folder / "model").exists():
        archive.unpack(folder / "job/output/model.tar.gz", folder / "model")
    return folder / "model" / "1"


@in_hardware
def test_a_second_job_asks_neither_the_backbone_nor_the_gate(trained, photos, wide, tmp_path, without_export):
    record, folder = trained
    again = train(photos, wide, tmp_path, test=photos, cache_dir=folder / "kept")
    assert (again["backbone_calls"], again["gate_calls"]) == (0, 0)
    assert again["precision"] == record["precision"]
    assert again["metrics"] == record["metrics"]


@in_hardware
def test_a_backbone_that_16_bits_would_spoil_is_trained_on_in_float32(photos, fragile, tmp_path, without_export):
    record = train(photos, fragile, tmp_path)
    written = json.loads((tmp_path / "job/output/data/report.json").read_text())["precision"]
    assert written == record["precision"]
    assert written["features"] == "float32"
    assert written["reason"].startswith(f"{SHORT} does not agree with float32: cosine ")
    assert written["least_cosine"] < 0.98
    assert (record["backbone_calls"], record["gate_calls"]) == (390, SAMPLE)
    assert record["metrics"]["validation"]["accuracy"] == 1.0


@in_hardware
@pytest.mark.skipif(SHORT != "bfloat16", reason="the kernel below is 1 when it is rounded to bfloat16")
def test_examples_that_16_bits_spoil_outside_of_the_sample_are_computed_in_float32(tmp_path, without_export):
    kernel = 0.999 * np.eye(16, dtype=np.float32)[None, None, :3]

    def call(images):
        nearly = tf.nn.conv2d(images, kernel, 1, "SAME")  # A white pixel gives 0.999, and 1.0 in 16 bits,
        return tf.reduce_mean(tf.math.log(0.9995 - nearly), axis=[1, 2])  # of which the logarithm is no number.

    backbone = builders.save_reusable(tmp_path / "b", call)
    photos = builders.write_class_folders(tmp_path / "photos", 130, size=16)
    for file in sorted(photos.rglob("*.png")):
        pixels = np.minimum(np.array(Image.open(file)), 200)
        Image.fromarray(pixels).save(file)
    digest = ""
    while digest in sorted(["", *map(digest_of, photos.rglob("*.png"))])[: SAMPLE + 1]:  # Not one of the sample.
        pixels[0, 0], pixels[1, 1] = 255, pixels[1, 1] - 1
        Image.fromarray(pixels).save(file)
        digest = digest_of(file)
    given = {"validation": photos}
    record = train(photos, backbone, tmp_path, **given)
    assert record["precision"]["features"] == "float32"
    assert record["precision"]["reason"] == "1 of 390 examples give NaN or infinite features in bfloat16"
    assert record["gate_calls"] >= 390 - SAMPLE
    again = train(photos, backbone, tmp_path, **given)
    assert (again["backbone_calls"], again["gate_calls"]) == (0, 0)
    assert again["precision"]["reason"].endswith("1 of 390 examples give NaN or infinite features in bfloat16")
    assert again["metrics"] == record["metrics"]


@in_hardware
@pytest.mark.skipif(SHORT != "bfloat16", reason="a whole network is trained in 16 bits on CPUs only")
def test_all_that_a_check_sends_is_extra_where_features_are_not_used(photos, wide, tmp_path, without_export):
    given = {"train_only_top_layer": False, "optimizer": "adam", "precision": "bfloat16", "epochs": 1}
    record = train(photos, wide, tmp_path, **given)
    assert (record["backbone_calls"], record["gate_calls"]) == (390, 2 * SAMPLE)


def test_float32_is_float32_throughout_when_it_is_asked_for(photos, wide, tmp_path, computed_in, without_export):
    record = train(photos, wide, tmp_path, precision="float32")
    assert set(computed_in) == {"float32"}
    assert set(spaces_in(tmp_path / "kept")) == {"float32"}
    assert (record["precision"]["reason"], record["gate_calls"]) == ("as asked", 0)
