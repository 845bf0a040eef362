"""The runs of `facts_map.py` by KL coefficient: how much a policy loses where it is too low, and
what facts are worth there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from common import format_mean, markdown_table, mean_and_half_width
from facts_map_curves import Run, after_same_steps, at_best_checkpoints, at_same_kl, split_cell
from facts_map_plots import COLOURS, column_title
from matplotlib.figure import Figure

METRICS = {"claim_f1": True, "utility": False, "coverage": True, "chair_s": True, "perception_errors": False}
"""Metrics on held-out scenes, and whether each is a percentage."""
TITLES = ("claim F1", "u", "coverage", "false answers", "perception errors")
RunsByCoefficient = Mapping[tuple[str, float], Mapping[int, Run]]
"""Runs by cell and KL coefficient, then by seed."""


def by_coefficient(runs: Sequence[Run]) -> dict[tuple[str, float], dict[int, Run]]:
    """Return the runs of cells that have several coefficients, by cell and coefficient."""
    grouped: dict[tuple[str, float], dict[int, Run]] = defaultdict(dict)
    for run in runs:
        grouped[run.cell, run.kl_coef][run.seed] = run
    cells = [cell for cell, _ in grouped]
    return {key: by_seed for key, by_seed in sorted(grouped.items()) if cells.count(key[0]) > 1}


def policies_table(groups: RunsByCoefficient) -> str:
    """Return the policies after their last step, and at their best checkpoint minus SFT."""
    rows = []
    for (cell, kl_coef), by_seed in groups.items():
        runs = list(by_seed.values())
        last = [format_mean([run.metrics[f"held_out_{m}"][-1] for run in runs], p) for m, p in METRICS.items()]
        gains = [
            format_mean([run.metrics[f"held_out_{m}"][run.best] - run.metrics[f"held_out_{m}"][0] for run in runs], p, "+")
            for m, p in METRICS.items()
        ]
        rows.append((cell, f"{kl_coef:g}", str(len(runs)), format_mean([run.kl[-1] for run in runs]), *last, *gains[:2]))
    header = ("cell", "kl_coef", "seeds", "last KL", *TITLES, "best claim F1 - SFT", "best u - SFT")
    return markdown_table(header, rows)


def facts_table(groups: RunsByCoefficient) -> str:
    """Return facts minus no facts at each coefficient, at the same KL and at best checkpoints."""
    rows = []
    for (cell, kl_coef), by_seed in groups.items():
        reward, _, facts = split_cell(cell)
        base = groups.get((cell.replace(f"-{facts}", "-none"), kl_coef), {})
        seeds = sorted(set(by_seed) & set(base))
        if facts in ("none", "oracle") or reward not in ("rm", "both") or not seeds:
            continue
        for way in ("largest common KL", "best checkpoints", "same steps"):
            values = [[_difference(by_seed[s], base[s], f"held_out_{m}", way) for s in seeds] for m in METRICS]
            cells = [format_mean(v, p, "+") for v, p in zip(values, METRICS.values(), strict=True)]
            rows.append((cell, f"{kl_coef:g}", str(len(seeds)), way, *cells))
    return markdown_table(("facts - none", "kl_coef", "seeds", "compared at", *TITLES), rows)


def _difference(a: Run, b: Run, metric: str, way: str) -> float:
    if way == "same steps":
        return after_same_steps(a, b, metric)
    return at_best_checkpoints(a, b, metric) if way == "best checkpoints" else at_same_kl(a, b, metric)[way]


def coefficient_figure(groups: RunsByCoefficient) -> Figure:
    """Plot claim F1 after the last step against the KL coefficient, beside SFT's.

    A panel per kind of judge, a line per facts; bars are 95% t-intervals over seeds.
    """
    judges = list(dict.fromkeys(split_cell(cell)[:2] for cell, _ in groups))
    figure = Figure(figsize=(3.2 * len(judges) + 0.6, 3.4), layout="constrained")
    for axes, judge in zip(figure.subplots(1, len(judges), sharey=True, squeeze=False)[0], judges, strict=True):
        runs_of_judge = {key: list(by_seed.values()) for key, by_seed in groups.items() if split_cell(key[0])[:2] == judge}
        start = float(np.mean([run.metrics["held_out_claim_f1"][0] for runs in runs_of_judge.values() for run in runs]))
        axes.axhline(start, color="0.6", linewidth=0.8, linestyle=":", label="SFT")
        for cell in dict.fromkeys(cell for cell, _ in runs_of_judge):
            coefficients = sorted(kl_coef for c, kl_coef in runs_of_judge if c == cell)
            values = [[run.metrics["held_out_claim_f1"][-1] for run in runs_of_judge[cell, k]] for k in coefficients]
            widths = [mean_and_half_width(v)[1] if len(v) > 1 else 0.0 for v in values]
            facts = split_cell(cell)[2]
            means = [float(np.mean(v)) for v in values]
            axes.errorbar(coefficients, means, yerr=widths, fmt="o-", color=COLOURS[facts], capsize=3, label=f"facts: {facts}")
        axes.set(xscale="log", xlabel="kl_coef", title=column_title(*judge))
        axes.set_xticks(sorted({k for _, k in runs_of_judge}), [f"{k:g}" for k in sorted({k for _, k in runs_of_judge})])
        axes.minorticks_off()
        axes.grid(linewidth=0.4, alpha=0.3)
    figure.axes[0].set_ylabel("claim F1 after the last step, held out")
    lines = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.axes[0].legend(lines.values(), lines, loc="lower right", fontsize="small")
    return figure
