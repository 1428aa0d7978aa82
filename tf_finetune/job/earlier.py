"""An earlier result that a job goes on from, as far as its files tell without TensorFlow.

Two layouts are known, by their content: ours, and that of SageMaker JumpStart's image classification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tf_finetune import archive, catalog, hyperparameters, storage
from tf_finetune.errors import BackboneError, ExportError, HyperparameterError, UsageError
from tf_finetune.hyperparameters import Hyperparameters

OURS, JUMPSTART = "tf_finetune", "JumpStart"
LABELS, INDICES = "labels_info.json", "class_label_to_prediction_index.json"
INFO_KEYS = frozenset({"finetuned", "pixel_scaling_method", "output_key"})  # Any of them marks JumpStart's model info.
# What an earlier result was trained with, and so is gone on with.
FIXED = ("image_size", "pixel_range", "image_resize_interpolation", "max_sequence_length")
REINITIALIZE = "reinitialize_top_layer"


@dataclasses.dataclass(frozen=True)
class Earlier:
    """An earlier result.

    Attributes:
        name: What messages call it: where its archive is, or the folder that it was unpacked to.
        layout: OURS or JUMPSTART.
        task: "image" or "text".
        class_names: In the order of its head's units; empty where it has no head that could be kept.
        is_binary: Whether one unit stands for its two classes.
        backbone: What it was made from at first; empty where that is not known.
        sha256: Of the archive, or of the folder's files and their names.
        preprocessing: How its examples were prepared, as far as it says: FIXED names to values.
        pixel_range: Values of black and white, where they are known.
        output_key: Of its serving signature; empty where it says none.
        split: random_seed, validation_split_ratio and has_channel of its job, where they are known.
        validation: Its own accuracy and loss in validation, where they are known.
    """

    name: str
    layout: str
    task: str
    class_names: tuple[str, ...]
    sha256: str
    is_binary: bool = False
    backbone: str = ""
    preprocessing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pixel_range: tuple[float, float] | None = None
    output_key: str = ""
    split: Mapping[str, Any] | None = None
    validation: Mapping[str, float] | None = None

    @property
    def has_head(self) -> bool:
        """Whether it was fine-tuned, so that its head can be kept."""
        return bool(self.class_names)


def find(place: Path, name: str, sha256: str | None = None) -> Earlier | None:
    """Returns the earlier result that an archive or a folder is, or None where it is none.

    Args:
        place: It.
        name: As messages call it.
        sha256: Of the archive that a folder was unpacked from, where it is known.

    Raises:
        BackboneError: It is one whose description is broken, or of a newer format.
    """
    try:
        files = archive.survey(place, lambda name: "/" not in name and name.endswith(".json"))
    except (ExportError, OSError):
        return None  # What is wrong with it, is said by what unpacks it.
    if not any(PurePosixPath(name).name.startswith("saved_model.pb") for name in files):
        return None
    try:
        if archive.DESCRIPTION in files:
            return _of_ours(name, sha256 or _sha256(place), _json(files[archive.DESCRIPTION]))
        info = next(filter(None, map(_info, files.values())), {})
        if info or LABELS in files or INDICES in files:
            return _of_jumpstart(name, sha256 or _sha256(place), info, files)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, HyperparameterError):
        raise BackboneError(
            f"{name} holds an earlier result whose JSON files are broken: expected class names and what tf_finetune "
            "or JumpStart writes beside 1/saved_model.pb. Fetch it anew, or give the SavedModel alone, in 1/."
        ) from None
    return None


def check(found: Earlier | None, handle: str, task: str | None, given: Mapping[str, Any]) -> None:
    """Compares an earlier result with the data and with what the user gave.

    Args:
        found: The earlier result, if the job has one.
        handle: What names the backbone.
        task: Of the training channel.
        given: The user's hyperparameters, typed.

    Raises:
        FinetuneError: It cannot be gone on from so.
    """
    if (found is None or not found.has_head) and given.get(REINITIALIZE) == "False":
        raise HyperparameterError(
            f"{REINITIALIZE}=False: expected an earlier result, whose head can be kept; received "
            f"{storage.redacted(handle)}, which was not fine-tuned. Leave it Auto, or give a model.tar.gz."
        )
    if found is None:
        return
    if task and found.task != task:
        takes, holds = hyperparameters.PLURALS[found.task], hyperparameters.PLURALS[task]
        raise UsageError(
            f"the earlier result {found.name} takes {takes}, but the training channel holds {holds}. Give one that "
            f"takes {holds}."
        )
    known = {**found.preprocessing, **_as_text(found.pixel_range)}
    for name in FIXED:
        if name in given and name in known and not _same(given[name], known[name]):
            raise HyperparameterError(
                f"{name}: expected {known[name]}, with which the earlier result {found.name} was trained; received "
                f"{given[name]}. Leave it out, or begin with a backbone instead."
            )
    if given.get("preprocessor"):
        raise HyperparameterError(f"preprocessor: the earlier result {found.name} has its own. Leave it out.")
    if found.layout == JUMPSTART and given.get("train_only_top_layer") is False:
        raise HyperparameterError(
            f"train_only_top_layer=False: the model in JumpStart's layout, {found.name}, can only be used frozen: its "
            "graph has no training mode. Set train_only_top_layer=True, or begin with a backbone."
        )


def resolved(
    values: Mapping[str, Any],
    card: catalog.Card | None,
    found: Earlier | None,
    task: str,
    class_names: Sequence[str] | None,
) -> tuple[Hyperparameters, dict[str, str]]:
    """Returns all settings and their sources: an earlier result's go before those of the card that it was made from.

    Args:
        values: The user's hyperparameters, typed.
        card: Of the backbone, if it has one.
        found: The earlier result, if the job has one.
        task: Of the training channel.
        class_names: Of the head that is kept and of training, as far as they are known.
    """
    if found is None:
        of_card = (card.defaults, card.whole_defaults) if card else ({}, {})
        return hyperparameters.resolve(values, *of_card, task)
    kept = {name: value for name, value in found.preprocessing.items() if value is not None}
    kept |= {"binary_mode": True} if found.is_binary and len(class_names or ()) == 2 else {}
    card = catalog.find(found.backbone)
    brought, whole = ({**card.defaults, **kept}, {**card.whole_defaults, **kept}) if card else (kept, {})
    settings, sources = hyperparameters.resolve(values, brought, whole, task)
    return settings, {name: "earlier" if name in kept and at == "card" else at for name, at in sources.items()}


def union(found: Earlier | None, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes of an earlier result and of training, in the order of the head's units.

    A set that holds the other gives the order; two that do not are sorted, numbers as numbers.
    """
    old, new = (found.class_names if found else ()), tuple(class_names)
    if set(old) <= set(new):
        return new
    if set(new) <= set(old):
        return old
    return tuple(sorted({*old, *new}, key=int if all(map(_is_integer, {*old, *new})) else str))


def _of_ours(name: str, sha256: str, told: Mapping[str, Any]) -> Earlier:
    version = told["format_version"]
    if version not in archive.FORMATS:
        raise BackboneError(
            f"{name} has format {version}; this tf_finetune goes on from {archive.FORMATS[-1]}. Install a newer one."
        )
    task = told["task"]
    if task not in hyperparameters.PLURALS:
        raise ValueError(task)
    prepared = {name: value for name, value in told["preprocessing"].items() if value is not None}
    prepared |= {"image_resize_interpolation": prepared.pop("interpolation")} if "interpolation" in prepared else {}
    pixels = prepared.pop("pixel_range", None)
    if not set(prepared) <= set(FIXED):
        raise ValueError(prepared)
    return Earlier(
        name=name,
        layout=OURS,
        task=task,
        class_names=_names(told["class_names"]),
        sha256=sha256,
        is_binary=bool(told["binary_mode"]),
        backbone=str(told["backbone"]),
        preprocessing=hyperparameters.parse(prepared, task),
        pixel_range=None if pixels is None else (float(pixels[0]), float(pixels[1])),
        split=told.get("split"),
        validation=told.get("validation"),
    )


def _of_jumpstart(name: str, sha256: str, info: Mapping[str, Any], files: Mapping[str, bytes]) -> Earlier:
    names: tuple[str, ...] = ()
    if str(info.get("finetuned", True)).lower() == "true":
        if LABELS in files:
            names = _names(_json(files[LABELS])["labels"])
        elif INDICES in files:
            indices = _json(files[INDICES])
            names = _names(sorted(indices, key=lambda name: indices[name]))
            if sorted(indices.values()) != list(range(len(names))):
                raise ValueError(indices)
    return Earlier(name, JUMPSTART, "image", names, sha256, output_key=str(info.get("output_key") or ""))


def _names(given: Any) -> tuple[str, ...]:
    names = tuple(str(name) for name in given)
    if isinstance(given, str) or len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(given)
    return names


def _info(content: bytes) -> Mapping[str, Any]:
    """Returns JumpStart's model info where a file holds it; its name varies."""
    try:
        told = _json(content)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and INFO_KEYS & set(told) and "format_version" not in told else {}


def _json(content: bytes) -> Any:
    return json.loads(content.decode("utf-8"))


def _sha256(place: Path) -> str:
    if place.is_file():
        return storage.sha256(place)
    files = sorted(file for file in place.rglob("*") if file.is_file() and _is_of_model(file.relative_to(place)))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(place).as_posix()}\0{storage.sha256(file)}\0".encode())
    return digest.hexdigest()


def _is_of_model(file: Path) -> bool:
    return len(file.parts) > 1 and file.parts[0] != "code" or file.suffix in (".json", ".pb")


def _as_text(pixel_range: tuple[float, float] | None) -> dict[str, str]:
    return {} if pixel_range is None else {"pixel_range": ",".join(f"{value:g}" for value in pixel_range)}


def _same(one: Any, other: Any) -> bool:
    return str(one) == str(other)


def _is_integer(name: str) -> bool:
    return name.lstrip("-").isdecimal()
