"""Check in seconds that the fast paths hold on this device, before anything long runs on it.

    python eval/speed/gpu_smoke.py [--device cuda]

For float32 and bfloat16, on a tiny LLaVA with random weights and two prompts of unequal length (so
that one is padded on the left, where rows of the attention mask are empty): hidden states and LoRA
gradients are finite, the engine keeps its fast path, captured decoding samples what plain decoding
samples, and the log-probs of decoding are those of the update. Prints a line per check and exits
with 1 if any fails. On a CPU nothing is captured; the steps with fixed shapes run uncaptured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from _models import build_llava, noise_examples
from phases import LORA

from mmrlhf.config import EngineConfig
from mmrlhf.engine.prefill import LOGP_TOLERANCE, run_prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import wrap
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, Message

PARAMS = SamplingParams(max_tokens=24, min_tokens=8)
NUM_GENERATIONS = 4
Check = tuple[str, bool, str]
"""A condition, whether it holds, and its figure."""


def build_vlm(device: str, dtype: torch.dtype) -> VLM:
    """Build the toy LLaVA of `_models.py`, the same weights for every device and precision."""
    torch.manual_seed(0)
    processor, model = build_llava("toy")
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 3
    return wrap(model.to(device, dtype), processor, "toy", EngineConfig())


def unequal_examples() -> list[Example]:
    """Return two examples about different images, one with a longer question."""
    first, second = noise_examples(2, image_size=56)
    longer = (Message("user", "Describe the image in one sentence, and say what is in the background."),)
    return [first, Example(second.id, second.images, longer)]


def checks(device: str, dtype: torch.dtype) -> Iterator[Check]:
    """Yield the checks of one precision."""
    vlm = build_vlm(device, dtype)
    adapters = Adapters(vlm)
    adapters.add("policy", *LORA)
    policy = Role(adapters, "policy")
    prompts = prompts_from_examples(vlm, unequal_examples())
    on_gpu = vlm.device.type == "cuda"

    with torch.no_grad():
        last_hidden = run_prefill(vlm, prompts).last_hidden_PD
    yield "hidden states after padded prompts are finite", bool(last_hidden.isfinite().all()), f"{len(prompts)} prompts"

    with policy.active():
        vlm.engine.use_cuda_graphs = False
        plain = sample_completions(vlm, prompts, NUM_GENERATIONS, PARAMS)
        vlm.engine.use_cuda_graphs = True
        captured = sample_completions(vlm, prompts, NUM_GENERATIONS, PARAMS)
    yield "the engine runs each prompt once", vlm.engine.share_prefix == "on", vlm.engine.share_prefix
    yield "answers to a prompt are packed", vlm.engine.supports_packing, str(vlm.engine.supports_packing)
    yield "steps are captured" if on_gpu else "steps have fixed shapes", vlm.engine.use_cuda_graphs, vlm.device.type

    num_same = sum(a == b for a, b in zip(plain.texts, captured.texts, strict=True))
    # In bfloat16 two kernels may round a log-prob across a token's boundary, and the answers part.
    is_same = num_same == len(plain.texts) or dtype != torch.float32
    yield "captured decoding samples the same answers", is_same, f"{num_same} of {len(plain.texts)}"
    width = min(plain.token_ids_NT.shape[1], captured.token_ids_NT.shape[1])
    is_shared_NT = (plain.token_ids_NT[:, :width] == captured.token_ids_NT[:, :width]).cumprod(1)  # until they part
    gap = float(((plain.logps_NT[:, :width] - captured.logps_NT[:, :width]) * is_shared_NT).abs().max())
    yield "captured decoding has the same log-probs", gap <= LOGP_TOLERANCE[dtype], f"{gap:.2g} nats"

    with torch.no_grad():
        recomputed = in_micro_batches(logps, policy, captured)
    gap = float(((recomputed - captured.logps_NT) * captured.mask_NT).abs().max())
    yield "the update has decoding's log-probs", gap <= LOGP_TOLERANCE[dtype], f"{gap:.2g} nats"

    for indices, hidden_NTD in hidden_states(policy, captured):
        logps(policy, captured, hidden_NTD, indices).sum().backward()
    gradients = [p.grad for p in policy.parameters()]
    finite = all(g is not None and bool(g.isfinite().all()) for g in gradients)
    largest = max(float(g.abs().max()) for g in gradients if g is not None)
    yield "LoRA gradients are finite and not zero", finite and largest > 0, f"largest {largest:.2g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(arguments)
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"{name}, torch {torch.__version__}")
    failed = 0
    for dtype in (torch.float32, torch.bfloat16):
        for what, holds, figure in checks(args.device, dtype):
            print(f"{'ok' if holds else 'FAILED':6} {str(dtype).removeprefix('torch.')}: {what} ({figure})")
            failed += not holds
    if failed:
        sys.exit(f"{failed} checks failed")
    print("all checks passed")


if __name__ == "__main__":
    main()
