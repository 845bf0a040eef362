"""Answer parsers on hand-labelled answers (`answers.jsonl`), and POPE's rule against its script."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.text.answer_parsing import leading_yes_no, parse_choice, parse_number, parse_yes_no, pope_official

LABELLED_ANSWERS = [json.loads(line) for line in (Path(__file__).parent / "answers.jsonl").open(encoding="utf-8")]
OPTIONS = {"A": "a cup", "B": "a plate", "C": "a book", "D": "a lamp"}


def parse_row(row):
    """Return the result of the parser for a row's kind, or `unparsed`."""
    if row["kind"] == "yes_no":
        parsed = parse_yes_no(row["answer"], row["question"])
    elif row["kind"] == "choice":
        parsed = parse_choice(row["answer"], "ABCD", OPTIONS)
    else:
        parsed = parse_number(row["answer"])
    return "unparsed" if parsed is None else parsed


@pytest.mark.parametrize("part", ["tuned on", "kept apart"])
def test_answer_parsers_match_hand_labels(part):
    rows = [r for r in LABELLED_ANSWERS if r["part"] == part]
    wrong = [(r["answer"], r["label"], parse_row(r)) for r in rows if parse_row(r) != r["label"]]
    labelled = [r for r in rows if r["label"] != "unparsed"]
    unparsed_rate = sum(parse_row(r) == "unparsed" for r in labelled) / len(labelled)
    assert len(wrong) <= 0.02 * len(rows), wrong
    assert unparsed_rate <= 0.05


def test_labelled_answers_cover_every_verdict():
    assert len(LABELLED_ANSWERS) >= 200
    assert min(Counter(r["label"] for r in LABELLED_ANSWERS if r["kind"] == "yes_no").values()) >= 20


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("There is no cat but there is a dog.", "yes"),
        ("I don't see a dog, but there is a cat.", "no"),
        ("Based on the picture, yes.", "yes"),
        ("Well, no.", "no"),
        ("No idea", None),
        ("There might be a dog", None),
        ("There is a cat.", None),  # not about the question
        ("i cant see a dog", "no"),
        ("y", "yes"),
        ('{"answer": "no"}', "no"),
        ("<think>Yes, there is", None),  # cut off before the answer
        ("dog - no", "no"),
        ("Of course not.", "no"),
        ("Definitely no.", "no"),
        ("Sure, but I can't see the image.", None),
        ("Hardly any dog is visible.", "no"),
        ("Two puppies are asleep.", "yes"),  # a synonym of COCO's dog
        ("There is a puppy-shaped cloud, but no dog.", "no"),
        ("It does not appear that there is a dog.", "no"),
        ("It does not appear that there is a cat.", None),
        ("It appears that there is a dog.", "yes"),
        ("I do not think that there is a dog.", "no"),
        ("There's nothing like a dog here.", "no"),
        ("There's nothing like a cat here.", None),
        ("There is nothing but a dog.", "yes"),
        ("I believe there isn't one.", "no"),
        ("I see a dog, but there isn't any on the left.", "yes"),
        ("dog - not visible", "no"),
        ("There is a dog - not a cat.", "yes"),
        ("Dog \N{EN DASH} present", "yes"),
        ("Nothing but a small dog.", "yes"),
        ("There is nothing but grass.", None),
        ("Anything but a dog.", "no"),
        ("What looks like a dog is in fact a fox.", "no"),
        ("What looks like a dog is running.", "yes"),
        ("I agree.", "yes"),
        ("I would have to disagree.", "no"),
        ("I'd lean towards no", "no"),
        ("I cannot rule out a dog.", None),
    ],
)
def test_parse_yes_no_matches_hand_labels(answer, expected):
    assert parse_yes_no(answer, "Is there a dog in the image?") == expected


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("हाँ, एक कुत्ता है।", "नहीं।"),
        ("हां", "नहीं, कोई कुत्ता नहीं है"),
        ("হ্যাঁ", "না, নেই"),
        ("ใช่", "ไม่ใช่"),
        ("نَعَم", "لا"),
        ("כן", "לא"),
        ("بله", "خیر"),
        ("Ναι", "Όχι"),
        ("Có", "Không có"),
        ("Ya", "Tidak ada"),
        ("Ano", "Ne"),
        ("Igen", "Nem"),
        ("Kyllä", "Ei"),
        ("Так", "Ні"),
        ("Ja, da ist ein Hund.", "Nei."),
        ("y\u0336e\u0336s\u0336", "n\u0336o\u0336"),  # struck through
        ("\u200bYe\u200bs", "N\u00ado"),  # a zero-width space, a soft hyphen
    ],
)
def test_parse_yes_no_reads_the_words_of_other_languages(yes, no):
    question = "Is there a dog in the image?"
    assert (parse_yes_no(yes, question), parse_yes_no(no, question)) == ("yes", "no")


@pytest.mark.parametrize("answer", ["नारी", "নারী", "हाथी", "Da ist kein Hund."])
def test_parse_yes_no_does_not_take_the_beginning_of_a_word(answer):
    assert parse_yes_no(answer, "Is there a dog in the image?") is None


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is there a person in the image?", "A man is riding a bike.", "yes"),
        ("Is there a person in the image?", "Nobody is here.", "no"),
        ("Is there a man in the image?", "There is a woman.", None),  # both are persons, but not synonyms
        ("Is there a dining table in the image?", "There is no dining table, but there is a desk.", "no"),
        ("Is the number of dogs two?", "There are two dogs.", "yes"),
        ("Is the car red?", "It is red.", "yes"),
    ],
)
def test_parse_yes_no_understands_synonyms(question, answer, expected):
    assert parse_yes_no(answer, question) == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is the car red?", "It is blue.", "no"),
        ("Is the car red?", "The car is blue.", "no"),
        ("Is the car red?", "The car is red with a white roof.", "yes"),
        ("Is the car red?", "The car has white stripes.", None),
        ("Is the car red?", "It is next to a white house.", None),
        ("Is the wall grey?", "The wall is gray.", None),
        ("Is there a red car in the image?", "There is a blue car.", "no"),
        ("Is there a red car in the image?", "There is a blue car and a red one.", "yes"),
        ("Is the dog to the right of the cat?", "The dog is to the left of the cat.", "no"),
        ("Is the dog to the right of the cat?", "The dog is to the right of the cat.", "yes"),
        ("Is the dog to the right of the cat?", "It is to the left.", "no"),
        ("Is this photo taken indoors?", "The photo was taken outdoors.", "no"),
        ("Is the car red?", "Blue.", "no"),
        ("Is the car grey?", "Gray", None),
        ("Is a dog shown, right?", "A dog is shown.", "yes"),
    ],
)
def test_parse_yes_no_reads_another_colour_or_side_as_no(question, answer, expected):
    assert parse_yes_no(answer, question) == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is there a dog?", "The dog is out of frame.", "no"),
        ("Is there a dog?", "A dog seems to be out of view.", "no"),
        ("Is there a dog?", "The dog is outside the frame.", "no"),
        ("Is there a dog?", "The dog is partly out of frame.", "yes"),
        ("Is there a dog?", "A dog is outside the house.", "yes"),
        ("Is there a dog?", "There used to be a dog.", "no"),
        ("Is there a dog?", "There was once a dog here.", "no"),
        ("Is there a dog?", "The dog is no longer there.", "no"),
        ("Is there a dog?", "Although a dog is mentioned, none is visible.", "no"),
        ("Is there a bus?", "There is one.", "yes"),
        ("Is there a person?", "The street is empty of people.", "no"),
        ("Is there a person?", "The street is without people.", "no"),
        ("Is there a cat under the table?", "There is a cat, but it is not under it.", "no"),
        ("Is there a cat under the table?", "The cat is on the table, not under it.", "no"),
        ("Is there a cat under the table?", "A cat is under it.", "yes"),
        ("Is there a cup next to the laptop?", "The cup is not next to it.", "no"),
    ],
)
def test_parse_yes_no_reads_what_is_gone_or_elsewhere(question, answer, expected):
    assert parse_yes_no(answer, question) == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is there a dog in the image?", "There is a dog, with no other animals visible.", "yes"),
        ("Is there a dog in the image?", "No other animals besides a dog are visible.", "yes"),
        ("Is there a dog in the image?", "No dog.", "no"),
        ("Is there a dog in the image?", "No dogs, only cats", "no"),
        ("Is there a cat and a dog?", "I see a dog and no cat.", None),
        ("Is there a dog in the image?", "There are two dogs.", "yes"),
        ("Is there a dog in the image?", "Absent", "no"),
        ("Is there a dog in the image?", "Absent.", "no"),
        ("Is there a dog in the image?", "It is absent.", "no"),
        ("Is there a dog in the image?", "The dog is absent.", "no"),
        ("Is there a dog in the image?", "Not present", "no"),
        ("Is there a dog in the image?", "Present", "yes"),
        ("Is there a dog in the image?", "Missing", "no"),
        ("Is a leg missing?", "Missing.", "yes"),
        ("Is the leg missing?", "The leg is missing.", "yes"),
        ("Is the leg missing?", "The leg is not missing.", "no"),
        ("Is there a dog in the image?", "Not there.", "no"),
        ("Is there a dog in the image?", "Nowhere to be seen", "no"),
        ("Is there a dog in the image?", "Non-existent", "no"),
        ("Is there a dog in the image?", "None.", "no"),
        ("Is there a dog in the image?", "It exists.", "yes"),
        ("Is there a dog in the image?", "Nonexistent in this picture", "no"),
        ("Is there a bus in the image?", "It shows a truck rather than a bus.", "no"),
        ("Is there a bus in the image?", "a truck rather than a bus", "no"),
        ("Is there a bus in the image?", "There is a truck instead of a bus.", "no"),
        ("Is there a bus in the image?", "There is a bus rather than a truck.", "yes"),
        ("Is there a bus in the image?", "A truck, not a bus.", "no"),
        ("Is there a bus in the image?", "This is a truck, as opposed to a bus", "no"),
        ("Is the bus red?", "The bus is blue rather than red.", "no"),
        ("Is there a dog with a collar?", "A dog without a collar", "no"),
        ("Does the dog have a collar?", "The dog has no collar.", "no"),
        ("Is there a dog in the image?", "a dog without a collar", "yes"),
        ("Is there a bus in the image?", "The vehicle is a truck rather than a bus, which is not visible.", "no"),
        ("Is there a bus in the image?", "I see several buses.", "yes"),
        ("Is there a dog in the image?", "Absolutely not.", "no"),
        ("Is there a dog in the image?", "Not that I can see.", "no"),
        ("Is there a dog in the image?", "Nothing of the sort.", "no"),
        ("Is there a dog in the image?", "There isn't.", "no"),
        ("Is there a dog in the image?", "There is none.", "no"),
        ("Is there a dog in the image?", "None that I can see.", "no"),
        ("Is there a dog in the image?", "Zero dogs.", "no"),
        ("Is there a dog in the image?", "I see a cat instead of a dog.", "no"),
        ("Is there a dog in the image?", "It is a cat, rather than a dog.", "no"),
        ("Is there a dog in the image?", "Rather than a dog, there is a cat.", "no"),
        ("Is there a dog in the image?", "It's a wolf and not a dog.", "no"),
        ("Is there a dog in the image?", "That's a fox, not a dog.", "no"),
        ("Is there a dog in the image?", "There is a dog rather than a cat.", "yes"),
        ("Is there a dog in the image?", "There is a cat as well as a dog.", "yes"),
        ("Is there a dog in the image?", "A cat and a dog.", "yes"),
        ("Is there a dog in the image?", "Besides a cat, there is a dog.", "yes"),
        ("Is there a dog in the image?", "In addition to the dog, there is a cat.", "yes"),
        ("Is there a dog in the image?", "There is no cat besides the dog.", "yes"),
        ("Is there a dog in the image?", "The only animal is a dog.", "yes"),
        ("Is there a dog in the image?", "The only animal is a cat.", None),
        ("Is there a dog in the image?", "The image is devoid of dogs.", "no"),
        ("Is there a dog in the image?", "The picture is free of dogs", "no"),
        ("Is there a dog in the image?", "No sign of a dog.", "no"),
        ("Is there a dog in the image?", "There's no sign of any dog.", "no"),
        ("Is there a dog in the image?", "No evidence of a dog.", "no"),
        ("Is there a dog in the image?", "A dog does not appear in the image.", "no"),
        ("Is there a dog in the image?", "A dog is not among the objects.", "no"),
        ("Is there a dog in the image?", "I fail to see a dog.", "no"),
        ("Is there a dog in the image?", "The image fails to show a dog.", "no"),
        ("Is there a dog in the image?", "I was unable to find a dog.", "no"),
        ("Is there a dog in the image?", "It's hard to see, but there is a dog.", "yes"),
        ("Is there a dog in the image?", "If there were a dog, it would be on the rug.", None),
        ("Is there a dog in the image?", "Yes and no.", None),
        ("Is there a dog in the image?", "Both yes and no", None),
        ("Is there a dog in the image?", "N/A", None),
        ("Is there a dog in the image?", "Unanswerable", None),
        ("Is there a dog in the image?", "I cannot answer.", None),
        ("Is this a truck?", "It is a bus rather than a truck.", "no"),
        ("Is the truck red?", "The truck is red rather than blue.", "yes"),
        ("Is the man standing?", "The man is sitting rather than standing.", "no"),
        ("Is the man standing?", "He is sitting instead of standing.", "no"),
        ("Does the image show a dog?", "It shows a cat, no dog.", "no"),
        ("Is the dog absent?", "The dog is absent.", "yes"),
        ("Is the dog missing a leg?", "Missing.", "yes"),
        ("Is there a dog in the image?", "Not present.", "no"),
        ("Is there a dog in the image?", "Not in the image", "no"),
        ("Is there a dog in the image?", "absent", "no"),
        ("Is there a dog in the image?", "ABSENT", "no"),
        ("Is there a dog in the image?", "Dog: absent", "no"),
        ("Is there a dog in the image?", "Dog absent", "no"),
        ("Is there a dog in the image?", "dog present", "yes"),
        ("Is there a dog in the image?", "It's missing.", "no"),
        ("Is there a dog in the image?", "Nonexistent.", "no"),
        ("Is there a dog in the image?", "Dog not found", "no"),
        ("Is there a dog in the image?", "not visible in this picture", "no"),
        ("Is there a dog in the image?", "A cat rather than a dog", "no"),
        ("Is there a dog in the image?", "It's a cat rather than a dog.", "no"),
        ("Is there a dog in the image?", "This seems to be a wolf rather than a dog.", "no"),
        ("Is there a dog in the image?", "What you see is a cat, rather than a dog.", "no"),
        ("Is there a dog in the image?", "The animal looks more like a cat than a dog.", "no"),
        ("Is there a cat?", "The animal looks more like a cat than a dog.", "yes"),
        ("Is there a dog in the image?", "It is a cat in place of a dog", "no"),
        ("Is there a dog in the image?", "Neither", "no"),
        ("Is there a dog in the image?", "Wrong", "no"),
        ("Is there a dog in the image?", "Incorrect.", "no"),
        ("Is there a dog in the image?", "Right", "yes"),
        ("Is there a dog in the image?", "Definitely", "yes"),
        ("Is there a dog in the image?", "Unlikely", None),
        ("Is there a dog in the image?", "Doubtful", None),
        ("Is there a dog in the image?", "Likely", None),
        ("Is there a dog in the image?", "0", None),
        ("Is there a dog in the image?", "A dog isn't present, although a cat is.", "no"),
        ("Is there a dog in the image?", "A dog is there, although the cat isn't.", "yes"),
        ("Is there a dog in the image?", "There is a statue of a dog.", "yes"),
        ("Is there a dog in the image?", "Sure thing!", "yes"),
        ("Is there a dog in the image?", "I'd say no", "no"),
        ("Is there a dog in the image?", "I'd say yes.", "yes"),
        ("Is there a dog in the image?", "Probably not", "no"),
        ("Is there a dog in the image?", "Most likely not.", "no"),
        ("Is there a dog in the image?", "I don't see a dog anywhere", "no"),
    ],
)
def test_parse_yes_no_reads_absence_and_contrast(question, answer, expected):
    assert parse_yes_no(answer, question) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        # what is said of the dog, or of others, leaves it there
        ("The dog is not brown.", "yes"),
        ("The dogs are not looking at the camera.", "yes"),
        ("The dog isn't on the sofa but on the floor.", "yes"),
        ("The dog is missing a leg.", "yes"),
        ("No one is near the dog.", "yes"),
        ("No one is sitting next to the dog.", "yes"),
        ("The dog does not wear a collar.", "yes"),
        ("The dog is not in the car.", "yes"),
        ("No people, but a dog is on the grass.", "yes"),
        ("No cats, only a dog.", "yes"),
        ("Definitely not a cat. It's a dog.", "yes"),
        ("There is a dog not far from the man.", "yes"),
        # its presence is denied
        ("The dog is not in the picture.", "no"),
        ("The dog is not clearly visible.", "no"),
        ("The dog does not seem to be here.", "no"),
        ("The dog is missing.", "no"),
        ("The image is missing a dog.", "no"),
        ("No people, and no dog.", "no"),
        ("No, but there is a cat.", "no"),
        ("0 dogs.", "no"),
        ("10 dogs.", "yes"),
        ("It is unlikely that there is a dog.", "no"),
        ("The dog is not in the provided image.", "no"),
        ("The dog is not in the given picture.", "no"),
        ("The dog is not on the displayed photo.", "no"),
        ("No, the dog is not in the provided image.", "no"),
        ("No, the dog is not brown.", "no"),
        ("No, the dog does not show up.", "no"),
        ("There is no dog, the dog is not in the given image.", "no"),
        ("There is no dog, so the dog is not brown.", "no"),
        ("The dog is not spotted.", "no"),
        ("The dog is not listed.", "no"),
        ("The dog is not displayed.", "no"),
        ("The dog is not discernible.", "no"),
        ("The dog is not confirmed.", "no"),
        ("The dog is not in it.", "no"),
        ("The dog is not in your image.", "no"),
        ("No one can be identified as holding the dog.", "no"),
        # another thing
        ("There is a hot dog.", None),
        ("There is a dog house.", None),
        ("There is a hot dog and a dog.", "yes"),
    ],
)
def test_parse_yes_no_reads_what_says_existence_in_passing(answer, expected):
    assert parse_yes_no(answer, "Is there a dog in the image?") == expected


def test_parse_yes_no_reads_no_one_as_a_denial_of_a_person():
    answer = "No one is in the image, so the person is absent."
    assert parse_yes_no(answer, "Is there a person in the image?") == "no"


def test_parse_yes_no_takes_the_same_words_for_a_denial_of_a_place():
    assert parse_yes_no("The dog is not on the sofa.", "Is there a dog on the sofa?") == "no"
    assert parse_yes_no("The dog is not brown.", "Is the dog brown?") == "no"


def test_parse_yes_no_without_question_is_stricter():
    assert parse_yes_no("A dog.", "Is there a dog?") == "yes"
    assert parse_yes_no("A dog.") is None
    assert parse_yes_no("There is a dog.") == "yes"
    assert parse_yes_no("The image does not show a dog.") == "no"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B\n\nA is wrong because it is empty.", "B"),
        ("The answer is a plate", "B"),  # the option's text; `a` is an article
        ("It is not B, it is C.", "C"),
        ("C, D", None),
        ("not A", None),
        ("I am sure", None),
    ],
)
def test_parse_choice_matches_hand_labels(answer, letter):
    assert parse_choice(answer, "ABCD", OPTIONS) == letter


@pytest.mark.parametrize(
    ("answer", "value"),
    [("nine hundred", None), ("5 dogs and 3 cats", None), ("I count 1, 2, 3, so 3", 3), ("forty-two", 42), ("1/2", None)],
)
def test_parse_number_matches_hand_labels(answer, value):
    assert parse_number(answer) == value


def test_leading_yes_no_reads_only_the_first_word():
    assert [leading_yes_no(t) for t in ("**Yes**, it is", "nope", "No doubt, yes", "There is", "", "是的")] == [
        "yes", "no", None, None, None, "yes",
    ]  # fmt: skip


def test_parse_yes_no_reads_both_ends_of_long_answer():
    middle = "The sky is blue. " * 60_000  # a megabyte
    assert parse_yes_no(f"Yes. {middle}", "Is there a dog?") == "yes"
    assert parse_yes_no(f"{middle} So the answer is no.", "Is there a dog?") == "no"


@given(st.text())
def test_answer_parsers_accept_any_text(text):
    assert parse_yes_no(text) in ("yes", "no", None)
    assert parse_choice(text) in ("A", "B", "C", "D", None)
    assert parse_number(text) is None or isinstance(parse_number(text), float)
    assert pope_official(text) in ("yes", "no")


def test_pope_official_matches_official_script(shared_data):
    table = [json.loads(line) for line in (shared_data / "parity/POPE/parse_table.jsonl").open(encoding="utf-8")]
    assert len(table) == 60
    assert [pope_official(row["text"]) for row in table] == [row["official"] for row in table]
    for case in ("adversarial_clean", "adversarial_odd"):
        folder = shared_data / "parity/POPE" / case
        answers = [json.loads(line)["answer"] for line in (folder / "input.jsonl").open(encoding="utf-8")]
        assert [pope_official(a) for a in answers] == (folder / "official_parsed.txt").read_text().split()


@pytest.mark.parametrize(
    ("answer", "expected"), [("", "yes"), ("No!", "yes"), ("It is not clear, but yes", "no"), ("A. No", "yes")]
)
def test_pope_official_matches_hand_labels(answer, expected):
    assert pope_official(answer) == expected


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        ("Is there a dog in the image that is brown?", "The dog is not brown.", "no"),
        ("Are there people in the image who are smiling?", "The people are not smiling.", "no"),
        ("Is there a dog in the image? Is it brown?", "The dog is not brown.", "no"),
        ("Is there a dog in the image? Please answer yes or no.", "The dog is not brown.", "yes"),
        ("Is there a dog in the image?", "Not a chance.", "no"),
        ("Is there a truck in the image?", "A truck bed is visible.", "yes"),
    ],
)
def test_only_questions_about_existence_alone_are_answered_in_passing(question, answer, verdict):
    assert parse_yes_no(answer, question) == verdict
