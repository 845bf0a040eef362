"""Turn a sentence that an annotator types into typed facts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.claims.verb_forms import present_participle
from mmrlhf.facts.parse import count_fact
from mmrlhf.records import Claim, Fact

QUOTED = re.compile(r'"([^"\n]{1,200})"|“([^”\n]{1,200})”')
"""Quoted text, which is text in the picture."""


def facts_from_sentence(sentence: str, source: str = "", lexicon: Lexicon | None = None) -> list[Fact]:
    """Return the facts of a sentence, each once; quoted parts are text in the picture.

    Suppositions are left out. A sentence in which no rule finds a fact, or that denies more than
    the presence of a thing, is kept as a caption.
    """
    sentence = " ".join(sentence.split())
    claims = [claim for claim in extract_claims(sentence, lexicon) if not claim.hedged]
    facts = [Fact("ocr", first or second, source) for first, second in QUOTED.findall(sentence)]
    facts += [fact for claim in claims for fact in _facts_of_claim(claim, source)]
    is_partial = any(claim.negated and claim.kind != "object" for claim in claims)
    if sentence and (not facts or is_partial):
        facts.append(Fact("caption", sentence, source))
    return list(dict.fromkeys(facts))


def _facts_of_claim(claim: Claim, source: str) -> Iterator[Fact]:
    if claim.negated:
        if claim.kind == "object":
            yield Fact("absent", claim.subject, source)
    elif claim.kind == "count":
        yield count_fact(int(claim.value), claim.subject, source)
    else:
        kind = "relation" if claim.kind == "action" else claim.kind
        yield Fact(kind, phrase_of_claim(claim), source)


def phrase_of_claim(claim: Claim) -> str:
    """Return a claim in words: `brown dog`, `two dogs`, `dog on couch`, `man riding horse`."""
    denial = "no " if claim.negated else ""
    if claim.kind == "attribute":
        return f"{denial}{claim.value} {claim.subject}"
    if claim.kind == "count":
        return denial + count_fact(int(claim.value), claim.subject, "").text
    if claim.kind == "relation":
        return f"{denial}{claim.subject} {claim.relation} {claim.target}"
    if claim.kind == "action":
        verb, _, preposition = claim.relation.partition(" ")
        return f"{denial}{claim.subject} {present_participle(verb)} {preposition} {claim.target}".replace("  ", " ")
    return denial + claim.subject
