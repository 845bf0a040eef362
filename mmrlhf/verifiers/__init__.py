"""Verifiers of claims: each gives a verdict with its evidence.

    base         the type of a verifier, its input, and Platt scaling of its scores
    facts        verify claims by comparing them with facts
    verbalize    claims as phrases and questions, and distractors to compare them with
    cascade      ask several verifiers in turn, and cache their verdicts
    clip         verify claims with an open_clip model
    vlm          verify claims by asking the vision-language model itself
    build        verifiers by name; add new ones there

`clip`, `vlm` and `build` import torch. Import them by their full names, which keeps commands that
do not need them quick to start.
"""

from mmrlhf.verifiers.base import AnswerClaims, Verifier
from mmrlhf.verifiers.facts import verify_against_facts

__all__ = ["AnswerClaims", "Verifier", "verify_against_facts"]
