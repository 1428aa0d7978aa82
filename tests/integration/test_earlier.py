"""Going on from an earlier result: its backbone, its head, its classes, and what the report says of them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tf_finetune
from tests import builders, hub_servers
from tf_finetune import archive, backbone, job
from tf_finetune.backbone import jumpstart
from tf_finetune.errors import BackboneError, FinetuneError, HyperparameterError
from tf_finetune.job.earlier import Earlier

import tensorflow as tf  # isort: skip

COLOURS = {**builders.COLOURS, "white": (250, 250, 250)}
TONES = list(builders.COLOURS)
GOOD_OR_BAD = [("bad", "bad"), ("good", "good")]
QUICK = {"calibrate": False, "cache_dir": "none"}
PLAIN = {"image_size": 16, "pixel_range": "0,1", **QUICK}
STILL = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.0, "epochs": 1, "dropout_rate": 0.0}


def photos(folder: Path, *names: str, per_class: int = 8, seed: int = 0) -> Path:
    return builders.write_class_folders(folder, per_class, {name: COLOURS[name] for name in names}, seed=seed)


def go_on(data: Path, model: Path, output: Path, **given) -> dict:
    return tf_finetune.train(training=data, model=model, output=output, model_name="n", **{**QUICK, **given})


def result(output: Path, name: str = "n") -> Path:
    return output / name / "output" / "model.tar.gz"


def weights_of(place: Path, scratch: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Returns the backbone's weights in an archive, and each class's kernel and bias, float32 [D + 1]."""
    archive.unpack(place, scratch)
    *body, kernel, bias = (weight.numpy() for weight in tf.saved_model.load(str(scratch / "1")).weights)
    names = json.loads((scratch / "tf_finetune.json").read_text())["class_names"]
    return body, {name: np.append(kernel[:, k], bias[k]) for k, name in enumerate(names)}


@pytest.fixture(scope="module")
def first(tmp_path_factory, convolution_backbone) -> Path:
    """The model.tar.gz of a job that trained a whole network on three classes of photos; its backbone is gone."""
    folder = tmp_path_factory.mktemp("first")
    body = shutil.copytree(convolution_backbone, folder / "body")
    tf_finetune.train(
        training=photos(folder / "data", *TONES),
        output=folder,
        model_name="n",
        backbone=str(body),
        train_only_top_layer=False,
        epochs=2,
        learning_rate=0.01,
        **PLAIN,
    )
    shutil.rmtree(body)
    return result(folder)


def test_old_rows_and_the_backbone_are_kept_where_a_class_is_missing_and_another_is_new(first, tmp_path):
    data = photos(tmp_path / "data", "cyan", "magenta", "white", seed=1)
    record = go_on(data, first, tmp_path)
    body, rows = weights_of(result(tmp_path), tmp_path / "new")
    old_body, old_rows = weights_of(first, tmp_path / "old")
    assert list(rows) == record["class_names"] == ["cyan", "magenta", "white", "yellow"]
    assert all(np.array_equal(mine, other) for mine, other in zip(body, old_body, strict=True))
    np.testing.assert_array_equal(rows["yellow"], old_rows["yellow"])
    told, parent = record["earlier"], record["parent_model"]
    assert (told["head"], told["added"], told["missing"]) == ("gone on with", ["white"], ["yellow"])
    assert told["caution"] is None
    assert told["fared"]["examples"] == sum(row["support"] for row in told["fared"]["per_class"].values())
    assert told["fared"]["per_class"]["cyan"] == {"support": 1, "before": 1.0, "after": 1.0}
    assert told["fared"]["per_class"]["yellow"] == {"support": 0, "before": None, "after": None}
    assert (parent["class_names"], parent["layout"]) == (TONES, "tf_finetune")
    assert parent["validation"]["accuracy"] == 1
    assert record["backbone"] == parent["backbone"]
    assert any("yellow" in line for line in record["warnings"])
    page = (tmp_path / "n" / "output" / "data" / "report.html").read_text()
    assert "Beside the earlier result" in page
    yellow = photos(tmp_path / "more", "yellow", "white", seed=2)
    answers = tf_finetune.load(result(tmp_path)).predict(sorted(yellow.glob("*/*.png")))
    assert [answer["predicted_label"] for answer in answers] == ["white"] * 8 + ["yellow"] * 8


def test_an_earlier_model_that_is_better_in_validation_stays_as_it_was(first, tmp_path, without_export):
    wrong = tmp_path / "wrong"
    for tone, other in zip(TONES, [*TONES[1:], TONES[0]], strict=True):
        shutil.copytree(photos(tmp_path / f"as-{other}", tone, seed=3) / tone, wrong / other)
    right = photos(tmp_path / "right", *TONES, seed=4)
    for given in ({}, {"optimizer": "adam", "epochs": 9, "learning_rate": 0.5}):
        record = go_on(wrong, first, tmp_path / str(len(given)), validation=right, **given)
        assert record["earlier"]["head"] == "kept as it was"
        assert record["best_epoch"] == 0
        assert record["metrics"]["validation"]["accuracy"] == 1
        fared = record["earlier"]["fared"]
        assert (
            fared["before"]
            == fared["after"]
            == pytest.approx({name: record["metrics"]["validation"][name] for name in ("accuracy", "loss")})
        )


def test_a_remote_handle_of_an_earlier_result_is_gone_on_from_as_a_local_one_is(
    first, tmp_path, without_export, monkeypatch
):
    data = photos(tmp_path / "data", *TONES, "white")
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with hub_servers.running() as server:
        server.answers["/of/model.tar.gz"] = hub_servers.Answer(body=first.read_bytes())
        handle = server.url("/of/model.tar.gz?signature=hidden")
        with pytest.raises(FinetuneError, match="epochs"):
            job.plan({"training": data}, {"backbone": handle, "epochs": 0}, tmp_path / "out")
        assert server.asked == []  # What is wrong without it, is told before it is fetched.
        record = tf_finetune.train(data, tmp_path, "n", backbone=handle, **QUICK)
        with pytest.raises(HyperparameterError, match="with which the earlier result http://.*/of/model.tar.gz.* was"):
            job.plan({"training": data}, {"backbone": handle, "pixel_range": "-1,1"}, tmp_path / "out")
        assert len(server.asked) == 1
    assert (record["earlier"]["head"], record["earlier"]["added"]) == ("gone on with", ["white"])
    local = job.plan({"training": data}, {"backbone": str(first)}, tmp_path / "out").earlier
    assert record["parent_model"]["sha256"] == local.sha256
    assert "hidden" not in json.dumps(record)


def test_an_earlier_result_may_lie_in_s3_or_in_a_mirror(first, tmp_path, monkeypatch, store):
    data = photos(tmp_path / "data", *TONES, "white")
    monkeypatch.setenv("TF_FINETUNE_CACHE", str(tmp_path / "cache"))

    def earlier_of(handle: str) -> Earlier:
        return job.plan({"training": data}, {"backbone": handle}, tmp_path / "out").earlier

    local = earlier_of(str(first))
    store.put_object(Bucket="bucket", Key="n/output/model.tar.gz", Body=first.read_bytes())
    store.put_object(Bucket="bucket", Key="n/output/output.tar.gz", Body=b"x")
    for handle in ("s3://bucket/n/output/model.tar.gz", "s3://bucket/n"):  # The archive, and the job's folder.
        assert earlier_of(handle) == dataclasses.replace(local, name=handle)
    unpacked = tmp_path / "mirror" / "host" / "of.tar.gz"
    archive.unpack(first, unpacked)
    monkeypatch.setenv("TF_FINETUNE_MIRROR", str(tmp_path / "mirror"))
    assert earlier_of("https://host/of.tar.gz").class_names == tuple(TONES)


def test_a_head_begins_where_the_earlier_one_ended(first, tmp_path, without_export):
    data = photos(tmp_path / "data", *TONES)
    record = go_on(data, first, tmp_path, **STILL)
    assert record["history"][0]["val_loss"] == pytest.approx(record["earlier"]["fared"]["before"]["loss"])
    new = go_on(data, first, tmp_path / "new", reinitialize_top_layer="True", **STILL)
    assert new["earlier"]["head"] == "new"
    assert new["history"][0]["loss"] == pytest.approx(np.log(3))  # A head of zeros.
    assert new["earlier"]["fared"]["before"]["accuracy"] == 1


def test_a_new_head_knows_the_classes_of_its_data_alone(first, tmp_path, without_export):
    record = go_on(photos(tmp_path / "data", "cyan", "white"), first, tmp_path, reinitialize_top_layer="True")
    assert record["class_names"] == ["cyan", "white"]
    assert (record["earlier"]["added"], record["earlier"]["missing"]) == (["white"], ["magenta", "yellow"])


def test_a_whole_network_goes_on_from_the_archives_own_weights(first, tmp_path):
    old_body, _ = weights_of(first, tmp_path / "old")
    data = photos(tmp_path / "data", *TONES)
    whole = {"train_only_top_layer": False, "optimizer": "sgd", "momentum": 0.0, "epochs": 1, "learning_rate": 1e-6}
    record = go_on(data, tmp_path / "old", tmp_path, **whole)
    body, _ = weights_of(result(tmp_path), tmp_path / "new")
    largest = max(np.abs(mine - other).max() for mine, other in zip(body, old_body, strict=True))
    assert largest < 1e-4
    if record["earlier"]["head"] == "gone on with":
        assert largest > 0


def test_validation_may_have_classes_of_the_earlier_result_that_training_lacks(first, tmp_path, without_export):
    data = photos(tmp_path / "data", "cyan", "white")
    validation = photos(tmp_path / "validation", *COLOURS, seed=5)
    shutil.copy(validation / "yellow" / "0.png", validation / "white" / "copy.png")  # One photo in two classes.
    record = go_on(data, first, tmp_path, validation=validation)
    assert "label_conflict" in [finding["kind"] for finding in record["data"]["findings"]]
    assert record["metrics"]["validation"]["per_class"]["yellow"]["support"] == 8
    assert record["earlier"]["fared"]["examples"] == 24
    assert "may flatter" in record["earlier"]["caution"]


@pytest.fixture(scope="module")
def binary(tmp_path_factory, mean_backbone) -> Path:
    """The model.tar.gz of a job with one unit for two classes."""
    folder = tmp_path_factory.mktemp("binary")
    data, backbone = photos(folder / "data", "cyan", "magenta"), str(mean_backbone)
    tf_finetune.train(training=data, output=folder, model_name="n", backbone=backbone, binary_mode=True, **PLAIN)
    return result(folder)


def test_one_unit_for_two_classes_becomes_one_for_each(binary, tmp_path, without_export):
    data = photos(tmp_path / "data", "cyan", "magenta")
    again = go_on(data, binary, tmp_path / "again", **STILL)
    assert again["hyperparameters"]["binary_mode"] is True
    assert again["hyperparameter_sources"]["binary_mode"] == "earlier"
    assert again["earlier"]["fared"]["after"] == pytest.approx(again["earlier"]["fared"]["before"])
    two = go_on(data, binary, tmp_path / "two", binary_mode=False, **STILL)
    assert two["earlier"]["fared"]["after"] == pytest.approx(two["earlier"]["fared"]["before"])
    more = go_on(photos(tmp_path / "more", "cyan", "magenta", "white"), binary, tmp_path / "three")
    assert more["hyperparameters"]["binary_mode"] is False
    assert more["earlier"]["fared"]["after"]["accuracy"] == 1


def test_an_encoder_goes_on_with_the_preprocessing_that_its_archive_holds(bert_pair, tmp_path):
    encoder, preprocessor = (shutil.copytree(part, tmp_path / part.name) for part in bert_pair)
    rows = [(name, f"{word} film {number}") for name, word in GOOD_OR_BAD for number in range(6)]
    data = builders.write_csv(tmp_path / "data", rows)
    given = {"training": data, "output": tmp_path, "model_name": "n", "backbone": str(encoder), **QUICK}
    tf_finetune.train(**given, preprocessor=str(preprocessor), max_sequence_length=16)
    shutil.rmtree(encoder)
    shutil.rmtree(preprocessor)
    channel = tmp_path / "n"  # The job's whole folder.
    record = go_on(data, channel, tmp_path / "again", train_only_top_layer=False, epochs=1)
    assert record["metrics"]["validation"]["accuracy"] == record["earlier"]["fared"]["before"]["accuracy"] == 1
    assert record["hyperparameters"]["max_sequence_length"] == 16
    assert record["hyperparameter_sources"]["max_sequence_length"] == "earlier"


# JumpStart's layout


@pytest.mark.parametrize(("pixels", "units"), [((-1.0, 1.0), None), ((0.0, 1.0), 1)], ids=["softmax", "sigmoid"])
def test_a_model_in_jumpstarts_layout_is_gone_on_with(tmp_path, pixels, units):
    names = TONES if units is None else TONES[:2]
    colours = {name: COLOURS[name] for name in names}
    model = builders.save_jumpstart_model(tmp_path / "unpacked", colours, pixels=pixels, units=units)
    archive.pack(model, tmp_path / "channel" / "model.tar.gz")
    data = photos(tmp_path / "data", *names, "white")
    record = go_on(data, tmp_path / "channel", tmp_path)
    assert record["class_names"] == sorted([*names, "white"])
    assert record["parent_model"]["layout"] == "JumpStart"
    fared = record["earlier"]["fared"]
    assert fared["before"]["accuracy"] == fared["after"]["accuracy"] == 1
    files = sorted(path for name in names for path in (data / name).glob("*.png"))
    answers = [answer["predicted_label"] for answer in tf_finetune.load(result(tmp_path)).predict(files)]
    assert answers == [path.parent.name for path in files]


def converted(model: Path, folder: Path, with_head: bool = True) -> backbone.Backbone:
    jumpstart.convert(model / "1", folder, "probabilities", with_head, False)
    return backbone.Backbone(folder)


@pytest.mark.parametrize("pixels", [(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)])
def test_backbone_and_head_of_jumpstarts_layout_answer_as_the_whole(tmp_path, pixels):
    model = builders.save_jumpstart_model(tmp_path / "model", COLOURS, pixels=pixels)
    body = converted(model, tmp_path / "body")
    low, high = jumpstart.pixel_range_of(tmp_path / "body")
    photo = np.random.default_rng(0).integers(0, 256, [16, 16, 3]).astype(np.uint8)
    serve = tf.saved_model.load(str(model / "1")).signatures["serving_default"]
    whole = serve(bytes_inputs=tf.stack([tf.io.encode_png(photo)]))["probabilities"].numpy()
    features = body(photo[np.newaxis].astype(np.float32) / 255 * (high - low) + low).numpy()
    np.testing.assert_allclose(tf.nn.softmax(features @ body.head.kernel + body.head.bias), whole, atol=1e-6)


def test_a_pretrained_model_in_jumpstarts_layout_is_a_backbone(tmp_path, without_export):
    model = builders.save_jumpstart_model(tmp_path / "model", COLOURS, info={"finetuned": False})
    record = go_on(photos(tmp_path / "data", "cyan", "white"), model, tmp_path)
    assert record["class_names"] == ["cyan", "white"]
    assert record["metrics"]["validation"]["accuracy"] == 1
    assert record["earlier"] is None


def test_a_model_that_cannot_be_taken_apart_is_refused(tmp_path):
    model = builders.save_jumpstart_model(tmp_path / "model", COLOURS)

    def saved(name: str, call, spec=None) -> Path:
        module = tf.Module()
        function = tf.function(
            call, input_signature=[spec or tf.TensorSpec([None], tf.string, name="bytes_inputs")], autograph=False
        )
        tf.saved_model.save(module, str(tmp_path / name / "1"), signatures={"serving_default": function})
        return tmp_path / name

    def hashed(photos):
        return {"p": tf.cast(tf.strings.to_hash_bucket_fast(photos, 9)[:, tf.newaxis], tf.float32) @ tf.ones([1, 2])}

    undense = saved("undense", lambda photos: {"p": tf.one_hot(tf.strings.length(photos), 2)})
    unseen = saved("unseen", hashed)
    numbers = saved("numbers", lambda x: {"p": x @ tf.ones([3, 2])}, tf.TensorSpec([None, 3], name="x"))
    for place, part in (
        (undense, "does not end in a dense layer"),
        (unseen, "no batch of pixels"),
        (numbers, "no serving_default signature from encoded photos"),
    ):
        with pytest.raises(BackboneError, match=part):
            converted(place, tmp_path / f"of-{place.name}")
    labels = {"labels": ["a", "b", "c"]}
    (model / "labels_info.json").write_text(json.dumps(labels))
    with pytest.raises(BackboneError, match="is damaged: expected a head of 6 features and 3 units"):
        go_on(photos(tmp_path / "data", "cyan", "white"), model, tmp_path)
    (model / "labels_info.json").write_text(json.dumps({"labels": list(COLOURS)}))
    with pytest.raises(HyperparameterError, match="pixel_range: the earlier result"):
        go_on(tmp_path / "data", model, tmp_path, pixel_range="0,1")
