"""The demo's data: scenes as rows for SFT, prompts for PPO, and ranked pairs of sampled answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.records import Example, Fact, Message, Preference
from mmrlhf.report.progress import progress

IN_MEMORY_DATASET = "scenes"
"""What the demo's stages are told as their data set: the rows are handed over as records."""


RESPONSE_LENGTH = 72


GREEDY = SamplingParams(RESPONSE_LENGTH, 0.0)


class _LazyRows(Sequence[Example]):
    """Rows that are rendered when a stage first asks for one: a finished stage never does."""

    def __init__(self, build_rows: Callable[[], list[Example]]):
        self._build_rows = build_rows
        self._rows: list[Example] | None = None

    def _load(self) -> list[Example]:
        if self._rows is None:
            self._rows = self._build_rows()
        return self._rows

    def __len__(self) -> int:
        return len(self._load())

    def __getitem__(self, index: Any) -> Any:
        return self._load()[index]


def training_scene(split: scenes.Split, index: int, data_config: ScenesConfig) -> scenes.Scene:
    """A scene to train on, as hard to see as the world's are."""
    return scenes.generate_scene(split, index, data_config.seed, scenes.Difficulty(occluded_share=data_config.occluded_share))


def build_sft_rows(data_config: ScenesConfig, cooccurrence_bias: float) -> list[Example]:
    """Three descriptions to one question; the same scenes and questions whatever the habit."""
    rows = []
    for index in range(data_config.sft_rows):
        scene, rng = training_scene("sft", index, data_config), np.random.default_rng([data_config.seed, 31, index])
        question = (
            scenes.description_question(scene, rng, cooccurrence_bias=cooccurrence_bias) if index % 4 else scenes.short_question(scene, rng)
        )
        rows.append(Example(scene.id, (scene.image_source(),), (Message("user", question.text),), question.answer))
    return rows


def build_rl_prompts(data_config: ScenesConfig) -> list[Example]:
    """Prompts with facts: nine descriptions to one question."""
    rows = []
    for index in range(data_config.rl_scenes):
        scene, rng = training_scene("rl", index, data_config), np.random.default_rng([data_config.seed, 37, index])
        question = scenes.description_question(scene, rng) if index % 10 else scenes.short_question(scene, rng)
        facts = scenes.annotator_facts(scene, rng, recall=data_config.fact_recall, error_rate=data_config.fact_error_rate)
        rows.append(Example(scene.id, (scene.image_source(),), (Message("user", question.text),), facts=facts))
    return rows


def build_preference_pairs(data_config: ScenesConfig, sft_path: str, path: Path) -> tuple[list[Preference], list[Preference]]:
    """Answers of the model to each scene, compared two by two by utility; some labels are turned round.

    Half of the answers are sampled hotter, and some are replaced by descriptions with planted faults: a reward model that
    has seen only today's errors has holes that ppo finds. Returns training pairs and pairs of other scenes for accuracy.
    The texts are kept, so that another run reads them.
    """
    examples = []
    for index in range(data_config.pair_scenes):
        scene, rng = training_scene("pairs", index, data_config), np.random.default_rng([data_config.seed, 41, index])
        question = scenes.description_question(scene, rng) if index % 10 else scenes.short_question(scene, rng)
        facts = scenes.annotator_facts(scene, rng, recall=data_config.fact_recall, error_rate=data_config.fact_error_rate)
        meta = {"kind": question.kind}
        examples.append(Example(scene.id, (scene.image_source(),), (Message("user", question.text),), facts=facts, meta=meta))
    if path.exists():
        sampled_answers = [row["answers"] for row in read_jsonl(path)]
    else:
        vlm, num_hot = load_vlm(sft_path), data_config.answers_per_scene // 2
        with progress(2 * len(examples), "pairs") as progress_bar:
            by_temperature = []
            for temperature, num_generations in (
                (1.0, data_config.answers_per_scene - num_hot),
                (data_config.hot_temperature, num_hot),
            ):
                answers_at_temperature = []
                sampling_params = SamplingParams(
                    RESPONSE_LENGTH, temperature, seed=data_config.seed + int(temperature * 100)
                )
                for _, sampled_answers in generate_batches(
                    vlm,
                    examples,
                    sampling_params,
                    batch_size=64,
                    num_generations=num_generations,
                ):
                    answers_at_temperature.append(sampled_answers)
                    progress_bar.advance()
                by_temperature.append(answers_at_temperature)
        sampled_answers = [a + b for a, b in zip(*by_temperature, strict=True)]
        write_atomic(path, "".join(json_line({"id": e.id, "answers": t}) for e, t in zip(examples, sampled_answers, strict=True)))
    pairs: list[Preference] = []
    for index, (example, answers) in enumerate(zip(examples, sampled_answers, strict=True)):
        scene, rng = training_scene("pairs", index, data_config), np.random.default_rng([data_config.seed, 43, index])
        answers = list(answers)
        if example.meta["kind"] == "describe" and rng.random() < data_config.injected_share:
            answers[0] = scenes.caption(scene, rng, num_faults=int(rng.integers(1, 4)))
        rng.shuffle(answers)
        for a, b in zip(answers[::2], answers[1::2], strict=False):
            utility_gap = scenes.utility(scene, a, data_config.false_claim_penalty) - scenes.utility(
                scene, b, data_config.false_claim_penalty
            )
            if abs(utility_gap) < data_config.min_utility_gap or a == b:
                continue
            if (utility_gap < 0) != (rng.random() < data_config.annotator_error):
                a, b = b, a
            pairs.append(Preference.from_pair(f"{example.id}-{len(pairs)}", example.images, example.prompt, a, b, example.facts))
    num_held_out = data_config.held_out_pairs
    while pairs[num_held_out].images == pairs[num_held_out - 1].images:  # both pairs of a scene on one side
        num_held_out += 1
    return pairs[num_held_out:], pairs[:num_held_out]


def benchmark_rows(split: scenes.Split, num_scenes: int, *, facts_config: ScenesConfig | None = None) -> list[Example]:
    """The benchmark's rows on a split, with facts where something that reads them will rank answers."""
    rows = load_benchmark("scenes").prompts(split, num_scenes)
    if facts_config is None:
        return rows
    rows_with_facts = []
    for row in rows:
        scene = scenes.generate_scene(split, row.meta["index"], 0)
        rows_with_facts.append(
            Example(row.id, row.images, row.prompt, facts=evaluation_facts(facts_config, scene, row.meta["index"]), meta=row.meta)
        )
    return rows_with_facts


def evaluation_facts(data_config: ScenesConfig, scene: scenes.Scene, index: int) -> tuple[Fact, ...]:
    """The facts on a scene that models are measured on."""
    rng = np.random.default_rng([data_config.seed, 47, index])
    return scenes.annotator_facts(scene, rng, recall=data_config.fact_recall, error_rate=data_config.fact_error_rate)
