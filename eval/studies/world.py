"""What the studies share: the demo's world built once for each seed, cells of which each is kept when it is done, and tables over seeds.

A study takes `--seeds N` (0 to N-1), `--out DIR` and `--workers N`, builds all it needs in DIR, goes on where it was killed, prints Markdown, and
one line of JSON last. Intervals are 95% t-intervals over seeds. Models this small gain little from a second core: each worker has one,
and a world.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from scipy import stats

from mmrlhf import demo, scenes
from mmrlhf.benchmark import load_benchmark
from mmrlhf.config import PPOConfig, RewardConfig, SFTConfig, WorldConfig
from mmrlhf.content import find, folder
from mmrlhf.evaluate import scored
from mmrlhf.files import write_whole
from mmrlhf.generate import policy
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Fact, Preference
from mmrlhf.reward_model import reward
from mmrlhf.rollout import answer_all
from mmrlhf.settings import load
from mmrlhf.sft import sft
from mmrlhf.terms import Term

BUDGET = {"per_device_train_batch_size": 24, "max_steps": 16}
"""Of a policy: a third of the demo's answers, since studies train dozens."""
DIFFICULTIES = {"easier": 0.1, "demo": 0.28, "harder": 0.5}
"""Shares of objects that are faded and partly covered."""


def arguments(about: str | None, **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="keeps everything that is built and measured")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="worlds at a time, a core each")
    for name, options in more.items():
        parser.add_argument(f"--{name}", **options)
    return parser.parse_args()


T = TypeVar("T")


def over(worlds: Sequence[World], work: Callable[[World], T], workers: int) -> list[T]:
    """What `work`, a module's function, finds in each world, so many at a time."""
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        return list(pool.map(work, worlds))


def cell(out: Path, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell's figures: those that are kept, or else those that `work` gives now."""
    kept = out / "cells" / f"{name}.json"
    if not kept.exists():
        began = time.time()
        found = work()
        write_whole(kept, json.dumps(found | {"seconds": round(time.time() - began, 1)}))
        print(f"{name}: {time.time() - began:.0f} s", flush=True)
    return dict(json.loads(kept.read_text()))


def cells(
    world: World, study: str, settings: Iterable[str], measured: Callable[[World, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """A cell for each setting of a study in one world."""

    def one(setting: str) -> dict[str, Any]:
        name = "".join(c if c.isalnum() else "_" for c in setting)
        return cell(world.out, f"{study}-{world.seed}-{name}", lambda: measured(world, setting))

    return [one(setting) for setting in settings]


@dataclass(frozen=True)
class World:
    """One seed's world at one difficulty, its parts in `out`."""

    out: Path
    seed: int
    difficulty: str = "demo"
    listed: float = 0.8
    wrong: float = 0.05

    @property
    def place(self) -> Path:
        return self.out / f"{self.difficulty}-{self.seed}"

    @cached_property
    def config(self) -> WorldConfig:
        known = {"seed": self.seed, "hard": DIFFICULTIES[self.difficulty], "held_out_pairs": 1000}
        return load(WorldConfig, find("configs", "demo/world"), known | {"listed": self.listed, "wrong": self.wrong})

    @cached_property
    def model(self) -> str:
        """The fine-tuned model, as the demo makes it."""
        config = self._configured(
            SFTConfig, "sft", model_name_or_path=str(folder("data") / "scenes_base"), output_dir=str(self.place / "sft")
        )
        if not (self.place / "sft" / "done.json").exists():
            sft(config, demo.sft_rows(self.config, self.config.habit))
        return str(self.place / "sft" / "model")

    @cached_property
    def pairs(self) -> tuple[list[Preference], list[Preference]]:
        """Training pairs and held-out pairs."""
        return demo.preference_pairs(self.config, self.model, self.place / "pairs.jsonl")

    def reward(self, name: str, change: Callable[[Preference], Preference] | None = None, **how: Any) -> str:
        """A reward model on the pairs, `change`d where facts are to be of another quality."""
        directory = self.place / f"reward_{name}"
        if not (directory / "done.json").exists():
            rows = [[change(p) for p in part] if change else part for part in self.pairs]
            reward(
                self._configured(RewardConfig, "reward", model_name_or_path=self.model, output_dir=str(directory), **how), *rows
            )
        return str(directory)

    def policy(
        self, name: str, rows: Sequence[Example] | None = None, more_terms: dict[str, Term] | None = None, **how: Any
    ) -> str:
        """A policy trained on prompts, the demo's if none are given."""
        directory = self.place / f"ppo_{name}"
        if not (directory / "done.json").exists():
            config = self._configured(
                PPOConfig, "ppo", model_name_or_path=self.model, output_dir=str(directory), min_probe_rate=0, **BUDGET | how
            )
            ppo(config, demo.rl_prompts(self.config) if rows is None else rows, None, more_terms)
        return str(directory / "policy")

    def measured(self, adapter: str | None, count: int = 300) -> dict[str, float]:
        """Greedy answers on the first held-out scenes: what the demo's table shows."""
        module = load_benchmark("scenes")
        rows = module.prompts("held_out", count)
        with policy(self.model, adapter) as vlm:
            said = {e.id: texts for e, texts in answer_all(vlm, rows, demo.GREEDY, batch_size=100)}
        found = scored(module, rows, said, None, self.seed)["held_out"]
        return {k: v for k, v in found.items() if isinstance(v, float)}

    def truth(self, row: Preference) -> tuple[Fact, ...]:
        """All that is true of a pair's scene."""
        index = int(row.id.split("-")[1])
        return scenes.facts(demo.scene_of("pairs", index, self.config), np.random.default_rng([9, index]), listed=1.0, wrong=0.0)

    def _configured(self, cls: Any, stage: str, **values: Any) -> Any:
        return load(cls, find("configs", f"demo/{stage}"), {"dataset_name": demo.IN_MEMORY, "seed": self.seed, **values})

    def at(self, **changed: Any) -> World:
        return replace(self, **changed)


# ---- over seeds --------------------------------------------------------------------------------------------------------


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half width of the 95% t-interval; the width is NaN for one value."""
    found = np.array(list(values), dtype=float)
    half = float(stats.t.ppf(0.975, len(found) - 1) * stats.sem(found)) if len(found) > 1 else float("nan")
    return float(found.mean()), half


def shown(values: Iterable[float], percent: bool = False, sign: str = "") -> str:
    """Mean and half width as tables have them; of one value there is no width, of none nothing."""
    found = list(values)
    scale, digits = (100, 1) if percent else (1, 2)
    if not found:
        return "-"
    mean, half = interval(found)
    return f"{mean * scale:{sign}.{digits}f}" + (f" ± {half * scale:.{digits}f}" if len(found) > 1 else "")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)
