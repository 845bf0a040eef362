"""Requests to vLLM, and its answers as completions; in this process or over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmrlhf.engine.completions import SampledCompletions, pad_right
from mmrlhf.engine.rollout import decode_texts, numbered_ids
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import InputError

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM supports (--max-lora-rank)."""
BANNED_BIAS = -100.0
"""Added to the logit of a suppressed token: the minimum that the protocol allows. For most logits
it leaves a probability below 1e-30."""


class EngineError(InputError):
    """The engine failed or broke its protocol; the step has changed nothing."""


@dataclass(frozen=True)
class EngineAnswer:
    """An answer as vLLM returns it, the end-of-sequence token included."""

    token_ids: list[int]
    logps: list[float]
    is_finished: bool


def sampling_params(vlm: VLM, params: SamplingParams, n: int) -> dict[str, Any]:
    """Return vLLM's `SamplingParams` for the distribution that `VLM.token_logps` describes.

    Each prompt adds its seed (`prompt_seeds`). Raises InputError for settings that change this
    distribution.
    """
    if params.top_p < 1 or params.top_k or params.stop:
        raise InputError(
            "rollout_engine: an engine that is not the trainer's samples from all tokens, and ends answers at the "
            "end-of-turn token: leave top_p, top_k and stop out"
        )
    return {
        "n": n,
        "temperature": params.temperature,
        "top_p": 1.0,
        "top_k": 0,
        "max_tokens": params.max_tokens,
        "min_tokens": params.min_tokens,
        "logprobs": 0,  # the sampled token's
        "stop_token_ids": list(vlm.eos),
        "ignore_eos": True,  # the checkpoint may name other tokens
        "logit_bias": {str(token): BANNED_BIAS for token in vlm.suppressed_tokens.tolist()},
        "detokenize": False,
        "skip_special_tokens": False,
    }


def prompt_seeds(prompts: Sequence[Prompt], seed: int) -> list[int]:
    """Return a seed for each prompt, which depends on its id and `seed`; repeated ids get others.

    vLLM adds an answer's number to it, so they are spread over 56 bits.
    """
    digests = [hashlib.sha256(f"{seed} {key}".encode()).digest() for key in numbered_ids([p.id for p in prompts])]
    return [int.from_bytes(digest[:7]) for digest in digests]


def build_completions(
    vlm: VLM, prompts: Sequence[Prompt], answers: Sequence[Sequence[EngineAnswer]], params: SamplingParams
) -> SampledCompletions:
    """Return the answers to each prompt as tensors.

    The engine does not report entropies. The negative log-prob of a sampled token is an unbiased
    estimate of it, and is used instead.
    """
    flat = [answer for prompt_answers in answers for answer in prompt_answers]
    pad_token_id = int(vlm.tokenizer.pad_token_id)
    token_ids_NT, mask_NT = pad_right([torch.tensor(a.token_ids, dtype=torch.long) for a in flat], pad_token_id, vlm.device)
    logps_NT, _ = pad_right([torch.tensor(answer.logps) for answer in flat], 0, vlm.device)
    counts = torch.tensor([len(prompt_answers) for prompt_answers in answers], device=vlm.device)
    return SampledCompletions(
        prompts=list(prompts),
        prompt_index_N=torch.arange(len(prompts), device=vlm.device).repeat_interleave(counts),
        token_ids_NT=token_ids_NT,
        mask_NT=mask_NT,
        logps_NT=logps_NT,
        entropy_NT=-logps_NT,
        finished_N=torch.tensor([answer.is_finished for answer in flat], device=vlm.device),
        texts=decode_texts(vlm, token_ids_NT, mask_NT, params.stop),
        sampling_params=params,
    )
