"""Preference pairs scored a second, against the naive way: each answer a whole forward with its own encoding of the picture.

    python eval/speed/reward.py [--shape llava-10m|CHECKPOINT] [--pairs 8] [--tokens 100] [--rounds 3] [--seeds 1] [--out DIR]

Random weights in a shape of phases.py; all of them but the toy show 576 tokens a picture. Pictures are new noise, facts and answers together have
about `tokens` tokens. In turn: the naive way at batch 1 and at the best of some batches, ours cold (features encoded in the time), ours
with features cached. fp32. Scores are compared. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from phases import LLAVA_SHAPES, build_vlm, noise_examples

from mmrlhf.files.atomic import write_atomic
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.image_features import FeatureCache
from mmrlhf.models.images import open_image
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Fact
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, reward_messages


def make_groups(vlm: VLM, pairs: int, tokens: int, side: int, seed: int) -> list[AnswerGroup]:
    """Pairs on a picture each; facts and an answer have about `tokens` tokens together."""
    rng = np.random.default_rng(seed)
    vocabulary = ["red", "blue", "cup", "dog", "table", "left", "of", "the", "a", "small", "is", "near"]
    pair_groups = []
    for row in noise_examples(pairs, side, 1000 * seed):
        facts = [Fact("object", f"{rng.choice(vocabulary)} {rng.choice(vocabulary)}") for _ in range(4)]
        answers = ["A", "The"]
        for i in range(2):
            while vlm.count_tokens(answers[i] + " ".join(f.text for f in facts)) < tokens - 30:
                answers[i] += f" {rng.choice(vocabulary)}"
        pair_groups.append(AnswerGroup(row.images, row.prompt, tuple(answers), tuple(facts), row.id))
    return pair_groups


@torch.no_grad()
def naive_scores(model: RewardModel, pair_groups: list[AnswerGroup], batch: int) -> list[float]:
    """The processor and the whole model on each answer, `batch` at a time."""
    vlm, role = model.role.vlm, model.role
    group_answers = [(g, answer) for g in pair_groups for answer in g.answers]
    scores: list[float] = []
    for start in range(0, len(group_answers), batch):
        batch_answers = group_answers[start : start + batch]
        texts = [
            vlm.apply_chat_template(
                reward_messages(g.prompt, answer, model.facts_text(g.prompt, g.facts), "before"), 1, generation_prompt=True
            )
            for g, answer in batch_answers
        ]
        vlm.processor.tokenizer.padding_side = "right"
        inputs = vlm.processor(
            text=texts, images=[[open_image(g.images[0])] for g, _ in batch_answers], padding=True, return_tensors="pt"
        )
        with role.active():
            hidden = vlm.model.base_model(**inputs).last_hidden_state
        last_hidden = hidden[torch.arange(len(batch_answers)), inputs["attention_mask"].sum(1) - 1]
        assert role.head is not None
        scores += role.head(last_hidden)[:, 0].tolist()
    return scores


def measure(args: argparse.Namespace, seed: int) -> dict[str, object]:
    """Pairs a second of every way, as medians of rounds in turn, and the largest difference of a score."""
    torch.manual_seed(seed)
    adapters = Adapters(build_vlm(args.shape, "cpu", torch.float32))
    vlm = adapters.vlm
    adapters.add("reward", 16, 32.0, seed)
    with torch.no_grad():
        for parameter in adapters.parameters("reward").values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    head = scalar_head(0.1 * torch.randn(vlm.hidden_size))
    model = RewardModel(Role(adapters, "reward", head), "given", "before")
    pair_groups = make_groups(
        vlm, args.pairs, args.tokens, LLAVA_SHAPES[args.shape][0] if args.shape in LLAVA_SHAPES else 336, seed
    )

    def engine_scores(cold: bool) -> list[float]:
        if cold:
            vlm.encoder.cache = FeatureCache(vlm.device)
        return [s for scores in model.score(pair_groups) for s in scores]

    variants: dict[str, Callable[[], list[float]]] = {
        f"naive, batch {b}": lambda b=b: naive_scores(model, pair_groups, b) for b in (1, 4, 16)
    }  # type: ignore[misc]
    variants |= {"ours, cold": lambda: engine_scores(True), "ours, features cached": lambda: engine_scores(False)}
    scores_by_variant = {name: variant() for name, variant in variants.items()}  # warm-up, and the same scores
    max_difference = max(
        abs(a - b) for name in variants for a, b in zip(scores_by_variant[name], scores_by_variant["naive, batch 1"], strict=True)
    )
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(args.rounds):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            seconds[name].append(time.perf_counter() - start)
    pairs_per_s = {name: args.pairs / statistics.median(times) for name, times in seconds.items()}
    best = max(v for name, v in pairs_per_s.items() if name.startswith("naive"))
    for name, value in pairs_per_s.items():
        print(f"{name:<24} {value:6.2f} pairs a second, {value / best:5.2f} x the best naive way", flush=True)
    return {"seed": seed, "pairs_per_s": pairs_per_s, "cold": pairs_per_s["ours, cold"] / best, "cached": pairs_per_s["ours, features cached"] / best,
            "largest_difference": max_difference, "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llava-10m")
    for name, default in (("pairs", 8), ("tokens", 100), ("rounds", 3), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", metavar="DIR", help="keeps each seed's figures, which are then not measured again")
    args = parser.parse_args()
    results = []
    for seed in range(args.seeds):
        result_path = Path(args.out) / f"reward-{args.shape.replace('/', '_')}-{seed}.json" if args.out else None
        if result_path is not None and result_path.exists():
            results.append(json.loads(result_path.read_text()))
            continue
        results.append(measure(args, seed))
        if result_path is not None:
            write_atomic(result_path, json.dumps(results[-1]))
    ratios = {name: statistics.median(result[name] for result in results) for name in ("cold", "cached")}
    print(json.dumps({"shape": args.shape, "tokens": args.tokens, **ratios, "seeds": results}))


if __name__ == "__main__":
    main()
