"""Will facts change my policy? Which errors a reward drives out of a policy's own answers.

The reward scores sampled answers with and without each of their claims: with facts, without, and
with another image's. Its covariance with the number of false claims among a prompt's answers says
whether these go, and how fast (`rewards.first_slopes`); J how often it is right about a single
claim (`rewards.detection`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.commands.reward_metrics import other_facts
from mmrlhf.metrics.calibration import proportion
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.records import CLAIM_KINDS, Example, InputError
from mmrlhf.rewards.detection import GroupVerdicts, Removal, detection_rates, score_rises
from mmrlhf.rewards.first_slopes import compare_slopes, explained_variance, first_slopes, measured_answers
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.verifiers import verify_against_facts

MIN_PROMPTS = 20
"""Prompts with a false claim of a kind, below which nothing is said about it. A bootstrap interval
over fewer is too narrow: of rewards that know nothing, simulated, 7% have a slope whose 95%
interval excludes 0 with 20 prompts, 9% with 10 and 11% with 5."""
WITH_FACTS, WITHOUT_FACTS, OTHER_FACTS = "with facts", "without facts", "with another image's facts"
COLOURS = {WITH_FACTS: "#12a08f", WITHOUT_FACTS: "#6b7280", OTHER_FACTS: "#c2a83e"}
FALLS, UNCLEAR, RISES, NOT_MEASURED = "falls", "unclear", "rises", "not measured"

# ---- answers -------------------------------------------------------------------------------------


def answer_groups(rows: Iterable[Example], name: str) -> list[AnswerGroup]:
    """Group rows with an answer by row id, in order of appearance.

    Raises InputError if a row has no answer, or rows of one id have other prompts or images.
    """
    groups: dict[str, AnswerGroup] = {}
    for row in rows:
        if row.answer is None:
            raise InputError(f"{name}: row {row.id} has no `answer`: give answers that `mmrlhf generate` wrote")
        group = groups.get(row.id)
        if group is None:
            groups[row.id] = AnswerGroup(row.images, row.prompt, (row.answer,), row.facts, row.id)
        elif (group.images, group.prompt) != (row.images, row.prompt):
            raise InputError(f"{name}: two rows with id {row.id} have different prompts or images: give each prompt its own id")
        else:
            groups[row.id] = replace(group, answers=(*group.answers, row.answer))
    return list(groups.values())


def fact_conditions(groups: Sequence[AnswerGroup], depends_on_facts: bool) -> dict[str, list[AnswerGroup]]:
    """Return the groups with their facts, without, and with another image's, by condition."""
    without = [replace(group, facts=()) for group in groups]
    if not depends_on_facts or not any(group.facts for group in groups):
        return {WITHOUT_FACTS: without}
    other = [replace(group, facts=facts) for group, facts in zip(groups, other_facts(groups), strict=True)]
    return {WITH_FACTS: list(groups), WITHOUT_FACTS: without, OTHER_FACTS: other}


# ---- what it means -------------------------------------------------------------------------------


def measure_outlook(
    groups: Sequence[AnswerGroup],
    found: Sequence[Removal],
    verdicts: GroupVerdicts | None,
    scores: Mapping[str, Sequence[Sequence[float]]],
    seed: int = 0,
) -> dict[str, Any]:
    """Return J and first slopes by condition of the facts and kind of claim, the reward's spread,
    and a forecast; with facts, also the slope over all kinds minus that with another image's.

    scores: by condition, of the answers and then of the answers without claims `found`.
    """
    result: dict[str, Any] = {
        "num_prompts": len(groups),
        "num_answers": sum(len(group.answers) for group in groups),
        "num_measured": None if verdicts is None else sum(map(len, measured_answers(verdicts))),
        "spread": {name: explained_variance(groups, values, verdicts, seed) for name, values in scores.items()},
        "detection": None,
        "slopes": None,
        "forecast": None,
    }
    if verdicts is not None:
        result["detection"] = {
            name: detection_rates(found, score_rises(groups, found, values), seed=seed) for name, values in scores.items()
        }
        result["slopes"] = {name: first_slopes(groups, values, verdicts, seed) for name, values in scores.items()}
        with_and_without = None
        if WITH_FACTS in scores:
            with_and_without = compare_slopes(groups, scores[WITH_FACTS], scores[WITHOUT_FACTS], verdicts, seed)
            own_and_other = compare_slopes(groups, scores[WITH_FACTS], scores[OTHER_FACTS], verdicts, seed)
            result["own_minus_other_facts"] = own_and_other.get(ALL_KINDS, {}).get("difference")
        result["forecast"] = forecast(result["slopes"], with_and_without)
    return result


def contradicted_shares(groups: Sequence[AnswerGroup], lexicon: Lexicon) -> dict[str, dict[str, Any]]:
    """Return the share of claims that a claim reward's facts contradict, by kind of claim, with
    intervals over prompts."""
    outcomes: dict[str, list[bool]] = {}
    prompts: dict[str, list[str]] = {}
    for group in groups:
        for answer in group.answers:
            for verdict in verify_against_facts(extract_claims(answer, lexicon), group.facts, lexicon):
                outcomes.setdefault(verdict.claim.kind, []).append(verdict.value == "contradicted")
                prompts.setdefault(verdict.claim.kind, []).append(group.id)
    return {kind: proportion(np.array(outcomes[kind], dtype=bool), prompts[kind]) for kind in CLAIM_KINDS if kind in outcomes}


def forecast(
    slopes: Mapping[str, Mapping[str, Any]], with_and_without: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Return, by kind of claim, what becomes of false claims under each condition of the facts.

    They go if their first slope is below 0, grow if it is above, and stay if its interval includes
    0. From `with_and_without`, the slopes with facts and without as `compare_slopes` compares them,
    are `difference`, and `speed_ratio`, None unless false claims go in both cases.
    """
    kinds = [kind for kind in CLAIM_KINDS if any(kind in by_kind for by_kind in slopes.values())]
    result: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        trends = {name: _trend(by_kind.get(kind)) for name, by_kind in slopes.items()}
        falls_in_both = all(trends.get(name) == FALLS for name in (WITH_FACTS, WITHOUT_FACTS))
        compared = (with_and_without or {}).get(kind, {})
        speed_ratio = compared.get("ratio") if falls_in_both else None
        result[kind] = {"trend": trends, "speed_ratio": speed_ratio, "difference": compared.get("difference")}
    return result


def _trend(slopes: Mapping[str, Any] | None) -> str:
    if slopes is None or slopes["num_prompts"] < MIN_PROMPTS or slopes["false"] is None:
        return NOT_MEASURED
    if slopes["false"]["high"] < 0:
        return FALLS
    return RISES if slopes["false"]["low"] > 0 else UNCLEAR


def outlook_sentences(outlook: Mapping[str, Any]) -> list[str]:
    """Return what the figures say of the policy, in plain sentences."""
    sentences = []
    if _has_spread(outlook["spread"]):
        sentences.append(_spread_sentence(outlook["spread"]))
    else:
        sentences.append(
            "What training will change is not measured: it needs several answers per prompt "
            "(`mmrlhf generate --num_generations 4 --temperature 1`)."
        )
    if outlook["slopes"] is None:
        sentences.append(
            "Which kinds of false claims training would reduce is not measured: it needs a truth that the reward does not "
            "read (--truth facts, labels or clip)."
        )
        return sentences
    if not _has_spread(outlook["spread"]):
        return sentences
    if outlook["num_measured"] < outlook["num_answers"]:
        sentences.append(
            f"Slopes are measured on {outlook['num_measured']} of {outlook['num_answers']} answers: the others have no known "
            "truth, or no second answer of known truth to their prompt."
        )
    main = WITH_FACTS if WITH_FACTS in outlook["slopes"] else WITHOUT_FACTS
    phrases_by_trend: dict[str, list[str]] = {FALLS: [], UNCLEAR: [], RISES: [], NOT_MEASURED: []}
    for kind, entry in outlook["forecast"].items():
        trend, slopes = entry["trend"][main], outlook["slopes"][main].get(kind)
        phrases_by_trend[trend].append(
            _few_phrase(kind, slopes) if trend == NOT_MEASURED else _kind_phrase(kind, slopes, entry, main)
        )
    for trend, verb in (
        (FALLS, "will become rarer"),
        (UNCLEAR, "are not shown to change (the interval of the slope includes 0)"),
        (RISES, "will become more frequent"),
    ):
        if phrases_by_trend[trend]:
            sentences.append(f"Trained against this reward {main}, false claims {verb}: {'; '.join(phrases_by_trend[trend])}.")
    if phrases_by_trend[NOT_MEASURED]:
        sentences.append(
            f"Not measured, with false claims in fewer than {MIN_PROMPTS} prompts: {'; '.join(phrases_by_trend[NOT_MEASURED])}."
        )
    sentences += _coverage_sentences(outlook["slopes"][main])
    if main == WITH_FACTS:
        sentences += _facts_sentences(outlook)
    return sentences


def _and(kinds: Sequence[str]) -> str:
    """Return kinds of claims in words: objects and relations."""
    names = [f"{kind}s" for kind in kinds]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _has_spread(spread: Mapping[str, Mapping[str, Any]]) -> bool:
    return any(figures["within_std"] is not None for figures in spread.values())


def _spread_sentence(spread: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, figures in spread.items():
        explained = figures["explained"]
        share = "" if explained is None else f", {explained['value']:.0%} of its variance explained by true and false claims"
        parts.append(f"{figures['within_std']:.2g} {name}{share}")
    return f"Within a prompt's answers the reward has a standard deviation of {'; '.join(parts)}."


def _kind_phrase(kind: str, slopes: Mapping[str, Any], entry: Mapping[str, Any], main: str) -> str:
    phrase = f"{kind} (slope {format_value(slopes['false'], ', {} to {}')}"
    trend_without = entry["trend"].get(WITHOUT_FACTS)
    if main == WITH_FACTS:
        if entry["speed_ratio"] is not None:
            ratio, low, high = (f"{entry['speed_ratio'][key]:.1f}" for key in ("value", "low", "high"))
            phrase += f"; {ratio} times as fast as without facts, {low} to {high}"
        elif trend_without != entry["trend"][main] and trend_without != NOT_MEASURED:
            without = {FALLS: "they become rarer", UNCLEAR: "not shown to change", RISES: "they become more frequent"}[
                trend_without or UNCLEAR
            ]
            phrase += f"; without facts {without}"
    return f"{phrase})"


def format_value(interval: Mapping[str, float], bounds: str = " ({} to {})") -> str:
    """Return a value and its interval as text, without the sign of -0.00."""
    value, low, high = (f"{round(interval[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))
    return value + bounds.format(low, high)


def _few_phrase(kind: str, slopes: Mapping[str, Any] | None) -> str:
    return f"{kind} ({slopes['num_prompts'] if slopes else 0})"


def _coverage_sentences(slopes: Mapping[str, Any]) -> list[str]:
    """Return a warning if true claims go along with false ones."""
    falling = [
        kind
        for kind in CLAIM_KINDS
        if kind in slopes and slopes[kind]["num_prompts_true"] >= MIN_PROMPTS and slopes[kind]["true"]["high"] < 0
    ]
    if not falling:
        return []
    return [f"True claims about {_and(falling)} will become fewer, too: watch coverage, or add it to the reward."]


def _facts_sentences(outlook: Mapping[str, Any]) -> list[str]:
    """Return whether facts will change the policy, and whether it is their content that does."""
    gained: list[str] = []
    faster: list[str] = []
    held: list[str] = []
    lost: list[str] = []
    is_measured = False
    for kind, entry in outlook["forecast"].items():
        with_facts, without, difference = entry["trend"][WITH_FACTS], entry["trend"][WITHOUT_FACTS], entry["difference"]
        if NOT_MEASURED in (with_facts, without) or difference is None:
            continue
        is_measured = True
        if difference["low"] > 0:
            lost.append(kind)
        elif difference["high"] < 0:
            (held if with_facts != FALLS else faster if without == FALLS else gained).append(kind)
    sentences = []
    if gained:
        sentences.append(f"Facts will change the policy: only with them do false claims go that are about {_and(gained)}.")
    if faster:
        sentences.append(f"Facts will speed up what happens without them, too: fewer false claims about {_and(faster)}.")
    if held:
        sentences.append(f"With facts, false claims about {_and(held)} grow less than without, or not at all.")
    if lost:
        sentences.append(
            f"With facts, false claims about {_and(lost)} go more slowly or grow: check the facts, or train without them."
        )
    if gained or faster:
        sentences.append("The policy reads no facts: it gains only as far as it sees in the images what they say.")
    if not is_measured:
        sentences.append(
            "Whether facts change what the policy learns is not measured: no kind has false claims in enough prompts."
        )
    elif not sentences:
        sentences.append("Facts are not shown to change what the policy learns from this reward.")
    own, other = outlook["slopes"][WITH_FACTS].get(ALL_KINDS), outlook.get("own_minus_other_facts")
    if own and _trend(own) == FALLS and other and other["high"] >= 0:
        sentences.append(
            f"The slope over all kinds, {own['false']['value']:.2f}, is not shown to be steeper than with another image's facts (difference "
            f"{format_value(other, ', {} to {}')}): the reward may hardly read what the facts say."
        )
    return sentences


# ---- the picture ---------------------------------------------------------------------------------


def draw_slopes(axes: Axes, slopes: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the first slopes of false claims by kind, and return the same in words."""
    intervals = {
        name: {kind: figures["false"] for kind, figures in by_kind.items() if figures["false"] is not None}
        for name, by_kind in slopes.items()
    }
    axes.set(xlabel="goes  |  stays or grows", title="first slope of false claims")
    return _draw_by_kind(axes, intervals, "First slope of false claims by kind")


def draw_detection(axes: Axes, detection: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw J by kind of claim, and return the same in words."""
    intervals = {
        name: {kind: figures["J"] for kind, figures in by_kind.items() if figures["J"] is not None}
        for name, by_kind in detection.items()
    }
    axes.set(xlim=(-1.05, 1.05), xlabel="blind or reversed  |  detects", title="J by kind of claim")
    return _draw_by_kind(axes, intervals, "J by kind of claim")


def _draw_by_kind(axes: Axes, intervals: Mapping[str, Mapping[str, Mapping[str, float]]], title: str) -> str:
    """Draw values with intervals by kind of claim, in a colour per condition of the facts; return
    them in words after a title."""
    kinds = [kind for kind in (*CLAIM_KINDS, ALL_KINDS) if any(kind in by_kind for by_kind in intervals.values())]
    parts = []
    for number, (name, by_kind) in enumerate(intervals.items()):
        points = [(i, by_kind[kind]) for i, kind in enumerate(kinds) if kind in by_kind]
        if not points:
            continue
        y = np.array([i for i, _ in points]) + 0.22 * (number - (len(intervals) - 1) / 2)
        values = np.array([interval["value"] for _, interval in points])
        errors = np.abs(
            np.array([[interval["low"] for _, interval in points], [interval["high"] for _, interval in points]]) - values
        )
        axes.errorbar(values, y, xerr=errors, fmt="o", markersize=4, color=COLOURS[name], elinewidth=1, label=name)
        parts.append(f"{name} " + ", ".join(f"{kinds[i]} {format_value(interval, '')}" for i, interval in points))
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(yticks=range(len(kinds)), yticklabels=kinds)
    axes.invert_yaxis()
    if len(parts) > 1:
        axes.legend(fontsize="small", loc="lower left")
    return f"{title}: {'; '.join(parts)}."
