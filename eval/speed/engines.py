"""Time sampling: the trainer's own engine against vLLM in the same process, in turn.

    python eval/speed/engines.py [--shape llava-10m] [--sizes 8x8 64x8] [--tokens 48] [--rounds 3]

Run it in an environment with vLLM (`make test-engine` makes one). Both engines sample answers of
`tokens` tokens to `prompts` x `answers` prompts with one picture each, under the same LoRA adapter
(r = 16), in float32, from features that are already encoded, on all cores. Each round has prompts
of its own, so that no engine finds them in a cache. The last line is one JSON object: generated
tokens per second, medians over rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _models import LLAVA_SHAPES, noise_examples, save_llava
from _timing import time_call

from mmrlhf.engine.rollout import LocalEngine, RolloutEngine, prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.vllm_local import VLLMEngine
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import Prompt

MAX_LENGTH = 1024


def build_policy(shape: str, folder: Path) -> Role:
    """Write a checkpoint of a shape, and return a policy with an adapter on it."""
    save_llava(shape, folder)
    adapters = Adapters(load(str(folder)))
    adapters.add("policy", 16, 32.0, 0)
    with torch.no_grad():
        for parameter in adapters.parameters("policy").values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    return Role(adapters, "policy")


def tokens_per_second(engine: RolloutEngine, prompts: list[Prompt], num_answers: int, params: SamplingParams) -> float:
    """Return the generated tokens per second of one call."""
    seconds, completions = time_call(lambda: engine.sample(prompts, num_answers, params))
    return float(completions.mask_NT.sum()) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llava-10m", choices=LLAVA_SHAPES)
    parser.add_argument("--sizes", nargs="+", default=["8x8", "64x8"], metavar="PxA", help="prompts x answers to each")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        policy = build_policy(args.shape, Path(name) / "model")
        policy.adapters.save("policy", Path(name) / "adapter")
        vllm = VLLMEngine.start(policy.vlm, "speed", max_length=MAX_LENGTH, lora_rank=16, gpu_memory_utilization=0.3)
        vllm.set_policy(1, Path(name) / "adapter")
        engines: dict[str, RolloutEngine] = {"local": LocalEngine(policy), "vllm": vllm}
        params = SamplingParams(args.tokens, 1.0, min_tokens=args.tokens)
        for size in args.sizes:
            num_prompts, num_answers = map(int, size.split("x"))
            speeds: dict[str, list[float]] = {name: [] for name in engines}
            for number in range(args.rounds + 1):  # the first round is the warm-up
                examples = noise_examples(num_prompts, LLAVA_SHAPES[args.shape][0], first_seed=1000 * number)
                prompts = prompts_from_examples(policy.vlm, examples)
                for engine_name, engine in engines.items():
                    speed = tokens_per_second(engine, prompts, num_answers, replace(params, seed=number))
                    if number:
                        speeds[engine_name].append(round(speed, 1))
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            results[size] = {**speeds, "local / vllm": round(medians["local"] / medians["vllm"], 2)}
            print(size, results[size], flush=True)
        vllm.close()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
