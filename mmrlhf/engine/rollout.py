"""Answers to prompts: sampled once, by the same code for ppo, generate and evaluation; and the one way in which stages go over them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mmrlhf.engine import shared_prefix
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.prefill import prompt_lengths
from mmrlhf.engine.sampling import SampleOutput, SamplingParams, sample
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import Example


def sampling_noise(example_ids: Sequence[str], num_generations: int, max_tokens: int, seed: int, step: int = 0) -> Tensor:
    """Uniform draws [N, tokens] that follow from seed, step, the row's id and the answer's number alone: neither the batch
    nor what was sampled before matters, so that a run that resumes needs no generator's state. A row that stands there twice has
    other draws the second time."""
    occurrences: Counter[str] = Counter()
    keys = []
    for key in example_ids:
        keys.append(f"{key}#{occurrences[key]}" if occurrences[key] else key)
        occurrences[key] += 1
    noise = [
        np.random.Generator(np.random.Philox(key=[zlib.crc32(key.encode()) + (g << 32), seed + (step << 32)])).random(max_tokens)
        for key in keys
        for g in range(num_generations)
    ]
    return torch.from_numpy(np.stack(noise))


def sample_completions(
    vlm: VLM,
    examples: Sequence[Example],
    sampling_params: SamplingParams,
    *,
    num_generations: int = 1,
    seed: int = 0,
    step: int = 0,
    max_length: int | None = None,
    prompts: list[Prompt] | None = None,
) -> SampledCompletions:
    """Answers of the current role to `examples`, of which one that stands there twice is answered twice; `prompts` are theirs where they
    have been made already."""
    if prompts is None:
        prompts = vlm.build_prompts([(e.prompt, e.images) for e in examples], max_length, [e.id for e in examples])
    noise = None
    if sampling_params.temperature > 0:
        noise = sampling_noise([e.id for e in examples], num_generations, sampling_params.max_tokens, seed, step).to(vlm.device)
    prompt_index_N = torch.arange(len(prompts), device=vlm.device).repeat_interleave(num_generations)

    def sample_micro_batches() -> tuple[list[int], list[SampleOutput]]:
        answer_lengths = [[sampling_params.max_tokens] * num_generations for _ in prompts]
        answer_indices, outputs = [], []
        for micro_batch in vlm.budget.micro_batches(prompt_lengths(prompts), answer_lengths):
            for indices in micro_batch.answer_batches:
                local_prompt_indices = [micro_batch.prompt_indices.index(i // num_generations) for i in indices]
                outputs.append(
                    sample(
                        vlm,
                        [prompts[p] for p in micro_batch.prompt_indices],
                        local_prompt_indices,
                        sampling_params,
                        None if noise is None else noise[indices],
                    )
                )
                answer_indices += indices
        return answer_indices, outputs

    answer_indices, outputs = vlm.budget.retry_on_oom(sample_micro_batches)
    width = max(s.token_ids_NT.shape[1] for s in outputs)
    order = torch.tensor(answer_indices, device=vlm.device).argsort()

    def pad_and_concat(tensors: list[Tensor], pad_value: float = 0) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=pad_value) for t in tensors])[order]

    token_ids_NT = pad_and_concat([s.token_ids_NT for s in outputs], int(vlm.tokenizer.pad_token_id))
    mask_NT = pad_and_concat([s.mask_NT for s in outputs])
    logps_NT, entropy_NT = pad_and_concat([s.logps_NT for s in outputs]), pad_and_concat([s.entropy_NT for s in outputs])
    texts = [_truncate_at_stop(vlm.decode(i[m.bool()]), sampling_params.stop) for i, m in zip(token_ids_NT, mask_NT, strict=True)]
    return SampledCompletions(
        prompts,
        prompt_index_N,
        token_ids_NT,
        mask_NT,
        logps_NT,
        entropy_NT,
        torch.cat([s.finished_N for s in outputs])[order],
        texts,
        sampling_params,
    )


def _truncate_at_stop(text: str, stop: tuple[str, ...]) -> str:
    return text[: min([text.find(s) for s in stop if s in text], default=len(text))].strip()


def generate_batches(
    vlm: VLM, examples: Sequence[Example], sampling_params: SamplingParams, *, batch_size: int, num_generations: int = 1, seed: int = 0,
    max_length: int | None = None,
) -> Iterator[tuple[Example, list[str]]]:  # fmt: skip
    """Each example with its answers, a batch of prompts at a time; questions about one picture share it."""
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = vlm.build_prompts([(e.prompt, e.images) for e in batch], max_length, [e.id for e in batch])
        texts = _sample_with_shared_prefix(vlm, batch, prompts, sampling_params, seed) if num_generations == 1 else None
        if texts is None:
            texts = sample_completions(
                vlm, batch, sampling_params, num_generations=num_generations, seed=seed, prompts=prompts
            ).texts
        for i, example in enumerate(batch):
            yield example, texts[i * num_generations : (i + 1) * num_generations]


def _sample_with_shared_prefix(
    vlm: VLM, examples: Sequence[Example], prompts: list[Prompt], sampling_params: SamplingParams, seed: int
) -> list[str] | None:
    """An answer to each example, what prompts have in common run once; None where nothing is shared or this model does not allow it."""
    groups = shared_prefix.group_by_prefix(vlm, prompts, sampling_params)
    first_shared_group = next((g for g in groups if len(g) > 1), None)
    if first_shared_group is None or not shared_prefix.is_supported(vlm, [prompts[i] for i in first_shared_group]):
        return None
    noise = (
        sampling_noise([e.id for e in examples], 1, sampling_params.max_tokens, seed).to(vlm.device)
        if sampling_params.temperature > 0
        else None
    )
    texts = [""] * len(prompts)

    def sample_micro_batches() -> None:
        group_lengths = [max(len(prompts[i].token_ids) for i in g) for g in groups]
        for micro_batch in vlm.budget.micro_batches(group_lengths, [[sampling_params.max_tokens] * len(g) for g in groups]):
            batch_groups = [groups[g] for g in micro_batch.prompt_indices]
            indices = [i for g in batch_groups for i in g]
            output = shared_prefix.sample(
                vlm, [[prompts[i] for i in g] for g in batch_groups], sampling_params, None if noise is None else noise[indices]
            )
            for i, token_ids, mask in zip(indices, output.token_ids_NT, output.mask_NT, strict=True):
                texts[i] = _truncate_at_stop(vlm.decode(token_ids[mask.bool()]), sampling_params.stop)

    vlm.budget.retry_on_oom(sample_micro_batches)
    return texts
