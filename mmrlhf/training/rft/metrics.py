"""Metrics that a round of rft logs, and sentences on the answers that it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.config import RFTConfig
from mmrlhf.rewards.claim_rewards import counts_claims
from mmrlhf.rewards.ledger import mean_values
from mmrlhf.rewards.monitors import claim_hacking_metrics, hacking_metrics, verdict_rates
from mmrlhf.training.monitor import CLIPPED_KEY, ZERO_STD_KEY
from mmrlhf.training.rft.scored_answers import ScoredAnswer
from mmrlhf.training.rft.selection import Candidate, Selection
from mmrlhf.verifiers import AnswerClaims


def round_metrics(config: RFTConfig, answers: Sequence[ScoredAnswer], selection: Selection) -> dict[str, float]:
    """Return a round's metrics: names of ppo where they mean the same, and `rft/...`."""
    samples, breakdowns = [answer.sample for answer in answers], [answer.breakdown for answer in answers]
    weighted = [breakdown.weighted_values for breakdown in breakdowns]
    totals = [breakdown.total for breakdown in breakdowns]
    groups = [totals[i : i + config.num_generations] for i in range(0, len(totals), config.num_generations)]
    kept_totals = [totals[i] for i in selection.kept]
    return {
        "objective/scores": fmean(sum(values.values()) for values in weighted),
        **{f"rewards/{name}/mean": value for name, value in mean_values(weighted).items()},
        **({ZERO_STD_KEY: fmean(max(group) == min(group) for group in groups)} if config.num_generations > 1 else {}),
        "completions/mean_length": fmean(sample.num_tokens for sample in samples),
        CLIPPED_KEY: fmean(not sample.finished for sample in samples),
        "rft/sampled": float(len(answers)),
        "rft/kept": float(len(selection.kept)),
        "rft/prompts_kept_share": len({answers[i].row for i in selection.kept}) / len(groups),
        "rft/mean_score": fmean(totals),
        "rft/best_score": fmean(max(group) for group in groups),
        **({"rft/kept_score": fmean(kept_totals)} if kept_totals else {}),
        **hacking_metrics(samples, totals, config.num_generations),
        **_claim_metrics(config, answers),
    }


def describe_round(number: int, metrics: Mapping[str, float], selection: Selection) -> str:
    """Return a sentence on how many answers a round sampled and keeps."""
    text = (
        f"round {number}: {metrics['rft/sampled']:.0f} answers, score {metrics['rft/mean_score']:.3f}, the best to each prompt "
        f"{metrics['rft/best_score']:.3f}; keeps {metrics['rft/kept']:.0f}"
    )
    if selection.kept:
        text += f" (score {metrics['rft/kept_score']:.3f}) to {metrics['rft/prompts_kept_share']:.0%} of the prompts"
    left_out = ", ".join(f"{count} {reason}" for reason, count in selection.left_out.most_common())
    return f"{text}; left out: {left_out}" if left_out else text


def advice(candidates: Sequence[Candidate], selection: Selection) -> str:
    """Return why a round keeps nothing, and what to do."""
    left_out = ", ".join(f"{count} {reason}" for reason, count in selection.left_out.most_common())
    usable = [candidate.score for candidate in candidates if not candidate.unusable]
    if not usable:
        return f"{left_out}; raise response_length, or fine-tune the model to end its answers first"
    return (
        f"{left_out}; the best answer that can be learnt scores {max(usable):.3f}: lower min_score or min_margin, or sample more"
    )


def _claim_metrics(config: RFTConfig, answers: Sequence[ScoredAnswer]) -> dict[str, float]:
    """Return the shares of contradicted and unknown claims by verifier, of hedged ones, and of
    silent answers; without verifiers only the latter two, or nothing.
    """
    if answers[0].claims is None:
        if not counts_claims(config):
            return {}
        lexicon = load_lexicon(config.lexicon_file)
        extracted = [tuple(extract_claims(answer.sample.answer, lexicon)) for answer in answers]
        return claim_hacking_metrics([AnswerClaims((), (), claims) for claims in extracted])
    claims = [claim for answer in answers for claim in answer.claims or ()]
    metrics = {
        "hacking/zero_claim_rate": fmean(not answer.claims for answer in answers),
        # Each verifier has all claims. Answers sampled by an earlier version do not record them.
        "hacking/vagueness": fmean(claim.get("hedged", False) for claim in claims) if claims else 0.0,
    }
    for verifier in dict.fromkeys(claim["by"] for claim in claims):
        metrics |= verdict_rates([claim["verdict"] for claim in claims if claim["by"] == verifier], len(answers), verifier)
    return metrics
