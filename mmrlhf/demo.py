"""`mmrlhf demo`: the whole way on rendered scenes, through the same stages that train a model of your own.

SFT on captions with a habit -> answers of that model, ranked in pairs -> a reward model with facts and one without -> PPO
against each -> hallucination before and after, on scenes that nothing was trained or chosen on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmrlhf import report, scenes
from mmrlhf.artefact import load_reward_model
from mmrlhf.benchmark import bootstrap, load_benchmark
from mmrlhf.best_of_n import best_of_n
from mmrlhf.config import PPOConfig, RewardConfig, ScenesConfig, SFTConfig
from mmrlhf.content import find, folder
from mmrlhf.evaluate import score_scenes
from mmrlhf.files import write_atomic
from mmrlhf.loading import load as load_vlm
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Fact, InputError, Message, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.roles import Adapters
from mmrlhf.rollout import generate_batches
from mmrlhf.run import json_line, progress, read_jsonl
from mmrlhf.sampling import SamplingParams
from mmrlhf.settings import Config, load_config, save_config
from mmrlhf.sft import sft
from mmrlhf.vlm import VLM

SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")
NUM_SAMPLES = 4
"""Answers to each held-out prompt at temperature 1, beside the greedy one: is truth lost when sampled, and how varied are they?"""
IN_MEMORY_DATASET = "scenes"
"""What the demo's stages are told as their data set: the rows are handed over as records."""
RESPONSE_LENGTH = 72
GREEDY = SamplingParams(RESPONSE_LENGTH, 0.0)


def demo(output_dir: str = "runs/demo", fresh: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run everything that is not there yet; returns what summary.json says.

    `seed` draws the training scenes, captions, pairs, first weights and samples; the scenes it is measured on stay the same.
    """
    output_path, console = Path(output_dir), Console(highlight=False)
    if fresh and output_path.exists():
        if not (output_path / "scenes.yaml").is_file():
            raise InputError(f"--fresh would empty {output_path}, which holds no demo: give another --output_dir")
        shutil.rmtree(output_path)
    output_path.mkdir(parents=True, exist_ok=True)
    data_config = load_config(ScenesConfig, find("configs", "demo/scenes"), {"seed": seed})
    if (output_path / "scenes.yaml").is_file() and load_config(ScenesConfig, output_path / "scenes.yaml", {}) != data_config:
        raise InputError(
            f"{output_path} holds a demo of another world or seed: give its --seed or another --output_dir, or add --fresh"
        )
    base_path = str(folder("data") / "scenes_base")
    base_hash = hashlib.sha256((Path(base_path) / "model.safetensors").read_bytes()).hexdigest()
    if (output_path / "base.sha256").is_file() and (output_path / "base.sha256").read_text() != base_hash:
        raise InputError(f"{output_path} holds a demo of another base model: give another --output_dir, or add --fresh")
    save_config(data_config, output_path / "scenes.yaml")
    write_atomic(output_path / "base.sha256", base_hash)
    stage_seconds: dict[str, float] = (
        json.loads((output_path / "seconds.json").read_text()) if (output_path / "seconds.json").exists() else {}
    )

    def run_stage(name: str, stage: Callable[[], Any]) -> Any:
        """A finished stage takes no time and keeps the time it took; one that was killed counts its longest stretch."""
        console.rule(name)
        start_time = time.time()
        result = stage()
        elapsed = round(time.time() - start_time, 1)
        stage_seconds[name] = max(elapsed, stage_seconds.get(name, 0.0))
        write_atomic(output_path / "seconds.json", json.dumps(stage_seconds))
        return result

    def stage_config(config_class: type[Config], stage: str, **values: str) -> Config:
        overrides = {"dataset_name": IN_MEMORY_DATASET, "seed": seed, **values}
        return load_config(config_class, find("configs", f"demo/{stage}"), overrides)

    # 1. Fine-tuning: on annotators' captions, and on captions without their habit (a reference for how true these eyes can be)
    def train_sft(name: str, cooccurrence_bias: float) -> str:
        config = stage_config(SFTConfig, "sft", model_name_or_path=base_path, output_dir=str(output_path / name))
        return str(sft(config, _LazyRows(lambda: build_sft_rows(data_config, cooccurrence_bias))))

    sft_path = run_stage("sft", lambda: train_sft("sft", data_config.cooccurrence_bias))
    clean_sft_path = run_stage("clean_sft", lambda: train_sft("clean_sft", 0.0))

    # 2. Preference pairs from the fine-tuned model's own answers
    train_pairs, held_out_pairs = run_stage(
        "pairs", lambda: build_preference_pairs(data_config, sft_path, output_path / "pairs.jsonl")
    )

    # 3. Reward models with and without facts
    def train_reward(facts: str) -> str:
        reward_dir = str(output_path / ("reward_fact" if facts == "given" else "reward_plain"))
        config = stage_config(RewardConfig, "reward", model_name_or_path=sft_path, facts=facts, output_dir=reward_dir)
        return str(train_reward_model(config, train_pairs, held_out_pairs))

    reward_model_paths = {
        "fact": run_stage("reward_fact", lambda: train_reward("given")),
        "plain": run_stage("reward_plain", lambda: train_reward("none")),
    }

    # 4. PPO against each
    prompts = _LazyRows(lambda: build_rl_prompts(data_config))
    selection_prompts = _LazyRows(lambda: _benchmark_rows("selection", data_config.selection_scenes))

    def train_policy(name: str) -> str:
        config = stage_config(
            PPOConfig,
            "ppo",
            model_name_or_path=sft_path,
            reward_model_path=reward_model_paths[name],
            output_dir=str(output_path / f"ppo_{name}"),
        )
        return str(ppo(config, prompts, lambda vlm: selection_metrics(vlm, selection_prompts)))

    policy_paths = {f"ppo_{name}": run_stage(f"ppo_{name}", partial(train_policy, name)) for name in ("fact", "plain")}

    # 5. Every model on every split
    answers = run_stage(
        "evaluation",
        lambda: generate_answers(
            data_config, sft_path, clean_sft_path, policy_paths, reward_model_paths["fact"], output_path / "answers"
        ),
    )
    summary = summarise(data_config, output_path, answers, stage_seconds)
    write_atomic(output_path / "summary.json", json.dumps(summary, indent=1))
    curves = {name: read_jsonl(output_path / name / "metrics.jsonl") for name in ("ppo_plain", "ppo_fact")}
    gallery_entries = gallery(data_config, answers)
    report.write_report(
        output_path / "report.html", summary, curves, gallery_entries, {k: str(v) for k, v in asdict(data_config).items()}
    )
    report.write_overview_image(output_path / "picture.png", summary, gallery_entries)
    report.print_results_table(summary)
    console.print(
        f"{output_path / 'report.html'} shows pictures, answers and curves; {output_path / 'summary.json'} has the numbers"
    )
    return summary


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


# ---- data -------------------------------------------------------------------------------------------------------


def training_scene(split: scenes.Split, index: int, data_config: ScenesConfig) -> scenes.Scene:
    """A scene to train on, as hard to see as the world's are."""
    return scenes.generate_scene(split, index, data_config.seed, scenes.Difficulty(occluded_share=data_config.occluded_share))


def build_sft_rows(data_config: ScenesConfig, cooccurrence_bias: float) -> list[Example]:
    """Three descriptions to one question; the same scenes and questions whatever the habit."""
    rows = []
    for index in range(data_config.sft_rows):
        scene, rng = training_scene("sft", index, data_config), np.random.default_rng([data_config.seed, 31, index])
        question = (
            scenes.description_question(scene, rng, habit=cooccurrence_bias) if index % 4 else scenes.short_question(scene, rng)
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
                sampling_params = SamplingParams(RESPONSE_LENGTH, temperature)
                for _, sampled_answers in generate_batches(
                    vlm,
                    examples,
                    sampling_params,
                    batch_size=64,
                    num_generations=num_generations,
                    seed=data_config.seed + int(temperature * 100),
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
            answers[0] = scenes.caption(scene, rng, faults=int(rng.integers(1, 4)))
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


def _benchmark_rows(split: scenes.Split, num_scenes: int, *, facts_config: ScenesConfig | None = None) -> list[Example]:
    """The benchmark's rows on a split, with facts where something that reads them will rank answers."""
    rows = load_benchmark("scenes").prompts(split, num_scenes)
    if facts_config is None:
        return rows
    rows_with_facts = []
    for row in rows:
        scene = scenes.generate_scene(split, row.meta["index"], 0)
        rows_with_facts.append(
            Example(
                row.id, row.images, row.prompt, facts=_evaluation_facts(facts_config, scene, row.meta["index"]), meta=row.meta
            )
        )
    return rows_with_facts


def _evaluation_facts(data_config: ScenesConfig, scene: scenes.Scene, index: int) -> tuple[Fact, ...]:
    """The facts on a scene that models are measured on."""
    rng = np.random.default_rng([data_config.seed, 47, index])
    return scenes.annotator_facts(scene, rng, recall=data_config.fact_recall, error_rate=data_config.fact_error_rate)


# ---- measuring --------------------------------------------------------------------------------------------------


def selection_metrics(vlm: VLM, examples: Sequence[Example]) -> dict[str, float]:
    """Greedy descriptions of the selection split, for the curves."""
    benchmark = load_benchmark("scenes")
    rows = [e for e in examples if e.meta["kind"] == "describe"]
    answers = generate_batches(vlm, rows, GREEDY, batch_size=100)
    metrics = score_scenes(benchmark, rows, {e.id: texts for e, texts in answers}, None, 0)["selection"]
    return {
        k: metrics[k]
        for k in (
            "chair_s",
            "chair_i",
            "coverage",
            "claim_f1",
            "utility",
            "cooccurrence_errors",
            "perception_errors",
            "mean_length",
        )
    }


AnswersByModel = dict[str, dict[str, dict[str, list[str]]]]
"""model -> split (or "sampled": held-out scenes at temperature 1) -> row id -> answers"""


def generate_answers(
    data_config: ScenesConfig,
    sft_path: str,
    clean_sft_path: str,
    policy_paths: dict[str, str],
    reward_model_path: str,
    answers_dir: Path,
) -> AnswersByModel:
    """Greedy answers of every model on every split (SFT also sampled, and the best of n); kept as files, made once."""
    rows = {
        s: _benchmark_rows(
            s,  # type: ignore[arg-type]
            data_config.held_out_scenes if s == "held_out" else data_config.ood_scenes,
            facts_config=data_config,
        )
        for s in SPLITS
    }
    run_names = [f"{m}-{s}" for m in ("sft", "sft_t03", "sft_t07", *policy_paths, "best_of_n", "clean_sft") for s in SPLITS]
    run_names += [f"{m}-sampled" for m in ("sft", *policy_paths)]
    rows["sampled"] = [e for e in rows["held_out"][: data_config.ood_scenes] if e.meta["kind"] == "describe"]
    loaded: dict[str, Any] = {}

    def load_adapters() -> Adapters:
        if "sft" not in loaded:
            loaded["sft"] = Adapters(load_vlm(sft_path))
            for model_name, path in policy_paths.items():
                loaded["sft"].load(model_name, Path(path), trainable=False)
            loaded["reward"] = load_reward_model(reward_model_path, loaded["sft"])
        return loaded["sft"]

    def sample_answers(model_name: str, split: str) -> Iterator[tuple[Example, list[str]]]:
        generation_args = {"batch_size": 100, "seed": data_config.seed}
        if model_name == "clean_sft":
            loaded.setdefault("clean", load_vlm(clean_sft_path))
            yield from generate_batches(loaded["clean"], rows[split], GREEDY, **generation_args)
            return
        adapters = load_adapters()
        if model_name == "best_of_n":
            description_rows = [e for e in rows[split] if e.meta["kind"] == "describe"]
            for example, text in best_of_n(
                adapters.vlm,
                loaded["reward"],
                description_rows,
                data_config.best_of_n,
                batch_size=25,
                response_length=RESPONSE_LENGTH,
                seed=data_config.seed,
            ):
                yield example, [text]
            return
        with adapters.use(model_name if model_name in policy_paths else None):
            temperature = 1.0 if split == "sampled" else {"sft_t03": 0.3, "sft_t07": 0.7}.get(model_name, 0.0)
            num_generations = NUM_SAMPLES if split == "sampled" else 1
            yield from generate_batches(
                adapters.vlm,
                rows[split],
                SamplingParams(RESPONSE_LENGTH, temperature),
                num_generations=num_generations,
                **generation_args,
            )

    answers: AnswersByModel = {}
    with progress(len(run_names), "evaluation") as progress_bar:
        for run_name in run_names:
            model_name, split = run_name.rsplit("-", 1)
            path = answers_dir / f"{run_name}.jsonl"
            if not path.exists():
                write_atomic(path, "".join(json_line({"id": e.id, "answers": a}) for e, a in sample_answers(model_name, split)))
            answers.setdefault(model_name, {})[split] = {row["id"]: row["answers"] for row in read_jsonl(path)}
            progress_bar.advance()
    return answers


def summarise(
    data_config: ScenesConfig, output_path: Path, answers: AnswersByModel, stage_seconds: dict[str, float]
) -> dict[str, Any]:
    """summary.json: metrics of every model and split, reward accuracy, final KL, seconds."""
    benchmark = load_benchmark("scenes")
    models: dict[str, Any] = {name: {} for name in answers}
    sampled: dict[str, Any] = {}
    for name, by_split in answers.items():
        for split, answers_by_id in by_split.items():
            if split == "sampled":
                sampled[name] = score_scenes(
                    benchmark, _described("held_out", answers_by_id), answers_by_id, None, data_config.seed
                )["held_out"]
            else:
                models[name][split] = score_scenes(
                    benchmark, _described(split, answers_by_id), answers_by_id, None, data_config.seed
                )[split]
    accuracy = {}
    for name in ("fact", "plain"):
        is_correct = json.loads((output_path / f"reward_{name}" / "finished.json").read_text())["right"]
        accuracy[name] = bootstrap(
            np.array([[r, 1.0] for r in is_correct]), lambda s: {"accuracy": s[..., 0] / s[..., 1]}, data_config.seed
        )
    kl = {f"ppo_{n}": read_jsonl(output_path / f"ppo_{n}" / "metrics.jsonl")[-1]["objective/kl"] for n in ("plain", "fact")}
    return {
        "models": models,
        "sampled": sampled,
        "reward_models": accuracy,
        "kl": kl,
        "seconds": stage_seconds,
        "seed": data_config.seed,
    }


def _described(split: str, answers_by_id: dict[str, list[str]]) -> list[Example]:
    """The rows that answers belong to, without pictures: judging needs the graph alone, and yes/no rows their true answer."""
    benchmark, rows = load_benchmark("scenes"), []
    for example_id in answers_by_id:
        index, kind = int(example_id.split("-")[1]), example_id.split("-")[2]
        meta: dict[str, Any] = {"split": split, "index": index, "kind": kind}
        rows.append(
            Example(example_id, (), (), meta=meta | ({"truth": benchmark.truth(split, index)} if kind == "yes_no" else {}))
        )
    return rows


def gallery(data_config: ScenesConfig, answers: AnswersByModel, num_scenes: int = 12) -> list[dict[str, Any]]:
    """A dozen held-out scenes with every model's answer, claim by claim: the first six where SFT claims something false,
    and the first six where it does not."""
    scenes_with_errors: list[scenes.Scene] = []
    scenes_without_errors: list[scenes.Scene] = []
    for index in range(data_config.held_out_scenes):
        scene = scenes.generate_scene("held_out", index, 0)
        answer = answers["sft"]["held_out"][f"{scene.id}-describe"][0]
        (scenes_with_errors if scenes.verify_answer(scene, answer).false_claims else scenes_without_errors).append(scene)
        if len(scenes_with_errors) >= num_scenes // 2 and len(scenes_without_errors) >= num_scenes // 2:
            break
    entries = []
    for scene in itertools.chain(scenes_with_errors[: num_scenes // 2], scenes_without_errors[: num_scenes // 2]):
        index = int(scene.id.split("-")[1])
        facts_text = "; ".join(f.text for f in _evaluation_facts(data_config, scene, index))
        prompt = load_benchmark("scenes").description(scene, index).text
        entry: dict[str, Any] = {
            "image": scene.image_source().read(), "id": scene.id, "prompt": prompt, "facts": facts_text, "answers": [],
        }  # fmt: skip
        for name in ("sft", "ppo_plain", "ppo_fact", "best_of_n", "clean_sft"):
            text = answers[name]["held_out"][f"{scene.id}-describe"][0]
            verdicts = [scenes.verify_claim(scene, c) for c in scenes.parse_claims(text)]
            claim_spans = [
                {"start": v.claim.span[0], "end": v.claim.span[1], "verdict": v.value, "evidence": v.evidence} for v in verdicts
            ]
            entry["answers"].append({"model": name, "text": text, "claims": claim_spans})
        entries.append(entry)
    return entries
