"""The page of a round of feedback: kept and dropped comparisons, lengths, biases, and pairs with
their claims coloured by verdict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mmrlhf.claims import Lexicon
from mmrlhf.files.atomic import write_atomic
from mmrlhf.records import Example, Verdict
from mmrlhf.report.plots import style_context, to_inline_svg
from mmrlhf.report.templates import jinja_environment
from mmrlhf.report.thumbnails import thumbnail_url
from mmrlhf.training.feedback.labels import LabelledAnswer
from mmrlhf.training.feedback.pairs import UNBALANCED, Comparison, PairSelection
from mmrlhf.verifiers.verbalize import display

VERDICT_ORDER = ("supported", "unknown", "contradicted")
"""Where claims overlap, the last of their verdicts in this order colours the words."""
DROPPED_SHARE = 4
"""One of this many pairs on the page is a dropped one."""
KEPT_COLOUR, DROPPED_COLOUR = "#12a08f", "#9aa5b1"


@dataclass(frozen=True)
class Segment:
    """A part of an answer, and the verdict on the claims that it makes ("" if it makes none)."""

    text: str
    verdict: str


def write_round_page(
    path: Path,
    summary: Mapping[str, Any],
    selection: PairSelection,
    examples: Sequence[Example],
    num_pairs: int,
    lexicon: Lexicon,
) -> None:
    """Write one HTML page that opens offline, with `num_pairs` of the pairs, evenly spaced."""
    num_dropped = num_pairs // DROPPED_SHARE
    kept = [(comparison, "") for comparison in _spaced(selection.kept, num_pairs - num_dropped)]
    dropped = _of_each_reason(selection, num_dropped)
    with style_context():
        plots = [(to_inline_svg(figure, name), alt) for name, figure, alt in _figures(summary, selection)]
    html = (
        jinja_environment()
        .get_template("feedback.html.j2")
        .render(
            summary=summary,
            sentences=sentences(summary),
            plots=plots,
            rows=bias_rows(summary),
            kept=[_entry(*item, examples, lexicon) for item in kept],
            dropped=[_entry(*item, examples, lexicon) for item in dropped],
        )
    )
    write_atomic(path, html.encode("utf-8", "replace"))  # a model may write lone surrogates


def _spaced(rows: Sequence[Any], count: int) -> list[Any]:
    count = min(count, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]


def _of_each_reason(selection: PairSelection, count: int) -> list[tuple[Comparison, str]]:
    """Return dropped comparisons, as many of each reason."""
    by_reason = [[item for item in selection.dropped if item[1] == reason] for reason in selection.reasons]
    per_reason = -(-count // max(1, len(by_reason)))
    return [item for items in by_reason for item in _spaced(items, per_reason)][:count]


# ---- text ----------------------------------------------------------------------------------------


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """Return the main sentences: how many pairs were kept, and how far to trust the labels."""
    pairs, means = summary["pairs"], summary["means"]
    lines = [
        f"Answers are right in {_percent(means['precision'])} of their decided claims, and state {_percent(means['coverage'])} of what "
        "the answers to their prompt state together.",
        f"Chosen answers have {pairs['words_chosen']:.1f} words, rejected ones {pairs['words_rejected']:.1f}; the longer one is "
        f"chosen in {_percent(summary['biases_of_pairs']['length']['labelled']['value'])} of the pairs of different lengths, "
        f"and labelled better in {_percent(summary['biases']['length']['labelled']['value'])} of all comparisons.",
    ]
    if "agreement" in summary:
        clear, untied = (summary["agreement"]["pairs"][name] for name in ("clear", "untied"))
        lines.append(
            f"Labels agree with the truth in {_interval(clear)} of the {clear['n']} pairs whose true utilities differ by at least 1, "
            f"and in {_interval(untied)} of all {untied['n']} that are not tied in truth."
        )
    return lines


def bias_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the biases on all comparisons as rows of a table: label, %, 95% interval, number."""
    names = {
        "labelled": "{} is labelled better",
        "labelled_where_untied": "  where the truth is not tied",
        "true_where_untied": "  {} truly is better, there",
        "labelled_at_equal_truth": "  {} is labelled better where both are equally good",
        "agreement_if_true": "  labels are right if {} is truly better",
        "agreement_if_not": "  labels are right if it is truly worse",
    }
    rows = []
    for key, side in (("length", "the longer answer"), ("position", "the answer that was sampled first")):
        shares = summary["biases"][key]
        for name, label in names.items():
            if name in shares and shares[name]["n"]:
                share = shares[name]
                bounds = f"{100 * share['low']:.1f} to {100 * share['high']:.1f}"
                rows.append((label.format(side), f"{100 * share['value']:.1f}", bounds, str(share["n"])))
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _interval(share: Mapping[str, Any]) -> str:
    if share["value"] is None:
        return "-"
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%})"


# ---- pictures ------------------------------------------------------------------------------------


def _figures(summary: Mapping[str, Any], selection: PairSelection) -> Iterator[tuple[str, Figure, str]]:
    """Yield (id, figure, description): comparisons by reason, and length differences of pairs."""
    counts = {"kept": summary["pairs"]["kept"], **summary["pairs"]["dropped"]}
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(list(counts), list(counts.values()), color=[KEPT_COLOUR] + [DROPPED_COLOUR] * (len(counts) - 1))
    axes.bar_label(bars, padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel="comparisons", title="Kept, and dropped by reason")
    yield "reasons", figure, "Comparisons: " + "; ".join(f"{name} {count}" for name, count in counts.items()) + "."

    kept = [comparison.length_gap for comparison in selection.kept]
    unbalanced = [comparison.length_gap for comparison, reason in selection.dropped if reason == UNBALANCED]
    edge = max(map(abs, kept + unbalanced), default=0) + 0.5
    bins = np.linspace(-edge, edge, min(31, int(2 * edge) + 1))
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    colours, labels = [KEPT_COLOUR, DROPPED_COLOUR], ["pairs", "dropped for balance"]
    axes.hist([kept, unbalanced], bins=bins.tolist(), stacked=True, color=colours, label=labels)
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.legend()
    axes.set(xlabel="words of the chosen answer minus the rejected one's", ylabel="pairs", title="Length differences")
    longer = sum(gap > 0 for gap in kept)
    yield (
        "lengths",
        figure,
        f"Of {len(kept)} pairs, the chosen answer is longer in {longer}, shorter in {sum(g < 0 for g in kept)}.",
    )


# ---- pairs ---------------------------------------------------------------------------------------


def _entry(comparison: Comparison, reason: str, examples: Sequence[Example], lexicon: Lexicon) -> dict[str, Any]:
    example = examples[comparison.better.sampled.row]
    names = ("chosen", "rejected") if not reason else ("higher utility", "lower utility")
    return {
        "id": example.id,
        "image": thumbnail_url(example.images[0]) if example.images else "",
        "prompt": example.prompt[-1].content,
        "reason": reason,
        "gap": comparison.gap,
        "answers": [
            _answer_entry(name, answer, lexicon)
            for name, answer in zip(names, (comparison.better, comparison.worse), strict=True)
        ],
    }


def _answer_entry(name: str, answer: LabelledAnswer, lexicon: Lexicon) -> dict[str, Any]:
    return {
        "name": name,
        "utility": answer.utility,
        "true_utility": answer.true_utility,
        "words": answer.sampled.num_words,
        "segments": segments(answer.sampled.answer, answer.verdicts),
        "evidence": [
            (verdict.value, display(verdict.claim, lexicon), verdict.evidence)
            for verdict in answer.verdicts
            if verdict.value != "supported"
        ],
    }


def segments(text: str, verdicts: Iterable[Verdict]) -> list[Segment]:
    """Split an answer where verdicts change. The segments' texts concatenate to the answer."""
    worst = [0] * len(text)  # by character: 0 for no claim, else one plus the verdict's rank
    for verdict in verdicts:
        rank = VERDICT_ORDER.index(verdict.value) + 1
        for position in range(max(0, verdict.claim.span[0]), min(len(text), verdict.claim.span[1])):
            worst[position] = max(worst[position], rank)
    parts: list[Segment] = []
    start = 0
    for position in range(1, len(text) + 1):
        if position == len(text) or worst[position] != worst[start]:
            parts.append(Segment(text[start:position], ("", *VERDICT_ORDER)[worst[start]]))
            start = position
    return parts
