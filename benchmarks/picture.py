"""The picture: seconds of every contender, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PANELS = {
    "frozen": ("Photos, frozen backbone", "seconds"),
    "text": ("Texts, frozen encoder", "seconds"),
    "whole": ("Whole network", "photos per second"),
}
MINE, OTHERS, REST = "#1b6ca8", "#8c96a0", 0.35  # Colours; and how pale start-up and export are.


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Writes a bar chart of the sections that were run; nothing where none of them has a panel."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "tf_finetune"  # The same bytes for the same results.
    from matplotlib import pyplot as plt

    shown = [section for section in PANELS if results["runs"].get(section)]
    if not shown:
        return
    counts = [len({run["contender"] for run in results["runs"][section]}) for section in shown]
    figure, axes = plt.subplots(
        len(shown), 1, figsize=(8, 1.2 * len(shown) + 0.32 * sum(counts)), squeeze=False, height_ratios=counts
    )
    for axis, section in zip(axes[:, 0], shown, strict=True):
        _panel(axis, results["runs"][section], *PANELS[section])
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def _panel(axis: Any, runs: Sequence[Mapping[str, Any]], title: str, unit: str) -> None:
    """Draws one bar a contender: its work dark, start-up and export pale."""
    names = list(dict.fromkeys(run["contender"] for run in runs))
    for place, name in enumerate(reversed(names)):
        mine = [run for run in runs if run["contender"] == name]
        colour = MINE if name.startswith("ours") else OTHERS
        if "photos_per_second" in mine[0]:
            work = whole = statistics.median(run["photos_per_second"] for run in mine)
        else:
            whole = statistics.median(run["seconds"] for run in mine)
            work = statistics.median(run["pass"] if "pass" in run else run["fit"] for run in mine)
            whole = work if "pass" in mine[0] else whole  # Of the bare pass, only the pass is meant.
        axis.barh(place, whole, color=colour, alpha=REST)
        axis.barh(place, work, color=colour)
        axis.text(whole, place, f" {whole:.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    dark = "" if "second" in unit and unit != "seconds" else "; dark: fit, or reading, features and head"
    axis.set_title(f"{title}: {unit}{dark}", fontsize=9, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.margins(x=0.12)
