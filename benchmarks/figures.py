"""The figures: ratios of runs of the same repeat, each with its goal where there is one."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from measuring import Run


@dataclass(frozen=True)
class Goal:
    """What a figure should be.

    Attributes:
        bound: The value.
        at_most: Whether it is an upper bound, else a lower one.
    """

    bound: float
    at_most: bool

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        section: What it belongs to.
        what: Says which is divided by which.
        values: One for each repeat.
        unit: "" for a ratio, else what follows the number.
        goal: None where it only informs.
        is_mean: Whether the mean of the values counts, as for accuracies; else their median.
    """

    section: str
    what: str
    values: tuple[float, ...]
    unit: str = ""
    goal: Goal | None = None
    is_mean: bool = False

    @property
    def value(self) -> float:
        """The median, or the mean, over the repeats."""
        return statistics.mean(self.values) if self.is_mean else statistics.median(self.values)

    @property
    def is_met(self) -> bool | None:
        """Whether the value reaches the goal; None without one."""
        if self.goal is None:
            return None
        return self.value <= self.goal.bound if self.goal.at_most else self.value >= self.goal.bound

    @property
    def verdict(self) -> str:
        """Says whether the goal is met, or by how much it is missed; nothing where there is none.

        >>> Figure("", "", (1.5,), goal=at_most(1.25)).verdict
        'missed by 20 %'
        """
        if self.goal is None:
            return ""
        if self.is_met:
            return "met"
        gap = abs(self.value - self.goal.bound)
        return f"missed by {100 * gap / self.goal.bound:.0f} %" if self.goal.bound else f"missed by {gap:.4f}"

    def as_json(self) -> dict[str, Any]:
        """Returns the record as results.json holds it."""
        goal = str(self.goal) if self.goal else None
        return {**dataclasses.asdict(self), "goal": goal, "value": self.value, "is_met": self.is_met}


def at_most(bound: float) -> Goal:
    """Returns an upper bound."""
    return Goal(bound, True)


def at_least(bound: float) -> Goal:
    """Returns a lower bound."""
    return Goal(bound, False)


Value = Callable[[Run], float]


def ratio(
    section: str,
    runs: Sequence[Run],
    what: str,
    above: tuple[str, Value],
    below: tuple[str, Value],
    goal: Goal | None = None,
) -> list[Figure]:
    """Returns the figure of one contender's value over another's, repeat by repeat; none where either is missing."""
    tops, bottoms = (
        {run["repeat"]: value(run) for run in runs if run["contender"] == name} for name, value in (above, below)
    )
    both = sorted(tops.keys() & bottoms.keys())
    values = tuple(tops[repeat] / bottoms[repeat] for repeat in both if bottoms[repeat])
    return [Figure(section, what, values, goal=goal)] if values else []


def accuracy_difference(
    section: str, runs: Sequence[Run], mine: str, other: str, goal: Goal | None = None, value: str = "accuracy"
) -> list[Figure]:
    """Returns the mean over the repeats by which one contender's accuracy is above another's; none without both.

    Args:
        section: Of the figure.
        runs: All.
        mine: The contender whose accuracy it is.
        other: The one that it is compared with.
        goal: Of the difference.
        value: Which of the other's accuracies: that of its last epoch, which it hands over, or its best_accuracy.
    """
    ours, theirs = (
        {run["repeat"]: run[name] for run in runs if run["contender"] == contender}
        for contender, name in ((mine, "accuracy"), (other, value))
    )
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return []
    means = [statistics.mean(of[repeat] for repeat in both) for of in (ours, theirs)]
    whose = f"{other}'s best epoch by validation" if value == "best_accuracy" else other
    what = f"accuracy, {mine} minus {whose} ({means[0]:.4f} and {means[1]:.4f}, mean of {len(both)})"
    return [Figure(section, what, tuple(ours[repeat] - theirs[repeat] for repeat in both), goal=goal, is_mean=True)]
