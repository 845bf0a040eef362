"""HallusionBench, MME, LLaVA-Bench, VL-RewardBench and DASH-B as their official scripts print them,
digit for digit."""

import json
import re
from functools import partial

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import load_benchmark


def official_metrics(name, tmp_path, **config):
    result = evaluate(name, EvalConfig(output_dir=str(tmp_path / "out"), **config))
    assert result["counts"]["missing"] == result["counts"]["unknown_ids"] == 0
    return result["metrics"]["official"]


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("judgments", ["judge_log", "official_verdicts"])
def test_hallusionbench_matches_official_output(shared_data, tmp_path, judgments):
    case = shared_data / "parity" / "HallusionBench" / "mix"
    data = shared_data / "benchdata" / "HallusionBench" / "HallusionBench.json"
    metrics = official_metrics(
        "hallusionbench",
        tmp_path,
        answers=str(case / "input.jsonl"),
        data=str(data),
        recorded_judgments=str(case / f"{judgments}.jsonl"),
    )
    tables = [row.split("|")[2:-1] for row in (case / "official_output.txt").read_text().splitlines() if "GPT Eval |" in row]
    printed = [cell.strip() for row in tables for cell in row]
    names = "q_acc f_acc easy_acc hard_acc a_acc pct_diff fp_ratio consistency_correct consistency_inconsistent consistency_wrong lh vi mixed"
    assert len(printed) == 13
    for name, cell in zip(names.split(), printed, strict=True):
        places = len(cell.partition(".")[2])
        value = metrics[name]["value"]
        assert str(round(value, 4) if places <= 4 else value) == cell, name
    rows = {r["id"]: r for r in read_rows(tmp_path / "out" / "scores.jsonl")}
    for verdict in read_rows(case / "official_verdicts.jsonl"):
        row = rows["/".join(verdict[n] for n in ("category", "subcategory", "set_id", "figure_id", "question_id"))]
        assert row["verdict"] == int(verdict["gpt4v_output_gpt_check"])
        assert row["same"] is None or row["same"] == (
            verdict["same"] == "1"
        )  # asked only where the figure is another than the original


def test_mme_matches_official_output(shared_data, tmp_path):
    metrics = official_metrics("mme", tmp_path, answers=str(shared_data / "benchdata" / "MME" / "LaVIN_answers"))
    output = (shared_data / "parity" / "MME" / "lavin" / "official_output.txt").read_text()
    totals = dict(zip(("perception", "cognition"), re.findall(r"total score: ([\d.]+)", output), strict=True))
    scores = dict(re.findall(r"(\w+)  score: ([\d.]+)", output))
    assert len(scores) == 14
    for name, printed in {**totals, **scores}.items():
        assert str(metrics[name]["score"]["value"]) == printed
    assert metrics["score"]["value"] == metrics["perception"]["score"]["value"] + metrics["cognition"]["score"]["value"]


def test_llava_bench_matches_official_output(shared_data, tmp_path):
    case = shared_data / "parity" / "LLaVABench"
    metrics = official_metrics("llava_bench", tmp_path, answers=str(case / "input_review.jsonl"))
    printed = dict(re.findall(r"^(\w+) ([\d.]+)$", (case / "official_output.txt").read_text(), re.M))
    assert len(printed) == 4
    for name, value in printed.items():
        assert str(round((metrics if name == "all" else metrics[name])["score"]["value"], 1)) == value
    module = load_benchmark("llava_bench").module
    for row in json.loads((case / "parse_table.json").read_text()):
        assert module.official_ratings(row["review"]) == row["official"]


def test_vl_rewardbench_matches_official_output(shared_data, tmp_path):
    case = shared_data / "parity" / "VLRewardBench"
    metrics = official_metrics("vl_rewardbench", tmp_path, answers=str(case / "input.jsonl"))
    blocks = re.split(r"k=(\d) -+\n", (case / "official_output.txt").read_text())[1:]
    assert blocks[::2] == ["1", "3", "5", "7", "9"]
    for k, text in zip(blocks[::2], blocks[1::2], strict=True):
        number = partial(re.findall, string=text)
        values = {name: figure["value"] for name, figure in metrics[f"k{k}"].items()}
        groups = number(r"reasoning\n([\d.]+)\t ([\d.]+)\t ([\d.]+)")[0]
        assert groups == tuple(f"{values[g]:.2f}" for g in ("general", "hallucination", "reasoning"))
        assert number(r"Overall Accuracy: ([\d.]+)") == [f"{values['accuracy']:.2f}"]
        assert number(r"Macro Average Acc: ([\d.]+)") == [f"{values['macro_accuracy']:.2f}"]
        rates = number(r"rate: ([\d.]+)(?:, normalized rate: ([\d.]+))?")
        names = [("agree_rate", "normalized_agree_rate"), ("reject_rate", "normalized_reject_rate"), ("doesnt_match_rate", "")]
        assert rates == [tuple(str(round(values[n], 4)) if n else "" for n in pair) for pair in names]


def test_dash_b_matches_official_output(shared_data, tmp_path):
    place = shared_data / "benchdata" / "DASH-B"
    metrics = official_metrics("dash_b", tmp_path, answers=str(place / "Paligemma-3b_answers.json"))
    printed = json.loads((place / "Paligemma-3b_dash_b_results.json").read_text())
    names = {"ACC": "accuracy", "TNR": "tnr", "TPR": "tpr", "Harmonic Mean": "harmonic_mean"}
    assert {name: metrics[ours]["value"] for name, ours in names.items()} == printed


def test_multimodal_rewardbench_reads_the_authors_example(shared_data, tmp_path):
    path = shared_data / "benchdata" / "MultimodalRewardBench" / "example.jsonl"
    assert (
        official_metrics("multimodal_rewardbench", tmp_path, answers=str(path))["accuracy"]["value"] == 0.5
    )  # B and A against B and B
