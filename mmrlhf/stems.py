"""Several questions about one picture: what their prompts have in common, picture included, is run once, and each question on top of it.

A benchmark asks six questions about a picture of 576 tokens, and a question has twenty. What follows the common beginning (the stem) is treated as
the first tokens of an answer that were not chosen. Compared with whole prompts on the first group of a run; a model where they differ (PaliGemma
looks both ways within its prompt) has every prompt run whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmrlhf import prefix
from mmrlhf.prefix import PACKED, TOLERANCE, Prefix
from mmrlhf.sampling import Answering, Sampled, Sampling, Tails, decode_packed
from mmrlhf.vlm import VLM, Prompt


def groups(vlm: VLM, prompts: Sequence[Prompt], how: Sampling) -> list[list[int]]:
    """Numbers of prompts on the same pictures that begin alike, as many together as pay; a prompt alone where nothing is shared."""
    alike: dict[tuple[str, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        alike.setdefault(tuple(i.key for i in prompt.images) or (f"none {number}",), []).append(number)
    found = []
    for members in alike.values():
        each = _together(vlm, [prompts[i] for i in members], how) if len(members) > 1 else 1
        found += [members[i : i + each] for i in range(0, len(members), each)]
    return found


def _together(vlm: VLM, prompts: Sequence[Prompt], how: Sampling) -> int:
    stem = _common(prompts)
    token = getattr(vlm.processor, "image_token", None)
    placeholder = vlm.tokenizer.convert_tokens_to_ids(token) if token else None
    if stem == 0 or any((p.ids[stem:] == placeholder).any() for p in prompts if placeholder is not None):
        return 1
    longest = max(len(p.ids) for p in prompts) - stem + how.max_tokens
    return max(1, PACKED * stem // longest)


def _common(prompts: Sequence[Prompt]) -> int:
    """Tokens with which all of them begin, one less than the shortest has at most."""
    shortest = min(len(p.ids) for p in prompts) - 1
    same = torch.stack([p.ids[:shortest] for p in prompts]) == prompts[0].ids[:shortest]
    return int(same.all(0).long().cumprod(0).sum())


def allowed(vlm: VLM, prompts: Sequence[Prompt]) -> bool:
    """Whether stems may be run once with this model; decided on the first group that there is."""
    if not (prefix.trusted(vlm, prompts) and vlm.packs) or vlm.stems == "off":
        return False
    if vlm.stems == "auto":
        gap = difference(vlm, prompts[:2])
        vlm.stems = "on" if gap <= TOLERANCE[vlm.model.dtype] else "off"
        if vlm.stems == "off":
            print(f"note: {vlm.name} runs every question with its picture (log-probs differ by {gap:.2g} nats on a shared one)")
    return vlm.stems == "on"


@torch.no_grad()
def difference(vlm: VLM, prompts: Sequence[Prompt]) -> float:
    """The most by which log-probs of the first token of answers differ between a shared stem and whole prompts, in nats."""
    stem, tails = _stem(vlm, [list(prompts)])
    rows = torch.zeros(len(prompts), dtype=torch.long, device=vlm.device)
    columns = stem.extend(rows, *tails)
    shared = columns[torch.arange(len(prompts), device=vlm.device), tails.mask_NT.sum(1)]
    one, other = vlm.log_softmax(shared), vlm.log_softmax(prefix._prefill(vlm, prompts).last_PD)
    told = torch.isfinite(other)
    return float((one - other)[told].abs().max())


def _stem(vlm: VLM, members: Sequence[Sequence[Prompt]]) -> tuple[Prefix, Tails]:
    """The stem of each group after its forward, and what follows in each prompt."""
    stems, after = [], []
    for group in members:
        length, first = _common(group), group[0]
        stems.append(
            Prompt(first.ids[:length], {k: v[:length] for k, v in first.extras.items()}, first.pictures, first.text, first.images)
        )
        after += [p.ids[length:] for p in group]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(after, batch_first=True, padding_value=int(vlm.tokenizer.pad_token_id)).to(vlm.device)
    mask = pad([torch.ones_like(a) for a in after], batch_first=True).to(vlm.device)
    return prefix._prefill(vlm, stems), Tails(ids, mask)


@torch.no_grad()
def sample(vlm: VLM, members: Sequence[Sequence[Prompt]], how: Sampling, draws_NT: Tensor | None = None) -> Sampled:
    """An answer to each prompt of groups that begin alike, in their order; `draws_NT` as in `sampling.sample`."""
    stem, tails = _stem(vlm, members)
    rows = torch.tensor([g for g, group in enumerate(members) for _ in group], device=vlm.device)
    state = Answering(vlm, len(rows), how, draws_NT)
    decode_packed(stem, rows, rows, state, tails)
    return state.result()
