"""A policy's sampled answers: as inputs of reward functions, and as rows of samples.jsonl."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmrlhf.datasets.conversations import PLACEHOLDER, is_blank
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.records import Example
from mmrlhf.rewards.types import Sample
from mmrlhf.training.run import Run


def build_samples(rows: Sequence[Example], completions: SampledCompletions, group_size: int, max_tokens: int) -> list[Sample]:
    """Return each answer as an input of reward functions, in the order of `completions`."""
    lengths, finished = completions.mask_NT.sum(1).tolist(), completions.finished_N.tolist()
    row_of_answer = [row for row in rows for _ in range(group_size)]
    return [
        Sample(
            id=row.id,
            images=row.images,
            prompt=row.prompt,
            answer=completions.texts[n],
            facts=row.facts,
            reference=row.answer,
            meta=row.meta,
            num_tokens=int(lengths[n]),
            max_tokens=max_tokens,
            finished=finished[n],
        )
        for n, row in enumerate(row_of_answer)
    ]


def why_unusable(sample: Sample, escape: Callable[[str], str]) -> str:
    """Return why an answer cannot be used for training, or "" if it can.

    An answer that was cut off would teach the model to stop in mid-sentence, and one that spells a
    control token (`escape` breaks those up) would be read as a turn's end or as an image.
    """
    if not sample.finished:
        return "cut off at response_length"
    if is_blank(sample.answer):
        return "empty"
    if escape(sample.answer) != sample.answer or PLACEHOLDER in sample.answer:
        return "with a control token"
    if "\0" in sample.answer:
        return "with a NUL character"
    return ""


def sample_rows(
    run: Run, samples: Sequence[Sample], scores: Sequence[float], ledger: Sequence[Mapping[str, Any]], num_rows: int
) -> list[dict[str, Any]]:
    """Return evenly spaced answers of a step, to print and to log: scores, values of reward
    functions, and verified claims, as `ledger` has them."""
    indices = list(range(0, len(samples), max(1, len(samples) // num_rows)))[:num_rows]
    return [
        {
            "prompt": samples[i].prompt[-1].content,
            "id": samples[i].id,
            "answer": samples[i].answer,
            "score": round(scores[i], 3),
            **{name: ledger[i][name] for name in ("terms", "claims") if name in ledger[i]},
            "images": [run.image_file(image) for image in samples[i].images],
        }
        for i in indices
    ]
