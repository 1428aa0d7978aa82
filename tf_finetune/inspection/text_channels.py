"""Channels of texts: good rows are examples, the others are listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_finetune import catalog
from tf_finetune.errors import HyperparameterError
from tf_finetune.examples import TRAINING, Examples, grouping, rows, texts
from tf_finetune.examples.records import counted
from tf_finetune.hyperparameters import Hyperparameters
from tf_finetune.inspection import duplicates, findings
from tf_finetune.inspection.records import WARNING, Finding, Inspection, Unusable

NOUN = "text"
THIRD_COLUMN = "third_column"
DEFAULT_LENGTH = 128  # Tokens.
SPECIAL = 2  # Tokens of a BERT-like encoder that are no words: at the start and at the end.


def examine(
    channels: Mapping[str, Path], settings: Hyperparameters, scratch: Path, known: Sequence[str] = ()
) -> Inspection:
    """Returns the texts of all channels, and what is wrong with them; see `inspection.examine`."""
    if settings.group_by not in (None, THIRD_COLUMN):
        raise HyperparameterError(f"group_by: expected {THIRD_COLUMN} for texts; received {settings.group_by[:80]!r}.")
    parts: dict[str, Examples] = {}
    unusable: list[Unusable] = []
    read = {}
    for channel, place in channels.items():
        file = texts.locate(place, channel)
        # Groups matter to the split, which is of training; other channels may have them or not.
        columns = (2,) if settings.group_by is None else (3,) if channel == TRAINING else (2, 3)
        good, bad = rows.read_leniently(file, columns)
        training = parts.get(TRAINING, Examples((), ()))
        names = tuple(dict.fromkeys((*training.class_names, *known))) if training.class_names else None
        part = texts.labelled(file, good, names, channel, training.number_names)
        parts[channel], read[channel] = part, len(good) + len(bad)
        for row in bad:
            label = texts.class_name_of(row.label, part) if row.label else ""
            unusable.append(Unusable(channel, f"{file.name}:{row.line}", label, row.kind, f"it {row.reason}"))
    contents = {example.digest: str(example.content) for part in parts.values() for example in part.items}
    groups = grouping.groups(duplicates.near_texts(contents))
    told = [*findings.of_unusable(unusable, NOUN), *findings.of_data(parts, groups, NOUN), *_too_long(parts, settings)]
    return Inspection(parts, tuple(unusable), tuple(told), groups, read)


def _too_long(parts: Mapping[str, Examples], settings: Hyperparameters) -> list[Finding]:
    """Returns the finding of texts that a BERT-like encoder cuts; others read texts of any length.

    Words are counted, since only the encoder's own vocabulary tells its tokens; a word is one token or more.
    """
    card = catalog.find(settings.backbone)
    # BERT-like cards are those with a preprocessor, or with settings of their own for training them whole.
    if not (settings.preprocessor or card and (card.preprocessor or card.whole_defaults)):
        return []
    length = settings.max_sequence_length or DEFAULT_LENGTH
    ids = [
        f"{channel}/{example.id}"
        for channel, part in parts.items()
        for example in part.items
        if len(str(example.content).split()) > length - SPECIAL
    ]
    if not ids:
        return []
    detail = (
        f"at least {counted(len(ids), NOUN)} cut: more words than the {length - SPECIAL} tokens that are read of each "
        "(max_sequence_length); a word may be several tokens, so there may be more"
    )
    return [Finding(WARNING, "too_long", tuple(sorted(ids, key=findings.natural)), detail)]
