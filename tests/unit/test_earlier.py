"""What an earlier result is recognised by, what it brings along, and what is refused before TensorFlow is imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.builders import write_files
from tests.unit.test_job import elsewhere, message_of, plan  # noqa: F401  (a fixture among them)
from tf_finetune import archive, job
from tf_finetune.job import earlier

OURS = {
    "format_version": 1,
    "task": "image",
    "backbone": "efficientnet-lite0",
    "class_names": ["lilies", "roses"],
    "binary_mode": False,
    "preprocessing": {"image_size": 128, "pixel_range": [-0.996, 0.996], "interpolation": "area"},
    "split": {"random_seed": 7, "validation_split_ratio": 0.1, "has_channel": False},
    "validation": {"accuracy": 0.9, "loss": 0.3},
}
TEXT = {**OURS, "task": "text", "preprocessing": {"max_sequence_length": 64}}
INFO = {"image_size": 224, "pixel_scaling_method": "zero_mean_unit_variance", "finetuned": True}
MODEL = {"1/saved_model.pb": b"graph", "1/variables/variables.index": b"weights"}


def coded(**files: object) -> dict[str, bytes]:
    return {f"{name}.json": json.dumps(content).encode() for name, content in files.items()}


def ours(folder: Path, **changes: object) -> Path:
    return write_files(folder, {**MODEL, **coded(tf_finetune={**OURS, **changes})})


def test_an_earlier_result_of_ours_brings_its_settings_and_its_classes(elsewhere):  # noqa: F811
    planned = plan(model=ours(elsewhere / "body"))
    assert planned.earlier.layout == "tf_finetune"
    assert planned.earlier.class_names == ("lilies", "roses")
    assert planned.earlier.pixel_range == (-0.996, 0.996)
    assert (planned.settings.image_size, planned.settings.image_resize_interpolation) == (128, "area")
    assert planned.sources["image_size"] == planned.sources["image_resize_interpolation"] == "earlier"
    assert planned.keeps_head
    assert planned.backbone == "efficientnet-lite0"
    assert planned.card is None


@pytest.mark.parametrize("place", ["m", "m/model.tar.gz", "job", "job/output"])
@pytest.mark.parametrize("as_backbone", [False, True], ids=["model", "backbone"])
def test_an_earlier_result_may_be_packed_and_lie_in_a_channel_or_a_jobs_output(elsewhere, place, as_backbone):  # noqa: F811
    packed = elsewhere / "m" / "model.tar.gz"
    archive.pack(ours(elsewhere / "body"), packed)
    write_files(elsewhere / "job" / "output", {"data/report.json": b"{}", "output.tar.gz": b""})
    shutil.copy(packed, elsewhere / "job" / "output")
    planned = plan({"backbone": place}) if as_backbone else plan(model=place)
    assert Path(planned.handle).name == "model.tar.gz"
    assert planned.earlier.class_names == ("lilies", "roses")


def test_what_an_earlier_result_is_called_by_is_its_content(elsewhere):  # noqa: F811
    one, other = ours(elsewhere / "one"), ours(elsewhere / "other")
    assert earlier.find(one, "x").sha256 == earlier.find(other, "x").sha256
    (other / "1" / "variables" / "variables.index").write_bytes(b"others")
    assert earlier.find(one, "x").sha256 != earlier.find(other, "x").sha256


@pytest.mark.parametrize(
    ("files", "class_names"),
    [
        (coded(labels_info={"labels": ["b", "a"]}), ("b", "a")),
        (coded(labels_info={"labels": ["b", "a"]}, __models_info__=INFO), ("b", "a")),
        (coded(class_label_to_prediction_index={"x": 1, "y": 0}), ("y", "x")),
        (coded(labels_info={"labels": ["a", "b"]}, any_name={**INFO, "finetuned": False}), ()),
        (coded(labels_info={"labels": ["a", "b"]}, any_name={**INFO, "finetuned": "False"}), ()),
        (coded(any_name={"output_key": "x"}), ()),
    ],
)
def test_jumpstarts_layout_is_known_by_its_files(elsewhere, files, class_names):  # noqa: F811
    found = earlier.find(write_files(elsewhere / "body", {**MODEL, **files}), "x")
    assert (found.layout, found.class_names, found.has_head) == ("JumpStart", class_names, bool(class_names))


def test_a_plain_saved_model_is_no_earlier_result(elsewhere):  # noqa: F811
    assert earlier.find(write_files(elsewhere / "body", {**MODEL, **coded(other={"a": 1})}), "x") is None
    assert earlier.find(write_files(elsewhere / "no", coded(labels_info={"labels": ["a", "b"]})), "x") is None


@pytest.mark.parametrize(
    "files",
    [
        {"tf_finetune.json": b"{"},
        {"tf_finetune.json": b"[]"},
        coded(tf_finetune={**OURS, "class_names": ["a"]}),
        coded(tf_finetune={**OURS, "class_names": "ab"}),
        coded(tf_finetune={**OURS, "class_names": ["a", "a"]}),
        coded(tf_finetune={**OURS, "task": "sound"}),
        coded(tf_finetune={**OURS, "preprocessing": {"image_size": "wide"}}),
        coded(tf_finetune={**OURS, "preprocessing": {"learning_rate": 1}}),
        coded(tf_finetune={**OURS, "preprocessing": {"pixel_range": [0]}}),
        coded(labels_info={"names": []}),
        coded(class_label_to_prediction_index={"x": 1, "y": 2}),
        {"tf_finetune.json": b"[" * 100_000},
    ],
    ids=range(12),
)
def test_a_broken_description_is_refused(elsewhere, files):  # noqa: F811
    write_files(elsewhere / "body", {**MODEL, **files})
    assert "JSON files are broken" in message_of(model="body")


@pytest.mark.parametrize(
    ("changes", "given", "part"),
    [
        ({"format_version": 9}, {}, "has format 9; this tf_finetune goes on from 1"),
        ({"task": "text", "preprocessing": {}}, {}, "takes texts, but the training channel holds photos"),
        ({}, {"image_size": 224}, "image_size: expected 128, with which the earlier result body was trained"),
        ({}, {"pixel_range": "0,1"}, "pixel_range: expected -0.996,0.996"),
        ({}, {"image_resize_interpolation": "nearest"}, "image_resize_interpolation: expected area"),
        ({"class_names": ["a", "b", "c"]}, {"binary_mode": True}, "expected two classes in the training channel"),
    ],
)
def test_what_does_not_fit_an_earlier_result_is_refused(elsewhere, changes, given, part):  # noqa: F811
    ours(elsewhere / "body", **changes)
    assert part in message_of(given, model="body")


def test_the_same_settings_may_be_said_again(elsewhere):  # noqa: F811
    ours(elsewhere / "body", preprocessing={"image_size": 128, "pixel_range": [0.0, 1.0], "interpolation": "area"})
    assert plan({"image_size": "128", "pixel_range": "0,1"}, model="body").settings.image_size == 128


@pytest.mark.parametrize("files", [{}, coded(x={**INFO, "finetuned": False})], ids=["plain", "pretrained"])
def test_a_head_that_is_not_there_cannot_be_kept(elsewhere, files):  # noqa: F811
    write_files(elsewhere / "body", {**MODEL, **files})
    message = message_of({"reinitialize_top_layer": "False"}, model="body")
    assert message.startswith("reinitialize_top_layer=False: expected an earlier result")
    assert not plan(model="body").keeps_head


@pytest.mark.parametrize(("asked", "kept"), [("Auto", True), ("False", True), ("True", False)])
def test_a_head_is_kept_unless_a_new_one_is_asked_for(elsewhere, asked, kept, caplog):  # noqa: F811
    planned = plan({"reinitialize_top_layer": asked}, model=ours(elsewhere / "body"))
    assert planned.keeps_head == kept
    assert job.warn_of_settings_without_effect(planned) == []


def test_a_model_in_jumpstarts_layout_is_used_frozen(elsewhere):  # noqa: F811
    write_files(elsewhere / "body", {**MODEL, **coded(labels_info={"labels": ["a", "b"]})})
    assert plan(model="body").settings.train_only_top_layer
    assert "can only be used frozen" in message_of({"train_only_top_layer": "False"}, model="body")


def test_a_channel_for_validation_may_have_the_earlier_classes(elsewhere):  # noqa: F811
    ours(elsewhere / "body")
    write_files(elsewhere / "v", {"lilies/1.jpg": b"", "roses/1.jpg": b""})
    assert plan(model="body", validation="v").validation == Path("v")
    message = message_of({"reinitialize_top_layer": "True"}, model="body", validation="v")
    assert "training lacks: lilies" in message


@pytest.mark.parametrize(
    ("old", "new", "both"),
    [
        (("b", "a"), ("a", "b"), ("a", "b")),
        (("b", "a", "c"), ("a", "b"), ("b", "a", "c")),
        (("a", "c"), ("b", "c"), ("a", "b", "c")),
        (("1", "10"), ("2", "10"), ("1", "2", "10")),
        ((), ("a", "b"), ("a", "b")),
    ],
)
def test_the_classes_of_both_are_in_one_order(old, new, both):
    found = earlier.Earlier("x", earlier.OURS, "image", old, "")
    assert earlier.union(found, new) == both
    assert earlier.union(None, new) == new


def test_a_text_result_goes_on_with_texts(elsewhere):  # noqa: F811
    ours(elsewhere / "body", **TEXT)
    write_files(elsewhere / "texts", {"data.csv": b"1,a\n2,b\n"})
    planned = plan(training="texts", model="body")
    assert planned.settings.max_sequence_length == 64
    assert "preprocessor: the earlier result" in message_of(
        {"preprocessor": "https://x.example/y"}, training="texts", model="body"
    )
