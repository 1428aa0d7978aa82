from __future__ import annotations

import copy
import hashlib
import html
import json
import logging
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from tf_finetune.report import page, pictures

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{$ x_2^3",
    "$",
    "{{ 7 * 7 }}{% raw %}",
    "name-0",
    "猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫猫",
    "عربي \u202etext",
    "two\nlines\x00\x1b[31m",
    "\udcff not Unicode",
    "🐈‍⬛ & 'q' \"Q\"",
    "x" * 300,
    " ",
    "--> ]]> </svg></style>",
    'id="a" url(#b) #010101',
    "items",
]


def part(class_names: list[str], wrong: int = 1) -> dict[str, Any]:
    """Returns one part's figures: of each class 9 examples are right and `wrong` are taken for the next class."""
    size = len(class_names)
    matrix = [[9 if i == k else wrong if k == (i + 1) % size else 0 for k in range(size)] for i in range(size)]
    share = 9 / (9 + wrong)
    figures = {"precision": share, "recall": share, "f1": share, "support": 9 + wrong}
    return {
        "accuracy": share,
        "loss": 0.4321,
        "macro_f1": share,
        "per_class": {name: dict(figures) for name in class_names},
        "confusion_matrix": matrix,
        "calibration_error": 0.0312,
    }


def record(class_names: list[str] | None = None) -> dict[str, Any]:
    """Returns a record such as report.json holds."""
    names = class_names or ["daisy", "roses", "tulips"]
    epochs = range(1, 6)
    return {
        "task": "image",
        "backbone": "efficientnet-lite0",
        "class_names": names,
        "examples": {"training": 12_345, "validation": 10 * len(names), "test": 0},
        "hyperparameters": {"epochs": 5, "learning_rate": 1e-05, "min_accuracy": None, "early_stopping": False},
        "hyperparameter_sources": {"epochs": "default", "learning_rate": "card", "min_accuracy": "user"},
        "metrics": {"validation": part(names)},
        "history": [
            {
                "epoch": epoch,
                "loss": 1 / epoch,
                "accuracy": 1 - 0.4 / epoch,
                "val_loss": 1.2 / epoch,
                "val_accuracy": 1 - 0.5 / epoch,
                "learning_rate": 0.001,
            }
            for epoch in epochs
        ],
        "best_epoch": 5,
        "seconds": {"total": 100.0, "data": 4.0, "features": 75.5, "head": 15.0, "export": 5.5},
        "backbone_calls": 12_375,
        "gate_calls": 7,
        "job": {
            "parent_model": "efficientnet-lite0",
            "name": "flowers-1",
            "arn": None,
            "training_seconds": 100.0,
            "model_artifact": "out/flowers-1/output/model.tar.gz",
        },
        "versions": {"tensorflow": "2.21.0", "keras": "3.15.1"},
        "warnings": ["momentum has no effect with adam."],
        "parity": {"examples": 16, "largest_difference": 2.5e-08},
    }


def pictureless() -> dict[str, Any]:
    """Returns a record of which nothing is drawn, for drawing takes its time."""
    given = record()
    del given["history"], given["metrics"]["validation"]["confusion_matrix"]
    return given


class Page(HTMLParser):
    """What a browser makes of a page: its tags with attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return re.sub(r"\s+", " ", " ".join(self.texts))


def rows(text: str, heading: str) -> list[list[str]]:
    """Returns the cells of the first table after a heading."""
    table = text[text.index(f">{heading}</h") :]  # A link of the contents says the same.
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in table.split("<tr")[1:]]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


# What it says


def test_the_headline_says_how_many_of_how_many() -> None:
    text = Page(page.render(record())).text
    assert "90.0 %" in text
    assert "27 of 30 validation examples answered right" in text
    assert "efficientnet-lite0" in text
    assert "12,375" in text
    assert "12,345 training, 30 validation" in text


def test_every_class_has_a_row_with_its_figures() -> None:
    given = pictureless()
    given["metrics"]["validation"]["per_class"]["roses"] = {"precision": 0.5, "recall": 0.25, "f1": 1 / 3, "support": 8}
    found = rows(page.render(given), "Class by class")
    assert [row[0] for row in found] == ["daisy", "roses", "tulips"]
    assert found[1][:5] == ["roses", "8", "50.0 %", "25.0 %", "33.3 %"]


def test_a_class_without_examples_has_no_figures() -> None:
    given = pictureless()
    given["metrics"]["validation"]["per_class"]["roses"] = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert rows(page.render(given), "Class by class")[1][:5] == ["roses", "0", "–", "–", "–"]


def test_the_commonest_mistakes_come_first() -> None:
    given = record()
    del given["history"]
    given["metrics"]["validation"]["confusion_matrix"] = [[5, 1, 0], [0, 5, 0], [3, 2, 4]]
    found = rows(page.render(given), "Commonest mistakes")
    assert found == [["tulips", "daisy", "3", "9"], ["tulips", "roses", "2", "9"], ["daisy", "roses", "1", "6"]]


def test_warnings_are_shown() -> None:
    text = Page(page.render(pictureless())).text
    assert "1 warning momentum has no effect with adam." in text


def test_hyperparameters_come_with_their_source_those_of_the_user_first() -> None:
    assert rows(page.render(pictureless()), "Hyperparameters") == [
        ["min_accuracy", "none", "set by you"],
        ["learning_rate", "1e-05", "backbone's card"],
        ["epochs", "5", "default"],
        ["early_stopping", "false", ""],
    ]


def test_stages_are_sorted_and_the_slowest_is_marked() -> None:
    found = rows(page.render(pictureless()), "Where the time went")
    assert [row[0] for row in found] == ["features slowest", "head", "export", "data", "total"]
    assert found[0][1:3] == ["1 min 16 s", "75.5 %"]


def test_time_outside_the_stages_is_not_hidden() -> None:
    given = pictureless()
    given["seconds"]["total"] = 200.0
    assert rows(page.render(given), "Where the time went")[0][:3] == ["everything else slowest", "1 min 40 s", "50.0 %"]


def test_without_validation_the_page_says_so() -> None:
    given = record()
    given["metrics"]["validation"] = None
    for epoch in given["history"]:
        epoch["val_loss"] = epoch["val_accuracy"] = None
    text = Page(page.render(given)).text
    assert "not measured" in text
    assert "Class by class" not in text
    assert "Learning curves" in text
    assert "training" in text


def test_a_test_part_is_shown_as_well() -> None:
    given = record()
    given["metrics"]["test"] = part(given["class_names"], wrong=3)
    text = Page(page.render(given)).text
    assert "Test accuracy 75.0 % 27 of 36 right" in text
    assert text.count("Class by class") == 2


@pytest.mark.filterwarnings("error")  # One of the two classes has no example, and nothing may be divided by its 0.
@pytest.mark.parametrize(("right", "shown"), [(1999, "99.9 %"), (2000, "100.0 %"), (0, "0.0 %"), (1, "0.1 %")])
def test_only_perfect_is_100_percent(right: int, shown: str) -> None:
    given = record(["a", "b"])
    del given["history"]
    given["metrics"]["validation"].update(accuracy=right / 2000, confusion_matrix=[[right, 2000 - right], [0, 0]])
    assert re.search(rf"accuracy {re.escape(shown)} {right:,} of 2,000", Page(page.render(given)).text)


# What it survives


def test_hostile_class_names_are_text_and_nothing_else() -> None:
    given = record(HOSTILE)
    given["job"]["name"] = given["backbone"] = given["warnings"][0] = HOSTILE[0]
    given["hyperparameters"]["backbone"] = HOSTILE[1]
    given["versions"] = {HOSTILE[0]: HOSTILE[1]}
    text = page.render(given)
    found = Page(text)
    tags = Counter(tag for tag, _ in found.tags)
    assert not tags.keys() & {"script", "img", "iframe", "object", "link", "base"}
    assert all(not name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert "<script>alert(1)</script>" in found.texts
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7 * 7 }}{% raw %}" in found.texts
    assert tags["svg"] == 3
    assert text.count("</svg>") == 3
    assert text.count("</style>") == 1


def test_pictures_carry_hostile_names_as_they_are() -> None:
    given = record(HOSTILE)
    text = page.render(given)
    picture = Page(text[text.index("<svg") : text.index("</svg>")])
    for name in (
        "$\\frac{1}{$ x_2^3",
        "$",
        "name-0",
        "猫猫猫猫猫猫猫猫猫猫猫…",
        "x" * 23 + "…",
        'id="a" url(#b) #010101',
    ):
        assert picture.texts.count(name) == 2, name
    assert "two lines  [31m" in picture.texts


def test_strange_names_neither_warn_nor_raise_and_can_be_written(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        page.render(record(HOSTILE)).encode("utf-8")
    assert not caplog.records


def keys(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Gives the path of every key in a record, the first of a list's records standing for all."""
    if isinstance(value, dict):
        for key in value:
            yield (*path, key)
            yield from keys(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from keys(value[0], (*path, 0))


def without(given: dict[str, Any], path: tuple[Any, ...], replacement: Any) -> dict[str, Any]:
    """Returns the record with one key removed or, if `replacement` is None, made null."""
    given = copy.deepcopy(given)
    place = given
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = replacement
    if replacement == "removed":
        del place[path[-1]]
    return given


@pytest.mark.parametrize("path", list(keys(pictureless())), ids=str)
def test_nothing_in_the_record_is_indispensable(path: tuple[Any, ...]) -> None:
    for replacement in ("removed", None):
        assert page.render(without(pictureless(), path, replacement)).rstrip().endswith("</html>")


@pytest.mark.parametrize("key", ["epoch", "accuracy", "val_accuracy"])
def test_nothing_in_an_epoch_is_indispensable(key: str) -> None:
    epochs = record()["history"]
    for replacement in ("removed", None):
        history = without({"epochs": epochs}, ("epochs", 0, key), replacement)["epochs"]
        assert pictures.learning_curve(history, "accuracy")


def test_classes_without_names_are_numbered() -> None:
    given = record()
    del given["class_names"], given["history"]
    found = rows(page.render(given), "Commonest mistakes")
    assert found[0] == ["class 0", "class 1", "1", "10"]


def test_an_empty_record_is_a_page() -> None:
    assert "not measured" in page.render({})


@pytest.mark.parametrize("history", [[], [{"epoch": 1, "loss": 0.0, "accuracy": 1.0}]])
def test_few_epochs_are_drawn_without_a_complaint(history: list[dict[str, Any]]) -> None:
    given = record()
    given["history"] = history
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = page.render(given)
    assert text.count("</svg>") == 1 + 2 * len(history)


@pytest.mark.parametrize("size", [1, 2, 16, 17, 40, 41])
def test_any_number_of_classes_is_shown(size: int) -> None:
    names = [f"species {number:03d} of many" for number in range(size)]
    given = record(names)
    given["history"] = []
    text = page.render(given)
    assert [row[0] for row in rows(text, "Class by class")] == names
    picture = Page(text[text.index("<svg") : text.index("</svg>")])
    assert sum(name in picture.texts for name in names) == (size if size <= pictures.LABELLED_CLASSES else 0)
    assert picture.texts.count("9") == (size if size <= pictures.COUNTED_CLASSES else 0)
    assert ("order of the table above" in text) == (size > pictures.LABELLED_CLASSES)


# What it is made of


def test_the_page_needs_nothing_from_elsewhere() -> None:
    text = page.render(record())
    assert "http:" not in text
    assert "https:" not in text
    for _, attributes in Page(text).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\((?!#)", text)


def test_ids_are_unique_and_references_lead_to_one() -> None:
    given = record()
    given["metrics"]["test"] = part(given["class_names"])
    text = page.render(given)
    ids = Counter(attributes["id"] for _, attributes in Page(text).tags if attributes.get("id"))
    assert set(ids.values()) == {1}
    references = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert references
    assert {first or second for first, second in references} <= ids.keys()


def test_pictures_have_the_colours_of_the_page() -> None:
    text = page.render(record())
    assert "var(--accent)" in text[text.index("<svg") :]
    assert not re.search("#0[1-4]0[1-4]0[1-4]", text)
    assert "prefers-color-scheme: dark" in text


def rendered_elsewhere() -> str:
    """Returns the hash of the page that another process makes, and whether it needed pyplot."""
    code = (
        "import hashlib, json, sys; from tf_finetune.report import page\n"
        "text = page.render(json.load(sys.stdin))\n"
        "print(hashlib.sha256(text.encode()).hexdigest(), 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, input=json.dumps(record()), capture_output=True, text=True, check=True).stdout


def test_equal_records_give_equal_pages_in_any_process_and_without_pyplot() -> None:
    here = hashlib.sha256(page.render(record()).encode()).hexdigest()
    assert rendered_elsewhere().split() == [here, "False"]


def test_the_users_matplotlib_settings_do_not_matter_and_stay() -> None:
    import matplotlib

    expected = page.render(record())
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.grid": True, "svg.fonttype": "path"}):
        assert page.render(record()) == expected
        assert matplotlib.rcParams["font.size"] == 30


def test_importing_the_page_imports_neither_matplotlib_nor_jinja2() -> None:
    code = (
        "import sys, tf_finetune.report.page; print(sorted({'matplotlib', 'jinja2', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAD = {
    "method": "L-BFGS",
    "l2": 0.1,
    "folds": 5,
    "iterations": 1234,
    "path": [{"l2": 1.0, "loss": 0.9, "accuracy": 0.5}, {"l2": 0.1, "loss": 0.4, "accuracy": 0.8}],
}


def test_a_head_that_was_solved_shows_its_strengths_and_no_epochs():
    shown = page.render({**record(), "head": HEAD, "history": record()["history"][:1]})
    assert "Held-out loss over the L2 strengths" in shown
    assert "of 2 that were tried" in shown
    assert "in 1,234 iterations" in shown
    assert "Learning curves" not in shown
    assert "Learning curves" in page.render({**record(), "head": HEAD})
    assert "The head" not in page.render({**record(), "head": None})


def test_a_head_without_a_path_has_no_curve():
    shown = page.render({**record(), "head": {**HEAD, "folds": 0, "path": []}})
    assert "too few training examples to try others" in shown
    assert "Held-out loss" not in shown
    assert pictures.strength_curve(None) is None


def test_the_precision_is_told_with_its_reason():
    told = {"features": "bfloat16", "reason": "agrees <b>", "median_cosine": 0.9991, "least_cosine": 0.985}
    shown = page.render({**record(), "precision": told, "feature_cache": {"place": "x", "reused": 4321}})
    assert "computed in bfloat16: agrees &lt;b&gt;." in shown
    assert "0.9991 in the middle, 0.9850 at least" in shown
    assert "4,321 were known from earlier" in shown
    assert "computed in" not in page.render({**record(), "precision": {"features": None}})
