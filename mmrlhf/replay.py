"""Recompute a training step that a run skipped, and name the non-finite values in it."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmrlhf.config import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from mmrlhf.config.loader import load_config
from mmrlhf.engine.rollout import LocalEngine
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.finite import NotFiniteError, is_finite, trace_not_finite
from mmrlhf.models.loading import load
from mmrlhf.models.policy import add_trained_adapter
from mmrlhf.models.processes import Accelerator
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, InputError
from mmrlhf.reward_model import build_models
from mmrlhf.rewards.claim_rewards import claim_reward_verifiers
from mmrlhf.rewards.functions import REWARD_FUNCTIONS
from mmrlhf.rewards.ledger import FAILURE_FILE
from mmrlhf.rewards.reward_terms import parse_reward_spec
from mmrlhf.rewards.types import RewardFunction, Sample
from mmrlhf.sft import add_sft_role
from mmrlhf.sft import compute_gradients as sft_gradients
from mmrlhf.training.dpo.batch import build_batch
from mmrlhf.training.dpo.image_pairs import images_from_tensors
from mmrlhf.training.dpo.step import Counts
from mmrlhf.training.dpo.step import compute_gradients as dpo_gradients
from mmrlhf.training.optim import GRADIENT_PROBLEM
from mmrlhf.training.ppo.batch import batch_from_tensors
from mmrlhf.training.ppo.policy_losses import Aggregation
from mmrlhf.training.ppo.ptx import PTXBatch
from mmrlhf.training.ppo.roles import PPORoles, load_roles
from mmrlhf.training.ppo.rollout import sample_and_score
from mmrlhf.training.ppo.update import compute_gradients as ppo_gradients
from mmrlhf.training.ppo.update import total_loss
from mmrlhf.training.replay_file import SavedStep, read_step
from mmrlhf.training.reward_model.step import compute_gradients as reward_gradients
from mmrlhf.training.sft_batch import build_sft_batch

MAX_NAMES = 3
"""Maximum number of names of tensors in a line."""


@dataclass(frozen=True)
class Step:
    """A step that is ready to run: the trained roles, and the function for loss and gradients.

    `compute` returns the loss, or None if the stage had none yet; it raises NotFiniteError like the
    stage.
    """

    roles: Sequence[Role]
    compute: Callable[[], float | None]


LOSS_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "nf4": 1e-2}
"""Relative difference of losses that counts as rounding, by `dtype`: a replay encodes only the
step's images, in other batches than the run."""


def replay(file: str, model_name_or_path: str | None = None) -> bool:
    """Recompute a saved step, print non-finite values, and return whether it is as in the run.

    The base is at the run's path, or at `model_name_or_path`. Raises InputError if the file cannot
    be read or the base is another one.
    """
    saved = read_step(Path(file))
    config_class, build = STAGES[saved.stage]
    moved = {} if model_name_or_path is None else {"model_name_or_path": model_name_or_path}
    try:
        config: Any = load_config(config_class, None, {**saved.config, **moved})
    except InputError as error:
        raise InputError(f"{file} was written with other settings than this version of mmrlhf has: {error}") from None
    accelerator = Accelerator()
    vlm = load(config.model_name_or_path, config.dtype, accelerator.device, config, config)
    if vlm.fingerprint != saved.base_fingerprint:
        raise InputError(f"{file} is of a run on other weights than {vlm.name} holds: give its base as --model_name_or_path")
    step = build(saved, config, vlm, accelerator)
    _load_weights(step.roles, saved.weights)
    elsewhere = "" if saved.is_cause else " (the cause was in another process: see its file in the same folder)"
    print(f"step {saved.step} of {saved.stage} was skipped: {saved.problem}{elsewhere}")
    print(f"rows: {', '.join(row.id or 'no id' for row in saved.rows)}")
    weights = {name: tensor for role in step.roles for name, tensor in role.state_dict().items()}
    _print_not_finite("weights", weights)
    _print_not_finite("saved tensors of the batch", saved.batch)
    with trace_not_finite(vlm.model) as modules:
        outcome, is_reproduced = _compute(step, saved)
    if modules:
        others = f", and then of {len(set(modules)) - 1} other modules" if len(set(modules)) > 1 else ""
        print(f"not finite: the output of {modules[0]} first{others}")
    gradients = {
        name: parameter.grad
        for role in step.roles
        for name, parameter in vlm.model.named_parameters()
        if parameter.grad is not None and any(parameter is trained for trained in role.parameters())
    }
    _print_not_finite("gradients", gradients)
    print(f"computed again: {outcome}, {'as in the run' if is_reproduced else 'which is not as in the run'}")
    shares = sorted(Path(file).parent.glob(f"step-{saved.step:06d}-rank*.safetensors"))
    if saved.problem.startswith(GRADIENT_PROBLEM) and not is_reproduced and len(shares) > 1:
        print(f"the gradient is a sum over {len(shares)} processes: replay the shares of the others, beside this file, too")
    return is_reproduced


def _compute(step: Step, saved: SavedStep) -> tuple[str, bool]:
    """Run the step; return the outcome in words, and whether it is the same as in the run."""
    try:
        loss = step.compute()
    except NotFiniteError as error:
        return str(error), str(error) == saved.problem
    if loss is None or "loss" not in saved.numbers:
        return "answers and rewards are finite", not saved.is_cause
    in_run = saved.numbers["loss"]
    if saved.problem.startswith(GRADIENT_PROBLEM):  # the loss was finite in the run
        gradients = [p.grad for role in step.roles for p in role.parameters() if p.grad is not None]
        has_norm = math.isfinite(torch.nn.utils.get_total_norm(gradients))
        return f"the loss is {loss}, and the gradient is {'finite' if has_norm else 'not finite'}", not has_norm
    is_rounding = math.isclose(loss, in_run, rel_tol=LOSS_TOLERANCE[saved.config["dtype"]])
    return f"the loss is {loss}", repr(loss) == repr(in_run) or is_rounding


def _load_weights(roles: Sequence[Role], weights: Mapping[str, Tensor]) -> None:
    for role in roles:
        role.load_state_dict(dict(weights))


def _print_not_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Print the names of the tensors with values that are not finite, if there are any."""
    names = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if names:
        shown = ", ".join(
            f"{name} ({int((~tensors[name].isfinite()).sum())} of {tensors[name].numel()} values)" for name in names[:MAX_NAMES]
        )
        print(f"not finite: {len(names)} of {len(tensors)} {what}: {shown}{', ...' if len(names) > MAX_NAMES else ''}")


# ---- stages --------------------------------------------------------------------------------------


def _sft_step(saved: SavedStep, config: SFTConfig, vlm: VLM, accelerator: Accelerator) -> Step:
    role = add_sft_role(config, vlm)
    batch = build_sft_batch(vlm, saved.rows, config.max_length, config.train_on)  # type: ignore[arg-type]
    num_tokens = torch.tensor(saved.numbers.get("num_tokens", 1.0), device=vlm.device)

    def compute() -> float:
        return sft_gradients(accelerator, role, batch, num_tokens)

    return Step([role], compute)


def _reward_step(saved: SavedStep, config: RewardConfig, vlm: VLM, accelerator: Accelerator) -> Step:
    model, untrained = build_models(config, vlm)

    def compute() -> float:
        batch_size = int(saved.numbers.get("batch_size", 1))
        return reward_gradients(config, accelerator, model, untrained, saved.rows, batch_size)["loss"]  # type: ignore[arg-type]

    return Step([model.role], compute)


def _dpo_step(saved: SavedStep, config: DPOConfig, vlm: VLM, accelerator: Accelerator) -> Step:
    adapters = Adapters(vlm)
    add_trained_adapter(adapters, "policy", config)
    policy, other_images = Role(adapters, "policy"), images_from_tensors(saved.batch, len(saved.rows))
    batch = build_batch(config, vlm, saved.rows, other_images)  # type: ignore[arg-type]
    ref_logps_N = saved.batch["ref_logps_N"].to(vlm.device)
    counts = Counts(**{field.name: saved.numbers.get(field.name, 1.0) for field in dataclasses.fields(Counts)})

    def compute() -> float:
        return dpo_gradients(config, accelerator, policy, batch, ref_logps_N, counts)["loss"]

    return Step([policy], compute)


def _ppo_step(saved: SavedStep, config: PPOConfig, vlm: VLM, accelerator: Accelerator) -> Step:
    """Prepare a minibatch of a step, or its rollout if that was where it ended."""
    roles = load_roles(config, vlm, accelerator, _functions_from_python(config))
    if "minibatch" not in saved.batch:
        return Step(roles.changing, lambda: _sample_again(saved, config, roles))
    num_prompts = len(saved.batch["mask_NT"]) // config.num_generations
    rows, ptx_rows = list(saved.rows[:num_prompts]), list(saved.rows[num_prompts:])
    batch = batch_from_tensors(config, roles, rows, saved.batch, saved.numbers)  # type: ignore[arg-type]
    num_tokens = torch.tensor(saved.numbers.get("num_tokens", 1.0), device=vlm.device)
    aggregate = Aggregation(
        config.loss_type,
        num_tokens=torch.tensor(saved.numbers.get("num_policy_tokens", float(num_tokens)), device=vlm.device),
        num_answers=int(saved.numbers.get("num_answers", 1)),
        max_tokens=config.response_length,
    )
    ptx = None
    if ptx_rows:
        num_ptx_tokens = torch.tensor(saved.numbers.get("num_ptx_tokens", 1.0), device=vlm.device)
        ptx = PTXBatch(ptx_rows, build_sft_batch(vlm, ptx_rows, config.max_length, "all"), num_ptx_tokens)  # type: ignore[arg-type]

    def compute() -> float:
        minibatch = batch.select(saved.batch["minibatch"].tolist())
        return total_loss(ppo_gradients(config, accelerator, roles, minibatch, aggregate, num_tokens, ptx))

    return Step(roles.changing, compute)


def _sample_again(saved: SavedStep, config: PPOConfig, roles: PPORoles) -> None:
    """Sample and score; a failing input is written to a separate folder, not to the run's."""
    numbered = [(row, row.id) for row in cast(Sequence[Example], saved.rows)]
    if not config.samples_locally:
        print(f"note: the run's answers were of rollout_engine {config.rollout_engine}; these are the trainer's own, and others")
    with tempfile.TemporaryDirectory() as folder:
        failure_file, of_run = Path(folder) / FAILURE_FILE, Path(config.output_dir) / FAILURE_FILE
        try:
            sample_and_score(config, roles, LocalEngine(roles.sampler), numbered, saved.step - 1, failure_file)
        except NotFiniteError as error:
            raise NotFiniteError(str(error).replace(str(failure_file), str(of_run))) from None


def _functions_from_python(config: PPOConfig) -> dict[str, RewardFunction]:
    """Return placeholders for reward functions that were passed to the run from Python."""

    def stand_in(samples: Sequence[Sample]) -> list[float]:
        raise InputError("reward_terms names a function that the run got from Python, which a replay does not have")

    known = ("fact_rm", *REWARD_FUNCTIONS, *claim_reward_verifiers(config.reward_terms))
    names = parse_reward_spec(config.reward_terms)
    return dict.fromkeys((name for name in names if name not in known and ".py:" not in name), stand_in)


STAGES: dict[str, tuple[type, Callable[[SavedStep, Any, VLM, Accelerator], Step]]] = {
    "sft": (SFTConfig, _sft_step),
    "reward": (RewardConfig, _reward_step),
    "dpo": (DPOConfig, _dpo_step),
    "ppo": (PPOConfig, _ppo_step),
}
"""The configuration of each stage, and the function that prepares its step."""
