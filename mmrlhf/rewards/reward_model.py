"""The reward model: its prompt, scalar head and scores. `checkpoint` saves and loads it."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmrlhf.config import FactsPosition
from mmrlhf.engine.scoring import GROUPS_PER_BATCH, last_hidden_states
from mmrlhf.facts import render_facts
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.answer_images import AnswerText, answer_texts
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.heads import YES_NO_QUESTION, yes_no_head
from mmrlhf.models.prompt_list import PromptList
from mmrlhf.models.vlm import Prompt
from mmrlhf.records import Fact, ImageSource, InputError, Message, PlacedImage, answer_turn
from mmrlhf.rewards.types import RewardFunction, Sample

# ---- the prompt ---------------------------------------------------------------------------------


def reward_messages(prompt: Sequence[Message], answer: str, facts: str, position: FactsPosition) -> tuple[Message, ...]:
    """Return the conversation that a reward model reads: prompt, answer, question, and facts.

    `before` puts the facts at the start of the last user turn, where all answers to a prompt share
    them. `after` puts them in the question that follows the answer, as LLaVA-RLHF does.
    """
    question = prepend_facts(facts, YES_NO_QUESTION) if position == "after" else YES_NO_QUESTION
    prompt_messages = prompt_with_facts(prompt, facts) if position == "before" else prompt
    return (*prompt_messages, Message("assistant", answer), Message("user", question))


def prompt_with_facts(prompt: Sequence[Message], facts: str) -> tuple[Message, ...]:
    """Return the prompt with the facts at the start of its last turn."""
    *earlier, last = prompt
    content = prepend_facts(facts, last.content)
    # Images in front of the turn stay there; the others move with the text.
    positions = tuple(p and p + len(content) - len(last.content) for p in last.image_positions)
    return (*earlier, Message(last.role, content, positions))


def prepend_facts(facts: str, text: str) -> str:
    """Put facts before a text: on lines of their own if they span several, else on its line."""
    if not facts:
        return text
    separator = "\n" if "\n" in facts else " "
    return f"{facts}{separator}{text}"


# ---- the model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnswerGroup:
    """Answers to one prompt on the same images, scored together.

    `facts` are the known facts about the images, and `id` is the row's id. `answer_images` are the
    images inside each answer, and empty if no answer has any.
    """

    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    facts: tuple[Fact, ...] = ()
    id: str = ""
    answer_images: tuple[tuple[PlacedImage, ...], ...] = ()


@dataclass
class RewardModel:
    """A role with a scalar head that reads images, text and facts.

    Scores are (raw - mean) / std, with `mean` and `std` from a reference set. The first of two
    answers is better with probability sigmoid((first - second) / temperature). `accuracy` is
    measured on held-out pairs. `probes` is the share of injected false claims that lower the score,
    by kind of claim, on the reference set; `j` is J there, before and after training. The scores of
    `prior`, the untrained review, are frozen and added to the role's own.
    """

    role: Role
    facts: Literal["given", "none"]
    facts_position: FactsPosition
    facts_template: str = "typed"
    max_facts_tokens: int | None = None
    mean: float = 0.0
    std: float = 1.0
    temperature: float = 1.0
    accuracy: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    j: dict[str, Any] = field(default_factory=dict)
    prior: Role | None = None
    max_length: int = 2048

    def raw_scores(self, groups: Sequence[AnswerGroup]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield scores before normalisation, one micro-batch of groups at a time.

        Each item holds the indices of its groups, and the scores [n] of all their answers in order.
        A score is read where the reply to the yes/no question would begin. Training calls
        `backward` on each item before it takes the next, so only one micro-batch's activations are
        in memory ("Backward inside the loop" in engine/scoring.py).

        Raises InputError if an answer and its prompt together exceed max_length.
        """
        prompts = PromptList(self.role.vlm, self.max_length)
        answer_ids: list[list[Tensor]] = []
        prompts_per_group, group_ids = [], [group.id for group in groups]
        for group in groups:
            units = self._tokenize_image_answers(prompts, group) if group.answer_images else [self._add_group(prompts, group)]
            answer_ids += units
            prompts_per_group.append(len(units))
        built = prompts.build(with_ids=all(group_ids))
        ids_by_prompt = [group_id for group_id, count in zip(group_ids, prompts_per_group, strict=True) for _ in range(count)]
        self._check_lengths(ids_by_prompt, built, answer_ids)

        def scores_of(role: Role) -> Iterator[tuple[list[int], Tensor]]:
            return _role_scores(role, built, answer_ids, prompts_per_group)

        if self.prior is None:
            yield from scores_of(self.role)
            return
        with torch.no_grad():
            prior_scores = by_group(scores_of(self.prior), groups)
        for group_indices, corrections_N in scores_of(self.role):
            yield group_indices, corrections_N + torch.cat([prior_scores[i] for i in group_indices])

    def _add_group(self, prompts: PromptList, group: AnswerGroup) -> list[Tensor]:
        """Add the prompt that a group's answers share, and return the ids of each answer."""
        messages, answer_ids = self.tokenize_group(group)
        prompts.add_conversation((messages, group.images), self.max_length, group.id)
        return answer_ids

    def _tokenize_image_answers(self, prompts: PromptList, group: AnswerGroup) -> list[list[Tensor]]:
        """Add a prompt for each answer, up to its last image, and return the ids of the rest."""
        ids = []
        for text, images in self.last_texts(group):
            prompts.add_text(text, images, group.id)
            ids.append([text.token_ids])
        return ids

    def last_texts(self, group: AnswerGroup) -> list[tuple[AnswerText, tuple[ImageSource, ...]]]:
        """Return the rest after each answer's last image, with all images before it."""
        *messages, _, question = self._messages(group)
        texts = []
        for answer, placed in zip(group.answers, group.answer_images, strict=True):
            turn = answer_turn(answer, placed)
            text = answer_texts(self.role.vlm.chat, messages, turn, len(group.images), [question], group.id)[-1]
            texts.append((text, (*group.images, *(image.source for image in placed))))
        return texts

    def _messages(self, group: AnswerGroup) -> tuple[Message, ...]:
        """Return the turns that the model reads, with an empty answer."""
        return reward_messages(group.prompt, "", self.facts_text(group.prompt, group.facts), self.facts_position)

    def tokenize_group(self, group: AnswerGroup) -> tuple[list[Message], list[Tensor]]:
        """Return the turns before the answers, and token ids of each answer with the question."""
        *prompt_messages, _, question = self._messages(group)
        group_answer_ids = [
            self.role.vlm.answer_token_ids(
                prompt_messages, answer, len(group.images), following_turns=[question], row_id=group.id
            )
            for answer in group.answers
        ]
        return prompt_messages, group_answer_ids

    def _check_lengths(self, group_ids: Sequence[str], prompts: Sequence[Prompt], answer_ids: Sequence[Sequence[Tensor]]) -> None:
        for group_id, prompt, group_answer_ids in zip(group_ids, prompts, answer_ids, strict=True):
            longest = max(map(len, group_answer_ids), default=0)
            if group_answer_ids and len(prompt.token_ids) + longest > self.max_length:
                raise InputError(
                    f"an answer of row {group_id} has {longest} tokens with the question after it and its prompt has "
                    f"{len(prompt.token_ids)}, together more than max_length {self.max_length}: raise max_length or drop the row"
                )

    def without_limit(self) -> RewardModel:
        """Return the model for rows that were checked before, without the limit of max_length.

        An answer from another model's tokenizer may have a few more tokens than were counted.
        """
        return replace(self, max_length=1 << 30)

    def facts_text(self, prompt: Sequence[Message], facts: Sequence[Fact]) -> str:
        """Return the facts as this model reads them.

        The prompt and the facts seed their order: all answers to a prompt get the same text, and
        scores are reproducible.
        """
        if self.facts == "none":
            return ""
        seed = zlib.crc32(repr((prompt, facts)).encode())
        return render_facts(facts, seed, self.facts_template, self.max_facts_tokens, self.role.vlm.count_tokens)

    @torch.no_grad()
    def score(self, groups: Sequence[AnswerGroup], advance: Callable[[int], None] | None = None) -> list[list[float]]:
        """Return the normalised scores of each group's answers.

        Equal answers run once, because their scores would differ by rounding. `advance` is called
        with the number of groups of each batch, once it is scored. Raises NotFiniteError for NaN.
        """

        def score_batch(batch: Sequence[AnswerGroup]) -> list[list[float]]:
            distinct = [_distinct(group) for group in batch]
            raw_scores = by_group(self.raw_scores(distinct), distinct)
            if not all(bool(raw_scores_N.isfinite().all()) for raw_scores_N in raw_scores):
                raise NotFiniteError(f"the reward model on {self.role.vlm.name} gives scores that are not finite: train it again")
            by_answer = [
                dict(zip(_answer_keys(group), ((raw_scores_N - self.mean) / self.std).tolist(), strict=True))
                for group, raw_scores_N in zip(distinct, raw_scores, strict=True)
            ]
            return [[scores[key] for key in _answer_keys(group)] for group, scores in zip(batch, by_answer, strict=True)]

        batches = (groups[start : start + GROUPS_PER_BATCH] for start in range(0, len(groups), GROUPS_PER_BATCH))
        scores: list[list[float]] = []
        for batch in batches:
            scores += self.role.vlm.budget.retry_on_oom(score_batch, batch)
            if advance is not None:
                advance(len(batch))
        return scores


AnswerKey = tuple[str, tuple[PlacedImage, ...]]


def _answer_keys(group: AnswerGroup) -> list[AnswerKey]:
    """Return each answer's text and images: equal answers have equal scores."""
    return list(zip(group.answers, group.answer_images or [()] * len(group.answers), strict=True))


def _distinct(group: AnswerGroup) -> AnswerGroup:
    """Return a group with each of its answers once."""
    keys = dict.fromkeys(_answer_keys(group))
    images = tuple(images for _, images in keys) if group.answer_images else ()
    return replace(group, answers=tuple(answer for answer, _ in keys), answer_images=images)


def _role_scores(
    role: Role, prompts: Sequence[Prompt], answer_ids: Sequence[Sequence[Tensor]], prompts_per_group: Sequence[int]
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield group indices and a role's scores [n] of their answers, a micro-batch at a time."""
    assert role.head is not None
    for group_indices, last_hidden_ND in last_hidden_states(role, prompts, answer_ids, prompts_per_group):
        yield group_indices, role.head(last_hidden_ND.float())[:, 0]


def by_group(scores: Iterable[tuple[Sequence[int], Tensor]], groups: Sequence[AnswerGroup]) -> list[Tensor]:
    """Return the scores of each group's answers; micro-batches take groups in any order."""
    scores_by_group: dict[int, Tensor] = {}
    for group_indices, scores_N in scores:
        parts = scores_N.split([len(groups[i].answers) for i in group_indices])
        scores_by_group |= dict(zip(group_indices, parts, strict=True))
    return [scores_by_group[i] for i in range(len(groups))]


def untrained_role(adapters: Adapters) -> Role:
    """Return the untrained review: the base without an adapter, with its log-odds of Yes over No.

    Raises InputError if the tokenizer does not distinguish the two words.
    """
    head = yes_no_head(adapters.vlm)
    head.requires_grad_(False)
    return Role(adapters, None, head)


# ---- as a reward function ----------------------------------------------------------------------


def make_fact_rm(reward_models: Sequence[RewardModel], uncertainty_penalty: float = 0.0) -> RewardFunction:
    """Return the reward function `fact_rm`: the models' mean score minus a disagreement penalty.

    The penalty is `uncertainty_penalty` times the standard deviation over models (Coste et al.
    2024). Adjacent samples of one prompt are scored as one group. The rows were checked, so no
    answer is too long.
    """

    def reward_function(samples: Sequence[Sample]) -> list[float]:
        grouped_samples = [
            list(neighbours) for _, neighbours in itertools.groupby(samples, lambda s: (s.id, s.prompt, s.images, s.facts))
        ]

        def model_scores(reward_model: RewardModel) -> list[float]:
            # A policy may write an image token as text, and each base has its own.
            escape = reward_model.role.vlm.escape_control_tokens
            groups = [
                AnswerGroup(g[0].images, g[0].prompt, tuple(escape(s.answer) for s in g), g[0].facts, g[0].id)
                for g in grouped_samples
            ]
            return [score for group_scores in reward_model.without_limit().score(groups) for score in group_scores]

        scores_MN = torch.tensor([model_scores(reward_model) for reward_model in reward_models])
        std_N = scores_MN.std(0, correction=0)
        return [float(v) for v in scores_MN.mean(0) - uncertainty_penalty * std_N]

    return reward_function
