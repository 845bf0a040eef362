"""Figures of `facts_map.py`: reward and truth along the KL, and where the policy turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import save_figure
from facts_map_curves import Run, along_kl, kl_of_turn, split_cell
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrlhf.report.plots import style_context

COLOURS = {
    "none": "#8a93a0", "annotator": "#2a78d6", "all": "#0f9d74", "empty": "#c9a227", "swapped": "#d43f3a", "oracle": "#1f2630",
}  # fmt: skip
REWARDS = ("rm", "both", "claims", "ranked", "oracle")
TEXT_COLOUR = "#1f2630"
ROWS = {
    "held_out_claim_f1": "claim F1, held out",
    "held_out_utility": "true u, held out",
    "score": "reward of samples",
}
"""What each row of the main figure shows."""


def write_figures(directory: Path, runs: Mapping[str, Mapping[int, Run]], others: Mapping[str, Figure]) -> list[Path]:
    """Write all figures, and `others` by name, as PNG and SVG; return the paths of the PNGs."""
    directory.mkdir(parents=True, exist_ok=True)
    with style_context(TEXT_COLOUR):
        figures = {"facts_map": truth_figure(runs), "facts_map_turn": turn_figure(runs), **others}
        return [save_figure(figure, directory, name) for name, figure in figures.items()]


def truth_figure(runs: Mapping[str, Mapping[int, Run]]) -> Figure:
    """Plot F1, u and the reward along the root of KL: a column per kind of judge, a line per facts.

    Thin lines are seeds, thick ones their mean up to the KL that all of them reach. The oracle is
    in every column, as the ceiling.
    """
    judges = {split_cell(cell)[:2] for cell in runs if cell != "oracle"}
    columns = sorted(judges, key=lambda judge: (REWARDS.index(judge[0]), judge[1])) or [("oracle", 0)]
    figure = Figure(figsize=(2.6 * len(columns) + 0.8, 6.6), layout="constrained")
    axes = figure.subplots(len(ROWS), len(columns), sharex="col", sharey="row", squeeze=False)
    for column, (reward, labels) in enumerate(columns):
        cells = [cell for cell in runs if split_cell(cell)[:2] == (reward, labels) or cell == "oracle"]
        for row, (metric, label) in enumerate(ROWS.items()):
            for cell in sorted(cells, key=_place_of):
                plot_cell(axes[row, column], split_cell(cell)[2], list(runs[cell].values()), metric)
            axes[row, column].grid(linewidth=0.4, alpha=0.3)
            if column == 0:
                axes[row, column].set_ylabel(label)
        axes[0, column].set_title(column_title(reward, labels))
        axes[-1, column].set_xlabel("√KL, nats per answer")
    lines = [line for panel in figure.axes for line in panel.get_lines()]
    handles = {str(line.get_label()): line for line in lines if not str(line.get_label()).startswith("_")}
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=len(handles))
    return figure


def column_title(reward: str, labels: int) -> str:
    judge = "untrained judge" if labels == 0 else f"{labels:,} labels"
    return {"rm": judge, "both": f"{judge} + claims"}.get(reward, reward)


def plot_cell(axes: Axes, facts: str, runs: Sequence[Run], metric: str) -> None:
    """Plot a metric of a cell's runs along the root of KL: thin lines, and their mean."""
    style = {"color": COLOURS.get(facts, TEXT_COLOUR), "linestyle": "--" if facts == "oracle" else "-"}
    curves = [curve_of(run, metric) for run in runs]
    for roots, values in curves:
        axes.plot(roots, values, linewidth=0.6, alpha=0.35, **style)
    grid = np.linspace(0, min(roots[-1] for roots, _ in curves), 60)
    mean = np.mean([np.interp(grid, roots, values) for roots, values in curves], 0)
    axes.plot(grid, mean, linewidth=1.8, label=facts if facts == "oracle" else f"facts: {facts}", **style)


def curve_of(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return square roots of KL and values: of evaluations, or the reward smoothed at each."""
    if metric != "score":
        return along_kl(run, metric)
    # The reward of the policy after t steps is logged by step t + 1; the mean of nearby steps.
    distances = [np.abs(run.samples["step"] - (step + 1)) for step in run.steps]
    near = [d <= max(d.min(), 3 if step else 0) for d, step in zip(distances, run.steps, strict=True)]
    rewards = [run.samples["score"][mask].mean() for mask in near]
    order = np.argsort(run.kl, kind="stable")
    return np.sqrt(run.kl)[order], np.array(rewards)[order]


def turn_figure(runs: Mapping[str, Mapping[int, Run]]) -> Figure:
    """Plot the KL at which true u is highest: a dot per seed and a bar for the mean of a cell.

    An open dot is a run that had not turned: u was highest at its last evaluation.
    """
    cells = sorted(runs, key=_place_of)
    figure = Figure(figsize=(max(0.55 * len(cells) + 1.2, 3.6), 3.6), layout="constrained")
    axes = figure.subplots()
    for x, cell in enumerate(cells):
        colour, cell_runs = COLOURS[split_cell(cell)[2]], list(runs[cell].values())
        turns = [kl_of_turn(run) for run in cell_runs]
        axes.bar(x, float(np.mean(turns)), 0.7, color=colour, alpha=0.25)
        for offset, (run, kl) in enumerate(zip(cell_runs, turns, strict=True)):
            has_turned = int(np.argmax(run.metrics["held_out_utility"])) < len(run.steps) - 1
            shift = 0.12 * (offset - (len(cell_runs) - 1) / 2)
            axes.plot(x + shift, kl, "o", color=colour, markersize=5, markerfacecolor=colour if has_turned else "white")
    axes.set_xticks(range(len(cells)), cells, rotation=60, ha="right")
    axes.set_ylabel("KL where true u is highest, nats")
    axes.set_title("Do facts delay the turn?")
    axes.grid(axis="y", linewidth=0.4, alpha=0.3)
    return figure


def _place_of(cell: str) -> tuple[int, int, int]:
    reward, labels, facts = split_cell(cell)
    return REWARDS.index(reward), labels, list(COLOURS).index(facts)
