"""Measurements during the reward stage: held-out accuracy and J, and a few fixed pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mmrlhf.config import RewardConfig
from mmrlhf.metrics.intervals import wilson
from mmrlhf.rewards.reward_model import RewardModel
from mmrlhf.training.monitor import DIVERGENCE, LOSS, HeldOut, Monitor, parse_stop_on_warning
from mmrlhf.training.reward_model.measured_rows import MeasuredRows
from mmrlhf.training.run import Run

NUM_FIXED_PAIRS = 4
"""Number of held-out rows whose scores samples.jsonl has at every measurement."""


def reward_monitor(config: RewardConfig) -> Monitor:
    """Return the monitor, which warns if the training loss falls while held-out metrics get worse.

    Raises InputError for an unknown stop_on_warning, or one that this run cannot raise.
    """
    stop_on = parse_stop_on_warning(config.stop_on_warning, (DIVERGENCE,) if config.eval_steps else ())
    return Monitor(LOSS, stop_on, ends_run=config.load_best_model_at_end)


def watch(
    run: Run, monitor: Monitor, model: RewardModel, measured_rows: MeasuredRows, step: int, measured: Mapping[str, float]
) -> None:
    """Add the metrics `measured` on the held-out rows after a step, and log fixed pairs.

    Before the first step, log the metrics too, which are otherwise logged with the step's.
    """
    if step == 0:
        run.log(0, measured, show=True)
    held_out = {}
    if not math.isnan(accuracy := measured["eval/accuracy"]):
        num_rows = len(measured_rows.rows)
        held_out["accuracy"] = HeldOut(accuracy, *wilson(accuracy * num_rows, num_rows), True)
    if "eval/j" in measured:
        held_out["j"] = HeldOut(measured["eval/j"], None, None, True)
    monitor.add_evaluation(step, held_out)
    if not run.main_process:
        return
    groups, rows = measured_rows.groups[:NUM_FIXED_PAIRS], []
    for group, scores in zip(groups, model.score(groups), strict=True):
        shown = {"prompt": group.prompt[-1].content, "fixed": True, "images": [run.image_file(image) for image in group.images]}
        for side, i in (("chosen", 0), ("rejected", -1)):
            rows.append({"id": f"{group.id} {side}", **shown, "answer": group.answers[i], "score": round(float(scores[i]), 3)})
    run.log_samples(step, rows, show=False)
