"""`mmrlhf reward-eval`: measure how reliable a reward model is on held-out preferences.

It reports accuracy (overall, by source, by hallucination flag, by length), how well scores separate
ties, calibration, the effect of injected false claims, and accuracy with facts that are missing,
about another image, or contradicted. Intervals are 95% (Wilson).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from mmrlhf.commands.stats import format_stats_cell, length_figures, summary_stats
from mmrlhf.config import RewardEvalConfig
from mmrlhf.datasets import read_preferences
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.facts import read_facts
from mmrlhf.facts.corrupt import drop_facts, negate_facts
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.metrics.calibration import (
    Bin,
    draw_reliability,
    expected_calibration_error,
    fit_temperature,
    preference_bins,
    proportion,
)
from mmrlhf.records import Comparison, Fact, InputError, Preference
from mmrlhf.report.page import jinja_environment
from mmrlhf.report.plots import style_context, to_inline_svg
from mmrlhf.report.progress import progress
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.probes import NOTHING_TO_INJECT, PROBE_KINDS, Probe, make_probes
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.training.row_checks import refuse_unusable
from mmrlhf.training.run import Run

LENGTH_GAP_EDGES = (-0.25, -0.05, 0.05, 0.25)
"""Edges of the length bins: difference in words, better minus worse, over the longer answer."""
FACT_FRACTIONS = (0.75, 0.5, 0.25, 0.0)
"""Fractions of each row's facts to keep."""
SCORE_TOLERANCE = 1e-9
"""Scores closer than this count as equal."""


def reward_eval(config: RewardEvalConfig, preferences: Sequence[Preference] | None = None) -> dict[str, Any]:
    """Score the rows, compute metrics, and plot them; return the content of result.json.

    If the command is killed, the same command resumes. Raises InputError if all rows are ties.
    """
    run = Run(config.output_dir, config)
    if preferences is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        preferences = read_preferences(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    run.claim_rows(preferences)
    if run.finished is not None:
        run.print_finished(run.path / "result.json")
        return run.finished
    rows = list(preferences[: config.limit] if config.limit else preferences)
    if all(comparison.is_tie for row in rows for comparison in row.comparisons):
        raise InputError(f"{config.dataset_name} has ties only: accuracy needs rows with a better and a worse answer")
    model = load_reward_model(
        config.reward_model_path,
        max_length=config.max_length,
        engine=config,
        base_model_name_or_path=config.base_model_name_or_path,
    )
    refuse_unusable(model, rows, lambda row: _answer_group(row, row.facts), config.dataset_name, run.console)
    model = replace(model, max_length=1 << 30)  # rows fit, and a probe or other facts may be a little longer
    probes = make_probes(rows[: config.probes], seed=config.seed)

    # 1. Score the rows, with one file per condition of the facts
    uses_facts = model.facts == "given" and any(row.facts for row in rows)
    fact_conditions = perturbed_facts(rows, config.seed) if uses_facts else {}
    groups_by_condition = {
        "as given": [_answer_group(row, row.facts) for row in rows],
        "probes": [_probe_group(probe) for probe in probes],
    }
    for name, condition_facts in fact_conditions.items():
        groups_by_condition[name] = [_answer_group(row, facts) for row, facts in zip(rows, condition_facts, strict=True)]
    run.begin()
    inputs = {**run.inputs, "limit": config.limit, "probes": config.probes, "seed": config.seed}
    with progress(sum(map(len, groups_by_condition.values())), "reward-eval") as progress_bar:
        scores = {}
        for name, groups in groups_by_condition.items():
            scores_path = run.path / "scores" / f"{re.sub(r'[^a-z0-9]+', '_', name)}.jsonl"
            scores[name] = _score_groups(model, groups, scores_path, inputs, config.batch_size, progress_bar.advance)

    # 2. Compute the metrics
    result = {
        "reward_model": config.reward_model_path,
        "data": config.dataset_name,
        "n": len(rows),
        "facts": model.facts,
        "probes": config.probes,
    }
    result |= compute_metrics(rows, scores["as given"], model.temperature)
    result["probe"] = probe_metrics(probes, scores["probes"])
    if fact_conditions:
        result["facts_curve"] = {name: accuracy(rows, scores[name]) for name in ("as given", *fact_conditions)}
    write_atomic(run.path / "result.json", json.dumps(result, indent=1))
    write_page(result, rows, run.path / "report.html")
    run.finish(result)
    print_table(result)
    return result


def _answer_group(preference: Preference, facts: Sequence[Fact]) -> AnswerGroup:
    return AnswerGroup(preference.images, preference.prompt, preference.answers, tuple(facts), preference.id)


def _probe_group(probe: Probe) -> AnswerGroup:
    return replace(probe.group, answers=(probe.group.answers[0], probe.false_answer, probe.true_answer))


def _score_groups(
    model: RewardModel,
    groups: Sequence[AnswerGroup],
    path: Path,
    inputs: Mapping[str, Any],
    batch_size: int,
    advance: Callable[[int], None],
) -> list[list[float]]:
    """Write the groups' scores to a file, which a killed command continues, and return them."""
    writer = ResumableWriter(path, inputs)
    if writer.is_finished:
        advance(len(groups))
        return [row["scores"] for row in read_jsonl(path)]
    advance(writer.num_done)
    for start in range(writer.num_done, len(groups), batch_size):
        batch = groups[start : start + batch_size]
        scored_groups = zip(batch, model.score(batch), strict=True)
        writer.append([json_line({"id": group.id, "scores": scores}) for group, scores in scored_groups])
        advance(len(batch))
    writer.finish()
    return [row["scores"] for row in read_jsonl(path)]


# ---- metrics -------------------------------------------------------------------------------------


def perturbed_facts(rows: Sequence[Preference], seed: int) -> dict[str, list[tuple[Fact, ...]]]:
    """Return corrupted facts of every row, by condition.

    The conditions are fewer facts, the facts of the next row with another image, and contradicted
    facts.
    """
    conditions = {}
    for fraction in FACT_FRACTIONS:
        conditions[f"{fraction:.0%} left"] = [
            drop_facts(row.facts, fraction, np.random.default_rng([seed, 5, index])) for index, row in enumerate(rows)
        ]
    other_facts = []
    for index, row in enumerate(rows):
        candidates = (rows[(index + offset) % len(rows)] for offset in range(1, len(rows)))
        other_facts.append(next((other.facts for other in candidates if other.facts and other.images != row.images), ()))
    conditions["another image's"] = other_facts
    conditions["contradicted"] = [
        negate_facts(row.facts, 1.0, np.random.default_rng([seed, 6, index]))[0] for index, row in enumerate(rows)
    ]
    return conditions


def accuracy(rows: Sequence[Preference], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return how often the better answer scores higher, in comparisons that are not ties."""
    is_correct = [
        row_scores[comparison.better] > row_scores[comparison.worse] + SCORE_TOLERANCE
        for _, row_scores, comparison in _comparisons(rows, scores)
        if not comparison.is_tie
    ]
    return proportion(np.array(is_correct, dtype=bool))


def _comparisons(
    rows: Sequence[Preference], scores: Sequence[Sequence[float]]
) -> list[tuple[Preference, Sequence[float], Comparison]]:
    return [(row, row_scores, comparison) for row, row_scores in zip(rows, scores, strict=True) for comparison in row.comparisons]


def compute_metrics(rows: Sequence[Preference], scores: Sequence[Sequence[float]], temperature: float) -> dict[str, Any]:
    """Return accuracy by group, and calibration at the model's temperature and at the best one."""
    comparisons = [
        (row, row_scores[comparison.better] - row_scores[comparison.worse], comparison)
        for row, row_scores, comparison in _comparisons(rows, scores)
    ]
    decided = [(row, margin, comparison) for row, margin, comparison in comparisons if not comparison.is_tie]
    margins = np.array([margin for _, margin, _ in decided])

    def accuracy_by(group_name: Callable[[Preference, Comparison], str]) -> dict[str, Any]:
        names = np.array([group_name(row, comparison) for row, _, comparison in decided])
        return {name: proportion(margins[names == name] > SCORE_TOLERANCE) for name in sorted(set(names.tolist()))}

    tie_gaps = [abs(margin) for _, margin, comparison in comparisons if comparison.is_tie]
    bins = preference_bins(margins, temperature)
    return {
        "accuracy": proportion(margins > SCORE_TOLERANCE),
        "by_source": accuracy_by(lambda row, _: row.source or "unknown"),
        "by_hallucinated": accuracy_by(_hallucination_label),
        "by_length": accuracy_by(
            lambda row, comparison: length_bin(row.answers[comparison.better], row.answers[comparison.worse])
        ),
        "ties": _tie_metrics(np.array(tie_gaps), np.abs(margins)),
        "calibration": {
            "temperature": temperature,
            "best_temperature": fit_temperature(margins),
            "ece": expected_calibration_error(bins),
            "ece_uncalibrated": expected_calibration_error(preference_bins(margins, 1.0)),
            "bins": [asdict(bin_) for bin_ in bins],
        },
    }


def _hallucination_label(row: Preference, comparison: Comparison) -> str:
    # A row's flag describes only its worst answer, which is the last one.
    is_about_worst = comparison.worse == len(row.answers) - 1
    return {True: "yes", False: "no", None: "unknown"}[row.hallucinated if is_about_worst else None]


def length_bin(better: str, worse: str) -> str:
    """Return the length bin of a comparison: how much longer, in words, the better answer is."""
    num_better, num_worse = len(better.split()), len(worse.split())
    gap = (num_better - num_worse) / max(num_better, num_worse, 1)
    names = ("1 much shorter", "2 shorter", "3 as long", "4 longer", "5 much longer")
    return names[int(np.searchsorted(LENGTH_GAP_EDGES, gap))]


def _tie_metrics(tie_gaps: np.ndarray, other_gaps: np.ndarray) -> dict[str, float] | None:
    """Return how well score gaps separate ties from other pairs: AUROC is 1 if ties are closer."""
    if not len(tie_gaps) or not len(other_gaps):
        return None
    # Mann-Whitney: the rank sum of the other gaps, less its minimum, over the number of pairs.
    rank_sum = rankdata(np.concatenate([other_gaps, tie_gaps]))[: len(other_gaps)].sum()
    auroc = (rank_sum - len(other_gaps) * (len(other_gaps) + 1) / 2) / (len(other_gaps) * len(tie_gaps))
    return {
        "n": len(tie_gaps),
        "mean_gap": float(tie_gaps.mean()),
        "mean_gap_of_others": float(other_gaps.mean()),
        "auroc": float(auroc),
    }


def probe_metrics(probes: Sequence[Probe], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return, by kind of claim, how an injected claim changes the score.

    `false_lowers` and `true_lowers` are how often a false or a true claim lowers the score, and
    `false_below_true` is how often the false one scores below the true one.
    """
    metrics: dict[str, Any] = {}
    for kind in PROBE_KINDS:
        kind_scores = [probe_scores for probe_scores, probe in zip(scores, probes, strict=True) if probe.kind == kind]
        if not kind_scores:
            continue
        original, false_scores, true_scores = np.array(kind_scores).T
        metrics[kind] = {
            "false_lowers": proportion(false_scores < original),
            "true_lowers": proportion(true_scores < original),
            "false_below_true": proportion(false_scores < true_scores),
        }
    return metrics


# ---- output --------------------------------------------------------------------------------------


def table_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the metrics as rows of a table: label, percent, 95% interval, number."""
    rows = []

    def add(label: str, metric: dict[str, Any]) -> None:
        if metric["n"]:
            interval = f"{100 * metric['low']:.1f} to {100 * metric['high']:.1f}"
            rows.append((label, f"{100 * metric['value']:.1f}", interval, str(metric["n"])))

    add("accuracy", result["accuracy"])
    for title, key in (("source", "by_source"), ("hallucinated", "by_hallucinated"), ("the better answer is", "by_length")):
        if len(result[key]) > 1 or key == "by_length":
            for name, metric in result[key].items():
                add(f"  {title} {name.lstrip('12345 ')}", metric)
    for name, metric in result.get("facts_curve", {}).items():
        add(f"  {_facts_label(name)}", metric)
    for kind, metric in result["probe"].items():
        add(f"an injected false {kind} lowers the score", metric["false_lowers"])
        add(f"  and below a true {kind} in the same words", metric["false_below_true"])
    return rows


def _facts_label(condition: str) -> str:
    """Return a condition of `perturbed_facts` in words: 75% left -> with 75% of the facts."""
    if condition.endswith("% left"):
        return f"with {condition.removesuffix(' left')} of the facts" if condition != "0% left" else "without facts"
    return {"as given": "with all facts", "another image's": "with another image's facts"}.get(
        condition, f"with {condition} facts"
    )


def print_table(result: dict[str, Any]) -> None:
    """Print the metrics as a table, and the findings below it."""
    table = Table(title=f"{result['reward_model']} on {result['data']}", title_justify="left")
    for name, justify in (("", "left"), ("%", "right"), ("95% interval", "right"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in table_rows(result):
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    for sentence in findings(result):
        console.print(sentence, soft_wrap=True, markup=False)


def findings(result: dict[str, Any]) -> list[str]:
    """Return sentences on calibration, ties, and the hallucinations that the model misses."""
    ece, uncalibrated_ece = result["calibration"]["ece"], result["calibration"]["ece_uncalibrated"]
    sentences = [f"Expected calibration error {ece:.3f} (without temperature {uncalibrated_ece:.3f})."]
    if result["ties"]:
        sentences.append(f"Ties have closer scores than other pairs with AUROC {result['ties']['auroc']:.2f}.")
    if result.get("probes") and not result["probe"]:
        sentences.append(f"No hallucinations were injected: {NOTHING_TO_INJECT}.")
    missed = [
        f"{kind} ({metrics['false_below_true']['value']:.0%})"
        for kind, metrics in result["probe"].items()
        if metrics["false_below_true"]["low"] <= 0.5
    ]
    if missed:
        sentences.append(f"It is not shown to tell false from true claims of these kinds (chance is 50%): {', '.join(missed)}.")
    return sentences


def write_page(result: dict[str, Any], rows: Sequence[Preference], path: Path) -> None:
    """Write one HTML page with the plots, the lengths of the rows' answers, and the tables."""
    summary = DatasetSummary()
    for row in rows:
        summary.add(row)
    accuracy_ = result["accuracy"]
    headline = (
        f"{result['reward_model']} prefers the better answer in {accuracy_['value']:.1%} of {accuracy_['n']} comparisons "
        f"(95% interval {accuracy_['low']:.1%} to {accuracy_['high']:.1%}; chance is 50%)."
    )
    with style_context():
        plots = [(to_inline_svg(figure, name), alt) for name, figure, alt in _figures(result)]
        lengths = [(to_inline_svg(figure, name), alt) for name, figure, alt in length_figures(summary)]
    stats = [(name.replace("_", " "), format_stats_cell(value)) for name, value in summary_stats(summary).items()]
    html = (
        jinja_environment()
        .get_template("reward_eval.html.j2")
        .render(
            result=result,
            headline=headline,
            findings=findings(result),
            plots=plots,
            lengths=lengths,
            rows=table_rows(result),
            stats=[(name, text) for name, text in stats if text not in ("", "0")],
        )
    )
    write_atomic(path, html)


def _figures(result: dict[str, Any]) -> Iterator[tuple[str, Figure, str]]:
    """Yield (id, figure, description): reliability, accuracy by facts, injected hallucinations."""
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.subplots()
    draw_reliability(axes, [Bin(**bin_) for bin_ in result["calibration"]["bins"]], 0.5)
    axes.set(xlabel="confidence", ylabel="accuracy", title=f"calibration error {result['calibration']['ece']:.3f}")
    yield "reliability", figure, "Reliability diagram: accuracy against confidence."
    if "facts_curve" in result:
        bars = {_facts_label(name): metric for name, metric in result["facts_curve"].items()}
        yield _bars("facts", bars, "#12a08f", "accuracy by facts")
    if result["probe"]:
        bars = {}
        for kind, metrics in result["probe"].items():
            bars |= {f"{kind}, lowers": metrics["false_lowers"], f"{kind}, below true": metrics["false_below_true"]}
        yield _bars("injected", bars, "#d43f3a", "an injected hallucination")


def _bars(id_: str, metrics: dict[str, dict[str, Any]], colour: str, title: str) -> tuple[str, Figure, str]:
    names, positions = list(metrics), np.arange(len(metrics))
    values = np.array([metrics[name]["value"] for name in names], dtype=float)
    bounds = np.array([[metrics[name][bound] for name in names] for bound in ("low", "high")])
    figure = Figure(figsize=(4.2, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        positions, values, xerr=np.abs(bounds - values), color=colour, alpha=0.75, error_kw={"elinewidth": 0.8, "ecolor": "0.5"}
    )
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(yticks=positions, yticklabels=names, xlim=(0, 1), title=title)
    axes.invert_yaxis()
    return id_, figure, f"{title}: " + "; ".join(f"{name} {value:.0%}" for name, value in zip(names, values, strict=True)) + "."
