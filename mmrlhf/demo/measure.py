"""The demo's measurements: every model's answers on every split, the summary and the gallery."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo.data import GREEDY, RESPONSE_LENGTH, LazyRows, benchmark_rows, evaluation_facts
from mmrlhf.demo.side_by_side import run_side_by_side
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.facts import split_scope
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.metrics.calibration import proportion
from mmrlhf.metrics.kl_curve import kl_after_steps, value_at_kl
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, Fact
from mmrlhf.report.progress import progress
from mmrlhf.rewards.best_of_n import best_answers
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import RewardModel

SPLITS: tuple[scenes.Split, ...] = ("held_out", "ood_1", "ood_2", "ood_3")
NUM_SAMPLES = 4
"""Answers per held-out prompt at temperature 1, in addition to the greedy one. They show how varied
answers are, and whether sampling makes them less truthful."""
SFT_TEMPERATURES = {"sft_t03": 0.3, "sft_t07": 0.7}
CURVE_METRICS = (
    "chair_s", "chair_i", "coverage", "claim_f1", "utility", "cooccurrence_errors", "perception_errors", "mean_length",
)  # fmt: skip
"""Metrics on the selection split that are logged during PPO."""
SELECTED_BY = "utility"
"""The metric that chooses the best policy of a run: the one by which the demo's annotators rank."""
POLICIES = ("ppo_plain", "ppo_fact")
BEST_OF_N = {"best_of_n": "reward_plain", "best_of_n_facts": "reward_fact"}
"""The reward model that ranks the SFT model's candidates, the same ones for both. The second reads
facts about the scene, which are not available when a model is used."""
GALLERY_MODELS = ("sft", "ppo_plain", "ppo_fact", "best_of_n", "clean_sft")
AnswersByModel = dict[str, dict[str, dict[str, list[str]]]]
"""model -> split (or "sampled": held-out scenes at temperature 1) -> row id -> answers"""
ANSWERS_PER_BATCH = 400


def score_scenes(examples: Iterable[Example], answers_by_id: Mapping[str, list[str]], seed: int) -> dict[str, Any]:
    """Return the metrics of the benchmark `scenes` for answers, by split."""
    benchmark, task = load_benchmark("scenes"), Task(seed=seed)
    rows = [{"id": e.id, **benchmark.score(e, answers_by_id[e.id], task)} for e in examples]
    return dict(benchmark.module.by_split(rows, seed))


def selection_metrics(vlm: VLM, examples: Sequence[Example]) -> dict[str, float]:
    """Return metrics of greedy descriptions of the selection split, for the curves."""
    rows = [e for e in examples if e.meta["kind"] == "describe"]
    answers = {e.id: texts for e, texts in generate_batches(vlm, rows, GREEDY, batch_size=100)}
    metrics = score_scenes(rows, answers, seed=0)["selection"]
    return {name: metrics[name] for name in CURVE_METRICS}


# ---- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedModels:
    """Paths of the demo's trained models. They are loaded on first use, policies on one base."""

    sft_path: str
    clean_sft_path: str
    policy_paths: Mapping[str, str]
    reward_model_paths: Mapping[str, str]
    """By name, `reward_plain` and `reward_fact`."""

    @cached_property
    def adapters(self) -> Adapters:
        """The SFT model with the policies' adapters."""
        adapters = Adapters(load_vlm(self.sft_path))
        for name, path in self.policy_paths.items():
            adapters.load(name, Path(path), trainable=False)
        return adapters

    def reward_model(self, name: str) -> RewardModel:
        return load_reward_model(self.reward_model_paths[name], self.adapters, adapter_name=name)

    @cached_property
    def clean_sft(self) -> VLM:
        return load_vlm(self.clean_sft_path)


def generate_answers(data_config: ScenesConfig, models: TrainedModels, answers_dir: Path) -> AnswersByModel:
    """Answer every split with every model, and held-out prompts also at temperature 1.

    Best-of-n, which takes longest, describes the first held-out scenes only. Its candidates are
    sampled once, and ranked by each reward model. Answers are written to one file per model and
    split, and read from it if it exists.
    """
    model_names = ("sft", *SFT_TEMPERATURES, *models.policy_paths, *BEST_OF_N, "clean_sft")
    tasks = [("sft", "candidates")]
    tasks += [(name, str(split)) for name in model_names for split in SPLITS if split == "held_out" or name not in BEST_OF_N]
    tasks += [(name, "sampled") for name in ("sft", *models.policy_paths)]
    missing = [task for task in tasks if not _answers_file(answers_dir, *task).exists()]
    # Two parts that take about as long as each other.
    parts: dict[str, list[tuple[str, str]]] = {"one answer and samples": [], "best of n": []}
    for name, split in missing:
        parts["best of n" if name in BEST_OF_N or split == "candidates" else "one answer and samples"].append((name, split))
    run_side_by_side(
        {name: partial(_write_answers, data_config, models, answers_dir, part) for name, part in parts.items() if part}
    )
    answers: AnswersByModel = {}
    for name, split in tasks:
        answers.setdefault(name, {})[split] = _read_answers(_answers_file(answers_dir, name, split))
    del answers["sft"]["candidates"]
    return answers


def _answers_file(answers_dir: Path, model_name: str, split: str) -> Path:
    return answers_dir / f"{model_name}-{split}.jsonl"


def _read_answers(path: Path) -> dict[str, list[str]]:
    return {row["id"]: row["answers"] for row in read_jsonl(path)}


def _write_answers(data_config: ScenesConfig, models: TrainedModels, answers_dir: Path, tasks: Sequence[tuple[str, str]]) -> None:
    """Write the file of each model and split in `tasks`."""
    rows: dict[str, Sequence[Example]] = {split: LazyRows(partial(_evaluation_rows, data_config, split)) for split in SPLITS}
    rows["sampled"] = LazyRows(lambda: _descriptions(rows["held_out"][: data_config.ood_scenes]))
    rows["candidates"] = LazyRows(lambda: _descriptions(rows["held_out"])[: data_config.best_of_n_scenes])
    with progress(len(tasks), "answers") as progress_bar:
        for name, split in tasks:
            if name in BEST_OF_N:
                candidates = _read_answers(_answers_file(answers_dir, "sft", "candidates"))
                generated = _choose_best(models.reward_model(BEST_OF_N[name]), rows["candidates"], candidates)
            else:
                generated = _generate(data_config, models, name, split, rows[split])
            lines = "".join(json_line({"id": e.id, "answers": texts}) for e, texts in generated)
            write_atomic(_answers_file(answers_dir, name, split), lines)
            progress_bar.advance()


def _evaluation_rows(data_config: ScenesConfig, split: scenes.Split) -> list[Example]:
    num_scenes = data_config.held_out_scenes if split == "held_out" else data_config.ood_scenes
    return benchmark_rows(split, num_scenes, facts_config=data_config)


def _descriptions(rows: Sequence[Example]) -> list[Example]:
    return [e for e in rows if e.meta["kind"] == "describe"]


def _generate(
    data_config: ScenesConfig, models: TrainedModels, model_name: str, split: str, rows: Sequence[Example]
) -> Iterator[tuple[Example, list[str]]]:
    """Yield each row with one model's answers."""
    samples = {"sampled": NUM_SAMPLES, "candidates": data_config.best_of_n}
    num_generations = samples.get(split, 1)
    temperature = 1.0 if split in samples else SFT_TEMPERATURES.get(model_name, 0.0)
    params = SamplingParams(RESPONSE_LENGTH, temperature, seed=data_config.seed)
    batch_size = max(1, ANSWERS_PER_BATCH // num_generations)
    if model_name == "clean_sft":
        yield from generate_batches(models.clean_sft, rows, params, batch_size=batch_size, num_generations=num_generations)
        return
    with models.adapters.use(model_name if model_name in models.policy_paths else None):
        yield from generate_batches(models.adapters.vlm, rows, params, batch_size=batch_size, num_generations=num_generations)


def _choose_best(
    reward_model: RewardModel, rows: Sequence[Example], candidates: Mapping[str, Sequence[str]]
) -> Iterator[tuple[Example, list[str]]]:
    """Yield each row with the candidate that the reward model scores highest."""
    batch_size = 25
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for example, (text, _) in zip(batch, best_answers(reward_model, batch, [candidates[e.id] for e in batch]), strict=True):
            yield example, [text]


# ---- summary -------------------------------------------------------------------------------------


def summarise(
    data_config: ScenesConfig, output_path: Path, answers: AnswersByModel, stage_seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the content of summary.json: metrics, reward accuracy, KL and seconds.

    `beside_best_of_n` has the metrics on the scenes that best-of-n describes.
    """
    models: dict[str, Any] = {name: {} for name in answers}
    sampled: dict[str, Any] = {}
    for name, answers_by_split in answers.items():
        for split, answers_by_id in answers_by_split.items():
            scenes_split: Any = "held_out" if split == "sampled" else split
            metrics = score_scenes(_rows_of(scenes_split, answers_by_id), answers_by_id, data_config.seed)[scenes_split]
            if split == "sampled":
                sampled[name] = metrics
            else:
                models[name][split] = metrics
    logs = {name: read_jsonl(output_path / name / "metrics.jsonl") for name in POLICIES}
    described = answers["best_of_n"]["held_out"]
    beside_best_of_n = {
        name: score_scenes(_rows_of("held_out", described), answers[name]["held_out"], data_config.seed)["held_out"]
        for name in ("sft", *POLICIES, *BEST_OF_N)
    }
    return {
        "models": models,
        "beside_best_of_n": beside_best_of_n,
        "sampled": sampled,
        "reward_models": {name: _reward_accuracy(output_path / f"reward_{name}") for name in ("fact", "plain")},
        "kl": {name: sampled_rows(rows)[-1]["objective/kl"] for name, rows in logs.items()},
        "best_step": {name: _best_step(output_path / name) for name in POLICIES},
        "same_kl": at_same_kl(logs),
        "seconds": dict(stage_seconds),
        "seed": data_config.seed,
    }


def sampled_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of metrics.jsonl with figures of sampled answers: step 0 and skipped steps
    have none."""
    return [row for row in rows if "objective/kl" in row]


def at_same_kl(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return the largest KL that all policies reached, and each one's selection metrics there.

    logs: by policy, the rows of metrics.jsonl. Two rewards move a policy by different amounts in
    the same number of steps, so equal KLs are a fairer comparison.
    """
    kls, metrics = {}, {}
    for name, rows in logs.items():
        evaluated = [row for row in rows if f"eval/{SELECTED_BY}" in row]
        sampled = sampled_rows(rows)
        sampled_kl, sampled_at = ([row[key] for row in sampled] for key in ("objective/kl", "step"))
        kls[name] = kl_after_steps(sampled_kl, sampled_at, [row["step"] for row in evaluated])
        metrics[name] = {m: np.array([row[f"eval/{m}"] for row in evaluated], dtype=float) for m in CURVE_METRICS}
    largest = min(float(kl.max()) for kl in kls.values())
    policies = {name: {m: value_at_kl(kls[name], metrics[name][m], largest) for m in CURVE_METRICS} for name in logs}
    return {"kl": largest, "policies": policies}


def _best_step(run_dir: Path) -> int:
    """Return the step of the best policy on the selection split, which is the run's result."""
    return int(json.loads((run_dir / "finished.json").read_text())["policy_step"])


def _reward_accuracy(reward_dir: Path) -> dict[str, Any]:
    """Return a reward model's accuracy on held-out pairs, with its interval."""
    finished = json.loads((reward_dir / "finished.json").read_text())
    accuracy = proportion(np.array(finished["right"]) > 0, finished.get("clusters"))
    return {"accuracy": accuracy["value"], "accuracy_ci": [accuracy["low"], accuracy["high"]]}


def _rows_of(split: scenes.Split, example_ids: Iterable[str]) -> list[Example]:
    """Rebuild the rows of answers, without images and prompts, which scoring does not need."""
    module, rows = load_benchmark("scenes").module, []
    for example_id in example_ids:
        _, number, kind = example_id.split("-")  # SPLIT-INDEX-KIND
        meta: dict[str, Any] = {"split": split, "index": int(number), "kind": kind}
        if kind == "yes_no":
            meta["truth"] = module.yes_no_truth(split, int(number))
        rows.append(Example(example_id, (), (), meta=meta))
    return rows


# ---- gallery -------------------------------------------------------------------------------------


def gallery(data_config: ScenesConfig, answers: AnswersByModel, num_scenes: int = 12) -> list[dict[str, Any]]:
    """Return held-out scenes with every model's answer, claim by claim.

    They are among those that best-of-n describes. Half are the first scenes where SFT makes a false
    claim, half are the first where it makes none.
    """
    with_errors: list[scenes.Scene] = []
    without_errors: list[scenes.Scene] = []
    for index in range(min(data_config.held_out_scenes, data_config.best_of_n_scenes)):
        scene = scenes.generate_scene("held_out", index, 0)
        answer = answers["sft"]["held_out"][f"{scene.id}-describe"][0]
        (with_errors if scenes.verify_answer(scene, answer).false_claims else without_errors).append(scene)
        if min(len(with_errors), len(without_errors)) >= num_scenes // 2:
            break
    chosen = itertools.chain(with_errors[: num_scenes // 2], without_errors[: num_scenes // 2])
    return [_gallery_entry(data_config, scene, answers) for scene in chosen]


def _gallery_entry(data_config: ScenesConfig, scene: scenes.Scene, answers: AnswersByModel) -> dict[str, Any]:
    index = int(scene.id.split("-")[1])
    entry: dict[str, Any] = {
        "image": scene.image_source().read(),
        "id": scene.id,
        "prompt": load_benchmark("scenes").module.description_question(scene, index).text,
        "facts": "; ".join(_fact_text(scene, fact) for fact in split_scope(evaluation_facts(data_config, scene, index))[1]),
        "answers": [],
    }
    for name in GALLERY_MODELS:
        text = answers[name]["held_out"][f"{scene.id}-describe"][0]
        verdicts = scenes.verify_description(scene, text)
        claims = [
            {"start": v.claim.span[0], "end": v.claim.span[1], "verdict": v.value, "evidence": v.evidence} for v in verdicts
        ]
        entry["answers"].append({"model": name, "text": text, "claims": claims})
    return entry


def _fact_text(scene: scenes.Scene, fact: Fact) -> str:
    """Return an annotator's fact, with "(wrong)" if the scene contradicts it."""
    sentence = fact.text if fact.kind == "count" else scenes.with_article(fact.text)
    is_wrong = any(verdict.value == "contradicted" for verdict in scenes.verify_description(scene, sentence))
    return f"{fact.text} (wrong)" if is_wrong else fact.text
