"""Predicted and seen first slopes of `facts_map.py`: does a judge's covariance with false claims on
SFT's samples say how these change in training (`mmrlhf.rewards.first_slopes`)?
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from common import format_mean, markdown_table
from facts_map_curves import SLOPE_STEPS, Run, first_slope
from matplotlib.figure import Figure
from scipy import stats

from mmrlhf import scenes

MIN_FALSE_CLAIMS = 10
"""False claims of a kind, over the seeds of a cell, below which they say too little."""
KIND_COLOURS = dict(zip(scenes.CLAIM_KINDS, ("#2a78d6", "#0f9d74", "#c9a227", "#d43f3a"), strict=True))


@dataclass(frozen=True)
class SlopeCell:
    """A kind of claim under one reward: what was predicted on SFT's samples, and what was seen.

    All are means over seeds. `predicted` is the first slope with the mean bounds of its intervals;
    `seen` the slopes of the samples' false claims along the root of KL, by seed.
    """

    cell: str
    kind: str
    num_false: int
    predicted: dict[str, float]
    j: float
    seen: list[float]

    @property
    def is_decided(self) -> bool:
        return self.predicted["low"] > 0 or self.predicted["high"] < 0

    @property
    def mean_seen(self) -> float:
        return float(np.mean(self.seen))


def slope_cells(runs: Mapping[str, Mapping[int, Run]], judges: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[SlopeCell]:
    """Return the kinds and rewards with at least MIN_FALSE_CLAIMS false claims to predict from."""
    found = []
    for cell, by_seed in runs.items():
        measured = [judge for judge in judges.get(cell, ()) if "slopes" in judge]
        for kind in scenes.CLAIM_KINDS:
            slopes = [judge["slopes"][kind] for judge in measured if judge["slopes"].get(kind, {}).get("false")]
            js = [judge["detection"][kind]["J"] for judge in measured if judge["detection"].get(kind)]
            num_false = sum(slope["num_false"] for slope in slopes)
            seen = [first_slope(run, f"false_{kind}") for run in by_seed.values()]
            if num_false < MIN_FALSE_CLAIMS or not seen:
                continue
            predicted = {name: float(np.mean([slope["false"][name] for slope in slopes])) for name in ("value", "low", "high")}
            found.append(SlopeCell(cell, kind, num_false, predicted, float(np.mean([j["value"] for j in js if j])), seen))
    return found


def slope_table(cells: Sequence[SlopeCell]) -> str:
    """Return predicted and seen slopes by kind and reward, as Markdown."""
    rows = []
    for c in cells:
        value, low, high = (f"{c.predicted[name]:+.2f}" for name in ("value", "low", "high"))
        rows.append((c.cell, c.kind, str(c.num_false), f"{value} ({low} to {high})", format_mean(c.seen, sign="+"), f"{c.j:.2f}"))
    header = ("cell", "kind", "false claims", "predicted slope", f"seen, over {SLOPE_STEPS} steps", "J")
    return markdown_table(header, rows)


def agreement_of(cells: Sequence[SlopeCell]) -> dict[str, Any]:
    """Return how well the predictions agree with what was seen.

    `sign` is the share of right signs, `sign_decided` that among predictions whose interval
    excludes 0, `spearman` the rank correlation, and `ratio` the slope of a line through 0 (seen for
    predicted); `j_sign` and `j_spearman` are the same for J, which predicts a fall.
    """
    agreement: dict[str, Any] = {"cells": len(cells), "decided": sum(c.is_decided for c in cells)}
    if len(cells) < 2:
        return agreement
    predicted, seen, js = np.array([(c.predicted["value"], c.mean_seen, c.j) for c in cells]).T
    right, is_decided = np.sign(predicted) == np.sign(seen), np.array([c.is_decided for c in cells])
    return agreement | {
        "sign": float(right.mean()),
        "sign_decided": float(right[is_decided].mean()) if is_decided.any() else None,
        "spearman": float(stats.spearmanr(predicted, seen).statistic),
        "ratio": float(predicted @ seen / (predicted @ predicted)),
        "j_sign": float((np.sign(js) == np.sign(-seen)).mean()),
        "j_spearman": float(stats.spearmanr(js, -seen).statistic),
    }


def agreement_sentence(agreement: Mapping[str, Any]) -> str:
    """Return how well slopes were predicted, in words."""
    if "sign" not in agreement:
        return "First slopes were not measured on two cells of kind and judge."
    decided = ""
    if agreement["sign_decided"] is not None:
        decided = f", {agreement['sign_decided']:.0%} of the {agreement['decided']} whose interval excludes 0"
    return (
        f"The predicted slope has the sign that was seen in {agreement['sign']:.0%} of {agreement['cells']} cells (kind x judge)"
        f"{decided}; rank correlation {agreement['spearman']:.2f}; seen slopes are {agreement['ratio']:.2f} of those predicted. J has "
        f"the right sign in {agreement['j_sign']:.0%}, and a rank correlation of {agreement['j_spearman']:.2f}."
    )


def slope_figure(cells: Sequence[SlopeCell]) -> Figure:
    """Plot seen slopes against predicted ones, a colour per kind and a mark per reward."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.subplots()
    markers = dict(zip(dict.fromkeys(c.cell for c in cells), "osD^vP*X<>ph", strict=False))
    for c in cells:
        value = c.predicted["value"]
        bounds = [[value - c.predicted["low"]], [c.predicted["high"] - value]]
        axes.errorbar(
            value,
            c.mean_seen,
            xerr=bounds,
            fmt=markers.get(c.cell, "."),
            color=KIND_COLOURS[c.kind],
            markersize=6,
            elinewidth=0.6,
        )
    for kind, colour in KIND_COLOURS.items():
        axes.plot([], [], "o", color=colour, label=f"{kind}s")
    for cell, marker in markers.items():
        axes.plot([], [], marker, color="#8a93a0", label=cell)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(
        xlabel="predicted first slope on SFT's samples", ylabel=f"slope seen over {SLOPE_STEPS} steps of PPO",
        title="False claims per answer and root of a nat of KL",
    )  # fmt: skip
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
