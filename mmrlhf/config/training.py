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
    """Rank of the LoRA adapter (language model only; vision tower and projector stay frozen)."""
    lora_target_modules: str = "all-linear"
    """Layers of the language model to adapt: all linear ones, or names such as
    `q_proj,k_proj,v_proj,o_proj`."""
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
    """Steps between checkpoints; the stage resumes from the latest."""


@settings
class SFTConfig(TrainConfig):
    """Fine-tune a model on `messages`, `prompt` + `completion`, or LLaVA conversations."""

    tuning: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter and merges it at the end; `full` trains the language model. Both
    write a complete model."""
    train_on: Literal["all", "last"] = "all"
    """Assistant turns of a conversation to learn: `all`, or the `last`, with the earlier ones as
    context."""


@settings
class RewardConfig(TrainConfig):
    """Train a reward model on `prompt`, `chosen`, `rejected`, or another format of preferences."""

    tuning: Literal["lora", "full", "head"] = "lora"
    """`lora` trains an adapter and the head, `head` the head alone; `full` trains the language
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
    """Preferences to report accuracy, calibration and injected hallucinations on; nothing is
    selected on them without load_best_model_at_end."""
    truth_file: str | None = None
    """Facts kept apart, in any format of facts_file: J is measured on the claims of the answers in
    eval_dataset_name (or the first training rows), and without it on injected claims."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon that these claims are extracted with."""
    eval_steps: Count | None = None
    """Steps between measurements of loss, accuracy and J on eval_dataset_name; by default, only at
    the end."""
    load_best_model_at_end: bool = False
    """Keep the weights that were best at a measurement (step 0, untrained, included) instead of the
    last ones."""
    metric_for_best_model: Literal["accuracy", "loss", "j"] = "accuracy"
    """What the best weights are best at; `j` is the share of false claims that lower the score,
    minus the share of true ones that do."""
    early_stopping_patience: Count | None = None
    """Measurements in a row without a new best after which training stops."""


@settings
class PPOConfig(TrainConfig):
    """Optimise a policy with PPO on rows with a `prompt` and images; policies never see facts."""

    reward_model_path: str | None = None
    """Directory that the reward stage wrote, for fact_rm; several, separated by commas, form an
    ensemble."""
    reward_terms: str = "fact_rm=1, missing_eos=-1"
    """Reward functions with their weights, summed: fact_rm, correctness, length, missing_eos,
    question_mark, repetition, FILE.py:NAME, and the claim rewards hallucination, coverage and
    verifier_score. Add @VERIFIER (facts, clip, vlm, or several joined by +) to a claim reward to
    change its verifier (default facts; clip for verifier_score)."""
    multi_objective_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """How reward functions become one reward: `sum_then_normalize` adds weight x value, and
    `normalize_then_sum` (GDPO) brings each function's values to mean 0 and standard deviation 1
    before they are weighted, so that weights do not depend on units."""
    term_statistics: Literal["group", "running"] = "group"
    """Means and standard deviations for normalize_then_sum: of the answers to a prompt (`group`),
    or of all answers of the run so far (`running`)."""
    length_bounds: str | None = None
    """Fewest and most tokens of an answer that may earn a positive reward, such as `8,40`, or
    `auto`: the 2% and 98% quantiles of the reference's answers in the first step. Outside the
    bounds, a positive sum of rewards is cut to 0."""
    span_credit: Literal["token", "last_token"] = "token"
    """Where span rewards are credited: at the `token` that ends the span, or at the `last_token` of
    the answer."""
    clip_model: str | None = None
    """Model of the verifier clip: a directory that open_clip saved, or a pretrained model as
    NAME:TAG."""
    clip_calibration: str | None = None
    """Calibration of the verifier clip (`mmrlhf calibrate clip`); by default calibration.json in
    the model's directory."""
    vlm_calibration: str | None = None
    """Calibration of the verifier vlm (`mmrlhf calibrate vlm`); by default its log-odds are used as
    they are."""
    unknown_claim_costs: str | None = None
    """What an unknown claim counts in `hallucination`, by kind, such as `object=0.1, count=0.3`:
    the kind's false rate, which `mmrlhf claims` prints for training pairs. By default 0."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon that claims are extracted with."""
    monitor_verifiers: str | None = None
    """Verifiers, separated by commas, that measure the answers of each step without affecting the
    reward."""
    allow_monitoring_reward_verifiers: bool = False
    """Allow monitoring with a verifier that is also part of the reward."""
    uncertainty_penalty: NonNegative = 0.0
    """Standard deviations of an ensemble's scores to subtract from their mean."""
    min_probe_detection_rate: Fraction = 0.6
    """Fraction of injected false claims, of every kind, that the reward model must score lower; ppo
    does not start below it. 0: no minimum."""
    allow_worse_judge: bool = False
    """Start with a reward model that training made worse at telling false claims from true ones (J
    in its reward.json), for studies."""
    critic_sees_facts: bool = False
    """Show the critic the facts before the question; the policy never sees them."""
    num_generations: Count = 4
    """Answers sampled per prompt in each step."""
    response_length: Count = 64
    """Maximum tokens of an answer."""
    min_new_tokens: NonNegativeInt = 0
    """Minimum tokens of an answer."""
    temperature: Positive = 1.0
    """Sampling temperature; training log-probs are computed at the same temperature."""
    advantage_estimator: Literal["gae", "grpo"] = "gae"
    """How rewards become advantages: `gae`, generalised advantage estimation (PPO), or `grpo`,
    relative to the other answers to the prompt."""
    use_critic: bool | None = None
    """Train a critic; by default for gae and not for grpo. Without one, gae takes every value as 0
    (reward-to-go); grpo cannot use one."""
    kl_penalty: Literal["reward", "loss"] | None = None
    """Where the KL to the reference is penalised: in each token's `reward` (estimate k1) or in the
    `loss` (k3); by default in the reward for gae and in the loss for grpo."""
    num_ppo_epochs: Count = 2
    """Passes over the answers of a step."""
    num_mini_batches: Count = 2
    """Optimiser steps per pass."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference."""
    cliprange: Positive = 0.2
    """Clip range of the policy ratio around 1."""
    cliprange_value: Positive = 0.2
    """Clip range of the new value around the old one, in standard deviations of the reward model's
    scores."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit variance (their mean is kept) before computing advantages."""
    critic_learning_rate: Positive | None = None
    """Learning rate of the critic; learning_rate by default."""
    num_sample_generations: NonNegativeInt = 4
    """Answers printed and saved at each logging step."""
    eval_benchmarks: str | None = None
    """Benchmarks to evaluate the policy on before the first step, every eval_steps and after the
    last: names of `mmrlhf eval`, separated by commas, or a suite, a path that ends in .yaml."""
    eval_data: str | None = None
    """Their data: one path, or NAME=PATH for each, separated by commas; scenes takes names of
    splits, and by default `selection`."""
    eval_image_folder: str | None = None
    """Folder that relative image paths of eval_data start from; by default the folder of the
    data."""
    eval_limit: Count | None = None
    """Use only the first rows of each benchmark (scenes: of each split)."""
    eval_steps: Count | None = None
    """Steps between evaluations; 20 by default."""
    metric_for_best_model: str | None = None
    """Metric of an evaluation that chooses the best policy, as BENCHMARK/METRIC
    (`scenes/claim_f1`); the best policy so far is kept in `best`."""
    greater_is_better: bool | None = None
    """Whether a higher metric_for_best_model is better; by default as is known of the metric."""
    load_best_model_at_end: bool = False
    """Write the best policy into `policy`, not the last one."""

    @property
    def has_critic(self) -> bool:
        """Return whether the run trains a critic."""
        return self.advantage_estimator == "gae" if self.use_critic is None else self.use_critic

    @property
    def kl_in_loss(self) -> bool:
        """Return whether the KL is a term of the policy's loss instead of the rewards."""
        if self.kl_penalty is None:
            return self.advantage_estimator == "grpo"
        return self.kl_penalty == "loss"

    @property
    def compares_terms_in_groups(self) -> bool:
        """Return whether each reward function is normalised among the answers to a prompt."""
        return self.multi_objective_aggregation == "normalize_then_sum" and self.term_statistics == "group"

    @property
    def credits_spans(self) -> bool:
        """Return whether span rewards go to their own tokens; grpo rewards only full answers."""
        return self.span_credit == "token" and self.advantage_estimator == "gae"
