"""Configurations of the commands that run or measure models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf.config.base import (
    Count,
    DatasetConfig,
    Dtype,
    EngineConfig,
    FactsConfig,
    NonNegative,
    NonNegativeInt,
    Overlong,
    PixelConfig,
    Positive,
    RewardModelConfig,
    SamplingConfig,
    settings,
)


@settings
class GenerateConfig(SamplingConfig, FactsConfig, EngineConfig, PixelConfig):
    """Write a model's answers to prompts, as JSONL."""

    model_name_or_path: str
    """Checkpoint directory or Hub id."""
    dataset_name: str
    """Rows with a prompt and images."""
    output_file: str
    """JSONL to write: id, images, prompt, answer (one line per answer)."""
    limit: Count | None = None
    """Use only the first rows."""
    adapter_path: str | None = None
    """LoRA adapter, such as the folder `policy` of a dpo or ppo run; by default the bare model."""
    reward_model_path: str | None = None
    """Best-of-n: write only the answer that this reward model scores highest, of num_generations,
    with its score. It reads the rows' facts; the policy does not."""
    batch_size: Count = 16
    """Prompts per batch."""
    max_length: Count = 2048
    """Maximum tokens of a prompt, image tokens included."""
    overlong: Overlong = "error"
    """What to do with prompts over max_length, checked before the first answer: `error`, or `drop`
    to leave them out."""
    dtype: Dtype = "float32"
    """Precision of the weights."""
    seed: NonNegativeInt = 0
    """Random seed; samples depend on it and on each row's id, not on the batch."""


@settings
class ServeConfig(EngineConfig, PixelConfig):
    """Answer requests over HTTP: chat completions in OpenAI's form, and scores."""

    model_name_or_path: str
    """Folder of a finished run (its policy, or its reward model), a checkpoint directory or a Hub
    id."""
    adapter_path: str | None = None
    """Adapter directory of another policy on that model."""
    reward_model_path: str | None = None
    """Reward model that scores answers, in addition to the policy."""
    host: str = "127.0.0.1"
    """Address to listen on. If other machines can connect (0.0.0.0 for all networks), the command
    prints a token that clients must send."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one."""
    batch_size: Count = 16
    """Requests per batch."""
    max_waiting: Count = 64
    """Requests that may wait; further ones are refused with status 503."""
    response_length: Count = 512
    """Maximum tokens of an answer, also the default of requests."""
    max_length: Count = 4096
    """Maximum tokens of a prompt with its answer, image tokens included."""
    dtype: Dtype = "float32"
    """Precision of the weights."""


@settings
class ExportConfig:
    """Write a trained model so that other programs can load it, with processor and model card."""

    model_name_or_path: str
    """Checkpoint directory or Hub id; with an adapter, the base that it was trained on."""
    output_dir: str
    """Folder to write; it must be new or empty."""
    adapter_path: str | None = None
    """Adapter directory, such as a ppo run's policy folder."""
    merge: bool = False
    """Merge the adapter into the weights and write a whole model; otherwise write the adapter."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the written weights; that of the checkpoint by default."""
    eval_results: str | None = None
    """Output folders of `mmrlhf eval`, separated by commas, whose figures go into the model card;
    those measured during the training run are always included."""
    push_to_hub: bool = False
    """Upload the folder to the Hugging Face Hub, with the token of HF_TOKEN or `hf auth login`."""
    hub_model_id: str | None = None
    """Repository on the Hub as OWNER/NAME; the model card loads the model from there."""
    hub_private_repo: bool | None = None
    """Whether a new repository is private; by default as in its owner's settings, mostly public."""


@settings
class EncodeConfig(DatasetConfig, EngineConfig, PixelConfig):
    """Precompute the image features of a dataset for stages that use the same feature_cache_dir."""

    model_name_or_path: str
    """Checkpoint directory or Hub id."""
    dataset_name: str
    """Any dataset that a stage reads."""
    feature_cache_dir: str
    """Folder to fill."""
    dtype: Dtype = "float32"
    """Precision of the weights; use that of the stage that will read the features."""


@settings
class ScoreConfig(RewardModelConfig):
    """Score answers with a reward model, and write the scores as JSONL."""

    reward_model_path: str
    """Directory that the reward stage wrote."""
    dataset_name: str
    """Rows with a prompt, images and an `answer` (or `completion`), or `chosen` and `rejected`."""
    output_file: str
    """JSONL to write: the row's id and `score`, or `score_chosen` and `score_rejected`."""
    limit: Count | None = None
    """Use only the first rows."""


@settings
class RewardEvalConfig(RewardModelConfig):
    """Measure how reliable a reward is: on preferences accuracy by group, calibration, injected
    false claims and corrupted facts; on a policy's answers which errors it would reduce."""

    reward_model_path: str | None = None
    """Directory that the reward stage wrote; several, separated by commas, form an ensemble.
    Without one, claim rewards are measured on `answers`."""
    uncertainty_penalty: NonNegative = 0.0
    """Standard deviations of an ensemble's scores to subtract from their mean."""
    dataset_name: str | None = None
    """Preferences that were not used to train the reward model."""
    output_dir: str
    """Folder for the scores, result.json and the plot."""
    limit: Count | None = None
    """Use only the first rows."""
    probes: NonNegativeInt = 200
    """Rows to inject false claims into."""
    seed: NonNegativeInt = 0
    """Random seed of the corrupted facts and the injected claims."""
    answers: str | None = None
    """Sampled answers of the policy, as `mmrlhf generate` writes them, several per prompt: measure
    which kinds of false claims training against the reward would reduce, with facts and
    without."""
    reward_terms: str = "fact_rm=1"
    """The reward of these answers: fact_rm (the reward model) and claim rewards by facts, with
    weights."""
    unknown_claim_costs: str | None = None
    """Cost of an unknown claim in `hallucination`, by kind, such as `object=0.1, count=0.3`. By
    default 0."""
    truth: Literal["none", "facts", "labels", "clip"] = "none"
    """Where the truth about the answers' claims comes from: `facts` that the reward does not read,
    `labels` on a sample, or an open_clip model. With `none`, J is not measured."""
    truth_file: str | None = None
    """Separate facts (in any format of facts_file), or the output of `mmrlhf claims` with corrected
    verdicts."""
    clip_model: str | None = None
    """open_clip model for truth clip: a directory, or an architecture with a tag or a weights
    file."""
    clip_calibration: str | None = None
    """Calibration of clip_model, as `mmrlhf calibrate clip` writes it."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon for extracting the answers' claims."""


@settings
class CalibrateConfig(FactsConfig):
    """Settings of every verifier that can be calibrated."""

    dataset_name: str
    """Rows with images, facts, and answers that make claims: preferences, or an `answer` or
    `completion`."""
    output_file: str
    """JSON to write: the calibration and its metrics on held-out images. A reliability diagram is
    saved next to it."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon for extracting claims."""
    claim_source: Literal["answers", "facts"] = "answers"
    """`answers`: the claims of answers that facts can verify; `facts`: the claims of facts, each
    true one paired with a false one."""
    held_out: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Fraction of images held out to measure the calibration on."""
    min_labels: Count = 20
    """Minimum number of true claims, and of false claims, to fit a kind of claim; a kind with fewer
    stays unknown."""
    limit: Count | None = None
    """Use only the first rows."""
    batch_size: Count = 64
    """Images per batch."""
    seed: NonNegativeInt = 0
    """Random seed of the held-out images and of the false claims paired with facts."""


@settings
class CalibrateClipConfig(CalibrateConfig):
    """Calibrate the verifier clip: fit probabilities to an open_clip model's margins, by kind of
    claim."""

    clip_model: str
    """A directory that open_clip saved, or a pretrained model as NAME:TAG."""
    clip_calibration: str | None = None
    """Calibration to take `nouns`, `groups` and `template` from; by default calibration.json in the
    model's directory."""


@settings
class CalibrateVLMConfig(CalibrateConfig, EngineConfig, PixelConfig):
    """Calibrate the verifier vlm: fit probabilities to a model's log-odds of Yes over No, by kind
    of claim."""

    model_name_or_path: str
    """Checkpoint directory or Hub id of the base that ppo will use."""
    dtype: Dtype = "float32"
    """Precision of the weights; use that of ppo."""
    max_length: Count = 2048
    """Maximum tokens of a question, image tokens included; longer ones are skipped."""


@settings
class EvalConfig(SamplingConfig, EngineConfig, PixelConfig):
    """Measure a model on a benchmark, or score existing answers."""

    output_dir: str
    """Folder for predictions.jsonl, judgments.jsonl, scores.jsonl and result.json."""
    model_name_or_path: str | None = None
    """Checkpoint directory or Hub id, or the URL of an OpenAI-compatible server
    (http://HOST:PORT/v1)."""
    reward_model_path: str | None = None
    """Reward model that chooses the better answer, on benchmarks that compare answers."""
    base_model_name_or_path: str | None = None
    """New place of the reward model's base, if it has moved since training."""
    answers: str | None = None
    """File or folder of existing answers to score; neither images nor a model are needed."""
    format: Literal["predictions", "official", "llava", "lmms-eval", "vlmevalkit", "plain"] | None = None
    """Format of `answers`; detected from its fields by default."""
    recorded_judgments: str | None = None
    """Recorded judgments to use instead of a judge (a run's judgments.jsonl)."""
    judge: str | None = None
    """Judge, for benchmarks that need one: the URL of an OpenAI-compatible server
    (http://HOST:PORT/v1), a checkpoint directory or Hub id, or `rules`."""
    judge_model: str | None = None
    """Model name of the judge on its server; not needed if the server has one model."""
    judge_max_tokens: Count = 512
    """Maximum tokens of a judgment."""
    judge_token_budget: Count | None = None
    """Stop asking the judge after this many tokens; the same command with a larger budget
    continues."""
    dry_run: bool = False
    """Print what judging would cost without calling the judge."""
    served_model: str | None = None
    """Model name on the server at model_name_or_path; not needed if the server has one model."""
    endpoint_timeout: Positive = 120.0
    """Seconds to wait for a complete reply."""
    endpoint_retries: NonNegativeInt = 4
    """Retries of a failed request, after waits of 1, 2, 4, ... seconds."""
    endpoint_concurrency: Count = 4
    """Concurrent requests."""
    strict: bool = False
    """Fail on missing, unknown, repeated, empty (null) or not judged answers instead of counting
    them."""
    data: str | None = None
    """The benchmark's data (file or folder); some benchmarks generate their own."""
    image_folder: str | None = None
    """Folder that relative image paths start from; by default the folder of the data."""
    adapter_path: str | None = None
    """LoRA adapter, such as the folder `policy` of a dpo or ppo run; by default the bare model."""
    answer_cache_dir: str | None = None
    """Folder that keeps answers between runs: a model is asked the same question about the same
    image only once."""
    dtype: Dtype = "float32"
    """Precision of the weights."""
    batch_size: Count = 64
    """Prompts per batch."""
    limit: Count | None = None
    """Use only the first rows."""
    seed: NonNegativeInt = 0
    """Random seed of sampling and of the bootstrap."""
