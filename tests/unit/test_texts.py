"""data.csv to labelled texts: what is read, in which order, and one message with line numbers for what is not."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import builders
from tf_finetune import catalog, cli, examples, hyperparameters, job
from tf_finetune.errors import MESSAGE_LIMIT, DataError, FinetuneError, HyperparameterError, UsageError
from tf_finetune.examples import rows, texts

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x08\0\0\0\x08\x08\x02\0\0\0"
GOOD = "1,first\n2,second\n"

# The contract's table 1.2, literally, but train_only_top_layer, which design.md has as True.
TEXT_DEFAULTS = {
    "batch_size": 32,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "dropout_rate": 0.2,
    "early_stopping": False,
    "early_stopping_min_delta": 0.0,
    "early_stopping_patience": 5,
    "epochs": 10,
    "epsilon": 1e-7,
    "initial_accumulator_value": 0.0001,
    "learning_rate": 0.001,
    "momentum": 0.9,
    "optimizer": "auto",  # Ours; the built-in's is adam.
    "regularizers_l2": 0.0001,
    "reinitialize_top_layer": "Auto",
    "rho": 0.95,
    "train_only_top_layer": True,
    "validation_split_ratio": 0.2,
}


def read(folder: Path, content: str | bytes, **kwargs) -> examples.Examples:
    """Returns the examples of a folder whose data.csv has the given content."""
    (folder / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return texts.read(folder, **kwargs)


def found(read_: examples.Examples) -> dict[str, tuple[str, str]]:
    """Returns id -> (class name, text)."""
    return {item.id: (read_.class_names[item.label], item.content) for item in read_.items}


def refusal(folder: Path, content: str | bytes, kind: type[FinetuneError] = DataError, **kwargs) -> str:
    """Returns the one message by which a data.csv of the given content is refused; it names the file."""
    with pytest.raises(kind) as caught:
        read(folder, content, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < MESSAGE_LIMIT
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ("1 2 3 4", ("1", "2", "3", "4")),
        ("0 1 2", ("0", "1", "2")),
        ("10 9 1", ("1", "9", "10")),
        ("5 -1 0", ("-1", "0", "5")),
        ("7 1000000 100", ("7", "100", "1000000")),
        ("01 2 +1 3", ("1", "2", "3")),
        ("spam ham", ("ham", "spam")),
        ("10 09 b", ("09", "10", "b")),
        ("0.5 1.5", ("0.5", "1.5")),
        ("naïve 日本 a", ("a", "naïve", "日本")),
    ],
)
def test_integers_keep_their_number_and_order_and_strings_their_alphabet(tmp_path, labels, names):
    rows = [(label, f"text {number}") for number, label in enumerate(labels.split())]
    result = texts.read(builders.write_csv(tmp_path, rows))
    assert result.class_names == names
    spelt = {
        str(int(label)) if label.lstrip("+-").isdigit() and "b" not in labels else label for label in labels.split()
    }
    assert {result.class_names[item.label] for item in result.items} == spelt


def test_each_text_keeps_its_class_its_line_and_its_digest(tmp_path):
    result = read(tmp_path, "b,one\na,two\nb,one\n")
    assert found(result) == {"data.csv:1": ("b", "one"), "data.csv:2": ("a", "two"), "data.csv:3": ("b", "one")}
    assert {item.digest for item in result.items} == {hashlib.sha256(word).hexdigest() for word in (b"one", b"two")}
    assert [item.digest for item in result.items] == sorted(item.digest for item in result.items)


@pytest.mark.parametrize(
    ("labels", "content", "names"),
    [
        ("0 1", "ham\nspam\n", ("ham", "spam")),
        ("1 2", "spam\nham\n", ("spam", "ham")),  # In the order of the numbers, not of the alphabet.
        ("1 2 7", "a\r\nc\r\nb\r\n", ("a", "c", "b")),
        ("1 2", "1\tspam\n2\tham\n", ("spam", "ham")),
        ("-1 1", "-1\tno\n1\tyes", ("no", "yes")),
        ("1 2 3", "2\ttwo words\n", ("1", "two words", "3")),
        ("0 2", "a\nb\nc\n", ("a", "c")),  # 0, 1, 2: the second has no texts.
        ("1 3", "a\nb\nc\n", ("a", "c")),  # 1, 2, 3: likewise.
        ("0 1", "\ufeffham\n\nspam\n\n", ("ham", "spam")),
        ("x y", "ham\nspam\n", ("x", "y")),  # Strings are names already.
    ],
)
def test_labels_txt_names_the_numbers(tmp_path, labels, content, names):
    (tmp_path / "labels.txt").write_bytes(content.encode())
    rows = [(label, f"text {label}") for label in labels.split()]
    result = texts.read(builders.write_csv(tmp_path, rows))
    assert result.class_names == names
    by_text = {item.content: result.class_names[item.label] for item in result.items}
    assert [by_text[text] for _, text in rows] == list(names)


def test_a_name_that_stands_twice_in_labels_txt_is_refused(tmp_path):
    for content in ("ham\nham\n", "1\tham\n2\tham\n", "1\tham\n1\tspam\n"):
        (tmp_path / "labels.txt").write_text(content)
        with pytest.raises(DataError, match=r"labels\.txt: a name or number stands there twice"):
            read(tmp_path, GOOD)


def test_labels_txt_that_may_count_from_0_or_1_is_refused_rather_than_guessed(tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    with pytest.raises(DataError, match=r"labels\.txt .*which number.*number<TAB>name"):
        read(tmp_path, GOOD)


@pytest.mark.parametrize("own", [None, "spam\nham\neggs\n", "1\tspam\n2\tham\n3\teggs\n"])
def test_other_channels_call_the_numbers_as_training_does(tmp_path, own):
    """A channel with fewer classes, with or without its labels.txt: 1 stays spam."""
    training = builders.write_csv(tmp_path / "training", [("1", "a"), ("2", "b"), ("3", "c")])
    (training / "labels.txt").write_text("spam\nham\neggs\n")
    everything = examples.read("text", training)
    for number, name in (("1", "spam"), ("3", "eggs")):
        other = builders.write_csv(tmp_path / f"validation{number}", [(number, "d")])
        if own:
            (other / "labels.txt").write_text(own)
        result = examples.read("text", other, everything.class_names, "validation", everything.number_names)
        assert found(result) == {"data.csv:1": (name, "d")}


def test_numbers_among_names_are_names_in_every_channel(tmp_path):
    everything = read(tmp_path, "01,a\nb,c\n")
    assert everything.class_names == ("01", "b")
    assert found(read(tmp_path, "01,a\n", class_names=everything.class_names)) == {"data.csv:1": ("01", "a")}
    assert found(read(tmp_path, "01,a\n", class_names=("1", "2"))) == {"data.csv:1": ("1", "a")}


def test_packed_files_files_as_channels_and_named_files_are_found(tmp_path):
    rows = [("a", "x"), ("b", "y")]
    packed = builders.write_csv(tmp_path / "packed", rows, "data.csv.gz")
    assert found(texts.read(packed)) == {"data.csv.gz:1": ("a", "x"), "data.csv.gz:2": ("b", "y")}
    both = builders.write_csv(builders.write_csv(tmp_path / "both", rows), [("b", "z")], "validation.csv")
    assert set(found(texts.read(both, ("a", "b"), "validation"))) == {"validation.csv:1"}
    assert set(found(texts.read(both))) == {"data.csv:1", "data.csv:2"}
    assert set(found(texts.read(both, ("a", "b"), "test"))) == {"data.csv:1", "data.csv:2"}
    for folder in (builders.write_csv(tmp_path / "any", rows, "reviews.CSV"), packed):
        file = next(folder.iterdir())
        assert examples.task_of(file) == "text"
        assert len(texts.read(file)) == 2
    (tmp_path / "plain").mkdir()
    content = (both / "data.csv").read_bytes()
    (tmp_path / "plain" / "data.csv").write_bytes(gzip.compress(content))  # Packed, though its name does not say so.
    assert len(texts.read(tmp_path / "plain")) == 2


def test_the_data_decides_the_task(tmp_path):
    assert examples.task_of(builders.write_csv(tmp_path / "texts", [("a", "x")])) == "text"
    assert examples.task_of(builders.write_files(tmp_path / "photos", {"a/1.jpg": b""})) == "image"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_texts_come_out_as_they_went_in(tmp_path, newline, encoding):
    rows = [
        ("1", 'she said "no", twice'),
        ("2", "a,b,,c"),
        ("1", "two\nlines"),
        ("2", "three\r\nWindows\r\nlines"),
        ("1", "emoji 😀 👩‍👩‍👧 and e\u0301"),
        ("2", ""),
        ("1", "  spaces kept \t"),
        ("2", "line\u2028separator\x0b\x0c\x85"),
        ("1", "long " * 200_000),
    ]
    result = texts.read(builders.write_csv(tmp_path, rows, encoding=encoding, newline=newline))
    assert sorted(found(result).values()) == sorted(rows)


def test_line_numbers_are_right_after_texts_of_several_lines_and_blank_lines(tmp_path):
    result = found(read(tmp_path, '1,"a\nb\nc"\n\n2,d\r\n1,"e\r\nf"\n   \n2,g\n'))
    assert set(result) == {"data.csv:1", "data.csv:5", "data.csv:6", "data.csv:9"}
    assert result["data.csv:9"] == ("2", "g")
    assert "line 4 has 3" in refusal(tmp_path, '1,"a\nb\nc"\n2,d,e\n')
    assert "line 4 has 3" in refusal(tmp_path, '1,"a\rb\rc"\r2,d,e\r')


def test_a_hundred_thousand_texts_are_read_and_split_in_seconds(tmp_path):
    rows = [(str(number % 5), f"text {number}, of several words") for number in range(100_000)]
    builders.write_csv(tmp_path, rows)
    started = time.process_time()
    parts = examples.split(texts.read(tmp_path), 0.2, 123)
    assert time.process_time() - started < 5
    assert sum(map(len, parts)) == 100_000


HOSTILE = {
    "header over integers": ("sentence_class,sentence\n1,a\n2,b\n", ["line 1 looks like a header: sentence_class"]),
    "header over strings": ("label,text\nspam,a\nham,b\n", ["line 1 looks like a header: label,text"]),
    "header after a blank line": ("\nLabel,text\nspam,a\nham,b\n", ["line 2 looks like a header: Label,text"]),
    "third column": ("1,a,b\n2,b\n1,c,\n", ["2 rows not of two columns: line 1 has 3 columns, line 3 has 3 columns"]),
    "one column": ("1,a\njust text\n2,b\n", ["1 row not of two columns: line 2 has 1"]),
    "many wrong lines": ("1,a\n" + "2,b,c\n" * 5000, ["5,000 rows", "line 2 has 3", "and 4,995 more"]),
    "unclosed quote": ('1,a\n2,"b\n1,c\n2,d\n', ["line 2: a quote is opened and never closed"]),
    "text after a quote": ('1,a\n2,"b" c\n', ["line 2: text follows a closing quote", "Double the quotes"]),
    "invalid UTF-8": (b"1,a\n2,b\n1,caf\xe9 noir\n", ["line 3: byte 0xe9 at offset 13 is not UTF-8"]),
    "invalid UTF-8 after \\r": (b"1,a\r2,b\r1,caf\xe9 noir\r", ["line 3: byte 0xe9"]),
    "UTF-16": (GOOD.encode("utf-16"), ["line 1: byte 0xff at offset 0", "looks like UTF-16"]),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), ["line 1: a NUL byte"]),
    "NUL": ("1,a\n2,b\0c\n", ["line 2: a NUL byte; this is no CSV"]),
    "lone surrogate": (b"1,a\n2,\xed\xa0\x80\n", ["line 2: byte 0xed at offset 6 is not UTF-8"]),
    "missing class": ("1,a\n,b\n  ,c\n2,d\n", ["2 rows without a class: line 2, line 3"]),
    "missing class of an empty text": ("1,a\n,\n2,d\n", ["1 row without a class: line 2"]),
    "one class": ("1,a\n1,b\n", ["one class only: 1. Expected at least 2"]),
    "empty": ("", ["is empty. Expected two columns"]),
    "only a mark": ("\ufeff", ["is empty"]),
    "only blank lines": ("\n\r\n  \n\n", ["is empty"]),
    "a photo": (PNG, ["line 1: byte 0x89 at offset 0 is not UTF-8"]),
    "tabs": ("1\ta\n2\tb\n", ["line 1 has 1 column, line 2 has 1 column", "look separated by tabs"]),
    "semicolons": ("1;a\n2;b\n", ["look separated by semicolons"]),
    "cut gzip": (gzip.compress(GOOD.encode() * 99)[:-20], ["cannot be read", "Mend the file"]),
    "broken gzip": (b"\x1f\x8b" + b"nonsense" * 9, ["cannot be read", "Mend the file"]),
    "gzip with a wrong checksum": (gzip.compress(GOOD.encode())[:-8] + b"\0" * 8, ["cannot be read"]),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_message_that_says_where(case, tmp_path):
    content, parts = HOSTILE[case]
    message = refusal(tmp_path, content)
    for part in parts:
        assert part in message


def test_a_file_that_unpacks_to_more_than_fits_is_refused_before_memory_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "MAX_BYTES", 1000)
    bomb = gzip.compress(b"1,a\n" * 10_000_000)
    assert len(bomb) < 100_000
    assert "holds more than 1,000 bytes" in refusal(tmp_path, bomb)
    assert "holds more than 1,000 bytes" in refusal(tmp_path, "1," + "a" * 2000)


@pytest.mark.parametrize(
    "content",
    [
        "greeting,hello\nfarewell,bye\nfarewell,ciao\n",  # The first class occurs once.
        "1,a\nspam,b\n",
        "label,a\nother,b\nlabel,c\n",  # A class that is called so.
        "spam,a\n1,b\nham,c\n",
    ],
)
def test_a_first_row_that_may_be_an_example_is_one(tmp_path, content):
    assert "data.csv:1" in found(read(tmp_path, content))


def test_a_channel_that_lacks_its_file_is_told_what_is_expected(tmp_path):
    (tmp_path / "data.csv").mkdir()
    for name, channel, what in (
        ("validation", tmp_path, "holds no data.csv"),
        ("test", tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(UsageError, match=f"{name} channel .* {what}.* Expected a folder with data.csv"):
            texts.read(channel, ("a", "b"), name)


def test_a_class_of_validation_that_training_lacks_is_named(tmp_path):
    names = ("a", "b")
    message = refusal(tmp_path, "a,x\nc,y\n", class_names=names, name="validation")
    assert "validation channel" in message
    assert "1 class that training lacks: c. Classes in training: a, b." in message
    assert len(read(tmp_path, "b,x\n", class_names=names, name="validation")) == 1  # One of them will do.


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    file = builders.write_csv(tmp_path, [("a", "x"), ("b", "y")]) / "data.csv"
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match="Permission denied"):
        texts.read(tmp_path)


def test_the_split_depends_on_content_alone(tmp_path):
    rows = [(f"class {number % 3}", f"text {number}") for number in range(300)]
    rows += [("class 0", "text 0"), ("class 1", "text 1"), ("class 2", "text 2")] * 5
    shuffled = random.Random(1).sample(rows, len(rows))
    sides = []
    for number, order in enumerate((rows, shuffled)):
        parts = examples.split(texts.read(builders.write_csv(tmp_path / str(number), order)), 0.2, 123)
        contents = [{item.content for item in part.items} for part in parts]
        assert not contents[0] & contents[1]  # Duplicates share a side.
        assert sum(map(len, parts)) == len(rows)
        assert all({item.label for item in part.items} == {0, 1, 2} for part in parts)
        sides.append(contents)
    assert sides[0] == sides[1]
    assert 0.1 < len(sides[0][1]) / 300 < 0.3
    more = builders.write_csv(tmp_path / "more", [("class 1", "new"), *shuffled])
    added = examples.split(texts.read(more), 0.2, 123)
    assert [{item.content for item in part.items} - {"new"} for part in added] == sides[0]


def test_split_csv_names_each_text_by_file_and_line(tmp_path):
    parts = examples.split(read(tmp_path, '1,"a\nb"\n2,"c, d"\n1,e\n2,f\n'), 0.5, 0)
    examples.write_split(tmp_path / "split.csv", dict(zip(("training", "validation"), parts, strict=True)))
    with (tmp_path / "split.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["id"], row["label"]) for row in rows} == {
        ("data.csv:1", "1"), ("data.csv:3", "2"), ("data.csv:4", "1"), ("data.csv:5", "2")
    }  # fmt: skip


def test_the_defaults_for_texts_are_the_contracts():
    settings, sources = hyperparameters.resolve({}, {}, task="text")
    assert {name: getattr(settings, name) for name in TEXT_DEFAULTS} == TEXT_DEFAULTS
    assert settings.warmup_steps_fraction == 0.0  # For adamw alone.
    assert settings.label_smoothing == 0.0  # The built-in has none.
    assert settings.backbone == hyperparameters.default("backbone", "text") == "universal-sentence-encoder-multilingual"
    assert set(sources.values()) == {"default"}
    for row in hyperparameters.table():
        if row["name"] in TEXT_DEFAULTS:
            assert row["task"] == "both"
            assert (row["text_default"] or row["default"]) == str(TEXT_DEFAULTS[row["name"]])


@pytest.mark.parametrize(
    ("given", "task", "warmup"),
    [
        ({"optimizer": "adamw"}, "text", 0.1),
        ({"optimizer": "adamw", "warmup_steps_fraction": "0"}, "text", 0.0),
        ({"optimizer": "adamw", "warmup_steps_fraction": "0.3"}, "text", 0.3),
        ({"optimizer": "adamw"}, "image", 0.0),
        ({"optimizer": "adam"}, "text", 0.0),
    ],
)
def test_adamw_warms_up_over_a_tenth_of_the_steps_for_texts(given, task, warmup):
    values = hyperparameters.parse(given, task)
    assert hyperparameters.resolve(values, {}, task=task)[0].warmup_steps_fraction == warmup


ONLY_IMAGES = {
    "augmentation": "True",
    "augmentation_random_flip": "vertical",
    "augmentation_random_rotation": "0.1",
    "augmentation_random_zoom": "0.1",
    "augmentation_views": "2",
    "image_size": "64",
    "max_pixels": "1000",
    "image_resize_interpolation": "area",
    "pixel_range": "0,1",
}
ONLY_TEXTS = {"max_sequence_length": "64", "preprocessor": "folder"}


@pytest.mark.parametrize(("only", "task", "other"), [(ONLY_IMAGES, "image", "text"), (ONLY_TEXTS, "text", "image")])
def test_hyperparameters_of_the_other_task_are_refused_by_name(only, task, other):
    assert {row["name"] for row in hyperparameters.table() if row["task"] == task} == set(only)
    assert set(hyperparameters.parse(only, task)) == set(only)
    with pytest.raises(HyperparameterError) as caught:
        hyperparameters.parse(only, other)
    plural = {"image": "photos", "text": "texts"}
    for name in only:
        assert f"{name}: it is for {plural[task]} only" in str(caught.value)
    assert f"the training channel holds {plural[other]}" in str(caught.value)


def plan(folder: Path, **given):
    return job.plan({"training": folder}, given, output=folder.parent / "out")


@pytest.fixture
def channels(tmp_path):
    rows = [(label, f"{label} {number}") for label in "ab" for number in range(5)]
    photos = builders.write_files(tmp_path / "photos", {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    return {"text": builders.write_csv(tmp_path / "texts", rows), "image": photos}


@pytest.mark.parametrize(
    ("task", "wrong", "suggested"),
    [
        ("text", "efficientnet-lite0", "minilm-l6, universal-sentence-encoder-multilingual"),
        ("image", "minilm-l6", "efficientnet-lite0"),
    ],
)
def test_a_backbone_of_the_other_task_is_refused_with_those_that_fit(channels, task, wrong, suggested):
    with pytest.raises(UsageError, match=f"backbone {wrong} takes .*, but the training channel holds") as caught:
        plan(channels[task], backbone=wrong)
    assert f"Choose {suggested}" in str(caught.value)


def test_a_channel_of_texts_plans_a_job_of_texts(channels):
    planned = plan(channels["text"])
    assert (planned.task, planned.card.id) == ("text", "universal-sentence-encoder-multilingual")
    assert planned.settings.train_only_top_layer
    assert planned.settings.epochs == 10
    assert plan(channels["text"] / "data.csv").task == "text"


def test_other_channels_of_a_text_job_must_hold_texts(channels):
    with pytest.raises(UsageError, match=r"validation channel .*photos holds no data\.csv"):
        job.plan({"training": channels["text"], "validation": channels["image"]}, {}, output=channels["text"].parent)


def test_bert_like_cards_bring_their_settings_only_when_they_are_trained_whole(channels):
    bert = next(card for card in catalog.cards("text") if card.preprocessor)
    for handle in ("minilm-l6", bert.id):
        head = plan(channels["text"], backbone=handle)
        assert (head.settings.learning_rate, head.settings.batch_size) == (0.001, 32)
        assert head.sources["learning_rate"] == "default"
        whole = plan(channels["text"], backbone=handle, train_only_top_layer="False")
        assert (whole.settings.learning_rate, whole.settings.batch_size) == (5e-5, 64)
        assert whole.sources["learning_rate"] == whole.sources["batch_size"] == "card"
        mine = plan(channels["text"], backbone=handle, train_only_top_layer="False", learning_rate="0.01")
        assert (mine.settings.learning_rate, mine.settings.batch_size) == (0.01, 64)
        assert mine.sources["learning_rate"] == "user"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("--augmentation", ["augmentation: it is for photos only", "holds texts"]),
        ("--max-sequence-length 2", ["max_sequence_length: expected an integer from 3 to 512"]),
        ("--max-sequence-length 513", ["max_sequence_length: expected an integer from 3 to 512"]),
        (
            "--backbone efficientnet-lite0",
            ["takes photos", "Choose minilm-l6, universal-sentence-encoder-multilingual"],
        ),
        ("--backbone minilm-16", ["Did you mean", "minilm-l6"]),
        ("--validation nowhere", ["validation channel nowhere does not exist", "data.csv"]),
        ("--optimizer adamww", ["mean adamw?"]),
    ],
)
def test_wrong_uses_with_texts_are_answered_in_one_message(words, parts, channels, capsys, monkeypatch):
    monkeypatch.chdir(channels["text"].parent)
    assert cli.main(["train", "--training", "texts", *words.split()]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for part in parts:
        assert part in message


def test_reading_and_wrong_uses_need_no_tensorflow(channels):
    program = (
        "import json, sys\n"
        "from tf_finetune import cli, examples\n"
        "read = examples.read('text', __import__('pathlib').Path(sys.argv[1]))\n"
        "code = cli.main(['train', '--training', sys.argv[1], '--epochs', '0'])\n"
        "print(json.dumps([len(read), code, sorted({'tensorflow', 'numpy', 'keras', 'pandas'} & set(sys.modules))]))"
    )
    command = [sys.executable, "-c", program, str(channels["text"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(cli.__file__).parents[2])
    assert json.loads(done.stdout) == [10, 1, []]
    assert "epochs: expected an integer of 1 or more" in done.stderr
