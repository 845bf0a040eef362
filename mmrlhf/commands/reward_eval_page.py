"""The table, the sentences and the page of `mmrlhf reward-eval`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mmrlhf.commands.policy_outlook import (
    OTHER_FACTS,
    WITH_FACTS,
    WITHOUT_FACTS,
    draw_detection,
    draw_slopes,
    format_value,
    outlook_sentences,
)
from mmrlhf.commands.stats import format_stats_cell, length_figures, summary_stats
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.files.atomic import write_atomic
from mmrlhf.metrics.calibration import Bin, draw_reliability
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.records import CLAIM_KINDS, Preference
from mmrlhf.report.plots import style_context, to_inline_svg
from mmrlhf.report.templates import jinja_environment
from mmrlhf.rewards.probes import NOTHING_TO_INJECT


def table_rows(result: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the metrics as rows of a table: label, percent, 95% interval, number.

    Those of preferences are missing if only a policy's answers were scored.
    """
    rows = []

    def add(label: str, metric: dict[str, Any]) -> None:
        if metric["n"]:
            interval = f"{100 * metric['low']:.1f} to {100 * metric['high']:.1f}"
            rows.append((label, f"{100 * metric['value']:.1f}", interval, str(metric["n"])))

    if "accuracy" in result:
        add("accuracy", result["accuracy"])
    for title, key in (("source", "by_source"), ("hallucinated", "by_hallucinated"), ("the better answer is", "by_length")):
        if len(result.get(key, ())) > 1 or key == "by_length":
            for name, metric in result.get(key, {}).items():
                add(f"  {title} {name.lstrip('12345 ')}", metric)
    for name, metric in result.get("facts_curve", {}).items():
        add(f"  {_facts_label(name)}", metric)
    for name, metric in result.get("picture_curve", {}).items():
        add(f"  {_picture_label(name)}", metric)
    for kind, metric in result.get("probe", {}).items():
        add(f"an injected false {kind} lowers the score", metric["false_lowers"])
        add(f"  and below a true {kind} in the same words", metric["false_below_true"])
    for kind, metric in result.get("policy", {}).get("contradicted", {}).items():
        add(f"{kind} claims of the policy, contradicted", metric)
    return rows


def detection_rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return slopes and J on the policy's answers as rows of a table: kind of claim, condition of
    the facts, false claims, their first slope and J with intervals, TPR, FPR."""
    policy = result.get("policy", {})
    detection, slopes = policy.get("detection") or {}, policy.get("slopes") or {}
    kinds = [kind for kind in (*CLAIM_KINDS, ALL_KINDS) if any(kind in rates for rates in detection.values())]
    rows = []
    for kind in kinds:
        for name, rates in detection.items():
            if kind not in rates:
                continue
            figures, slope = rates[kind], slopes[name].get(kind, {}).get("false")
            rows.append(
                (
                    kind,
                    FACTS_COLUMN[name],
                    str(figures["num_false"]),
                    *(format_value(value) if value else "not measured" for value in (slope, figures["J"])),
                    *(f"{figures[key]['value']:.2f}" if figures[key] else "-" for key in ("TPR", "FPR")),
                )
            )
    return rows


DETECTION_COLUMNS = ("claims", "facts", "false", "first slope, 95%", "J, 95%", "TPR", "FPR")
"""Columns of `detection_rows`. The terminal shows all but the last two."""
FACTS_COLUMN = {WITH_FACTS: "own", WITHOUT_FACTS: "none", OTHER_FACTS: "another's"}


def _picture_label(condition: str) -> str:
    return "without the picture" if condition == "none" else f"with {'its own' if condition == 'own' else condition} picture"


def _facts_label(condition: str) -> str:
    """Return a condition of `perturbed_facts` in words: 75% left -> with 75% of the facts."""
    if condition.endswith("% left"):
        return f"with {condition.removesuffix(' left')} of the facts" if condition != "0% left" else "without facts"
    return {"as given": "with all facts", "another image's": "with another image's facts"}.get(
        condition, f"with {condition} facts"
    )


def print_table(result: dict[str, Any]) -> None:
    """Print the metrics as a table, and the findings below it."""
    table = Table(title=_title(result), title_justify="left")
    for name, justify in (("", "left"), ("%", "right"), ("95% interval", "right"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for row in table_rows(result):
        table.add_row(*row)
    console = Console(highlight=False)
    if table.row_count:
        console.print(table)
    if rows := detection_rows(result):
        title = _policy_title(result["policy"])
        caption = "slope of false claims per answer along the root of KL: below 0 they become rarer"
        detection = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
        for number, name in enumerate(DETECTION_COLUMNS[:-2]):
            detection.add_column(name, justify="left" if number < 2 else "right")
        for cells in rows:
            detection.add_row(*cells[:-2])
        console.print(detection)
    for sentence in findings(result):
        console.print(sentence, soft_wrap=True, markup=False)


def _title(result: dict[str, Any]) -> str:
    """Return what was measured on what: a reward model on pairs, or a reward on answers."""
    return f"{result['reward_model']} on {result['data']}" if result["data"] else _policy_title(result["policy"])


def _policy_title(policy: dict[str, Any]) -> str:
    return f"{policy['reward_terms']} on {policy['num_answers']} answers of the policy ({policy['num_prompts']} prompts)"


def findings(result: dict[str, Any]) -> list[str]:
    """Return sentences on a reward model (calibration, ties, the hallucinations that it misses),
    and on what a policy would learn."""
    outlook = outlook_sentences(result["policy"]) if "policy" in result else []
    return _model_sentences(result) + outlook if "calibration" in result else outlook


def _model_sentences(result: dict[str, Any]) -> list[str]:
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
    return sentences + _shortcut_sentences(result)


def _shortcut_sentences(result: dict[str, Any]) -> list[str]:
    """Return whether the accuracy comes from the text alone."""
    gain, curve = result.get("picture_gain"), result.get("picture_curve", {})
    if not gain or gain["low"] > 0:
        return []
    blind, own = curve["another row's"]["value"], curve["own"]["value"]
    return [
        f"With another row's picture it is right in {blind:.0%}, with the right one in {own:.0%} of the same comparisons "
        f"(difference {format_value(gain, ', {} to {}')}): it is not shown to look at the picture."
    ]


def write_page(result: dict[str, Any], rows: Sequence[Preference], path: Path) -> None:
    """Write one HTML page with the plots, the lengths of the rows' answers, and the tables.

    Without rows it is about the policy's answers alone.
    """
    summary = DatasetSummary()
    for row in rows:
        summary.add(row)
    headline = f"{_title(result)}."
    if accuracy_ := result.get("accuracy"):
        headline = (
            f"{result['reward_model']} prefers the better answer in {accuracy_['value']:.1%} of {accuracy_['n']} comparisons "
            f"(95% interval {accuracy_['low']:.1%} to {accuracy_['high']:.1%}; chance is 50%)."
        )
    with style_context():
        plots = [(to_inline_svg(figure, name), alt) for name, figure, alt in _figures(result)] if rows else []
        outlook_plots = [(to_inline_svg(figure, name), alt) for name, figure, alt in _policy_plots(result)]
        lengths = [(to_inline_svg(figure, name), alt) for name, figure, alt in length_figures(summary)] if rows else []
    stats = [(name.replace("_", " "), format_stats_cell(value)) for name, value in summary_stats(summary).items()] if rows else []
    html = (
        jinja_environment()
        .get_template("reward_eval.html.j2")
        .render(
            result=result,
            title=_title(result),
            headline=headline,
            findings=findings(result),
            outlook=outlook_sentences(result["policy"]) if "policy" in result else [],
            outlook_plots=outlook_plots,
            detection_columns=DETECTION_COLUMNS,
            detection_rows=detection_rows(result),
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


def _policy_plots(result: dict[str, Any]) -> Iterator[tuple[str, Figure, str]]:
    """Yield the pictures of slopes and of J on the policy's answers, if they were measured."""
    policy = result.get("policy", {})
    for name, key, draw in (("slopes", "false", draw_slopes), ("detection", "J", draw_detection)):
        if any(figures[key] for by_kind in (policy.get(name) or {}).values() for figures in by_kind.values()):
            figure = Figure(figsize=(6.4, 3.8), layout="constrained")
            yield name, figure, draw(figure.subplots(), policy[name])


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
