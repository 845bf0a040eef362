"""The demo's measurements on a handful of made-up answers: no model is loaded."""

import json

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo import measure
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters
from mmrlhf.records import Fact

CONFIG = ScenesConfig(held_out_scenes=6, ood_scenes=4, best_of_n_scenes=5)
SAMPLES = {"sampled": measure.NUM_SAMPLES, "candidates": CONFIG.best_of_n}
NO_MODELS = measure.TrainedModels("none", "none", {"ppo_plain": "none", "ppo_fact": "none"}, {})


@pytest.fixture
def answers_dir(tmp_path):
    """Answers of every model on every split: true ones, but those of SFT have faults."""
    directory = tmp_path / "answers"
    directory.mkdir()
    benchmark = load_benchmark("scenes").module
    models = ("sft", "sft_t03", "sft_t07", "ppo_plain", "ppo_fact", "clean_sft")
    tasks = [(model, split) for model in models for split in measure.SPLITS]
    tasks += [("best_of_n", "held_out"), ("best_of_n_facts", "held_out")]
    tasks += [(model, "sampled") for model in ("sft", "ppo_plain", "ppo_fact")] + [("sft", "candidates")]
    for model, split in tasks:
        lines = []
        num_scenes = 5 if split == "candidates" or model in measure.BEST_OF_N else 6 if split == "held_out" else 4
        for example in benchmark.prompts("held_out" if split in SAMPLES else split, num_scenes):
            if example.meta["kind"] == "yes_no":
                if split in SAMPLES or model in measure.BEST_OF_N:
                    continue
                answers = [example.meta["truth"].capitalize() + "."]
            else:
                scene = scenes.generate_scene(example.meta["split"], example.meta["index"], 0)
                num_faults = 3 if model == "sft" and example.meta["index"] % 2 else 0
                rng = np.random.default_rng(example.meta["index"])
                answers = [scenes.caption(scene, rng, num_faults=num_faults) for _ in range(SAMPLES.get(split, 1))]
            lines.append(json.dumps({"id": example.id, "answers": answers}) + "\n")
        (directory / f"{model}-{split}.jsonl").write_text("".join(lines))
    return directory


def ppo_log(kl_per_step, claim_f1, steps_between=2):
    """Rows of metrics.jsonl: the KL grows evenly, and every `steps_between` steps are evaluated."""
    num_steps = steps_between * (len(claim_f1) - 1)
    rows = [{"step": 0}] + [{"step": t, "objective/kl": kl_per_step * (t - 1)} for t in range(1, num_steps + 1)]
    for row, value in zip(rows[::steps_between], claim_f1, strict=True):
        row |= {f"eval/{name}": 0.0 for name in measure.CURVE_METRICS} | {"eval/claim_f1": value}
    return rows


@pytest.fixture
def finished_stages(tmp_path):
    """The files that the reward and PPO stages leave in their directories."""
    for name in ("fact", "plain"):
        for stage in ("reward", "ppo"):
            (tmp_path / f"{stage}_{name}").mkdir()
        (tmp_path / f"reward_{name}" / "finished.json").write_text(json.dumps({"right": [1.0, 1.0, 0.0, 1.0]}))
        log = ppo_log(kl_per_step=1.0 if name == "fact" else 0.5, claim_f1=(0.5, 0.7))
        (tmp_path / f"ppo_{name}" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
        (tmp_path / f"ppo_{name}" / "finished.json").write_text('{"policy_step": 2}')
    return tmp_path


def test_generate_answers_reads_what_was_generated_before(answers_dir):
    answers = measure.generate_answers(CONFIG, NO_MODELS, answers_dir)
    assert list(answers) == ["sft", "sft_t03", "sft_t07", "ppo_plain", "ppo_fact", "best_of_n", "best_of_n_facts", "clean_sft"]
    assert set(answers["sft"]) == {*measure.SPLITS, "sampled"} and set(answers["clean_sft"]) == set(measure.SPLITS)
    assert len(answers["ppo_fact"]["held_out"]) == 6 + 3 and len(answers["best_of_n"]["held_out"]) == 5
    assert all(len(texts) == measure.NUM_SAMPLES for texts in answers["sft"]["sampled"].values())


def test_generate_answers_samples_with_the_models_that_are_needed(answers_dir, vlm, tiny_vlm_path):
    (answers_dir / "clean_sft-ood_3.jsonl").unlink()
    models = measure.TrainedModels("none", tiny_vlm_path, NO_MODELS.policy_paths, {})
    answers = measure.generate_answers(CONFIG, models, answers_dir)["clean_sft"]["ood_3"]
    assert len(answers) == 4 + 2 and all(len(texts) == 1 for texts in answers.values())


def test_best_of_n_ranks_the_same_candidates_by_either_reward_model(answers_dir, monkeypatch):
    ranked = {}

    def best_answers(reward_model, rows, candidates):
        ranked[reward_model] = {row.id: texts for row, texts in zip(rows, candidates, strict=True)}
        return [(texts[-1], 1.0) for texts in candidates]

    monkeypatch.setattr(measure, "best_answers", best_answers)
    monkeypatch.setattr(measure, "load_reward_model", lambda path, adapters, adapter_name: path)
    models = measure.TrainedModels("none", "none", {}, {"reward_plain": "p", "reward_fact": "f"})
    vars(models).update(adapters=None)
    for name in measure.BEST_OF_N:
        (answers_dir / f"{name}-held_out.jsonl").unlink()
    answers = measure.generate_answers(CONFIG, models, answers_dir)
    candidates = {row["id"]: row["answers"] for row in read_jsonl(answers_dir / "sft-candidates.jsonl")}
    assert ranked["p"] == ranked["f"] == candidates
    assert answers["best_of_n"]["held_out"] == {row_id: texts[-1:] for row_id, texts in ranked["p"].items()}


def test_candidates_are_sampled_once_and_each_differs(answers_dir, vlm):
    (answers_dir / "sft-candidates.jsonl").unlink()
    models = measure.TrainedModels("none", "none", {}, {})
    vars(models).update(adapters=Adapters(vlm))
    answers = measure.generate_answers(CONFIG, models, answers_dir)
    rows = read_jsonl(answers_dir / "sft-candidates.jsonl")
    assert [row["id"] for row in rows] == [f"held_out-00000{i}-describe" for i in range(5)]
    assert all(len(set(row["answers"])) > 1 and len(row["answers"]) == CONFIG.best_of_n for row in rows)
    assert "candidates" not in answers["sft"]


def test_both_reward_models_fit_on_one_base(tiny_vlm_path, reward_dir):
    models = measure.TrainedModels(tiny_vlm_path, "none", {}, {"reward_plain": str(reward_dir), "reward_fact": str(reward_dir)})
    roles = [models.reward_model(name).role for name in measure.BEST_OF_N.values()]
    assert roles[0].adapters is roles[1].adapters is models.adapters and roles[0].adapter != roles[1].adapter


def test_summarise_scores_every_model_and_split(answers_dir, finished_stages):
    answers = measure.generate_answers(CONFIG, NO_MODELS, answers_dir)
    summary = measure.summarise(CONFIG, finished_stages, answers, {"sft": 1.0})
    assert {name: row["n"] for name, row in summary["beside_best_of_n"].items()} == dict.fromkeys(
        ("sft", "ppo_plain", "ppo_fact", "best_of_n", "best_of_n_facts"), 5
    )
    assert set(summary) == {
        "models",
        "beside_best_of_n",
        "sampled",
        "reward_models",
        "kl",
        "best_step",
        "same_kl",
        "seconds",
        "seed",
    }
    sft, clean = summary["models"]["sft"]["held_out"], summary["models"]["clean_sft"]["held_out"]
    assert sft["n"] == 6 and sft["chair_s"] > 0 and sft["yes_no_accuracy"] == 1.0
    assert clean["chair_s"] == 0 and clean["chair_s_ci"] == pytest.approx([0, 3.8415 / (6 + 3.8415)], abs=1e-4)  # Wilson
    assert "yes_no_accuracy" not in summary["models"]["best_of_n"]["held_out"]
    assert set(summary["models"]["best_of_n_facts"]) == {"held_out"}
    assert set(summary["sampled"]) == {"sft", "ppo_plain", "ppo_fact"} and "ead_within" in summary["sampled"]["sft"]
    assert summary["reward_models"]["fact"]["accuracy"] == 0.75 and summary["best_step"] == {"ppo_plain": 2, "ppo_fact": 2}
    assert summary["kl"] == {"ppo_plain": 0.5, "ppo_fact": 1.0} and summary["seconds"] == {"sft": 1.0}
    json.dumps(summary)


def test_at_same_kl_compares_policies_where_the_slower_one_ends():
    logs = {"fast": ppo_log(0.1, (0.8, 0.9, 0.5), 10), "slow": ppo_log(0.05, (0.8, 0.82, 0.86), 10)}
    for step in (5, 20):
        logs["fast"][step].pop("objective/kl")  # skipped steps log none
    same_kl = measure.at_same_kl(logs)
    assert same_kl["kl"] == pytest.approx(1.0)  # slow after 20 steps, fast after 10
    values = {name: row["claim_f1"] for name, row in same_kl["policies"].items()}
    assert values == {"fast": pytest.approx(0.9), "slow": pytest.approx(0.86)}


def test_gallery_shows_scenes_with_and_without_false_claims_of_sft(answers_dir):
    answers = measure.generate_answers(CONFIG, NO_MODELS, answers_dir)
    entries = measure.gallery(CONFIG, answers, num_scenes=4)
    has_errors = []
    for entry in entries:
        assert entry["image"].startswith(b"\x89PNG") and entry["prompt"] and "complete" not in entry["facts"]
        assert [answer["model"] for answer in entry["answers"]] == list(measure.GALLERY_MODELS)
        sft = entry["answers"][0]
        has_errors.append(any(claim["verdict"] == "contradicted" for claim in sft["claims"]))
        assert all(0 <= claim["start"] < claim["end"] <= len(sft["text"]) for claim in sft["claims"])
    assert has_errors == sorted(has_errors, reverse=True) and set(has_errors) == {True, False}


def test_selection_metrics_are_those_of_the_curves(vlm):
    rows = load_benchmark("scenes").module.prompts("selection", 2)
    metrics = measure.selection_metrics(vlm, rows)
    assert set(metrics) == set(measure.CURVE_METRICS) and 0 <= metrics["coverage"] <= 1


@pytest.mark.parametrize(
    ("kind", "text", "is_wrong"),
    [
        ("object", "small plain orange ring at the top", False),
        ("object", "large plain orange ring at the top", True),
        ("object", "small dotted orange ring at the top", True),
        ("object", "small plain orange ring at the centre", True),
        ("object", "large striped blue star at the centre", False),
        ("object", "large striped yellow moon at the top", True),
        ("count", "two objects", False),
        ("count", "three objects", True),
    ],
)
def test_wrong_facts_are_marked_in_the_gallery(kind, text, is_wrong):
    objects = (scenes.SceneObject("ring", "orange", "small", 1), scenes.SceneObject("star", "blue", "large", 4, "striped"))
    scene = scenes.Scene("s", objects, 1, scenes.Difficulty())
    assert measure._fact_text(scene, Fact(kind, text, "annotator")) == text + " (wrong)" * is_wrong
