"""How often claims of a kind are false, the cost of an unknown one in the claim reward
`hallucination`. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmrlhf.records import Verdict


def without_consequences(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return an answer's verdicts without claims about the colour, number or place of an absent
    object: the one false claim is that it exists."""
    absent = {
        v.claim.subject
        for v in verdicts
        if v.claim.kind == "object" and v.value == "contradicted" and not v.claim.negated and not v.claim.hedged
    }
    return [v for v in verdicts if v.claim.kind == "object" or v.claim.negated or not absent & {v.claim.subject, v.claim.target}]


def false_rates(answers: Iterable[Sequence[Verdict]]) -> dict[str, float]:
    """Return the share of false claims among the answers' claims, by kind.

    Only claims that `hallucination` could penalise count: those of known truth, neither negated nor
    hedged, that do not follow from an object's absence. A kind without any is left out.
    """
    is_false: dict[str, list[bool]] = {}
    for verdicts in answers:
        for verdict in without_consequences(verdicts):
            if verdict.value != "unknown" and not verdict.claim.negated and not verdict.claim.hedged:
                is_false.setdefault(verdict.claim.kind, []).append(verdict.value == "contradicted")
    return {kind: sum(values) / len(values) for kind, values in is_false.items()}
