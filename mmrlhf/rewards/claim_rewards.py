"""Claims as reward: terms that pay for what an answer says of its pictures, claim by claim, at the characters that say it.

    hallucination    1 for each contradicted claim: weigh it below 0
    coverage         1 for each supported claim that is neither negated nor hedged; a repetition claims nothing new
    clip             the mean over claims of 2p - 1, p being the probability that a claim is true

`NAME@VERIFIER` names who judges: facts (the default; of the term clip it is clip), clip, vlm, or several with `+` between, of which the first
that knows decides. Unknown costs nothing and earns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmrlhf.claims import Lexicon, extract_claims, load_lexicon
from mmrlhf.config import PPOConfig
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.records import InputError, Verdict
from mmrlhf.rewards.ledger import parse_reward_spec
from mmrlhf.rewards.types import RewardFunction, RewardSpan, Sample
from mmrlhf.verifiers import AnswerClaims, Verifier
from mmrlhf.verifiers.base import load_calibration
from mmrlhf.verifiers.cascade import cached, cascade, facts_verifier
from mmrlhf.verifiers.clip import load_clip
from mmrlhf.verifiers.verbalize import display
from mmrlhf.verifiers.vlm import UNCALIBRATED, VLMVerifier

VERIFIERS = ("facts", "clip", "vlm")


def hallucination(verdicts: Sequence[Verdict]) -> list[RewardSpan]:
    """1 at each claim that is contradicted and not hedged. Of a thing that is not there only its existence counts, not its colour besides."""
    contradicted = [v for v in verdicts if v.value == "contradicted" and not v.claim.hedged]
    absent_subjects = {v.claim.subject for v in contradicted if v.claim.kind == "object" and not v.claim.negated}

    def is_implied(verdict: Verdict) -> bool:
        claim = verdict.claim
        return claim.kind != "object" and not claim.negated and bool(absent_subjects & {claim.subject, claim.target})

    return [(*v.claim.span, 1.0) for v in contradicted if not is_implied(v)]


def coverage(verdicts: Sequence[Verdict]) -> list[RewardSpan]:
    """1 at each supported claim, distinct ones once."""
    distinct: dict[Any, Verdict] = {}
    for v in verdicts:
        if v.value == "supported" and not v.claim.negated and not v.claim.hedged:
            distinct.setdefault(v.claim, v)
    return [(*v.claim.span, 1.0) for v in distinct.values()]


def verifier_score(verdicts: Sequence[Verdict]) -> list[RewardSpan]:
    """(2p - 1) / n at each of the n claims whose probability is known, hedged ones aside."""
    known = [(v.claim.span, v.probability) for v in verdicts if v.probability is not None and not v.claim.hedged]
    return [(*span, (2 * p - 1) / len(known)) for span, p in known if p != 0.5]


CLAIM_REWARDS: dict[str, tuple[Callable[[Sequence[Verdict]], list[RewardSpan]], str]] = {
    "hallucination": (hallucination, "facts"),
    "coverage": (coverage, "facts"),
    "verifier_score": (verifier_score, "clip"),
}
"""By name, with the verifier that is asked where none is named."""


def verifier_for(name: str) -> str:
    """Who judges a term as the list names it; "" for a term that judges no claims. Raises InputError for a verifier that is none."""
    reward_name, separator, verifier_name = name.partition("@")
    if reward_name not in CLAIM_REWARDS:
        return ""
    return validate_verifier(verifier_name, f"reward_terms names {name}") if separator else CLAIM_REWARDS[reward_name][1]


def validate_verifier(verifier_name: str, location: str) -> str:
    """A verifier's name, or several joined by `+`. Raises InputError."""
    parts = [part.strip() for part in verifier_name.split("+")]
    for part in parts:
        if part not in VERIFIERS:
            raise InputError(f"{location}: there is no verifier {part!r}, but {', '.join(VERIFIERS)}, or several with + between")
    if len(set(parts)) < len(parts):
        raise InputError(f"{location}: a verifier stands there twice")
    return "+".join(parts)


def claim_reward_verifiers(reward_terms: str) -> dict[str, str]:
    """The claim terms of a list and who judges each."""
    return {name: verifier_name for name in parse_reward_spec(reward_terms) if (verifier_name := verifier_for(name))}


def monitor_verifiers(verifier_list: str | None, reward_verifiers: Sequence[str], allow_reward_verifiers: bool) -> list[str]:
    """Verifiers that only measure. Raises InputError for one that the reward is made of as well."""
    names = [validate_verifier(part.strip(), "monitor_verifiers") for part in (verifier_list or "").split(",") if part.strip()]
    rewarded = {part for verifier_name in reward_verifiers for part in verifier_name.split("+")}
    for name in names:
        if (overlap := rewarded & set(name.split("+"))) and not allow_reward_verifiers:
            raise InputError(
                f"monitor_verifiers names {', '.join(sorted(overlap))}, which the reward is made of: what is optimised cannot say whether it was "
                "reached; watch another one, or give --allow_monitoring_reward_verifiers true"
            )
    return list(dict.fromkeys(names))


@dataclass
class ClaimScorer:
    """Reads claims out of answers and has them judged. What it has found of the latest samples stays: several terms ask for the same."""

    lexicon: Lexicon
    verifiers: Mapping[str, Verifier]
    verifier_names: tuple[str, ...] = ()
    """The verifiers, and several with + between, that are asked of every answer."""
    _samples: Sequence[Sample] = field(default=(), repr=False)
    _answer_claims: list[AnswerClaims] = field(default_factory=list, repr=False)
    _verdicts: dict[str, list[list[Verdict]]] = field(default_factory=dict, repr=False)

    def extract(self, samples: Sequence[Sample]) -> list[AnswerClaims]:
        if samples is not self._samples:
            self._samples, self._verdicts = samples, {}
            self._answer_claims = [
                AnswerClaims(s.images, s.facts, tuple(extract_claims(s.answer, self.lexicon))) for s in samples
            ]
        return self._answer_claims

    def verdicts(self, samples: Sequence[Sample], verifier_name: str) -> list[list[Verdict]]:
        """Of each sample's claims by a verifier, or by the first of several that knows."""
        answer_claims = self.extract(samples)
        if verifier_name not in self._verdicts:
            self._verdicts[verifier_name] = cascade([self.verifiers[part] for part in verifier_name.split("+")])(answer_claims)
        return self._verdicts[verifier_name]

    def reward_function(self, name: str, verifier_name: str) -> RewardFunction:
        pay_spans = CLAIM_REWARDS[name.partition("@")[0]][0]
        return lambda samples: [pay_spans(verdicts) for verdicts in self.verdicts(samples, verifier_name)]

    def reward_functions(self, reward_terms: str) -> dict[str, RewardFunction]:
        """The claim terms of a list by the names it gives them."""
        return {
            name: self.reward_function(name, verifier_name)
            for name, verifier_name in claim_reward_verifiers(reward_terms).items()
        }

    def ledger_rows(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """For the ledger: each answer's claims, judged by each of `names`."""
        verdicts_by_verifier = {verifier_name: self.verdicts(samples, verifier_name) for verifier_name in self.verifier_names}
        return [
            [
                row
                for verifier_name, verdicts in verdicts_by_verifier.items()
                for row in map(partial(self._ledger_row, verifier_name), verdicts[n])
            ]
            for n in range(len(samples))
        ]

    def _ledger_row(self, verifier_name: str, verdict: Verdict) -> dict[str, Any]:
        claim = verdict.claim
        return {
            "kind": claim.kind, "claim": display(claim, self.lexicon), "start": claim.span[0], "end": claim.span[1], "by": verifier_name,
            "verdict": verdict.value, "probability": verdict.probability and round(verdict.probability, 4), "evidence": verdict.evidence,
        }  # fmt: skip


# ---- who judges a run --------------------------------------------------------------------------------------------------


def build_claim_scorer(config: PPOConfig, adapters: Adapters) -> ClaimScorer | None:
    """Who judges claims, for terms and for what is watched; None where nobody is asked. Raises InputError."""
    reward_verifiers = list(claim_reward_verifiers(config.reward_terms).values())
    verifier_names = [
        *reward_verifiers,
        *monitor_verifiers(config.monitor_verifiers, reward_verifiers, config.allow_monitoring_reward_verifiers),
    ]
    if not verifier_names:
        return None
    lexicon = load_lexicon(config.lexicon_file)
    verifiers: dict[str, Verifier] = {}
    for part in sorted({part for verifier_name in verifier_names for part in verifier_name.split("+")}):
        if part == "facts":
            verifiers[part] = facts_verifier(lexicon)
        elif part == "clip":
            if config.clip_model is None:
                raise InputError("the verifier clip is asked for: give --clip_model, or ask facts or vlm")
            clip_verifier = load_clip(config.clip_model, lexicon, config.clip_calibration, adapters.vlm.device)
            if not clip_verifier.calibration.coefficients:
                raise InputError(
                    f"open_clip model {config.clip_model} has no calibration, without which it knows nothing: make one with "
                    "`mmrlhf calibrate clip` and give it as --clip_calibration"
                )
            verifiers[part] = cached(clip_verifier)
        else:
            calibration = load_calibration(Path(config.vlm_calibration))[0] if config.vlm_calibration else UNCALIBRATED
            verifiers[part] = cached(VLMVerifier(Role(adapters, None), lexicon, calibration, config.max_length))
    return ClaimScorer(lexicon, verifiers, tuple(dict.fromkeys(verifier_names)))


# ---- guards --------------------------------------------------------------------------------------------------------------
