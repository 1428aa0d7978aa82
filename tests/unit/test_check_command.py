"""`tf-finetune check`: what is printed, the exit code, and that nothing moves without being told to."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders
from tests.photographs import encoded, exif, picture
from tf_finetune import checking, cli
from tf_finetune.errors import UsageError
from tf_finetune.feature_cache import Place
from tf_finetune.hyperparameters import Hyperparameters

REPOSITORY = Path(cli.__file__).parents[2]
SECONDS = 1.0  # Of processor time.
BAD = {"a/bad.jpg": b"", "b/x/page.jpg": b"<html>"}


def channel_of(folder: Path, files: dict[str, bytes] | None = None) -> Path:
    for label, name in enumerate("ab"):
        pictures = {f"{name}/{number}.png": encoded(picture(100 * label + number), "PNG") for number in range(10)}
        builders.write_files(folder, pictures)
    return builders.write_files(folder, files or {})


def check(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["check", *words, "--cache-dir", "none"])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def all_files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({}, 0),
        ({"a/turned.jpg": encoded(picture(7), exif=exif(3)), "a/gray.png": encoded(picture(8).convert("L"), "PNG")}, 0),
        ({"a/again.png": encoded(picture(0), "PNG")}, 3),
        ({"a/small.png": encoded(picture(9, 15, 15), "PNG")}, 3),
        (BAD, 3),
    ],
    ids=["nothing", "notes", "copy", "tiny", "bad"],
)
def test_the_exit_code_counts_errors_and_warnings_and_no_notes(tmp_path, capsys, files, code):
    assert check(capsys, str(channel_of(tmp_path / "photos", files)))[0] == code


def test_the_table_has_a_line_for_each_finding_by_severity(tmp_path, capsys):
    files = {**BAD, "a/again.png": encoded(picture(0), "PNG"), "a/turned.jpg": encoded(picture(7), exif=exif(3))}
    _, printed, _ = check(capsys, str(channel_of(tmp_path / "photos", files)))
    lines = [line.split() for line in printed.splitlines() if not line.startswith("   ")]
    assert [line[:4] for line in lines[:-1]] == [
        ["SEVERITY", "KIND", "COUNT", "EXAMPLES"],
        ["error", "empty", "1", "training/a/bad.jpg"],
        ["error", "not_an_image", "1", "training/b/x/page.jpg"],
        ["warning", "exact_duplicate", "2", "training/a/0.png,"],
        ["note", "exif_rotated", "1", "training/a/turned.jpg"],
    ]
    assert printed.splitlines()[-1] == "24 training examples, 2 of them unusable: 2 errors, 1 warning, 1 note"
    assert "looks like an HTML page" in printed


def test_nothing_wrong_is_one_line(tmp_path, capsys):
    _, printed, _ = check(capsys, str(channel_of(tmp_path / "photos")))
    assert printed == "20 training examples: nothing is wrong\n"


def test_names_cannot_steer_the_terminal(tmp_path, capsys):
    _, printed, _ = check(capsys, str(channel_of(tmp_path / "photos", {"a/\x1b[31m\n.jpg": b""})))
    assert "\x1b" not in printed
    assert r"training/a/\x1b[31m\n.jpg" in printed


def test_json_holds_all_that_was_found(tmp_path, capsys):
    channel = channel_of(tmp_path / "photos", {**BAD, os.fsdecode(b"a/caf\xe9.jpg"): b""})
    validation = builders.write_files(tmp_path / "validation", {"a/1.png": encoded(picture(0), "PNG")})
    code, printed, _ = check(capsys, str(channel), "--validation", str(validation), "--json")
    record = json.loads(printed)
    assert code == 3
    assert list(record) == ["channels", "examples", "findings", "unusable", "moved"]
    assert record["channels"] == {"training": str(channel), "validation": str(validation)}
    assert record["examples"]["training"] == {"read": 23, "usable": 20}
    assert {finding["kind"]: finding["count"] for finding in record["findings"]} == {
        "empty": 2,
        "not_an_image": 1,
        "leak": 1,
    }
    assert sorted(record["findings"][0]) == ["count", "detail", "examples", "kind", "severity"]
    assert sorted(record["unusable"][0]) == ["channel", "id", "kind", "label", "reason"]
    assert len(record["unusable"]) == 3


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_without_fix_nothing_of_the_users_is_touched(tmp_path, capsys, words):
    channel = channel_of(tmp_path / "photos", {**BAD, "a/scan.tif": encoded(picture(7), "TIFF")})
    before = all_files(tmp_path)
    check(capsys, str(channel), *words)
    assert all_files(tmp_path) == before


def test_fix_moves_what_cannot_be_used_and_lists_it(tmp_path, capsys):
    channel = channel_of(tmp_path / "photos", {**BAD, "a/again.png": encoded(picture(0), "PNG")})
    validation = builders.write_files(
        tmp_path / "validation", {"a/bad.jpg": b"none", "b/1.png": encoded(picture(77), "PNG")}
    )
    apart = tmp_path / "new" / "apart"
    words = [str(channel), "--validation", str(validation), "--fix", f"quarantine={apart}"]
    before = all_files(channel)
    code, printed, _ = check(capsys, *words)
    assert code == 3
    assert all_files(channel) == {name: content for name, content in before.items() if name not in BAD}
    moved = all_files(apart)
    listed = moved.pop("quarantine.csv").decode()
    assert moved == {"training/a/bad.jpg": b"", "training/b/x/page.jpg": b"<html>", "validation/a/bad.jpg": b"none"}
    rows = list(csv.reader(listed.splitlines()))
    assert [row[:4] for row in rows] == [
        ["channel", "id", "label", "kind"],
        ["training", "a/bad.jpg", "a", "empty"],
        ["training", "b/x/page.jpg", "b", "not_an_image"],
        ["validation", "a/bad.jpg", "a", "not_an_image"],
    ]
    assert printed.count("moved ") == 3
    assert f"moved {channel / 'a' / 'bad.jpg'} to {apart / 'training' / 'a' / 'bad.jpg'}" in printed
    code, printed, _ = check(capsys, *words)  # The copy is left.
    assert (code, "moved" in printed) == (3, False)


def test_fix_replaces_nothing_and_lists_what_it_moved_by_then(tmp_path, capsys):
    channel = channel_of(tmp_path / "photos", BAD)
    apart = builders.write_files(tmp_path / "apart", {"training/b/x/page.jpg": b"mine"})
    code, _, message = check(capsys, str(channel), "--fix", f"quarantine={apart}")
    assert code == 1
    assert "page.jpg is there already; nothing is replaced" in message
    assert (apart / "training/b/x/page.jpg").read_bytes() == b"mine"
    assert (channel / "b/x/page.jpg").is_file()
    assert not (channel / "a/bad.jpg").exists()
    assert "a/bad.jpg" in (apart / "quarantine.csv").read_text()
    (apart / "training/b/x/page.jpg").unlink()
    assert check(capsys, str(channel), "--fix", f"quarantine={apart}")[0] == 3
    assert len((apart / "quarantine.csv").read_text().splitlines()) == 3


def test_fix_makes_no_folder_where_there_is_nothing_to_move(tmp_path, capsys):
    channel = channel_of(tmp_path / "photos", {"a/again.png": encoded(picture(0), "PNG")})
    assert check(capsys, str(channel), "--fix", f"quarantine={tmp_path / 'apart'}")[0] == 3
    assert not (tmp_path / "apart").exists()


def test_texts_are_checked_and_never_altered(tmp_path, capsys):
    rows = [(label, f"{label} {number}") for label in "ab" for number in range(10)]
    channel = builders.write_csv(tmp_path / "texts", [*rows, ("a", "")])
    code, printed, _ = check(capsys, str(channel))
    assert code == 3
    assert "training/data.csv:21" in printed
    code, _, message = check(capsys, str(channel / "data.csv"), "--fix", f"quarantine={tmp_path / 'apart'}")
    assert code == 1
    assert "texts are rows of one file, which is never altered" in message
    assert set(all_files(tmp_path)) == {"texts/data.csv"}
    assert check(capsys, str(builders.write_csv(tmp_path / "good", rows)))[0] == 0


def test_the_settings_of_a_job_are_taken(tmp_path, capsys):
    channel = channel_of(tmp_path / "photos")
    code, printed, _ = check(capsys, str(channel), "--max-pixels", "100")
    assert (code, "too_many_pixels" in printed) == (3, True)
    code, _, message = check(capsys, str(channel), "--group-by", "(")
    assert (code, "group_by: expected a regular expression" in message) == (1, True)
    validation = builders.write_files(tmp_path / "validation", {"a/0-x.png": encoded(picture(777), "PNG")})
    builders.write_files(channel, {"a/0-y.png": encoded(picture(778), "PNG")})
    code, printed, _ = check(capsys, str(channel), "--validation", str(validation), "--group-by", r"(\d)-")
    assert (code, "group_leak" in printed) == (3, True)


def test_features_of_earlier_jobs_are_looked_at(tmp_path):
    import numpy as np

    from tf_finetune.feature_cache.space import Space
    from tf_finetune.inspection import examine

    channel = channel_of(tmp_path / "photos", {"a/gray.png": encoded(picture(9).convert("L"), "PNG")})
    found = examine("image", {"training": channel}, Hyperparameters(), tmp_path)
    place = Place(tmp_path / "features")
    keys = [bytes.fromhex(example.digest) for example in found.parts["training"].items]
    rows = np.random.default_rng(0).normal(0, 1, [21, 80]).astype(np.float32)
    rows[1] = rows[0]
    Space(place, {"precision": "float32", "augmentation": None}, "").write(keys, rows)
    text, code = checking.run({"training": str(channel)}, {}, place)
    assert code == 3
    assert text.index("near_duplicate_features") < text.index("note ")
    assert checking.run({"training": str(channel)}, {}, Place(None))[1] == 0


WRONG = [
    ("", ["CHANNEL"]),
    ("nowhere", ["no such file or folder: nowhere"]),
    ("photos --validation nowhere", ["no such file or folder: nowhere"]),
    ("photos --fix move=apart", ["--fix: expected quarantine=FOLDER; received move=apart"]),
    ("photos --fix quarantine=", ["--fix: expected quarantine=FOLDER"]),
    ("photos --fix quarantine=file", ["--fix: file is a file"]),
    ("photos --fix quarantine=photos/a", ["photos/a lies inside the channel photos"]),
    ("photos --max-pixels 0", ["max_pixels: expected an integer of 1 or more"]),
    ("photos --cache-dir file", ["--cache-dir: expected a folder"]),
    ("empty", ["empty has no class folders"]),
    ("one", ["one class folder only: a"]),
    ("photos --epochs 3", ["unrecognized arguments: --epochs 3"]),
]


@pytest.mark.parametrize(("words", "parts"), WRONG)
def test_a_wrong_use_is_answered_in_one_message(tmp_path, capsys, monkeypatch, words, parts):
    monkeypatch.chdir(tmp_path)
    files = {"photos/a/1.jpg": b"", "photos/b/1.jpg": b"", "empty/": b"", "one/a/1.jpg": b"", "file": b""}
    builders.write_files(tmp_path, files)
    assert cli.main(["check", *words.split()]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    for part in parts:
        assert part in printed.err
    assert set(all_files(tmp_path)) == {name for name in files if not name.endswith("/")}


def test_a_wrong_use_is_answered_at_once_and_a_check_needs_no_tensorflow(tmp_path):
    channel = channel_of(tmp_path / "photos", {"a/scan.tif": encoded(picture(7), "TIFF")})
    program = (
        "import resource, sys\n"
        "from tf_finetune import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(code, used.ru_utime + used.ru_stime, *{'tensorflow', 'keras'} & set(sys.modules))"
    )

    def ran(*words: str) -> list[str]:
        command = [sys.executable, "-c", program, "check", *words, "--cache-dir", "none"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
        return done.stdout.splitlines()[-1].split()

    code, seconds = ran(str(tmp_path / "nowhere"))
    assert (code, float(seconds) < SECONDS) == ("1", True)
    code, seconds = ran(str(channel), "--fix", "move=1")
    assert (code, float(seconds) < SECONDS) == ("1", True)
    assert len(ran(str(channel))) == 2


def test_a_move_that_fails_is_told(tmp_path):
    channel = channel_of(tmp_path / "photos", BAD)
    builders.write_files(tmp_path, {"apart/training": b"in the way"})
    with pytest.raises(UsageError, match="cannot be moved to"):
        checking.run({"training": str(channel)}, {}, Place(None), fix=f"quarantine={tmp_path / 'apart'}")
    assert (channel / "a/bad.jpg").is_file()
