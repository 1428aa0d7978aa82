"""What SageMaker refuses in a request, told before anything is uploaded."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Mapping

from tf_finetune.errors import UsageError, listed
from tf_finetune.launch.defaults import Defaults

MAX_RUN = 24 * 60 * 60  # Seconds; SageMaker's own default.
LONGEST_RUN = 28 * 24 * 60 * 60
VOLUME_SIZE = 30  # GB, as in the SDK.
MAX_SUBNETS, MAX_GROUPS = 16, 5
MAX_TAGS, MAX_VARIABLES = 50, 100


def whole(flag: str, text: str | None) -> int | None:
    """Returns a number of 1 or more, or None where none was given.

    Raises:
        UsageError: It is something else.
    """
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise UsageError(f"{flag}: expected an integer of 1 or more; received {text!r}.")
    return int(text)


def times(spot: bool, max_run: str | None, max_wait: str | None) -> tuple[int, int | None]:
    """Returns the seconds that a job may train, and those that it may take in all where it waits for spot instances.

    Raises:
        UsageError: They are no seconds, or do not go together.

    >>> times(True, "3600", None), times(False, None, None)
    ((3600, 7200), (86400, None))
    """
    run = whole("--max-run", max_run) or MAX_RUN
    wait = whole("--max-wait", max_wait)
    if run > LONGEST_RUN:
        raise UsageError(f"--max-run: SageMaker trains for up to {LONGEST_RUN} seconds (28 days); received {run}.")
    if not spot:
        if wait is not None:
            raise UsageError("--max-wait is for spot instances. Give --spot too, or leave it away.")
        return run, None
    if wait is not None and wait < run:
        raise UsageError(
            f"--max-wait: expected at least --max-run, which is {run} seconds, as it counts waiting and training; "
            f"received {wait}."
        )
    return run, wait or 2 * run


def network(flags: argparse.Namespace, defaults: Defaults) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the subnets and the security groups of the job's VPC, both or none.

    Raises:
        UsageError: There is one without the other, too many, or what is no id.
    """
    subnets = tuple(flags.subnets or defaults.subnets)
    groups = tuple(flags.security_group_ids or defaults.security_group_ids)
    if bool(subnets) != bool(groups):
        given, missing = ("--subnets", "--security-group-ids") if subnets else ("--security-group-ids", "--subnets")
        raise UsageError(f"{given} without {missing}: SageMaker takes both or none. Give {missing} too.")
    for flag, ids, most in (("--subnets", subnets, MAX_SUBNETS), ("--security-group-ids", groups, MAX_GROUPS)):
        wrong = [text for text in ids if not re.fullmatch(r"[-0-9a-zA-Z]{1,32}", text)]
        if wrong or len(ids) > most:
            raise UsageError(f"{flag}: expected up to {most} ids; received {listed(wrong) if wrong else len(ids)}.")
    return subnets, groups


def key(text: str | None) -> None:
    """Raises UsageError for what cannot be a KMS key's id, ARN or alias."""
    if text is not None and not re.fullmatch(r"[a-zA-Z0-9:/_-]{1,2048}", text):
        raise UsageError(f"--kms-key: expected a key's id, ARN or alias/NAME; received {text[:200]!r}.")


def pairs(flag: str, flags: argparse.Namespace) -> dict[str, str]:
    """Returns the pairs of a flag that takes KEY=VALUE several times.

    Raises:
        UsageError: There is no equals sign, or a key twice.
    """
    found: dict[str, str] = {}
    for word in getattr(flags, flag.strip("-").replace("-", "_")) or []:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{flag}: expected KEY=VALUE; received {word[:200]!r}.")
        if name in found:
            raise UsageError(f"{flag}: {name[:200]} is given twice. Give it once.")
        found[name] = value
    return found


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables as they are.

    Raises:
        UsageError: SageMaker takes no such names, values or numbers of them.
    """
    wrong = [name[:80] for name in variables if not re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_]{0,511}", name)]
    wrong += [f"the value of {name[:80]}" for name, value in variables.items() if len(value) > 512]
    if wrong or len(variables) > MAX_VARIABLES:
        raise UsageError(
            f"--environment: SageMaker takes up to {MAX_VARIABLES} variables, whose names are letters, digits and _, "
            f"and up to 512 characters each; received {listed(wrong) if wrong else len(variables)}."
        )
    return dict(variables)


def tags(given: Mapping[str, str]) -> dict[str, str]:
    """Returns the tags as they are.

    Raises:
        UsageError: AWS takes no such keys, values or numbers of them.
    """
    wrong = [name[:80] for name, value in given.items() if not _is_tag(name, value)]
    if wrong or len(given) > MAX_TAGS:
        raise UsageError(
            f"--tags: AWS takes up to {MAX_TAGS} tags, with keys of 1 to 128 and values of up to 256 letters, digits, "
            f"spaces and _.:/=+-@, and keys beginning with aws: are its own; received "
            f"{listed(wrong) if wrong else len(given)}."
        )
    return dict(given)


def _is_tag(name: str, value: str) -> bool:
    is_long = not 1 <= len(name) <= 128 or len(value) > 256
    return not is_long and not name.lower().startswith("aws:") and all(map(_is_tag_letter, name + value))


def _is_tag_letter(letter: str) -> bool:
    return letter in "_.:/=+-@" or unicodedata.category(letter)[0] in "LZN"
