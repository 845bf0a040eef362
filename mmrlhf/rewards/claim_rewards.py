"""Reward functions of an answer's claims, which reward each claim at the characters stating it.

    hallucination     1 per contradicted claim, and the false rate of its kind per unknown claim if
                      `unknown_claim_costs` gives it: give it a negative weight
    coverage          1 per distinct supported claim that is neither negated nor hedged
    verifier_score    the mean over claims of 2p - 1, p being the probability that a claim is true

`NAME@VERIFIER` in `reward_terms` chooses the verifier: facts, clip, vlm, or several joined by `+`,
where the first known verdict decides. The default is facts, or clip for verifier_score. Without
`unknown_claim_costs`, an unknown claim costs nothing and earns nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmrlhf.claims import Lexicon, extract_claims, load_lexicon
from mmrlhf.config import RewardedConfig
from mmrlhf.models.adapters import Adapters
from mmrlhf.records import CLAIM_KINDS, Claim, InputError, Verdict
from mmrlhf.rewards.false_rates import without_consequences
from mmrlhf.rewards.reward_terms import parse_reward_spec
from mmrlhf.rewards.types import RewardFunction, RewardSpan, Sample
from mmrlhf.verifiers import AnswerClaims, Verifier
from mmrlhf.verifiers.build import VERIFIERS, validate_verifier
from mmrlhf.verifiers.cascade import cascade
from mmrlhf.verifiers.verbalize import display

NO_COSTS: Mapping[str, float] = {}
"""Unknown claims cost nothing."""

# ---- what verdicts are worth --------------------------------------------------------------------


def hallucination(verdicts: Sequence[Verdict], unknown_costs: Mapping[str, float] = NO_COSTS) -> list[RewardSpan]:
    """Give 1 to each contradicted claim that is not hedged.

    For an absent object, only the claim that it exists counts, not claims about its colour, number
    or place. An unknown claim that is neither hedged nor negated gets the cost of its kind, the
    share of such claims that are false, so that unverifiable claims are not free.
    """
    charged = [v for v in without_consequences(verdicts) if not v.claim.hedged]
    costs = [(v.claim, 1.0) for v in charged if v.value == "contradicted"]
    costs += [(v.claim, unknown_costs.get(v.claim.kind, 0.0)) for v in charged if v.value == "unknown" and not v.claim.negated]
    return [(*claim.span, cost) for claim, cost in costs if cost]


def coverage(verdicts: Sequence[Verdict]) -> list[RewardSpan]:
    """Give 1 to each distinct supported claim, neither negated nor hedged, at its first mention."""
    distinct: dict[Claim, Verdict] = {}
    for v in verdicts:
        if v.value == "supported" and not v.claim.negated and not v.claim.hedged:
            distinct.setdefault(v.claim, v)  # equality of claims ignores their spans
    return [(*v.claim.span, 1.0) for v in distinct.values()]


def verifier_score(verdicts: Sequence[Verdict]) -> list[RewardSpan]:
    """Give (2p - 1) / n to each of the n claims that have a probability p and are not hedged."""
    known = [(v.claim.span, v.probability) for v in verdicts if v.probability is not None and not v.claim.hedged]
    return [(*span, (2 * p - 1) / len(known)) for span, p in known if p != 0.5]


@dataclass(frozen=True)
class ClaimReward:
    """A reward function of one answer's verdicts, with its default verifier."""

    function: Callable[[Sequence[Verdict]], list[RewardSpan]]
    default_verifier: str


CLAIM_REWARDS: dict[str, ClaimReward] = {
    "hallucination": ClaimReward(hallucination, "facts"),
    "coverage": ClaimReward(coverage, "facts"),
    "verifier_score": ClaimReward(verifier_score, "clip"),
}
"""Claim rewards by their name in `reward_terms`.

To add one, write its function above and list it here. Verifiers are in `verifiers.build.VERIFIERS`.
"""


def parse_unknown_costs(text: str | None) -> dict[str, float]:
    """Parse the costs of unknown claims by kind, such as `object=0.1, count=0.3`.

    Raises InputError for another kind or number, or a kind that is named twice.
    """
    costs: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in (text or "").split(","))):
        kind, _, number = (word.strip() for word in part.partition("="))
        try:
            cost = float(number)
        except ValueError:
            cost = math.nan
        if kind not in CLAIM_KINDS or not 0 <= cost <= 1:
            raise InputError(
                f"unknown_claim_costs has {part!r}: write KIND=SHARE, such as count=0.3, with a kind of {', '.join(CLAIM_KINDS)} "
                "and a share from 0 to 1, separated by commas"
            )
        if kind in costs:
            raise InputError(f"unknown_claim_costs names {kind} twice: keep one")
        costs[kind] = cost
    return costs


def check_unknown_costs(config: RewardedConfig) -> None:
    """Raise InputError for costs of unknown claims that are malformed, or that no reward uses."""
    names = [name.partition("@")[0] for name in parse_reward_spec(config.reward_terms)]
    if parse_unknown_costs(config.unknown_claim_costs) and "hallucination" not in names:
        raise InputError("unknown_claim_costs is for the claim reward hallucination: name it in reward_terms, or leave it out")


# ---- which verifiers ---------------------------------------------------------------------------


def verifier_for(name: str) -> str:
    """Return the verifier of an entry in `reward_terms`, or "" if it is not a claim reward.

    Raises InputError for an unknown verifier.
    """
    reward_name, separator, verifier_name = name.partition("@")
    if reward_name not in CLAIM_REWARDS:
        return ""
    if not separator:
        return CLAIM_REWARDS[reward_name].default_verifier
    return validate_verifier(verifier_name, f"reward_terms names {name}")


def claim_reward_verifiers(reward_terms: str) -> dict[str, str]:
    """Return the verifier of each claim reward in a list. Raises InputError if it is unknown."""
    verifiers = {name: verifier_for(name) for name in parse_reward_spec(reward_terms)}
    return {name: verifier_name for name, verifier_name in verifiers.items() if verifier_name}


def monitor_verifiers(verifier_list: str | None, reward_verifiers: Sequence[str], allow_reward_verifiers: bool) -> list[str]:
    """Return the verifiers in a comma-separated list, which measure without giving rewards.

    Raises InputError for an unknown verifier and, unless `allow_reward_verifiers`, for one that the
    reward uses.
    """
    names = [validate_verifier(part.strip(), "monitor_verifiers") for part in (verifier_list or "").split(",") if part.strip()]
    rewarded = _single_verifiers(reward_verifiers)
    for name in names:
        overlap = rewarded & set(name.split("+"))
        if overlap and not allow_reward_verifiers:
            raise InputError(
                f"monitor_verifiers names {', '.join(sorted(overlap))}, which the reward uses: a measure that is optimised "
                "cannot tell whether the goal is met; monitor with another verifier, or give "
                "--allow_monitoring_reward_verifiers true"
            )
    return list(dict.fromkeys(names))


def _single_verifiers(verifier_names: Sequence[str]) -> set[str]:
    """Return the single verifiers in names such as `facts+clip`."""
    return {part for name in verifier_names for part in name.split("+")}


def asks_base(config: RewardedConfig) -> bool:
    """Return whether a verifier of the run asks the base model itself."""
    verifiers = [*claim_reward_verifiers(config.reward_terms).values(), *(config.monitor_verifiers or "").split(",")]
    return any(part.strip() == "vlm" for name in verifiers for part in name.split("+"))


def counts_claims(config: RewardedConfig) -> bool:
    """Return whether a run counts the claims of its answers.

    It does where claims are rewarded or monitored, and where a reward model scores answers: these
    are about an image then. Rule rewards alone, such as correctness, may be about anything.
    """
    spec = parse_reward_spec(config.reward_terms)
    return config.monitor_verifiers is not None or "fact_rm" in spec or bool(claim_reward_verifiers(config.reward_terms))


# ---- the scorer of a run -----------------------------------------------------------------------


@dataclass
class ClaimScorer:
    """Extracts claims from answers and verifies them.

    It caches the results for the latest samples, which several reward functions and monitors share.
    """

    lexicon: Lexicon
    verifiers: Mapping[str, Verifier]
    """Single verifiers by name."""
    verifier_names: tuple[str, ...] = ()
    """Verifiers, or several joined by `+`, that judge every answer for the ledger and metrics;
    without any, claims are only counted."""
    unknown_costs: Mapping[str, float] = field(default_factory=dict)
    """The cost of an unknown claim in `hallucination`, by kind."""
    _samples: Sequence[Sample] = field(default=(), repr=False)
    _answer_claims: list[AnswerClaims] = field(default_factory=list, repr=False)
    _verdicts: dict[str, list[list[Verdict]]] = field(default_factory=dict, repr=False)

    def extract(self, samples: Sequence[Sample]) -> list[AnswerClaims]:
        """Return each sample's claims, with its images and facts."""
        # By identity: ppo passes the same list to every reward function of a step.
        if samples is not self._samples:
            self._samples, self._verdicts = samples, {}
            self._answer_claims = [
                AnswerClaims(s.images, s.facts, tuple(extract_claims(s.answer, self.lexicon))) for s in samples
            ]
        return self._answer_claims

    def verdicts(self, samples: Sequence[Sample], verifier_name: str) -> list[list[Verdict]]:
        """Return the verdicts on each sample's claims by a verifier, or by a cascade `A+B`."""
        answer_claims = self.extract(samples)
        if verifier_name not in self._verdicts:
            verify = cascade([self.verifiers[part] for part in verifier_name.split("+")], self.lexicon)
            self._verdicts[verifier_name] = verify(answer_claims)
        return self._verdicts[verifier_name]

    def reward_function(self, name: str, verifier_name: str) -> RewardFunction:
        """Return a claim reward, by its name in `reward_terms`, as a function of samples."""
        function = CLAIM_REWARDS[name.partition("@")[0]].function
        if function is hallucination:
            function = partial(hallucination, unknown_costs=self.unknown_costs)
        return lambda samples: [function(verdicts) for verdicts in self.verdicts(samples, verifier_name)]

    def reward_functions(self, reward_terms: str) -> dict[str, RewardFunction]:
        """Return the claim rewards in a list, by their names there."""
        return {
            name: self.reward_function(name, verifier_name)
            for name, verifier_name in claim_reward_verifiers(reward_terms).items()
        }

    def ledger_rows(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """Return each answer's claims for the ledger, verified by each of `verifier_names`."""
        verdicts_by_verifier = {verifier_name: self.verdicts(samples, verifier_name) for verifier_name in self.verifier_names}
        return [
            [
                self._ledger_row(verifier_name, verdict)
                for verifier_name, verdicts in verdicts_by_verifier.items()
                for verdict in verdicts[sample_index]
            ]
            for sample_index in range(len(samples))
        ]

    def _ledger_row(self, verifier_name: str, verdict: Verdict) -> dict[str, Any]:
        claim = verdict.claim
        return {
            "kind": claim.kind,
            "claim": display(claim, self.lexicon),
            "start": claim.span[0],
            "end": claim.span[1],
            "hedged": claim.hedged,
            "by": verifier_name,
            "verdict": verdict.value,
            "probability": verdict.probability and round(verdict.probability, 4),
            "evidence": verdict.evidence,
        }


def build_claim_scorer(config: RewardedConfig, adapters: Adapters) -> ClaimScorer | None:
    """Build the claim scorer for a run's rewards and monitors; return None if it counts no claims.

    Raises InputError for a verifier that is unknown, cannot be built, or may not be a monitor.
    """
    reward_verifiers = list(claim_reward_verifiers(config.reward_terms).values())
    monitors = monitor_verifiers(config.monitor_verifiers, reward_verifiers, config.allow_monitoring_reward_verifiers)
    verifier_names = tuple(dict.fromkeys([*reward_verifiers, *monitors]))
    if not counts_claims(config):
        return None
    lexicon = load_lexicon(config.lexicon_file)
    verifiers = {name: VERIFIERS[name](config, adapters, lexicon) for name in sorted(_single_verifiers(verifier_names))}
    return ClaimScorer(lexicon, verifiers, verifier_names, parse_unknown_costs(config.unknown_claim_costs))
