"""Measure a policy on preferences that it does not learn: loss, accuracy and margins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.engine.scoring import in_micro_batches, token_logps
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Preference
from mmrlhf.training.dpo.batch import PreferenceBatch, build_batch
from mmrlhf.training.dpo.step import Counts, mean_metrics, preference_loss

ROWS_PER_BATCH = 64


CHOOSING_METRICS = {"loss": False, "rewards/accuracies": True, "rewards/margins": True}
"""Metrics that metric_for_best_model may name, and whether more of it is better."""


@dataclass
class HeldOutPairs:
    """The held-out rows of a run, as an evaluation's function.

    `policy` and `reference` are set once the model is loaded. The reference's log-probs are
    computed at the first call and kept. Image pairs are left out.
    """

    config: DPOConfig
    rows: Sequence[Preference]
    policy: Role | None = None
    reference: Role | None = None
    _ref_logps: list[Tensor] = field(default_factory=list)

    def __call__(self, vlm: VLM) -> dict[str, float]:
        """Return the metrics of a step on all rows."""
        assert self.policy is not None and self.reference is not None
        config = replace(self.config, image_pairs="none")
        batches = [
            build_batch(config, vlm, rows, [None] * len(rows))
            for rows in (self.rows[start : start + ROWS_PER_BATCH] for start in range(0, len(self.rows), ROWS_PER_BATCH))
        ]
        if not self._ref_logps:
            self._ref_logps = [batch.weighted_logps(self.reference) for batch in batches]
        counts, sums = _count(batches), Counter[str]()
        with torch.no_grad():
            for batch, ref_logps_N in zip(batches, self._ref_logps, strict=True):
                logps_NT = in_micro_batches(token_logps, self.policy, batch.completions)
                all_rows = range(len(batch.answers_per_row))
                sums.update(preference_loss(config, batch, all_rows, logps_NT, ref_logps_N, counts)[1])
        return mean_metrics(sums, counts)


def _count(batches: Sequence[PreferenceBatch]) -> Counts:
    """Count rows and tokens of all batches."""
    tokens = [batch.completions.mask_NT.sum(1) for batch in batches]
    best_tokens = sum(float(t[batch.is_best_N].sum()) for t, batch in zip(tokens, batches, strict=True))
    return Counts(sum(len(batch.answers_per_row) for batch in batches), 0.0, best_tokens, float(sum(t.sum() for t in tokens)))
