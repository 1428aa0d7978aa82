"""Texts as people have them: good rows are used, bad ones are left out by line, and what is odd is told."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests import builders
from tf_finetune import hyperparameters, inspection
from tf_finetune.errors import MESSAGE_LIMIT, DataError, HyperparameterError, UsageError
from tf_finetune.examples import rows, texts
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection.records import ERROR, WARNING

GOOD = "".join(f"{label},text {label} {number}\n" for number in range(12) for label in ("ham", "spam"))


def settings_of(**given) -> Hyperparameters:
    return hyperparameters.resolve(given, {}, task="text")[0]


def examined(folder: Path, content: str | bytes, others: dict[str, str | bytes] | None = None, **given):
    channels = {}
    for name, text in {"training": content, **(others or {})}.items():
        channels[name] = builders.write_files(
            folder / name, {"data.csv": text if isinstance(text, bytes) else text.encode()}
        )
    return inspection.examine("text", channels, settings_of(**given), folder / "scratch")


def kinds_of(found) -> dict[str, tuple[str, tuple[str, ...]]]:
    assert len({finding.kind for finding in found.findings}) == len(found.findings)
    return {finding.kind: (finding.severity, finding.examples) for finding in found.findings}


def test_good_texts_give_no_finding_and_the_examples_that_reading_gives(tmp_path):
    found = examined(tmp_path, GOOD)
    assert (found.findings, found.unusable, found.groups) == ((), (), {})
    assert found.parts["training"] == texts.read(tmp_path / "training")
    assert found.read == {"training": 24}


BAD = {
    "header": ("label,text\n", 1, "", "header", "it looks like a header: label,text"),
    "three columns": ("ham,a,b\n", 25, "", "columns", "it has 3 columns"),
    "one column": ("just text\n", 25, "", "columns", "it has 1 column"),
    "no class": (" ,text\n", 25, "", "no_class", "it has no class"),
    "empty": ("ham,\n", 25, "ham", "empty", "it has no text"),
    "blank": ('ham," \t\n "\n', 25, "ham", "empty", "it has no text"),
    "latin": (b"ham,caf\xe9\n", 25, "ham", "wrong_encoding", "it is not UTF-8"),
    "latin class": (b"h\xe9m,cafe\n", 25, "", "wrong_encoding", "it is not UTF-8"),
    "surrogate": (b"ham,\xed\xa0\x80\n", 25, "ham", "wrong_encoding", "it is not UTF-8"),
    "nul": (b"ham,a\0b\n", 25, "ham", "nul", "it has a NUL byte"),
    "nul and latin in lines": (b'spam,"a\n\xe9\0"\n', 25, "spam", "nul", "it has a NUL byte"),
    "text after a quote": ('ham,"a" b\n', 25, "", "broken_quote", "it has text after a closing quote"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_bad_row_is_left_out_with_its_line_and_the_rest_is_used(tmp_path, case, newline):
    row, line, label, kind, reason = BAD[case]
    row = row if isinstance(row, bytes) else row.encode()
    content = row + GOOD.encode() if kind == "header" else GOOD.encode() + row + b"ham,last\n"
    found = examined(tmp_path, content.replace(b"\n", newline.encode()))
    (one,) = found.unusable
    assert (one.channel, one.id, one.label, one.kind) == ("training", f"data.csv:{line}", label, kind)
    assert one.reason.startswith(reason)
    assert kinds_of(found) == {kind: (ERROR, (f"training/data.csv:{line}",))}
    assert len(found.parts["training"]) == 24 + (kind != "header")
    assert found.read == {"training": len(found.parts["training"]) + 1}


def test_lines_are_counted_right_behind_bad_rows(tmp_path):
    content = '"a","two\nlines"\nb,one\na,\nb,"q" z\n\nb,x,y\na,last\n'
    found = examined(tmp_path, content)
    assert {example.id: example.content for example in found.parts["training"].items} == {
        "data.csv:1": "two\nlines",
        "data.csv:3": "one",
        "data.csv:8": "last",
    }
    assert [(one.id, one.kind) for one in found.unusable] == [
        ("data.csv:4", "empty"),
        ("data.csv:5", "broken_quote"),
        ("data.csv:7", "columns"),
    ]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ('ham,a\nspam,"b\nham,c\n', ["line 2: a quote is opened and never closed"]),
        ('ham,a\nspam,"b\nham,c" d\nham,e\n', ["line 2: text follows a closing quote"]),
        (GOOD.encode("utf-16"), ["looks like UTF-16"]),
        (GOOD.encode("utf-16-le"), ["looks like UTF-16"]),
        (gzip.compress(GOOD.encode() * 99)[:-20], ["cannot be read"]),
        ("", ["is empty"]),
        ("\n \n", ["is empty"]),
        ("1\ta\n2\tb\n", ["2 rows not of two columns", "look separated by tabs"]),
        ("ham,\nspam,\n", ["none of its 2 rows can be used: line 1 has no text, line 2 has no text"]),
        ("ham,a\nham,b\n", ["one class only"]),
        (b"\xe9,\xe9\n", ["none of its 1 row can be used: line 1 is not UTF-8"]),
    ],
)
def test_what_is_broken_as_a_whole_is_an_error(tmp_path, content, parts):
    with pytest.raises(DataError) as caught:
        examined(tmp_path, content)
    for part in [str(tmp_path), *parts]:
        assert part in str(caught.value)
    assert len(str(caught.value)) < MESSAGE_LIMIT


def test_a_channel_that_is_missing_or_has_another_class_is_an_error(tmp_path):
    with pytest.raises(UsageError, match=r"holds no data\.csv"):
        inspection.examine("text", {"training": tmp_path}, settings_of(), tmp_path)
    with pytest.raises(DataError, match="validation channel .* 1 class that training lacks: eggs"):
        examined(tmp_path, GOOD, {"validation": "eggs,a\n"})


def test_classes_of_rows_left_out_are_called_as_labels_txt_does(tmp_path):
    builders.write_files(tmp_path / "training", {"labels.txt": b"ham\nspam\n"})
    found = examined(tmp_path, "0,a\n1,b\n01,\n")
    assert [(one.label, one.kind) for one in found.unusable] == [("spam", "empty")]


# Copies, conflicts and leaks


def test_texts_that_occur_twice_are_told_exactly_and_nearly(tmp_path):
    found = examined(tmp_path, GOOD + "ham,text ham 3\nham,Text  HAM 3!\nspam,text spam 9\n")
    kinds = kinds_of(found)
    assert kinds == {
        "exact_duplicate": (
            WARNING,
            tuple(f"training/data.csv:{line}" for line in (7, 25, 20, 27)),
        ),
        "near_duplicate": (WARNING, tuple(f"training/data.csv:{line}" for line in (7, 25, 26))),
    }
    assert len(found.groups) == 2


@pytest.mark.parametrize(("text", "words"), [("text ham 3", "1 exactly"), ("text, ham 3", "1 nearly")])
def test_a_text_of_two_classes_is_a_conflict(tmp_path, text, words):
    found = examined(tmp_path, GOOD + f'spam,"{text}"\n')
    assert kinds_of(found)["label_conflict"] == (WARNING, ("training/data.csv:7", "training/data.csv:25"))
    detail = next(finding.detail for finding in found.findings if finding.kind == "label_conflict")
    assert words in detail


def test_a_text_of_validation_that_is_in_training_is_a_leak(tmp_path):
    found = examined(
        tmp_path, GOOD, {"validation": "ham,text ham 3\nspam,TEXT spam 4\nham,new\n", "test": "ham,other\n"}
    )
    assert kinds_of(found) == {"leak": (WARNING, ("validation/data.csv:1", "validation/data.csv:2"))}
    assert "2 of 3 texts of validation are also in training, 1 exactly and 1 nearly" in found.findings[0].detail


def test_small_and_oddly_named_classes_are_told(tmp_path):
    assert set(kinds_of(examined(tmp_path, GOOD + "Ham,a\n"))) == {"imbalance", "few_examples", "similar_class_names"}


# Long texts


@pytest.mark.parametrize(
    ("given", "longest"),
    [
        ({"backbone": "minilm-l6"}, 126),
        ({"backbone": "minilm-l6", "max_sequence_length": 16}, 14),
        ({"backbone": "tensorflow-tc-bert-en-uncased-L-12-H-768-A-12-2"}, 126),
        ({"backbone": "./mine", "preprocessor": "./its"}, 126),
        ({}, None),
        ({"backbone": "./mine"}, None),
    ],
)
def test_texts_that_an_encoder_cuts_are_counted_by_their_words(tmp_path, given, longest):
    length = longest or 1000
    content = f"{GOOD}ham,{'word ' * length}\nham,{'word ' * (length + 1)}\n"
    found = examined(tmp_path, content, **given)
    assert kinds_of(found) == ({"too_long": (WARNING, ("training/data.csv:26",))} if longest else {})
    if longest:
        assert "at least 1 text cut" in found.findings[0].detail


# Groups


def test_the_third_column_names_groups(tmp_path):
    content = "a,one,g1\nb,two, g2 \na,three,\nb,four\na,five,g1,x\n"
    found = examined(tmp_path, content, {"validation": "a,new\nb,other,g2\n"}, group_by="third_column")
    groups = {example.content: example.group for example in found.parts["training"].items}
    assert groups == {"one": "g1", "two": "g2", "three": ""}
    assert [(one.id, one.kind) for one in found.unusable] == [("data.csv:4", "columns"), ("data.csv:5", "columns")]
    assert {example.content: example.group for example in found.parts["validation"].items} == {"new": "", "other": "g2"}
    assert kinds_of(found)["group_leak"] == (WARNING, ("validation/data.csv:2",))


def test_without_group_by_a_third_column_is_bad_and_other_values_are_refused(tmp_path):
    assert {one.kind for one in examined(tmp_path, GOOD + "ham,a,g\n").unusable} == {"columns"}
    with pytest.raises(HyperparameterError, match="group_by: expected third_column for texts; received 'name'"):
        examined(tmp_path, GOOD, group_by="name")


# What stops a job


def inspected(folder: Path, content: str, **given):
    channel = builders.write_files(folder / "training", {"data.csv": content.encode()})
    return inspection.inspect("text", {"training": channel}, settings_of(**given), folder)


def test_a_share_of_bad_rows_is_left_out_and_more_stops_with_the_list(tmp_path):
    assert len(inspected(tmp_path, GOOD + "ham,\n" * 2).unusable) == 2
    with pytest.raises(DataError) as caught:
        inspected(tmp_path, GOOD + "ham,\n" * 7)
    for part in ("7 of 31 examples of training", "training/data.csv:25 (it has no text)", "and 2 more"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"1 of 25 examples cannot be used: training/data\.csv:25"):
        inspected(tmp_path, GOOD + "ham,\n", on_bad_data="fail")
    assert len(inspected(tmp_path, GOOD, on_bad_data="fail").parts["training"]) == 24


def test_a_class_whose_texts_are_all_bad_stops_the_job(tmp_path):
    with pytest.raises(DataError, match="1 class of training without an example that can be used: eggs"):
        inspected(tmp_path, GOOD + "eggs,\n")


# Real texts


def test_the_copies_of_real_messages_are_counted(real_data, tmp_path):
    found = inspection.inspect("text", {"training": real_data / "text" / "sms-spam"}, settings_of(), tmp_path)
    assert found.unusable == ()
    details = {finding.kind: finding.detail for finding in found.findings}
    assert details["exact_duplicate"].startswith("414 texts of training are copies of others")
    assert set(details) == {"exact_duplicate", "near_duplicate"}


# Any bytes at all

pytest.importorskip("hypothesis", reason="hypothesis is not installed; it is part of the dev extra")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

PIECES = [b",", b'"', b"\n", b"\r", b"\r\n", b"\0", b"\xe9", b"\xff\xfe", b"a", b"ham", b"1", b" ", b"\xef\xbb\xbf"]
CONTENTS = st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join))


@pytest.mark.parametrize(
    "count", [pytest.param(300, id="brief"), pytest.param(20_000, id="long", marks=pytest.mark.soak)]
)
def test_any_bytes_are_rows_or_an_error_in_words(tmp_path, count):
    file = tmp_path / "data.csv"

    def read_anything(content: bytes, columns: tuple[int, ...]) -> None:
        file.write_bytes(content)
        try:
            good, bad = rows.read_leniently(file, columns)
        except DataError as error:
            assert "\n" not in str(error).replace(content.decode("utf-8", "replace"), "")
            return
        assert good
        assert len({row.line for row in [*good, *bad]}) == len(good) + len(bad)
        for row in good:
            assert row.label
            assert row.text.strip()
            row.text.encode("utf-8")

    options = {"max_examples": count, "deadline": None, "database": None, "derandomize": count == 300}
    fuzzed = settings(**options, suppress_health_check=list(HealthCheck))
    fuzzed(given(CONTENTS, st.sampled_from([(2,), (3,), (2, 3)]))(read_anything))()
