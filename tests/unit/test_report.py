"""What programs read from a job: metric lines, predictions.csv and report.json."""

from __future__ import annotations

import csv
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

import tf_finetune
from tf_finetune import report
from tf_finetune.report import stopwatch
from tf_finetune.report.stopwatch import Stopwatch

# What the built-in's documentation, its JumpStart specification and the published notebooks look for.
CONTRACT_REGEXES = {
    r"val_accuracy=([0-9\.]+)": "val_accuracy",
    r"val_accuracy: ([0-9\.]+)": "val_accuracy",
    r"val_loss: ([0-9\.]+)": "val_loss",
    r"- accuracy: ([0-9\.]+)": "accuracy",
    r"- loss: ([0-9\.]+)": "loss",
}
OUR_NAMES = {
    "training:loss": "loss",
    "training:accuracy": "accuracy",
    "validation:loss": "val_loss",
    "validation:accuracy": "val_accuracy",
}
OURS = {definition["Regex"]: OUR_NAMES[definition["Name"]] for definition in report.METRIC_DEFINITIONS}
RECORDS = [
    {"epoch": 1, "loss": 0.5, "accuracy": 0.75, "val_loss": 1.25, "val_accuracy": 0.625, "learning_rate": 0.001},
    {
        "epoch": 1,
        "loss": 0.25,
        "accuracy": 0.5,
        "val_loss": 0.75,
        "val_accuracy": 1.0,
        "learning_rate": None,
    },  # Solved.
    {"epoch": 10, "loss": 1e-5, "accuracy": 1.0, "val_loss": 3e-7, "val_accuracy": 0.0, "learning_rate": 1e-7},
    {"epoch": 3, "loss": 123456.789, "accuracy": 1 / 3, "val_loss": 1e9, "val_accuracy": 2 / 3, "learning_rate": 0.0},
    {
        "epoch": 2,
        "loss": np.float32(0.1),
        "accuracy": np.float64(1),
        "val_loss": 2,
        "val_accuracy": 1,
        "learning_rate": 1,
    },
]


def test_our_definitions_are_what_sagemaker_takes_and_what_the_package_exports():
    assert tf_finetune.METRIC_DEFINITIONS is report.METRIC_DEFINITIONS
    assert {definition["Name"] for definition in report.METRIC_DEFINITIONS} == set(OUR_NAMES)
    for definition in report.METRIC_DEFINITIONS:
        assert set(definition) == {"Name", "Regex"}
        assert len(definition["Regex"]) <= 500
        assert re.compile(definition["Regex"]).groups == 1


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"epoch {record['epoch']}")
@pytest.mark.parametrize(("regex", "figure"), [*CONTRACT_REGEXES.items(), *OURS.items()])
def test_every_regex_finds_its_figure_once_and_whole_in_the_line_of_an_epoch(record, regex, figure):
    line = report.metric_line(record, epochs=10)
    assert "\n" not in line
    found = re.findall(regex, line)
    assert len(found) == 1
    assert float(found[0]) == pytest.approx(float(record[figure]), abs=5e-7)


def test_figures_are_plain_decimals_and_the_epoch_is_told():
    for record in RECORDS:
        line = report.metric_line(record, epochs=10)
        assert line.startswith(f"epoch {record['epoch']}/10 - loss: ")
        assert not re.search(r"\d[eE][+-]?\d|nan|inf", line)


@pytest.mark.parametrize("regex", [*CONTRACT_REGEXES, *OURS])
def test_without_validation_no_regex_finds_a_figure_of_it(regex):
    line = report.metric_line({**RECORDS[0], "val_loss": None, "val_accuracy": None}, epochs=2)
    assert len(re.findall(regex, line)) == (0 if "val" in regex else 1)


def test_the_line_of_a_solved_head_has_no_learning_rate_and_any_other_has_one():
    for record in RECORDS:
        assert ("learning_rate" in report.metric_line(record, epochs=10)) == (record["learning_rate"] is not None)


# The stopwatch, on a clock that is turned by hand.


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    hands = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: hands.seconds)
    return hands


def test_each_second_counts_for_the_innermost_stage_alone(clock):
    watch = Stopwatch()
    with watch.stage("features"):
        clock.seconds += 1
        with watch.stage("backbone"):
            clock.seconds += 2
            with watch.stage("data"):
                clock.seconds += 4
            clock.seconds += 8
        clock.seconds += 16
        with watch.stage("backbone"):
            clock.seconds += 32
    clock.seconds += 64  # Of no stage.
    with watch.stage("features"):
        clock.seconds += 128
    seconds = watch.total()
    assert seconds == {
        **dict.fromkeys(stopwatch.STAGES, 0.0),
        "features": 1 + 16 + 128,
        "backbone": 2 + 8 + 32,
        "data": 4,
        "total": 255,
    }
    assert list(seconds) == ["total", *stopwatch.STAGES]


def test_a_stage_inside_itself_counts_once(clock):
    watch = Stopwatch()
    with watch.stage("head"):
        clock.seconds += 1
        with watch.stage("head"):
            clock.seconds += 2
    assert watch.total()["head"] == 3


CLASS_NAMES = ("a,b", "été", 'with "quotes"')


def test_predictions_come_back_bit_for_bit_and_by_name(tmp_path):
    generator = np.random.default_rng(0)
    probabilities = generator.random([500, 3]).astype(np.float32) ** generator.integers(1, 40, [500, 1])
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    labels = generator.integers(0, 3, 500)
    ids = [f'{CLASS_NAMES[label]}/{number:03}, "x" é.jpg' for number, label in enumerate(labels)]
    file = tmp_path / "predictions.csv"
    report.write_predictions(file, ids, labels, probabilities, CLASS_NAMES)
    assert b"\r" not in file.read_bytes()
    with file.open(newline="", encoding="utf-8") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["id", "label", "predicted_label", *CLASS_NAMES]
    assert [row[0] for row in rows] == sorted(ids)
    by_id = {row[0]: row[1:] for row in rows}
    read = np.array([by_id[name][2:] for name in ids], np.float32)
    assert read.tobytes() == probabilities.tobytes()
    assert [by_id[name][0] for name in ids] == [CLASS_NAMES[label] for label in labels]
    assert [by_id[name][1] for name in ids] == [CLASS_NAMES[label] for label in probabilities.argmax(axis=1)]


def test_without_examples_predictions_are_a_head(tmp_path):
    report.write_predictions(tmp_path / "p.csv", [], [], np.zeros([0, 3], np.float32), CLASS_NAMES[:2])
    assert (tmp_path / "p.csv").read_text(encoding="utf-8") == 'id,label,predicted_label,"a,b",été\n'


def test_json_is_utf_8_in_the_order_given_and_never_holds_what_json_has_not(tmp_path):
    file = tmp_path / "report.json"
    record = {"task": "image", "class_names": ["été", "日本"], "accuracy": 0.1, "none": None}
    report.write_json(file, record)
    text = file.read_text(encoding="utf-8")
    assert json.loads(text) == record
    assert list(json.loads(text)) == list(record)
    assert "日本" in text
    assert text.endswith("}\n")
    with pytest.raises(ValueError, match="Out of range"):
        report.write_json(file, {"loss": float("nan")})
