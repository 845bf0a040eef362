"""What an answer is worth: the reward model as an artefact, its prompt and its first head."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mmrlhf.config import FactsPosition
from mmrlhf.facts import render
from mmrlhf.prefix import extend, prefill
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

    def raw(self, groups: Sequence[Group]) -> Tensor:
        """Scores [N] of all answers in order, before normalisation; with gradients where they are enabled.

        The score is read where the review turn has been asked and its answer would begin.
        """
        vlm = self.role.vlm
        conversations, answers, rows = [], [], []
        for i, group in enumerate(groups):
            text = ""
            if self.facts == "given":
                # One order for all answers of a prompt, decided by the prompt itself: scores repeat.
                text = render(group.facts, zlib.crc32(repr((group.prompt, group.facts)).encode()))
            *asked, _, _ = review_messages(group.prompt, "", text, self.facts_position)
            conversations.append((asked, group.images))
            for answer in group.answers:
                review = review_messages(group.prompt, answer, text, self.facts_position)[-1]
                answers.append(vlm.answer_ids(asked, answer, len(group.images), then=[review]))
                rows.append(i)
        names = [group.id for group in groups]
        prompts = vlm.prompts(conversations, self.max_length, names if all(names) else None)
        for row, answer_ids in zip(rows, answers, strict=True):
            if len(prompts[row].ids) + len(answer_ids) > self.max_length:
                raise InputError(
                    f"an answer of row {names[row]} has {len(answer_ids)} tokens with its review, its prompt {len(prompts[row].ids)}: "
                    f"more than max_length {self.max_length} together; raise max_length or drop the row"
                )
        ids_NT, mask_NT = pad_right(answers, int(vlm.tokenizer.pad_token_id), vlm.device)
        with self.role.active():
            prefix = prefill(vlm, prompts)
            hidden = extend(vlm, prefix, torch.tensor(rows, device=vlm.device), ids_NT, mask_NT)
            last = hidden[torch.arange(len(answers)), mask_NT.sum(1)]
            assert self.role.head is not None
            return self.role.head(last.float())[:, 0]

    @torch.no_grad()
    def score(self, groups: Sequence[Group], batch_size: int = 128) -> list[list[float]]:
        """Normalised scores of each group's answers; about `batch_size` answers run at a time."""
        found: list[list[float]] = []
        chunk: list[Group] = []
        for i, group in enumerate(groups):
            chunk.append(group)
            if sum(len(g.answers) for g in chunk) >= batch_size or i + 1 == len(groups):
                scores = ((self.raw(chunk) - self.mean) / self.std).tolist()
                for g in chunk:
                    found.append(scores[: len(g.answers)])
                    scores = scores[len(g.answers) :]
                chunk = []
        return found

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
            "dtype": str(self.role.vlm.model.dtype).removeprefix("torch."),
        }
        write_whole(directory / "reward.json", json.dumps(card, indent=1))


def load_reward_model(
    path: str, adapters: Adapters | None = None, max_length: int = 2048, device: torch.device | str | None = None
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
                adapters = Adapters(load_vlm(card["base"], card["dtype"], device))
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
