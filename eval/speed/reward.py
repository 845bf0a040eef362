"""Time scoring preference pairs: the reward model against a full forward pass per answer.

    python eval/speed/reward.py [--shape llava-10m|CHECKPOINT] [--pairs 8] [--tokens 100]
        [--rounds 3] [--seeds 1] [--out DIR]

Uses random weights in a shape of _models.py; all but the toy one have 576 tokens per image. Images
are noise; facts and an answer have about `tokens` tokens together. Runs in turn: the naive path,
which encodes the image for each answer, at several batch sizes; the engine cold (encoding
included); and the engine with cached features. fp32. Also compares the scores of all variants. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from _models import LLAVA_SHAPES, build_vlm, noise_examples
from _seeds import measure_seeds, parse_args

from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.image_features import FeatureCache
from mmrlhf.models.images import open_image
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Fact
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, reward_messages


def make_groups(vlm: VLM, pairs: int, tokens: int, side: int, seed: int) -> list[AnswerGroup]:
    """Create a pair for each image; facts and an answer have about `tokens` tokens together."""
    rng = np.random.default_rng(seed)
    vocabulary = ["red", "blue", "cup", "dog", "table", "left", "of", "the", "a", "small", "is", "near"]
    pair_groups = []
    for row in noise_examples(pairs, side, 1000 * seed):
        facts = [Fact("object", f"{rng.choice(vocabulary)} {rng.choice(vocabulary)}") for _ in range(4)]
        answers = ["A", "The"]
        facts_text = " ".join(fact.text for fact in facts)
        for index in range(2):
            while vlm.count_tokens(answers[index] + facts_text) < tokens - 30:
                answers[index] += f" {rng.choice(vocabulary)}"
        pair_groups.append(AnswerGroup(row.images, row.prompt, tuple(answers), tuple(facts), row.id))
    return pair_groups


@torch.no_grad()
def naive_scores(model: RewardModel, pair_groups: list[AnswerGroup], batch: int) -> list[float]:
    """Run the processor and the full model on each answer, `batch` at a time."""
    vlm, role = model.role.vlm, model.role
    group_answers = [(group, answer) for group in pair_groups for answer in group.answers]
    scores: list[float] = []
    for start in range(0, len(group_answers), batch):
        batch_answers = group_answers[start : start + batch]
        texts = []
        for group, answer in batch_answers:
            messages = reward_messages(group.prompt, answer, model.facts_text(group.prompt, group.facts), "before")
            texts.append(vlm.apply_chat_template(messages, 1, generation_prompt=True))
        vlm.processor.tokenizer.padding_side = "right"
        images = [[open_image(group.images[0])] for group, _ in batch_answers]
        inputs = vlm.processor(text=texts, images=images, padding=True, return_tensors="pt")
        with role.active():
            hidden = vlm.model.base_model(**inputs).last_hidden_state
        last_hidden = hidden[torch.arange(len(batch_answers)), inputs["attention_mask"].sum(1) - 1]
        assert role.head is not None
        scores += role.head(last_hidden)[:, 0].tolist()
    return scores


def measure(args: argparse.Namespace, seed: int) -> dict[str, object]:
    """Return pairs per second of each variant (medians) and the largest score difference."""
    torch.manual_seed(seed)
    adapters = Adapters(build_vlm(args.shape, "cpu", torch.float32))
    vlm = adapters.vlm
    adapters.add("reward", 16, 32.0, seed)
    with torch.no_grad():
        for parameter in adapters.parameters("reward").values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    head = scalar_head(0.1 * torch.randn(vlm.hidden_size))
    model = RewardModel(Role(adapters, "reward", head), "given", "before")
    image_size = LLAVA_SHAPES[args.shape][0] if args.shape in LLAVA_SHAPES else 336
    pair_groups = make_groups(vlm, args.pairs, args.tokens, image_size, seed)

    def engine_scores(cold: bool) -> list[float]:
        if cold:
            vlm.encoder.cache = FeatureCache(vlm.device)
        return [score for scores in model.score(pair_groups) for score in scores]

    variants: dict[str, Callable[[], list[float]]] = {
        f"naive, batch {batch}": partial(naive_scores, model, pair_groups, batch) for batch in (1, 4, 16)
    }
    variants |= {"ours, cold": partial(engine_scores, True), "ours, features cached": partial(engine_scores, False)}
    scores_by_variant = {name: variant() for name, variant in variants.items()}  # also the warm-up
    expected_scores = scores_by_variant["naive, batch 1"]
    max_difference = max(
        abs(score - expected)
        for scores in scores_by_variant.values()
        for score, expected in zip(scores, expected_scores, strict=True)
    )
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - start)
    pairs_per_s = {name: args.pairs / statistics.median(times) for name, times in seconds.items()}
    best_naive = max(rate for name, rate in pairs_per_s.items() if name.startswith("naive"))
    for name, rate in pairs_per_s.items():
        print(f"{name:<24} {rate:6.2f} pairs per second, {rate / best_naive:5.2f} x the best naive variant", flush=True)
    return {
        "seed": seed,
        "pairs_per_s": pairs_per_s,
        "cold": pairs_per_s["ours, cold"] / best_naive,
        "cached": pairs_per_s["ours, features cached"] / best_naive,
        "largest_difference": max_difference,
        "seconds": seconds,
    }


def main() -> None:
    args = parse_args(__doc__, {"pairs": 8, "tokens": 100, "rounds": 3, "seeds": 1})
    results = measure_seeds("reward", args, measure)
    ratios = {name: statistics.median(result[name] for result in results) for name in ("cold", "cached")}
    print(json.dumps({"shape": args.shape, "tokens": args.tokens, **ratios, "seeds": results}))


if __name__ == "__main__":
    main()
