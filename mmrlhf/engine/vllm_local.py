"""Sample with vLLM in the trainer's process, on the same device (colocated). Imports vLLM."""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.engine import vllm_features, vllm_requests
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.vllm_requests import EngineAnswer, EngineError
from mmrlhf.models.images import open_image
from mmrlhf.models.vlm import VLM, Prompt
from mmrlhf.records import InputError
from mmrlhf.text.printable import first_line, printable

CPU_ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
"""vLLM's settings on a CPU, if they are not set: a small cache (GiB), and the process's threads."""


@dataclass
class VLLMEngine:
    """A `RolloutEngine` of vLLM's `LLM`; `name` begins the names of its adapters."""

    vlm: VLM
    llm: Any
    name: str
    policy_version: int = -1
    is_asleep: bool = False
    _adapter: Any = None
    """The `LoRARequest` of the version, None for the base."""

    @classmethod
    def start(
        cls,
        vlm: VLM,
        name: str,
        *,
        max_length: int,
        lora_rank: int,
        gpu_memory_utilization: float,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> VLLMEngine:
        """Load the base once more, into vLLM, with the trainer's pixel limits.

        Raises InputError if vLLM is not installed, and EngineError if it cannot start.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        is_cpu = vlm.device.type == "cpu"
        for variable, value in CPU_ENVIRONMENT.items() if is_cpu else ():
            os.environ.setdefault(variable, value)
        try:
            from vllm import LLM
        except ImportError as error:
            raise InputError(
                f"rollout_engine vllm: vLLM does not load ({error}): install it beside mmrlhf, or start a server elsewhere "
                "(docs/engines.md)"
            ) from None
        model_type, has_features = vlm.model.config.model_type, vllm_features.takes_features(vlm)
        options: dict[str, Any] = {"enable_mm_embeds": True} if has_features else {}
        if has_features and model_type not in vllm_features.NEEDS_TOWER:
            options["limit_mm_per_prompt"] = {"image": 0}  # the tower is not loaded
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        limits = {limit: pixels for limit, pixels in limits.items() if pixels is not None}
        if limits and model_type.startswith("qwen"):  # vLLM takes these two names for Qwen-VL
            options["mm_processor_kwargs"] = limits
        try:
            llm = LLM(
                model=vlm.name,
                dtype="float32" if vlm.dtype == "float32" else "bfloat16",
                max_model_len=max_length,
                enable_lora=True,
                max_lora_rank=next((rank for rank in vllm_requests.LORA_RANKS if rank >= lora_rank), lora_rank),
                max_loras=2,
                logprobs_mode="processed_logprobs",
                enforce_eager=is_cpu,
                enable_chunked_prefill=not is_cpu,  # vLLM 0.32 rewinds a seed after a part of a prompt, as no CPU can
                enable_sleep_mode=not is_cpu,
                gpu_memory_utilization=gpu_memory_utilization,
                **options,
            )
        except Exception as error:  # of many kinds: no memory, a model or a GPU that vLLM does not know
            raise EngineError(
                f"rollout_engine vllm: vLLM does not start ({type(error).__name__}: {printable(first_line(error))}): change "
                "vllm_gpu_memory_utilization if its memory is too small or taken, or use rollout_engine local"
            ) from error
        if not has_features:
            print(f"note: vLLM encodes pictures again, because it takes no features of {model_type}")
        return cls(vlm, llm, name)

    def wake(self) -> None:
        """Take the GPU's memory again."""
        if self.is_asleep:
            self.llm.wake_up()
            self.is_asleep = False

    def free(self) -> None:
        """Move the weights to main memory and drop the cache of keys. Does nothing on a CPU."""
        if self.vlm.device.type != "cpu":
            self.llm.sleep(level=1)
            self.is_asleep = True

    def set_policy(self, version: int, adapter: Path | None = None) -> None:
        """Load a version under a new name and id, and unload the previous one."""
        if version == self.policy_version:
            return
        from vllm.lora.request import LoRARequest

        old = self._adapter
        self._adapter = None
        if adapter is not None:  # ids begin with 1
            self._adapter = LoRARequest(f"{self.name}-v{version}", version + 1, str(adapter.resolve()))
            with _refusals():
                self.llm.llm_engine.add_lora(self._adapter)
        if old is not None:
            self.llm.llm_engine.remove_lora(old.lora_int_id)
        self.policy_version = version

    def sample(self, prompts: Sequence[Prompt], n: int, params: SamplingParams) -> SampledCompletions:
        """Sample `n` answers per prompt from the version of `set_policy`."""
        from vllm import SamplingParams as VLLMSamplingParams

        shared = vllm_requests.sampling_params(self.vlm, params, n)
        shared["logit_bias"] = {int(token): bias for token, bias in shared["logit_bias"].items()}
        options = [VLLMSamplingParams(**shared, seed=seed) for seed in vllm_requests.prompt_seeds(prompts, params.seed)]
        inputs = [self._input(prompt) for prompt in prompts]
        with _refusals():
            outputs = self.llm.generate(inputs, options, lora_request=self._adapter, use_tqdm=False)
        for prompt, output in zip(prompts, outputs, strict=True):
            if list(output.prompt_token_ids) != prompt.token_ids.tolist():
                raise EngineError(
                    f"rollout_engine vllm: vLLM reads row {prompt.id} as {len(output.prompt_token_ids)} tokens, which are not the "
                    f"{len(prompt.token_ids)} of the trainer: use rollout_engine local for this model"
                )
        answers = [[_answer(choice) for choice in output.outputs] for output in outputs]
        return vllm_requests.build_completions(self.vlm, prompts, answers, params)

    def _input(self, prompt: Prompt) -> dict[str, Any]:
        """Return a prompt in vLLM's form, which expands the placeholders itself."""
        if not prompt.images:
            return {"prompt_token_ids": prompt.token_ids.tolist()}
        if vllm_features.takes_features(self.vlm):
            pictures = vllm_features.engine_pictures(self.vlm, prompt)
            data, keys = vllm_features.multi_modal_data(self.vlm, pictures), [picture.key for picture in pictures]
        else:
            data, keys = [open_image(image) for image in prompt.images], [image.key for image in prompt.images]
        return {
            "prompt_token_ids": self.vlm.tokenize_expanded(prompt.text),
            "multi_modal_data": {"image": data},
            "multi_modal_uuids": {"image": keys},
        }

    def close(self) -> None:
        """Release vLLM's memory."""
        self.llm = None
        gc.collect()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn errors of vLLM, such as for an unknown kind of adapter, into EngineError."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise EngineError(f"rollout_engine vllm: vLLM refuses ({printable(reason)}): use rollout_engine local") from None


def _answer(output: Any) -> EngineAnswer:
    token_ids = list(output.token_ids)
    logps = [position[token].logprob for position, token in zip(output.logprobs, token_ids, strict=True)]
    return EngineAnswer(token_ids, logps, output.finish_reason == "stop")
