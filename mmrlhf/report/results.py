"""What a summary holds and under which name it is shown: metrics, models, intervals, and answers cut at their claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A column: its key in the summary, its head, what it says in one line, and which way is good."""

    key: str
    title: str
    better: str
    meaning: str
    percent: bool = True

    def format_value(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}"

    def format_interval(self, low: float, high: float) -> str:
        return f"{100 * low:.1f}–{100 * high:.1f}" if self.percent else f"{low:.2f}–{high:.2f}"


METRICS = (
    Metric("chair_s", "chair_s", "lower", "Answers with at least one false claim, of all answers."),
    Metric("chair_i", "chair_i", "lower", "False claims, of all claims made. Truth in the plot is 1 − chair_i."),
    Metric("cooccurrence_errors", "co-occurrence errors", "lower", "False claims per answer that come of a habit in the training captions: "
           "a thing in the picture calls for an absent one.", percent=False),
    Metric("perception_errors", "perception errors", "lower", "All other false claims per answer: the picture was misread.", percent=False),
    Metric("coverage", "coverage", "higher", "Of what a full description says, the share that was said. "
           "It falls when a model learns to say less."),
    Metric("claim_f1", "claim F1", "higher", "Harmonic mean of truth and coverage: silence does not pay."),
    Metric("utility", "utility", "higher", "Utility of an answer: true claims minus a multiple of the false ones.", percent=False),
    Metric("mean_length", "length", "", "Mean length of an answer.", percent=False),
    Metric("ead", "EAD", "higher", "How varied answers are: distinct words, against how many one would expect "
           "at this length.", percent=False),
    Metric("distinct_2", "distinct-2", "higher", "Distinct pairs of neighbouring words, of all such pairs.",
           percent=False),
    Metric("ead_within", "EAD within", "higher", "EAD of several answers to the same prompt.", percent=False),
    Metric("yes_no_accuracy", "yes/no", "higher", "Right answers to yes/no questions."),
    Metric("yes_rate", "yes rate", "", "Answers to yes/no questions that say yes. "
           "A model that agrees with anything has a high one."),
)  # fmt: skip
METRICS_BY_KEY = {metric.key: metric for metric in METRICS}
MAIN_METRICS = tuple(
    METRICS_BY_KEY[key]
    for key in ("chair_s", "chair_i", "cooccurrence_errors", "perception_errors", "coverage", "claim_f1", "utility")
)
OTHER_METRICS = tuple(metric for metric in METRICS if metric not in MAIN_METRICS)


@dataclass(frozen=True)
class ModelStyle:
    """A row: its name, what it is, and how plots draw it."""

    title: str
    meaning: str
    colour: str
    marker: str


# Middle tones: they must be seen on white and on black.
MODEL_STYLES = {
    "sft": ModelStyle("SFT", "The fine-tuned model, from which PPO starts.", "#7d8894", "o"),
    "sft_t03": ModelStyle("SFT, T=0.3", "The same, sampled at temperature 0.3.", "#7d8894", "v"),
    "sft_t07": ModelStyle("SFT, T=0.7", "The same, sampled at temperature 0.7.", "#7d8894", "s"),
    "best_of_n": ModelStyle(
        "best of n",
        "Of several samples of SFT, the one the reward model likes best (it reads facts of the test scenes, which the others never see).",
        "#c08a2c",
        "P",
    ),
    "ppo_plain": ModelStyle("PPO, plain", "PPO against a reward model that sees no facts.", "#8b7cf0", "D"),
    "ppo_fact": ModelStyle("PPO, facts", "PPO against a reward model that sees facts about the picture.", "#12a08f", "*"),
    "clean_sft": ModelStyle("clean SFT", "Fine-tuned on captions without the habit: what better data gives.", "#4a90d9", "X"),
}
AFTER_PPO_PHRASES = {"ppo_fact": "After PPO with facts in the reward", "ppo_plain": "After PPO without facts in the reward"}
"""What SFT is compared with, the first that is there, and how a sentence on it begins."""


def _finite_or_none(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def metric_value(row: Mapping[str, Any], key: str) -> float | None:
    return _finite_or_none(row.get(key))


def metric_interval(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    interval = row.get(f"{key}_ci")
    if not isinstance(interval, Sequence) or len(interval) != 2:
        return None
    low, high = (_finite_or_none(bound) for bound in interval)
    return None if low is None or high is None else (low, high)


def models_on_split(summary: Mapping[str, Any], split: str) -> dict[str, Mapping[str, Any]]:
    """The models measured on a split ("sampled": held-out pictures at temperature 1), in the order of MODELS, others last."""
    if split == "sampled":
        rows = dict(summary.get("sampled") or {})
    else:
        rows = {name: splits[split] for name, splits in (summary.get("models") or {}).items() if splits.get(split)}
    return {name: rows[name] for name in (*MODEL_STYLES, *(n for n in rows if n not in MODEL_STYLES)) if name in rows}


def model_style(name: str) -> ModelStyle:
    return MODEL_STYLES.get(name) or ModelStyle(name, "", "#9a6fb0", "h")


@dataclass(frozen=True)
class Segment:
    """A stretch of an answer: plain, or false with what refutes it. Without text: a false claim of no place in it."""

    text: str
    false: bool = False
    evidence: tuple[str, ...] = ()


def split_at_claims(text: str, claims: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Cut an answer at its contradicted claims; those that overlap or coincide become one piece with all evidence.

    Each claim has start, end (characters), verdict, evidence. The pieces' texts joined are the answer.
    """
    spans: list[tuple[int, int, tuple[str, ...]]] = []
    unlocated_evidence: tuple[str, ...] = ()
    for claim in sorted(claims, key=lambda claim: (claim["start"], claim["end"])):
        if claim["verdict"] != "contradicted":
            continue
        start, end = (min(max(claim[key], 0), len(text)) for key in ("start", "end"))
        evidence: tuple[str, ...] = (str(claim["evidence"]),) if claim.get("evidence") else ()
        if start >= end:
            unlocated_evidence += evidence
        elif spans and start < spans[-1][1]:
            previous_start, previous_end, previous_evidence = spans[-1]
            spans[-1] = (previous_start, max(previous_end, end), previous_evidence + evidence)
        else:
            spans.append((start, end, evidence))
    segments, position = [], 0
    for start, end, evidence in spans:
        segments += [Segment(text[position:start]), Segment(text[start:end], True, tuple(dict.fromkeys(evidence)))]
        position = end
    segments.append(Segment(text[position:]))
    segments = [segment for segment in segments if segment.text]
    return segments + [Segment("", True, tuple(dict.fromkeys(unlocated_evidence)))] * bool(unlocated_evidence)
