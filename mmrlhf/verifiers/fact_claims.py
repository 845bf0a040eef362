"""Read facts as claims: captions, objects, counts, triples and answered questions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.claims.noun_phrases import word_to_number
from mmrlhf.claims.verb_forms import present_participle
from mmrlhf.records import Claim, Fact

NO_NUMBER = frozenset(("0", "zero", "no", "none"))
"""Words for a number of nothing."""
_EXISTENCE_QUESTION = re.compile(r"(?:is|are) there (.+?)\?\s*(yes|no)\b.*", re.IGNORECASE | re.DOTALL)
_COUNT_QUESTION = re.compile(
    r"how many (.+?) (?:are|can|do|is)\b.*?\?\s*(?:there (?:are|is) )?(\w+)\b.*", re.IGNORECASE | re.DOTALL
)
_COLOUR_QUESTION = re.compile(r"what colou?r (?:is|are) (.+?)\?\s*(.+)", re.IGNORECASE | re.DOTALL)


def claims_of_fact(fact: Fact, lexicon: Lexicon) -> Iterator[Claim]:
    """Yield the claims that a fact makes, except hedged ones. OCR text and scopes make none."""
    if fact.kind in ("ocr", "scope"):
        return
    text = fact.text
    if fact.kind == "qa":
        text = _question_to_statement(text)
    claims = [claim for claim in extract_claims(text, lexicon) if not claim.hedged]
    if fact.kind == "absent":
        attribute_claims = [c for c in claims if c.kind == "attribute"]
        if attribute_claims:
            # "Red car" is absent: a car of another colour may be there.
            yield from (replace(claim, negated=True) for claim in attribute_claims)
            return
        nouns = [c.subject for c in claims if c.kind == "object"] or [lexicon.canonical_name(_singularize(text, lexicon))]
        yield from (Claim("object", noun, negated=True) for noun in nouns[-1:])
        return
    if fact.kind == "object" and not any(c.kind == "object" for c in claims):
        claims = [Claim("object", lexicon.canonical_name(_singularize(text, lexicon)))]
    if fact.kind == "relation" and not any(c.kind in ("relation", "action") for c in claims):
        claims = list(_claims_of_triple(fact.text, lexicon)) or claims
    if fact.kind in ("attribute", "count") and not any(c.kind == fact.kind for c in claims):
        claims = _read_remainder(fact, claims)
    yield from claims


def _claims_of_triple(text: str, lexicon: Lexicon) -> list[Claim]:
    """Return the claims of a scene graph's bare words, such as `train crossing bridge`."""
    words = text.lower().split()
    for index in range(1, len(words) - 1):
        # The -ing form and articles show which word is the verb.
        if lexicon.is_verb(words[index]):
            verb = present_participle(lexicon.verb_base(words[index]))
            claims = extract_claims(f"The {' '.join(words[:index])} {verb} the {' '.join(words[index + 1 :])}", lexicon)
            if any(claim.kind == "action" for claim in claims):
                return claims
    return []


def _read_remainder(fact: Fact, claims: list[Claim]) -> list[Claim]:
    """Return the claims of a noun with a value, such as `dog: brown` or `dogs 2`; zero denies the
    noun."""
    if len(claims) != 1 or claims[0].kind != "object" or claims[0].negated:
        return claims
    start, end = claims[0].span
    value = f"{fact.text[:start]} {fact.text[end:]}".lower().strip(" :=,.-")
    if fact.kind == "count":
        if value in NO_NUMBER:
            return [replace(claims[0], negated=True)]
        number = word_to_number(value)
        return claims if number is None else [*claims, replace(claims[0], kind="count", value=str(number))]
    is_word = value.replace(" ", "").isalpha()
    return [*claims, replace(claims[0], kind="attribute", value=value)] if is_word else claims


def _singularize(text: str, lexicon: Lexicon) -> str:
    head, space, last = " ".join(text.lower().split()).rpartition(" ")
    singular = lexicon.singular(last)
    return f"{head}{space}{singular[0] if singular else last}"


def _question_to_statement(text: str) -> str:
    """Return a question and its answer as a statement, or the answer if no pattern matches."""
    text = " ".join(text.split())
    if match := _EXISTENCE_QUESTION.fullmatch(text):
        noun = re.sub(r"^(?:an?|any|some) ", "", match[1], flags=re.IGNORECASE)
        return f"There is {'a' if match[2].lower() == 'yes' else 'no'} {noun}."
    if match := _COUNT_QUESTION.fullmatch(text):
        return f"There are {'no' if match[2].lower() in NO_NUMBER else match[2]} {match[1]}."
    if match := _COLOUR_QUESTION.fullmatch(text):
        # An answer of more than three words is a sentence of its own.
        return match[2] if len(match[2].split()) > 3 else f"{match[1]} is {match[2].strip('. ').lower()}."
    return text.rpartition("?")[2]
