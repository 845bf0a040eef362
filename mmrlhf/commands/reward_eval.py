"""`mmrlhf reward-eval`: how far a reward model can be trusted, on preferences that it was not trained on.

Accuracy (overall, by source, by hallucination flag, by length, on ties), calibration, the contradiction probe, and what becomes of accuracy
when facts are missing, another picture's, or contradicted. Intervals are 95% (Wilson).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from mmrlhf.config import RewardEvalConfig
from mmrlhf.datasets import read_preferences
from mmrlhf.facts import read_facts
from mmrlhf.facts.corrupt import drop_facts, negate_facts
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.resumable import ResumableWriter, digest_of, file_signature
from mmrlhf.metrics.calibration import (
    Bin,
    draw_reliability,
    expected_calibration_error,
    fit_temperature,
    preference_bins,
    proportion,
)
from mmrlhf.records import Comparison, Fact, InputError, Preference
from mmrlhf.report.progress import progress
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.probes import PROBE_KINDS, Probe, make_probes
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.training.run import Run

LENGTH_GAP_EDGES = (-0.25, -0.05, 0.05, 0.25)
"""Edges of the bins of length: words of the better answer less those of the worse one, over the longer one's."""
FACT_FRACTIONS = (0.75, 0.5, 0.25, 0.0)
"""Shares of facts that are left."""
SCORE_TOLERANCE = 1e-9
"""Scores closer than this are the same."""


def reward_eval(config: RewardEvalConfig, preferences: Sequence[Preference] | None = None) -> dict[str, Any]:
    """Score, measure, draw; returns what result.json says. Killed, the same command continues."""
    run = Run(config.output_dir, config)
    if preferences is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        preferences = read_preferences(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    rows = list(preferences[: config.limit] if config.limit else preferences)
    if all(c.is_tie for p in rows for c in p.comparisons):
        raise InputError(f"{config.dataset_name} has ties only: accuracy needs rows of which one answer is better")
    model = load_reward_model(config.reward_model_path, max_length=config.max_length, engine=config)
    probes = make_probes(rows[: config.probes], seed=config.seed)

    # 1. Scores, a file for each state of the facts
    fact_conditions = perturbed_facts(rows, config.seed) if model.facts == "given" and any(p.facts for p in rows) else {}
    groups_by_condition = {"as given": [_answer_group(p, p.facts) for p in rows], "probes": [_probe_group(p) for p in probes]}
    groups_by_condition |= {
        name: [_answer_group(p, f) for p, f in zip(rows, facts, strict=True)] for name, facts in fact_conditions.items()
    }
    base_key = [
        replace(config, output_dir="-"),
        file_signature(config.reward_model_path),
        file_signature(config.dataset_name),
        file_signature(config.facts_file),
    ]
    with progress(sum(map(len, groups_by_condition.values())), "reward-eval") as progress_bar:
        scores = {}
        for name, groups in groups_by_condition.items():
            scores_key = [*base_key, name]
            scores_path = run.path / "scores" / f"{name.replace(' ', '_')}.{digest_of(scores_key)}.jsonl"
            scores[name] = _score_groups(model, groups, scores_path, scores_key, config.batch_size, progress_bar.advance)

    # 2. What they say
    result = {"reward_model": config.reward_model_path, "data": config.dataset_name, "n": len(rows), "facts": model.facts}
    result |= compute_metrics(rows, scores["as given"], model.temperature)
    result["probe"] = probe_metrics(probes, scores["probes"])
    if fact_conditions:
        facts_curve = {"as given": accuracy(rows, scores["as given"])} | {
            name: accuracy(rows, scores[name]) for name in fact_conditions
        }
        result["facts_curve"] = facts_curve
    run.begin()
    write_atomic(run.path / "result.json", json.dumps(result, indent=1))
    plot_results(result, run.path / "reward-eval.png")
    print_table(result)
    print(f"{run.path / 'result.json'} has the numbers, {run.path / 'reward-eval.png'} the pictures")
    return result


def _answer_group(preference: Preference, facts: Sequence[Fact]) -> AnswerGroup:
    return AnswerGroup(preference.images, preference.prompt, preference.answers, tuple(facts), preference.id)


def _probe_group(probe: Probe) -> AnswerGroup:
    return replace(probe.group, answers=(probe.group.answers[0], probe.false_answer, probe.true_answer))


def _score_groups(
    model: RewardModel, groups: Sequence[AnswerGroup], path: Path, key: Sequence[Any], batch_size: int, advance: Callable[[int], None]
) -> list[list[float]]:  # fmt: skip
    if path.exists():
        advance(len(groups))
        return [row["scores"] for row in read_jsonl(path)]
    writer = ResumableWriter(path, key)
    advance(writer.num_done)
    for start in range(writer.num_done, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        writer.append([json_line({"id": g.id, "scores": s}) for g, s in zip(batch, model.score(batch), strict=True)])
        advance(len(batch))
    writer.finish()
    return [row["scores"] for row in read_jsonl(path)]


# ---- measuring -------------------------------------------------------------------------------------------------------


def perturbed_facts(rows: Sequence[Preference], seed: int) -> dict[str, list[tuple[Fact, ...]]]:
    """The rows' facts, damaged: fewer of them, those of the next row with another picture, and contradicted."""
    conditions = {}
    for fraction in FACT_FRACTIONS:
        conditions[f"{fraction:.0%} left"] = [
            drop_facts(p.facts, fraction, np.random.default_rng([seed, 5, i])) for i, p in enumerate(rows)
        ]
    other_facts = []
    for i, p in enumerate(rows):
        candidates = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
        other_facts.append(next((q.facts for q in candidates if q.facts and q.images != p.images), ()))
    conditions["another picture's"] = other_facts
    conditions["contradicted"] = [negate_facts(p.facts, 1.0, np.random.default_rng([seed, 6, i]))[0] for i, p in enumerate(rows)]
    return conditions


def accuracy(rows: Sequence[Preference], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The share of comparisons, ties left out, whose better answer scores higher."""
    return proportion(
        np.array(
            [s[c.better] > s[c.worse] + SCORE_TOLERANCE for _, s, c in _comparisons(rows, scores) if not c.is_tie], dtype=bool
        )
    )


def _comparisons(
    rows: Sequence[Preference], scores: Sequence[Sequence[float]]
) -> list[tuple[Preference, Sequence[float], Comparison]]:
    return [(p, s, c) for p, s in zip(rows, scores, strict=True) for c in p.comparisons]


def compute_metrics(rows: Sequence[Preference], scores: Sequence[Sequence[float]], temperature: float) -> dict[str, Any]:
    """Accuracy by group, and calibration at the model's temperature and at these rows' own best."""
    comparisons = [(p, s[c.better] - s[c.worse], c) for p, s, c in _comparisons(rows, scores)]
    decided = [(p, gap, c) for p, gap, c in comparisons if not c.is_tie]
    margins = np.array([gap for _, gap, _ in decided])

    def accuracy_by(group_name: Callable[[Preference, Comparison], str]) -> dict[str, Any]:
        groups = [group_name(p, c) for p, _, c in decided]
        return {n: proportion(margins[[m == n for m in groups]] > SCORE_TOLERANCE) for n in dict.fromkeys(sorted(groups))}

    def hallucination_label(p: Preference, c: Comparison) -> str:
        """What is said of the worst answer says nothing of the others."""
        return {True: "yes", False: "no", None: "unknown"}[p.hallucinated if c.worse == len(p.answers) - 1 else None]

    bins = preference_bins(margins, temperature)
    return {
        "accuracy": proportion(margins > SCORE_TOLERANCE),
        "by_source": accuracy_by(lambda p, _: p.source or "unknown"),
        "by_hallucinated": accuracy_by(hallucination_label),
        "by_length": accuracy_by(lambda p, c: length_bin(p.answers[c.better], p.answers[c.worse])),
        "ties": _tie_metrics(np.array([abs(gap) for _, gap, c in comparisons if c.is_tie]), np.abs(margins)),
        "calibration": {
            "temperature": temperature,
            "best_temperature": fit_temperature(margins),
            "ece": expected_calibration_error(bins),
            "ece_uncalibrated": expected_calibration_error(preference_bins(margins, 1.0)),
            "bins": [asdict(b) for b in bins],
        },
    }


def length_bin(better: str, worse: str) -> str:
    """How much longer the better answer is, in words."""
    a, b = len(better.split()), len(worse.split())
    gap = (a - b) / max(a, b, 1)
    names = ("1 much shorter", "2 shorter", "3 as long", "4 longer", "5 much longer")
    return names[int(np.searchsorted(LENGTH_GAP_EDGES, gap))]


def _tie_metrics(tie_gaps: np.ndarray, other_gaps: np.ndarray) -> dict[str, float] | None:
    """Whether scores of equal answers are nearer to each other than those of unequal ones: `auroc` 1 if always, 0.5 by chance."""
    if not len(tie_gaps) or not len(other_gaps):
        return None
    ranks = rankdata(np.concatenate([other_gaps, tie_gaps]))[: len(other_gaps)].sum()
    auroc = (ranks - len(other_gaps) * (len(other_gaps) + 1) / 2) / (len(other_gaps) * len(tie_gaps))
    return {
        "n": len(tie_gaps),
        "mean_gap": float(tie_gaps.mean()),
        "mean_gap_of_others": float(other_gaps.mean()),
        "auroc": float(auroc),
    }


def probe_metrics(probes: Sequence[Probe], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """By kind of claim: how often a false one lowers the score, how often a true one does, and how often the false one scores below
    the true one."""
    metrics: dict[str, Any] = {}
    for kind in PROBE_KINDS:
        s = np.array([s for s, p in zip(scores, probes, strict=True) if p.kind == kind]).reshape(-1, 3)
        if len(s):
            original, false_scores, true_scores = s.T
            metrics[kind] = {
                "false_lowers": proportion(false_scores < original), "true_lowers": proportion(true_scores < original), "false_below_true": proportion(false_scores < true_scores)
            }  # fmt: skip
    return metrics


# ---- showing ---------------------------------------------------------------------------------------------------------


def print_table(result: dict[str, Any]) -> None:
    """The table on the screen."""
    table = Table(title=f"{result['reward_model']} on {result['data']}", title_justify="left")
    for name, justify in (("", "left"), ("%", "right"), ("95% interval", "right"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]

    def add(label: str, metric: dict[str, Any]) -> None:
        if metric["n"]:
            table.add_row(
                label, f"{100 * metric['value']:.1f}", f"{100 * metric['low']:.1f} - {100 * metric['high']:.1f}", str(metric["n"])
            )

    add("accuracy", result["accuracy"])
    for title, key in (("source", "by_source"), ("hallucinated", "by_hallucinated"), ("the better answer is", "by_length")):
        if len(result[key]) > 1 or key == "by_length":
            for name, metric in result[key].items():
                add(f"  {title} {name.lstrip('12345 ')}", metric)
    for name, metric in result.get("facts_curve", {}).items():
        add(f"  facts {name}", metric)
    for kind, metric in result["probe"].items():
        add(f"a false {kind} lowers the score", metric["false_lowers"])
        add(f"  it scores below a true {kind} in the same words", metric["false_below_true"])
    console = Console(highlight=False)
    console.print(table)
    ece, uncalibrated_ece = result["calibration"]["ece"], result["calibration"]["ece_uncalibrated"]
    console.print(f"expected calibration error {ece:.3f} (without temperature {uncalibrated_ece:.3f})", soft_wrap=True)
    if result["ties"]:
        console.print(f"ties: their scores lie nearer than others' with AUROC {result['ties']['auroc']:.2f}", soft_wrap=True)


def plot_results(result: dict[str, Any], path: Path) -> None:
    """The reliability diagram, accuracy by facts, and the probe."""
    from matplotlib.figure import Figure

    panels = ["reliability", *(["facts"] if "facts_curve" in result else []), *(["probe"] if result["probe"] else [])]
    figure = Figure(figsize=(4.4 * len(panels), 3.9), layout="constrained")
    for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        if panel == "reliability":
            draw_reliability(axes, [Bin(**b) for b in result["calibration"]["bins"]], 0.5)
            axes.set(
                xlabel="how sure it is",
                ylabel="how often it is right",
                title=f"calibration error {result['calibration']['ece']:.3f}",
            )
        elif panel == "facts":
            _plot_bars(axes, result["facts_curve"], "#3f8f46", "accuracy by facts")
        else:
            bars = {f"{kind}{end}": row[key] for kind, row in result["probe"].items()
                     for end, key in ((", lowers", "false_lowers"), (", below true", "false_below_true"))}  # fmt: skip
            _plot_bars(axes, bars, "#d43f3a", "a planted false claim")
    figure.savefig(path, dpi=140)


def _plot_bars(axes: Any, metrics: dict[str, dict[str, Any]], colour: str, title: str) -> None:
    names, positions = list(metrics), np.arange(len(metrics))
    values = np.array([metrics[n]["value"] for n in names], dtype=float)
    errors = np.abs(np.array([[metrics[n]["low"] for n in names], [metrics[n]["high"] for n in names]]) - values)
    axes.barh(positions, values, xerr=errors, color=colour, alpha=0.75, error_kw={"elinewidth": 0.8})
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(yticks=positions, yticklabels=names, xlim=(0, 1), title=title)
    axes.invert_yaxis()
