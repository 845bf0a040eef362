"""The parts of a summary and how to display them: metrics, models, intervals, marked answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A column: its key in the summary, title, better direction, and meaning in one line."""

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
    Metric("chair_s", "chair_s", "lower", "Share of answers with at least one false claim."),
    Metric("chair_i", "chair_i", "lower", "False claims as a share of all claims. Precision in the plot is 1 − chair_i."),
    Metric(
        "cooccurrence_errors",
        "co-occurrence hallucinations",
        "lower",
        "False claims per answer from the co-occurrence bias of the training captions: an object in the image calls for an absent one.",
        percent=False,
    ),
    Metric(
        "perception_errors",
        "perception errors",
        "lower",
        "All other false claims per answer: the image was misread.",
        percent=False,
    ),
    Metric(
        "coverage",
        "recall",
        "higher",
        "Share of a full description's claims that the answer makes. It falls when a model learns to say less.",
    ),
    Metric("claim_f1", "claim F1", "higher", "Harmonic mean of precision and recall: silence does not pay."),
    Metric("utility", "utility", "higher", "Per answer, true claims minus a multiple of the false ones.", percent=False),
    Metric("mean_length", "length", "", "Mean length of an answer in words.", percent=False),
    Metric(
        "ead",
        "EAD",
        "higher",
        "Diversity of answers: distinct words relative to the number expected at this length.",
        percent=False,
    ),
    Metric("distinct_2", "distinct-2", "higher", "Distinct bigrams as a share of all bigrams.", percent=False),
    Metric("ead_within", "EAD within", "higher", "EAD of several answers to the same prompt.", percent=False),
    Metric("yes_no_accuracy", "yes/no", "higher", "Accuracy on yes/no questions."),
    Metric(
        "yes_rate",
        "yes rate",
        "",
        "Share of yes/no questions answered yes. It is high for a model that agrees with anything.",
    ),
)
METRICS_BY_KEY = {metric.key: metric for metric in METRICS}
MAIN_METRICS = tuple(
    METRICS_BY_KEY[key]
    for key in ("chair_s", "chair_i", "cooccurrence_errors", "perception_errors", "coverage", "claim_f1", "utility")
)
OTHER_METRICS = tuple(metric for metric in METRICS if metric not in MAIN_METRICS)


@dataclass(frozen=True)
class ModelStyle:
    """A row: its title and meaning, and its colour and marker in plots."""

    title: str
    meaning: str
    colour: str
    marker: str


# Medium tones: they must be visible on white and on black.
MODEL_STYLES = {
    "sft": ModelStyle("SFT", "The fine-tuned model that PPO starts from.", "#7d8894", "o"),
    "sft_t03": ModelStyle("SFT, T=0.3", "The same, sampled at temperature 0.3.", "#7d8894", "v"),
    "sft_t07": ModelStyle("SFT, T=0.7", "The same, sampled at temperature 0.7.", "#7d8894", "s"),
    "best_of_n": ModelStyle(
        "best of n", "The sample of SFT with the highest reward of several, on the first of the scenes.", "#c08a2c", "P"
    ),
    "best_of_n_facts": ModelStyle(
        "best of n, facts",
        "The same samples, ranked by the reward model that reads facts about the test scenes.",
        "#a0642c",
        "p",
    ),
    "ppo_plain": ModelStyle("PPO, plain", "PPO against a reward model without facts.", "#8b7cf0", "D"),
    "ppo_fact": ModelStyle("PPO, facts", "PPO against a reward model that reads facts about the image.", "#12a08f", "*"),
    "clean_sft": ModelStyle(
        "clean SFT", "Fine-tuned on captions without the co-occurrence bias: what better data would give.", "#4a90d9", "X"
    ),
}
MAX_PLOTTED = 1e300
"""Values beyond it count as infinite: the span of an axis must be finite."""
AFTER_PPO_PHRASES = {"ppo_fact": "After PPO with facts in the reward", "ppo_plain": "After PPO without facts in the reward"}
"""Models with which SFT is compared, in order of preference, and the beginning of a sentence about
each."""


def policy_after_ppo(models: Collection[str]) -> str | None:
    """Return the model with which SFT is compared; None if there is none."""
    return next((name for name in AFTER_PPO_PHRASES if name in models), None)


def same_kl_sentence(summary: Mapping[str, Any]) -> str:
    """Compare the policies' claim F1 at the largest KL that all reached, or return ""."""
    same_kl, metric = summary.get("same_kl") or {}, METRICS_BY_KEY["claim_f1"]
    policies = same_kl.get("policies") or {}
    values = [(name, _finite_or_none(row.get(metric.key))) for name, row in policies.items()]
    texts = [f"{metric.format_value(value)} for {model_style(name).title}" for name, value in values if value is not None]
    if len(texts) < 2 or _finite_or_none(same_kl.get("kl")) is None:
        return ""
    return f"At the same KL from SFT, {same_kl['kl']:.2f} nats per answer, claim F1 on selection images is {' and '.join(texts)}"


def _finite_or_none(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) < MAX_PLOTTED else None


def metric_value(row: Mapping[str, Any], key: str) -> float | None:
    return _finite_or_none(row.get(key))


def metric_interval(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    """Return a metric's interval; None if it has none or, from a single fold, one without width."""
    interval = row.get(f"{key}_ci")
    if not isinstance(interval, Sequence) or len(interval) != 2:
        return None
    low, high = (_finite_or_none(bound) for bound in interval)
    return None if low is None or high is None or low == high else (low, high)


def models_on_split(summary: Mapping[str, Any], split: str) -> dict[str, Mapping[str, Any]]:
    """Return the metrics of models on a split, in the order of MODEL_STYLES, others last.

    The split "sampled" has held-out images, answered at temperature 1.
    """
    if split == "sampled":
        rows = dict(summary.get("sampled") or {})
    else:
        rows = {name: splits[split] for name, splits in (summary.get("models") or {}).items() if splits.get(split)}
    return {name: rows[name] for name in dict.fromkeys((*MODEL_STYLES, *rows)) if name in rows}


def model_style(name: str) -> ModelStyle:
    return MODEL_STYLES.get(name) or ModelStyle(name, "", "#9a6fb0", "h")


@dataclass(frozen=True)
class Segment:
    """A part of an answer: neutral, or false with evidence. A claim without a span has no text."""

    text: str
    false: bool = False
    evidence: tuple[str, ...] = ()


def split_at_claims(text: str, claims: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """Split an answer at its contradicted claims. Overlapping claims share one segment.

    Each claim has start and end (characters), verdict and evidence. The segments' texts concatenate
    to the answer.
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
    if unlocated_evidence:
        segments.append(Segment("", True, tuple(dict.fromkeys(unlocated_evidence))))
    return segments


def format_duration(seconds: float) -> str:
    """Return "1 h 2 min", "3 min 4 s" or "5.6 s"."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {remainder} s" if minutes else f"{seconds:.1f} s"
