"""What the report's page says of how far a model and its data can be trusted."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from tests.integration.test_report_page import Page, keys, record, rows, without
from tf_finetune.report import contents, page, pictures

PICTURE = "data:image/jpeg;base64,/9j/4AAQ"
THUMBNAILS = {"validation/roses/1.jpg": PICTURE, "training/daisy/2.jpg": PICTURE}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</svg></style></code></pre><h2>--> ]]>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; & &amp;",
    "\u202e\x1b[31m\udcff",
]


def full() -> dict[str, Any]:
    """Returns a record with all that is said of trust, and without what is drawn, for drawing takes its time."""
    given = record()
    del given["history"], given["metrics"]["validation"]["confusion_matrix"]
    given["metrics"]["validation"].update(
        balanced_accuracy=0.875,
        top_k={"k": 5, "accuracy": 0.985},
        intervals={"accuracy": [0.756, 0.9146], "macro_f1": [0.7, 0.9], "balanced_accuracy": [0.65, 0.925]},
        baseline={"class": "roses", "accuracy": 0.3},
    )
    given["calibration"] = {
        "temperature": 1.304,
        "applied": True,
        "reason": "less loss",
        "folds": 5,
        "calibration_error": {"before": 0.081, "after": 0.034},
        "loss": {"before": 0.449, "after": 0.398},
    }
    finding = {"kind": "near_duplicates", "count": 320, "detail": "They look the same."}
    given["data"] = {
        "classes": [
            {"name": "daisy", "training": 60, "validation": 20, "test": 0},
            {"name": "roses", "training": 15, "validation": 5, "test": 0},
        ],
        "read": {"training": 75, "validation": 27},
        "findings": [
            {"severity": "note", "kind": "gray", "count": 1, "examples": ["training/roses/9.jpg"], "detail": "As RGB."},
            {"severity": "warning", "examples": [f"training/roses/{k}.jpg" for k in range(20)], **finding},
            {"severity": "error", "kind": "empty", "count": 2, "examples": [], "detail": "No bytes."},
        ],
        "unusable": [
            {"channel": "validation", "id": "roses/a.jpg", "label": "roses", "kind": "empty", "reason": "it is empty"},
            {"channel": "validation", "id": "daisy/b.jpg", "label": "daisy", "kind": "cut", "reason": "it ends early"},
        ],
        "leak": {"exact": 7, "near": 5, "of": 25},
        "groups": 4,
        "left_out_of_validation": 2,
    }
    shown = {"id": "roses/1.jpg", "part": "validation", "label": "roses", "text": None}
    given["mistakes"] = [{**shown, "predicted_label": "tulips", "probability": 0.982}]
    doubt = {"likely_label": "roses", "probability_of_label": 0.012, "probability_of_likely": 0.951}
    given["label_errors"] = [{**shown, "id": "daisy/2.jpg", "part": "training", "label": "daisy", **doubt}]
    given["parent_model"] = {"layout": "JumpStart", "place": "old.tar.gz", "backbone": "body", "validation": None}
    given["parent_model"]["validation"] = {"accuracy": 0.95}
    moments = {"before": {"accuracy": 0.96, "loss": 0.2}, "after": {"accuracy": 0.88, "loss": 0.3}}
    recalls = {"daisy": {"support": 20, "before": 1.0, "after": 0.9}, "moss": {"support": 0, "before": None}}
    given["earlier"] = {
        "head": "gone on with",
        "added": ["roses"],
        "missing": ["moss"],
        "caution": "it may flatter",
        "fared": {"examples": 25, **moments, "per_class": recalls},
    }
    given["command"] = "tf-finetune train --training 'my flowers' --output out"
    return given


def text_of(given: dict[str, Any], thumbnails: dict[str, str] | None = None) -> str:
    return Page(page.render(given, thumbnails)).text


def section(text: str, name: str) -> str:
    """Returns the HTML of one section."""
    return text[text.index(f'<h2 id="{name}"') :].partition("</section>")[0]


# The headline


def test_the_headline_has_its_interval_and_the_baseline_beside_it():
    head = text_of(full()).partition("Backbone")[0]
    assert "90.0 % 27 of 30 validation examples answered right" in head
    assert "95 % interval 75.6 – 91.5 %" in head
    assert "Majority-class baseline 30.0 % by always answering roses , the commonest class in training" in head


def test_the_scale_shows_accuracy_interval_and_baseline_where_they_are():
    text = page.render(full())
    assert 'class="range" style="left: 75.60%; width: 15.86%"' in text
    assert 'class="now" style="left: 90.00%"' in text
    assert 'class="base" style="left: 30.00%"' in text
    assert "From 0 to 100 %: accuracy 90.0 %, interval 75.6 – 91.5 %, baseline 30.0 %" in text


def test_a_leak_is_counted_in_the_headline():
    given = full()
    warned = "validation examples are also in training (7 exactly, 5 nearly)"
    assert f"12 of 25 {warned}" in text_of(given).partition("Backbone")[0]
    given["data"]["leak"] = {"exact": 0, "near": 1, "of": 25}
    assert "1 of 25 validation examples are also in training ( 1 nearly)." in text_of(given).replace("(1", "( 1")
    given["data"]["leak"] = {"exact": 0, "near": 0, "of": 25}
    assert "also in training (" not in text_of(given)
    assert "None of the 25 validation examples is also in training" in text_of(given)
    given["data"]["leak"] = None
    assert "also in training" not in text_of(given)


@pytest.mark.parametrize(("low", "is_warned"), [(0.3, True), (0.301, False)])
def test_a_model_that_may_be_no_better_than_the_baseline_is_said_to_be(low, is_warned):
    given = full()
    given["metrics"]["validation"]["intervals"]["accuracy"] = [low, 0.95]
    assert ("The interval reaches down to the baseline" in text_of(given)) == is_warned


def test_the_test_part_has_interval_and_baseline_too():
    given = full()
    given["metrics"]["test"] = copy.deepcopy(given["metrics"]["validation"])
    given["examples"]["test"] = 40
    given["metrics"]["test"]["intervals"]["accuracy"] = [0.8, 0.95]
    assert "Test accuracy 90.0 % 36 of 40 right 95 % interval 80.0 – 95.0 % baseline 30.0 %" in text_of(given)


def test_the_headline_counts_findings_and_what_was_left_out():
    given = full()
    counted = "Findings in the data 1 error, 1 warning, 1 note 2 examples unusable, left out"
    assert counted in text_of(given)
    given["data"].update(findings=[], unusable=[])
    assert "Findings in the data none 1 warning" in text_of(given)


# Figures and calibration


def test_figures_have_their_intervals():
    found = rows(page.render(full()), "Figures")
    assert [row[:3] for row in found] == [
        ["accuracy", "90.0 %", "75.6 – 91.5 %"],
        ["balanced accuracy", "87.5 %", "65.0 – 92.5 %"],
        ["macro F1", "90.0 %", "70.0 – 90.0 %"],
        ["top-5 accuracy", "98.5 %", ""],
        ["loss", "0.432", ""],
        ["calibration error", "3.1 %", ""],
        ["majority-class baseline", "30.0 %", ""],
    ]


def test_few_classes_have_no_top_k():
    given = full()
    given["metrics"]["validation"]["top_k"] = None
    assert "top-" not in " ".join(row[0] for row in rows(page.render(given), "Figures"))


def test_calibration_is_told_before_and_after_out_of_fold():
    text = page.render(full())
    assert rows(text, "Calibrated by temperature") == [
        ["calibration error", "8.1 %", "3.4 %"],
        ["loss", "0.449", "0.398"],
    ]
    said = Page(section(text, "calibration")).text
    assert "after, out of fold" in said
    assert "a temperature of 1.3 , fitted on the validation examples" in said
    assert "fitted on others, in 5 folds" in said


def test_a_model_that_was_not_calibrated_says_why():
    given = full()
    given["calibration"].update(applied=False, reason="too few validation examples")
    said = text_of(given)
    assert "Not calibrated The probabilities are as the head gives them: too few validation examples." in said
    assert "divides its logits" not in said
    assert "after, out of fold" not in said


BINS = [
    {"low": 0.4, "high": 0.6, "count": 10, "confidence": 0.55, "accuracy": 0.5},
    {"low": 0.8, "high": 1.0, "count": 1234, "confidence": 0.93, "accuracy": 0.925},
]


def test_the_reliability_diagram_is_drawn_and_is_a_table_too():
    given = full()
    given["metrics"]["validation"]["reliability"] = BINS
    shown = section(page.render(given), "calibration")
    assert shown.count("<svg") == 1
    assert "Validation: share of right answers over their probability" in shown
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", shown.partition("the diagram as a table")[2])
    assert cells[4:12] == ["40.0 – 60.0 %", "55.0 %", "50.0 %", "10", "80.0 – 100.0 %", "93.0 %", "92.5 %", "1,234"]


def test_the_diagram_puts_its_points_where_the_bins_say():
    drawn = str(pictures.reliability_picture(BINS, "test"))
    alone = str(pictures.reliability_picture(BINS[:1], "test"))
    assert drawn.count("<use") > alone.count("<use")  # One mark for each bin.
    assert pictures.reliability_picture([{**BINS[0], "count": 0}], "test")
    assert pictures.reliability_picture([], "test") is None
    assert pictures.reliability_picture([{**BINS[0], "accuracy": None}], "test") is None


# Examples to look at


def test_mistakes_are_shown_as_thumbnails_with_both_classes_and_the_probability():
    text = page.render(full(), THUMBNAILS)
    shown = Page(section(text, "mistakes"))
    assert ("img", {"src": PICTURE, "alt": "Photo validation/roses/1.jpg, labelled roses"}) in shown.tags
    assert "true roses answered tulips 98.2 % validation/roses/1.jpg" in shown.text


def test_likely_label_errors_are_shown_the_same_way_with_how_they_were_found():
    shown = Page(section(page.render(full(), THUMBNAILS), "label-errors"))
    assert ("img", {"src": PICTURE, "alt": "Photo training/daisy/2.jpg, labelled daisy"}) in shown.tags
    assert "labelled daisy 1.2 % likely roses 95.1 % training/daisy/2.jpg" in shown.text
    assert "out-of-fold probabilities, confident learning (Northcutt et al. 2021)" in shown.text


def test_many_likely_label_errors_are_folded_away_and_each_is_shown_once():
    given = full()
    given["label_errors"] = [{**given["label_errors"][0], "id": f"daisy/{k}.jpg"} for k in range(14)]
    first, _, folded = section(page.render(given), "label-errors").partition("<summary>2 more</summary>")
    assert first.count("<figure") == page.SHOWN_CASES
    assert folded.count("<figure") == 2
    assert "training/daisy/12.jpg" in folded


def test_texts_are_quoted_and_long_ones_cut():
    given = full()
    given["mistakes"][0]["text"] = "well " * 200
    given["label_errors"][0]["text"] = ""
    text = page.render(given, THUMBNAILS | {"validation/roses/1.jpg": ""})
    quoted = re.findall(r"<blockquote[^>]*>(.*?)</blockquote>", text)
    assert quoted[0].endswith("well …")
    assert len(quoted[0]) <= contents.LONGEST_TEXT + 2
    assert 'class="cases texts"' in text


def test_without_a_thumbnail_the_example_is_still_named():
    shown = Page(section(page.render(full()), "mistakes"))
    assert "validation/roses/1.jpg" in shown.text
    assert not [tag for tag, _ in shown.tags if tag in ("img", "blockquote")]


def test_a_thumbnail_from_elsewhere_is_not_shown():
    elsewhere = {"validation/roses/1.jpg": "https://example.org/1.jpg"}
    assert page.render(full(), elsewhere) == page.render(full())


# The earlier result


def test_the_earlier_classes_are_told_before_and_now():
    text = page.render(full())
    assert rows(text, "Beside the earlier result") == [
        ["daisy", "20", "100.0 %", "90.0 %"],
        ["moss", "0", "–", "–"],
        ["accuracy", "25", "96.0 %", "88.0 %"],
        ["loss", "", "0.200", "0.300"],
    ]
    said = Page(section(text, "earlier")).text
    assert "went on from old.tar.gz (in JumpStart's layout), made from body . Training began with its head." in said
    assert "validation accuracy 95.0 %." in said
    assert "New classes: roses ." in said
    assert "Without training examples now: moss ." in said
    assert "Mind: it may flatter." in said


def test_without_examples_of_its_classes_nothing_is_compared():
    given = full()
    given["earlier"]["fared"] = None
    assert "no validation examples of its classes" in text_of(given)


# The data


def test_what_was_read_and_left_out_is_counted_by_channel():
    assert rows(page.render(full()), "The data") == [["training", "75", "0", "75"], ["validation", "27", "2", "25"]]
    assert "4 groups of near duplicates were kept on one side of the split." in text_of(full())
    assert "2 validation examples that resemble training examples too much were left out of the score." in text_of(
        full()
    )


def test_classes_have_bars_of_one_scale_and_the_imbalance_is_said():
    text = page.render(full())
    assert rows(text, "How the classes are balanced") == [["daisy", "60", "20"], ["roses", "15", "5"]]
    bars = re.findall(r'<i class="(\w+)" style="width: ([\d.]+)%"', section(text, "data"))
    assert bars == [
        ("training", "75.00"),
        ("validation", "25.00"),
        ("training", "18.75"),
        ("validation", "6.25"),
    ]
    assert "daisy (60), has 4 times as many examples as the smallest, roses (15)." in text_of(full())


def test_findings_come_by_severity_with_their_count_and_examples():
    shown = Page(section(page.render(full()), "data")).text
    places = [
        shown.index(words) for words in ("Errors:", "empty", "Warnings:", "warning near duplicates", "Notes:", "gray")
    ]
    assert places == sorted(places)
    assert "They look the same." in shown
    assert "320 examples: training" in shown
    assert "17 of the 317 others" in shown
    assert "training/roses/19.jpg" in shown


def test_unusable_examples_are_listed_with_the_reason_and_not_without_end():
    given = full()
    found = rows(page.render(given), "Left out, since unusable")
    assert found[0] == ["validation/roses/a.jpg", "roses", "it is empty"]
    given["data"]["unusable"] *= 40
    text = page.render(given)
    assert len(rows(text, "Left out, since unusable")) == contents.SHOWN_UNUSABLE
    assert "And 30 more: quarantine.csv" in Page(text).text


def test_data_without_a_fault_says_so():
    given = full()
    given["data"].update(findings=[], unusable=[])
    assert "What was found in it Nothing." in text_of(given)
    del given["data"]["findings"]  # Nobody looked.
    assert "What was found in it" not in text_of(given)


@pytest.mark.parametrize(("size", "is_folded"), [(page.LONG_TABLE, False), (page.LONG_TABLE + 1, True)])
def test_long_tables_of_classes_are_folded_away(size, is_folded):
    names = [f"class {k}" for k in range(size)]
    given = record(names)
    del given["history"], given["metrics"]["validation"]["confusion_matrix"]
    given["data"] = {"classes": [{"name": name, "training": 3} for name in names]}
    assert page.render(given).count(f"<summary>All {size} classes</summary>") == 2 * is_folded


# To reproduce it


def test_the_command_stands_in_a_block_that_a_click_selects():
    text = page.render(full())
    block = text.partition("<pre>")[2].partition("</pre>")[0]
    assert re.sub("</?(code|span)[^>]*>", "", block) == "tf-finetune train --training &#39;my flowers&#39; --output out"
    assert '<span class="together">--training</span>' in block  # No line ends after its first hyphen.
    assert "user-select: all" in text


# What it survives


def poisoned(value: Any, poison: str) -> Any:
    """Returns a record in which every string is the poison, and every figure what it was."""
    if isinstance(value, dict):
        return {key: poisoned(held, poison) for key, held in value.items()}
    if isinstance(value, list):
        return [poisoned(held, poison) for held in value]
    return poison if isinstance(value, str) else value


@pytest.mark.parametrize("poison", HOSTILE)
def test_whatever_a_user_names_is_text_wherever_it_stands(poison):
    def rendered(name: str) -> Page:
        given = full()
        given["mistakes"].append({**given["mistakes"][0], "id": "2", "text": "a text"})
        given = poisoned(given, name)
        given["metrics"]["validation"]["per_class"] = {name: {"support": 1}}
        given["task"] = "image"
        given["versions"] = given["data"]["read"] = {name: 1}
        return Page(page.render(given, {f"{name}/{name}": PICTURE, f"{name}/2": PICTURE}))

    found, harmless = rendered(poison), rendered("harmless")
    readable = poison.encode("utf-8", "replace").decode()
    assert found.texts == [text.replace("harmless", readable) for text in harmless.texts]
    assert [tag for tag, _ in found.tags] == [tag for tag, _ in harmless.tags]
    for (_, held), (_, expected) in zip(found.tags, harmless.tags, strict=True):
        assert held == {key: text and text.replace("harmless", readable) for key, text in expected.items()}
    assert any(readable in (attributes.get("alt") or "") for _, attributes in found.tags)


@pytest.mark.parametrize("path", list(keys(full())), ids=str)
def test_nothing_of_it_is_indispensable(path):
    for replacement in ("removed", None):
        assert page.render(without(full(), path, replacement), THUMBNAILS).rstrip().endswith("</html>")


def test_an_older_record_has_the_older_sections_only():
    given = record()
    del given["history"], given["metrics"]["validation"]["confusion_matrix"]
    parsed = Page(page.render(given))
    assert "pre" not in [tag for tag, _ in parsed.tags]
    ids = [attributes["id"] for tag, attributes in parsed.tags if tag == "h2"]
    assert ids == ["validation", "stages", "job", "settings"]


def test_equal_records_and_thumbnails_give_equal_pages():
    assert page.render(full(), THUMBNAILS) == page.render(copy.deepcopy(full()), dict(THUMBNAILS))


# What everybody can read


def test_headings_go_down_one_level_at_a_time_and_are_linked_from_the_contents():
    parsed = Page(page.render(full(), THUMBNAILS))
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:], strict=False))
    titles = [attributes["id"] for tag, attributes in parsed.tags if tag == "h2"]
    links = [attributes["href"] for tag, attributes in parsed.tags if tag == "a"]
    assert set(links) == {f"#{title}" for title in titles}


def test_tables_have_headers_and_pictures_have_words():
    given = full()
    given["metrics"]["validation"]["reliability"] = BINS
    for tag, attributes in Page(page.render(given, THUMBNAILS)).tags:
        if tag == "th":
            assert attributes.get("scope") in ("col", "row")
        if tag == "img":
            assert attributes.get("alt")
        if tag == "svg" or attributes.get("role") == "img":
            assert attributes.get("aria-label")


def luminance(colour: str) -> float:
    """Returns the relative luminance of a colour, in [0, 1]. Source: WCAG 2.2."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Returns how far two colours are apart, from 1 to 21."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_texts_and_bars_stand_out_by_day_and_by_night():
    schemes = re.findall(r":root \{(.*?)\}", page.render({}), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--(\w+): (#\w+);", scheme))
        for ground in ("paper", "panel"):
            for text in ("ink", "muted", "accent"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for ground in ("error", "warning", "muted", "accent"):
            assert contrast(colours["paper"], colours[ground]) >= 4.5, ground
        assert contrast(colours["ink"], colours["alert"]) >= 4.5
        for bar in ("training", "validation", "test"):
            assert contrast(colours[bar], colours["paper"]) >= 3, bar
