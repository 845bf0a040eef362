"""Settings of stages that train a policy: its evaluation during training."""

from __future__ import annotations

from mmrlhf.config.base import Count, NonNegativeInt, settings
from mmrlhf.config.training import TrainConfig


@settings
class SelectionConfig:
    """The data of evaluations during training, and the metric that chooses the best policy."""

    eval_benchmarks: str | None = None
    """Benchmarks to evaluate the policy on before the first step, every eval_steps and after the
    last: names of `mmrlhf eval`, separated by commas, or a suite, a path that ends in .yaml."""
    eval_data: str | None = None
    """Their data: one path, or NAME=PATH for each, separated by commas; scenes takes names of
    splits, and by default `selection`."""
    eval_image_folder: str | None = None
    """Folder to which image paths of eval_data are relative, or NAME=FOLDER for each, separated by
    commas; by default the folder of the data."""
    eval_limit: Count | None = None
    """Use only the first rows of each benchmark (scenes: of each split; amber: of each part, in
    proportion)."""
    eval_steps: Count | None = None
    """Steps between evaluations; 20 by default."""
    metric_for_best_model: str | None = None
    """Metric of an evaluation that chooses the best policy, as BENCHMARK/METRIC
    (`scenes/claim_f1`); the best policy so far is kept in `best`."""
    greater_is_better: bool | None = None
    """Whether a higher metric_for_best_model is better; by default the metric's known direction."""


@settings
class PolicyEvalConfig(SelectionConfig, TrainConfig):
    """Training with evaluation, and the choice of the best policy."""

    load_best_model_at_end: bool = False
    """Write the best policy at the end, not the last one."""
    num_sample_generations: NonNegativeInt = 4
    """Fixed prompts that are answered, greedily, about six times in a run, for samples.jsonl and
    report.html: the first of the first benchmark, else rows of the data. ppo also prints this many
    sampled answers at each logging step."""
    response_length: Count = 128
    """Maximum tokens of an answer."""
