"""The one table of hyperparameters: name, type, default, range, meaning; strings in, all problems out at once.

Rows that SageMaker's built-in algorithms lack are in ADDED.
"""

from __future__ import annotations

import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic
from pydantic.fields import FieldInfo

from tf_finetune.errors import HyperparameterError, listed
from tf_finetune.hyperparameters.fields import Hyperparameters

ALIASES = {
    "train_only_on_top_layer": "train_only_top_layer",
    "train_only_on_top": "train_only_top_layer",
    "eps": "epsilon",
}
ADDED = frozenset(
    {
        "backbone",
        "image_size",
        "pixel_range",
        "max_sequence_length",
        "preprocessor",
        "class_weight",
        "schedule",
        "warmup_steps_fraction",
        "min_accuracy",
        "augmentation_views",
        "precision",
        "on_bad_data",
        "max_bad_fraction",
        "max_pixels",
        "group_by",
        "calibrate",
        "trust_backbone",
        "checkpoint_seconds",
        "max_seconds",
    }
)
# What an optimizer uses that takes steps; a head that is solved has no use for it.
OF_STEPS = frozenset(
    {
        "epochs",
        "learning_rate",
        "batch_size",
        "schedule",
        "warmup_steps_fraction",
        "beta_1",
        "beta_2",
        "epsilon",
        "dropout_rate",
        "regularizers_l2",
        "label_smoothing",
        "early_stopping",
        "early_stopping_patience",
        "early_stopping_min_delta",
        "eval_metric",
        "checkpoint_seconds",
        "max_seconds",
    }
)

FIELDS: Mapping[str, FieldInfo] = Hyperparameters.model_fields
NAMES = tuple(FIELDS)
PLURALS = {"image": "photos", "text": "texts"}
TEXT_ADAMW_WARMUP = 0.1


def canonical(name: str) -> str:
    """Returns the table's spelling of a name: underscores, lower case, aliases resolved.

    >>> canonical("train-only-on-top-layer")
    'train_only_top_layer'
    """
    name = name.strip().replace("-", "_").lower()
    return ALIASES.get(name, name)


def parse(raw: Mapping[str, object], task: str | None = None) -> dict[str, Any]:
    """Returns the typed values of the hyperparameters that were given.

    Values may be strings as SageMaker sends them: "True"/"true", "3", JSON-encoded once more ('"adam"'), or empty,
    which means not given.

    Raises:
        HyperparameterError: names every unknown name, unparsable value, value out of range and clash at once.
    """
    values: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    problems = []
    for name, value in raw.items():
        key = canonical(name)
        if key not in FIELDS:
            problems.append(_unknown(name))
            continue
        only = _extra(key)["task"]
        if task is not None and only not in (None, task):
            problems.append(f"{name}: it is for {PLURALS[only]} only, and the training channel holds {PLURALS[task]}")
            continue
        text = _unquoted(value, key)
        if text is None:
            continue
        try:
            typed = _typed(key, text)
        except pydantic.ValidationError:
            problems.append(
                f"{name}: expected {expected(key)}; received {_clipped(text)!r}{_did_you_mean(text, choices(key))}"
            )
            continue
        if key in values and values[key] != typed:
            problems.append(f"{name}: given twice, as {spelt[key]}={values[key]} and {name}={typed}; give it once")
        values[key], spelt[key] = typed, name
    problems += _clashes(values)
    if problems:
        many = f"{len(problems)} hyperparameters are wrong: " if len(problems) > 1 else "Wrong hyperparameter: "
        raise HyperparameterError(many + _fitting(problems) + ".")
    return values


def resolve(
    given: Mapping[str, Any],
    card: Mapping[str, Any],
    whole: Mapping[str, Any] | None = None,
    task: str = "image",
) -> tuple[Hyperparameters, dict[str, str]]:
    """Returns all settings, and for each where it came from.

    Args:
        given: What `parse` returned: the user's values.
        card: Values that the backbone's catalog card brings; they stand between the user's and the table's.
        whole: Values that the card brings where the backbone is trained whole; they go before `card` then.
        task: "image" or "text", which some defaults depend on.

    Returns:
        The settings, and for each name "user", "card" or "default".
    """
    defaults = {name: _extra(name)["text_default"] for name in NAMES} if task == "text" else {}
    if whole and not Hyperparameters(**{**defaults, **card, **given}).train_only_top_layer:
        card = {**card, **whole}
    settings = Hyperparameters(**{**defaults, **card, **given})
    if task == "text" and settings.optimizer == "adamw" and "warmup_steps_fraction" not in {**card, **given}:
        settings = settings.model_copy(update={"warmup_steps_fraction": TEXT_ADAMW_WARMUP})
    sources = {name: "user" if name in given else "card" if name in card else "default" for name in NAMES}
    return settings, sources


def default(name: str, task: str) -> Any:
    """Returns the table's default of a hyperparameter for a task."""
    return _extra(name)["text_default"] if task == "text" else FIELDS[name].default


def check_classes(values: Mapping[str, Any], class_names: Sequence[str]) -> None:
    """Compares binary_mode with the number of classes.

    Raises:
        HyperparameterError: It is on, and there are not two.
    """
    if values.get("binary_mode") and len(class_names) != 2:
        raise HyperparameterError(
            f"binary_mode: expected two classes in the training channel; received {len(class_names)}: "
            f"{listed(class_names)}. Leave it off."
        )


def without_effect(settings: Hyperparameters, given: Iterable[str]) -> list[str]:
    """Returns a line for each setting that the user gave and that changes nothing in this run."""
    given, lines = list(given), []
    idle = [name for name in given if name in OF_STEPS] if is_solved(settings) else []
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        lines.append(
            f"{listed(idle, limit=len(OF_STEPS))} {verb} no effect: optimizer=auto solves the head of a frozen "
            "backbone in one go; name an optimizer, such as optimizer=adam, to train it in epochs"
        )
    for name in (name for name in given if name not in idle):
        for other, allowed in _extra(name)["used_when"].items():
            if getattr(settings, other) not in allowed:
                needed = " or ".join(str(value) for value in allowed)
                lines.append(
                    f"{name} has no effect: {other} is {getattr(settings, other)}, and it is used with {needed}"
                )
    return lines


def is_solved(settings: Hyperparameters) -> bool:
    """Returns whether the head is solved rather than trained in epochs."""
    return settings.optimizer == "auto" and settings.train_only_top_layer


def is_switch(name: str) -> bool:
    """Returns whether a hyperparameter is True or False, so that its bare flag means True."""
    return canonical(name) in FIELDS and _kind(canonical(name)) is bool


def choices(name: str) -> tuple[str, ...]:
    """Returns the valid values of a hyperparameter of choice, or nothing for any other."""
    kind = _kind(name)
    return tuple(str(value) for value in typing.get_args(kind)) if typing.get_origin(kind) is Literal else ()


def expected(name: str) -> str:
    """Returns what a hyperparameter accepts, in words.

    >>> expected("dropout_rate"), expected("batch_size"), expected("schedule")
    ('a number from 0 to 1', 'an integer of 1 or more', 'one of constant | cosine')
    """
    kind = _kind(name)
    if kind is bool:
        return "True or False"
    if kind is str:
        return "text"
    if choices(name):
        return "one of " + " | ".join(choices(name))
    noun = "an integer" if kind is int else "a number"
    bounds = {type(rule).__name__: rule for rule in _rules(name)}
    low = getattr(bounds.get("Ge"), "ge", None)
    high = getattr(bounds.get("Le"), "le", None)
    return f"{noun} from {low} to {high}" if high is not None else f"{noun} of {low} or more"


def table() -> list[dict[str, str]]:
    """Returns the table as rows of text: name, task (image, text or both), accepts, default, text_default (where it is
    another), meaning, and source (built-in or added)."""
    rows = []
    for name, field in FIELDS.items():
        extra = _extra(name)
        default, text_default = (_shown(value) for value in (field.default, extra["text_default"]))
        rows.append(
            {
                "name": name,
                "task": extra["task"] or "both",
                "accepts": expected(name),
                "default": default,
                "text_default": "" if text_default == default else text_default,
                "meaning": field.description or "",
                "source": "added" if name in ADDED else "built-in",
            }
        )
    return rows


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _extra(name: str) -> Mapping[str, Any]:
    return typing.cast("Mapping[str, Any]", FIELDS[name].json_schema_extra)


def _kind(name: str) -> Any:
    """Returns the field's type without the `| None` and without its bounds."""
    kind = _without_none(name)
    return typing.get_args(kind)[0] if typing.get_origin(kind) is typing.Annotated else kind


def _rules(name: str) -> list[Any]:
    """Returns the field's bounds, wherever pydantic keeps them."""
    kind = _without_none(name)
    inner = typing.get_args(kind)[1].metadata if typing.get_origin(kind) is typing.Annotated else []
    return [*FIELDS[name].metadata, *inner]


def _without_none(name: str) -> Any:
    annotation = FIELDS[name].annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _unquoted(value: object, key: str) -> str | None:
    """Returns the text inside any layers of JSON quotes; None where the value means "not given"."""
    text = "null" if value is None else str(value).strip()
    while len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            text = str(json.loads(text)).strip()
        except ValueError:
            break
    if text.lower() in {"null", "none"}:
        return "None" if "None" in choices(key) else ("none" if "none" in choices(key) else None)
    return text or None


def _typed(key: str, text: str) -> Any:
    by_lower_case = {choice.lower(): choice for choice in choices(key)}
    text = by_lower_case.get(text.lower().replace(" ", "") if key == "pixel_range" else text.lower(), text)
    return getattr(Hyperparameters.model_validate({key: text}), key)


def _clashes(values: Mapping[str, Any]) -> list[str]:
    metric = values.get("eval_metric", "accuracy")
    if metric != "accuracy" and not values.get("binary_mode", False):
        return [f"eval_metric: {metric} needs binary_mode=True; received binary_mode=False; use accuracy or set it"]
    return []


def _fitting(problems: list[str], room: int = 900) -> str:
    """Returns as many problems as fit in `room` characters: all of them unless there are very many."""
    shown = next((n for n in range(len(problems), 1, -1) if len("; ".join(problems[:n])) <= room), 1)
    return listed(problems, limit=shown, separator="; ")


def _unknown(name: str) -> str:
    return f"{_clipped(name)}: no such hyperparameter{_did_you_mean(canonical(name), [*NAMES, *ALIASES])}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    spelt = {name.lower(): name for name in known}
    close = difflib.get_close_matches(_clipped(word.lower()), list(spelt), n=1)
    return f" (did you mean {ALIASES.get(close[0], spelt[close[0]])}?)" if close else ""


def _clipped(text: str, limit: int = 80) -> str:
    """Returns a text of the user's that leaves room for the rest of the message."""
    return text if len(text) <= limit else text[:limit] + "..."
