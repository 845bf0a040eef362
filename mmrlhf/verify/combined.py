"""Verifiers put together, and one that remembers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmrlhf.claims import Lexicon
from mmrlhf.records import Claim, Verdict
from mmrlhf.verify.facts import by_facts
from mmrlhf.verify.verifier import Said, Verifier, unknown

REMEMBERED = 200_000
"""Verdicts that are kept; then all are forgotten."""


def from_facts(words: Lexicon) -> Verifier:
    """The verifier that asks what is known of the pictures."""
    return lambda said: [by_facts(s.claims, s.facts, words) for s in said]


def first_known(verifiers: Sequence[Verifier]) -> Verifier:
    """Each claim goes to the next verifier while those before do not know; the first that does decides."""

    def judge(said: Sequence[Said]) -> list[list[Verdict]]:
        found: list[list[Verdict]] = [[unknown(c) for c in s.claims] for s in said]
        for verifier in verifiers:
            open_ = [[i for i, v in enumerate(verdicts) if v.value == "unknown"] for verdicts in found]
            asked = [n for n, at in enumerate(open_) if at]
            if not asked:
                break
            parts = [replace(said[n], claims=tuple(said[n].claims[i] for i in open_[n])) for n in asked]
            for n, verdicts in zip(asked, verifier(parts), strict=True):
                for i, verdict in zip(open_[n], verdicts, strict=True):
                    found[n][i] = verdict
        return found

    return judge


def remembering(verifier: Verifier) -> Verifier:
    """For one that looks at pictures alone: a claim on the same pictures is judged once, whichever answer makes it."""
    known: dict[tuple[tuple[str, ...], Claim], Verdict] = {}

    def judge(said: Sequence[Said]) -> list[list[Verdict]]:
        if len(known) > REMEMBERED:
            known.clear()
        keys = [tuple(image.key for image in s.images) for s in said]
        new: dict[tuple[str, ...], dict[Claim, None]] = {}
        images = {}
        for key, s in zip(keys, said, strict=True):
            images[key] = s.images
            for claim in s.claims:
                plain = replace(claim, hedged=False)
                if (key, plain) not in known:
                    new.setdefault(key, {})[plain] = None
        asked = [Said(images[key], (), tuple(claims)) for key, claims in new.items()]
        for key, s, verdicts in zip(new, asked, verifier(asked) if asked else [], strict=True):
            known.update({(key, claim): verdict for claim, verdict in zip(s.claims, verdicts, strict=True)})
        return [
            [replace(known[key, replace(c, hedged=False)], claim=c) for c in s.claims] for key, s in zip(keys, said, strict=True)
        ]

    return judge
