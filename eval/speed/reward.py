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
from phases import LLAVAS, build, rows

from mmrlhf.features import FeatureCache
from mmrlhf.files import write_whole
from mmrlhf.images import open_image
from mmrlhf.records import Fact
from mmrlhf.rewards import Group, RewardModel, review_messages
from mmrlhf.roles import Adapters, Role, scalar_head
from mmrlhf.vlm import VLM


def groups(vlm: VLM, pairs: int, tokens: int, side: int, seed: int) -> list[Group]:
    """Pairs on a picture each; facts and an answer have about `tokens` tokens together."""
    rng = np.random.default_rng(seed)
    words = ["red", "blue", "cup", "dog", "table", "left", "of", "the", "a", "small", "is", "near"]
    found = []
    for row in rows(pairs, side, 1000 * seed):
        facts = [Fact("object", f"{rng.choice(words)} {rng.choice(words)}") for _ in range(4)]
        answers = ["A", "The"]
        for i in range(2):
            while vlm.count_tokens(answers[i] + " ".join(f.text for f in facts)) < tokens - 30:
                answers[i] += f" {rng.choice(words)}"
        found.append(Group(row.images, row.prompt, tuple(answers), tuple(facts), row.id))
    return found


@torch.no_grad()
def naive(model: RewardModel, some: list[Group], batch: int) -> list[float]:
    """The processor and the whole model on each answer, `batch` at a time."""
    vlm, role = model.role.vlm, model.role
    asked = [(g, answer) for g in some for answer in g.answers]
    scores: list[float] = []
    for start in range(0, len(asked), batch):
        part = asked[start : start + batch]
        texts = [
            vlm.render(review_messages(g.prompt, answer, model.rendered(g.prompt, g.facts), "before"), 1, generation_prompt=True)
            for g, answer in part
        ]
        vlm.processor.tokenizer.padding_side = "right"
        inputs = vlm.processor(text=texts, images=[[open_image(g.images[0])] for g, _ in part], padding=True, return_tensors="pt")
        with role.active():
            hidden = vlm.model.base_model(**inputs).last_hidden_state
        last = hidden[torch.arange(len(part)), inputs["attention_mask"].sum(1) - 1]
        assert role.head is not None
        scores += role.head(last)[:, 0].tolist()
    return scores


def measure(given: argparse.Namespace, seed: int) -> dict[str, object]:
    """Pairs a second of every way, as medians of rounds in turn, and the largest difference of a score."""
    torch.manual_seed(seed)
    adapters = Adapters(build(given.shape, "cpu", torch.float32))
    vlm = adapters.vlm
    adapters.add("reward", 16, 32.0, seed)
    with torch.no_grad():
        for parameter in adapters.parameters("reward").values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    head = scalar_head(0.1 * torch.randn(vlm.hidden_size))
    model = RewardModel(Role(adapters, "reward", head), "given", "before")
    some = groups(vlm, given.pairs, given.tokens, LLAVAS[given.shape][0] if given.shape in LLAVAS else 336, seed)

    def ours(cold: bool) -> list[float]:
        if cold:
            vlm.encoder.cache = FeatureCache(vlm.device)
        return [s for scores in model.score(some) for s in scores]

    ways: dict[str, Callable[[], list[float]]] = {f"naive, batch {b}": lambda b=b: naive(model, some, b) for b in (1, 4, 16)}  # type: ignore[misc]
    ways |= {"ours, cold": lambda: ours(True), "ours, features cached": lambda: ours(False)}
    found = {name: way() for name, way in ways.items()}  # warm-up, and the same scores
    gap = max(abs(a - b) for name in ways for a, b in zip(found[name], found["naive, batch 1"], strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - began)
    rate = {name: given.pairs / statistics.median(times) for name, times in seconds.items()}
    best = max(v for name, v in rate.items() if name.startswith("naive"))
    for name, value in rate.items():
        print(f"{name:<24} {value:6.2f} pairs a second, {value / best:5.2f} x the best naive way", flush=True)
    return {"seed": seed, "pairs_per_s": rate, "cold": rate["ours, cold"] / best, "cached": rate["ours, features cached"] / best,
            "largest_difference": gap, "seconds": seconds}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llava-10m")
    for name, default in (("pairs", 8), ("tokens", 100), ("rounds", 3), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", metavar="DIR", help="keeps each seed's figures, which are then not measured again")
    given = parser.parse_args()
    found = []
    for seed in range(given.seeds):
        kept = Path(given.out) / f"reward-{given.shape.replace('/', '_')}-{seed}.json" if given.out else None
        if kept is not None and kept.exists():
            found.append(json.loads(kept.read_text()))
            continue
        found.append(measure(given, seed))
        if kept is not None:
            write_whole(kept, json.dumps(found[-1]))
    ratios = {name: statistics.median(f[name] for f in found) for name in ("cold", "cached")}
    print(json.dumps({"shape": given.shape, "tokens": given.tokens, **ratios, "seeds": found}))


if __name__ == "__main__":
    main()
