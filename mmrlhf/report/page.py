"""The report page: one HTML file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import write_atomic
from mmrlhf.report.plots import CURVES, curve_plot, scatter_plot
from mmrlhf.report.results import (
    AFTER_PPO_PHRASES,
    MAIN_METRICS,
    METRICS,
    METRICS_BY_KEY,
    OTHER_METRICS,
    Metric,
    format_duration,
    metric_interval,
    metric_value,
    model_style,
    models_on_split,
    policy_after_ppo,
    same_kl_sentence,
    split_at_claims,
)
from mmrlhf.report.templates import jinja_environment

SPLIT_TITLES = {
    "held_out": "Held out: new images of the kind trained on",
    "sampled": "Held out, four answers per prompt sampled at temperature 1",
    "ood_1": "Out of distribution 1: shape-colour pairings never trained on",
    "ood_2": "Out of distribution 2: more objects than in training",
    "ood_3": "Out of distribution 3: another background, more noise",
}
REWARD_MODEL_TITLES = {"plain": "without facts", "fact": "with facts"}
NUM_SHOWN_IMAGES = 4
"""Images of the gallery that are visible at once; the others are folded."""


def write_report(
    path: Path,
    summary: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    gallery: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> None:
    """Write the report as one HTML file: images and plots first, then folded tables.

    summary: models -> splits -> metrics, each NAME with its interval NAME_ci; sampled -> models ->
    metrics; reward_models; kl; same_kl; seconds. Anything missing is left out of the page.
    curves: rows of metrics.jsonl by PPO run.
    gallery: image (PNG bytes), id, prompt, facts, and the answers of models with verified claims.
    notes: settings of the run, name -> text.
    """
    held_out = models_on_split(summary, "held_out")
    after = policy_after_ppo(held_out)
    seconds = {stage: float(duration) for stage, duration in (summary.get("seconds") or {}).items() if duration is not None}
    splits = {split: models_on_split(summary, split) for split in SPLIT_TITLES}
    accuracy = Metric("accuracy", "accuracy", "higher", "")
    rewards = [
        (REWARD_MODEL_TITLES.get(name, name), _format_cell(row, accuracy))
        for name, row in (summary.get("reward_models") or {}).items()
    ]
    kl = [(model_style(name).title, f"{kl:.2f}") for name, kl in (summary.get("kl") or {}).items() if kl is not None]
    plots = (curve_plot(curves, *curve) for curve in CURVES)
    html = (
        jinja_environment()
        .get_template("page.html.j2")
        .render(
            headline=headline(summary),
            same_kl=same_kl_sentence(summary),
            gallery=[_gallery_entry(entry, ("sft", after)) for entry in gallery],
            num_shown=NUM_SHOWN_IMAGES,
            scatter=scatter_plot(held_out),
            curves=[plot for plot in plots if plot],
            tables=[_split_table(models, split) for split, models in splits.items() if models],
            rewards=rewards,
            reward_summary=_join_values("", [(name, value) for name, (value, _) in rewards]),
            kl=kl,
            kl_summary=_join_values("nats per answer", kl),
            seconds=[(stage, format_duration(duration)) for stage, duration in seconds.items()],
            total=format_duration(sum(seconds.values())),
            metrics=METRICS,
            models=[model_style(name) for name in held_out],
            notes=notes,
        )
    )
    write_atomic(Path(path), html)


def headline(summary: Mapping[str, Any]) -> str:
    """Return one sentence on how PPO changed false claims and recall on held-out images."""
    models = models_on_split(summary, "held_out")
    after = policy_after_ppo(models)
    if "sft" not in models or after is None:
        return "There is no run before and after PPO to compare"
    false_claims_change = _describe_change(models["sft"], models[after], METRICS_BY_KEY["chair_s"], "fall")
    if not false_claims_change:
        return "False claims were not measured before and after PPO"
    coverage_change = _describe_change(models["sft"], models[after], METRICS_BY_KEY["coverage"], "change")
    num_images = models[after].get("n")
    sentence = f"{AFTER_PPO_PHRASES[after]}, answers with a false claim {false_claims_change}"
    if coverage_change:
        sentence += f"; recall {coverage_change}"
    return f"{sentence} ({num_images} held-out images)" if num_images else sentence


def _describe_change(before: Mapping[str, Any], after: Mapping[str, Any], metric: Metric, expected: str) -> str:
    """Describe a change of a metric as the predicate of a sentence, or return "" without numbers.

    It is "fell from 42.0% to 6.0%" if the intervals do not overlap, else "did not `expected` ...".
    """
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


def _split_table(models: Mapping[str, Mapping[str, Any]], split: str) -> dict[str, Any]:
    """Return a split's table in blocks of columns, none wider than the page.

    Only held-out images have the second block.
    """
    blocks = []
    for metrics in (MAIN_METRICS, OTHER_METRICS) if split in ("held_out", "sampled") else (MAIN_METRICS,):
        present_metrics = [m for m in metrics if any(metric_value(row, m.key) is not None for row in models.values())]
        if present_metrics:
            rows = [(model_style(name), [_format_cell(row, m) for m in present_metrics]) for name, row in models.items()]
            blocks.append({"metrics": present_metrics, "rows": rows})
    counts = sorted({row["n"] for row in models.values() if row.get("n")})
    num_images = " to ".join(dict.fromkeys((str(counts[0]), str(counts[-1])))) if counts else ""
    return {"title": SPLIT_TITLES[split], "summary": _split_summary(models), "blocks": blocks, "n": num_images}


def _split_summary(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Compare SFT and the policy trained from it in a sentence, or return "" if one is missing."""
    after, metric = policy_after_ppo(models), METRICS_BY_KEY["chair_s"]
    values = [(name, metric_value(models[name], metric.key)) for name in ("sft", after) if name and name in models]
    texts = [(model_style(name).title, metric.format_value(value)) for name, value in values if value is not None]
    return f"Answers with a false claim: {_join_values('', texts)}" if len(texts) == 2 else ""


def _join_values(unit: str, values: Sequence[tuple[str, str]]) -> str:
    """Join names and values, as in `without facts 70.0%; with facts 80.0%.`"""
    text = "; ".join(f"{name} {value}" for name, value in values if value)
    return f"{text} {unit}".strip() + "." if text else ""


def _format_cell(row: Mapping[str, Any], metric: Metric) -> tuple[str, str]:
    """Return a value and its interval as text, each "" if missing."""
    value, interval = metric_value(row, metric.key), metric_interval(row, metric.key)
    return ("" if value is None else metric.format_value(value)), (metric.format_interval(*interval) if interval else "")


def _gallery_entry(entry: Mapping[str, Any], compared: Sequence[str | None]) -> dict[str, Any]:
    """Return a card of the gallery. Models not in `compared` are put among the folded answers."""
    answers: list[dict[str, Any]] = []
    other_answers: list[dict[str, Any]] = []
    for answer in entry["answers"]:
        segments = split_at_claims(answer["text"], answer["claims"])
        is_false = any(segment.false for segment in segments)
        card_answer = {"model": model_style(answer["model"]), "segments": segments, "false": is_false}
        (answers if answer["model"] in compared else other_answers).append(card_answer)
    image = "data:image/png;base64," + base64.b64encode(entry["image"]).decode()
    return {
        "image": image,
        "answers": answers,
        "other_answers": other_answers,
        **{name: entry[name] for name in ("id", "prompt", "facts")},
    }
