"""The first verifier that knows decides, and one that has judged a claim does not judge it again."""

from mmrlhf.claims import load_lexicon
from mmrlhf.records import Claim, Fact, ImageSource, Verdict
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import unknown_verdict
from mmrlhf.verifiers.cascade import cached, cascade, facts_verifier

DOG, CAT, COW = (Claim("object", n) for n in ("dog", "cat", "cow"))
IMAGE_A, IMAGE_B = ImageSource(data=b"a"), ImageSource(data=b"b")


def table_verifier(table, asked):
    def judge(said):
        asked.append([[c.subject for c in s.claims] for s in said])
        return [
            [Verdict(c, table[c.subject], "told", 0.9) if c.subject in table else unknown_verdict(c) for c in s.claims]
            for s in said
        ]

    return judge


def test_cascade_uses_first_known_verdict():
    first, second = [], []
    both = cascade(
        [table_verifier({"dog": "contradicted"}, first), table_verifier({"dog": "supported", "cat": "supported"}, second)]
    )
    found = both(
        [
            AnswerClaims((IMAGE_A,), (), (DOG, CAT)),
            AnswerClaims((IMAGE_A,), (), (DOG,)),
            AnswerClaims((IMAGE_B,), (), (COW, CAT)),
            AnswerClaims((IMAGE_B,), (), ()),
        ]
    )
    assert [[v.value for v in row] for row in found] == [
        ["contradicted", "supported"],
        ["contradicted"],
        ["unknown", "supported"],
        [],
    ]
    assert first == [[["dog", "cat"], ["dog"], ["cow", "cat"]]]  # an answer without claims is not asked about
    assert second == [[["cat"], ["cow", "cat"]]]
    assert [[v.claim for v in row] for row in found] == [[DOG, CAT], [DOG], [COW, CAT], []]


def test_facts_verifier_uses_each_answers_own_facts():
    judge = facts_verifier(load_lexicon())
    facts = (Fact("object", "brown dog"), Fact("absent", "cat"))
    (known, none) = judge([AnswerClaims((IMAGE_A,), facts, (DOG, CAT)), AnswerClaims((IMAGE_A,), (), (DOG,))])
    assert [v.value for v in known] == ["supported", "contradicted"] and none[0].value == "unknown"


def test_cached_verifies_each_claim_on_an_image_once():
    asked = []
    judge = cached(table_verifier({"dog": "supported", "cat": "contradicted"}, asked))
    later = Claim("object", "dog", span=(7, 10), hedged=True)
    found = judge(
        [
            AnswerClaims((IMAGE_A,), (), (DOG, CAT)),
            AnswerClaims((IMAGE_A,), (Fact("object", "dog"),), (later,)),
            AnswerClaims((IMAGE_B,), (), (DOG,)),
        ]
    )
    assert asked == [[["dog", "cat"], ["dog"]]]
    assert [[v.value for v in row] for row in found] == [["supported", "contradicted"], ["supported"], ["supported"]]
    assert found[1][0].claim.span == (7, 10) and found[1][0].claim.hedged  # each answer's own place and words
    judge([AnswerClaims((IMAGE_B,), (), (DOG, COW))])
    assert asked[1:] == [[["cow"]]]
    judge([AnswerClaims((ImageSource(data=b"a"),), (), (DOG,))])  # the same picture under another name
    assert len(asked) == 2
