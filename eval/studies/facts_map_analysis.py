"""Tables of `facts_map.py`: arms compared within a seed, after the same steps, at the same KL, and
each at its best checkpoint.

Intervals are t-intervals over seeds. A comparison is decided at 97.5%, because it is looked at
twice at most: after five seeds and, if it is still open, after five more.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import Experiment, format_mean, markdown_table, mean_and_half_width
from facts_map_coefficients import by_coefficient, coefficient_figure, facts_table, policies_table
from facts_map_curves import (
    FIXED_KLS,
    Run,
    after_same_steps,
    are_tuned_alike,
    at_best_checkpoints,
    at_same_kl,
    kl_of_turn,
    load_runs,
    split_cell,
    tuned_runs,
)
from facts_map_plots import write_figures
from facts_map_slopes import agreement_of, agreement_sentence, slope_cells, slope_figure, slope_table

from mmrlhf.files.atomic import write_atomic
from mmrlhf.records import InputError

PRIMARY_METRIC, PRIMARY_WAY = "claim_f1", "largest common KL"
METRICS = {
    "claim_f1": ("claim F1", True),
    "utility": ("u", False),
    "coverage": ("coverage", True),
    "chair_s": ("false answers", True),
    "perception_errors": ("perception errors", False),
    "cooccurrence_errors": ("co-occurrence errors", False),
    "mean_length": ("words", False),
}
"""Title of each metric, and whether it is a percentage."""
DECISION_CONFIDENCE = 0.975
WAYS = ("same steps", PRIMARY_WAY, "mean to it", *(f"KL {kl:g}" for kl in FIXED_KLS), "best checkpoints")
FACTS_ORDER = ("none", "annotator", "all", "empty", "swapped", "oracle")
RunsByCell = Mapping[str, Mapping[int, Run]]


def facts_comparisons(runs: RunsByCell) -> list[tuple[str, str]]:
    """Return pairs of cells, with facts and without, for each number of labels."""
    pairs = []
    for cell in runs:
        reward, labels, facts = split_cell(cell)
        if reward == "rm" and facts != "none" and f"rm-{labels}-none" in runs:
            pairs.append((labels, FACTS_ORDER.index(facts), cell))
    return [(cell, f"rm-{labels}-none") for labels, _, cell in sorted(pairs)]


def other_comparisons(runs: RunsByCell) -> list[tuple[str, str]]:
    """Return pairs of cells that add claims to a reward model, and the oracle above the others."""
    pairs = []
    for cell in sorted(runs, key=lambda name: (split_cell(name)[0], split_cell(name)[1])):
        reward, labels, facts = split_cell(cell)
        if reward == "both":
            pairs += [(cell, f"rm-{labels}-{facts}"), (cell, f"claims-{facts}")]
        elif reward == "ranked":
            pairs += [(cell, f"claims-{facts}"), (cell, "rm-0-none")]
        elif reward == "claims":
            pairs += [(cell, f"rm-0-{facts}"), (cell, "rm-0-none")]
        elif reward == "rm" and facts in ("none", "annotator"):
            pairs.append(("oracle", cell))
    return [pair for pair in pairs if set(pair) <= set(runs)]


def differences(runs: RunsByCell, a: str, b: str, metric: str) -> dict[str, list[float]]:
    """Return a - b of a held-out metric in each seed that has both, by way of comparison."""
    values: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in sorted(set(runs[a]) & set(runs[b])):
        pair, name = (runs[a][seed], runs[b][seed]), f"held_out_{metric}"
        by_way = {
            "same steps": after_same_steps(*pair, name),
            **at_same_kl(*pair, name),
            "best checkpoints": at_best_checkpoints(*pair, name),
        }
        for way, value in by_way.items():
            if not np.isnan(value):
                values[way].append(value)
    return values


def verdict(by_way: Mapping[str, Sequence[float]]) -> str:
    """Return what the differences of the primary metric allow to say of arm a."""

    def sign(way: str) -> int:
        values = by_way[way]
        mean, half_width = mean_and_half_width(values, DECISION_CONFIDENCE) if len(values) > 1 else (0.0, float("inf"))
        return int(np.sign(mean)) if abs(mean) > half_width else 0

    at_kl, at_best, after_steps = sign(PRIMARY_WAY), sign("best checkpoints"), sign("same steps")
    if at_kl > 0 and at_best > 0:
        return "helps"
    if at_kl < 0 and at_best < 0:
        return "harms"
    if after_steps > 0 and at_kl <= 0 and at_best <= 0:
        return "delays hacking"
    return "open"


def verdict_on(runs: RunsByCell, a: str, b: str) -> str:
    """Return the verdict on cell a beside cell b: open if they had other KL coefficients to choose
    from."""
    is_fair = are_tuned_alike(runs[a], runs[b])
    return verdict(differences(runs, a, b, PRIMARY_METRIC)) if is_fair else "open (unequal tuning)"


# ---- tables --------------------------------------------------------------------------------------


def cells_table(runs: RunsByCell, judges: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return what each cell reached: at its best checkpoint, and at its last evaluation."""
    rows = []
    first_cell = next(iter(runs.values()))
    start = (
        f"{t} {format_mean((r.metrics[f'held_out_{m}'][0] for r in first_cell.values()), p)}" for m, (t, p) in METRICS.items()
    )
    for cell, by_seed in runs.items():
        cell_runs = list(by_seed.values())
        rows.append(
            (
                cell,
                ", ".join(f"{seed}: {run.steps[-1]}{'' if run.is_finished else '+'}" for seed, run in sorted(by_seed.items())),
                f"{cell_runs[0].kl_coef:g}",
                format_mean((judge["accuracy"] for judge in judges.get(cell, ()) if "accuracy" in judge), True),
                format_mean(run.kl[-1] for run in cell_runs),
                format_mean((run.metrics["held_out_claim_f1"][-1] for run in cell_runs), True),
                format_mean(run.steps[run.best] for run in cell_runs),
                *(format_mean((r.metrics[f"held_out_{m}"][r.best] for r in cell_runs), p) for m, (_, p) in METRICS.items()),
            )
        )
    header = ("cell", "seed: steps", "kl_coef", "pairs right", "last KL", "last claim F1", "best step")
    best = tuple(f"{title}, best" for title, _ in METRICS.values())
    return f"SFT: {'; '.join(start)}.\n\n" + markdown_table((*header, *best), rows)


def primary_table(runs: RunsByCell, pairs: Iterable[tuple[str, str]]) -> str:
    """Return differences of claim F1 in percentage points, by way, with what they allow to say."""
    rows = []
    for a, b in pairs:
        by_way = differences(runs, a, b, PRIMARY_METRIC)
        cells = [format_mean(by_way[way], True, "+") for way in WAYS]
        decisive = [format_mean(by_way[way], True, "+", DECISION_CONFIDENCE) for way in (PRIMARY_WAY, "best checkpoints")]
        fixed = (f"{text} ({len(by_way[way])})" if way.startswith("KL") else text for way, text in zip(WAYS, cells, strict=True))
        rows.append((f"{a} - {b}", str(len(by_way["same steps"])), *fixed, *decisive, verdict_on(runs, a, b)))
    header = ("claim F1, points", "seeds", *WAYS, f"{PRIMARY_WAY}, 97.5%", "best checkpoints, 97.5%", "a")
    return markdown_table(header, rows)


def secondary_table(runs: RunsByCell, pairs: Iterable[tuple[str, str]], way: str) -> str:
    """Return differences of all metrics in one way of comparison."""
    rows = [
        (f"{a} - {b}", *(format_mean(differences(runs, a, b, m)[way], p, "+") for m, (_, p) in METRICS.items())) for a, b in pairs
    ]
    return markdown_table((way, *(title for title, _ in METRICS.values())), rows)


def turn_table(runs: RunsByCell) -> str:
    """Return the KL at which true utility is highest, and how far the reward goes on rising."""
    rows = []
    for cell, by_seed in runs.items():
        cell_runs = list(by_seed.values())
        peaks = [run.metrics["held_out_utility"].max() - run.metrics["held_out_utility"][0] for run in cell_runs]
        falls = [run.metrics["held_out_utility"][-1] - run.metrics["held_out_utility"].max() for run in cell_runs]
        rewards = [run.samples["score"][-8:].mean() - run.samples["score"][:1].mean() for run in cell_runs]
        turned = sum(int(np.argmax(run.metrics["held_out_utility"])) < len(run.steps) - 1 for run in cell_runs)
        rows.append(
            (
                cell,
                format_mean(kl_of_turn(run) for run in cell_runs),
                f"{turned} of {len(cell_runs)}",
                format_mean(peaks, sign="+"),
                format_mean(falls, sign="+"),
                format_mean(rewards, sign="+"),
            )
        )
    header = ("cell", "KL where u is highest", "runs that turned", "u there - SFT", "u at the end - there", "reward, end - start")
    return markdown_table(header, rows)


# ---- the report ----------------------------------------------------------------------------------


def report(out: Path) -> None:
    """Print tables of all runs in a directory, write its figures, and print a line of JSON.

    Raises InputError if there is no run to report.
    """
    seeds = sorted({int(path.name.rpartition("-")[2]) for path in out.glob("demo-*")})
    found = load_runs(out, {seed: Experiment(out, seed).data_config for seed in seeds})
    if not found:
        raise InputError(f"{out} has no policy that was evaluated after its start: run some cells first")
    runs = tuned_runs(found)
    judges: dict[str, list[dict[str, Any]]] = {
        cell: [json.loads(path.read_text()) for seed in by_seed if (path := out / "cells" / f"judge-{seed}-{cell}.json").exists()]
        for cell, by_seed in runs.items()
    }
    facts, others = facts_comparisons(runs), other_comparisons(runs)
    predictions = slope_cells(runs, judges)
    agreement = agreement_of(predictions)
    sections = [
        ("Cells", cells_table(runs, judges)),
        ("When does the policy turn?", turn_table(runs)),
        ("Predicted and seen first slopes", f"{slope_table(predictions)}\n\n{agreement_sentence(agreement)}"),
    ]
    if others:
        sections.insert(1, ("Claims and the oracle: claim F1", primary_table(runs, others)))
    if facts:
        sections[1:1] = [
            ("Do facts help? Claim F1 on held-out scenes", primary_table(runs, facts)),
            ("At the largest KL that both reached", secondary_table(runs, facts, PRIMARY_WAY)),
            ("At best checkpoints", secondary_table(runs, facts, "best checkpoints")),
            ("After the same steps", secondary_table(runs, facts, "same steps")),
        ]
    further_figures = {"facts_map_slopes": slope_figure(predictions)}
    if groups := by_coefficient(found):
        sections.insert(-2, ("By KL coefficient", f"{policies_table(groups)}\n\n{facts_table(groups)}"))
        further_figures["facts_map_coefficients"] = coefficient_figure(groups)
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections)
    print(text, flush=True)
    write_atomic(out / "report.md", text + "\n")
    figures = write_figures(out / "figures", runs, further_figures)
    print("\n" + "\n".join(f"![{path.stem}]({path})" for path in figures) + "\n")
    comparisons = {
        f"{a} - {b}": {m: differences(runs, a, b, m) for m in METRICS} | {"verdict": verdict_on(runs, a, b)}
        for a, b in (*facts, *others)
    }
    result = {"study": "facts_map", "seeds": seeds, "comparisons": comparisons, "agreement": agreement}
    print(json.dumps(result))
