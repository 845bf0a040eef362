"""Verifiers of claims: each gives a verdict with its evidence.

    base         claims of an answer, what a verifier is, and Platt scaling of its scores
    facts        a verifier that compares claims with facts
    verbalize    claims as phrases and questions, and distractors to compare them with
    cascade      verifiers one after the other, and one with a cache
    clip         a verifier that is an open_clip model
    vlm          a verifier that asks the vision-language model itself
    build        verifiers by name; add one there

`clip`, `vlm` and `build` import torch. Import them by their full names, so that commands that do
without them start at once.
"""

from mmrlhf.verifiers.base import AnswerClaims, Verifier
from mmrlhf.verifiers.facts import verify_against_facts

__all__ = ["AnswerClaims", "Verifier", "verify_against_facts"]
