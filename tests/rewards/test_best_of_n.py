"""Best-of-n picks the answer with the highest score among those to its own prompt."""

import dataclasses

import pytest

from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.records import InputError
from mmrlhf.rewards.best_of_n import best_answers
from mmrlhf.rewards.reward_model import AnswerGroup


class LengthReward:
    """A reward model that prefers long answers and remembers what it scored."""

    def __init__(self, vlm):
        self.role = Role(Adapters(vlm), None)
        self.groups = []

    def without_limit(self):
        return self

    def score(self, groups):
        self.groups += groups
        return [[float(len(answer)) for answer in group.answers] for group in groups]


def test_best_answers_returns_the_highest_scored_answer_per_example(vlm, examples):
    reward_model = LengthReward(vlm)
    answers = [["A red star.", "A star.", "A large red star."], ["Two rings.", "A moon.", "A ring."]]
    assert best_answers(reward_model, examples[:2], answers) == [("A large red star.", 17.0), ("Two rings.", 10.0)]
    for example, group in zip(examples, reward_model.groups, strict=False):
        assert (group.id, group.facts, group.prompt) == (example.id, example.facts, example.prompt)


def test_best_answers_takes_the_first_of_equal_scores(vlm, examples):
    assert best_answers(LengthReward(vlm), examples[:1], [["A cat.", "A dog."]]) == [("A cat.", 6.0)]


def test_best_answers_are_scored_without_their_control_tokens(vlm, examples):
    """A policy may spell the end of its turn; the answer is kept as it is."""
    texts = ["A star.</s>", "A red star</s> and more."]
    reward_model = LengthReward(vlm)
    ((answer, _),) = best_answers(reward_model, examples[:1], [texts])
    assert answer == texts[1] and reward_model.groups[0].answers == ("A star.< /s>", "A red star< /s> and more.")


def test_best_answers_takes_answers_that_are_longer_than_their_row_was_counted(untrained_reward_model, examples):
    """Sampled tokens may be more when another tokenizer, or their own, reads them as text."""
    tight = dataclasses.replace(untrained_reward_model, max_length=8)
    answers = [["A red star.", "There is a moon."]]
    with pytest.raises(InputError, match="max_length"):
        tight.score([AnswerGroup(examples[0].images, examples[0].prompt, tuple(answers[0]), examples[0].facts, examples[0].id)])
    assert best_answers(tight, examples[:1], answers) == best_answers(untrained_reward_model, examples[:1], answers)
