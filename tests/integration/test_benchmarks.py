"""The benchmark runs on tiny data and writes what it promises. Its figures are nobody's business here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import builders

ROOT = Path(__file__).parents[2]


def run(output: Path, *arguments: object) -> tuple[dict, str]:
    """Returns results.json's record and what was printed."""
    command = [sys.executable, "benchmarks/run.py", "--quick", "--output", str(output), *map(str, arguments)]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((output / "results.json").read_text()), done.stdout


def contenders(results: dict, section: str) -> list[str]:
    return [one["contender"] for one in results["runs"][section]]


def shuffled(count: int) -> list[int]:
    """Returns 0 ... count - 1 in the order in which Keras has as many files, by the tool's seed."""
    order = list(range(count))
    np.random.RandomState(123).shuffle(order)
    return order


def test_texts_are_measured_side_by_side_and_told_of_in_table_json_and_picture(tmp_path):
    builders.write_csv(tmp_path / "texts", builders.texts_by_length(60))
    encoder = builders.save_length_backbone(tmp_path / "encoder")
    results, printed = run(
        tmp_path / "out", "--only", "text", "--texts", tmp_path / "texts", "--text-backbone", encoder
    )
    assert results["left_out"] == {}
    expected = ["ours", "ours, again", "frozen encoder in stock Keras", "tf-idf in scikit-learn"]
    assert contenders(results, "text") == expected
    assert {"machine", "versions", "settings", "figures", "runs", "when"} <= results.keys()
    assert {"cpu", "cores", "has_16_bit", "load_average", "load_average_after"} <= results["machine"].keys()
    assert {"python", "tensorflow", "keras"} <= results["versions"].keys()
    assert {"section", "what", "values", "value", "goal", "verdict"} <= results["figures"][0].keys()
    again = results["runs"]["text"][1]
    assert again["backbone_calls"] == 0
    assert all(one["seconds"] > one["fit"] > 0 for one in results["runs"]["text"])
    for name in expected:
        assert f"| {name} " in printed
    assert "script / our whole command" in printed
    assert (tmp_path / "out" / "results.svg").read_text().startswith("<?xml")


def test_the_split_of_make_image_classifier_leaks_and_ours_does_not(tmp_path):
    pytest.importorskip("tf_keras", reason="tf_keras, by which make_image_classifier read photos, is not installed")
    noise = np.random.default_rng(0)  # No photo is like another.
    for number in range(60):
        photo = tmp_path / "photos" / "abc"[number // 20] / f"{number:02}.png"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, [32, 32, 3], np.uint8)).save(photo)
    results, printed = run(tmp_path / "out", "--only", "leak", "--data", tmp_path / "photos")
    assert results["left_out"] == {}
    theirs, ours = results["runs"]["leak"]
    assert [theirs["contender"], ours["contender"]] == ["make_image_classifier", "ours"]
    assert (theirs["training_photos"], theirs["validation_photos"]) == (48, 12)
    assert theirs["validated_classes"] == 1
    assert theirs["leaked_photos"] == len(set(shuffled(60)[:48]) & set(range(48, 60))) > 6
    assert (ours["leaked_photos"], ours["validated_classes"]) == (0, 3)
    assert ours["training_photos"] + ours["validation_photos"] == 60
    assert "seconds" not in theirs
    assert [one["value"] for one in results["figures"]] == [100 * theirs["leaked_photos"] / 12, 0.0]
    assert f"({theirs['leaked_photos']} of 12, of 1 class)" in printed


@pytest.mark.soak
def test_photos_are_measured_side_by_side(tmp_path):
    builders.write_class_folders(tmp_path / "photos")
    backbone = builders.save_convolution_backbone(tmp_path / "backbone")
    results, printed = run(
        tmp_path / "out", "--only", "frozen,memory,accuracy", "--data", tmp_path / "photos", "--backbone", backbone
    )
    assert set(results["left_out"]) <= {"torch"}
    assert {"ours", "bare pass, float32", "stock Keras", "hub.KerasLayer"} <= set(contenders(results, "frozen"))
    bare = next(one for one in results["runs"]["frozen"] if one["contender"].startswith("bare pass"))
    assert bare["pass"] > 0
    assert "our peak memory on 1,200 photos / on 300" in printed


def test_goals_are_met_or_missed_by_so_much_and_the_table_goes_between_the_marks(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import figures
    import table

    runs = [
        {"contender": name, "repeat": repeat, "seconds": seconds}
        for repeat, pair in enumerate([(3.0, 2.0), (30.0, 10.0), (4.0, 2.0)])
        for name, seconds in zip("AB", pair, strict=True)
    ]
    value = ("A", lambda run: run["seconds"]), ("B", lambda run: run["seconds"])
    (figure,) = figures.ratio("frozen", runs, "A / B", *value, figures.at_most(1.6))
    assert figure.values == (1.5, 3.0, 2.0)
    assert (figure.value, figure.verdict) == (2.0, "missed by 25 %")
    assert figures.ratio("frozen", runs, "A / B", *value, figures.at_least(2))[0].verdict == "met"
    assert figures.ratio("frozen", runs, "A / C", value[0], ("C", len)) == []
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    table.write_between_marks(file, "new\n")
    assert file.read_text() == "before\n<!-- table -->\nnew\n<!-- /table -->\nafter\n"
    file.write_text("no marks")
    with pytest.raises(ValueError, match="no <!-- table -->"):
        table.write_between_marks(file, "new\n")
