"""Configurations of the training stages."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf.config.base import (
    Count,
    Dtype,
    EngineConfig,
    FactsConfig,
    FactsPosition,
    Fraction,
    NonNegative,
    NonNegativeInt,
    Overlong,
    PixelConfig,
    Positive,
    settings,
)


@settings
class TrainConfig(FactsConfig, EngineConfig, PixelConfig):
    """Settings of every training stage."""

    model_name_or_path: str
    """Checkpoint directory or Hub id of the vision-language model."""
    dataset_name: str
    """JSON, JSONL or parquet file, `datasets` folder, or Hub id."""
    output_dir: str
    """Run directory: resolved config, metrics, samples, checkpoints. The same command resumes an
    unfinished run."""
    learning_rate: Positive = 1e-4
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Schedule after warm-up; linear and cosine fall to a tenth of the peak."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps of linear warm-up."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Maximum norm of the gradients; larger ones are scaled down."""
    per_device_train_batch_size: Count = 8
    """Rows (ppo: prompts) per process and step."""
    num_train_epochs: Positive = 1.0
    """Passes over the data; ignored if max_steps is set."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps to train; -1: until num_train_epochs are complete, 0: none."""
    max_length: Count = 2048
    """Maximum tokens of prompt plus answer, image tokens included. Rows are never cut."""
    overlong: Overlong = "error"
    """What to do with rows over max_length, checked before the first step: `error`, or `drop` to
    train without them."""
    adapter_path: str | None = None
    """LoRA adapter on the base to start from, such as another run's; its rank, scale and layers
    replace the lora settings."""
    lora_r: Count = 16
    """Rank of the LoRA adapter."""
    lora_target_modules: str = "all-linear"
    """Layers to adapt: `all-linear` or names such as `q_proj,v_proj` in the language model, and
    `projector` and `vision_tower` for theirs. With these two, images are encoded in every forward
    pass."""
    lora_alpha: Positive = 32.0
    """The adapter's update is scaled by lora_alpha / lora_r."""
    dtype: Dtype = "float32"
    """Precision of the base weights; adapters and heads stay in float32. nf4: 4 bits, computed in
    bfloat16 (needs bitsandbytes)."""
    seed: NonNegativeInt = 0
    """Random seed of the run."""
    logging_steps: Count = 10
    """Steps between printed lines; metrics.jsonl has every step."""
    save_steps: Count = 100
    """Steps between checkpoints; the stage resumes from the latest. It also saves after the last
    step, and on SIGTERM, SIGHUP and Ctrl-C."""
    save_total_limit: Count = 2
    """Newest checkpoints to keep while the stage runs; the best weights are in each of them."""
    allow_change: str | None = None
    """Settings, separated by commas, that may differ from those of the unfinished run in
    output_dir: it continues with the new ones, and changes.jsonl records them."""
    stop_on_warning: str | None = None
    """Warnings that stop the run after a checkpoint, separated by commas, or `any`:
    proxy_divergence, entropy_collapse, constant_reward, unfinished_answers,
    length_reward_correlation, zero_claim_rate, refusal_rate, vagueness, yes_rate,
    logp_difference."""
    report_to: str | None = None
    """Trackers that receive every metric and the samples, separated by commas: tensorboard, wandb,
    trackio. metrics.jsonl and report.html always have them."""


@settings
class RewardConfig(TrainConfig):
    """Train a reward model on `prompt`, `chosen`, `rejected`, or another format of preferences."""

    tuning: Literal["lora", "full", "head"] = "lora"
    """`lora` trains an adapter and the head, `head` only the head; `full` trains the language
    model, so the reward model has its own base."""
    untrained_prior: bool = False
    """Add the base's own log-odds of Yes over No to the score, frozen, so that training only learns
    a correction of the untrained review; the correction starts at exactly 0."""
    untrained_score_coefficient: NonNegative = 0.0
    """Weight of the mean squared distance of a pair's two scores from those of the untrained
    review."""
    facts: Literal["given", "none"] = "given"
    """`given` adds each row's facts to the reward prompt; `none` is the ablation without facts."""
    facts_position: FactsPosition = "before"
    """`before` the answer (the answers to a prompt share them), or `after` it in a further user
    turn, as in LLaVA-RLHF."""
    facts_template: str = "typed"
    """Format of the facts: `typed`, `captions` (as in LLaVA-RLHF), or the path of a Jinja file that
    renders `facts`."""
    max_facts_tokens: Count | None = None
    """Maximum tokens of the facts; the least confident facts are left out first."""
    fact_dropout: Fraction = 0.2
    """Fraction of training rows that lose a random part of their facts, so that the model copes
    with few or none."""
    fact_noise: Fraction = 0.0
    """Fraction of facts swapped in training for facts of another image, so that the model does not
    trust every fact."""
    injected_claim_rate: Fraction = 0.0
    """Fraction of training rows replaced by a pair: their better answer with and without a false
    claim built from the facts."""
    loss_type: Literal["bradley_terry", "bt_margin", "bt_label_smoothing", "rao_kupper"] = "bradley_terry"
    """`bt_margin` subtracts each row's margin from the reward gap, `bt_label_smoothing` assumes
    that label_smoothing of the labels are flipped, `rao_kupper` also learns from ties."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Assumed fraction of flipped labels, for loss_type bt_label_smoothing."""
    tie_threshold: Positive = 0.5
    """Reward gap below which two answers count as tied, for loss_type rao_kupper."""
    balance_lengths: bool = False
    """Drop pairs until the better answer is the longer one as often as the shorter one, at every
    length gap."""
    head_init: Literal["yes_no", "random"] = "yes_no"
    """`yes_no` starts from the model's own logits of Yes minus No, `random` from weights of
    standard deviation 1 / sqrt(hidden size + 1)."""
    center_rewards_coefficient: NonNegative = 0.01
    """Weight of the mean squared sum of a pair's two rewards, which keeps rewards around zero."""
    eval_dataset_name: str | None = None
    """Preferences for measuring accuracy, calibration and injected hallucinations; without
    load_best_model_at_end they select nothing."""
    truth_file: str | None = None
    """Facts that the reward model does not read, in any format of facts_file: J is measured on the
    claims of the answers in eval_dataset_name (or the first training rows), and without it on
    injected claims."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon for extracting these claims."""
    eval_steps: Count | None = None
    """Steps between measurements of loss, accuracy and J on eval_dataset_name; by default, only at
    the end."""
    load_best_model_at_end: bool = False
    """Keep the weights that were best at a measurement (step 0, untrained, included) instead of the
    last ones."""
    metric_for_best_model: Literal["accuracy", "loss", "j"] = "accuracy"
    """Metric of the best weights; `j` is the share of false claims that lower the score, minus the
    share of true ones that do."""
    early_stopping_patience: Count | None = None
    """Measurements in a row without a new best after which training stops."""
