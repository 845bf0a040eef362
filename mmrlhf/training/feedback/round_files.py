"""Write the results of a round of feedback: pairs, dropped comparisons, counts and biases."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mmrlhf.claims import load_lexicon
from mmrlhf.config import FeedbackConfig
from mmrlhf.datasets import Records, to_pairs
from mmrlhf.datasets.write import FORMATS
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line
from mmrlhf.models.images import image_value
from mmrlhf.records import Example, ImageSource, Preference
from mmrlhf.training.feedback.biases import agreement, label_biases
from mmrlhf.training.feedback.labels import LabelledAnswer
from mmrlhf.training.feedback.page import write_round_page
from mmrlhf.training.feedback.pairs import Comparison, PairSelection
from mmrlhf.training.run import Run
from mmrlhf.training.run_rows import image_root

VERDICTS = ("supported", "contradicted", "unknown")


def pair_of(comparison: Comparison, examples: Sequence[Example], number: int) -> Preference:
    """Return a kept comparison of round `number` as a preference; its margin is the gap."""
    example, better, worse = examples[comparison.better.sampled.row], comparison.better, comparison.worse
    return Preference.from_pair(
        f"{example.id}-{number}-{better.sampled.number}-{worse.sampled.number}",
        example.images,
        example.prompt,
        better.sampled.answer,
        worse.sampled.answer,
        example.facts,
        ratings=(better.utility, worse.utility),
        source="feedback",
        hallucinated=any(verdict.value == "contradicted" for verdict in worse.verdicts),
    )


def pair_lines(config: FeedbackConfig, pairs: Sequence[Preference], examples: Sequence[Example]) -> list[str]:
    """Return pairs as rows of TRL's format, with images as in the prompts' file.

    Images that are not files are embedded.
    """
    root = image_root(config)
    lines = []
    for pair in pairs:
        images = pair.images if isinstance(examples, Records) else tuple(map(_embedded, pair.images))
        lines.append(_line(pair, images, root))
    return lines


def human_lines(config: FeedbackConfig, rows: Sequence[Preference], number: int) -> list[str]:
    """Return people's pairs on which round `number` trains, `human_weight` times each.

    The whole part of the weight repeats every pair; its fraction is the probability of one more
    copy. Ties teach nothing and are left out. Images outside the prompts' folder are embedded.
    """
    root = image_root(config)
    rng = np.random.default_rng([config.seed, number, 61])  # 61 separates this stream from others
    fraction, whole = math.modf(config.human_weight)
    lines = []
    for row in rows:
        for pair in to_pairs(row):
            copies = int(whole) + (rng.random() < fraction)
            if pair.ranks[0] == pair.ranks[1]:
                continue
            images = tuple(image if _is_inside(image, root) else _embedded(image) for image in pair.images)
            lines += [_line(pair, images, root)] * copies
    return lines


def _line(pair: Preference, images: Sequence[ImageSource], root: str | None) -> str:
    return json_line(FORMATS["trl"].to_row(pair, [image_value(image, root, False) for image in images]))


def _embedded(image: ImageSource) -> ImageSource:
    return replace(image, path=None, data=image.read())


def _is_inside(image: ImageSource, root: str | None) -> bool:
    return image.path is not None and root is not None and not str(image_value(image, root, False)).startswith("..")


def dropped_lines(selection: PairSelection, examples: Sequence[Example]) -> list[str]:
    """Return the dropped comparisons, by the answers' numbers, with their reasons."""
    return [
        json_line(
            {
                "id": examples[comparison.better.sampled.row].id,
                "row": comparison.better.sampled.row,
                "better": comparison.better.sampled.number,
                "worse": comparison.worse.sampled.number,
                "gap": comparison.gap,
                "length_gap": comparison.length_gap,
                "reason": reason,
            }
        )
        for comparison, reason in selection.dropped
    ]


def summarise(number: int, verifier: str, groups: Sequence[Sequence[LabelledAnswer]], selection: PairSelection) -> dict[str, Any]:
    """Return the content of a round's labels.json: counts, means, dropped comparisons, biases."""
    answers = [answer for group in groups for answer in group]
    verdicts = Counter[str](verdict.value for answer in answers for verdict in answer.verdicts)
    kept, comparisons = selection.kept, selection.comparisons
    has_truth = any(answer.true_utility is not None for answer in answers)
    rows_with_pair = {comparison.better.sampled.row for comparison in kept}
    return {
        "round": number,
        "verifier": verifier,
        "prompts": len(groups),
        "answers": {
            "sampled": len(answers),
            "usable": len(answers) - selection.unusable.total(),
            "unusable": dict(selection.unusable),
        },
        "claims": {value: verdicts[value] for value in VERDICTS},
        "means": {
            name: _mean([getattr(answer, name) for answer in answers if not answer.sampled.unusable])
            for name in ("precision", "coverage", "utility", "true_utility")
        },
        "pairs": {
            "compared": len(comparisons),
            "kept": len(kept),
            "kept_share": len(kept) / len(comparisons) if comparisons else 0.0,
            "prompts_with_pair_share": len(rows_with_pair) / len(groups),
            "dropped": selection.reasons,
            "mean_gap": _mean([comparison.gap for comparison in kept]),
            "words_chosen": _mean([comparison.better.sampled.num_words for comparison in kept]),
            "words_rejected": _mean([comparison.worse.sampled.num_words for comparison in kept]),
        },
        "biases": label_biases(comparisons),
        "biases_of_pairs": label_biases(kept),
        **({"agreement": {"pairs": agreement(kept), "comparisons": agreement(comparisons)}} if has_truth else {}),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def write_round(
    config: FeedbackConfig,
    run: Run,
    folder: Path,
    examples: Sequence[Example],
    groups: Sequence[Sequence[LabelledAnswer]],
    selection: PairSelection,
    summary: dict[str, Any],
    human: Sequence[Preference] | None,
) -> None:
    """Write the round's files after the verdicts, each atomically."""
    run.begin()
    number = summary["round"]
    pairs = [pair_of(comparison, examples, number) for comparison in selection.kept]
    lines = pair_lines(config, pairs, examples)
    write_atomic(folder / "scores.jsonl", "".join(json_line(answer.scores()) for group in groups for answer in group))
    write_atomic(folder / "dropped.jsonl", "".join(dropped_lines(selection, examples)))
    write_atomic(folder / "pairs.jsonl", "".join(lines))
    if human is not None:
        human_rows = human_lines(config, human, number)
        summary["human_pairs"] = len(human_rows)
        write_atomic(folder / "train.jsonl", "".join(lines + human_rows))
    write_atomic(folder / "labels.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    write_round_page(
        folder / "report.html", summary, selection, examples, config.num_sample_pairs, load_lexicon(config.lexicon_file)
    )


def why_nothing_is_kept(selection: PairSelection) -> str:
    """Return why a round keeps no pair, and what to do."""
    if not selection.comparisons:
        counts = ", ".join(f"{count} {reason}" for reason, count in selection.unusable.most_common())
        return f"no prompt has two usable answers ({counts}): raise response_length or temperature, or num_generations"
    dropped = ", ".join(f"{count} {reason}" for reason, count in selection.reasons.items())
    widest = max(comparison.gap for comparison in selection.comparisons)
    return f"{dropped}; the widest gap is {widest:g}: lower min_gap, sample more, or set balance_lengths false"


def round_metrics(summary: dict[str, Any]) -> dict[str, float]:
    """Return the metrics of a round that metrics.jsonl has, without those that are undefined."""
    pairs = summary["pairs"]
    metrics = {
        "feedback/answers": summary["answers"]["sampled"],
        "feedback/kept": pairs["kept"],
        "feedback/kept_share": pairs["kept_share"],
        "feedback/prompts_with_pair_share": pairs["prompts_with_pair_share"],
        "feedback/mean_gap": pairs["mean_gap"],
        "feedback/precision": summary["means"]["precision"],
        "feedback/coverage": summary["means"]["coverage"],
        "feedback/utility": summary["means"]["utility"],
        "feedback/longer_preferred": summary["biases"]["length"]["labelled"]["value"],
    }
    if "agreement" in summary:
        metrics["feedback/agreement"] = summary["agreement"]["pairs"]["clear"]["value"]
    return {name: value for name, value in metrics.items() if value is not None}


def describe_round(summary: dict[str, Any]) -> str:
    """Return sentences on how much a round sampled, kept and dropped."""
    answers, pairs = summary["answers"], summary["pairs"]
    text = f"round {summary['round']}: {answers['sampled']} answers to {summary['prompts']} prompts"
    if answers["unusable"]:
        text += f" ({_counts(answers['unusable'])} left out)"
    text += (
        f"; {pairs['kept']} of {pairs['compared']} comparisons are pairs ({pairs['prompts_with_pair_share']:.0%} of the prompts)"
    )
    if pairs["dropped"]:
        text += f"; dropped: {_counts(pairs['dropped'])}"
    if "agreement" in summary and (clear := summary["agreement"]["pairs"]["clear"])["n"]:
        text += f"; labels agree with the truth in {clear['value']:.1%} of {clear['n']} clear pairs"
    return text


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
