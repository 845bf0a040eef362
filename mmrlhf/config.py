"""Typed, frozen configurations: what each stage can be told, with its type, range, default and reason in one place.

A stage's configuration is a flat dataclass in TRL's spelling, filled from a YAML file and then from the command line (`settings.load`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, str_min_length=1)

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "nf4"]
FactsPosition = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EngineConfig:
    """How a model is run; none of it changes results."""

    share_prefix: Literal["auto", "off"] = "auto"
    """`auto` runs a prompt once for all its answers where a check against the plain forward agrees; `off` never does."""
    micro_batch_tokens: Count = 16384
    """Most tokens (a prompt's once, and those of its answers) that run through the model at a time. Out of memory on a GPU halves it."""
    activation_checkpointing: bool = False
    """Recompute the language model's layers in backward: less memory, about a third more time."""
    feature_memory_gib: Positive = 2.0
    """Memory for picture features: of the GPU, if there is one, and again of the machine."""
    feature_cache_dir: str | None = None
    """Folder that keeps picture features between runs (`mmrlhf encode` fills it)."""
    feature_disk_gib: Positive = 100.0
    """Most that feature_cache_dir may hold; what was used longest ago goes."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig(EngineConfig):
    """What every training stage can be told."""

    model_name_or_path: str
    """Checkpoint directory or Hub id of the vision-language model."""
    dataset_name: str
    """JSON, JSONL or parquet file, `datasets` folder, or Hub id."""
    output_dir: str
    """Run directory: resolved config, metrics, samples, checkpoints. The same command continues what it finds there."""
    dataset_train_split: str = "train"
    """Split to read when the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the dataset file's own folder if not given."""
    facts_file: str | None = None
    """Facts by image name: LLaVA-RLHF's image_to_caption.json, or JSONL with `image`, `captions`, `objects`, ..."""
    learning_rate: Positive = 1e-4
    """Peak learning rate of AdamW."""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "cosine"
    """Shape after warm-up; linear and cosine fall to a tenth of the peak."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimiser steps of linear warm-up."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""
    per_device_train_batch_size: Count = 8
    """Rows (for ppo: prompts) each process takes in one step."""
    num_train_epochs: Positive = 1.0
    """Passes over the data; max_steps wins when given."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Steps to take; -1: as many as num_train_epochs gives."""
    max_length: Count = 2048
    """Longest prompt plus answer in tokens, image tokens counted. A longer row is an error, never cut."""
    lora_r: Count = 16
    """Rank of the LoRA adapter (language model only; vision tower and projector stay frozen)."""
    lora_target_modules: str = "all-linear"
    """Layers of the language model that get an adapter: all linear ones, or names such as `q_proj,k_proj,v_proj,o_proj`."""
    lora_alpha: Positive = 32.0
    """The adapter's update is scaled by lora_alpha / lora_r."""
    dtype: Dtype = "float32"
    """Precision of the base weights; adapters and heads stay in float32. nf4: 4 bits, computed in bfloat16 (needs bitsandbytes)."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    logging_steps: Count = 10
    """Steps between lines on the screen; metrics.jsonl has every step."""
    save_steps: Count = 100
    """Steps between checkpoints from which the stage resumes."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SFTConfig(TrainConfig):
    """Supervised fine-tuning: rows with `messages`, `prompt` + `completion`, or LLaVA conversations."""

    tuning: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter and merges it at the end; `full` trains the language model. Both write a whole model."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardConfig(TrainConfig):
    """Reward model on preferences: `prompt`, `chosen`, `rejected`, or one of the other formats that `mmrlhf data check` knows."""

    tuning: Literal["lora", "full"] = "lora"
    """`lora` trains an adapter; `full` the language model itself, which is then a reward model with a base of its own."""
    facts: Literal["given", "none"] = "given"
    """`given` writes each row's facts into the reward prompt; `none` is the ablation without them."""
    facts_position: FactsPosition = "before"
    """`before` the answer (a prompt's answers share it), or `after` it as a further user turn, as LLaVA-RLHF does."""
    facts_template: str = "typed"
    """How facts are written: `typed`, `captions` (LLaVA-RLHF's manner), or the path of a Jinja file that is given `facts`."""
    max_facts_tokens: Count | None = None
    """Most tokens that facts may take; the least confident are left out first."""
    fact_dropout: Fraction = 0.2
    """Share of rows whose facts are thinned out in training, down to a random part of them: the model must work with few and none."""
    fact_noise: Fraction = 0.0
    """Share of facts that are replaced in training by another picture's: the model must not believe everything."""
    injected_claim_rate: Fraction = 0.0
    """Share of rows that are replaced in training by their better answer with and without a false claim, made from the row's facts."""
    loss_type: Literal["bradley_terry", "bt_margin", "bt_label_smoothing", "rao_kupper"] = "bradley_terry"
    """`bt_margin` asks for the rows' own margins, `bt_label_smoothing` takes label_smoothing for the share of wrong labels, `rao_kupper` learns from ties."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of labels that loss_type bt_label_smoothing takes to be turned round."""
    tie_threshold: Positive = 0.5
    """How far apart rewards must be to be told apart, for loss_type rao_kupper."""
    balance_lengths: bool = False
    """Leave out pairs until the better answer is as often the longer as the shorter one, gap by gap."""
    head_init: Literal["yes_no", "random"] = "yes_no"
    """`yes_no` starts from the model's own Yes against No, `random` from weights of standard deviation 1 / sqrt(hidden size + 1)."""
    center_rewards_coefficient: NonNegative = 0.01
    """Weight of the mean squared sum of a pair's two rewards, which keeps rewards around zero."""
    eval_dataset_name: str | None = None
    """Preferences that accuracy, calibration and probes are reported on; nothing is selected on them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PPOConfig(TrainConfig):
    """Proximal policy optimisation with a critic: rows with a `prompt` and images; only the reward model sees facts."""

    reward_model_path: str | None = None
    """Directory that the reward stage wrote, for the term fact_rm; several, with commas between, are an ensemble."""
    reward_terms: str = "fact_rm=1, missing_eos=-1"
    """Terms that add up to the reward, each with its weight: fact_rm, correctness, length, missing_eos, repetition, FILE.py:NAME, and of claims
    hallucination, coverage, clip, each with @VERIFIER (facts, clip, vlm, or several with + between) if it is to be another than facts (clip's: clip)."""
    span_credit: Literal["token", "last_token"] = "token"
    """What terms give to spans of characters goes on the tokens that complete them, or all on the answer's last token."""
    clip_model: str | None = None
    """For the verifier clip: a directory that open_clip saved, or one of its models as NAME:TAG."""
    clip_calibration: str | None = None
    """What that model's margins are worth, by kind of claim (`mmrlhf calibrate clip`); calibration.json in its directory if not given."""
    vlm_calibration: str | None = None
    """What log-odds of the verifier vlm are worth, by kind of claim (`mmrlhf calibrate vlm`); the model is taken at its word if not given."""
    lexicon_file: str | None = None
    """Nouns and other words to add to those that claims are read with."""
    monitor_verifiers: str | None = None
    """Verifiers that measure each step's answers and pay nothing, with commas between."""
    allow_monitoring_reward_verifiers: bool = False
    """Let monitor_verifiers name what the reward is made of."""
    uncertainty_penalty: NonNegative = 0.0
    """Standard deviations of an ensemble's scores that are taken off their mean."""
    min_probe_detection_rate: Fraction = 0.6
    """Share of planted false claims that the reward model must score lower, of every type; below it ppo does not start. 0: any."""
    critic_sees_facts: bool = False
    """The critic reads the facts in front of the question; the policy never does."""
    num_generations: Count = 4
    """Answers sampled for each prompt of a step."""
    response_length: Count = 64
    """Most tokens of an answer."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens before which no answer may end."""
    temperature: Positive = 1.0
    """Sampling temperature; training log-probs are taken at the same temperature."""
    advantage_estimator: Literal["gae", "grpo"] = "gae"
    """`gae` with a critic (PPO), or `grpo`: against a prompt's other answers, without one."""
    num_ppo_epochs: Count = 2
    """Passes over the answers of a step."""
    num_mini_batches: Count = 2
    """Optimiser steps in each pass."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL against the reference: of its estimate k1, taken off the reward of each token (grpo: of k3, in the loss)."""
    cliprange: Positive = 0.2
    """Clip of the policy ratio around 1."""
    cliprange_value: Positive = 0.2
    """Clip of the new value around the old one, in units of the reward model's standard deviation."""
    vf_coef: NonNegative = 0.5
    """Weight of the value loss."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """Lambda of generalised advantage estimation."""
    whiten_rewards: bool = False
    """Scale per-token rewards to unit variance (mean kept) before advantages."""
    critic_learning_rate: Positive | None = None
    """Learning rate of the value role; learning_rate if not given."""
    eval_steps: Count = 20
    """Steps between measurements, where the caller hands in something to measure (the demo does)."""
    num_sample_generations: Annotated[int, Field(ge=0)] = 4
    """Answers printed and kept at each logging step."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScenesConfig:
    """The demo's data: how many scenes of each split, what its annotators do, and what an answer is worth."""

    seed: int = 0
    """Scenes, captions, facts and preferences follow from it. Stated, not chosen."""
    occluded_share: Fraction = 0.28
    """Share of objects in training scenes that are faded and partly covered."""
    sft_rows: Count = 8000
    """Rows to fine-tune on: three quarters descriptions, the rest short questions."""
    cooccurrence_bias: Fraction = 0.9
    """Share of captions in which a trigger calls its absent partner."""
    pair_scenes: Count = 4000
    """Scenes whose sampled answers are compared."""
    answers_per_scene: Annotated[int, Field(ge=2)] = 4
    """Answers sampled from the SFT model to each of them: half at temperature 1, half hotter."""
    hot_temperature: Positive = 1.5
    """Temperature of the hotter half."""
    injected_share: Fraction = 0.3
    """Share of scenes where one answer is replaced by a description with planted faults."""
    false_claim_penalty: NonNegative = 4.0
    """Weight of a false claim against a true one in the utility that ranks answers: between silence and truth."""
    min_utility_gap: NonNegative = 1.0
    """Pairs whose utilities differ by less are dropped."""
    annotator_error: Fraction = 0.1
    """Share of pairs whose label is turned round."""
    held_out_pairs: Count = 400
    """Pairs that reward accuracy is reported on, turned labels included."""
    fact_recall: Fraction = 0.8
    """Probability that a truth is among the facts."""
    fact_error_rate: Fraction = 0.05
    """Share of listed facts that are wrong."""
    rl_scenes: Count = 1600
    """Scenes that give prompts to ppo."""
    selection_scenes: Count = 200
    """Scenes that curves are measured on while ppo runs."""
    held_out_scenes: Count = 1000
    """Scenes of the held-out split that the table is over."""
    ood_scenes: Count = 300
    """Scenes of each out-of-distribution split."""
    best_of_n: Count = 16
    """Samples that best-of-n chooses from."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerateConfig(EngineConfig):
    """Answers to prompts, as JSONL."""

    model_name_or_path: str
    """Checkpoint directory or Hub id."""
    dataset_name: str
    """Rows with a prompt and images."""
    output_file: str
    """JSONL to write: id, images, prompt, answer (one line for each answer)."""
    adapter_path: str | None = None
    """Adapter directory of a ppo run; the bare model if not given."""
    dataset_train_split: str = "train"
    """Split to read when the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the dataset file's own folder if not given."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest tokens that together have this probability are sampled."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens are sampled; 0: all."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens before which no answer may end."""
    stop: str | None = None
    """Text at which an answer ends, itself left out."""
    num_generations: Count = 1
    """Answers for each prompt."""
    response_length: Count = 128
    """Most tokens of an answer."""
    batch_size: Count = 16
    """Prompts at a time."""
    max_length: Count = 2048
    """Longest prompt in tokens, image tokens counted."""
    dtype: Dtype = "float32"
    """Precision of the weights."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Draws follow from it and from each row's id, not from the batch."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EncodeConfig(EngineConfig):
    """Picture features of a data set, kept in a folder for the stages that are given the same feature_cache_dir."""

    model_name_or_path: str
    """Checkpoint directory or Hub id."""
    dataset_name: str
    """Any data set that a stage reads."""
    feature_cache_dir: str
    """Folder to fill."""
    dataset_train_split: str = "train"
    """Split to read when the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the dataset file's own folder if not given."""
    dtype: Dtype = "float32"
    """Precision of the weights, as the stage that will read the features is told."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ScoreConfig(EngineConfig):
    """Scores of answers under a reward model, as JSONL."""

    reward_model_path: str
    """Directory that the reward stage wrote."""
    dataset_name: str
    """Rows with a prompt, images and an `answer` (or `completion`), or `chosen` and `rejected`."""
    output_file: str
    """JSONL to write: the row's id and `score`, or `score_chosen` and `score_rejected`."""
    dataset_train_split: str = "train"
    """Split to read when the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the dataset file's own folder if not given."""
    facts_file: str | None = None
    """Facts by image name."""
    batch_size: Count = 32
    """Answers at a time."""
    max_length: Count = 2048
    """Longest reward prompt plus answer in tokens."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RewardEvalConfig(EngineConfig):
    """How far a reward model can be trusted: accuracy by group, calibration, contradiction probe, facts curve."""

    reward_model_path: str
    """Directory that the reward stage wrote."""
    dataset_name: str
    """Preferences that it was not trained on."""
    output_dir: str
    """Where scores, result.json and the picture go."""
    dataset_train_split: str = "train"
    """Split to read when the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the dataset file's own folder if not given."""
    facts_file: str | None = None
    """Facts by image name."""
    limit: Count | None = None
    """Only the first rows."""
    probes: Annotated[int, Field(ge=0)] = 200
    """Rows that false claims are planted in."""
    batch_size: Count = 32
    """Rows at a time."""
    max_length: Count = 2048
    """Longest reward prompt plus answer in tokens."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the damage to facts and of what is planted."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CalibrateConfig:
    """What the verifiers that can be calibrated are told alike."""

    dataset_name: str
    """Rows with pictures, facts, and answers that claim something: preferences, or an `answer` or `completion`."""
    output_file: str
    """JSON to write: the calibration, and how well it does on pictures kept apart. A reliability diagram comes beside it."""
    dataset_train_split: str = "train"
    """Split to read when the dataset has several."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the dataset file's own folder if not given."""
    facts_file: str | None = None
    """Facts by image name."""
    lexicon_file: str | None = None
    """Nouns and other words to add to those that claims are read with."""
    claim_source: Literal["answers", "facts"] = "answers"
    """`answers`: what answers claim, as far as facts judge it; `facts`: what facts state, each true claim with a false one beside it."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Share of pictures that are kept apart: what is said of the calibration is measured on them."""
    min_labels: Count = 20
    """A kind of claims needs so many true ones, and as many false ones, to fit on; one with fewer is left out and stays unknown."""
    limit: Count | None = None
    """Only the first rows."""
    batch_size: Count = 64
    """Pictures at a time."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of which pictures are kept apart, and of the false claims beside facts."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CalibrateClipConfig(CalibrateConfig):
    """A calibration of the verifier clip: what an open_clip model's margins are worth, by kind of claim."""

    clip_model: str
    """A directory that open_clip saved, or one of its models as NAME:TAG."""
    clip_calibration: str | None = None
    """A calibration whose `nouns`, `groups` and `template` are kept; calibration.json in the model's directory if not given."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CalibrateVLMConfig(CalibrateConfig, EngineConfig):
    """A calibration of the verifier vlm: what a model's Yes against No is worth, by kind of claim."""

    model_name_or_path: str
    """Checkpoint directory or Hub id of the base that ppo will be given."""
    dtype: Dtype = "float32"
    """Precision of the weights, as ppo will be told."""
    max_length: Count = 2048
    """Longest question in tokens, image tokens counted; a longer one is not asked."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvalConfig(EngineConfig):
    """A benchmark on a model, or on answers that exist."""

    output_dir: str
    """Where predictions.jsonl, judgments.jsonl, scores.jsonl and result.json go."""
    model_name_or_path: str | None = None
    """Checkpoint directory or Hub id to ask, or the address of an OpenAI-compatible server (http://HOST:PORT/v1)."""
    reward_model_path: str | None = None
    """Reward model to ask which answer is better, on benchmarks that compare answers."""
    answers: str | None = None
    """Answers to score instead of asking a model (file or folder); neither pictures nor a model are needed."""
    format: Literal["predictions", "official", "llava", "lmms-eval", "vlmevalkit"] | None = None
    """What the answers' file is; by its fields if not given."""
    recorded_judgments: str | None = None
    """Recorded judgments to take instead of asking a judge (a run's judgments.jsonl)."""
    judge: str | None = None
    """Who judges, where a benchmark needs it: the address of an OpenAI-compatible server (http://HOST:PORT/v1), a checkpoint directory or Hub id, or
    `rules`."""
    judge_model: str | None = None
    """The judge's name at its address; not needed where the server has one model."""
    judge_max_tokens: Count = 512
    """Most tokens of a judgment."""
    judge_token_budget: Count | None = None
    """Tokens after which no more judgments are asked for; the same command with a larger one goes on."""
    dry_run: bool = False
    """Say what judging would take, and ask nobody."""
    served_model: str | None = None
    """The model's name, where --model_name_or_path is an address; not needed where the server has one model."""
    endpoint_timeout: Annotated[float, Field(gt=0)] = 120.0
    """Seconds to wait for a whole reply."""
    endpoint_retries: Annotated[int, Field(ge=0)] = 4
    """Further tries of a request that failed, with waits of 1, 2, 4, ... seconds between."""
    endpoint_concurrency: Count = 4
    """Requests under way at a time."""
    strict: bool = False
    """Missing, unknown, repeated and empty (null) answers are an error, not a count."""
    data: str | None = None
    """The benchmark's data (file or folder); some benchmarks make their own."""
    image_folder: str | None = None
    """Folder that relative image paths start from; the data's own folder if not given."""
    adapter_path: str | None = None
    """Adapter directory of a ppo run; the bare model if not given."""
    answer_cache_dir: str | None = None
    """Folder that keeps answers between runs: the same question about the same picture is not asked twice of one model."""
    dtype: Dtype = "float32"
    """Precision of the weights."""
    temperature: NonNegative = 0.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest tokens that together have this probability are sampled."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only so many of the likeliest tokens are sampled; 0: all."""
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens before which no answer may end."""
    stop: str | None = None
    """Text at which an answer ends, itself left out."""
    num_generations: Count = 1
    """Answers for each prompt; diversity within a prompt needs several."""
    response_length: Count = 128
    """Most tokens of an answer."""
    batch_size: Count = 64
    """Prompts at a time."""
    limit: Count | None = None
    """Only the first rows."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of sampling and of the bootstrap."""
