"""The instance types that SageMaker trains on, and how many GPUs each has."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Collection

from tf_finetune.errors import UsageError, listed

# Sizes of each family; a number is that of GPUs where a size has not as many as the one before it.
_G5 = "xlarge=1 2xlarge 4xlarge 8xlarge 16xlarge 12xlarge=4 24xlarge 48xlarge=8"
_WITH_GPUS = {
    "p2": "xlarge=1 8xlarge=8 16xlarge=16",
    "p3": "2xlarge=1 8xlarge=4 16xlarge=8",
    "p3dn": "24xlarge=8",
    "p4d": "24xlarge=8",
    "p4de": "24xlarge=8",
    "p5": "4xlarge=1 48xlarge=8",
    "p5e": "48xlarge=8",
    "p5en": "48xlarge=8",
    "p6-b200": "48xlarge=8",
    "p6-b300": "48xlarge=8",
    "p6e-gb200": "36xlarge=4",
    "g4dn": "xlarge=1 2xlarge 4xlarge 8xlarge 16xlarge 12xlarge=4",
    "g5": _G5,
    "g6": _G5,
    "g6e": _G5,
    "g7e": "2xlarge=1 4xlarge 8xlarge 12xlarge=2 24xlarge=4 48xlarge=8",
}
_SIX = "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 32xlarge"
_SEVEN = "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge 48xlarge"
_FIVE = "large xlarge 2xlarge 4xlarge 8xlarge 12xlarge 16xlarge 24xlarge"
_WITHOUT_GPUS = {
    "c4": "xlarge 2xlarge 4xlarge 8xlarge",
    "c5": "xlarge 2xlarge 4xlarge 9xlarge 18xlarge",
    "c5n": "xlarge 2xlarge 4xlarge 9xlarge 18xlarge",
    "c6i": _SIX.removeprefix("large "),
    "c7i": _SEVEN,
    "m4": "xlarge 2xlarge 4xlarge 10xlarge 16xlarge",
    "m5": "large xlarge 2xlarge 4xlarge 12xlarge 24xlarge",
    "m6i": _SIX,
    "m7i": _SEVEN,
    "r5": _FIVE,
    "r5d": _FIVE,
    "r6i": _SIX,
    "r7i": _SEVEN,
    "t3": "medium large xlarge 2xlarge",
}
FORM = re.compile(r"ml\.([a-z][a-z0-9-]*)\.([a-z0-9]+)")
# Families with a disk of their own, which SageMaker encrypts itself and takes no key for.
_OWN_DISK = re.compile(r"(p[5-9]|g[5-9]|trn)|[a-z]+\d+[a-z]*d")


@functools.cache
def table() -> dict[str, int]:
    """Returns the GPUs of each instance type.

    >>> table()["ml.g5.12xlarge"], table()["ml.g5.24xlarge"], table()["ml.m5.large"]
    (4, 4, 0)
    """
    found = {}
    for family, sizes in {**_WITH_GPUS, **_WITHOUT_GPUS}.items():
        gpus = 0
        for cell in sizes.split():
            size, _, number = cell.partition("=")
            gpus = int(number or gpus)
            found[f"ml.{family}.{size}"] = gpus
    return found


def gpus(instance_type: str, others: Callable[[], Collection[str]]) -> int | None:
    """Returns the GPUs of an instance type; None for one that the table lacks and AWS may have.

    A new family passes, for AWS adds them; a size that a known family lacks is taken for a slip.

    Args:
        instance_type: As the user wrote it, e.g. "ml.g5.12xlarge".
        others: Called for what else is known to exist, where the table does not have the type.

    Raises:
        UsageError: There is no such type.
    """
    known = table()
    if instance_type in known:
        return known[instance_type]
    form = FORM.fullmatch(instance_type)
    if form and instance_type in others():
        return None
    families = {name.split(".")[1] for name in known}
    if form and form[1] not in families and not difflib.get_close_matches(form[1], families, n=1, cutoff=0.75):
        return None
    same = [name for name in known if name.split(".")[1] in instance_type.split(".")]
    close = difflib.get_close_matches(instance_type, known, n=3, cutoff=0.7)
    hint = f" Did you mean {listed(list(dict.fromkeys(close + same)))}?" if close or same else ""
    raise UsageError(
        f"--instance-type: expected a type of SageMaker's such as ml.g5.xlarge or ml.m5.xlarge; received "
        f"{instance_type[:80]!r}.{hint} (If AWS has had it since: pip install --upgrade boto3.)"
    )


def has_own_disk(instance_type: str) -> bool:
    """Returns whether the type has a local disk, for which SageMaker takes no key.

    >>> has_own_disk("ml.g5.xlarge"), has_own_disk("ml.r5d.large"), has_own_disk("ml.p3.2xlarge")
    (True, True, False)
    """
    return bool(_OWN_DISK.match(instance_type.split(".")[1] + "."))
