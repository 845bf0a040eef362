"""How much does a step on a reward improve the truth? Gradients of rewards at the SFT model.

    python eval/studies/facts_map.py --out runs/map --seeds 9 10 11 12 13 --cells rm-250-none
    python eval/studies/reward_gradients.py --out runs/map --seeds 9 10 11 12 13

The gradient is that of a policy's adapter by REINFORCE, where an answer's advantage is its reward
minus the mean of its prompt's others. It is estimated from batches of as many prompts as PPO
samples per step (24, four answers each). PPO's update is another one: it has a critic, advantages
of tokens, minibatches and Adam. Products of expectations are estimated without bias, from different
batches.

limit        cosine of the reward's expected gradient with that of true utility u: how right the
             reward is about what the policy can change
noise scale  prompts in a batch half of whose mean squared gradient is noise (McCandlish et al.
             2018)
step         limit x sqrt(signal), where signal is the share of the expected gradient in the mean
             square of one of n batches: by how much a step of fixed root mean square along it
             improves u, relative to a step along the exact gradient of u

The oracle is u itself, so its limit is 1, and its step is what noise leaves of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    Experiment,
    cached_result,
    format_mean,
    markdown_table,
    mean_and_half_width,
    run_and_report,
    run_parallel,
    save_figure,
)
from facts_map import CELLS
from facts_map_curves import split_cell
from facts_map_judges import Cell, arm_facts, cell_rewards, load_judge
from facts_map_plots import COLOURS, TEXT_COLOUR
from matplotlib.figure import Figure
from torch import Tensor

from mmrlhf.config import PPOConfig
from mmrlhf.demo import data
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.engine.completions import SampledCompletions
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import hidden_states, logps
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.models.policy import add_trained_adapter
from mmrlhf.records import Example
from mmrlhf.report.plots import style_context
from mmrlhf.rewards.ledger import score_samples
from mmrlhf.rewards.types import Sample

REWARDS = {
    "oracle": "true utility",
    "rm-0-none": "untrained review, no facts",
    "rm-0-annotator": "untrained review, annotator's facts",
    "rm-0-all": "untrained review, all facts",
    "rm-250-none": "250 labels, no facts",
    "rm-250-annotator": "250 labels, annotator's facts",
    "claims-annotator": "claims, annotator's facts",
    "claims-all": "claims, all facts",
    "ranked-8000-annotator": "no facts, pairs ranked by annotator's",
    "ranked-8000-all": "no facts, pairs ranked by all facts",
}
"""Cells of facts_map.py, and their names in the figure."""
MARKERS = {"oracle": "*", "rm": "o", "labels": "s", "claims": "^", "ranked": "D"}
PROMPTS_PER_BATCH, NUM_GENERATIONS = 24, 4
Cells = Mapping[str, dict[int, dict[str, float]]]
"""Measures by reward and seed."""
COLUMNS = {
    "correlation": lambda c: c["correlation"],
    "limit": lambda c: c["limit"],
    "noise scale": lambda c: PROMPTS_PER_BATCH * (1 - c["signal"]) / c["signal"],
    "step, 1 batch": lambda c: step_of_batches(c, 1),
    "16 batches": lambda c: step_of_batches(c, 16),
    "48 batches": lambda c: step_of_batches(c, 48),
}
"""Columns of the table, from the measures of one batch."""
COMPARED = (
    ("rm-0-none", "oracle"), ("rm-0-annotator", "rm-0-none"), ("rm-0-all", "rm-0-none"),
    ("rm-250-annotator", "rm-250-none"), ("claims-all", "claims-annotator"), ("ranked-8000-annotator", "claims-annotator"),
    ("ranked-8000-all", "claims-all"),
)  # fmt: skip


# ---- statistics ----------------------------------------------------------------------------------


def product_of_means(a_BD: Tensor, b_BD: Tensor) -> float:
    """Return the product of the expected rows of a and b, whose rows are of the same batches.

    Products of a batch with itself are left out: they would add its noise.
    """
    num_batches = len(a_BD)
    total = a_BD.sum(0) @ b_BD.sum(0) - (a_BD * b_BD).sum()
    return float(total) / (num_batches * (num_batches - 1))


def gradient_measures(reward_BD: Tensor, truth_BD: Tensor) -> dict[str, float]:
    """Return `limit` and `signal` of a reward from gradients [batches, parameters].

    A measure is NaN if noise makes an expected gradient's squared length negative.
    """
    truth, reward = product_of_means(truth_BD, truth_BD), product_of_means(reward_BD, reward_BD)
    both, mean_square = product_of_means(reward_BD, truth_BD), float(reward_BD.square().sum(1).mean())
    if min(truth, reward) <= 0:
        return {"limit": float("nan"), "signal": float("nan")}
    return {"limit": both / (truth * reward) ** 0.5, "signal": reward / mean_square}


def step_of_batches(measures: Mapping[str, float], num_batches: int) -> float:
    """Return `step` for the mean gradient of several batches, from the measures of one."""
    signal = num_batches * measures["signal"] / (num_batches * measures["signal"] + 1 - measures["signal"])
    return float(measures["limit"] * np.sqrt(signal))


def centre(rewards_PG: np.ndarray) -> np.ndarray:
    """Return advantages: each answer's reward minus the mean of its prompt's others."""
    size = rewards_PG.shape[1]
    return (rewards_PG - rewards_PG.mean(1, keepdims=True)) * size / (size - 1)


# ---- measuring -----------------------------------------------------------------------------------


def gradient(role: Role, completions: SampledCompletions, advantages_N: Tensor) -> Tensor:
    """Return the policy gradient [parameters] of answers with these advantages, per answer."""
    role.clear_gradients()
    for indices, hidden_NTD in hidden_states(role, completions):
        log_probs_N = logps(role, completions, hidden_NTD, indices).sum(1)
        (advantages_N[indices] @ log_probs_N / len(advantages_N)).backward()
    return torch.cat([p.grad.flatten() for p in role.parameters() if p.grad is not None])


def score_answers(experiment: Experiment, cell: Cell, rows: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
    """Return a cell's rewards [prompts, answers]."""
    samples = [
        Sample(row.id, row.images, row.prompt, answer, arm_facts(cell.facts, "rl", row.id, experiment))
        for row, answer in zip([r for r in rows for _ in range(NUM_GENERATIONS)], answers, strict=True)
    ]
    weighted_rewards = cell_rewards(experiment, cell, load_judge(experiment, cell))
    breakdowns = score_samples(weighted_rewards, samples, experiment.directory / "failed_term.json")
    return np.array([b.total for b in breakdowns]).reshape(len(rows), NUM_GENERATIONS)


class Answers:
    """Batches of answers that the SFT model sampled for a seed's prompts, and u's gradient."""

    def __init__(self, experiment: Experiment, num_batches: int) -> None:
        num_prompts = num_batches * PROMPTS_PER_BATCH
        self.experiment = experiment
        self.rows = data.build_rl_prompts(replace(experiment.data_config, rl_scenes=num_prompts))
        adapters = Adapters(load_vlm(experiment.sft_path))
        config = stage_config(PPOConfig, experiment.seed, experiment.directory / "ppo", model_name_or_path=experiment.sft_path)
        add_trained_adapter(adapters, "policy", config)
        self.policy, self.batches = Role(adapters, "policy"), []
        params = SamplingParams(data.RESPONSE_LENGTH, 1.0, seed=experiment.seed)
        for start in range(0, num_prompts, PROMPTS_PER_BATCH):
            prompts = prompts_from_examples(adapters.vlm, self.rows[start : start + PROMPTS_PER_BATCH])
            with self.policy.active():
                self.batches.append(sample_completions(adapters.vlm, prompts, NUM_GENERATIONS, params))
            print(f"seed {experiment.seed}: {start + PROMPTS_PER_BATCH}/{num_prompts} prompts", flush=True)
        self.texts = [text for batch in self.batches for text in batch.texts]
        self.truth = centre(score_answers(experiment, CELLS["oracle"], self.rows, self.texts))
        self.truth_gradients = reward_gradients(self.policy, self.batches, self.truth)

    def measure(self, name: str) -> dict[str, Any]:
        """Return a reward's measures, and its correlation with u within prompts."""
        own = centre(score_answers(self.experiment, CELLS[name], self.rows, self.texts))
        correlation = (own * self.truth).sum() / np.sqrt((own**2).sum() * (self.truth**2).sum())
        measures = gradient_measures(reward_gradients(self.policy, self.batches, own), self.truth_gradients)
        return measures | {"correlation": float(correlation)}


def reward_gradients(role: Role, batches: Sequence[SampledCompletions], advantages_PG: np.ndarray) -> Tensor:
    """Return the gradients [batches, parameters] of a reward."""
    parts = np.split(advantages_PG, len(batches))
    return torch.stack([gradient(role, b, torch.tensor(part).flatten().float()) for b, part in zip(batches, parts, strict=True)])


# ---- tables --------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Print the measures' means over seeds that have a reward, and differences within a seed."""
    cells: Cells = {name: {} for name in args.rewards}
    for name, seed in itertools.product(args.rewards, args.seeds):
        path = cell_path(args.out, seed, name, args.batches)
        if path.exists():
            cells[name][seed] = json.loads(path.read_text())
    rows = [(name, str(len(c)), *(format_mean(map(of, c.values())) for of in COLUMNS.values())) for name, c in cells.items()]
    for a, b in [pair for pair in COMPARED if set(pair) <= set(cells)]:
        seeds = [seed for seed in cells[a] if seed in cells[b]]
        differences = [[of(cells[a][seed]) - of(cells[b][seed]) for seed in seeds] for of in COLUMNS.values()]
        rows.append((f"{a} - {b}", str(len(seeds)), *(format_mean(values, sign="+") for values in differences)))
    print(markdown_table(("reward", "seeds", *COLUMNS), rows))
    with style_context(TEXT_COLOUR):
        path = save_figure(step_figure(cells), args.out / "figures", "reward_gradients")
    print(f"\n![step and correlation]({path})")
    means = {
        name: {column: float(np.mean([of(x) for x in c.values()])) for column, of in COLUMNS.items()}
        for name, c in cells.items()
        if c
    }
    print("\n" + json.dumps({"study": "reward_gradients", "seeds": args.seeds, "means": means}))


def step_figure(cells: Cells) -> Figure:
    """Plot `step` over the correlation with u, a point per reward with intervals over seeds.

    The colour is that of the facts, the marker that of the kind of reward.
    """
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for name, by_seed in cells.items():
        if not by_seed:
            continue
        (x, dx), (y, dy) = (mean_and_half_width(map(COLUMNS[m], by_seed.values())) for m in ("correlation", "step, 1 batch"))
        reward, labels, facts = split_cell(name)
        marker = MARKERS[reward if labels == 0 or reward == "ranked" else "labels"]
        axes.errorbar(
            x, y, dy, dx if name != "oracle" else None, label=REWARDS[name], color=COLOURS[facts], marker=marker, markersize=7,
            linestyle="none", elinewidth=0.8,
        )  # fmt: skip
    axes.set_xlabel("correlation with true utility among a prompt's answers")
    axes.set_ylabel("gain in true utility per step of one batch\n(1: along its exact gradient)")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, None)
    axes.grid(linewidth=0.4, alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return figure


# ---- command -------------------------------------------------------------------------------------


def cell_path(out: Path, seed: int, name: str, num_batches: int) -> Path:
    """Return the file of a reward's measures in a seed."""
    return out / "cells" / f"gradients-{seed}-{name}-{num_batches}.json"


def measure_world(names: Sequence[str], num_batches: int, experiment: Experiment) -> None:
    """Measure the rewards of one seed that are missing, on the same answers."""
    torch.set_num_threads(1)
    paths = {name: cell_path(experiment.output_dir, experiment.seed, name, num_batches) for name in names}
    if all(path.exists() for path in paths.values()):
        return
    answers = Answers(experiment, num_batches)
    for name, path in paths.items():
        cached_result(experiment.output_dir, path.stem, partial(answers.measure, name))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of facts_map.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[9, 10, 11, 12, 13], metavar="SEED")
    parser.add_argument("--base", metavar="DIR", help="the base of that directory, by default the bundled one")
    parser.add_argument("--rewards", nargs="+", choices=REWARDS, default=list(REWARDS), metavar="CELL", help=", ".join(REWARDS))
    parser.add_argument("--batches", type=int, default=32, metavar="N", help="batches of 24 prompts")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    args = parser.parse_args()
    overrides = {name: json.loads((args.out / "settings.json").read_text())[name] for name in ("pair_scenes", "held_out_pairs")}
    experiments = [Experiment(args.out, seed, base_path=args.base, data_overrides=overrides) for seed in args.seeds]
    run = partial(measure_world, args.rewards, args.batches)
    run_and_report(args, lambda _: run_parallel(experiments, run, args.workers), partial(report, args))


if __name__ == "__main__":
    main()
