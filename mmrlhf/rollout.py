"""Answers to prompts: sampled once, by the same code for ppo, generate and evaluation; and the one way in which stages go over them."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mmrlhf import stems
from mmrlhf.prefix import learning, prefill, tokens_of
from mmrlhf.records import Example
from mmrlhf.roles import Role
from mmrlhf.sampling import Sampled, Sampling, sample
from mmrlhf.vlm import VLM, Prompt


@dataclass(frozen=True)
class Given:
    """Answers to P prompts, N rows in prompt order: `rows_N` the prompt of each, `ids_NT` right-padded, `mask_NT` 1 on real tokens."""

    prompts: list[Prompt]
    rows_N: Tensor
    ids_NT: Tensor
    mask_NT: Tensor


@dataclass(frozen=True)
class Answers(Given):
    """G sampled answers to each prompt. `logps_NT` and `entropy_NT` as they were drawn; `ended_N` whether an answer came to its end;
    `texts` decoded; `how` they were drawn."""

    logps_NT: Tensor
    entropy_NT: Tensor
    ended_N: Tensor
    texts: list[str]
    how: Sampling


def uniform_draws(ids: Sequence[str], num_generations: int, tokens: int, seed: int, step: int = 0) -> Tensor:
    """Uniform draws [N, tokens] that follow from seed, step, the row's id and the answer's number alone: neither the batch
    nor what was sampled before matters, so that a run that resumes needs no generator's state. A row that stands there twice has
    other draws the second time."""
    seen: Counter[str] = Counter()
    names = []
    for i in ids:
        names.append(f"{i}#{seen[i]}" if seen[i] else i)
        seen[i] += 1
    draws = [
        np.random.Generator(np.random.Philox(key=[zlib.crc32(i.encode()) + (g << 32), seed + (step << 32)])).random(tokens)
        for i in names
        for g in range(num_generations)
    ]
    return torch.from_numpy(np.stack(draws))


def answer(
    vlm: VLM,
    examples: Sequence[Example],
    how: Sampling,
    *,
    num_generations: int = 1,
    seed: int = 0,
    step: int = 0,
    max_length: int | None = None,
    prompts: list[Prompt] | None = None,
) -> Answers:
    """Answers of the current role to `examples`, of which one that stands there twice is answered twice; `prompts` are theirs where they
    have been made already."""
    if prompts is None:
        prompts = vlm.prompts([(e.prompt, e.images) for e in examples], max_length, [e.id for e in examples])
    draws = None
    if how.temperature > 0:
        draws = uniform_draws([e.id for e in examples], num_generations, how.max_tokens, seed, step).to(vlm.device)
    rows = torch.arange(len(prompts), device=vlm.device).repeat_interleave(num_generations)

    def pieces() -> tuple[list[int], list[Sampled]]:
        lengths = [[how.max_tokens] * num_generations for _ in prompts]
        numbers, found = [], []
        for piece in vlm.budget.plan(tokens_of(prompts), lengths):
            for at in piece.answers:
                mine = [piece.prompts.index(i // num_generations) for i in at]
                found.append(sample(vlm, [prompts[p] for p in piece.prompts], mine, how, None if draws is None else draws[at]))
                numbers += at
        return numbers, found

    numbers, said = vlm.budget.within(pieces)
    width = max(s.ids_NT.shape[1] for s in said)
    order = torch.tensor(numbers, device=vlm.device).argsort()

    def together(tensors: list[Tensor], fill: float = 0) -> Tensor:
        return torch.cat([torch.nn.functional.pad(t, (0, width - t.shape[1]), value=fill) for t in tensors])[order]

    ids_NT = together([s.ids_NT for s in said], int(vlm.tokenizer.pad_token_id))
    mask_NT = together([s.mask_NT for s in said])
    logps_NT, entropy_NT = together([s.logps_NT for s in said]), together([s.entropy_NT for s in said])
    texts = [_before_stop(vlm.decode(i[m.bool()]), how.stop) for i, m in zip(ids_NT, mask_NT, strict=True)]
    return Answers(prompts, rows, ids_NT, mask_NT, logps_NT, entropy_NT, torch.cat([s.ended_N for s in said])[order], texts, how)


def token_at(vlm: VLM, ids: Tensor, text: str) -> list[int]:
    """For each character of `text`, which the answer `ids` [T] was decoded to, the token that completes it. A character of several
    tokens belongs to the last of them."""
    found: list[int] = []
    whole = vlm.tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    lead = len(whole) - len(whole.lstrip())
    for t in range(len(ids)):
        said = vlm.tokenizer.decode(ids[: t + 1].tolist(), skip_special_tokens=True).rstrip("\N{REPLACEMENT CHARACTER}")
        found += [t] * (min(len(said) - lead, len(text)) - len(found))
    return found + [max(0, len(ids) - 1)] * (len(text) - len(found))


def _before_stop(text: str, stop: tuple[str, ...]) -> str:
    return text[: min([text.find(s) for s in stop if s in text], default=len(text))].strip()


def answer_all(
    vlm: VLM, examples: Sequence[Example], how: Sampling, *, batch_size: int, num_generations: int = 1, seed: int = 0,
    max_length: int | None = None,
) -> Iterator[tuple[Example, list[str]]]:  # fmt: skip
    """Each example with its answers, a batch of prompts at a time; questions about one picture share it."""
    for start in range(0, len(examples), batch_size):
        part = examples[start : start + batch_size]
        prompts = vlm.prompts([(e.prompt, e.images) for e in part], max_length, [e.id for e in part])
        texts = _on_stems(vlm, part, prompts, how, seed) if num_generations == 1 else None
        if texts is None:
            texts = answer(vlm, part, how, num_generations=num_generations, seed=seed, prompts=prompts).texts
        for i, example in enumerate(part):
            yield example, texts[i * num_generations : (i + 1) * num_generations]


def _on_stems(vlm: VLM, examples: Sequence[Example], prompts: list[Prompt], how: Sampling, seed: int) -> list[str] | None:
    """An answer to each example, what prompts have in common run once; None where nothing is shared or this model does not allow it."""
    groups = stems.groups(vlm, prompts, how)
    several = next((g for g in groups if len(g) > 1), None)
    if several is None or not stems.allowed(vlm, [prompts[i] for i in several]):
        return None
    draws = uniform_draws([e.id for e in examples], 1, how.max_tokens, seed).to(vlm.device) if how.temperature > 0 else None
    texts = [""] * len(prompts)

    def pieces() -> None:
        lengths = [max(len(prompts[i].ids) for i in g) for g in groups]
        for piece in vlm.budget.plan(lengths, [[how.max_tokens] * len(g) for g in groups]):
            chosen = [groups[g] for g in piece.prompts]
            at = [i for g in chosen for i in g]
            said = stems.sample(vlm, [[prompts[i] for i in g] for g in chosen], how, None if draws is None else draws[at])
            for i, ids, mask in zip(at, said.ids_NT, said.mask_NT, strict=True):
                texts[i] = _before_stop(vlm.decode(ids[mask.bool()]), how.stop)

    vlm.budget.within(pieces)
    return texts


def some(out: Answers, prompts: Sequence[int]) -> tuple[Answers, Tensor]:
    """The answers of some prompts, in the order of `out`, and where they stand in it."""
    chosen = sorted(prompts)
    keep = torch.isin(out.rows_N, torch.tensor(chosen, device=out.rows_N.device))
    rows = torch.searchsorted(torch.tensor(chosen, device=out.rows_N.device), out.rows_N[keep])
    texts = [t for t, k in zip(out.texts, keep.tolist(), strict=True) if k]
    cut = {k: getattr(out, k)[keep] for k in ("ids_NT", "mask_NT", "logps_NT", "entropy_NT", "ended_N")}
    return replace(out, prompts=[out.prompts[p] for p in chosen], rows_N=rows, texts=texts, **cut), keep.nonzero()[:, 0]


def hidden_states(role: Role, out: Given) -> Iterator[tuple[Tensor, Tensor]]:
    """Go over answers under a role, as many at a time as the budget allows: numbers `at_n` and hidden states [n, T, D] in front of each
    of their tokens (T as long as the longest of them). What the caller does with them may call `backward`: prompts learn too.
    """
    lengths, each = out.mask_NT.sum(1).tolist(), torch.bincount(out.rows_N, minlength=len(out.prompts)).tolist()
    ends = np.cumsum(each)
    groups = [lengths[end - n : end] for n, end in zip(each, ends, strict=True)]
    vlm = role.vlm
    with role.active():
        for piece in vlm.budget.plan(tokens_of(out.prompts), groups):
            chosen = torch.tensor(piece.prompts, device=vlm.device)
            with learning(prefill(vlm, [out.prompts[p] for p in piece.prompts])) as prefix:
                for numbers in piece.answers:
                    at = torch.tensor(numbers, device=vlm.device)
                    width = max(lengths[i] for i in numbers) - 1
                    rows = torch.searchsorted(chosen, out.rows_N[at])
                    yield at, prefix.extend(rows, out.ids_NT[at, :width], out.mask_NT[at, :width])


def logps(role: Role, out: Answers, hidden: Tensor, at: Tensor) -> Tensor:
    """Log-probs [n, T] of the tokens of answers `at`, as they were drawn. Raises ValueError where top-p or top-k have drawn them: they are
    then of another distribution, and no ratio of the two means anything."""
    if not out.how.whole:
        raise ValueError(f"answers drawn by {out.how} have no log-probs to learn from: draw from the whole distribution")
    width, how = hidden.shape[1], out.how
    return role.vlm.token_logps(hidden, out.ids_NT[at, :width], out.mask_NT[at, :width], how.temperature, how.min_tokens)


def values(role: Role, out: Answers, hidden: Tensor, at: Tensor) -> Tensor:
    """A scalar head's values [n, T] in front of each token, 0 on padding."""
    assert role.head is not None
    return role.head(hidden.float())[..., 0] * out.mask_NT[at, : hidden.shape[1]]


@torch.no_grad()
def over_all(read: Callable[[Role, Answers, Tensor, Tensor], Tensor], role: Role, out: Answers) -> Tensor:
    """What `logps` or `values` reads of all answers [N, T]."""

    def work() -> Tensor:
        found = torch.zeros(out.ids_NT.shape, device=role.vlm.device)
        for at, hidden in hidden_states(role, out):
            found[at, : hidden.shape[1]] = read(role, out, hidden, at)
        return found

    return role.vlm.budget.within(work)
