"""Pictures of `algorithms.py`: truth against coverage, and hallucination against the root of KL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import save_figure
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrlhf.report.plots import style_context

TEXT_COLOUR = "#1f2630"
MAX_SPREADS = 4.0
"""Interquartile ranges from the median beyond which a method would squeeze the others together."""
NAME_HEIGHT = 0.055
"""Smallest distance of two names in the margin, as a share of the height of the axes."""
Points = Mapping[str, Sequence[tuple[float, float]]]
"""A method's point in each seed."""
Metric = Callable[[Mapping[str, Any]], float]
FIGURES: dict[str, tuple[str, str, Metric, Metric]] = {
    "truth_coverage": ("coverage", "truth: share of claims that are true", lambda m: m["coverage"], lambda m: 1 - m["chair_i"]),
    "hallucination_kl": ("√KL, nats per answer", "answers with a false claim", lambda m: max(m["kl"], 0) ** 0.5, lambda m: m["chair_s"]),
}  # fmt: skip
"""Labels of the axes and metrics of each picture, by file name."""


def write_figures(directory: Path, held_out: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Path]:
    """Write both pictures from each method's metrics on held-out scenes; return the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with style_context(TEXT_COLOUR):
        for name, (x_label, y_label, x, y) in FIGURES.items():
            figure = Figure(figsize=(6.4, 4.4), layout="constrained")
            axes = figure.subplots()
            axes.set_xlabel(x_label)
            axes.set_ylabel(y_label)
            axes.grid(linewidth=0.4, alpha=0.3)
            plot_methods(axes, {method: [(x(m), y(m)) for m in metrics] for method, metrics in held_out.items()})
            paths.append(save_figure(figure, directory, name))
    return paths


def plot_methods(axes: Axes, points: Points) -> None:
    """Plot each method's seeds as dots and their mean with its name, which stands in the margin.

    Methods far from the others are named below the title, with their mean, instead of plotted.
    """
    means = {method: tuple(np.mean(seeds, axis=0)) for method, seeds in points.items()}
    outside = outliers({method: x for method, (x, _) in means.items()})
    colours = {}
    for method in points:
        if method not in outside:
            colours[method] = axes.plot(*means[method], "o", markersize=6)[0].get_color()
            axes.plot(*zip(*points[method], strict=True), ".", markersize=3, alpha=0.5, color=colours[method])
    if outside:
        text = "; ".join(f"{method} ({means[method][0]:.2f}, {means[method][1]:.2f})" for method in outside)
        axes.set_title(f"not shown: {text}", fontsize=8, fontweight="normal", loc="left")

    axes.autoscale_view()  # otherwise the limits are set when the figure is drawn
    to_axes = axes.transLimits.transform
    inside = sorted(colours, key=lambda method: means[method][1])
    heights = spread_apart([float(to_axes(means[method])[1]) for method in inside], NAME_HEIGHT)
    for method, height in zip(inside, heights, strict=True):
        axes.annotate(
            method, means[method], xytext=(1.04, height), textcoords="axes fraction", va="center", fontsize=8,
            color=colours[method], annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.5, "alpha": 0.6, "color": colours[method], "shrinkB": 4},
        )  # fmt: skip


def outliers(values: Mapping[str, float]) -> list[str]:
    """Return the names whose value is more than MAX_SPREADS interquartile ranges off the median."""
    low, median, high = np.percentile(list(values.values()), [25, 50, 75])
    return [name for name, value in values.items() if abs(value - median) > MAX_SPREADS * (high - low) > 0]


def spread_apart(heights: Sequence[float], distance: float) -> list[float]:
    """Return rising heights, moved so that neighbours are `distance` apart and all are below 1."""
    moved: list[float] = []
    for height in heights:
        moved.append(max(height, moved[-1] + distance) if moved else height)
    for index in reversed(range(len(moved))):
        above = moved[index + 1] if index + 1 < len(moved) else 1 + distance
        moved[index] = min(moved[index], above - distance)
    return moved
