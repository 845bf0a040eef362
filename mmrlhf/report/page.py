"""The page: one HTML file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmrlhf.files.atomic import write_atomic
from mmrlhf.report.plots import CURVES, curve_plot, scatter_plot
from mmrlhf.report.results import (
    AFTER_PPO_PHRASES,
    MAIN_METRICS,
    METRICS,
    METRICS_BY_KEY,
    OTHER_METRICS,
    Metric,
    metric_interval,
    metric_value,
    model_style,
    models_on_split,
    split_at_claims,
)

SPLIT_TITLES = {
    "held_out": "Held out: new pictures of the kind trained on",
    "sampled": "Held out, four answers to each sampled at temperature 1",
    "ood_1": "Out of distribution 1: pairings of shape and colour never trained on",
    "ood_2": "Out of distribution 2: more objects than ever trained on",
    "ood_3": "Out of distribution 3: another background, more noise",
}
REWARD_MODEL_TITLES = {"plain": "without facts", "fact": "with facts"}


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    gallery: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> None:
    """Write the report as one HTML file.

    summary: models -> splits -> metrics with NAME_ci beside NAME; sampled -> models -> metrics; reward_models; kl; seconds. Any of
    it may be missing.
    curves: for each PPO run its lines of metrics.jsonl. gallery: image (PNG bytes), id, prompt, facts, answers of
    models with judged claims. notes: what else to say of the run, name and text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    held_out = models_on_split(summary, "held_out")
    seconds = {stage: float(duration) for stage, duration in (summary.get("seconds") or {}).items() if duration is not None}
    html = environment.get_template("page.html.j2").render(
        headline=headline(summary),
        tables=[
            _split_table(models, split, title)
            for split, title in SPLIT_TITLES.items()
            if (models := models_on_split(summary, split))
        ],
        scatter=scatter_plot(held_out),
        curves=[plot for curve in CURVES if (plot := curve_plot(curves, *curve))],
        gallery=[_gallery_entry(entry) for entry in gallery],
        rewards=[
            (REWARD_MODEL_TITLES.get(name, name), _format_cell(row, Metric("accuracy", "accuracy", "higher", "")))
            for name, row in (summary.get("reward_models") or {}).items()
        ],
        kl=[(model_style(name).title, f"{kl:.2f}") for name, kl in (summary.get("kl") or {}).items() if kl is not None],
        seconds=[(stage, _format_duration(duration)) for stage, duration in seconds.items()],
        total=_format_duration(sum(seconds.values())),
        metrics=METRICS,
        models=[model_style(name) for name in held_out],
        notes=notes,
    )
    write_atomic(Path(path), html)


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence on what happened to false claims and coverage on held-out pictures, as the numbers have it."""
    models = models_on_split(summary, "held_out")
    after = next((name for name in AFTER_PPO_PHRASES if name in models), None)
    if "sft" not in models or after is None:
        return "There is no run before and after PPO to compare"
    false_claims_change = _describe_change(models["sft"], models[after], METRICS_BY_KEY["chair_s"], "fall")
    if not false_claims_change:
        return "False claims were not measured before and after PPO"
    coverage_change = _describe_change(models["sft"], models[after], METRICS_BY_KEY["coverage"], "change")
    num_images = models[after].get("n")
    sentence = f"{AFTER_PPO_PHRASES[after]}, answers with a false claim {false_claims_change}" + (
        f"; coverage {coverage_change}" if coverage_change else ""
    )
    return sentence + (f" ({num_images} held-out pictures)" if num_images else "")


def _describe_change(before: Mapping[str, Any], after: Mapping[str, Any], metric: Metric, expected: str) -> str:
    """As in "fell from 42.0% to 6.0%"; "did not HOPED ..." if the intervals overlap; "" without numbers."""
    value_before, value_after = metric_value(before, metric.key), metric_value(after, metric.key)
    if value_before is None or value_after is None:
        return ""
    text_before, text_after = metric.format_value(value_before), metric.format_value(value_after)
    low_before, high_before = metric_interval(before, metric.key) or (value_before, value_before)
    low_after, high_after = metric_interval(after, metric.key) or (value_after, value_after)
    if high_after < low_before:
        return f"fell from {text_before} to {text_after}"
    if low_after > high_before:
        return f"rose from {text_before} to {text_after}"
    qualifier = " measurably" if value_after < value_before or expected == "change" else ""
    return f"did not {expected}{qualifier}, {text_before} before and {text_after} after"


def _split_table(models: Mapping[str, Mapping[str, Any]], split: str, title: str) -> dict[str, Any]:
    """Two blocks of columns, so that neither is wider than a page; the second only for held-out pictures."""
    blocks = []
    for metrics in (MAIN_METRICS, OTHER_METRICS) if split in ("held_out", "sampled") else (MAIN_METRICS,):
        present_metrics = [
            metric for metric in metrics if any(metric_value(row, metric.key) is not None for row in models.values())
        ]
        if present_metrics:
            rows = [
                (model_style(name), [_format_cell(row, metric) for metric in present_metrics]) for name, row in models.items()
            ]
            blocks.append({"metrics": present_metrics, "rows": rows})
    counts = sorted({row["n"] for row in models.values() if row.get("n")})
    return {"id": split, "title": title, "blocks": blocks, "n": " to ".join(map(str, counts[:: len(counts) - 1 or 1]))}


def _format_cell(row: Mapping[str, Any], metric: Metric) -> tuple[str, str]:
    """A value and its interval, "" where there is none."""
    value, interval = metric_value(row, metric.key), metric_interval(row, metric.key)
    return ("" if value is None else metric.format_value(value)), (metric.format_interval(*interval) if interval else "")


def _gallery_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    answers = []
    for answer in entry["answers"]:
        segments = split_at_claims(answer["text"], answer["claims"])
        answers.append(
            {"model": model_style(answer["model"]), "pieces": segments, "false": any(segment.false for segment in segments)}
        )
    image = "data:image/png;base64," + base64.b64encode(entry["image"]).decode()
    return {"image": image, "answers": answers, **{name: entry[name] for name in ("id", "prompt", "facts")}}


def _format_duration(seconds: float) -> str:
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {remainder} s" if minutes else f"{seconds:.1f} s"
