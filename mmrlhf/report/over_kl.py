"""Metrics over the square root of the KL to the reference: reward and truth.

Over-optimisation begins where the reward still rises and a held-out metric falls (Gao et al. 2023).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmrlhf.report.plots import INK_COLOUR, Plot, running_mean, style_context, to_inline_svg
from mmrlhf.report.results import ModelStyle, metric_value

KL_KEY = "objective/kl"
MAX_UNSMOOTHED = 40
"""Maximum number of points of a line without smoothing; with more, running means are drawn."""


def points_over_kl(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """Return (square root of the KL, value) of the rows with a metric, in order of steps.

    A step's KL is that of the policy that sampled its answers, after the previous step. An `eval/`
    metric is of the policy after its own step, so its KL is the next row's; the last one's, which
    is not measured, is taken from its own row. An estimate below 0 counts as 0.
    """
    kl_by_step = {row["step"]: kl for row in rows if (kl := metric_value(row, KL_KEY)) is not None}
    points = []
    for row in rows:
        step, value = row["step"], metric_value(row, key)
        kl = kl_by_step.get(step + key.startswith("eval/"), kl_by_step.get(step))
        if value is not None and kl is not None:
            points.append((max(kl, 0.0) ** 0.5, value))
    return points


def over_kl_plot(
    curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, y_label: str, style_of: Callable[[str], ModelStyle]
) -> Plot | None:
    """Plot a metric over the square root of the KL, one line per run. Returns None without data."""
    lines = {run: points for run, rows in curves.items() if (points := points_over_kl(rows, key))}
    if not lines:
        return None
    with style_context(INK_COLOUR):
        figure = Figure(figsize=(3.6, 2.5), layout="constrained")
        axes = figure.subplots()
        for run, points in lines.items():
            radius = len(points) // 20 if len(points) > MAX_UNSMOOTHED else 0
            x, y = (running_mean(values, radius) for values in zip(*points, strict=True))
            marker = "o" if len(points) <= MAX_UNSMOOTHED else ""
            axes.plot(x, y, marker=marker, markersize=3, color=style_of(run).colour, label=style_of(run).title)
        axes.set_title(f"{title} over √KL")
        axes.set(xlabel="square root of the KL in nats", ylabel=y_label)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(linewidth=0.4, alpha=0.3)
        axes.legend(loc="best")
    ends = "; ".join(f"{style_of(run).title} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for run, points in lines.items())
    return to_inline_svg(figure, "over-kl-" + re.sub(r"\W", "-", key)), f"{title} over the square root of the KL. {ends}."
