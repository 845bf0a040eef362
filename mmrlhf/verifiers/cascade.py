"""Verifiers put together, and one that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim, Verdict
from mmrlhf.verifiers.base import AnswerClaims, Verifier, unknown_verdict
from mmrlhf.verifiers.facts import verify_against_facts

MAX_CACHED_VERDICTS = 200_000
"""Verdicts that are kept; then all are forgotten."""


def facts_verifier(lexicon: Lexicon) -> Verifier:
    """The verifier that asks what is known of the pictures."""
    return lambda answers: [verify_against_facts(answer.claims, answer.facts, lexicon) for answer in answers]


def cascade(verifiers: Sequence[Verifier]) -> Verifier:
    """Each claim goes to the next verifier while those before do not know; the first that does decides."""

    def verify(answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        all_verdicts: list[list[Verdict]] = [[unknown_verdict(c) for c in answer.claims] for answer in answers]
        for verifier in verifiers:
            open_claims = [[i for i, v in enumerate(verdicts) if v.value == "unknown"] for verdicts in all_verdicts]
            open_answers = [index for index, indices in enumerate(open_claims) if indices]
            if not open_answers:
                break
            remaining = [
                replace(answers[index], claims=tuple(answers[index].claims[i] for i in open_claims[index]))
                for index in open_answers
            ]
            for index, verdicts in zip(open_answers, verifier(remaining), strict=True):
                for i, verdict in zip(open_claims[index], verdicts, strict=True):
                    all_verdicts[index][i] = verdict
        return all_verdicts

    return verify


def cached(verifier: Verifier) -> Verifier:
    """For one that looks at pictures alone: a claim on the same pictures is judged once, whichever answer makes it."""
    cache: dict[tuple[tuple[str, ...], Claim], Verdict] = {}

    def verify(answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        if len(cache) > MAX_CACHED_VERDICTS:
            cache.clear()
        image_keys = [tuple(image.key for image in answer.images) for answer in answers]
        new_claims: dict[tuple[str, ...], dict[Claim, None]] = {}
        images = {}
        for key, answer in zip(image_keys, answers, strict=True):
            images[key] = answer.images
            for claim in answer.claims:
                unhedged = replace(claim, hedged=False)
                if (key, unhedged) not in cache:
                    new_claims.setdefault(key, {})[unhedged] = None
        new_answers = [AnswerClaims(images[key], (), tuple(claims)) for key, claims in new_claims.items()]
        for key, answer, verdicts in zip(new_claims, new_answers, verifier(new_answers) if new_answers else [], strict=True):
            cache.update({(key, claim): verdict for claim, verdict in zip(answer.claims, verdicts, strict=True)})
        return [
            [replace(cache[key, replace(c, hedged=False)], claim=c) for c in answer.claims]
            for key, answer in zip(image_keys, answers, strict=True)
        ]

    return verify
