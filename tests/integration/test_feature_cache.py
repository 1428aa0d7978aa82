"""Every example goes through a frozen backbone once, ever: across jobs, whatever is killed, damaged or refused."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import tf_finetune
from tests import builders
from tf_finetune import backbone as backbones
from tf_finetune import features, storage
from tf_finetune.errors import BackboneError
from tf_finetune.feature_cache import space as spaces
from tf_finetune.features import frozen
from tf_finetune.features.frozen import EXACT, Way
from tf_finetune.hyperparameters import Hyperparameters

# One pass.


@pytest.fixture(scope="module")
def body(convolution_backbone) -> backbones.Backbone:
    return backbones.Backbone(convolution_backbone)


def photos_of(count: int, seed: int = 0) -> features.Source:
    return builders.array_source(*builders.coloured_arrays(count, seed=seed))


def watched(source: features.Source) -> tuple[features.Source, list[int]]:
    """Returns a source and the list of the indices that are read from it; the last batch is filled up with repeats."""
    read: list[int] = []

    def load(index: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        (index,) = tf.py_function(lambda number: (read.append(int(number)), number)[1:], [index], [tf.int64])
        index.set_shape([])
        return source.load(index, seed)

    return dataclasses.replace(source, load=load), read


def sent(passes: frozen.Passes, source: features.Source, *given) -> tuple[np.ndarray, set[int]]:
    """Returns the features of a source, and the indices of the examples that were read for them."""
    source, read = watched(source)
    return passes.features(source, *given).rows, set(read)


def test_what_was_sent_once_is_never_sent_again_and_comes_back_bit_for_bit(body, tmp_path):
    source = photos_of(70)
    first = builders.make_passes(body, tmp_path)
    rows, read = sent(first, source)
    assert read == set(range(70))
    assert (first.calls(EXACT), first.reused) == ((70, 0), 0)
    np.testing.assert_allclose(rows, body(source.load(tf.range(70), None)), atol=1e-6)
    second = builders.make_passes(body, tmp_path)
    again, read = sent(second, source)
    assert read == set()
    assert (second.calls(EXACT), second.reused) == ((0, 0), 70)
    assert again.tobytes() == rows.tobytes()
    assert sent(builders.make_passes(body), source)[0].tobytes() == rows.tobytes()  # Without a cache at all.


def test_of_more_examples_only_the_new_ones_are_sent(body, tmp_path):
    photos, labels = builders.coloured_arrays(50)
    old = np.random.default_rng(0).permutation(50)[:40]
    builders.make_passes(body, tmp_path).features(builders.array_source(photos[old], labels[old]))
    passes = builders.make_passes(body, tmp_path)
    rows, read = sent(passes, builders.array_source(photos, labels))
    assert read == set(range(50)) - set(old)
    assert (passes.calls(EXACT), passes.reused) == ((10, 0), 40)
    np.testing.assert_allclose(rows, body(photos), atol=1e-6)


def test_duplicates_are_sent_once_within_a_part_and_between_parts(body):
    photos, labels = builders.coloured_arrays(9)
    order = np.array([0, 1, 2, 0, 3, 0, 4, 1, 5])
    passes = builders.make_passes(body)
    rows, read = sent(passes, builders.array_source(photos[order], labels))
    assert len(read) == 6
    np.testing.assert_allclose(rows, body(photos[order]), atol=1e-6)
    sent(passes, builders.array_source(photos[[5, 6]], labels[:2]))
    assert passes.calls(EXACT) == (7, 0)


def test_neither_order_nor_labels_nor_the_backbones_place_nor_the_devices_play_a_part(
    body, tmp_path, convolution_backbone, two
):
    photos, labels = builders.coloured_arrays(40)
    rows, _ = sent(builders.make_passes(body, tmp_path / "kept"), builders.array_source(photos, labels))
    moved = backbones.Backbone(shutil.copytree(convolution_backbone, tmp_path / "elsewhere" / "1"))
    other = builders.array_source(photos[::-1], np.zeros(40, int))
    again, read = sent(builders.make_passes(moved, tmp_path / "kept", strategy=two), other)
    assert read == set()
    assert again.tobytes() == rows[::-1].tobytes()


def test_whatever_features_depend_on_makes_others(body, tmp_path, convolution_backbone, monkeypatch):
    source, kept = photos_of(5), tmp_path / "kept"

    def newly_sent(passes: frozen.Passes, source: features.Source = source, *given) -> int:
        return len(sent(passes, source, *given)[1])

    assert newly_sent(builders.make_passes(body, kept)) == 5
    assert newly_sent(builders.make_passes(body, kept)) == 0
    assert newly_sent(builders.make_passes(body, kept, about={"preprocessing": "another"})) == 5
    assert newly_sent(builders.make_passes(body, kept), source, Way(scaled=True)) == 5
    assert newly_sent(builders.make_passes(body, kept), source, Way("bfloat16")) == 5
    changed = builders.change_weights(shutil.copytree(convolution_backbone, tmp_path / "changed"))
    assert (changed / "saved_model.pb").read_bytes() == (convolution_backbone / "saved_model.pb").read_bytes()
    assert newly_sent(builders.make_passes(backbones.Backbone(changed), kept)) == 5
    digests = [hashlib.sha256(source.digests[0]).digest(), *source.digests[1:]]
    assert newly_sent(builders.make_passes(body, kept), dataclasses.replace(source, digests=digests)) == 1
    assert newly_sent(builders.make_passes(body, kept)) == 0
    monkeypatch.setattr(frozen, "VERSION", frozen.VERSION + 1)
    assert newly_sent(builders.make_passes(body, kept)) == 5


def test_a_backbone_is_known_by_the_bytes_of_its_graph_its_variables_and_its_assets(convolution_backbone, tmp_path):
    folder = shutil.copytree(convolution_backbone, tmp_path / "b")
    seen = {storage.content_of(convolution_backbone)}
    (folder / "fingerprint.pb").write_bytes(b"made anew at each save")
    assert storage.content_of(folder) in seen
    for name, content in (("saved_model.pb", b"x"), ("assets/words.txt", b"a"), ("assets/words.txt", b"b")):
        (folder / name).write_bytes(content)
        assert storage.content_of(folder) not in seen
        seen.add(storage.content_of(folder))
    (folder / "assets/words.txt").rename(folder / "assets/other.txt")
    assert storage.content_of(folder) not in seen


def test_a_text_pass_takes_texts_of_about_one_length_together(tmp_path):
    texts = [letter * length for length in (90, 5, 60, 20) for letter in map(chr, range(97, 121))]
    lengths = []

    def call(given):
        tf.py_function(lambda batch: lengths.append({len(text) for text in batch.numpy()}), [given], [])
        return tf.cast(tf.strings.length(given), tf.float32)[:, None]

    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    rows, zeros = tf.constant(texts), np.zeros(len(texts), np.int32)
    source = features.Source(
        lambda index, seed: tf.gather(rows, index),
        zeros,
        zeros.astype(np.int64),
        digests,
        np.array(list(map(len, texts))),
    )
    spec = tf.TensorSpec([None], tf.string)
    folder = builders.save_reusable(
        tmp_path / "b", lambda given: tf.cast(tf.strings.length(given), tf.float32)[:, None], spec=spec
    )
    body = backbones.Backbone(folder, "text")
    passes = builders.make_passes(body)
    passes._ready = lambda precision: call
    made = passes.features(source).rows
    assert made[:, 0].tolist() == [len(text) for text in texts]
    assert [len(mixed) for mixed in lengths] == [2, 2, 2]  # 24 of each length, in batches of 32.


def test_features_that_are_no_numbers_are_not_kept(tmp_path):
    folder = builders.save_reusable(tmp_path / "b", lambda images: 1 / tf.reduce_max(images, [1, 2]))
    photos, labels = builders.coloured_arrays(6)
    photos[2] = 0
    source, body = builders.array_source(photos, labels), backbones.Backbone(folder)
    for expected in (set(range(6)), {2}):
        passes = builders.make_passes(body, tmp_path / "kept")
        looked_at, read = watched(source)
        with pytest.raises(BackboneError, match=f"NaN or infinite features for 1 of {len(source)} examples"):
            passes.features(looked_at)
        assert set(read) == expected


def test_a_pass_that_ends_early_is_taken_up_in_the_same_batches(body, tmp_path, monkeypatch):
    """So that every row has the bits that it would have had without the interruption."""
    monkeypatch.setattr(frozen, "FLUSH_SECONDS", (0.0, 0.0))
    source, batches = photos_of(80), []  # What is left is less than a batch, and is filled up to one.

    class Recorder:
        def __call__(self, inputs):
            batches.append(hashlib.sha256(inputs.numpy().tobytes()).hexdigest())
            return body(inputs)

    def passes(folder: Path | None) -> frozen.Passes:
        made = builders.make_passes(body, folder)
        made._ready = lambda precision: Recorder()
        return made

    whole = passes(None).features(source).rows
    undisturbed = batches.copy()
    batches.clear()

    def interrupted(self, keys, rows):
        if len(list(tmp_path.glob("*/*.npy"))) == 2:
            raise KeyboardInterrupt
        write(self, keys, rows)

    write = spaces.Space.write
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(spaces.Space, "write", interrupted)
        passes(tmp_path).features(source)
    assert batches == undisturbed[:3]
    batches.clear()
    rows = passes(tmp_path).features(source).rows
    assert batches == undisturbed[2:]  # The third was computed and lost.
    assert rows.tobytes() == whole.tobytes()


# Whole jobs, without the export where it plays no part.


@pytest.fixture(scope="module")
def length_backbone(tmp_path_factory) -> Path:
    return builders.save_length_backbone(tmp_path_factory.mktemp("backbone") / "length")


@pytest.fixture
def heard(caplog):
    """The package's log."""
    caplog.set_level(logging.INFO, "tf_finetune")
    return caplog


@pytest.fixture
def train(tmp_path, without_export):
    """Trains with the features in `kept`, as tf_finetune.train does but for archive and page; returns its record."""

    def run(data: Path, backbone: Path, **given) -> dict:
        given = {"cache_dir": tmp_path / "kept", "output": tmp_path / "out", "model_name": "job", **given}
        record = tf_finetune.train(data, backbone=str(backbone), **given)
        record["predictions"] = predictions_in(Path(given["output"]))
        return record

    return run


def predictions_in(output: Path) -> str:
    return (output / "job" / "output" / "data" / "predictions.csv").read_text()


def calls(record: dict) -> tuple[int, int, int]:
    """Returns what a report says of passes: sent for training and evaluation, sent for checks, and found again."""
    return record["backbone_calls"], record["gate_calls"], record["feature_cache"]["reused"]


def write_photos(folder: Path, per_class: int = 10, **given) -> Path:
    return builders.write_class_folders(folder, per_class, random_colours=True, **given)


def test_a_second_job_sends_nothing_and_says_the_same(train, tmp_path, convolution_backbone):
    photos = write_photos(tmp_path / "photos")
    first = train(photos, convolution_backbone, test=photos)
    assert calls(first) == (30, 0, 30)  # `test` is all of it once more.
    assert first["feature_cache"]["place"] == str(tmp_path / "kept")
    second = train(photos, convolution_backbone, test=photos)
    assert calls(second) == (0, 0, 60)
    without = train(photos, convolution_backbone, test=photos, cache_dir="none")
    assert calls(without) == (30, 0, 0)
    assert without["feature_cache"]["place"] is None
    for other in (second, without):
        assert other["predictions"] == first["predictions"]
        for figure in ("metrics", "history", "head", "precision"):
            assert other[figure] == first[figure]


def test_heads_seeds_and_named_optimizers_share_the_features(train, tmp_path, mean_backbone):
    photos = write_photos(tmp_path / "photos")
    assert calls(train(photos, mean_backbone))[0] == 30
    for other in (
        {"optimizer": "adam", "epochs": 2},
        {"optimizer": "sgd", "epochs": 1, "dropout_rate": 0.5, "batch_size": 7},
        {"random_seed": 5, "validation_split_ratio": 0.4},
        {"class_weight": "balanced"},
    ):
        assert calls(train(photos, mean_backbone, **other)) == (0, 0, 30)


def test_ten_more_photos_send_ten_and_renamed_ones_none(train, tmp_path, mean_backbone):
    photos = write_photos(tmp_path / "photos")
    train(photos, mean_backbone)
    moved = photos.rename(tmp_path / "elsewhere")
    for file in sorted(moved.glob("*/*.png")):
        file.rename(file.with_name(f"x{file.name}"))
    assert calls(train(moved, shutil.copytree(mean_backbone, tmp_path / "copy"))) == (0, 0, 30)
    for number, file in enumerate(
        write_photos(tmp_path / "more", 10, colours={"cyan": (0, 0, 0)}, seed=1).glob("*/*.png")
    ):
        shutil.copy(file, moved / "cyan" / f"{number}.png")
    shutil.copy(moved / "cyan" / "0.png", moved / "cyan" / "twice.png")
    assert calls(train(moved, mean_backbone))[:2] == (10, 0)
    file = moved / "cyan" / "3.png"
    file.write_bytes(file.read_bytes() + b"\0")  # Which no decoder minds.
    assert calls(train(moved, mean_backbone))[:2] == (1, 0)


def test_how_photos_are_prepared_makes_other_features(train, tmp_path, mean_backbone):
    photos = write_photos(tmp_path / "photos", 4)
    answers = []
    for given in ({}, {"image_size": 16}, {"pixel_range": "-1,1"}, {"image_resize_interpolation": "area"}):
        record = train(photos, mean_backbone, **{"image_size": 8, "pixel_range": "0,1", **given})
        assert calls(record)[0] == 12
        answers.append(record["predictions"])
    assert len(set(answers)) > 1
    assert calls(train(photos, mean_backbone, image_size=8, pixel_range="0,1"))[0] == 0


def test_texts_are_sent_once_too(train, tmp_path, length_backbone):
    rows = builders.texts_by_length(70)
    data = builders.write_csv(tmp_path / "texts", [*rows[:60], rows[0], rows[1]])
    first = train(data, length_backbone)
    assert calls(first) == (60, 0, 0)
    assert (
        train(builders.write_csv(tmp_path / "again", [*rows[:60], *rows[:2]][::-1]), length_backbone)["metrics"]
        == (first["metrics"])
    )
    more = train(builders.write_csv(tmp_path / "texts", [*rows, *rows[:2]]), length_backbone)
    assert calls(more) == (10, 0, 62)
    rows[5] = (rows[5][0], rows[5][1] + "!")
    assert calls(train(builders.write_csv(tmp_path / "texts", rows), length_backbone))[0] == 1


def test_the_sequence_length_and_the_preprocessing_make_other_features(train, tmp_path, bert_pair):
    other = shutil.copytree(bert_pair[1], tmp_path / "other")
    (other / "assets" / "words.txt").write_text("Nobody reads it, but it might be the vocabulary.")
    data = builders.write_csv(
        tmp_path / "texts", [(str(k), "good film " * k + "bad " * n) for k in (1, 2) for n in range(1, 6)]
    )
    for expected, given in ((10, {}), (0, {}), (10, {"max_sequence_length": 5}), (10, {"preprocessor": str(other)})):
        record = train(data, bert_pair[0], **{"preprocessor": str(bert_pair[1]), **given})
        assert calls(record)[0] == expected, given


def test_fine_tuning_starts_from_features_that_are_kept_and_reads_every_example_itself(
    train, tmp_path, affine_backbone
):
    photos = write_photos(tmp_path / "photos")
    frozen_record = train(photos, affine_backbone)
    whole = train(photos, affine_backbone, train_only_top_layer=False, epochs=1, learning_rate=1e-3)
    assert calls(whole)[:2] == (30, 0)
    assert whole["feature_cache"]["reused"] == frozen_record["examples"]["training"]
    assert whole["head"]["l2"] == frozen_record["head"]["l2"]
    named = train(photos, affine_backbone, train_only_top_layer=False, epochs=1, optimizer="adam")
    assert (calls(named), named["head"]) == ((30, 0, 0), None)


@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_shard_is_told_and_computed_anew(train, tmp_path, mean_backbone, heard, damage):
    photos = write_photos(tmp_path / "photos")
    first = train(photos, mean_backbone)
    file = max((tmp_path / "kept").glob("*/*.npy"), key=lambda file: file.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[:-9] if damage == "cut" else content[:-1] + bytes([content[-1] ^ 64]))
    second = train(photos, mean_backbone)
    assert calls(second)[0] == first["examples"]["training"]
    assert second["predictions"] == first["predictions"]
    assert second["metrics"] == first["metrics"]
    told = [record.getMessage() for record in heard.records if "is damaged" in record.getMessage()]
    assert told == [f"{file} is damaged: its features are computed anew"]
    assert calls(train(photos, mean_backbone))[0] == 0


def test_augmented_views_are_kept(train, tmp_path, halves_backbone):
    photos = builders.write_class_folders(tmp_path / "photos", 6)
    for file in photos.glob("*/*.png"):  # Its left and its right half differ, by which views can be told apart.
        builders.paint_right_half(file, int(file.stem) * 20)
    settings = {"augmentation": True, "augmentation_views": 3, "image_size": 16}
    first = train(photos, halves_backbone, **settings)
    count = first["examples"]["training"]
    assert calls(first) == (18, 0, 0)
    assert examples_kept(tmp_path / "kept") == 3 * count + first["examples"]["validation"]
    second = train(photos, halves_backbone, **settings)
    assert calls(second) == (0, 0, 3 * count + second["examples"]["validation"])
    assert second["predictions"] == first["predictions"]
    assert train(photos, halves_backbone, **settings, cache_dir="none")["predictions"] == first["predictions"]
    seen = [first["predictions"]]
    for newly_sent, other in (
        (count, {"augmentation": False}),  # As they are, for the first time.
        (0, {"augmentation_views": 2}),  # Two of the three.
        (count, {"augmentation_views": 4}),  # One more of each.
        (count, {"augmentation_random_flip": "None"}),
        (count, {"augmentation_random_zoom": 0.5}),
        (18, {"random_seed": 124, "validation": photos}),  # All of them are trained on then.
    ):
        record = train(photos, halves_backbone, **{**settings, **other})
        assert calls(record)[0] == newly_sent, other
        seen.append(record["predictions"])
    assert calls(train(photos, halves_backbone, **settings, optimizer="sgd", epochs=4))[0] == 0
    assert len(set(seen)) == len(seen)


def examples_kept(folder: Path) -> int:
    return sum(len(np.load(file)) for file in folder.glob("*/*.npy"))


def test_the_seed_draws_the_views(body):
    """Each view of each example has a seed of its own, by the job's seed and the example's content alone."""
    photos, labels = builders.coloured_arrays(6)
    settings = Hyperparameters(augmentation=True)

    def views_of(seed: int, order=slice(None), views: int = 3) -> np.ndarray:
        source = dataclasses.replace(builders.array_source(photos[order], labels, settings), views=views)
        keys = np.array([int.from_bytes(digest[:7], "big") for digest in source.digests])
        source = dataclasses.replace(source, keys=keys)
        rows = builders.make_passes(body).features(source, EXACT, {"random_seed": seed}).rows
        return rows.reshape(views, 6, -1)

    rows = views_of(1)
    assert len({row.tobytes() for row in rows.reshape(18, -1)}) == 18
    np.testing.assert_array_equal(views_of(1), rows)
    np.testing.assert_allclose(views_of(1, slice(None, None, -1))[:, ::-1], rows, atol=1e-6)
    assert np.abs(views_of(2) - rows).max() > 1e-3
    assert np.isfinite(views_of(2**80 + 1)).all()


# Places and disks.


def test_a_place_that_cannot_be_written_costs_one_line_and_the_job_succeeds(train, tmp_path, mean_backbone, heard):
    photos = write_photos(tmp_path / "photos")
    (tmp_path / "file").touch()
    record = train(photos, mean_backbone, cache_dir=tmp_path / "file" / "features")
    assert calls(record) == (30, 0, 0)
    warnings = [line.getMessage() for line in heard.records if line.levelno >= logging.WARNING]
    assert [line.partition(":")[0] for line in warnings if "cannot be kept" in line] == [
        f"features cannot be kept in {tmp_path / 'file' / 'features'}"
    ]


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_read_only_cache_is_used_and_costs_one_line_however_many_ways_are_computed(
    train, tmp_path, convolution_backbone, heard, monkeypatch
):
    photos = write_photos(tmp_path / "photos")
    first = train(photos, convolution_backbone)

    def refuse(file: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    before = files_in(tmp_path / "kept")
    monkeypatch.setattr(spaces, "_write", refuse)
    assert calls(train(photos, convolution_backbone))[0] == 0
    assert "cannot be kept" not in heard.text
    augmented = {"augmentation": True, "augmentation_views": 2, "image_size": 8, "precision": "bfloat16"}
    record = train(photos, convolution_backbone, **augmented)
    assert record["metrics"]["validation"]["accuracy"] >= 0
    assert heard.text.count("cannot be kept") == 1
    assert "Read-only file system. Training goes on without; --cache-dir PLACE keeps them elsewhere." in heard.text
    assert files_in(tmp_path / "kept") == before
    assert calls(train(photos, convolution_backbone))[0] == 0
    assert first["backbone_calls"] == 30


def test_a_disk_that_fills_up_half_way_costs_one_line(train, tmp_path, mean_backbone, heard, monkeypatch):
    photos = write_photos(tmp_path / "photos", 40)
    expected = train(photos, mean_backbone, cache_dir="none")["predictions"]
    monkeypatch.setattr(frozen, "FLUSH_SECONDS", (0.0, 0.0))
    write_bytes = Path.write_bytes

    def write_some(file: Path, content: bytes) -> int:
        if file.name.startswith(".writing-") and len(list((tmp_path / "kept").glob("*/*.npy"))) == 2:
            write_bytes(file, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_bytes(file, content)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", write_some)
        record = train(photos, mean_backbone)
    assert record["predictions"] == expected
    assert heard.text.count("No space left on device. Training goes on without") == 1
    assert len(list((tmp_path / "kept").glob("*/*.npy"))) == 2
    assert not list((tmp_path / "kept").glob("*/.writing-*"))
    assert calls(train(photos, mean_backbone)) == (120 - 64, 0, 64)


def test_the_limit_is_kept_after_each_job(train, tmp_path, mean_backbone, monkeypatch):
    monkeypatch.setenv("TF_FINETUNE_CACHE_GIB", str(5000 / 2**30))
    for number in range(4):
        data = write_photos(tmp_path / f"photos-{number}", 20, seed=number)
        assert calls(train(data, mean_backbone))[0] == 60
        held = [file.stat().st_size for file in (tmp_path / "kept").glob("*/*.npy")]
        assert 0 < sum(held) <= 5000
    assert calls(train(data, mean_backbone))[0] < 60  # The latest are there.
    monkeypatch.setenv("TF_FINETUNE_CACHE_GIB", "0")
    train(data, mean_backbone)
    assert not list((tmp_path / "kept").glob("*/*.npy"))


# Killed jobs.

COMMAND = """
import itertools, os, signal, sys

from tf_finetune import cli, devices, export, training  # devices before what else needs TensorFlow
from tf_finetune.features import frozen

step, *arguments = sys.argv[1:]


def die(*args, **given):
    os.kill(os.getpid(), signal.SIGKILL)


if step == "pass":
    write, shards = frozen.Space.write, itertools.count(1)

    def write_and_die(space, keys, rows):
        write(space, keys, rows)
        if next(shards) == 2:
            die()

    frozen.FLUSH_SECONDS = (0.0, 0.0)
    frozen.Space.write = write_and_die
elif step == "head":
    training.solve = die
elif step == "export":
    export.check_parity = die
sys.exit(cli.main(arguments))
"""


def command(step: str, photos: Path, backbone: Path, output: Path) -> list[str]:
    words = ["--training", photos, "--backbone", backbone, "--output", output, "--model-name", "job"]
    words += ["--cache-dir", output / "kept", "--image-size", "16"]
    return [sys.executable, "-c", COMMAND, step, "train", *map(str, words)]


def weights_in(output: Path) -> bytes:
    with tarfile.open(output / "job" / "output" / "model.tar.gz") as packed:
        return packed.extractfile("1/variables/variables.data-00000-of-00001").read()


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 50)


def again(photos: Path, backbone: Path, output: Path) -> dict:
    return tf_finetune.train(photos, output, "job", cache_dir=output / "kept", backbone=str(backbone), image_size=16)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, many_photos, convolution_backbone) -> tuple[bytes, str]:
    """Weights and predictions of a job that nobody killed."""
    output = tmp_path_factory.mktemp("undisturbed")
    assert calls(again(many_photos, convolution_backbone, output)) == (150, 0, 0)
    return weights_in(output), predictions_in(output)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, many_photos, convolution_backbone) -> Iterator[dict[str, Path]]:
    """The output folders of jobs that were killed, by the step at which they were."""
    folders = {step: tmp_path_factory.mktemp(step) for step in ("pass", "head", "export")}
    jobs = [
        subprocess.Popen(command(step, many_photos, convolution_backbone, folder), stderr=subprocess.DEVNULL)
        for step, folder in folders.items()
    ]
    for job in jobs:
        assert job.wait(timeout=300) == -signal.SIGKILL
    yield folders


@pytest.mark.parametrize(("step", "kept"), [("pass", 64), ("head", 150), ("export", 150)])
def test_a_job_that_was_killed_and_is_run_again_sends_the_rest_and_gives_the_same_bits(
    killed, undisturbed, many_photos, convolution_backbone, step, kept
):
    output = killed[step]
    assert examples_kept(output / "kept") == kept
    assert not (output / "job" / "output").exists()
    record = again(many_photos, convolution_backbone, output)
    assert calls(record) == (150 - kept, 0, kept)
    assert weights_in(output) == undisturbed[0]
    assert predictions_in(output) == undisturbed[1]


@pytest.mark.soak
def test_jobs_that_are_killed_at_twenty_random_moments_give_the_same_bits(
    tmp_path, undisturbed, many_photos, convolution_backbone
):
    plain = command("none", many_photos, convolution_backbone, tmp_path / "first")
    start = time.monotonic()
    subprocess.run(plain, check=True, capture_output=True)
    seconds = time.monotonic() - start
    generator, died = np.random.default_rng(), 0
    for turn in range(20):
        output = tmp_path / str(turn)
        plain = command("none", many_photos, convolution_backbone, output)
        with subprocess.Popen(plain, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(generator.uniform(0.2, 0.95) * seconds)
            job.kill()
        died += job.returncode == -signal.SIGKILL
        again(many_photos, convolution_backbone, output)
        assert weights_in(output) == undisturbed[0]
        assert predictions_in(output) == undisturbed[1]
    assert died >= 15


# Two at once.

RACER = """
import json, os, sys

from tf_finetune import devices, pipeline  # devices first
from tf_finetune.features import frozen
from tf_finetune.pipeline import proof
import tf_finetune

photos, backbone, kept, output = sys.argv[1:]
frozen.FLUSH_SECONDS = (0.0, 0.0)
proof.export_and_prove = lambda process, staged, *rest: (staged / "model.tar.gz").touch()
print("ready", flush=True)
sys.stdin.readline()
given = {"cache_dir": kept, "backbone": backbone, "image_size": 16}
record = tf_finetune.train(photos, output, str(os.getpid()), **given)
print(json.dumps([record["backbone_calls"], record["metrics"]["validation"], record["job"]["model_artifact"]]))
"""


def test_two_jobs_at_once_share_an_empty_cache(tmp_path, undisturbed, many_photos, convolution_backbone, train):
    kept = tmp_path / "kept"
    words = [str(many_photos), str(convolution_backbone), str(kept), str(tmp_path / "out")]
    told = [json.loads(line) for line in builders.race([sys.executable, "-c", RACER, *words])]
    assert all(0 < sent <= 150 for sent, _, _ in told)
    assert told[0][1] == told[1][1]
    for _, _, archive in told:
        assert (Path(archive).parent / "data" / "predictions.csv").read_text() == undisturbed[1]
    assert not list(kept.glob("*/.writing-*"))
    assert calls(train(many_photos, convolution_backbone, image_size=16)) == (0, 0, 150)
