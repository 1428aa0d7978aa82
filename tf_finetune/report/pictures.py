"""The pictures of the report, as SVG: the confusion matrix, the reliability diagram and the curves.

matplotlib never sees what users name; it draws place holders, so that neither its mathtext nor a glyph that its fonts
lack can break a picture.
"""

from __future__ import annotations

import html
import io
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED_CLASSES = 40  # With more classes the confusion matrix is drawn without their names,
COUNTED_CLASSES = 16  # and with more than these without the counts.
LABEL_COLUMNS = 24  # Longest class name in a picture; a wide glyph takes two columns.
MARKED_EPOCHS = 20  # With more epochs a curve has no dots.
FONT_SIZE = 9.0  # Points, in pictures.

# matplotlib draws in these colours, and the page's style sheet says what they are, by day and by night.
COLOURS = {"#010101": "var(--ink)", "#020202": "var(--muted)", "#030303": "var(--line)", "#040404": "var(--accent)"}
INK, MUTED, LINE, ACCENT = COLOURS
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "tf_finetune", "font.size": FONT_SIZE}
HEAT = (0.22, 0.46, 0.84)  # Red, green, blue in [0, 1]: seen on white and on black, more or less opaque.
DARK_HEAT = 0.55  # The opacity from which white text is read better on it.


def confusion_picture(matrix: Sequence[Sequence[int]], class_names: Sequence[str], name: str) -> Markup | None:
    """Returns the confusion matrix as SVG, or None where there is none.

    Each row is shaded by its own total, so that rare classes are seen as well as common ones.
    """
    if not matrix:
        return None
    import numpy as np

    size, named = len(matrix), len(matrix) <= LABELLED_CLASSES
    labels = [short(class_name) for class_name in class_names]
    side = max(2.2, (0.46 if size <= COUNTED_CLASSES else 0.21) * size) if named else 5.0
    margin = 0.35 + (0.12 + 0.56 * FONT_SIZE / 72 * max(map(columns, labels)) if named else 0.0)
    figure, axes = canvas((margin, margin, side, side), edge=0.05)
    counts = np.asarray(matrix, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(np.dstack([*(np.full_like(shares, channel) for channel in HEAT), shares]), interpolation="none")
    lines = np.arange(0, size + 1, 1 if named else size) - 0.5  # Between the classes, or round them all.
    axes.set_xticks(lines, minor=True)
    axes.set_yticks(lines, minor=True)
    axes.grid(which="minor", color=LINE, linewidth=0.6)
    if size <= COUNTED_CLASSES:
        for (row, column), times in np.ndenumerate(counts.astype(int)):
            colour = "white" if shares[row, column] >= DARK_HEAT else INK if times else MUTED
            axes.text(column, row, f"{times}", ha="center", va="center", color=colour)
    held = [f"name-{k}" for k in range(size if named else 0)]
    axes.set_xticks(range(len(held)), held, rotation=90, ha="right", va="center", rotation_mode="anchor")
    axes.set_yticks(range(len(held)), held)
    axes.tick_params(which="both", length=0, pad=5, labelcolor=INK)
    middle = (margin + side / 2) / (margin + side + 0.05)
    figure.text(middle, 0, "predicted class", ha="center", va="bottom", color=MUTED)
    figure.text(0, middle, "true class", ha="center", va="top", rotation=90, rotation_mode="anchor", color=MUTED)
    picture = svg(figure, f"confusion-{name}", "Confusion matrix: true classes down, predicted classes across")
    return type(picture)(re.sub(r">name-(\d+)<", lambda held: f">{html.escape(labels[int(held[1])])}<", picture))


def reliability_picture(bins: Sequence[Mapping[str, Any]], name: str) -> Markup | None:
    """Returns how often answers of each probability were right, and how many there were, as SVG; None without any.

    Args:
        bins: Ranges of probability that have examples: `low`, `high`, mean `confidence` and `accuracy` in [0, 1], and
            `count` of examples.
        name: Of the part of the data.
    """
    keys = ("low", "high", "confidence", "accuracy", "count")
    points = [[held[key] for key in keys] for held in bins if all(held.get(key) is not None for key in keys)]
    if not points:
        return None
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    lows, highs, confidences, accuracies, counts = zip(*points, strict=True)
    widths = [high - low for low, high in zip(lows, highs, strict=True)]
    figure, axes = canvas((0.55, 1.4, 3.4, 2.6), edge=0.35)
    axes.bar(lows, accuracies, widths, align="edge", color=ACCENT, alpha=0.3)
    axes.plot((0, 1), (0, 1), "--", color=MUTED, linewidth=1, label="as it should be")
    sizes = [12 + 60 * times / max(1, *counts) for times in counts]  # Square points: few examples say little.
    axes.scatter(confidences, accuracies, sizes, color=ACCENT, label="as it was", clip_on=False, zorder=3)
    axes.set_title(f"{name.capitalize()}: how often it was right", loc="left", color=INK, fontweight="bold")
    axes.legend(frameon=False, labelcolor=INK, loc="upper left")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    across, up = figure.get_size_inches()
    below = figure.add_axes((0.55 / across, 0.5 / up, 3.4 / across, 0.6 / up), facecolor="none")
    below.bar(lows, counts, widths, align="edge", color=MUTED, alpha=0.55)
    below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True, min_n_ticks=1))
    below.set_title("examples", loc="left", color=MUTED, fontsize=FONT_SIZE, pad=3)
    for pair in (axes, below):
        finish(pair, "probability of the answer" if pair is below else "")
        pair.set_xlim(0, 1.01)
        pair.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.set_ylim(0, 1.01)
    axes.tick_params(labelbottom=False)
    below.tick_params(axis="x", pad=6)
    return svg(figure, f"reliability-{name}", f"{name.capitalize()}: share of right answers over their probability")


def columns(text: str) -> int:
    """Returns how many columns a text takes where it is set in letters of one width."""
    return sum(2 if unicodedata.east_asian_width(letter) in "FW" else 1 for letter in text)


def short(class_name: str) -> str:
    """Returns a class name as it is written in a picture: on one line, and not longer than LABEL_COLUMNS.

    >>> short("a class name that\\nwould not fit in")
    'a class name that would…'
    """
    name = "".join(letter if letter.isprintable() else " " for letter in class_name)
    if columns(name) <= LABEL_COLUMNS:
        return name
    while columns(name) >= LABEL_COLUMNS:
        name = name[:-1]
    return name.rstrip() + "…"


def learning_curve(history: Sequence[Mapping[str, Any]], name: str) -> Markup | None:
    """Returns one figure over the epochs as SVG, or None where no epoch has it.

    Args:
        history: One record per epoch.
        name: "accuracy" or "loss"; `val_` before it names that of the validation part.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter, ScalarFormatter

    lines = {
        label: [(epoch.get("epoch", k), epoch[key]) for k, epoch in enumerate(history, 1) if epoch.get(key) is not None]
        for label, key in (("training", name), ("validation", f"val_{name}"))
    }
    if not any(lines.values()):
        return None
    figure, axes = canvas((0.55, 0.45, 3.9, 2.1), edge=0.35)
    for (label, points), colour, dashes in zip(lines.items(), (MUTED, ACCENT), ("--", "-"), strict=True):
        if points:
            marker = "o" if len(points) <= MARKED_EPOCHS else ""
            axes.plot(*zip(*points, strict=True), dashes, color=colour, label=label, marker=marker, markersize=3.5)
    figures = [figure for points in lines.values() for _, figure in points]
    axes.set_ylim((max(0, min(figures) - 0.05), 1.01) if name == "accuracy" else (0, 1.05 * max(figures) or 1))
    axes.set_title(name.capitalize(), loc="left", color=INK, fontweight="bold")
    finish(axes, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    percents = PercentFormatter(1.0, symbol=" %")
    axes.yaxis.set_major_formatter(percents if name == "accuracy" else ScalarFormatter(useOffset=False))
    axes.legend(frameon=False, labelcolor=INK, loc="lower right" if name == "accuracy" else "upper right")
    return svg(figure, f"curve-{name}", f"{name.capitalize()} over the epochs")


def strength_curve(head: Mapping[str, Any] | None) -> Markup | None:
    """Returns the held-out loss over the L2 strengths that were tried, the chosen one marked, or None without them.

    Args:
        head: How the head was solved: `l2`, and `path`, a list of `l2` and `loss` in nats.
    """
    points = sorted((step["l2"], step["loss"]) for step in (head or {}).get("path") or [])
    if not head or len(points) < 2:
        return None
    figure, axes = canvas((0.55, 0.45, 3.9, 2.1), edge=0.35)
    axes.plot(*zip(*points, strict=True), "-", color=ACCENT, marker="o", markersize=3.5)
    chosen = [point for point in points if point[0] == head.get("l2")]
    axes.plot(*zip(*chosen, strict=True), "o", color=INK, markersize=7, label="chosen") if chosen else None
    axes.set_xscale("log")
    axes.set_ylim(0, 1.05 * max(loss for _, loss in points) or 1)
    axes.set_title("Held-out loss", loc="left", color=INK, fontweight="bold")
    finish(axes, "L2 strength")
    axes.minorticks_off()
    axes.legend(frameon=False, labelcolor=INK, loc="upper left")
    return svg(figure, "strengths", "Held-out loss over the L2 strengths")


def canvas(box: tuple[float, float, float, float], edge: float) -> tuple[Figure, Axes]:
    """Returns a figure without background and its one pair of axes without frame.

    Args:
        box: The axes' left and lower margin, width and height, in inches.
        edge: The figure's right and upper margin, in inches.
    """
    from matplotlib.figure import Figure

    left, bottom, width, height = box
    whole = (left + width + edge, bottom + height + edge)
    figure = Figure(figsize=whole, facecolor="none")
    axes = figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]), facecolor="none")
    axes.spines[:].set_visible(False)
    return figure, axes


def finish(axes: Axes, across: str) -> None:
    """Gives axes their lines, behind what is drawn, and the name of what they show from left to right."""
    axes.spines[:].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.tick_params(colors=MUTED, length=0)
    axes.set_xlabel(across, color=MUTED)


def svg(figure: Figure, name: str, description: str) -> Markup:
    """Returns a figure as an SVG element of the page: it has the page's colours, and ids of its own."""
    from markupsafe import Markup

    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    # matplotlib's own head goes, its style sheet too, which would hold for the whole page.
    inner = re.sub(r"^.*?<svg[^>]*>(.*?</style>\s*</defs>)?", "", stream.getvalue(), count=1, flags=re.DOTALL)
    inner = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inner)
    inner = re.sub("|".join(COLOURS), lambda colour: COLOURS[colour[0]], inner)
    width, height = (72 * inches for inches in figure.get_size_inches())
    # Not narrower than two thirds: on a phone it is moved sideways rather than made too small to read.
    style = f"width: {width:.0f}pt; max-width: 100%; min-width: {0.67 * width:.0f}pt"
    head = f'<svg role="img" aria-label="{description}" viewBox="0 0 {width:.2f} {height:.2f}" style="{style}">'
    return Markup(head + inner)
