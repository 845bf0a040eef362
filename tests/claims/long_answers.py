"""Score the claim reader on long answers.

    python -m tests.claims.long_answers [FILE] [--errors]

`long_answers.jsonl` has 66 answers in the manners of LLaVA-1.5 (paragraphs), Qwen-VL (Markdown
lists and tables) and GPT (hedges, inferences, advice). Pictures, answers, labels and facts were
invented for it by somebody who had not read `mmrlhf/claims/`, and committed before the reader first
ran on them. All are held out: a rule that is changed because of one of them makes the figures of
that day the last honest ones, so print the errors (`--errors`) only after writing down the figures.

`long_answers_2.jsonl` has 36 more, of other pictures and in other words, invented and committed in
the same way after the reader was mended on the errors of the first file. `long_answers_3.jsonl` has
40 more, invented and committed in the same way while the reader was mended on the errors of both.

A row has `text`, `claims` (what the answer says), `false` and `unknown` (those of `claims` that are
not true of the picture, or that the facts leave open), and `facts`, in the fields of a facts file,
with actions as captions. One claim in nine is false, in the later files one in ten.

**Marks.** `dog` object, `dog=brown` attribute, `dog#2` count, `dog>on>sofa` relation,
`man:ride>horse` action. In front: `!` negated, `?` hedged, `~` optional: readings that are right
too, and on which annotators would differ. Finding or missing them costs nothing, but a true one
that the facts contradict counts as such: "one of the kids" is not "one kid". `a|b` are two names
for one thing (`lamp|desk lamp`), and either is right.

**What is a claim.** A claim is listed once per answer. Names are singular, as in the answer, with
compounds; the scorer maps synonyms to the lexicon's names. Conventions:

- Objects are visible things, persons and places. Optional: parts of the body that only say where
  something is held, pictures of things, light, events, shops and weather, nouns of headings.
- Attributes are colour, material, shape, size, age, pattern and state, next to the noun or after a
  form of "be". Optional: judgments (cozy), comparatives, participles (parked, smiling).
- A count is a number of things of that name in the picture. Optional: parts of it ("one of them").
  "About fifty" and "at least twelve" are hedged.
- A relation is a preposition of place between two things, also through a pronoun or a list. Of two
  things that a phrase can belong to, the other is optional. "With" and "of" are not relations.
- An action is a verb in its base form, with its particle, from who does it to what it is done to:
  wear, hold, ride, look at. Verbs of place are relations (sits on), and so are motions (along the
  shore). "In a coat", "with glasses" are optional actions (wear). Verbs without an object are none.
- "No chairs around the table" negates object and relation. "He wears no hat" negates object and
  action. "No other boats", "nobody sits on the bench" next to persons, and absences that hold for
  one of two things are optional as objects, since one is in the picture.
- Text in the picture, moods, advice, background knowledge, questions and estimates of distance,
  age or time are not claims.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.claims import Lexicon, extract_claims, load_lexicon
from mmrlhf.facts.parse import parse_fact_fields
from mmrlhf.files.rows import Row
from mmrlhf.metrics.intervals import wilson
from mmrlhf.records import Claim, Fact, Verdict
from mmrlhf.verifiers import verify_against_facts

FILE = Path(__file__).with_name("long_answers.jsonl")
KINDS = ("object", "attribute", "count", "relation", "action")
LABEL = re.compile(
    r"(?P<marks>[~!?]*)(?P<subject>[^=#>:]+)"
    r"(?:=(?P<value>[^=#>:]+)|\#(?P<count>[0-9]+)|>(?P<relation>[^=#>:]+)>(?P<target>[^=#>:]+)"
    r"|:(?P<verb>[^=#>:]+)>(?P<patient>[^=#>:]+))?"
)
RELATION_NAMES = {"hanging from": "from"}
"""The name of a relation that the reader and some labels name in another way."""
Signature = tuple[str, ...]
"""The kind of a claim and its parts, without negation and hedge."""
Reader = Callable[[str, Lexicon], Sequence[Claim]]


@dataclass(frozen=True)
class Label:
    """A claim that an answer makes. `parts` has the alternative names of each part.

    is_true: of the picture, None if the facts leave it open. For a hedged claim, whether it is so.
    """

    text: str
    kind: str
    parts: tuple[tuple[str, ...], ...]
    negated: bool
    hedged: bool
    optional: bool
    is_true: bool | None

    def signatures(self, lexicon: Lexicon) -> set[Signature]:
        """Return the signatures of all combinations of alternatives."""
        return {signature(self.kind, parts, lexicon) for parts in itertools.product(*self.parts)}


@dataclass(frozen=True)
class Answer:
    """A row of the file."""

    id: str
    style: str
    text: str
    labels: tuple[Label, ...]
    facts: tuple[Fact, ...]


def signature(kind: str, parts: Sequence[str], lexicon: Lexicon) -> Signature:
    """Return kind and parts in lower case, things by the lexicon's names, verbs by their stem."""
    things = [lexicon.canonical_name(part.lower()) for part in (parts[0], parts[-1])]
    if kind == "object":
        return kind, things[0]
    if kind in ("attribute", "count"):
        return kind, things[0], parts[1].lower()
    return kind, things[0], verb_stem(parts[1]) if kind == "action" else RELATION_NAMES.get(parts[1], parts[1]), things[1]


def verb_stem(verb: str) -> str:
    """Return a regular verb without its ending, so that "stir", "stirs" and "stirring" are equal.

    A particle stays: "look at".
    """
    word, space, particle = verb.lower().partition(" ")
    if word.endswith("ing") and len(word) > 4:
        word = word[:-3]
    elif word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    word = word.removesuffix("e")
    return (word[:-1] if len(word) > 2 and word[-1] == word[-2] else word) + space + particle


def claim_signature(claim: Claim, lexicon: Lexicon) -> Signature:
    """Return the signature of a claim that was read."""
    middle = claim.relation if claim.kind in ("relation", "action") else claim.value
    return signature(claim.kind, (claim.subject, middle, claim.target), lexicon)


def read_answers(path: Path = FILE) -> list[Answer]:
    """Return the rows of the file. Raises ValueError for a label in another form."""
    return [parse_answer(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def parse_answer(row: dict[str, Any]) -> Answer:
    """Return a row as an Answer. Raises ValueError for a label in another form."""
    truths = dict.fromkeys(row["claims"], True) | dict.fromkeys(row["false"], False) | dict.fromkeys(row["unknown"])
    if set(truths) != set(row["claims"]):
        raise ValueError(f"{row['id']}: false and unknown claims must be among the claims")
    facts = parse_fact_fields(Row(row["id"], 1, row["facts"]), "picture")
    return Answer(row["id"], row["style"], row["text"], tuple(parse_label(text, truths[text]) for text in row["claims"]), facts)


def parse_label(text: str, is_true: bool | None = True) -> Label:
    """Return a label such as `!dog>on>sofa`. Raises ValueError if it has another form."""
    match = LABEL.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a label")
    subject, marks = match["subject"], match["marks"]
    kind, parts = "object", [subject]
    if match["value"]:
        kind, parts = "attribute", [subject, match["value"]]
    elif match["count"]:
        kind, parts = "count", [subject, match["count"]]
    elif match["relation"]:
        kind, parts = "relation", [subject, match["relation"], match["target"]]
    elif match["verb"]:
        kind, parts = "action", [subject, match["verb"], match["patient"]]
    alternatives = tuple(tuple(part.split("|")) for part in parts)
    return Label(text, kind, alternatives, "!" in marks, "?" in marks, "~" in marks, is_true)


# ---- scoring -------------------------------------------------------------------------------------


@dataclass
class Scores:
    """Counts over answers.

    hits, missed, spurious: by kind, and under "negated" for negated claims of all kinds. A claim
    with the wrong sign is both spurious and missed. right_sign: claims that agree with a label but
    for negation, whether their sign is right. num_read: claims read. false_caught and false_read:
    of the claims read that are labelled false, those that the facts contradict, and all.
    wrongly_contradicted: claims that the facts contradict, though no label calls them false.
    errors: one line for each error.
    """

    hits: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    spurious: Counter[str] = field(default_factory=Counter)
    right_sign: Counter[bool] = field(default_factory=Counter)
    right_hedge: Counter[bool] = field(default_factory=Counter)
    num_read: int = 0
    false_caught: int = 0
    false_read: int = 0
    wrongly_contradicted: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def precision(self, kind: str) -> tuple[int, int]:
        """Return right claims and all claims that were read."""
        return self.hits[kind], self.hits[kind] + self.spurious[kind]

    def recall(self, kind: str) -> tuple[int, int]:
        """Return claims that were found and all claims to find."""
        return self.hits[kind], self.hits[kind] + self.missed[kind]

    def f1(self, kind: str) -> float:
        """Return the harmonic mean of precision and recall; NaN without claims."""
        total = 2 * self.hits[kind] + self.spurious[kind] + self.missed[kind]
        return 2 * self.hits[kind] / total if total else float("nan")


def score(answers: Sequence[Answer], lexicon: Lexicon, reader: Reader = extract_claims) -> Scores:
    """Compare the claims that a reader finds with the labels, and their verdicts with the truth."""
    scores = Scores()
    for answer in answers:
        claims = list(reader(answer.text, lexicon))
        _score_reading(answer, claims, lexicon, scores)
        _score_verdicts(answer, verify_against_facts(claims, answer.facts, lexicon), lexicon, scores)
    return scores


def _score_reading(answer: Answer, claims: Sequence[Claim], lexicon: Lexicon, scores: Scores) -> None:
    labels = [(label, label.signatures(lexicon)) for label in answer.labels]
    found: set[str] = set()
    spurious: set[tuple[Signature, bool]] = set()
    for claim in claims:
        claim_parts = claim_signature(claim, lexicon)
        same_parts = [label for label, signatures in labels if claim_parts in signatures]
        same_claim = [label for label in same_parts if label.negated == claim.negated]
        required = [label for label in same_claim if not label.optional]
        if same_parts and all(not label.optional for label in same_parts):
            scores.right_sign[bool(same_claim)] += 1
        if required:
            scores.right_hedge[any(label.hedged == claim.hedged for label in required)] += 1
            found.update(label.text for label in required)
        elif not same_claim and (claim_parts, claim.negated) not in spurious:
            spurious.add((claim_parts, claim.negated))
            _count(scores.spurious, claim.kind, claim.negated)
            scores.errors.append(f"{answer.id} spurious {_describe(claim)}: {answer.text[slice(*claim.span)]!r}")
    for label, _ in labels:
        if label.text in found:
            _count(scores.hits, label.kind, label.negated)
        elif not label.optional:
            _count(scores.missed, label.kind, label.negated)
            scores.errors.append(f"{answer.id} missed {label.text}")


def _score_verdicts(answer: Answer, verdicts: Sequence[Verdict], lexicon: Lexicon, scores: Scores) -> None:
    false_claims = {
        (signature, label.negated) for label in answer.labels if label.is_true is False for signature in label.signatures(lexicon)
    }
    for verdict in verdicts:
        is_false = (claim_signature(verdict.claim, lexicon), verdict.claim.negated) in false_claims
        scores.num_read += 1
        scores.false_read += is_false
        if verdict.value == "contradicted":
            scores.false_caught += is_false
            if not is_false:
                span = answer.text[slice(*verdict.claim.span)]
                line = f"{answer.id} contradicted {_describe(verdict.claim)}: {span!r} by {verdict.evidence}"
                scores.wrongly_contradicted.append(line)


def _count(counter: Counter[str], kind: str, negated: bool) -> None:
    counter[kind] += 1
    counter["negated"] += negated


def _describe(claim: Claim) -> str:
    marks = "!" * claim.negated + "?" * claim.hedged
    parts = (claim.subject, claim.value, claim.relation, claim.target)
    return f"{claim.kind} {marks}{' '.join(part for part in parts if part)}"


# ---- command -------------------------------------------------------------------------------------


def markdown(scores: Scores) -> str:
    """Return the figures in percent, with 95% Wilson intervals, as Markdown."""
    lines = ["| | F1 | precision | recall |", "|---|---|---|---|"]
    for kind in (*KINDS, "negated"):
        lines.append(
            f"| {kind} | {100 * scores.f1(kind):.1f} | {_rate(*scores.precision(kind))} | {_rate(*scores.recall(kind))} |"
        )
    for name, outcomes in (("sign", scores.right_sign), ("hedge", scores.right_hedge)):
        lines.append(f"right {name} of claims found: {_rate(outcomes[True], outcomes.total())}")
    count = len(scores.wrongly_contradicted)
    high = 100 * wilson(count, scores.num_read)[1]
    lines.append(f"contradicted though true: {count} of {scores.num_read} claims, 95% upper bound {high:.2f}%")
    lines.append(f"false claims contradicted: {_rate(scores.false_caught, scores.false_read)}")
    return "\n".join(lines)


def _rate(hits: int, trials: int) -> str:
    low, high = (100 * bound for bound in wilson(hits, trials))
    share = f"{100 * hits / trials:.1f}" if trials else "none"
    return f"{share} ({low:.0f}-{high:.0f}, {hits} of {trials})"


def main() -> None:
    """Print the figures of all answers and of each style, and the errors if asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--errors", action="store_true", help="print every error; the answers are no longer held out then")
    parser.add_argument("file", nargs="?", type=Path, default=FILE, help="labelled answers (default: long_answers.jsonl)")
    args = parser.parse_args()
    answers, lexicon = read_answers(args.file), load_lexicon()
    scores = score(answers, lexicon)
    print(f"All {len(answers)} answers\n\n{markdown(scores)}")
    for style in dict.fromkeys(answer.style for answer in answers):
        print(f"\n{style}\n\n{markdown(score([a for a in answers if a.style == style], lexicon))}")
    if args.errors:
        print("\n".join(["", *scores.wrongly_contradicted, *scores.errors]))


if __name__ == "__main__":
    main()
