"""Configuration of the stage feedback."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf.config.base import (
    Count,
    Dtype,
    EngineConfig,
    FactsConfig,
    NonNegative,
    NonNegativeInt,
    Overlong,
    PixelConfig,
    Positive,
    settings,
)
from mmrlhf.config.policy_eval import SelectionConfig
from mmrlhf.config.rewards import VerifierConfig


@settings
class FeedbackConfig(SelectionConfig, VerifierConfig, FactsConfig, EngineConfig, PixelConfig):
    """Label preference pairs by verifying the claims of a model's own answers, and train on them,
    in rounds of sampling, labelling and training."""

    model_name_or_path: str
    """Checkpoint directory or Hub id of the vision-language model."""
    dataset_name: str
    """Rows with a prompt and images."""
    output_dir: str
    """Run directory, with a folder for each round. The same command resumes an unfinished run."""
    adapter_path: str | None = None
    """LoRA adapter of the policy that the first round samples from; by default the model itself."""
    num_rounds: Count = 1
    """Rounds; each samples from the last round's best policy."""
    algorithm: Literal["none", "dpo", "ppo"] = "none"
    """How a round uses its pairs: `none` only writes them, `dpo` trains on them, `ppo` trains a
    reward model on them and then the policy against it."""
    dpo_config: str | None = None
    """Recipe of each round's dpo: a YAML file, or the name of one that comes with the package, such
    as demo/dpo."""
    reward_config: str | None = None
    """Recipe of each round's reward model, for algorithm ppo, such as demo/reward."""
    ppo_config: str | None = None
    """Recipe of each round's ppo, for algorithm ppo, such as demo/ppo."""
    num_generations: Count = 8
    """Answers sampled per prompt in each round, all by the same policy."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most likely tokens that together reach this probability."""
    top_k: NonNegativeInt = 0
    """Sample from this many of the most likely tokens; 0: from all."""
    min_new_tokens: NonNegativeInt = 0
    """Minimum tokens of an answer."""
    response_length: Count = 128
    """Maximum tokens of an answer; answers that are cut off are left out of pairs."""
    verifier: str = "facts"
    """Verifier of the claims: facts, clip, vlm (the model itself, without adapters), judge, or
    several joined by `+`, where the first known verdict decides."""
    judge: str | None = None
    """URL of an OpenAI-compatible server (http://HOST:PORT/v1), for the verifier judge."""
    judge_model: str | None = None
    """Model name of the judge on its server; not needed if the server has one model."""
    judge_max_tokens: Count = 64
    """Maximum tokens of a judge's reply."""
    judge_concurrency: Count = 4
    """Concurrent requests to the judge."""
    false_claim_penalty: NonNegative = 4.0
    """Number of supported claims that one contradicted claim cancels in an answer's utility."""
    unknown_claim_costs: str | None = None
    """Cost of an unknown claim, as a fraction of a contradicted one, by kind, such as
    `object=0.1, count=0.3`: the share of such claims that are false. By default 0."""
    min_gap: Positive = 1.0
    """Smallest difference of two answers' utilities in a pair, in supported claims."""
    max_pairs_per_prompt: Count = 1
    """Maximum pairs per prompt, the widest gaps first."""
    balance_lengths: bool = True
    """Drop pairs until the chosen answer is the longer one as often as the shorter one, in bins of
    the length difference."""
    human_dataset_name: str | None = None
    """Preferences labelled by people, which every round uses in addition to its own pairs."""
    human_image_folder: str | None = None
    """Folder to which their image paths are relative; by default the folder of that file."""
    human_weight: Positive = 1.0
    """Weight of a pair of human_dataset_name: 3 repeats it three times, 0.5 draws half of them in
    each round."""
    truth_file: str | None = None
    """Facts hidden from the verifier, in any format of facts_file: labels are compared with
    them."""
    limit: Count | None = None
    """Use only the first rows."""
    batch_size: Count = 16
    """Prompts per batch of sampling and verifying, per process."""
    max_length: Count = 2048
    """Maximum tokens of prompt plus answer, image tokens included."""
    overlong: Overlong = "error"
    """What to do with prompts over max_length, checked before the first answer: `error`, or `drop`
    to leave them out."""
    dtype: Dtype = "float32"
    """Precision of the base weights."""
    seed: NonNegativeInt = 0
    """Random seed of the run."""
    save_total_limit: Count = 2
    """Number of newest checkpoints that a round's training keeps."""
    num_sample_pairs: NonNegativeInt = 24
    """Number of pairs on a round's page."""
