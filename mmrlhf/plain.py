"""The plain path: every answer with its whole prompt and its pixels through the model, nothing shared, nothing kept.

What the fast path is compared with at the start of a run, and what runs where the two differ or `prefix: off` asks for it. The model
computes its own positions and masks; sampling is transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from mmrlhf.images import open_image

if TYPE_CHECKING:
    from mmrlhf.vlm import VLM, Prompt


def inputs(vlm: VLM, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """The processor's batch of prompts, pixels and all."""
    batch, _ = vlm.encoder.process([p.text for p in prompts], [[open_image(i) for i in p.images] for p in prompts])
    found = {k: v.to(vlm.device) for k, v in batch.items() if torch.is_tensor(v) and k != "labels"}
    if "pixel_values" in found:
        found["pixel_values"] = found["pixel_values"].to(vlm.encoder.dtype)
    return found


def _alike(prompts: Sequence[Prompt], rows: Sequence[int]) -> list[list[int]]:
    """The numbers of answers whose prompts have as many pictures: a processor may refuse a mixture, and Mllama's tokens in front of a
    picture look at every other row's blanks."""
    counts = [len(prompts[r].images) for r in rows]
    return [[i for i, c in enumerate(counts) if c == count] for count in sorted(set(counts))]


def hidden(vlm: VLM, prompts: Sequence[Prompt], rows: Sequence[int], ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    """Hidden states [N, T + 1, D] as `prefix.Prefix.extend` has them, of answers to `prompts[rows]`."""
    groups = _alike(prompts, rows)
    found = [_hidden(vlm, [prompts[rows[i]] for i in at], ids_NT[at], mask_NT[at]) for at in groups]
    order = torch.tensor([i for at in groups for i in at], device=vlm.device).argsort()
    return torch.cat(found)[order]


def _hidden(vlm: VLM, prompts: Sequence[Prompt], ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    batch = inputs(vlm, prompts)
    length, width = batch["input_ids"].shape[1], ids_NT.shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], ids_NT], 1)
    batch["attention_mask"] = torch.cat([batch["attention_mask"], mask_NT], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in batch:  # PaliGemma marks what is not its prompt
            kind = int(vlm.model.config.model_type == "paligemma")
            batch[name] = torch.cat([batch[name], torch.full_like(ids_NT, kind)], 1)
    if "cross_attention_mask" in batch:
        seen = batch["cross_attention_mask"]
        batch["cross_attention_mask"] = torch.cat([seen, seen[:, -1:].expand(-1, width, -1, -1)], 1)
    return vlm.model.base_model(**batch, use_cache=False).last_hidden_state[:, length - 1 :]


Pick = Callable[[Tensor, Tensor, int], Tensor]
"""(logits [n, V] of the answers with these numbers, the numbers [n], t) -> token t of each [n]"""


class Choose(LogitsProcessor):
    """Leaves only the token that `choose` picks, so that `generate` is told what to say."""

    def __init__(self, start: int, at: Tensor, choose: Pick):
        self.start, self.at, self.choose = start, at, choose

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token_N = self.choose(scores.float(), self.at, input_ids.shape[1] - self.start)
        return torch.full_like(scores, float("-inf")).scatter(1, token_N[:, None], 0.0)


def generate(vlm: VLM, prompts: Sequence[Prompt], rows: Sequence[int], max_tokens: int, choose: Pick) -> None:
    """Let `choose` say answers to `prompts[rows]` token by token, each to its end-of-sequence token."""
    for numbers in _alike(prompts, rows):
        batch = inputs(vlm, [prompts[rows[i]] for i in numbers])
        config = GenerationConfig(  # a checkpoint's own may hold penalties and temperatures
            max_new_tokens=max_tokens, do_sample=False, repetition_penalty=1.0, eos_token_id=list(vlm.eos),
            pad_token_id=int(vlm.tokenizer.pad_token_id),
        )  # fmt: skip
        told = Choose(batch["input_ids"].shape[1], torch.tensor(numbers, device=vlm.device), choose)
        vlm.model.generate(**batch, generation_config=config, logits_processor=LogitsProcessorList([told]))
