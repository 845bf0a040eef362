"""The demo's data: rows for SFT, prompts for PPO, and sampled answers ranked in pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.records import Example, Fact, InputError, Message, Preference
from mmrlhf.report.progress import progress

IN_MEMORY_DATASET = "scenes"
"""`dataset_name` of the demo's stages, whose rows are passed in memory."""
RESPONSE_LENGTH = 72
"""Maximum tokens of an answer."""
GREEDY = SamplingParams(RESPONSE_LENGTH, 0.0)
T = TypeVar("T")


class LazyRows(Sequence[T], Generic[T]):
    """Rows that are built on first access: a stage that has already finished builds none."""

    def __init__(self, build_rows: Callable[[], Sequence[T]]):
        self._build_rows = build_rows
        self._rows: Sequence[T] | None = None

    def _load(self) -> Sequence[T]:
        if self._rows is None:
            self._rows = self._build_rows()
        return self._rows

    def __len__(self) -> int:
        return len(self._load())

    def __getitem__(self, index: Any) -> Any:
        return self._load()[index]


def training_scene(split: scenes.Split, index: int, data_config: ScenesConfig) -> scenes.Scene:
    """Return a training scene, at the configured difficulty."""
    difficulty = scenes.Difficulty(occluded_share=data_config.occluded_share)
    return scenes.generate_scene(split, index, data_config.seed, difficulty)


# ---- SFT and PPO ---------------------------------------------------------------------------------


def build_sft_rows(data_config: ScenesConfig, cooccurrence_bias: float) -> list[Example]:
    """Return SFT rows: three descriptions for each short question.

    The bias changes only captions.
    """
    rows = []
    for index in range(data_config.sft_rows):
        scene, rng = training_scene("sft", index, data_config), np.random.default_rng([data_config.seed, 31, index])
        if index % 4:
            question = scenes.description_question(scene, rng, cooccurrence_bias=cooccurrence_bias)
        else:
            question = scenes.short_question(scene, rng)
        rows.append(Example(scene.id, (scene.image_source(),), (Message("user", question.text),), question.answer))
    return rows


def build_rl_prompts(data_config: ScenesConfig) -> list[Example]:
    """Return PPO's prompts with facts: nine descriptions for each short question."""
    return [_prompt_with_facts("rl", index, 37, data_config) for index in range(data_config.rl_scenes)]


def _prompt_with_facts(split: scenes.Split, index: int, stream: int, data_config: ScenesConfig) -> Example:
    """Return a prompt about a scene, with its annotator's facts. `stream` is part of the seed."""
    scene, rng = training_scene(split, index, data_config), np.random.default_rng([data_config.seed, stream, index])
    question = scenes.description_question(scene, rng) if is_description(index) else scenes.short_question(scene, rng)
    facts = _annotator_facts(scene, rng, data_config)
    return Example(scene.id, (scene.image_source(),), (Message("user", question.text),), facts=facts)


def is_description(index: int) -> bool:
    """Return whether a prompt of the splits pairs and rl asks for a description: nine of ten do."""
    return index % 10 != 0


def _annotator_facts(scene: scenes.Scene, rng: np.random.Generator, data_config: ScenesConfig) -> tuple[Fact, ...]:
    return scenes.annotator_facts(scene, rng, recall=data_config.fact_recall, error_rate=data_config.fact_error_rate)


# ---- preference pairs ----------------------------------------------------------------------------


def build_preference_pairs(data_config: ScenesConfig, sft_path: str, path: Path) -> tuple[list[Preference], list[Preference]]:
    """Sample answers from the SFT model and rank them in pairs. Return training and held-out pairs.

    Sampled texts are written to `path`, or read if it exists. No scene has pairs in both sets.
    Raises InputError if there are too few pairs.
    """
    examples = [_prompt_with_facts("pairs", index, 41, data_config) for index in range(data_config.pair_scenes)]
    if path.exists():
        answers_by_scene = [row["answers"] for row in read_jsonl(path)]
    else:
        answers_by_scene = _sample_pair_answers(data_config, examples, sft_path)
        rows = [{"id": e.id, "answers": answers} for e, answers in zip(examples, answers_by_scene, strict=True)]
        write_atomic(path, "".join(map(json_line, rows)))
    pairs: list[Preference] = []
    for index, (example, answers) in enumerate(zip(examples, answers_by_scene, strict=True)):
        pairs += _rank_answers(data_config, index, example, answers, first_pair_number=len(pairs))
    num_held_out = data_config.held_out_pairs
    # A scene's pairs stay together.
    while num_held_out < len(pairs) and pairs[num_held_out].images == pairs[num_held_out - 1].images:
        num_held_out += 1
    if len(pairs) <= num_held_out:
        raise InputError(
            f"{len(pairs)} pairs of {data_config.pair_scenes} scenes leave none beside {num_held_out} held-out ones: raise "
            "pair_scenes, or lower held_out_pairs"
        )
    return pairs[num_held_out:], pairs[:num_held_out]


def _sample_pair_answers(data_config: ScenesConfig, examples: Sequence[Example], sft_path: str) -> list[list[str]]:
    """Sample the answers to each prompt: half at temperature 1, half at `hot_temperature`.

    The half at the higher temperature has errors that the SFT model does not make, but that a
    policy may learn.
    """
    vlm, num_hot = load_vlm(sft_path), data_config.answers_per_scene // 2
    temperatures = ((1.0, data_config.answers_per_scene - num_hot), (data_config.hot_temperature, num_hot))
    answers_by_scene: list[list[str]] = [[] for _ in examples]
    with progress(len(temperatures) * len(examples), "pairs") as progress_bar:
        for temperature, num_generations in temperatures:
            seed = data_config.seed + int(temperature * 100)
            batches = generate_batches(
                vlm,
                examples,
                SamplingParams(RESPONSE_LENGTH, temperature, seed=seed),
                batch_size=64,
                num_generations=num_generations,
            )
            for answers, (_, sampled) in zip(answers_by_scene, batches, strict=True):
                answers += sampled
                progress_bar.advance()
    return answers_by_scene


def _rank_answers(
    data_config: ScenesConfig, index: int, example: Example, answers: Sequence[str], first_pair_number: int
) -> list[Preference]:
    """Pair a scene's answers and rank them by utility; flip a share `annotator_error` of labels.

    In some scenes a description with injected faults replaces one answer: PPO would exploit a
    reward model that was trained only on the errors that the SFT model makes.
    """
    scene, rng = training_scene("pairs", index, data_config), np.random.default_rng([data_config.seed, 43, index])
    answers = list(answers)
    if is_description(index) and rng.random() < data_config.injected_share:
        answers[0] = scenes.caption(scene, rng, num_faults=int(rng.integers(1, 4)))
    rng.shuffle(answers)
    pairs: list[Preference] = []
    for a, b in zip(answers[::2], answers[1::2], strict=False):
        utility_a, utility_b = (scenes.utility(scene, text, data_config.false_claim_penalty) for text in (a, b))
        if abs(utility_a - utility_b) < data_config.min_utility_gap or a == b:
            continue
        is_flipped = rng.random() < data_config.annotator_error
        chosen, rejected = (b, a) if (utility_a < utility_b) != is_flipped else (a, b)
        pair_id = f"{example.id}-{first_pair_number + len(pairs)}"
        pairs.append(Preference.from_pair(pair_id, example.images, example.prompt, chosen, rejected, example.facts))
    return pairs


# ---- evaluation ----------------------------------------------------------------------------------


def benchmark_rows(split: scenes.Split, num_scenes: int, *, facts_config: ScenesConfig | None = None) -> list[Example]:
    """Return the benchmark's rows on a split, with facts if `facts_config` is given."""
    rows: list[Example] = load_benchmark("scenes").module.prompts(split, num_scenes)
    if facts_config is None:
        return rows
    return [
        Example(
            row.id,
            row.images,
            row.prompt,
            facts=evaluation_facts(facts_config, scenes.generate_scene(split, row.meta["index"], 0), row.meta["index"]),
            meta=row.meta,
        )
        for row in rows
    ]


def evaluation_facts(data_config: ScenesConfig, scene: scenes.Scene, index: int) -> tuple[Fact, ...]:
    """Return the annotator's facts about an evaluation scene."""
    return _annotator_facts(scene, np.random.default_rng([data_config.seed, 47, index]), data_config)
