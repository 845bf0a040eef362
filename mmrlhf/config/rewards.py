"""Settings of the reward of sampled answers."""

from __future__ import annotations

from typing import Literal

from mmrlhf.config.base import Fraction, NonNegative, settings


@settings
class VerifierConfig:
    """Settings of the verifiers of claims."""

    clip_model: str | None = None
    """Model of the verifier clip: a directory that open_clip saved, or a pretrained model as
    NAME:TAG."""
    clip_calibration: str | None = None
    """Calibration of the verifier clip (`mmrlhf calibrate clip`); by default calibration.json in
    the model's directory."""
    vlm_calibration: str | None = None
    """Calibration of the verifier vlm (`mmrlhf calibrate vlm`); by default its log-odds are used
    unchanged."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon for extracting claims."""


@settings
class RewardTermsConfig(VerifierConfig):
    """The reward functions of sampled answers, and verification and monitoring of their claims."""

    reward_model_path: str | None = None
    """Directory that the reward stage wrote, for fact_rm; several, separated by commas, form an
    ensemble."""
    reward_terms: str = "fact_rm=1, missing_eos=-1"
    """Reward functions with their weights, summed: fact_rm, correctness, answer_format, length,
    missing_eos, question_mark, repetition, FILE.py:NAME, and the claim rewards hallucination,
    coverage and verifier_score. Add @VERIFIER (facts, clip, vlm, or several joined by +) to a claim
    reward to change its verifier (default facts; clip for verifier_score)."""
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
    bounds, the sum of rewards is cut to 0, or to the mean of the prompt's answers if that is
    lower."""
    reward_clip_range: str | None = None
    """Lowest and highest reward of an answer, such as `-5,5`; sums of rewards are clipped to it."""
    unknown_claim_costs: str | None = None
    """Cost of an unknown claim in `hallucination`, by kind, such as `object=0.1, count=0.3`: the
    kind's false rate, which `mmrlhf claims` prints for training pairs. By default 0."""
    monitor_verifiers: str | None = None
    """Verifiers, separated by commas, that measure the answers of each step without affecting the
    reward."""
    allow_monitoring_reward_verifiers: bool = False
    """Allow monitoring with a verifier that is also part of the reward, and choosing the best
    policy by the benchmark facts if claims are rewarded by facts."""
    uncertainty_penalty: NonNegative = 0.0
    """Standard deviations of an ensemble's scores to subtract from their mean."""
    min_probe_detection_rate: Fraction = 0.6
    """Fraction of injected false claims, of every kind, that the reward model must score lower; ppo
    does not start below it. 0: no minimum."""
    allow_worse_reward_model: bool = False
    """Start with a reward model that training made worse at separating false from true claims (J in
    its reward.json), for studies."""

    @property
    def compares_terms_in_groups(self) -> bool:
        """Return whether each reward function is normalised among the answers to a prompt."""
        return self.multi_objective_aggregation == "normalize_then_sum" and self.term_statistics == "group"
