"""Measure how many claims per second a VLM verifies, with shared and with separate prompts.

Shared means that all claims on an image share their prompt, up to the claim itself.

    python eval/speed/claims_vlm.py [--shape llava-10m|CHECKPOINT] [--pictures 4] [--claims 8]
        [--rounds 3] [--seeds 1] [--out DIR]

Uses random weights in a shape of _models.py; all but the toy shape have 576 tokens per image. Image
features are cached in both cases. fp32, CPU time. Also compares the log-odds of the two. The last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace

import torch
from _models import LLAVA_SHAPES, build_vlm, noise_examples
from _seeds import measure_seeds, parse_args

from mmrlhf.claims import load_lexicon
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.records import Claim
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.vlm import VLMVerifier


def measure(args: argparse.Namespace, seed: int) -> dict[str, object]:
    """Return claims per second of both variants (medians) and the largest log-odds difference."""
    torch.manual_seed(seed)
    verifier = VLMVerifier(Role(Adapters(build_vlm(args.shape, "cpu", torch.float32)), None), load_lexicon())
    nouns = sorted(set(load_lexicon().coco_category.values()))
    image_size = LLAVA_SHAPES[args.shape][0] if args.shape in LLAVA_SHAPES else 336
    claims = tuple(Claim("object", nouns[(7 * i) % len(nouns)]) for i in range(args.claims))
    shared_prompts = [AnswerClaims(row.images, (), claims) for row in noise_examples(args.pictures, image_size, 1000 * seed)]
    separate_prompts = [replace(answer, claims=(claim,)) for answer in shared_prompts for claim in answer.claims]
    variants = {"shared": shared_prompts, "apart": separate_prompts}
    # The first pass is also the warm-up.
    log_odds = {name: [x for odds in verifier.log_odds(answer_claims) for x in odds] for name, answer_claims in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, answer_claims in variants.items():
            start = time.process_time()
            verifier.log_odds(answer_claims)
            seconds[name].append(time.process_time() - start)
    num_claims = args.pictures * args.claims
    claims_per_s = {name: num_claims / statistics.median(times) for name, times in seconds.items()}
    speedup = claims_per_s["shared"] / claims_per_s["apart"]
    print(
        f"shared {claims_per_s['shared']:.1f}, separate {claims_per_s['apart']:.1f} claims per second: {speedup:.2f} x",
        flush=True,
    )
    max_difference = max(abs(a - b) for a, b in zip(log_odds["shared"], log_odds["apart"], strict=True))
    return {
        "seed": seed,
        "claims_per_s": claims_per_s,
        "speedup": speedup,
        "largest_difference": max_difference,
        "seconds": seconds,
    }


def main() -> None:
    args = parse_args(__doc__, {"pictures": 4, "claims": 8, "rounds": 3, "seeds": 1})
    results = measure_seeds("claims_vlm", args, measure)
    speedup = statistics.median(result["speedup"] for result in results)
    print(json.dumps({"shape": args.shape, "claims": args.claims, "speedup": speedup, "seeds": results}))


if __name__ == "__main__":
    main()
