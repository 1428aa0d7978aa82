"""Bad data through a whole job: it survives, leaves out, counts, keeps together, and says so."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tf_finetune
from tests import builders
from tf_finetune import cli, predictor
from tf_finetune.errors import BackboneError, DataError
from tf_finetune.inspection import photos as photo_looks

TINTS = {"cold": (0.5, 0.7, 1.0), "warm": (1.0, 0.7, 0.5)}


def texture(seed: int, tint=(1.0, 1.0, 1.0), size: int = 64) -> Image.Image:
    """Returns a photo-like picture: smooth noise of a tint; another seed is another picture."""
    coarse = np.random.default_rng(seed).integers(20, 236, [9, 9, 1]) * np.array(tint)
    return Image.fromarray(coarse.astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path) -> Path:
    for label, (name, tint) in enumerate(TINTS.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            texture(100 * label + number, tint).save(tmp_path / "photos" / name / f"{number:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def train(tmp_path, mean_backbone):
    def run(photos: Path, name: str = "job", **given) -> dict:
        given = {"backbone": str(mean_backbone), "image_size": 32, "cache_dir": "none", **given}
        return tf_finetune.train(photos, tmp_path / "out", name, **given)

    return run


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def data_of(record: dict) -> Path:
    return Path(record["job"]["report"]).parent


def test_what_cannot_be_used_is_left_out_and_listed_once(photos, train):
    whole = (photos / "cold" / "00.png").read_bytes()
    bad = {
        "cold/half.png": whole[: len(whole) // 2],
        "cold/page.jpg": b"<!DOCTYPE html><title>404</title>",
        "warm/empty.jpg": b"",
    }
    builders.write_files(photos, bad)
    record = train(photos)
    listed = record["data"]["unusable"]
    assert sorted(f"{row['label']}/{Path(row['id']).name}" for row in listed) == sorted(bad)
    assert {row["channel"] for row in listed} == {"training"}
    assert all(row["reason"] for row in listed)
    assert sum(record["examples"].values()) == 40
    assert record["data"]["read"] == {"training": 43}
    written = rows_of(data_of(record) / "quarantine.csv")
    assert sorted(row["id"] for row in written) == sorted(bad)
    page = (data_of(record) / "report.html").read_text()
    assert all(Path(name).name in page for name in bad)


def test_a_job_without_bad_data_writes_no_quarantine(photos, train, without_export):
    record = train(photos)
    assert record["data"]["unusable"] == []
    assert not (data_of(record) / "quarantine.csv").exists()


def test_bad_data_stops_the_job_where_it_is_asked_to_or_where_there_is_too_much(photos, train, tmp_path):
    builders.write_files(photos, {f"cold/bad{number}.jpg": b"nothing" for number in range(3)})
    with pytest.raises(DataError, match=r"bad0\.jpg"):
        train(photos, on_bad_data="fail")
    builders.write_files(photos, {f"cold/bad{number}.jpg": b"nothing" for number in range(8)})
    with pytest.raises(DataError, match="max_bad_fraction"):
        train(photos)
    assert not (tmp_path / "out").exists()
    train(photos, max_bad_fraction=0.5)


def test_formats_that_the_graph_cannot_decode_are_trained_on_and_answered_the_same(photos, train):
    seen = texture(7, TINTS["warm"])
    seen.save(photos / "warm" / "scan.tif")
    record = train(photos)
    assert sum(record["examples"].values()) == 41
    model = tf_finetune.load(record["job"]["model_artifact"])
    seen.save(photos.parent / "same.png")
    answers = model.predict([photos / "warm" / "scan.tif", photos.parent / "same.png"])
    assert answers[0]["probabilities"] == answers[1]["probabilities"]
    with pytest.raises(DataError, match="none.txt"):
        (photos.parent / "none.txt").write_text("no photo")
        model.predict([photos.parent / "none.txt"])


def test_photos_that_only_tensorflow_cannot_decode_are_left_out_or_converted(photos, train, without_export):
    texture(50).save(photos / "cold" / "padded.bmp")
    with (photos / "cold" / "padded.bmp").open("ab") as stream:
        stream.write(b"12345")
    record = train(photos)
    assert sum(record["examples"].values()) + len(record["data"]["unusable"]) == 41


def test_near_duplicates_stay_together(photos, train, without_export):
    for number in range(8):  # Copies of eight photos, encoded anew.
        Image.open(photos / "cold" / f"{number:02}.png").save(photos / "cold" / f"copy{number}.jpg", quality=80)
    record = train(photos)
    sides = {row["id"]: row["split"] for row in rows_of(data_of(record) / "split.csv")}
    for number in range(8):
        assert sides[f"cold/copy{number}.jpg"] == sides[f"cold/{number:02}.png"]
    assert record["data"]["groups"] == 8
    assert any(finding["kind"] == "near_duplicate" for finding in record["data"]["findings"])


def test_groups_of_file_names_stay_together(photos, train, without_export):
    for file in sorted(photos.rglob("*.png")):
        file.rename(file.with_name(f"person{int(file.stem) // 4}-{file.stem}.png"))
    record = train(photos, group_by=r"(person\d+)-")
    sides: dict[str, set[str]] = {}
    for row in rows_of(data_of(record) / "split.csv"):
        sides.setdefault(Path(row["id"]).name.split("-")[0], set()).add(row["split"])
    assert len(sides) == 5
    assert all(len(found) == 1 for found in sides.values())
    assert len(set.union(*sides.values())) == 2


def test_validation_examples_that_are_also_in_training_are_counted(photos, train, tmp_path, without_export):
    validation = tmp_path / "validation"
    shutil.copytree(photos, validation)
    for file in sorted(validation.rglob("*.png"))[6:]:
        file.unlink()
    (validation / "warm").mkdir(exist_ok=True)
    Image.open(photos / "warm" / "00.png").save(validation / "warm" / "again.jpg", quality=80)
    texture(999).save(validation / "warm" / "other.png")
    record = train(photos, validation=validation)
    assert record["data"]["leak"] == {"exact": 6, "near": 1, "of": 8}
    clean = train(photos, name="clean")
    assert clean["data"]["leak"] is None


def test_a_split_that_is_given_back_stays(photos, train, tmp_path, without_export):
    first = data_of(train(photos)) / "split.csv"
    kept = tmp_path / "kept.csv"
    shutil.copyfile(first, kept)
    before = {row["sha256"]: row["split"] for row in rows_of(kept)}
    for number in range(10):
        texture(5000 + number, TINTS["cold"]).save(photos / "cold" / f"new{number}.png")
    record = train(photos, name="more", split=kept, random_seed=99)
    after = {row["sha256"]: row["split"] for row in rows_of(data_of(record) / "split.csv")}
    assert len(after) == 50
    assert {digest: after[digest] for digest in before} == before


def test_a_newcomer_that_joins_both_sides_leaves_the_others_out_of_the_score(photos, train, tmp_path, without_export):
    record = train(photos)
    rows = rows_of(data_of(record) / "split.csv")
    one = next(row for row in rows if row["split"] == "validation" and row["label"] == "cold")
    other = next(row for row in rows if row["split"] == "training" and row["label"] == "cold")
    kept = tmp_path / "kept.csv"
    shutil.copyfile(data_of(record) / "split.csv", kept)
    for number, row in enumerate((one, other)):
        Image.open(photos / row["id"]).save(photos / "cold" / f"{number}-{Path(row['id']).stem}.jpg", quality=85)
    # Both newcomers are one person's, so that person's photos are on both sides now.
    given = {"group_by": r"cold/(\d)-", "split": kept}
    for file in (photos / "cold").glob("1-*.jpg"):
        file.rename(file.with_name("0-b.jpg"))
    again = train(photos, name="more", **given)
    after = {row["id"]: row["split"] for row in rows_of(data_of(again) / "split.csv")}
    assert after[one["id"]] == "left_out"
    assert after[other["id"]] == "training"
    assert again["data"]["left_out_of_validation"] == 1
    assert again["examples"]["validation"] == record["examples"]["validation"] - 1


@pytest.mark.parametrize("binary", [False, True])
def test_calibration_is_exported_and_changes_no_answer(photos, train, binary):
    mode = {"binary_mode": binary}
    plain = train(photos, name="plain", calibrate=False, validation_split_ratio=0.6, **mode)
    fitted = train(photos, name="fitted", validation_split_ratio=0.6, **mode)
    assert plain["calibration"] is None
    told = fitted["calibration"]
    before, after = (rows_of(data_of(record) / "predictions.csv") for record in (plain, fitted))
    assert [row["predicted_label"] for row in before] == [row["predicted_label"] for row in after]
    if told["applied"]:
        assert [row["warm"] for row in before] != [row["warm"] for row in after]
    answers = tf_finetune.load(fitted["job"]["model_artifact"]).predict([photos / row["id"] for row in after])
    for row, answer in zip(after, answers, strict=True):
        assert answer["probabilities"] == pytest.approx([float(row["cold"]), float(row["warm"])], abs=1e-5)


def test_temperature_reaches_the_archive(photos, train):
    """Labels exchanged in validation alone: the head is far too sure, and only the temperature can tell."""
    validation = photos.parent / "validation"
    shutil.copytree(photos, validation)
    for number in range(6):
        one, other = validation / "cold" / f"{number:02}.png", validation / "warm" / f"{number:02}.png"
        texture(3000 + number, TINTS["warm"]).save(one)
        texture(4000 + number, TINTS["cold"]).save(other)
    record = train(photos, validation=validation)
    told = record["calibration"]
    assert told["applied"]
    assert told["temperature"] > 1.5
    assert told["loss"]["after"] < told["loss"]["before"]
    figures = predictor.evaluate(predictor.load(record["job"]["model_artifact"]), validation)
    assert figures["loss"] == pytest.approx(record["metrics"]["validation"]["loss"], abs=1e-5)
    assert figures["loss"] < record["history"][-1]["val_loss"] - 0.05


def test_exchanged_labels_are_at_the_top_of_the_list(photos, train, without_export):
    shutil.move(photos / "cold" / "03.png", photos / "warm" / "a.png")
    shutil.move(photos / "warm" / "05.png", photos / "cold" / "b.png")
    record = train(photos)
    rows = rows_of(data_of(record) / "label_errors.csv")
    assert {Path(row["id"]).name for row in rows[:2]} == {"a.png", "b.png"}
    assert [row["id"] for row in rows[:2]] == [row["id"] for row in record["label_errors"][:2]]
    assert {row["part"] for row in rows} == {"training", "validation"}
    assert len(rows) == 40
    assert rows[0]["likely_label"] != rows[0]["label"]


def test_the_most_confident_mistakes_are_shown(photos, train):
    for number in range(4):  # Wrong on purpose, so that there are mistakes.
        texture(700 + number, TINTS["cold"]).save(photos / "warm" / f"wrong{number}.png")
    record = train(photos, validation_split_ratio=0.5)
    rows = {row["id"]: row for row in rows_of(data_of(record) / "predictions.csv")}
    wrong = {name for name, row in rows.items() if row["label"] != row["predicted_label"]}
    assert {row["id"] for row in record["mistakes"]} == wrong
    sure = [row["probability"] for row in record["mistakes"]]
    assert sure == sorted(sure, reverse=True)
    assert "data:image/jpeg;base64," in (data_of(record) / "report.html").read_text()


def test_the_command_of_the_report_does_the_same_job(photos, train, without_export, tmp_path):
    record = train(photos, random_seed=5, validation_split_ratio=0.3)
    words = record["command"].split()
    assert words[:2] == ["tf-finetune", "train"]
    before = (data_of(record) / "predictions.csv").read_bytes()
    assert cli.main([*words[1:], "--cache-dir", "none"]) == 0
    assert (data_of(record) / "predictions.csv").read_bytes() == before


def test_a_backbone_that_reads_files_is_refused_unless_it_is_trusted(photos, train, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"1")

    def call(images):
        seen = tf.strings.to_number(tf.io.read_file(str(secret)))
        return tf.reduce_mean(images, axis=[1, 2]) * seen

    hostile = builders.save_reusable(tmp_path / "hostile", call)
    with pytest.raises(BackboneError, match="ReadFile.*trust_backbone"):
        train(photos, backbone=str(hostile))
    assert not (tmp_path / "out").exists()
    train(photos, backbone=str(hostile), trust_backbone=True)


def test_class_names_and_texts_are_no_markup(tmp_path):
    length_backbone = builders.save_length_backbone(tmp_path / "length")
    rows = builders.texts_by_length(60, classes=("<script>alert(1)</script>", "=1+1"))
    texts = builders.write_csv(tmp_path / "texts", [(label, f"<b>{text}") for label, text in rows])
    record = tf_finetune.train(texts, tmp_path / "out", "job", backbone=str(length_backbone), cache_dir="none")
    page = (data_of(record) / "report.html").read_text()
    assert "<script>" not in page
    assert "<b>" not in page.replace("<bdi>", "")
    table = (data_of(record) / "predictions.csv").read_text()
    assert ",'=1+1" in table
    assert json.loads((data_of(record) / "report.json").read_text())["class_names"] == sorted({row[0] for row in rows})


def test_an_archive_that_reads_files_is_refused_unless_it_is_trusted(photos, train, tmp_path, capsys):
    (tmp_path / "number").write_bytes(b"1")

    def call(images):
        return tf.reduce_mean(images, axis=[1, 2]) * tf.strings.to_number(tf.io.read_file(str(tmp_path / "number")))

    hostile = builders.save_reusable(tmp_path / "hostile", call)
    record = train(photos, backbone=str(hostile), trust_backbone=True)
    archive, photo = record["job"]["model_artifact"], str(photos / "cold" / "00.png")
    with pytest.raises(BackboneError, match="ReadFile"):
        tf_finetune.load(archive)
    assert len(tf_finetune.load(archive, trust_backbone=True).predict(photo)) == 1
    assert cli.main(["predict", archive, photo]) == 1
    assert "trust_backbone=True (--trust-backbone)" in capsys.readouterr().err
    assert cli.main(["predict", archive, photo, "--trust-backbone"]) == 0


def test_names_that_are_no_unicode_harm_nothing(photos, train, tmp_path):
    odd = Path(os.fsdecode(b"caf\xe9"))
    (photos / "cold" / "00.png").rename(photos / "cold" / f"{odd}.png")
    (photos / "cold" / f"bad{odd}.png").write_bytes(b"nothing")
    photos.rename(tmp_path / odd)
    record = train(tmp_path / odd)
    assert sum(record["examples"].values()) == 40
    written = json.loads((data_of(record) / "report.json").read_text(encoding="utf-8"))
    assert [one["id"] for one in written["data"]["unusable"]] == [f"cold/bad{odd}.png"]


def test_the_command_names_the_split(photos, train, tmp_path, without_export):
    kept = tmp_path / "kept.csv"
    shutil.copyfile(data_of(train(photos)) / "split.csv", kept)
    assert f"--split {kept}" in train(photos, name="again", split=kept)["command"]


def test_settings_of_the_split_without_effect_are_named(photos, train, tmp_path, without_export):
    (tmp_path / "other.csv").write_text(f"split,id,label,sha256\ntraining,a.jpg,a,{'0' * 64}\n")
    record = train(photos, group_by="nothing like it", split=tmp_path / "other.csv")
    assert any(line.startswith("group_by=nothing like it has no effect") for line in record["warnings"])
    assert any("it knows none of the examples" in line for line in record["warnings"])
    together = train(photos, name="one", group_by=".")
    assert any("there are no validation examples" in line for line in together["warnings"])
    assert train(photos, name="plain")["warnings"] == []


def test_photos_that_only_tensorflow_refuses_are_findings_too(photos, train, without_export, monkeypatch):
    """Few such photos are known: here all that Pillow finds wrong is passed over, and TensorFlow must find it."""
    whole = (photos / "cold" / "00.png").read_bytes()
    (photos / "cold" / "half.png").write_bytes(whole[: len(whole) // 2])
    look = photo_looks.look
    sound = look(whole, 10**8)
    monkeypatch.setattr(photo_looks, "look", lambda content, most: look(content, most) if content == whole else sound)
    record = train(photos)
    assert [row["id"] for row in record["data"]["unusable"]] == ["cold/half.png"]
    (finding,) = [one for one in record["data"]["findings"] if one["severity"] == "error"]
    assert finding["examples"] == ["training/cold/half.png"]
    assert sum(record["examples"].values()) == 40
