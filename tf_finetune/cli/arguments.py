"""What the words of the command line mean: flags, values, and hyperparameters in SageMaker's spellings."""

from __future__ import annotations

import argparse
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tf_finetune import environment
from tf_finetune.errors import UsageError

log = logging.getLogger(__name__)

MOST_MILLISECONDS = 10_000
BARE = "\0"  # A flag without a value; it cannot come from a shell.


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raises the message instead of exiting with code 2."""
        raise UsageError(f"{message}. See `{self.prog} --help`.")


def tied(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with values such as -1,1 tied to their flags: argparse would take them for flags."""
    words: list[str] = []
    for word in arguments:
        if words and re.match(r"-[.\d]", word) and re.fullmatch(r"--[\w-]+", words[-1]):
            words[-1] += f"={word}"
        else:
            words.append(word)
    return words


def hyperparameters_given(
    flags: argparse.Namespace, rest: Sequence[str], place: environment.Environment
) -> dict[str, Any]:
    """Returns SageMaker's hyperparameters, overridden by the command line's; unknown flags are among them."""
    typed = {name[3:]: values[-1] for name, values in vars(flags).items() if name.startswith("hp:") and values}
    typed.update(_pairs(rest))
    from tf_finetune import hyperparameters

    canonical = hyperparameters.canonical
    # SageMaker's toolkit drops an empty value and keeps its flag; the empty value itself is in its JSON.
    empty = {canonical(name) for name, value in place.hyperparameters.items() if value in ("", None)}
    overridden = {canonical(name) for name, value in typed.items() if value != BARE or canonical(name) not in empty}
    given = {name: value for name, value in place.hyperparameters.items() if canonical(name) not in overridden}
    for name, value in typed.items():
        reason = environment.reason_to_ignore(name)
        if reason:
            log.info("--%s is ignored: %s", name, reason)
            continue
        if canonical(name) in overridden:
            bare = "True" if hyperparameters.is_switch(name) else "nothing"
            given[name] = bare if value == BARE else value
    return given


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Returns flags that the parser does not know, with their values.

    Raises:
        UsageError: A word belongs to no flag.
    """
    pairs: dict[str, str] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            pairs[name] = value or BARE
        elif name is not None and pairs[name] == BARE:
            pairs[name] = word
        else:
            raise UsageError(f"unrecognized argument: {word}. Channels and settings are given as --NAME VALUE.")
    return pairs


def whole_number(flag: str, value: str | None, least: int | None = None) -> int | None:
    """Returns a flag's value as an integer, or None where it was not given."""
    if value is None:
        return None
    wanted = f"an integer of {1 if least is None else least} or more"
    return int(_bounded(flag, value, int, -math.inf if least is None else least, math.inf, wanted))


def milliseconds(flag: str, value: str) -> float:
    """Returns a flag's value, a number of milliseconds, in seconds."""
    wanted = f"milliseconds from 0 to {MOST_MILLISECONDS:,}"
    return _bounded(flag, value, float, 0, MOST_MILLISECONDS, wanted) / 1000


def fraction(flag: str, value: str) -> float:
    """Returns a flag's value, a number from 0 to 1."""
    return _bounded(flag, value, float, 0, 1, "a number from 0 to 1")


def _bounded(flag: str, value: str, kind: Callable[[str], float], least: float, most: float, wanted: str) -> float:
    """Returns a flag's value as a number.

    Raises:
        UsageError: It is none, or out of bounds.
    """
    try:
        number = kind(value)
        if least <= number <= most:
            return number
    except ValueError:
        pass
    raise UsageError(f"{flag}: expected {wanted}; received {value!r}.")
