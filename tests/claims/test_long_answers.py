"""The labels of the long answers are well-formed, and their scorer counts right."""

import re

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.records import Claim
from mmrlhf.text.plurals import pluralize
from mmrlhf.text.words import NUMBER_WORDS
from tests.claims.long_answers import FILE, KINDS, markdown, parse_answer, parse_label, read_answers, score, verb_stem

ANSWERS = read_answers()
LATER_ANSWERS = read_answers(FILE.with_name("long_answers_2.jsonl"))
LAST_ANSWERS = read_answers(FILE.with_name("long_answers_3.jsonl"))
ALL_ANSWERS = ANSWERS + LATER_ANSWERS + LAST_ANSWERS
PERSON_WORDS = ("nobody", "no one", "someone", "somebody", "people")
NUMBER_NAMES = {
    1: ("single", "pair"),
    2: ("couple", "pair", "both", "twin"),
    6: ("half a dozen",),
    12: ("dozen",),
    20: ("twenty",),
    30: ("thirty",),
    40: ("forty",),
    50: ("fifty",),
    60: ("sixty",),
    200: ("two hundred",),
}
ROW = {
    "id": "row",
    "style": "gpt",
    "text": "A man rides a black horse. There are two dogs, one of them on a cart. He wears no hat.",
    "claims": ["man", "man:ride>horse", "horse", "horse=black", "dog", "dog#2", "~dog#1", "dog>on>cart|wagon", "!hat", "~cart"],
    "false": ["horse=black"],
    "unknown": [],
    "facts": {"objects": [["horse", 1, "white"], ["man", 1], ["dog", 2]], "absent": ["hat"]},
}


def occurs(name, text):
    if name == "person" and any(re.search(rf"\b{word}\b", text, re.I) for word in PERSON_WORDS):
        return True
    return any(re.search(rf"(?<!\w){re.escape(form)}(?!\w)", text, re.I) for form in (name, pluralize(name)))


def names_number(number, text):
    words = (str(number), *NUMBER_NAMES.get(number, ()), *NUMBER_WORDS[number : number + 1])
    return any(re.search(rf"\b{word}\b", text, re.I) for word in words)


@pytest.mark.parametrize(
    ("answers", "num_per_style"), [(ANSWERS, (22, 22, 22)), (LATER_ANSWERS, (12, 12, 12)), (LAST_ANSWERS, (14, 13, 13))]
)
def test_answers_have_60_to_180_words_and_three_styles_in_equal_parts(answers, num_per_style):
    assert tuple(sum(a.style == style for a in answers) for style in ("llava-1.5", "qwen-vl", "gpt")) == num_per_style
    for answer in answers:
        assert 60 <= len(re.findall(r"\w[\w'’-]*", answer.text)) <= 180, answer.id


def test_no_two_answers_share_an_id():
    assert len({answer.id for answer in ALL_ANSWERS}) == len(ALL_ANSWERS)


@pytest.mark.parametrize(
    ("answers", "num_per_kind", "num_negated"), [(ANSWERS, 90, 60), (LATER_ANSWERS, 50, 40), (LAST_ANSWERS, 60, 60)]
)
def test_there_are_claims_of_every_kind_and_a_tenth_is_false(answers, num_per_kind, num_negated):
    required = [label for answer in answers for label in answer.labels if not label.optional]
    for kind in KINDS:
        assert sum(label.kind == kind for label in required) >= num_per_kind, kind
    assert sum(label.negated for label in required) >= num_negated
    assert 0.08 < sum(label.is_true is False for label in required) / len(required) < 0.15


@pytest.mark.parametrize("answer", ALL_ANSWERS, ids=lambda answer: answer.id)
def test_labels_are_distinct_and_their_words_are_in_the_answer(answer):
    lexicon = load_lexicon()
    seen = {}
    for label in answer.labels:
        things = (label.parts[0], label.parts[-1]) if label.kind in ("relation", "action") else label.parts[:1]
        for names in things:
            assert any(occurs(name, answer.text) for name in names), label.text
        if label.kind == "attribute":
            assert any(value.split()[-1].lower() in answer.text.lower() for value in label.parts[1]), label.text
        if label.kind == "count":
            assert names_number(int(label.parts[1][0]), answer.text), label.text
        if not label.optional:
            for key in ((signature, label.negated) for signature in label.signatures(lexicon)):
                assert seen.setdefault(key, label.text) == label.text, f"{label.text} repeats {seen[key]}"
    assert len({(label.text.lstrip("~?")) for label in answer.labels}) == len(answer.labels)


def test_no_object_is_both_a_fact_and_absent():
    for answer in ALL_ANSWERS:
        present = {fact.text for fact in answer.facts if fact.kind == "object"}
        assert present.isdisjoint(fact.text for fact in answer.facts if fact.kind == "absent"), answer.id


def test_parse_label_reads_marks_and_alternatives():
    label = parse_label("~!?man|boy:look at>lamp")
    assert (label.kind, label.parts) == ("action", (("man", "boy"), ("look at",), ("lamp",)))
    assert label.optional and label.negated and label.hedged
    with pytest.raises(ValueError, match="is not a label"):
        parse_label("dog>on")


@pytest.mark.parametrize("forms", ["ride riding rides", "stir stirring", "hold holds", "carry carrying", "look,at looking,at"])
def test_verb_stem_is_the_same_for_regular_forms(forms):
    assert len({verb_stem(form.replace(",", " ")) for form in forms.split()}) == 1


def test_score_counts_with_a_pencil():
    read = [
        Claim("object", "man"),
        Claim("object", "horse"),
        Claim("attribute", "horse", "black"),  # false, and contradicted by the facts
        Claim("count", "dog", "2"),
        Claim("count", "dog", "1"),  # optional as a label, but the facts contradict it
        Claim("relation", "dog", relation="on", target="wagon"),
        Claim("object", "hat"),  # wrong sign: spurious, missed, and contradicted though true
        Claim("object", "cart"),  # optional
        Claim("object", "party"),  # spurious
    ]
    scores = score([parse_answer(ROW)], load_lexicon(), lambda text, lexicon: read)
    assert scores.precision("object") == (2, 4) and scores.recall("object") == (2, 4)  # dog and hat are missed
    assert scores.f1("object") == 0.5
    assert scores.precision("count") == scores.recall("count") == (1, 1)
    assert scores.recall("relation") == scores.recall("attribute") == (1, 1)
    assert scores.recall("negated") == (0, 1)
    assert scores.right_sign[True] == 5 and scores.right_sign[False] == 1
    assert (scores.false_caught, scores.false_read, scores.num_read) == (1, 1, 9)
    assert [line.split(":")[0] for line in scores.wrongly_contradicted] == [
        "row contradicted count dog 1",
        "row contradicted object hat",
    ]
    assert "contradicted though true: 2 of 9 claims, 95% upper bound" in markdown(scores)
