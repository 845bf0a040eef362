"""Will facts change my policy? Which errors a reward drives out of a policy's own answers.

The reward scores sampled answers with and without each of their claims (`rewards.detection`): with
facts, without, and with another image's. J by kind of claim says whether false claims of that kind
will go, J times the spread of the reward within a prompt's answers how fast.
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
from mmrlhf.records import CLAIM_KINDS, Example, InputError
from mmrlhf.rewards.claim_rewards import CLAIM_REWARDS, verifier_for
from mmrlhf.rewards.detection import (
    ALL_KINDS,
    GroupVerdicts,
    Removal,
    ScoreGroups,
    detection_gain,
    detection_rates,
    explained_variance,
    score_rises,
)
from mmrlhf.rewards.ledger import parse_reward_spec
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.verifiers import verify_against_facts

MIN_FALSE_CLAIMS = 5
"""False claims of a kind, and true ones, below which nothing is said about it."""
MIN_SPEED_RATIO = 1.5
"""Ratio of speeds from which facts are said to speed things up."""
WITH_FACTS, WITHOUT_FACTS, OTHER_FACTS = "with facts", "without facts", "with another image's facts"
COLOURS = {WITH_FACTS: "#12a08f", WITHOUT_FACTS: "#6b7280", OTHER_FACTS: "#c2a83e"}
GOES, STAYS, GROWS, UNCLEAR = "goes", "stays", "grows", "not measured"

# ---- answers and rewards -------------------------------------------------------------------------


def answer_groups(rows: Iterable[Example], name: str) -> list[AnswerGroup]:
    """Group rows with an answer by row id, in order of appearance.

    Raises InputError if a row has no answer, or rows of one id have other prompts or images.
    """
    groups: dict[str, AnswerGroup] = {}
    for row in rows:
        if not row.answer:
            raise InputError(f"{name}: row {row.id} has no `answer`: give answers that `mmrlhf generate` wrote")
        group = groups.get(row.id)
        if group is None:
            groups[row.id] = AnswerGroup(row.images, row.prompt, (row.answer,), row.facts, row.id)
        elif (group.images, group.prompt) != (row.images, row.prompt):
            raise InputError(f"{name}: two rows with id {row.id} have different prompts or images: give each prompt its own id")
        else:
            groups[row.id] = replace(group, answers=(*group.answers, row.answer))
    return list(groups.values())


def check_reward_terms(reward_terms: str) -> dict[str, float]:
    """Return the weights of a reward that `reward-eval` can score: fact_rm and claim rewards by
    facts.

    Raises InputError for any other.
    """
    weights = parse_reward_spec(reward_terms)
    for name in weights:
        verifier = "" if name == "fact_rm" else verifier_for(name)
        if name != "fact_rm" and verifier != "facts":
            raise InputError(
                f"reward_terms names {name}: reward-eval scores single claims by fact_rm, hallucination, coverage and "
                "verifier_score@facts; leave out the others"
            )
    return weights


def weighted_score(model: RewardModel, weights: Mapping[str, float], lexicon: Lexicon) -> ScoreGroups:
    """Return the reward as a function of groups of answers, which reads each group's facts."""

    def score(groups: Sequence[AnswerGroup]) -> list[list[float]]:
        totals = [np.zeros(len(group.answers)) for group in groups]
        for name, weight in weights.items():
            if name == "fact_rm":
                for total, scores in zip(totals, model.score(groups), strict=True):
                    total += weight * np.array(scores)
                continue
            claim_reward = CLAIM_REWARDS[name.partition("@")[0]].function
            for total, group in zip(totals, groups, strict=True):
                for index, answer in enumerate(group.answers):
                    verdicts = verify_against_facts(extract_claims(answer, lexicon), group.facts, lexicon)
                    total[index] += weight * sum(value for *_, value in claim_reward(verdicts))
        return [total.tolist() for total in totals]

    return score


def reads_facts(model: RewardModel, weights: Mapping[str, float]) -> bool:
    """Return whether a reward depends on facts."""
    return any(model.facts == "given" if name == "fact_rm" else True for name in weights)


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
    """Return J by condition of the facts and kind of claim, the reward's spread, and a forecast.

    scores: by condition, of the answers and then of the answers without claims `found`.
    """
    result: dict[str, Any] = {
        "num_prompts": len(groups),
        "num_answers": sum(len(group.answers) for group in groups),
        "spread": {name: explained_variance(groups, values, verdicts, seed) for name, values in scores.items()},
        "detection": None,
        "forecast": None,
    }
    if verdicts is not None:
        result["detection"] = {
            name: detection_rates(found, score_rises(groups, found, values), seed=seed) for name, values in scores.items()
        }
        gains = None
        if WITH_FACTS in scores:
            rises, base_rises = (score_rises(groups, found, scores[name]) for name in (WITH_FACTS, WITHOUT_FACTS))
            gains = detection_gain(found, rises, base_rises, seed=seed)
        result["forecast"] = forecast(result["detection"], result["spread"], gains)
    return result


def contradicted_shares(groups: Sequence[AnswerGroup], lexicon: Lexicon) -> dict[str, dict[str, Any]]:
    """Return the share of claims that a claim reward's facts contradict, by kind of claim."""
    outcomes: dict[str, list[bool]] = {}
    for group in groups:
        for answer in group.answers:
            for verdict in verify_against_facts(extract_claims(answer, lexicon), group.facts, lexicon):
                outcomes.setdefault(verdict.claim.kind, []).append(verdict.value == "contradicted")
    return {kind: proportion(np.array(outcomes[kind], dtype=bool)) for kind in CLAIM_KINDS if kind in outcomes}


def forecast(
    detection: Mapping[str, Mapping[str, Any]],
    spread: Mapping[str, Mapping[str, Any]],
    gains: Mapping[str, Mapping[str, float] | None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return, by kind of claim, what becomes of false claims under each condition of the facts.

    They go if J is above 0, grow if it is below, and stay if its interval includes 0. `speed` is J
    times the standard deviation of the reward within a prompt's answers, and `speed_ratio` that
    with facts over that without; None unless false claims go in both cases. `gain` is J with facts
    minus J without, from `gains`.
    """
    kinds = [kind for kind in CLAIM_KINDS if any(kind in rates for rates in detection.values())]
    result: dict[str, dict[str, Any]] = {}
    for kind in kinds:
        entry: dict[str, Any] = {"fate": {}, "speed": {}, "gain": (gains or {}).get(kind)}
        for name, rates in detection.items():
            kind_rates = rates.get(kind)
            entry["fate"][name] = _fate(kind_rates)
            std = spread[name]["within_std"]
            has_speed = kind_rates is not None and kind_rates["J"] is not None and std is not None
            entry["speed"][name] = kind_rates["J"]["value"] * std if has_speed and kind_rates else None
        go_in_both = all(entry["fate"].get(name) == GOES for name in (WITH_FACTS, WITHOUT_FACTS))
        speeds = entry["speed"]
        entry["speed_ratio"] = None
        if go_in_both and speeds[WITH_FACTS] is not None and speeds[WITHOUT_FACTS]:
            entry["speed_ratio"] = speeds[WITH_FACTS] / speeds[WITHOUT_FACTS]
        result[kind] = entry
    return result


def _fate(rates: Mapping[str, Any] | None) -> str:
    if rates is None or min(rates["num_false"], rates["num_true"]) < MIN_FALSE_CLAIMS:
        return UNCLEAR
    if rates["J"]["low"] > 0:
        return GOES
    return GROWS if rates["J"]["high"] < 0 else STAYS


def outlook_sentences(outlook: Mapping[str, Any]) -> list[str]:
    """Return what the figures say of the policy, in plain sentences."""
    sentences = [_spread_sentence(outlook["spread"])] if _has_spread(outlook["spread"]) else [
        "How much the reward varies within a prompt's answers is not measured: give several answers per prompt "
        "(`mmrlhf generate --num_generations 4 --temperature 1`)."
    ]  # fmt: skip
    if outlook["detection"] is None:
        sentences.append(
            "Which kinds of false claims training would drive out is not measured: it needs a truth that the reward does not "
            "read (--truth facts, labels or clip)."
        )
        return sentences
    main = WITH_FACTS if WITH_FACTS in outlook["detection"] else WITHOUT_FACTS
    kinds_by_fate: dict[str, list[str]] = {GOES: [], STAYS: [], GROWS: [], UNCLEAR: []}
    for kind, entry in outlook["forecast"].items():
        rates = outlook["detection"][main].get(kind)
        fate = entry["fate"][main]
        kinds_by_fate[fate].append(_kind_phrase(kind, rates, entry, main) if fate != UNCLEAR else _few_phrase(kind, rates))
    for fate, verb in (
        (GOES, "will go"),
        (STAYS, "are not shown to change (the interval of J includes 0)"),
        (GROWS, "will grow"),
    ):
        if kinds_by_fate[fate]:
            sentences.append(f"Trained against this reward {main}, false claims {verb}: {'; '.join(kinds_by_fate[fate])}.")
    if kinds_by_fate[UNCLEAR]:
        sentences.append(
            f"Not measured, with fewer than {MIN_FALSE_CLAIMS} false or true claims: {'; '.join(kinds_by_fate[UNCLEAR])}."
        )
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


def _kind_phrase(kind: str, rates: Mapping[str, Any], entry: Mapping[str, Any], main: str) -> str:
    phrase = f"{kind} (J {format_j(rates['J'], ', {} to {}')}"
    fate_without = entry["fate"].get(WITHOUT_FACTS)
    if main == WITH_FACTS:
        if entry["speed_ratio"] is not None:
            phrase += f"; {entry['speed_ratio']:.1f} times as fast as without facts"
        elif fate_without != entry["fate"][main] and fate_without != UNCLEAR:
            without = {GOES: "they go", STAYS: "not shown to change", GROWS: "they grow"}[fate_without or STAYS]
            phrase += f"; without facts {without}"
    return f"{phrase})"


def format_j(j: Mapping[str, float], interval: str = " ({} to {})") -> str:
    """Return J and its interval as text, without the sign of -0.00."""
    value, low, high = (f"{round(j[key], 2) + 0.0:.2f}" for key in ("value", "low", "high"))
    return value + interval.format(low, high)


def _few_phrase(kind: str, rates: Mapping[str, Any] | None) -> str:
    return f"{kind} ({rates['num_false'] if rates else 0} false, {rates['num_true'] if rates else 0} true)"


def _facts_sentences(outlook: Mapping[str, Any]) -> list[str]:
    """Return whether facts will change the policy, and whether it is their content that does."""
    gained, faster, lost = [], [], []
    for kind, entry in outlook["forecast"].items():
        with_facts, without, gain = entry["fate"][WITH_FACTS], entry["fate"][WITHOUT_FACTS], entry["gain"]
        if UNCLEAR in (with_facts, without) or gain is None:
            continue
        if gain["high"] < 0:
            lost.append(kind)
        elif with_facts == GOES and without == GOES:
            if gain["low"] > 0 or (entry["speed_ratio"] or 1) >= MIN_SPEED_RATIO:
                faster.append(kind)
        elif with_facts == GOES and gain["low"] > 0:
            gained.append(kind)
    sentences = []
    if gained:
        sentences.append(f"Facts will change the policy: only with them do false claims go that are about {_and(gained)}.")
    if faster:
        sentences.append(f"Facts will speed up what happens without them, too: fewer false claims about {_and(faster)}.")
    if lost:
        sentences.append(f"Facts lower J for claims about {_and(lost)}: check the facts, or train without them.")
    if not sentences:
        sentences.append("Facts are not shown to change what the policy learns from this reward.")
    other = outlook["detection"].get(OTHER_FACTS, {}).get(ALL_KINDS)
    own = outlook["detection"][WITH_FACTS][ALL_KINDS]
    if (
        other
        and other["J"] is not None
        and own["J"] is not None
        and other["J"]["high"] >= own["J"]["value"]
        and own["J"]["low"] > 0
    ):
        sentences.append(
            f"With another image's facts J is as high ({other['J']['value']:.2f} against {own['J']['value']:.2f}): the reward hardly "
            "reads what the facts say."
        )
    return sentences


# ---- the picture ---------------------------------------------------------------------------------


def draw_detection(axes: Axes, detection: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw J by kind of claim with intervals, a colour per condition of the facts; return the same
    in words."""
    kinds = [
        kind
        for kind in (*CLAIM_KINDS, ALL_KINDS)
        if any(kind in rates and rates[kind]["J"] is not None for rates in detection.values())
    ]
    parts = []
    for number, (name, rates) in enumerate(detection.items()):
        points = [(i, rates[kind]["J"]) for i, kind in enumerate(kinds) if kind in rates and rates[kind]["J"] is not None]
        if not points:
            continue
        y = np.array([i for i, _ in points]) + 0.22 * (number - (len(detection) - 1) / 2)
        values = np.array([j["value"] for _, j in points])
        errors = np.abs(np.array([[j["low"] for _, j in points], [j["high"] for _, j in points]]) - values)
        axes.errorbar(values, y, xerr=errors, fmt="o", markersize=4, color=COLOURS[name], elinewidth=1, label=name)
        parts.append(f"{name} " + ", ".join(f"{kinds[i]} {format_j(j, '')}" for i, j in points))
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.set(
        yticks=range(len(kinds)),
        yticklabels=kinds,
        xlim=(-1.05, 1.05),
        xlabel="stays or grows  |  goes",
        title="J by kind of claim",
    )
    axes.invert_yaxis()
    if len(detection) > 1:
        axes.legend(fontsize="small", loc="lower left")
    return f"J by kind of claim: {'; '.join(parts)}."
