"""What a reward model says an answer is worth: its prompt, its first head, and scores. `artefact` keeps it on disk."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from mmrlhf.config import FactsPosition
from mmrlhf.facts import render
from mmrlhf.prefix import learning, prefill, tokens_of
from mmrlhf.records import Fact, ImageSource, InputError, Message
from mmrlhf.roles import Role, scalar_head
from mmrlhf.terms import Sample, Term
from mmrlhf.vlm import VLM, Prompt

REVIEW = "Is all of this true of the picture?"
"""The turn after an answer at whose end the reward is read: a question that a vision-language model can already answer."""


def review_messages(prompt: Sequence[Message], answer: str, facts: str, position: FactsPosition) -> tuple[Message, ...]:
    """The conversation a reward model reads: prompt, answer, review; the facts before the question or in the review.

    `before` puts them at the head of the last user turn, so that all answers of a prompt share them; `after` puts them
    into the turn after the answer (LLaVA-RLHF).
    """
    review = with_facts(facts, REVIEW) if position == "after" else REVIEW
    asked = prompt_with_facts(prompt, facts) if position == "before" else prompt
    return (*asked, Message("assistant", answer), Message("user", review))


def prompt_with_facts(prompt: Sequence[Message], facts: str) -> tuple[Message, ...]:
    """The prompt with facts at the head of its last turn."""
    *earlier, last = prompt
    return (*earlier, Message(last.role, with_facts(facts, last.content)))


def with_facts(facts: str, text: str) -> str:
    return f"{facts}{chr(10) if chr(10) in facts else ' '}{text}" if facts else text


def random_head(vlm: VLM, seed: int) -> nn.Linear:
    """A head of normal weights with standard deviation 1 / sqrt(hidden size + 1). Stiennon et al. 2020; Huang et al. 2024, detail 7."""
    draws = torch.randn(vlm.hidden_size, generator=torch.Generator().manual_seed(seed))
    return scalar_head((draws / math.sqrt(vlm.hidden_size + 1)).to(vlm.device))


def review_head(vlm: VLM) -> nn.Linear:
    """The reward's first head: by how much the model would rather begin its review with "Yes" than with "No".

    So a reward model starts from what its base can already judge, and not from a random direction. Raises InputError where both
    answers begin with the same token.
    """
    yes, no = (int(vlm.answer_ids([Message("user", REVIEW)], word, 0)[0]) for word in ("Yes", "No"))
    if yes == no:
        raise InputError(f'{vlm.name}: its tokenizer begins "Yes" and "No" with the same token, so its review cannot be read')
    rows = vlm.model.get_output_embeddings().weight.detach().float()
    return scalar_head(rows[yes] - rows[no])


def at_ends(role: Role, prompts: Sequence[Prompt], answers: Sequence[Sequence[Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
    """Hidden states where answers end, each prompt run once for all of its answers: the numbers of as many prompts as the budget allows,
    and the states [n, D] of all of their answers in order. Inside, the caller may call `backward`.
    """
    vlm, flat = role.vlm, [(p, ids) for p, mine in enumerate(answers) for ids in mine]
    with role.active():
        for piece in vlm.budget.plan(tokens_of(prompts), [[len(ids) for ids in mine] for mine in answers]):
            with learning(prefill(vlm, [prompts[p] for p in piece.prompts])) as prefix:
                found = []
                for numbers in piece.answers:
                    rows = torch.tensor([piece.prompts.index(flat[i][0]) for i in numbers], device=vlm.device)
                    ids_NT, mask_NT = pad_right([flat[i][1] for i in numbers], int(vlm.tokenizer.pad_token_id), vlm.device)
                    hidden_NTD = prefix.extend(rows, ids_NT, mask_NT)
                    found.append(hidden_NTD[torch.arange(len(numbers), device=vlm.device), mask_NT.sum(1)])
                yield piece.prompts, torch.cat(found)


GROUPS = 64
"""Prompts that are made ready at a time, pictures and all, when many are scored."""


@dataclass(frozen=True)
class Group:
    """Answers to one prompt on the same pictures, scored together; `facts` is what is known of the pictures, `id` the row's."""

    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    facts: tuple[Fact, ...] = ()
    id: str = ""


@dataclass
class RewardModel:
    """A role with a scalar head that reads images, text and facts; scores are (raw - mean) / std of a reference set.

    `temperature` calibrates: the first of two answers is the better one with probability sigmoid((first - second) / temperature).
    `accuracy` is of held-out pairs; `probes`, the share of planted false claims that lower the score, by claim type, of the reference set.
    """

    role: Role
    facts: Literal["given", "none"]
    facts_position: FactsPosition
    facts_template: str = "typed"
    facts_budget: int | None = None
    mean: float = 0.0
    std: float = 1.0
    temperature: float = 1.0
    accuracy: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    max_length: int = 2048

    def raw(self, groups: Sequence[Group]) -> Iterator[tuple[list[int], Tensor]]:
        """Scores before normalisation, of as many groups at a time as the budget allows: the groups' numbers, and the scores [n] of all
        of their answers in order. Inside, the caller may call `backward`.

        The score is read where the review turn has been asked and its answer would begin.
        """
        vlm = self.role.vlm
        conversations: list[tuple[list[Message], tuple[ImageSource, ...]]] = []
        answers: list[list[Tensor]] = []
        for group in groups:
            text = self.rendered(group.prompt, group.facts)
            *asked, _, _ = review_messages(group.prompt, "", text, self.facts_position)
            conversations.append((asked, group.images))
            reviews = [review_messages(group.prompt, answer, text, self.facts_position)[-1] for answer in group.answers]
            found = zip(group.answers, reviews, strict=True)
            answers.append(
                [vlm.answer_ids(asked, answer, len(group.images), then=[review], name=group.id) for answer, review in found]
            )
        names = [group.id for group in groups]
        prompts = vlm.prompts(conversations, self.max_length, names if all(names) else None)
        for name, prompt, mine in zip(names, prompts, answers, strict=True):
            if mine and len(prompt.ids) + max(map(len, mine)) > self.max_length:
                raise InputError(
                    f"an answer of row {name} has {max(map(len, mine))} tokens with its review, its prompt {len(prompt.ids)}: "
                    f"more than max_length {self.max_length} together; raise max_length or drop the row"
                )
        head = self.role.head
        assert head is not None
        for numbers, last_ND in at_ends(self.role, prompts, answers):
            yield numbers, head(last_ND.float())[:, 0]

    def rendered(self, prompt: Sequence[Message], facts: Sequence[Fact]) -> str:
        """The facts as this model reads them. One order for all answers of a prompt, decided by the prompt itself: scores repeat."""
        if self.facts == "none":
            return ""
        seed = zlib.crc32(repr((prompt, facts)).encode())
        return render(facts, seed, self.facts_template, self.facts_budget, self.role.vlm.count_tokens)

    @torch.no_grad()
    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """Normalised scores of each group's answers."""

        def work(some: Sequence[Group]) -> list[list[float]]:
            found: dict[int, list[float]] = {}
            for numbers, raw in self.raw(some):
                scores = iter(((raw - self.mean) / self.std).tolist())
                found |= {i: [next(scores) for _ in some[i].answers] for i in numbers}
            return [found[i] for i in range(len(some))]

        parts = (groups[start : start + GROUPS] for start in range(0, len(groups), GROUPS))
        return [scores for part in parts for scores in self.role.vlm.budget.within(work, part)]


def fact_rm(models: Sequence[RewardModel], uncertainty_penalty: float = 0.0) -> Term:
    """The reward model as a term; of several models the mean, less `uncertainty_penalty` times their standard deviation (Coste et al. 2024).

    Answers to one prompt that stand side by side share its run.
    """

    def term(samples: Sequence[Sample]) -> list[float]:
        asked = [list(same) for _, same in itertools.groupby(samples, lambda s: (s.id, s.prompt, s.images, s.facts))]

        def scores(model: RewardModel) -> list[float]:
            write = model.role.vlm.harmless  # a policy may spell what stands for a picture; each base has its own words for that
            groups = [Group(g[0].images, g[0].prompt, tuple(write(s.answer) for s in g), g[0].facts, g[0].id) for g in asked]
            return [score for group in model.score(groups) for score in group]

        scores_MN = torch.tensor([scores(model) for model in models])
        spread_N = scores_MN.std(0, correction=0)
        return [float(v) for v in scores_MN.mean(0) - uncertainty_penalty * spread_N]

    return term


def pad_right(rows: Sequence[Tensor], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows of different lengths -> ids [N, T] and mask [N, T]."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill).to(device), mask.to(device)
