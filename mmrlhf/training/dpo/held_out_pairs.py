"""Measure a policy on held-out preferences: loss, accuracy and margins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmrlhf.config.dpo import DPOConfig
from mmrlhf.engine.scoring import in_micro_batches, token_logps
from mmrlhf.metrics.intervals import wilson
from mmrlhf.models.adapters import Role
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Preference
from mmrlhf.training.dpo.batch import PreferenceBatch, build_batch
from mmrlhf.training.dpo.step import Counts, mean_metrics, preference_loss
from mmrlhf.training.losses import Metrics, add_metrics, read_metrics
from mmrlhf.training.monitor import HeldOut

ROWS_PER_BATCH = 64


CHOOSING_METRICS = {"loss": False, "rewards/accuracies": True, "rewards/margins": True}
"""Metrics that metric_for_best_model may name, and whether more of it is better."""


@dataclass
class HeldOutPairs:
    """The held-out rows of a run, as an evaluation's function.

    Call `prepare` once the model is loaded. The reference's log-probs are computed at the first
    measurement and kept. Each measurement builds its batches again, one at a time, because batches
    hold image features. `config` has no image pairs, which are for rows that are trained on.
    """

    config: DPOConfig
    rows: Sequence[Preference] = ()
    _policy: Role | None = None
    _reference: Role | None = None
    _ref_logps: list[Tensor] = field(default_factory=list)
    _counts: Counts = field(default=Counts(0.0, 0.0, 0.0, 0.0))

    def prepare(self, policy: Role, reference: Role, rows: Sequence[Preference]) -> None:
        """Set the roles to compare and the rows that they can read."""
        self._policy, self._reference, self.rows = policy, reference, rows

    def __call__(self, vlm: VLM) -> dict[str, float]:
        """Return the metrics of a step on all rows."""
        assert self._policy is not None
        if not self._ref_logps:
            self._measure_reference(vlm)
        sums: Metrics = {}
        with torch.no_grad():
            for batch, ref_logps_N in zip(self._batches(vlm), self._ref_logps, strict=True):
                logps_NT = in_micro_batches(token_logps, self._policy, batch.completions)
                all_rows = range(len(batch.answers_per_row))
                _, metrics = preference_loss(self.config, batch, all_rows, logps_NT, ref_logps_N, self._counts)
                add_metrics(sums, metrics)
        return mean_metrics(read_metrics(sums), self._counts)

    def watch(self, metrics: Mapping[str, float]) -> dict[str, HeldOut]:
        """Return loss and accuracy (with its 95% interval), which warn if they get worse."""
        accuracy, num_rows = metrics["rewards/accuracies"], len(self.rows)
        interval = wilson(accuracy * num_rows, num_rows)
        return {
            "loss": HeldOut(metrics["loss"], None, None, CHOOSING_METRICS["loss"]),
            "rewards/accuracies": HeldOut(accuracy, *interval, CHOOSING_METRICS["rewards/accuracies"]),
        }

    def _batches(self, vlm: VLM) -> Iterator[PreferenceBatch]:
        for start in range(0, len(self.rows), ROWS_PER_BATCH):
            rows = self.rows[start : start + ROWS_PER_BATCH]
            yield build_batch(self.config, vlm, rows, [None] * len(rows))

    def _measure_reference(self, vlm: VLM) -> None:
        """Compute the reference's log-probs, and count rows and tokens."""
        assert self._reference is not None
        best_tokens = tokens = 0.0
        for batch in self._batches(vlm):
            self._ref_logps.append(batch.weighted_logps(self._reference))
            tokens_N = batch.completions.mask_NT.sum(1)
            best_tokens += float(tokens_N[batch.is_best_N].sum())
            tokens += float(tokens_N.sum())
        self._counts = Counts(len(self.rows), 0.0, best_tokens, tokens)
