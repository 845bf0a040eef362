"""What an answer is worth: the reward model as an artefact, its prompt and its first head."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrlhf.config import EngineConfig, FactsPosition
from mmrlhf.facts import render
from mmrlhf.prefix import learning, prefill, tokens_of
from mmrlhf.records import Fact, ImageSource, InputError, Message
from mmrlhf.roles import Adapters, Role, scalar_head
from mmrlhf.run import write_whole
from mmrlhf.vlm import VLM
from mmrlhf.vlm import load as load_vlm

REVIEW = "Is all of this true of the picture?"
"""The turn after an answer at whose end the reward is read: a question that a vision-language model can already answer."""


def review_messages(prompt: Sequence[Message], answer: str, facts: str, position: FactsPosition) -> tuple[Message, ...]:
    """The conversation a reward model reads: prompt, answer, review; the facts before the question or in the review.

    `before` puts them at the head of the last user turn, so that all answers of a prompt share them; `after` puts them
    into the turn after the answer (LLaVA-RLHF).
    """
    *earlier, last = prompt
    if facts and position == "before":
        last = Message(last.role, f"{facts} {last.content}")
    review = f"{facts} {REVIEW}" if facts and position == "after" else REVIEW
    return (*earlier, last, Message("assistant", answer), Message("user", review))


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
    """A role with a scalar head that reads images, text and facts; scores are (raw - mean) / std of a reference set."""

    role: Role
    facts: Literal["given", "none"]
    facts_position: FactsPosition
    mean: float = 0.0
    std: float = 1.0
    accuracy: float | None = None
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
            text = ""
            if self.facts == "given":
                # One order for all answers of a prompt, decided by the prompt itself: scores repeat.
                text = render(group.facts, zlib.crc32(repr((group.prompt, group.facts)).encode()))
            *asked, _, _ = review_messages(group.prompt, "", text, self.facts_position)
            conversations.append((asked, group.images))
            reviews = [review_messages(group.prompt, answer, text, self.facts_position)[-1] for answer in group.answers]
            found = zip(group.answers, reviews, strict=True)
            answers.append([vlm.answer_ids(asked, answer, len(group.images), then=[review]) for answer, review in found])
        names = [group.id for group in groups]
        prompts = vlm.prompts(conversations, self.max_length, names if all(names) else None)
        for name, prompt, mine in zip(names, prompts, answers, strict=True):
            if mine and len(prompt.ids) + max(map(len, mine)) > self.max_length:
                raise InputError(
                    f"an answer of row {name} has {max(map(len, mine))} tokens with its review, its prompt {len(prompt.ids)}: "
                    f"more than max_length {self.max_length} together; raise max_length or drop the row"
                )
        lengths = [[len(ids) for ids in mine] for mine in answers]
        head = self.role.head
        assert head is not None
        with self.role.active():
            for piece in vlm.budget.plan(tokens_of(prompts), lengths):
                with learning(prefill(vlm, [prompts[p] for p in piece.prompts])) as prefix:
                    flat = [(i, ids) for i, p in enumerate(piece.prompts) for ids in answers[p]]
                    rows = torch.tensor([i for i, _ in flat], device=vlm.device)
                    ids_NT, mask_NT = pad_right([ids for _, ids in flat], int(vlm.tokenizer.pad_token_id), vlm.device)
                    hidden = prefix.extend(rows, ids_NT, mask_NT)
                    last = hidden[torch.arange(len(flat), device=vlm.device), mask_NT.sum(1)]
                    yield piece.prompts, head(last.float())[:, 0]

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

    def save(self, directory: Path) -> None:
        """Adapter in PEFT's format, head, and what is needed to read scores rightly."""
        assert self.role.adapter and self.role.head
        self.role.adapters.save(self.role.adapter, directory)
        save_file({k: v.contiguous() for k, v in self.role.head.state_dict().items()}, directory / "head.safetensors")
        card = {
            "base": str(Path(self.role.vlm.name).resolve()) if Path(self.role.vlm.name).is_dir() else self.role.vlm.name,
            "base_fingerprint": self.role.vlm.fingerprint,
            "facts": self.facts,
            "facts_position": self.facts_position,
            "review": REVIEW,
            "mean": self.mean,
            "std": self.std,
            "accuracy": self.accuracy,
            "dtype": self.role.vlm.dtype,
        }
        write_whole(directory / "reward.json", json.dumps(card, indent=1))


def load_reward_model(
    path: str,
    adapters: Adapters | None = None,
    max_length: int = 2048,
    device: torch.device | str | None = None,
    engine: EngineConfig | None = None,
) -> RewardModel:
    """A saved reward model: on `adapters`' base where it belongs to that base, else on its own, loaded from where it was.

    Raises InputError when the directory is no reward model, its base is gone or has changed.
    """
    directory = Path(path)
    if not (directory / "reward.json").is_file():
        raise InputError(f"reward model {path} does not exist: give the output_dir of a finished `mmrlhf reward` run")
    try:
        card = json.loads((directory / "reward.json").read_text())
        if card["review"] != REVIEW:
            raise InputError(f"reward model {path} was trained with another review turn: train it again with this version")
        if adapters is None or adapters.vlm.fingerprint != card["base_fingerprint"]:
            try:
                adapters = Adapters(load_vlm(card["base"], card["dtype"], device, engine))
            except InputError as error:
                raise InputError(f"reward model {path} needs the base it was trained on, and that {error}") from None
            if adapters.vlm.fingerprint != card["base_fingerprint"]:
                raise InputError(
                    f"reward model {path} was trained on another base than {card['base']} now holds: restore that base"
                )
        adapters.load("reward", directory, trainable=False)
        head = scalar_head(torch.zeros(adapters.vlm.hidden_size, device=adapters.vlm.device))
        head.load_state_dict(load_file(directory / "head.safetensors"))
        head.requires_grad_(False)
        role = Role(adapters, "reward", head)
        return RewardModel(role, card["facts"], card["facts_position"], card["mean"], card["std"], card["accuracy"], max_length)
    except (InputError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"reward model {path} cannot be loaded ({reason}): copy it again, or train it again") from None


def pad_right(rows: Sequence[Tensor], fill: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token rows of different lengths -> ids [N, T] and mask [N, T]."""
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], batch_first=True)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill).to(device), mask.to(device)
