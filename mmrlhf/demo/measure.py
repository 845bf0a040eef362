"""The demo's measurements: answers of every model on every split, their scores, and the summary that the report shows."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo.data import GREEDY, RESPONSE_LENGTH, benchmark_rows, evaluation_facts
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.metrics.intervals import bootstrap
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.loading import load as load_vlm
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example
from mmrlhf.report.progress import progress
from mmrlhf.rewards.best_of_n import best_of_n
from mmrlhf.rewards.checkpoint import load_reward_model


def score_scenes(
    module: ModuleType, examples: Sequence[Example], predictions: Mapping[str, list[str]], folder: Path | None, seed: int
) -> dict[str, Any]:
    """Figures by split of answers to scenes, for the demo and the studies; rows go to scores.jsonl when a folder is given."""
    task = Task(seed=seed)
    rows = [{"id": e.id, **module.score(e, predictions[e.id], task)} for e in examples]
    if folder is not None:
        write_atomic(folder / "scores.jsonl", "".join(map(json_line, rows)))
    return dict(module.by_split(rows, seed))


SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")


NUM_SAMPLES = 4
"""Answers to each held-out prompt at temperature 1, beside the greedy one: is truth lost when sampled, and how varied are they?"""


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
        s: benchmark_rows(
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
        if model_name == "clean_sft":
            loaded.setdefault("clean", load_vlm(clean_sft_path))
            yield from generate_batches(loaded["clean"], rows[split], GREEDY, batch_size=100)
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
                SamplingParams(RESPONSE_LENGTH, temperature, seed=data_config.seed),
                batch_size=100,
                num_generations=num_generations,
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
        facts_text = "; ".join(f.text for f in evaluation_facts(data_config, scene, index))
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
