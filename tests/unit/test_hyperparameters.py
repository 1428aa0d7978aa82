"""The table of hyperparameters against the contract of SageMaker's Image Classification - TensorFlow."""

from __future__ import annotations

import itertools
import json

import pydantic
import pytest

from tf_finetune import hyperparameters, tables
from tf_finetune.errors import MESSAGE_LIMIT, HyperparameterError

OPTIMIZERS = ("adam", "sgd", "nesterov", "rmsprop", "adagrad", "adadelta")  # The built-in's; ours adds adamw and auto.
SWITCH, FRACTION, SIGNED, COUNT, SEED, TEXT = "True/False", "0..1", "-1..1", "int > 0", "int >= 0", "text"

# The contract, literally: name, what is valid, and the default of the JumpStart specification.
BUILT_IN = [
    ("augmentation", SWITCH, False),
    ("augmentation_random_flip", "horizontal_and_vertical vertical horizontal None", "horizontal_and_vertical"),
    ("augmentation_random_rotation", SIGNED, 0.2),
    ("augmentation_random_zoom", SIGNED, 0.1),
    ("batch_size", COUNT, 32),
    ("beta_1", FRACTION, 0.9),
    ("beta_2", FRACTION, 0.999),
    ("binary_mode", SWITCH, False),
    ("dropout_rate", FRACTION, 0.2),
    ("early_stopping", SWITCH, False),
    ("early_stopping_min_delta", FRACTION, 0.0),
    ("early_stopping_patience", COUNT, 5),
    ("epochs", COUNT, 5),
    ("epsilon", FRACTION, 1e-7),
    ("eval_metric", "accuracy precision recall auc prc", "accuracy"),
    (
        "image_resize_interpolation",
        "bilinear nearest bicubic area lanczos3 lanczos5 gaussian mitchellcubic",
        "bilinear",
    ),
    ("initial_accumulator_value", FRACTION, 0.1),
    ("label_smoothing", FRACTION, 0.1),
    ("learning_rate", FRACTION, 0.001),
    ("momentum", FRACTION, 0.9),
    ("optimizer", " ".join((*OPTIMIZERS, "adamw", "auto")), "auto"),
    ("random_seed", SEED, 123),
    ("regularizers_l2", FRACTION, 0.0001),
    ("reinitialize_top_layer", "Auto True False", "Auto"),
    ("rho", FRACTION, 0.95),
    ("train_only_top_layer", SWITCH, True),
    ("validation_split_ratio", FRACTION, 0.2),
]
ADDED = [
    ("augmentation_views", COUNT, 4),
    ("backbone", TEXT, "efficientnet-lite0"),
    ("calibrate", SWITCH, True),
    ("checkpoint_seconds", COUNT, 60),
    ("class_weight", "none balanced", "none"),
    ("group_by", TEXT, None),
    ("image_size", "8..4096", None),
    ("min_accuracy", FRACTION, 0.0),
    ("max_bad_fraction", FRACTION, 0.1),
    ("max_pixels", COUNT, 100_000_000),
    ("max_seconds", COUNT, None),
    ("max_sequence_length", "3..512", None),
    ("on_bad_data", "skip fail", "skip"),
    ("precision", "auto float32 bfloat16 float16", "auto"),
    ("preprocessor", TEXT, None),
    ("pixel_range", "0,1 -1,1 0,255", None),
    ("schedule", "constant cosine", "constant"),
    ("trust_backbone", SWITCH, False),
    ("warmup_steps_fraction", FRACTION, 0.0),
]
OTHER_METRICS = {"precision", "recall", "auc", "prc"}
GOOD_AND_BAD = {
    SWITCH: (["True", "False", "true", "false"], ["maybe", "2", "1.0", "0.5"]),
    FRACTION: (
        ["0", "1", "0.5", "1e-07", ".5", "1.0"],
        ["-0.001", "1.001", "nan", "inf", "-inf", "0,5", "half", "True"],
    ),
    SIGNED: (["-1", "1", "-0.2", "-1e-1"], ["-1.001", "1.001", "nan", "x"]),
    COUNT: (["1", "3.0", "100000"], ["0", "-1", "1.5", "nan", "1e3x", "many", "True"]),
    SEED: (["0", "123", "4294967296"], ["-1", "0.5", "x"]),
    "3..512": (["3", "128", "512"], ["2", "513", "long"]),
    "8..4096": (["8", "224", "4096"], ["7", "4097", "224x224", "any"]),
    TEXT: (["https://hub.example/a/1", "a b/c", "3"], []),
}


def parse_one(name: str, value: object):
    needed = {"binary_mode": "True"} if value in OTHER_METRICS else {}
    return hyperparameters.parse({name: value, **needed})[name]


def message_of(given: dict[str, object]) -> str:
    with pytest.raises(HyperparameterError) as caught:
        hyperparameters.parse(given)
    message = str(caught.value)
    assert len(message) < MESSAGE_LIMIT
    assert "\n" not in message
    return message


def test_the_table_has_every_built_in_name_and_what_we_add_and_no_more():
    sources = {row["name"]: row["source"] for row in hyperparameters.table()}
    built_in, added = ({name for name, *_ in rows} for rows in (BUILT_IN, ADDED))
    assert sources == {**dict.fromkeys(built_in, "built-in"), **dict.fromkeys(added, "added")}


@pytest.mark.parametrize(("name", "valid", "default"), BUILT_IN + ADDED, ids=lambda value: str(value)[:30])
def test_each_default_and_range_is_the_contracts(name, valid, default):
    settings, sources = hyperparameters.resolve({}, {})
    assert (getattr(settings, name), type(getattr(settings, name))) == (default, type(default))
    assert sources[name] == "default"
    good, bad = GOOD_AND_BAD.get(valid, (valid.split(), ["other", "1", f"{valid.split()[0]}s"]))
    for text in good:
        value = parse_one(name, text)
        assert value in ({"True": True, "False": False}.get(text.title()), text) or value == float(text)
    for text in bad:
        message = message_of({name: text})
        assert message.startswith(f"Wrong hyperparameter: {name}: expected {hyperparameters.expected(name)}; received")
        assert text in message


def test_every_row_says_what_it_means_and_shows_its_default():
    defaults = hyperparameters.Hyperparameters().model_dump()
    for row in hyperparameters.table():
        assert len(row["meaning"]) > 10
        assert row["accepts"]
        parsed = hyperparameters.parse({row["name"]: row["default"]})  # What is printed can be given back.
        assert parsed == ({row["name"]: defaults[row["name"]]} if row["default"] else {})


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("augmentation", '"True"', True),
        ("augmentation", '"\\"true\\""', True),
        ("augmentation", "TRUE", True),
        ("augmentation", True, True),
        ("augmentation", " False ", False),
        ("augmentation", False, False),
        ("optimizer", '"adam"', "adam"),
        ("optimizer", '"\\"adam\\""', "adam"),
        ("optimizer", '"\\"\\\\\\"adam\\\\\\"\\""', "adam"),
        ("optimizer", " Adam", "adam"),
        ("epochs", " 3 ", 3),
        ("epochs", '"3"', 3),
        ("epochs", "3.0", 3),
        ("epochs", 3, 3),
        ("epochs", 3.0, 3),
        ("learning_rate", "1e-3", 0.001),
        ("learning_rate", 1e-7, 1e-7),
        ("learning_rate", '"1E-3"', 0.001),
        ("learning_rate", 1, 1.0),
        ("augmentation_random_rotation", "-0.2", -0.2),
        ("augmentation_random_flip", "None", "None"),
        ("augmentation_random_flip", "none", "None"),
        ("augmentation_random_flip", '"None"', "None"),
        ("class_weight", "None", "none"),
        ("reinitialize_top_layer", True, "True"),
        ("reinitialize_top_layer", "auto", "Auto"),
        ("pixel_range", "-1, 1", "-1,1"),
        ("backbone", '"a folder/with spaces"', "a folder/with spaces"),
        ("backbone", "None-of-it", "None-of-it"),
    ],
)
def test_values_are_read_as_sagemaker_and_python_send_them(name, value, typed):
    found = hyperparameters.parse({name: value})
    assert found == {name: typed}
    assert type(found[name]) is type(typed)


@pytest.mark.parametrize("value", ["", "  ", None, "null", "None", '""', '"\\"\\""', '" "', '"null"'])
def test_an_empty_value_means_not_given(value):
    for name in ("epochs", "image_size", "pixel_range", "optimizer", "early_stopping", "backbone"):
        assert hyperparameters.parse({name: value}) == {}


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("train_only_on_top_layer", "train_only_top_layer"),
        ("train_only_on_top", "train_only_top_layer"),
        ("train-only-on-top", "train_only_top_layer"),
        ("train-only-top-layer", "train_only_top_layer"),
        ("Train_Only_Top_Layer", "train_only_top_layer"),
        ("eps", "epsilon"),
        (" beta-1 ", "beta_1"),
        ("regularizers-l2", "regularizers_l2"),
        ("batch-size", "batch_size"),
    ],
)
def test_aliases_hyphens_and_case_lead_to_one_name(spelling, name):
    assert hyperparameters.canonical(spelling) == name
    assert list(hyperparameters.parse({spelling: "1"})) == [name]


def test_two_spellings_of_one_name_clash_only_when_their_values_differ():
    assert hyperparameters.parse({"eps": "0.1", "epsilon": "1e-1", "train-only-on-top": ""}) == {"epsilon": 0.1}
    message = message_of({"eps": "0.1", "epsilon": "0.2"})
    assert "epsilon: given twice, as eps=0.1 and epsilon=0.2" in message


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("learnig_rate", "1", "learning_rate"),
        ("learning-rates", "1", "learning_rate"),
        ("epoch", "1", "epochs"),
        ("batchsize", "1", "batch_size"),
        ("train_only_on_top_layr", "1", "train_only_top_layer"),
        ("epss", "1", "epsilon"),
        ("optimizer", "adma", "adam"),
        ("optimizer", "RMS-prop", "rmsprop"),
        ("image_resize_interpolation", "bilinaer", "bilinear"),
        ("augmentation_random_flip", "horizontl", "horizontal"),
        ("schedule", "cosin", "cosine"),
        ("qqqqqq", "1", None),
        ("optimizer", "lion", None),
    ],
)
def test_a_misspelling_is_answered_with_the_nearest_name_or_value(name, value, hint):
    message = message_of({name: value})
    assert name in message
    assert f"(did you mean {hint}?)" in message if hint else "did you mean" not in message


def test_all_problems_come_in_one_message():
    message = message_of({"epochs": "0", "optimizer": "adm", "learnig_rate": "0.1", "dropout_rate": "2", "rho": "0.5"})
    assert message.startswith("4 hyperparameters are wrong: ")
    assert "epochs: expected an integer of 1 or more; received '0'" in message
    for part in ("mean adam?", "learnig_rate", "dropout_rate"):
        assert part in message
    assert "rho" not in message


@pytest.mark.parametrize(
    "given",
    [
        dict.fromkeys(hyperparameters.NAMES, "x y"),
        {f"unknown_{number}": "1" for number in range(100)},
        {"x" * 5000: "1"},
        {"optimizer": "x" * 5000},
        {"optimizer": "x" * 5000, "epochs": "y" * 5000, "schedule": "z" * 5000},
        {"eps": 0.1, "epsilon": 0.2, "train_only_on_top": 1, "train_only_top_layer": 0},
    ],
    ids=["all wrong", "many unknown", "long name", "long value", "long values", "twice twice"],
)
def test_however_much_is_wrong_the_message_fits_and_counts_the_rest(given):
    message = message_of(given)
    wrong = [name for name in given if name != "backbone"]
    shown = sum(f"{name[:40]}" in message for name in wrong)
    assert shown >= min(3, len(given) // 2 + 1)
    if len(given) > 20:
        assert message.endswith("more.")


@pytest.mark.parametrize("metric", sorted(OTHER_METRICS))
def test_other_metrics_than_accuracy_need_binary_mode(metric):
    assert hyperparameters.parse({"eval_metric": metric, "binary_mode": "true"})["eval_metric"] == metric
    for given in ({}, {"binary_mode": "False"}):
        assert f"eval_metric: {metric} needs binary_mode=True" in message_of({"eval_metric": metric, **given})


def test_the_users_value_beats_the_cards_and_the_cards_the_tables():
    settings, sources = hyperparameters.resolve({"epochs": 3}, {"epochs": 7, "batch_size": 64})
    assert (settings.epochs, settings.batch_size, settings.rho) == (3, 64, 0.95)
    assert (sources["epochs"], sources["batch_size"], sources["rho"]) == ("user", "card", "default")
    assert set(sources) == set(hyperparameters.NAMES)
    with pytest.raises(pydantic.ValidationError):
        settings.epochs = 4


@pytest.mark.parametrize("given", [{}, {"train_only_top_layer": False}, {"train_only_top_layer": False, "epochs": 9}])
def test_what_a_card_brings_for_training_it_whole_counts_then_only(given):
    card, whole = {"epochs": 7, "batch_size": 8}, {"batch_size": 64, "epochs": 2}
    settings, sources = hyperparameters.resolve(given, card, whole)
    assert settings.batch_size == (64 if given else 8)
    assert settings.epochs == given.get("epochs", 2 if given else 7)
    assert (sources["batch_size"], sources["learning_rate"]) == ("card", "default")
    assert sources["epochs"] == ("user" if "epochs" in given else "card")


# Which optimizer uses what, from the contract; and what needs its switch.
USED_BY = {
    "momentum": {"sgd", "nesterov", "rmsprop"},
    "beta_1": {"adam"},
    "beta_2": {"adam"},
    "epsilon": {"adam", "rmsprop", "adadelta", "adagrad"},
    "rho": {"adadelta", "rmsprop"},
    "initial_accumulator_value": {"adagrad"},
}
SWITCHED = {
    "early_stopping_patience": "early_stopping",
    "early_stopping_min_delta": "early_stopping",
    "augmentation_random_flip": "augmentation",
    "augmentation_random_rotation": "augmentation",
    "augmentation_random_zoom": "augmentation",
    "augmentation_views": "augmentation",
}


def lines_of(**given):
    return hyperparameters.without_effect(hyperparameters.resolve(given, {})[0], given)


@pytest.mark.parametrize(("name", "optimizer"), [*itertools.product(USED_BY, OPTIMIZERS)])
def test_a_setting_that_the_optimizer_does_not_use_is_told(name, optimizer):
    lines = lines_of(optimizer=optimizer, **{name: 0.5})
    if optimizer in USED_BY[name]:
        assert lines == []
    else:
        assert len(lines) == 1
        assert lines[0].startswith(f"{name} has no effect: optimizer is {optimizer}, and it is used with ")


@pytest.mark.parametrize(("name", "switch"), SWITCHED.items())
def test_a_setting_whose_switch_is_off_is_told(name, switch):
    value = getattr(hyperparameters.Hyperparameters(), name)
    told = [f"{name} has no effect: {switch} is False, and it is used with True"]
    assert lines_of(optimizer="adam", **{name: value}) == told
    assert lines_of(optimizer="adam", **{name: value, switch: True}) == []
    assert lines_of(optimizer="adam", **{switch: False}) == []  # Nobody asked for it.


def test_views_are_for_a_frozen_backbone():
    given = {"augmentation": True, "augmentation_views": 2, "train_only_top_layer": False}
    told = "augmentation_views has no effect: train_only_top_layer is False, and it is used with True"
    assert lines_of(**given) == [told]


# What only training in steps uses: a head that is solved in one go has no use for it.
OF_STEPS = {
    "batch_size", "beta_1", "beta_2", "dropout_rate", "early_stopping", "early_stopping_min_delta",
    "early_stopping_patience", "epochs", "epsilon", "eval_metric", "label_smoothing", "learning_rate",
    "regularizers_l2", "schedule", "warmup_steps_fraction", "checkpoint_seconds", "max_seconds"}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OF_STEPS))
def test_a_setting_of_steps_is_told_to_do_nothing_where_the_head_is_solved(name):
    given = {name: getattr(hyperparameters.Hyperparameters(), name)}
    (line,) = lines_of(**given)
    assert line.startswith(f"{name} has no effect: optimizer=auto solves the head of a frozen backbone")
    assert "name an optimizer, such as optimizer=adam" in line
    assert lines_of(optimizer="auto", **given) == [line]
    for trained in ({"optimizer": "adam"}, {"train_only_top_layer": False}):
        assert [other for other in lines_of(**trained, **given) if "solves the head" in other] == []


def test_settings_of_steps_share_one_line_and_all_others_count_for_a_solved_head():
    everything = hyperparameters.Hyperparameters(augmentation=True).model_dump()
    lines = lines_of(**everything)
    assert sum("solves the head" in line for line in lines) == 1
    told = {name for name in everything if any(name in line.partition(" no effect")[0] for line in lines)}
    assert told == OF_STEPS | {"momentum", "rho", "initial_accumulator_value"}
    assert hyperparameters.OF_STEPS == OF_STEPS


@pytest.mark.parametrize(
    ("name", "is_used"), [("beta_1", True), ("epsilon", True), ("momentum", False), ("rho", False)]
)
def test_a_whole_network_is_trained_by_adam_unless_told_otherwise(name, is_used):
    lines = lines_of(train_only_top_layer=False, **{name: 0.5})
    assert lines == [] if is_used else lines[0].startswith(f"{name} has no effect: optimizer is auto")


def test_the_json_table_is_the_table_and_the_others_show_every_name():
    assert json.loads(tables.hyperparameters_table("json")) == hyperparameters.table()
    markdown = tables.hyperparameters_table("markdown").splitlines()
    assert {line.replace("\\|", "").count("|") for line in markdown} == {6}  # A | inside a cell would cut it.
    text = tables.hyperparameters_table("text").splitlines()
    for number, name in enumerate(hyperparameters.NAMES):
        assert markdown[number + 2].startswith(f"| `{name}` |")
        assert text[number + 1].split()[0] == name
    assert {"efficientnet-lite0", "0.0001", "1e-07"} <= set(" ".join(text).split())
