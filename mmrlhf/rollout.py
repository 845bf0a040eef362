"""Answers to prompts: sampled once, by the same code for ppo, generate and evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmrlhf.prefix import sample
from mmrlhf.records import Example
from mmrlhf.vlm import VLM, Prompt


@dataclass(frozen=True)
class Answers:
    """G answers to each of P prompts, N = P x G rows in prompt order. `ids_NT` right-padded, `mask_NT` 1 on real tokens;
    `ended_N` whether an answer reached its end-of-sequence token; `texts` decoded."""

    prompts: list[Prompt]
    rows_N: Tensor
    ids_NT: Tensor
    mask_NT: Tensor
    ended_N: Tensor
    texts: list[str]


def uniform_draws(ids: Sequence[str], num_generations: int, tokens: int, seed: int, step: int = 0) -> Tensor:
    """Uniform draws [N, tokens] that follow from seed, step, the row's id and the answer's number alone: neither the batch
    nor what was sampled before matters, so that a run that resumes needs no generator's state."""
    draws = [
        np.random.Generator(np.random.Philox(key=[zlib.crc32(i.encode()) + (g << 32), seed + (step << 32)])).random(tokens)
        for i in ids
        for g in range(num_generations)
    ]
    return torch.from_numpy(np.stack(draws))


def answer(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    num_generations: int = 1,
    response_length: int,
    temperature: float,
    seed: int = 0,
    step: int = 0,
    max_length: int | None = None,
) -> Answers:
    """Answers of the current role to `examples`; temperature 0 is greedy."""
    prompts = vlm.prompts([(e.prompt, e.images) for e in examples], max_length, [e.id for e in examples])
    rows = [p for p in range(len(prompts)) for _ in range(num_generations)]
    draws = None
    if temperature > 0:
        draws = uniform_draws([e.id for e in examples], num_generations, response_length, seed, step).to(vlm.device)
    ids, mask = sample(vlm, prompts, rows, response_length, temperature, draws)
    last = ids.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0))[:, 0]
    ended = torch.isin(last, torch.tensor(vlm.eos, device=vlm.device))
    texts = [vlm.decode(i[m.bool()]) for i, m in zip(ids, mask, strict=True)]
    return Answers(prompts, torch.tensor(rows, device=vlm.device), ids, mask, ended, texts)


def answer_all(vlm: VLM, examples: Sequence[Example], *, batch_size: int, **how: float) -> Iterator[tuple[Example, list[str]]]:
    """Each example with its answers, a batch of prompts at a time."""
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        texts = answer(vlm, part, **how).texts  # type: ignore[arg-type]
        each = len(texts) // len(part)
        for i, example in enumerate(part):
            yield example, texts[i * each : (i + 1) * each]
