"""Best-of-n picks the answer with the highest score, among answers sampled for its own prompt."""

from types import SimpleNamespace

from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.rewards.best_of_n import best_of_n


class LengthReward:
    """A reward model that prefers long answers and remembers what it scored."""

    def __init__(self, vlm):
        self.role = Role(Adapters(vlm), None)
        self.groups = []

    def score(self, groups):
        self.groups += groups
        return [[float(len(answer)) for answer in group.answers] for group in groups]


def test_best_of_n_yields_the_highest_scored_answer_per_example(vlm, examples):
    reward_model = LengthReward(vlm)
    chosen = list(best_of_n(vlm, reward_model, examples[:3], 4, batch_size=2, response_length=12, seed=0))
    assert [example.id for example, _ in chosen] == [example.id for example in examples[:3]]
    for (example, answer), group in zip(chosen, reward_model.groups, strict=True):
        assert (group.id, group.facts, group.prompt) == (example.id, example.facts, example.prompt)
        assert len(group.answers) == 4 and answer == max(group.answers, key=len)
    assert any(len(set(group.answers)) > 1 for group in reward_model.groups)


def test_best_of_n_of_one_is_the_sample(vlm, examples):
    reward_model = LengthReward(vlm)
    ((_, answer),) = best_of_n(vlm, reward_model, examples[:1], 1, batch_size=2, response_length=8, seed=0)
    assert reward_model.groups[0].answers == (answer,)


def test_best_of_n_scores_answers_without_their_control_tokens(vlm, examples, monkeypatch):
    """A policy may spell the end of its turn; the answer is kept as it is."""
    texts = ["A star.</s>", "A red star</s> and more."]
    monkeypatch.setattr("mmrlhf.rewards.best_of_n.sample_completions", lambda *_: SimpleNamespace(texts=texts))
    reward_model = LengthReward(vlm)
    ((_, answer),) = best_of_n(vlm, reward_model, examples[:1], 2, batch_size=2, response_length=8, seed=0)
    assert answer == texts[1] and reward_model.groups[0].answers == ("A star.< /s>", "A red star< /s> and more.")
