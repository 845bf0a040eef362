"""The reward models that `fact_rm` uses: loaded, and refused if they were measured to be bad."""

from __future__ import annotations

from accelerate import Accelerator

from mmrlhf.config import RewardedConfig, RewardEvalConfig
from mmrlhf.metrics.youden import ALL_KINDS
from mmrlhf.models.adapters import Adapters
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.probes import INJECTED_CLAIMS, NOTHING_TO_INJECT
from mmrlhf.rewards.reward_model import RewardModel
from mmrlhf.rewards.reward_terms import parse_reward_spec


def reward_model_paths(config: RewardedConfig | RewardEvalConfig) -> list[str]:
    """Return the directories in `reward_model_path`, which are separated by commas."""
    return [path.strip() for path in (config.reward_model_path or "").split(",") if path.strip()]


def load_reward_models(config: RewardedConfig, adapters: Adapters, accelerator: Accelerator) -> list[RewardModel]:
    """Load the models that `fact_rm` uses; return none if `reward_terms` does not name it.

    Raises InputError if no path is given, a model cannot be loaded, one fails too many probes, or
    training made one worse at telling false claims from true ones.
    """
    if "fact_rm" not in parse_reward_spec(config.reward_terms):
        return []
    paths = reward_model_paths(config)
    if not paths:
        raise InputError("reward_terms names fact_rm: give --reward_model_path, or leave fact_rm out")
    reward_models = []
    for index, path in enumerate(paths):
        adapter_name = "reward" if index == 0 else f"reward_{index}"
        reward_model = load_reward_model(
            path, adapters, config.max_length, accelerator.device, config, config, adapter_name=adapter_name, in_turns=True
        )
        _check_probes(path, reward_model, config.min_probe_detection_rate)
        if not config.allow_worse_reward_model:
            _check_j(path, reward_model)
        reward_models.append(reward_model)
    return reward_models


def _check_probes(path: str, reward_model: RewardModel, min_rate: float) -> None:
    """Raise InputError if the model misses too many false claims of a kind.

    Prints a note if the model was never probed.
    """
    if min_rate and not reward_model.probes:
        print(f"note: reward model {path} was never tested with injected hallucinations: {NOTHING_TO_INJECT}")
    for kind, detection_rate in reward_model.probes.items():
        if detection_rate < min_rate:
            raise InputError(
                f"reward model {path} lowers its score for {detection_rate:.0%} of injected hallucinations of kind {kind}, less "
                f"than min_probe_detection_rate {min_rate:g}: a policy would learn to make them; train it on such pairs, or "
                "lower --min_probe_detection_rate"
            )


def _check_j(path: str, reward_model: RewardModel) -> None:
    """Raise InputError if J on the claims of answers fell, beyond the 95% interval of the change.

    J on injected claims only gives a note: it often falls where J on a policy's own claims rises.
    """
    change = reward_model.j.get("change")
    if not change or change["high"] >= 0:
        return
    before, after = (reward_model.j[name][ALL_KINDS]["j"] for name in ("before", "after"))
    figures = f"worse than before its training (J {after:.2f}, before {before:.2f})"
    if reward_model.j["measured_on"] == INJECTED_CLAIMS:
        print(
            f"note: reward model {path} tells injected false claims from true ones {figures}; on a policy's own claims it may be "
            "better: measure it there with `mmrlhf reward-eval`, or with truth_file of `mmrlhf reward`"
        )
        return
    raise InputError(
        f"reward model {path} tells false claims from true ones {figures}: use the untrained review (`mmrlhf reward --max_steps "
        "0`), train it with --load_best_model_at_end true --metric_for_best_model j, or give --allow_worse_reward_model true"
    )
