"""Built-in reward functions. Each maps samples to one number per answer."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mmrlhf.rewards.types import RewardFunction, Sample
from mmrlhf.text.answer_parsing import YesNo, leading_yes_no, parse_choice, parse_number, parse_yes_no
from mmrlhf.text.final_answers import final_answer, has_answer_format
from mmrlhf.text.word_counts import split_words_and_marks


def correctness(samples: Sequence[Sample]) -> list[float | None]:
    """Give 1 to an answer that agrees with the row's reference (`is_correct`), else 0.

    A row without a reference gets None: the function does not apply to it. A row with LLaVA-RLHF's
    `caption_type` is scored as in Sun et al. 2023: a multiple-choice letter gets 1 or 0. If the
    right answer is no, no gets 0.5 and yes -0.5. If it is yes, every answer gets 0, to counter a
    bias towards yes.
    """
    return [_correctness(sample) for sample in samples]


def _correctness(sample: Sample) -> float | None:
    if "caption_type" in sample.meta:
        return _score_by_caption_type(sample)
    if sample.reference is None:
        return None
    return float(is_correct(sample.answer, sample.reference, sample.prompt[-1].content))


def length(samples: Sequence[Sample]) -> list[float]:
    """Give the share of max_tokens used, times the row's `length_bonus` (default 1; LLaVA-RLHF)."""
    return [s.num_tokens / s.max_tokens * float(s.meta.get("length_bonus", 1.0)) for s in samples]


def missing_eos(samples: Sequence[Sample]) -> list[float]:
    """Give 1 to an answer that was cut off before its end, else 0."""
    return [float(not s.finished) for s in samples]


def repetition(samples: Sequence[Sample]) -> list[float]:
    """Give the share of an answer's word 4-grams that repeat an earlier one.

    In a language without spaces, such as Chinese, each character is a word.
    """
    shares = []
    for sample in samples:
        words = split_words_and_marks(sample.answer.lower())
        ngrams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        shares.append(1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0)
    return shares


def question_mark(samples: Sequence[Sample]) -> list[float]:
    """Give 1 to an answer with a question mark, which LLaVA-RLHF treats as unfinished, else 0."""
    return [float("?" in s.answer) for s in samples]


def answer_format(samples: Sequence[Sample]) -> list[float]:
    """Give 1 to an answer of the form <think>...</think><answer>...</answer>, else 0."""
    return [float(has_answer_format(s.answer)) for s in samples]


REWARD_FUNCTIONS: dict[str, RewardFunction] = {
    "answer_format": answer_format,
    "correctness": correctness,
    "length": length,
    "missing_eos": missing_eos,
    "question_mark": question_mark,
    "repetition": repetition,
}
"""Reward functions by their name in `reward_terms`.

To add one, write it above and list it here. A function that needs the claims of an answer belongs
in `claim_rewards.CLAIM_REWARDS`; one that needs a loaded model is passed to `ppo`, like `fact_rm`.
"""


CAPTION_TYPE_LETTERS = {2: "A", 3: "B", 4: "C", 5: "D"}
"""LLaVA-RLHF's `caption_type` of a multiple-choice question -> the right letter."""
CAPTION_TYPE_NO = 6
"""LLaVA-RLHF's `caption_type` of a question with the right answer no."""


def _score_by_caption_type(sample: Sample) -> float:
    caption_type, answer = sample.meta["caption_type"], sample.answer.strip()
    if letter := CAPTION_TYPE_LETTERS.get(caption_type):
        return float(answer.startswith(f"{letter}.") or f"correct option is {letter}." in answer)
    return 0.5 * (answer.startswith("No") - answer.startswith("Yes")) if caption_type == CAPTION_TYPE_NO else 0.0


_AUXILIARY = (
    "is|are|was|were|am|do|does|did|has|have|had|can|could|will|would|shall|should|may|might|must"
    "|isn't|aren't|wasn't|weren't|don't|doesn't|didn't|can't|cannot|won't"
)
_ANSWERS_NO = re.compile(rf"\W*\w+(?:\W*$|\s*[^\w\s'’-]|\s+[-–—]\s)|.*\b(?:{_AUXILIARY})\b", re.IGNORECASE | re.DOTALL)
"""A word alone, a word before punctuation, or a sentence with a verb."""
_NUMBERED = re.compile(r"\W*no\.\s*\d", re.IGNORECASE)
_YES_NO_QUESTION = re.compile(rf"(?:.*[.!?,]\s+)?\W*(?:{_AUXILIARY})\b", re.IGNORECASE | re.DOTALL)


def _expected_yes_no(reference: str, question: str) -> YesNo | None:
    """Return yes or no if a reference is one, also as "No, it is not"; None for "No parking"."""
    answer = leading_yes_no(reference)
    if answer != "no" or not reference.isascii():
        return answer
    if _NUMBERED.match(reference):
        return None
    return answer if _ANSWERS_NO.match(reference) or _YES_NO_QUESTION.match(question) else None


def is_correct(answer: str, reference: str | None, question: str = "") -> bool:
    """Return whether an answer agrees with `reference`; without one, no answer does.

    Of both, the final answer counts (`text.final_answers`). If the reference is yes or no (alone or
    as in "No, it is not", but not in "No parking"), a multiple-choice letter (with its option or
    without) or a number, the answer is parsed by `text.answer_parsing`. Otherwise the words must
    match, apart from case, spacing and a final full stop.
    """
    if reference is None:
        return False
    answer, reference = final_answer(answer), final_answer(reference)
    expected = reference.strip().rstrip(".").strip()
    if (expected_yes_no := _expected_yes_no(reference, question)) is not None:
        return parse_yes_no(answer, question) == expected_yes_no
    if letter := re.fullmatch(r"\(?([A-H])\)?|\(?([A-H])[).:]\s.*", expected, re.DOTALL):
        return parse_choice(answer, "ABCDEFGH") == (letter[1] or letter[2])
    if re.fullmatch(r"[-−]?\d[\d,]*(?:\.\d+)?", expected) and (expected_number := parse_number(expected)) is not None:
        answer_number = parse_number(answer)
        return answer_number is not None and math.isclose(answer_number, expected_number)
    return " ".join(answer.lower().split()).rstrip(".") == " ".join(expected.lower().split())
