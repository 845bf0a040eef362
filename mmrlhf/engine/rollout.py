"""Sample answers to prompts: in training (`RolloutEngine`) and elsewhere (`generate_batches`)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mmrlhf.engine import shared_prefix
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.prefill import prompt_lengths
from mmrlhf.engine.sampling import SampleOutput, SamplingParams, sample
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import Example, InputError, number_repeated

# ---- the engine of a trainer -------------------------------------------------------------------


class RolloutEngine(Protocol):
    """Samples answers for a trainer, in its process or elsewhere.

    A training step calls `wake` and `set_policy`, and then `wake`, `sample`, `free`, perhaps
    several times; `close` ends the run. `policy_version` is the version of the last `set_policy`,
    -1 before it. An engine that is not the trainer's own (vLLM):

    - receives the policy as a PEFT adapter directory. It must load each version under a new name
      before it samples from it: an engine that already knows a name silently keeps serving the old
      weights.
    - takes `Prompt.token_ids` unchanged, and either `Prompt.image_features` or `Prompt.images`.
      Image features are cached under `Encoder.feature_key`, which identifies content and tower,
      never under a file or row name.
    - samples from the distribution that `VLM.token_logps` describes: temperature applied,
      `VLM.suppressed_tokens` at probability 0. It reports log-probs of that distribution.

    Log-probs of another engine's kernels differ from the trainer's by rounding. A trainer
    recomputes them before it takes ratios (`scoring.in_micro_batches(scoring.logps, ...)`).
    """

    policy_version: int

    def set_policy(self, version: int, adapter: Path | None = None) -> None:
        """Sample from version `version` of the policy from now on.

        `adapter` is the directory of its LoRA adapter in PEFT's format. None means that the engine
        already has the weights, or that the policy is the base model.
        """
        ...

    def sample(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> SampledCompletions:
        """Sample `n` answers per prompt: `n * len(prompts)` rows in prompt order.

        `token_ids_NT` includes the end-of-sequence token of a finished answer. `entropy_NT` is
        minus the log-prob where the engine does not report it. The same prompts, `params` (with its
        seed) and policy version give the same answers if the engine's kernels are deterministic.
        Prompts with equal ids get independent samples.
        """
        ...

    def free(self) -> None:
        """Release the memory that only sampling needs (KV cache, weights), until `wake`."""
        ...

    def wake(self) -> None:
        """Reserve that memory again, if it was released. Also called before the first rollout."""
        ...

    def close(self) -> None:
        """Shut down. The engine is not used again."""
        ...


class LocalEngine:
    """Sample in the trainer's process, from the trainer's own weights."""

    def __init__(self, policy: Role):
        self.policy = policy
        self.policy_version = -1

    def set_policy(self, version: int, adapter: Path | None = None) -> None:
        """Record the version; the weights are shared. Raises ValueError if given an adapter."""
        if adapter is not None:
            raise ValueError(f"LocalEngine shares its weights with the trainer and loads no adapter, but got {adapter}")
        self.policy_version = version

    def sample(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> SampledCompletions:
        """Sample `n` answers per prompt under the policy's adapter."""
        with self.policy.active():
            return sample_completions(self.policy.vlm, prompts, n, params)

    def free(self) -> None:
        """Do nothing: `sample` leaves nothing in memory."""

    def wake(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


# ---- sampling ----------------------------------------------------------------------------------


def numbered_ids(ids: Sequence[str]) -> list[str]:
    """Return unique ids for sampling noise: a second `a` becomes `a#1`."""
    return number_repeated(ids, "#", first=1)


def sampling_noise(prompt_ids: Sequence[str], num_generations: int, max_tokens: int, seed: int) -> Tensor:
    """Return uniform noise [N, max_tokens] in float64, one row per answer in prompt order.

    A row depends only on the seed, the prompt's id and the answer's number, not on the batch or on
    earlier samples, so a resumed run needs no generator state. A repeated id gets new noise at
    every occurrence in `prompt_ids`.
    """
    noise_keys = numbered_ids(prompt_ids)
    # Philox is counter-based: its 128-bit key selects a stream, here (id and answer number, seed).
    noise = [
        np.random.Generator(np.random.Philox(key=[zlib.crc32(key.encode()) + (g << 32), seed])).random(max_tokens)
        for key in noise_keys
        for g in range(num_generations)
    ]
    return torch.from_numpy(np.stack(noise))


def _noise_for(vlm: VLM, prompts: Sequence[Prompt], num_generations: int, params: SamplingParams) -> Tensor | None:
    """Return the noise of these prompts on the model's device, or None for greedy decoding."""
    if params.temperature == 0:
        return None
    return sampling_noise([p.id for p in prompts], num_generations, params.max_tokens, params.seed).to(vlm.device)


def check_answer_lengths(min_new_tokens: int, response_length: int, max_length: int | None = None) -> None:
    """Raise InputError if no answer could end, or if answers would leave no room for a prompt."""
    if min_new_tokens > response_length:
        raise InputError(
            f"min_new_tokens {min_new_tokens} is more than response_length {response_length}, so no answer could end: lower it or "
            "raise response_length"
        )
    if max_length is not None and response_length >= max_length:
        raise InputError(
            f"response_length {response_length} leaves no room for a prompt within max_length {max_length}: raise max_length or "
            "lower response_length"
        )


def prompts_from_examples(
    vlm: VLM, examples: Sequence[Example], max_length: int | None = None, ids: Sequence[str] | None = None
) -> list[Prompt]:
    """Build the prompts of examples. `ids`, by default the rows' own, determine the sampling noise.

    Raises as `VLM.build_prompts` does.
    """
    prompts = vlm.build_prompts([(e.prompt, e.images) for e in examples], max_length, [e.id for e in examples])
    return prompts if ids is None else [replace(prompt, id=prompt_id) for prompt, prompt_id in zip(prompts, ids, strict=True)]


def sample_completions(vlm: VLM, prompts: Sequence[Prompt], num_generations: int, params: SamplingParams) -> SampledCompletions:
    """Sample `num_generations` answers per prompt under the active adapter.

    Repeated prompts get independent samples. The token budget (`vlm.budget`) sets the batch size
    and does not change the answers.
    """
    noise = _noise_for(vlm, prompts, num_generations, params)

    def sample_micro_batches() -> tuple[list[int], list[SampleOutput]]:
        answer_lengths = [[params.max_tokens] * num_generations for _ in prompts]
        answer_indices, outputs = [], []
        for micro_batch in vlm.budget.micro_batches(prompt_lengths(prompts), answer_lengths):
            for indices in micro_batch.answer_batches:
                outputs.append(
                    sample(
                        vlm,
                        [prompts[p] for p in micro_batch.prompt_indices],
                        [micro_batch.prompt_indices.index(i // num_generations) for i in indices],
                        params,
                        None if noise is None else noise[indices],
                    )
                )
                answer_indices += indices
        return answer_indices, outputs

    answer_indices, outputs = vlm.budget.retry_on_oom(sample_micro_batches)
    width = max(output.token_ids_NT.shape[1] for output in outputs)
    order = torch.tensor(answer_indices, device=vlm.device).argsort()  # micro-batches sort prompts by length

    def pad_and_concat(tensors: list[Tensor], pad_value: float = 0) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=pad_value) for t in tensors])[order]

    token_ids_NT = pad_and_concat([output.token_ids_NT for output in outputs], int(vlm.tokenizer.pad_token_id))
    mask_NT = pad_and_concat([output.mask_NT for output in outputs])
    return SampledCompletions(
        prompts=list(prompts),
        prompt_index_N=torch.arange(len(prompts), device=vlm.device).repeat_interleave(num_generations),
        token_ids_NT=token_ids_NT,
        mask_NT=mask_NT,
        logps_NT=pad_and_concat([output.logps_NT for output in outputs]),
        entropy_NT=pad_and_concat([output.entropy_NT for output in outputs]),
        finished_N=torch.cat([output.finished_N for output in outputs])[order],
        texts=decode_texts(vlm, token_ids_NT, mask_NT, params.stop),
        sampling_params=params,
    )


def decode_texts(vlm: VLM, token_ids_NT: Tensor, mask_NT: Tensor, stop: tuple[str, ...]) -> list[str]:
    """Decode each row and cut it before its first stop string."""
    texts = [vlm.decode(token_ids[mask.bool()]) for token_ids, mask in zip(token_ids_NT, mask_NT, strict=True)]
    return [text[: min((text.find(s) for s in stop if s in text), default=len(text))].strip() for text in texts]


# ---- many prompts ------------------------------------------------------------------------------


def generate_batches(
    vlm: VLM,
    examples: Sequence[Example],
    params: SamplingParams,
    *,
    batch_size: int,
    num_generations: int = 1,
    max_length: int | None = None,
    num_done: int = 0,
) -> Iterator[tuple[Example, list[str]]]:
    """Yield each example with its answers, in order, sampling `batch_size` prompts at a time.

    The first `num_done` are left out; the answers to the others depend neither on it nor on
    `batch_size`. Repeated ids get different answers. With one answer per prompt, prompts about the
    same images share the prefill of their common prefix, where the model allows it
    (`shared_prefix`).
    """
    ids = numbered_ids([example.id for example in examples])
    for start in range(num_done, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = prompts_from_examples(vlm, batch, max_length, ids[start : start + batch_size])
        texts = _sample_with_shared_prefix(vlm, prompts, params) if num_generations == 1 else None
        if texts is None:
            texts = sample_completions(vlm, prompts, num_generations, params).texts
        for i, example in enumerate(batch):
            yield example, texts[i * num_generations : (i + 1) * num_generations]


def _sample_with_shared_prefix(vlm: VLM, prompts: Sequence[Prompt], params: SamplingParams) -> list[str] | None:
    """Sample one answer per prompt with shared prefixes.

    Returns None if no prompts have a prefix worth sharing, or if the model does not support it.
    """
    groups = shared_prefix.group_by_prefix(vlm, prompts, params)
    first_shared_group = next((group for group in groups if len(group) > 1), None)
    if first_shared_group is None or not shared_prefix.is_supported(vlm, [prompts[i] for i in first_shared_group]):
        return None
    noise = _noise_for(vlm, prompts, 1, params)
    texts = [""] * len(prompts)

    def sample_micro_batches() -> None:
        # For the budget, a group is one prompt (its longest) with an answer per member.
        group_lengths = [max(len(prompts[i].token_ids) for i in group) for group in groups]
        answer_lengths = [[params.max_tokens] * len(group) for group in groups]
        for micro_batch in vlm.budget.micro_batches(group_lengths, answer_lengths):
            batch_groups = [groups[g] for g in micro_batch.prompt_indices]
            indices = [i for group in batch_groups for i in group]
            output = shared_prefix.sample(
                vlm,
                [[prompts[i] for i in group] for group in batch_groups],
                params,
                None if noise is None else noise[indices],
            )
            batch_texts = decode_texts(vlm, output.token_ids_NT, output.mask_NT, params.stop)
            for i, text in zip(indices, batch_texts, strict=True):
                texts[i] = text

    vlm.budget.retry_on_oom(sample_micro_batches)
    return texts
