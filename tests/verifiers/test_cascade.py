"""A cascade uses the first known verdict, and a cache verifies no claim twice."""

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.records import Claim, Fact, ImageSource, Verdict
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import unknown_verdict
from mmrlhf.verifiers.cascade import cached, cascade, facts_verifier

DOG, CAT, COW = (Claim("object", n) for n in ("dog", "cat", "cow"))
IMAGE_A, IMAGE_B = ImageSource(data=b"a"), ImageSource(data=b"b")


def table_verifier(values, calls):
    """Return a verifier with fixed verdicts by subject; it adds each call's subjects to `calls`."""

    def verify(answers):
        calls.append([[claim.subject for claim in answer.claims] for answer in answers])
        return [
            [Verdict(c, values[c.subject], "table", 0.9) if c.subject in values else unknown_verdict(c) for c in answer.claims]
            for answer in answers
        ]

    return verify


def values_of(verdicts):
    return [[verdict.value for verdict in row] for row in verdicts]


def test_cascade_uses_first_known_verdict():
    first_calls, second_calls = [], []
    verify = cascade(
        [
            table_verifier({"dog": "contradicted"}, first_calls),
            table_verifier({"dog": "supported", "cat": "supported"}, second_calls),
        ],
        load_lexicon(),
    )
    verdicts = verify(
        [
            AnswerClaims((IMAGE_A,), (), (DOG, CAT)),
            AnswerClaims((IMAGE_A,), (), (DOG,)),
            AnswerClaims((IMAGE_B,), (), (COW, CAT)),
            AnswerClaims((IMAGE_B,), (), ()),
        ]
    )
    assert values_of(verdicts) == [["contradicted", "supported"], ["contradicted"], ["unknown", "supported"], []]
    assert first_calls == [[["dog", "cat"], ["dog"], ["cow", "cat"]]]  # the answer without claims is left out
    assert second_calls == [[["cat"], ["cow", "cat"]]]
    assert [[v.claim for v in row] for row in verdicts] == [[DOG, CAT], [DOG], [COW, CAT], []]


def test_facts_verifier_uses_each_answers_own_facts():
    verify = facts_verifier(load_lexicon())
    facts = (Fact("object", "brown dog"), Fact("absent", "cat"))
    verdicts = verify([AnswerClaims((IMAGE_A,), facts, (DOG, CAT)), AnswerClaims((IMAGE_A,), (), (DOG,))])
    assert values_of(verdicts) == [["supported", "contradicted"], ["unknown"]]


def test_cached_verifies_each_claim_on_an_image_once():
    calls = []
    verify = cached(table_verifier({"dog": "supported", "cat": "contradicted"}, calls))
    hedged_dog = Claim("object", "dog", span=(7, 10), hedged=True)
    verdicts = verify(
        [
            AnswerClaims((IMAGE_A,), (), (DOG, CAT)),
            AnswerClaims((IMAGE_A,), (Fact("object", "dog"),), (hedged_dog,)),
            AnswerClaims((IMAGE_B,), (), (DOG,)),
        ]
    )
    assert calls == [[["dog", "cat"], ["dog"]]]
    assert values_of(verdicts) == [["supported", "contradicted"], ["supported"], ["supported"]]
    assert verdicts[1][0].claim.span == (7, 10) and verdicts[1][0].claim.hedged  # each answer keeps its own claim
    verify([AnswerClaims((IMAGE_B,), (), (DOG, COW))])
    assert calls[1:] == [[["cow"]]]
    verify([AnswerClaims((ImageSource(data=b"a"),), (), (DOG,))])  # the same image under another name
    assert len(calls) == 2


def test_cascade_lets_nothing_refute_a_denial_of_a_part():
    """A man is in the image, so "people" are; but that nobody looks at the camera may be true."""
    lexicon = load_lexicon()
    facts = (Fact("object", "man"),)
    answers = [
        AnswerClaims((IMAGE_A,), facts, tuple(extract_claims(text, lexicon)))
        for text in ("A man is in the picture. Nobody looks at the camera.", "There are no people in the image.")
    ]
    sees_people = table_verifier({"person": "contradicted"}, [])
    for verifiers in (
        [facts_verifier(lexicon)],
        [table_verifier({"man": "supported"}, []), facts_verifier(lexicon)],
        [sees_people],
    ):
        partial, whole = cascade(verifiers, lexicon)(answers)
        assert [verdict.value for verdict in partial][1:] == ["unknown"]
        assert [verdict.value for verdict in whole] == ["contradicted"]
