"""Wrap verifiers: in a cascade, where the first known verdict decides, and in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim, ImageSource, Verdict
from mmrlhf.verifiers.base import AnswerClaims, Verifier, unknown_verdict
from mmrlhf.verifiers.facts import is_partial_denial, verify_against_facts

MAX_CACHED_VERDICTS = 200_000
"""Verdicts that a cache may hold. Beyond that it is emptied."""


def facts_verifier(lexicon: Lexicon) -> Verifier:
    """Return the verifier that compares claims with their answer's facts."""
    return lambda answers: [verify_against_facts(answer.claims, answer.facts, lexicon) for answer in answers]


def cascade(verifiers: Sequence[Verifier], lexicon: Lexicon) -> Verifier:
    """Return a verifier that asks `verifiers` in turn, until one has a known verdict on a claim.

    A contradicted denial stays unknown if the answer denies only a part (`is_partial_denial`):
    verifiers see single claims, and a person in the image does not refute "nobody looks up".
    """

    def verify(answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        all_verdicts = [[unknown_verdict(claim) for claim in answer.claims] for answer in answers]
        for verifier in verifiers:
            # Only unknown claims are passed to the next verifier, and only answers that have any.
            unknown_indices = [[i for i, v in enumerate(verdicts) if v.value == "unknown"] for verdicts in all_verdicts]
            answer_indices = [n for n, claim_indices in enumerate(unknown_indices) if claim_indices]
            if not answer_indices:
                break
            remaining_answers = [
                replace(answers[n], claims=tuple(answers[n].claims[i] for i in unknown_indices[n])) for n in answer_indices
            ]
            for n, verdicts in zip(answer_indices, verifier(remaining_answers), strict=True):
                for i, verdict in zip(unknown_indices[n], verdicts, strict=True):
                    is_refuted = verdict.value == "contradicted"
                    if not (is_refuted and is_partial_denial(verdict.claim, answers[n].claims, lexicon)):
                        all_verdicts[n][i] = verdict
        return all_verdicts

    return verify


def cached(verifier: Verifier) -> Verifier:
    """Return a verifier that judges each claim about the same images only once.

    Use it only for verifiers that read only images: facts are not part of the cache key.
    """
    cache: dict[tuple[tuple[str, ...], Claim], Verdict] = {}

    def verify(answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        if len(cache) > MAX_CACHED_VERDICTS:
            cache.clear()
        image_keys = [tuple(image.key for image in answer.images) for answer in answers]
        # Dictionaries keep the order of first mention and drop repeats.
        new_claims: dict[tuple[str, ...], dict[Claim, None]] = {}
        images: dict[tuple[str, ...], tuple[ImageSource, ...]] = {}
        for key, answer in zip(image_keys, answers, strict=True):
            images[key] = answer.images
            for claim in answer.claims:
                # A hedged claim is verified as stated: it shares the unhedged claim's verdict.
                unhedged = replace(claim, hedged=False)
                if (key, unhedged) not in cache:
                    new_claims.setdefault(key, {})[unhedged] = None
        new_answers = [AnswerClaims(images[key], (), tuple(claims)) for key, claims in new_claims.items()]
        new_verdicts = verifier(new_answers) if new_answers else []
        for key, answer, verdicts in zip(new_claims, new_answers, new_verdicts, strict=True):
            cache.update({(key, claim): verdict for claim, verdict in zip(answer.claims, verdicts, strict=True)})
        # Verdicts come back with each answer's own claim: its span and hedging differ.
        return [
            [replace(cache[key, replace(claim, hedged=False)], claim=claim) for claim in answer.claims]
            for key, answer in zip(image_keys, answers, strict=True)
        ]

    return verify
