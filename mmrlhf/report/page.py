"""The page: one HTML file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmrlhf.files import write_whole
from mmrlhf.report.plots import CURVES, curve_plot, scatter_plot
from mmrlhf.report.results import (
    AFTER,
    MAIN,
    METRIC,
    METRICS,
    OTHER,
    Metric,
    interval_of,
    model_named,
    models_on,
    pieces,
    value_of,
)

SPLITS = {
    "held_out": "Held out: new pictures of the kind trained on",
    "sampled": "Held out, four answers to each sampled at temperature 1",
    "ood_1": "Out of distribution 1: pairings of shape and colour never trained on",
    "ood_2": "Out of distribution 2: more objects than ever trained on",
    "ood_3": "Out of distribution 3: another background, more noise",
}
REWARDS = {"plain": "without facts", "fact": "with facts"}


def write(
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
    held_out = models_on(summary, "held_out")
    seconds = {stage: float(s) for stage, s in (summary.get("seconds") or {}).items() if s is not None}
    page = environment.get_template("page.html.j2").render(
        headline=headline(summary),
        tables=[_table(models, split, title) for split, title in SPLITS.items() if (models := models_on(summary, split))],
        scatter=scatter_plot(held_out),
        curves=[drawn for curve in CURVES if (drawn := curve_plot(curves, *curve))],
        gallery=[_exhibit(entry) for entry in gallery],
        rewards=[
            (REWARDS.get(name, name), _cell(row, Metric("accuracy", "accuracy", "higher", "")))
            for name, row in (summary.get("reward_models") or {}).items()
        ],
        kl=[(model_named(name).title, f"{kl:.2f}") for name, kl in (summary.get("kl") or {}).items() if kl is not None],
        seconds=[(stage, _duration(s)) for stage, s in seconds.items()],
        total=_duration(sum(seconds.values())),
        metrics=METRICS,
        models=[model_named(name) for name in held_out],
        notes=notes,
    )
    write_whole(Path(path), page)


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence on what happened to false claims and coverage on held-out pictures, as the numbers have it."""
    models = models_on(summary, "held_out")
    after = next((name for name in AFTER if name in models), None)
    if "sft" not in models or after is None:
        return "There is no run before and after PPO to compare"
    false = _change(models["sft"], models[after], METRIC["chair_s"], "fall")
    if not false:
        return "False claims were not measured before and after PPO"
    covered = _change(models["sft"], models[after], METRIC["coverage"], "change")
    count = models[after].get("n")
    sentence = f"{AFTER[after]}, answers with a false claim {false}" + (f"; coverage {covered}" if covered else "")
    return sentence + (f" ({count} held-out pictures)" if count else "")


def _change(before: Mapping[str, Any], after: Mapping[str, Any], metric: Metric, hoped: str) -> str:
    """As in "fell from 42.0% to 6.0%"; "did not HOPED ..." if the intervals overlap; "" without numbers."""
    a, b = value_of(before, metric.key), value_of(after, metric.key)
    if a is None or b is None:
        return ""
    old, new = metric.text(a), metric.text(b)
    a_low, a_high = interval_of(before, metric.key) or (a, a)
    b_low, b_high = interval_of(after, metric.key) or (b, b)
    if b_high < a_low:
        return f"fell from {old} to {new}"
    if b_low > a_high:
        return f"rose from {old} to {new}"
    measurably = " measurably" if b < a or hoped == "change" else ""
    return f"did not {hoped}{measurably}, {old} before and {new} after"


def _table(models: Mapping[str, Mapping[str, Any]], split: str, title: str) -> dict[str, Any]:
    """Two blocks of columns, so that neither is wider than a page; the second only for held-out pictures."""
    blocks = []
    for metrics in (MAIN, OTHER) if split in ("held_out", "sampled") else (MAIN,):
        there = [metric for metric in metrics if any(value_of(row, metric.key) is not None for row in models.values())]
        if there:
            rows = [(model_named(name), [_cell(row, metric) for metric in there]) for name, row in models.items()]
            blocks.append({"metrics": there, "rows": rows})
    counts = sorted({row["n"] for row in models.values() if row.get("n")})
    return {"id": split, "title": title, "blocks": blocks, "n": " to ".join(map(str, counts[:: len(counts) - 1 or 1]))}


def _cell(row: Mapping[str, Any], metric: Metric) -> tuple[str, str]:
    """A value and its interval, "" where there is none."""
    value, interval = value_of(row, metric.key), interval_of(row, metric.key)
    return ("" if value is None else metric.text(value)), (metric.bounds(*interval) if interval else "")


def _exhibit(entry: Mapping[str, Any]) -> dict[str, Any]:
    answers = []
    for answer in entry["answers"]:
        cut = pieces(answer["text"], answer["claims"])
        answers.append({"model": model_named(answer["model"]), "pieces": cut, "false": any(piece.false for piece in cut)})
    image = "data:image/png;base64," + base64.b64encode(entry["image"]).decode()
    return {"image": image, "answers": answers, **{name: entry[name] for name in ("id", "prompt", "facts")}}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
