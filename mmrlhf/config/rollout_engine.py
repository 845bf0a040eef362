"""Settings of the engine that samples answers in training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmrlhf.config.base import Fraction, Positive, settings


@settings
class RolloutEngineConfig:
    """The engine that samples answers in training; docs/engines.md has the servers' command."""

    rollout_engine: str = "local"
    """Engine that samples answers: `local`, the trainer itself; `vllm`, vLLM in the trainer's
    process; or vLLM servers, `http://HOST:PORT`, several separated by commas, which receive prompts
    in turn."""
    async_steps: Annotated[int, Field(ge=0, le=1)] = 0
    """Number of steps by which sampling is ahead of training: with 1, servers sample the next
    step's answers while this one trains, from a policy that is one step older."""
    vllm_importance_sampling_correction: bool | None = None
    """Weight each token of the policy's loss by its probability in the trainer / in the engine that
    sampled it; by default for every engine except `local`."""
    vllm_importance_sampling_cap: Positive = 2.0
    """Limit on this weight (truncated importance sampling)."""
    vllm_server_timeout: Positive = 240.0
    """Seconds to wait for a server that is down, before the run saves and stops."""
    vllm_gpu_memory_utilization: Fraction = 0.3
    """Share of the GPU's memory that vLLM takes in the trainer's process."""

    @property
    def samples_locally(self) -> bool:
        """Return whether the trainer samples with its own weights and kernels."""
        return self.rollout_engine == "local"

    @property
    def corrects_importance(self) -> bool:
        """Return whether the policy's loss is weighted by the engine's importance ratios."""
        if self.vllm_importance_sampling_correction is None:
            return not self.samples_locally
        return self.vllm_importance_sampling_correction

    @property
    def server_urls(self) -> list[str]:
        """Return the addresses of the servers, empty for an engine in the trainer's process."""
        names = [name.strip().rstrip("/") for name in self.rollout_engine.split(",")]
        return names if all(name.startswith(("http://", "https://")) for name in names) else []
