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

import numpy as np

from mmrlhf.claims import Lexicon, claims, lexicon
from mmrlhf.config import PPOConfig
from mmrlhf.records import InputError, Verdict
from mmrlhf.roles import Adapters, Role
from mmrlhf.terms import Sample, Span, Term, parse
from mmrlhf.verify import Said, Verifier
from mmrlhf.verify.asking import AS_IT_SAYS, Asking
from mmrlhf.verify.clip import load_clip
from mmrlhf.verify.combined import first_known, from_facts, remembering
from mmrlhf.verify.sentences import shown
from mmrlhf.verify.verifier import load

VERIFIERS = ("facts", "clip", "vlm")


def hallucination(verdicts: Sequence[Verdict]) -> list[Span]:
    """1 at each claim that is contradicted and not hedged. Of a thing that is not there only its existence counts, not its colour besides."""
    wrong = [v for v in verdicts if v.value == "contradicted" and not v.claim.hedged]
    gone = {v.claim.subject for v in wrong if v.claim.kind == "object" and not v.claim.negated}

    def follows(verdict: Verdict) -> bool:
        claim = verdict.claim
        return claim.kind != "object" and not claim.negated and bool(gone & {claim.subject, claim.target})

    return [(*v.claim.span, 1.0) for v in wrong if not follows(v)]


def coverage(verdicts: Sequence[Verdict]) -> list[Span]:
    """1 at each supported claim, distinct ones once."""
    found: dict[Any, Verdict] = {}
    for v in verdicts:
        if v.value == "supported" and not v.claim.negated and not v.claim.hedged:
            found.setdefault(v.claim, v)
    return [(*v.claim.span, 1.0) for v in found.values()]


def alignment(verdicts: Sequence[Verdict]) -> list[Span]:
    """(2p - 1) / n at each of the n claims whose probability is known, hedged ones aside."""
    known = [(v.claim.span, v.probability) for v in verdicts if v.probability is not None and not v.claim.hedged]
    return [(*span, (2 * p - 1) / len(known)) for span, p in known if p != 0.5]


TERMS: dict[str, tuple[Callable[[Sequence[Verdict]], list[Span]], str]] = {
    "hallucination": (hallucination, "facts"),
    "coverage": (coverage, "facts"),
    "clip": (alignment, "clip"),
}
"""By name, with the verifier that is asked where none is named."""


def verifier_of(name: str) -> str:
    """Who judges a term as the list names it; "" for a term that judges no claims. Raises InputError for a verifier that is none."""
    term, at, who = name.partition("@")
    if term not in TERMS:
        return ""
    return checked(who, f"reward_terms names {name}") if at else TERMS[term][1]


def checked(who: str, where: str) -> str:
    """A verifier's name, or several joined by `+`. Raises InputError."""
    parts = [part.strip() for part in who.split("+")]
    for part in parts:
        if part not in VERIFIERS:
            raise InputError(f"{where}: there is no verifier {part!r}, but {', '.join(VERIFIERS)}, or several with + between")
    if len(set(parts)) < len(parts):
        raise InputError(f"{where}: a verifier stands there twice")
    return "+".join(parts)


def asked(reward_terms: str) -> dict[str, str]:
    """The claim terms of a list and who judges each."""
    return {name: who for name in parse(reward_terms) if (who := verifier_of(name))}


def watched(watch_verifiers: str | None, in_reward: Sequence[str], same_allowed: bool) -> list[str]:
    """Verifiers that only measure. Raises InputError for one that the reward is made of as well."""
    names = [checked(part.strip(), "watch_verifiers") for part in (watch_verifiers or "").split(",") if part.strip()]
    paid = {part for who in in_reward for part in who.split("+")}
    for name in names:
        if (both := paid & set(name.split("+"))) and not same_allowed:
            raise InputError(
                f"watch_verifiers names {', '.join(sorted(both))}, which the reward is made of: what is optimised cannot say whether it was "
                "reached; watch another one, or give --same_verifier true"
            )
    return list(dict.fromkeys(names))


@dataclass
class Judge:
    """Reads claims out of answers and has them judged. What it has found of the latest samples stays: several terms ask for the same."""

    words: Lexicon
    verifiers: Mapping[str, Verifier]
    names: tuple[str, ...] = ()
    """The verifiers, and several with + between, that are asked of every answer."""
    _samples: Sequence[Sample] = field(default=(), repr=False)
    _said: list[Said] = field(default_factory=list, repr=False)
    _found: dict[str, list[list[Verdict]]] = field(default_factory=dict, repr=False)

    def said(self, samples: Sequence[Sample]) -> list[Said]:
        if samples is not self._samples:
            self._samples, self._found = samples, {}
            self._said = [Said(s.images, s.facts, tuple(claims(s.answer, self.words))) for s in samples]
        return self._said

    def verdicts(self, samples: Sequence[Sample], who: str) -> list[list[Verdict]]:
        """Of each sample's claims by a verifier, or by the first of several that knows."""
        said = self.said(samples)
        if who not in self._found:
            self._found[who] = first_known([self.verifiers[part] for part in who.split("+")])(said)
        return self._found[who]

    def term(self, name: str, who: str) -> Term:
        pay = TERMS[name.partition("@")[0]][0]
        return lambda samples: [pay(verdicts) for verdicts in self.verdicts(samples, who)]

    def terms(self, reward_terms: str) -> dict[str, Term]:
        """The claim terms of a list by the names it gives them."""
        return {name: self.term(name, who) for name, who in asked(reward_terms).items()}

    def kept(self, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        """For the ledger: each answer's claims, judged by each of `names`."""
        by = {who: self.verdicts(samples, who) for who in self.names}
        return [[row for who, found in by.items() for row in map(partial(self._row, who), found[n])] for n in range(len(samples))]

    def _row(self, who: str, verdict: Verdict) -> dict[str, Any]:
        claim = verdict.claim
        return {
            "kind": claim.kind, "claim": shown(claim, self.words), "start": claim.span[0], "end": claim.span[1], "by": who,
            "verdict": verdict.value, "probability": verdict.probability and round(verdict.probability, 4), "evidence": verdict.evidence,
        }  # fmt: skip


# ---- who judges a run --------------------------------------------------------------------------------------------------


def judge_of(config: PPOConfig, adapters: Adapters) -> Judge | None:
    """Who judges claims, for terms and for what is watched; None where nobody is asked. Raises InputError."""
    paid = list(asked(config.reward_terms).values())
    names = [*paid, *watched(config.watch_verifiers, paid, config.same_verifier)]
    if not names:
        return None
    words = lexicon(config.lexicon_file)
    verifiers: dict[str, Verifier] = {}
    for part in sorted({part for who in names for part in who.split("+")}):
        if part == "facts":
            verifiers[part] = from_facts(words)
        elif part == "clip":
            if config.clip_model is None:
                raise InputError("the verifier clip is asked for: give --clip_model, or ask facts or vlm")
            clip = load_clip(config.clip_model, words, config.clip_calibration, adapters.vlm.device)
            if not clip.certainty.by_kind:
                raise InputError(
                    f"open_clip model {config.clip_model} has no calibration, without which it knows nothing: make one with "
                    "`mmrlhf calibrate clip` and give it as --clip_calibration"
                )
            verifiers[part] = remembering(clip)
        else:
            certainty = load(Path(config.vlm_calibration))[0] if config.vlm_calibration else AS_IT_SAYS
            verifiers[part] = remembering(Asking(Role(adapters, None), words, certainty, config.max_length))
    return Judge(words, verifiers, tuple(dict.fromkeys(names)))


# ---- guards --------------------------------------------------------------------------------------------------------------


def guards(said: Sequence[Said]) -> dict[str, float]:
    """What shows that silence or vagueness pays: answers that claim nothing, and claims that are hedged."""
    hedged = [claim.hedged for s in said for claim in s.claims]
    return {
        "guard/zero_claim_rate": float(np.mean([not s.claims for s in said])),
        "guard/vagueness": float(np.mean(hedged)) if hedged else 0.0,
    }


def rates(verdicts: Sequence[Sequence[Verdict]], who: str) -> dict[str, float]:
    """Shares of claims that a verifier finds contradicted, and that it knows nothing of; and supported ones an answer."""
    values = [v.value for found in verdicts for v in found]
    of = max(1, len(values))
    return {
        f"claims/contradicted_rate@{who}": values.count("contradicted") / of,
        f"claims/unknown_rate@{who}": values.count("unknown") / of,
        f"claims/supported@{who}": values.count("supported") / max(1, len(verdicts)),
    }
