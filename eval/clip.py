"""Hallucination on your own images, claim by claim, by an open_clip model: no facts are needed.

    mmrlhf eval clip --model runs/sft/model --data held_out.jsonl --clip_model CLIP --out runs/eval
    mmrlhf sft ... --eval_benchmarks suite.yaml   # benchmarks: {clip: {data: ..., clip_model: ...}}

--data is a dataset in any format that training reads. The model is a held-out verifier: one that no
reward uses. It errs, so calibrate it on your own images (`mmrlhf calibrate clip`) and compare
policies by its figures, rather than believe one of them. A claim is true if the calibrated
probability is high, false if it is low, and unknown in between and for kinds that the calibration
lacks. It counts once in an answer; hedged claims and true denials do not count. A denial of only a
part ("nobody looks up") stays unknown.

`chair_s` is the share of answers with a false claim, `chair_i` false claims of those decided,
`supported` true claims per answer, `unknown_rate` the undecided of all. There is no other script:
`official` only.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic.dataclasses import dataclass

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.config import STRICT
from mmrlhf.datasets import read_examples
from mmrlhf.evaluation.benchmark import Benchmark, ScoreRow, Task, first_valid, number_repeated_ids
from mmrlhf.metrics.intervals import Proportion, SufficientStats
from mmrlhf.records import Example, InputError, Verdict
from mmrlhf.text.word_counts import count_words
from mmrlhf.verifiers.base import AnswerClaims, Verifier, counted_verdicts, load_calibration
from mmrlhf.verifiers.cascade import cascade

VERDICTS = ("supported", "contradicted", "unknown")
SHARES = {"chair_s": Proportion(1, 0), "chair_i": Proportion(3, (2, 3)), "unknown_rate": Proportion(4, (2, 3, 4))}
"""The metrics that are shares, by the columns that `_metrics` reads."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Options:
    """The model that verifies claims, and words."""

    clip_model: str | None = None
    """A directory that open_clip saved, or a pretrained model as NAME:TAG."""
    clip_calibration: str | None = None
    """Its calibration (`mmrlhf calibrate clip`); by default calibration.json in the directory."""
    lexicon_file: str | None = None
    """Further words for claims, as in training."""


class ClaimsByClip(Benchmark):
    """Answers about a user's images, checked by an open_clip model."""

    version = "3"
    license = "the user's own data"
    headline = "chair_s"
    direction = "lower"
    cluster = "image"
    requires_all_answers = False
    options_type = Options

    def load(self, task: Task) -> list[Example]:
        """Return the rows that have images; further rows of an id get its number appended.

        Raises InputError if none has, and without a calibrated model.
        """
        _calibration_file(task.options)
        rows = [row for row in read_examples(str(task.path), "train", task.image_folder) if row.images]
        if not rows:
            raise InputError(f"{task.path} has no row with an image, which claims are compared with: give other rows")
        return number_repeated_ids(rows)[: task.limit]

    def files(self, task: Task) -> list[Path]:
        """Return the data, the calibration and, of a model in a directory, its weights."""
        model = Path(task.options.clip_model)
        weights = sorted(model.glob("*.safetensors")) if model.is_dir() else []
        return [*super().files(task), _calibration_file(task.options), *weights]

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return the numbers of claims of each answer by verdict."""
        verdicts = self._verdicts(example, answers, task)
        counts = {value: [sum(v.value == value for v in counted_verdicts(row)) for row in verdicts] for value in VERDICTS}
        return {
            "image": example.images[0].name,
            "right": not any(counts["contradicted"]),
            **counts,
            "length": [count_words(answer) for answer in answers],
        }

    def false_spans(self, example: Example, row: ScoreRow, task: Task) -> list[tuple[int, int]]:
        """Return the spans of the first answer's claims that the model contradicts."""
        (verdicts,) = self._verdicts(example, [str(row["answers"][0])], task)
        return [verdict.claim.span for verdict in verdicts if verdict.value == "contradicted"]

    def _verdicts(self, example: Example, answers: Sequence[str], task: Task) -> list[list[Verdict]]:
        lexicon = load_lexicon(task.options.lexicon_file)
        claims = [AnswerClaims(example.images, (), tuple(extract_claims(answer, lexicon))) for answer in answers]
        if not any(answer.claims for answer in claims):
            return [[] for _ in claims]
        return _verifier(task.options.clip_model, task.options.clip_calibration, task.options.lexicon_file)(claims)

    def aggregate(self, rows: list[ScoreRow], task: Task) -> dict[str, SufficientStats]:
        """Return rates over all answers."""
        rows = first_valid(rows)
        columns = [
            [len(row["length"]), sum(count > 0 for count in row["contradicted"]), *(sum(row[v]) for v in VERDICTS), sum(row["length"])]
            for row in rows
        ]  # fmt: skip
        reasons = {"": "no claim was decided"}
        return {"official": SufficientStats([row["image"] for row in rows], np.array(columns), _metrics, reasons, SHARES)}


def _calibration_file(options: Options) -> Path:
    """Return the path of the model's calibration, once it is read.

    Raises InputError without a model, and without a calibration that can be read.
    """
    if options.clip_model is None:
        raise InputError("the benchmark clip needs an open_clip model: give --clip_model (in a suite, clip_model)")
    path = Path(options.clip_calibration or Path(options.clip_model) / "calibration.json")
    if options.clip_calibration is None and not path.exists():
        raise InputError(
            f"open_clip model {options.clip_model} has no calibration, without which every verdict is unknown: make one with "
            "`mmrlhf calibrate clip` and give it as --clip_calibration"
        )
    load_calibration(path)
    return path


@functools.cache
def _verifier(model: str, calibration: str | None, lexicon_file: str | None) -> Verifier:
    """Load the model once per process; it keeps the features of images and phrases.

    As in a reward, denials of only a part stay unknown (`cascade`).
    """
    import torch

    from mmrlhf.verifiers.clip import load_clip

    lexicon, device = load_lexicon(lexicon_file), "cuda" if torch.cuda.is_available() else "cpu"
    return cascade([load_clip(model, lexicon, calibration, device)], lexicon)


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    n, with_false, true, false, unknown, length = np.moveaxis(sums, -1, 0)
    return {
        "chair_s": with_false / n,
        "chair_i": false / (true + false),
        "supported": true / n,
        "unknown_rate": unknown / (true + false + unknown),
        "claims": (true + false + unknown) / n,
        "mean_length": length / n,
    }
