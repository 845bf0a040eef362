"""The engine that samples a run's answers, and the versions of the policy that it receives."""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator

from mmrlhf.config import PPOConfig
from mmrlhf.engine.rollout import LocalEngine, RolloutEngine
from mmrlhf.engine.vllm_http import VLLMServers
from mmrlhf.engine.vllm_requests import EngineError
from mmrlhf.engine.vllm_server import Server
from mmrlhf.models.processes import broadcast_object_list
from mmrlhf.records import InputError
from mmrlhf.training.ppo.roles import PPORoles

ADAPTERS_FOLDER = "engine"
"""A folder of the run's directory with the policy's adapter for the engine, until the run ends."""


@contextmanager
def open_engine(config: PPOConfig, accelerator: Accelerator, roles: PPORoles, run_dir: Path) -> Iterator[RolloutEngine]:
    """Yield the engine given as `rollout_engine`; close it at the end of the block.

    Raises InputError if it cannot be used.
    """
    if config.samples_locally:
        yield LocalEngine(roles.policy)
        return
    if roles.vlm.encoder.lora_layers:  # check_settings refuses those of lora_target_modules
        raise InputError(
            f"rollout_engine {config.rollout_engine}: vLLM applies adapters to the language model only, and one of this run is "
            "in the projector or the vision tower: use rollout_engine local"
        )
    engine = _start(config, accelerator, roles)
    try:
        _remove_adapters(accelerator, run_dir)  # of a killed run
        yield engine
    finally:
        engine.close()
        _remove_adapters(accelerator, run_dir)


def _start(config: PPOConfig, accelerator: Accelerator, roles: PPORoles) -> RolloutEngine:
    # New in every trainer process: a server keeps the weights first loaded under a name.
    name = broadcast_object_list([f"policy-{secrets.token_hex(4)}"])[0]
    if config.server_urls:
        servers = [Server(url, config.vllm_server_timeout) for url in config.server_urls]
        return VLLMServers(roles.vlm, servers, name, accelerator.process_index, accelerator.num_processes)
    from mmrlhf.engine.vllm_local import VLLMEngine

    return VLLMEngine.start(
        roles.vlm,
        name,
        max_length=config.max_length,
        lora_rank=max(p.shape[0] for k, p in roles.policy.state_dict().items() if "lora_A" in k),
        gpu_memory_utilization=config.vllm_gpu_memory_utilization,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
    )


def _remove_adapters(accelerator: Accelerator, run_dir: Path) -> None:
    if accelerator.is_main_process:
        shutil.rmtree(run_dir / ADAPTERS_FOLDER, ignore_errors=True)


def check_engine(config: PPOConfig, num_processes: int) -> None:
    """Raise InputError, before a model is loaded, if the engine cannot be used as configured."""
    if config.rollout_engine == "vllm" and num_processes > 1:
        raise InputError("rollout_engine vllm is for one process: start a vLLM server for several (docs/engines.md)")
    if config.rollout_engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            "rollout_engine vllm: vLLM is not installed here: install it, or start a server elsewhere (docs/engines.md)"
        )
    for url in config.server_urls:
        server = Server(url, patience=0)
        try:
            server.check(config.max_length)
        finally:
            server.close()


def publish_sampler(
    config: PPOConfig, accelerator: Accelerator, roles: PPORoles, engine: RolloutEngine, run_dir: Path, version: int
) -> None:
    """Make the engine sample from the weights of the role `sampler`, as `version`.

    Raises EngineError, on all processes, if it cannot.
    """
    if config.samples_locally:
        engine.set_policy(version)
        return
    adapter = run_dir / ADAPTERS_FOLDER / f"v{version}"
    problem: str | None = None
    if accelerator.is_main_process and version != engine.policy_version:
        try:
            roles.adapters.save(str(roles.sampler.adapter), adapter)
            engine.wake()
            engine.set_policy(version, adapter)
            for older in (path for path in adapter.parent.iterdir() if path != adapter):
                shutil.rmtree(older)
        except EngineError as error:
            problem = str(error)
    problem = broadcast_object_list([problem])[0]
    if problem is not None:
        raise EngineError(problem)
    engine.set_policy(version, adapter)
