"""The study of feedback: costs and tables by a pencil, and a cell of each part at tiny sizes."""

import dataclasses
import json
from functools import partial

import pytest
import yaml

from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line
from mmrlhf.training.feedback.labels import SampledAnswer, verdicts_row
from tests.helpers.labelled_answers import CONTRADICTED, SUPPORTED, UNKNOWN, verdict


@pytest.fixture
def study(load_study):
    return load_study("feedback")


def write_round(folder, *verdicts_of_answers):
    answers = [SampledAnswer(0, number, f"answer {number}", 2) for number in range(len(verdicts_of_answers))]
    rows = [json_line(verdicts_row(answer, verdicts)) for answer, verdicts in zip(answers, verdicts_of_answers, strict=True)]
    write_atomic(folder / "answers.jsonl", "".join(json_line(dataclasses.asdict(answer)) for answer in answers))
    write_atomic(folder / "verdicts.jsonl", "".join(rows))


def test_unknown_costs_are_what_the_recall_of_the_facts_does_not_explain(study, tmp_path):
    """Four supported objects at recall 0.8 come with one true unknown one: one of two is false."""
    names = ("ring", "star", "moon", "heart")
    write_round(tmp_path, [verdict(SUPPORTED, name) for name in names], [verdict(UNKNOWN, "cross"), verdict(UNKNOWN, "arrow")])
    assert study.unknown_costs(tmp_path, 0.8) == "object=0.500"
    assert study.unknown_costs(tmp_path, 1.0) == "object=1.000"  # a complete list leaves no true claim out
    assert study.unknown_costs(tmp_path, 0.5) is None  # more true ones than there are unknown


def test_a_kind_that_facts_never_support_costs_nothing(study, tmp_path):
    write_round(tmp_path, [verdict(UNKNOWN, "ring", kind="relation", relation="left of", target="star")])
    assert study.unknown_costs(tmp_path, 0.8) is None


def test_unknown_costs_count_neither_denials_nor_repetitions(study, tmp_path):
    repeated = [verdict(UNKNOWN, "cross")] * 3
    write_round(tmp_path, [*repeated, verdict(UNKNOWN, "star", negated=True), verdict(CONTRADICTED, "moon"), verdict(SUPPORTED)])
    assert study.unknown_costs(tmp_path, 0.8) == "object=0.750"  # 1 - 0.25 of one unknown claim


def share(value):
    return {"value": value, "low": 0.0, "high": 1.0, "n": 10}


def test_report_has_agreement_ratios_to_sft_and_paired_differences(study, tmp_path, capsys):
    labels = {
        "agreement": {"pairs": {"clear": share(0.9)}, "comparisons": {"clear": share(0.8)}},
        "pairs": {"prompts_with_pair_share": 0.5},
        "biases": {
            "length": {
                "labelled_where_untied": share(0.6), "true_where_untied": share(0.5), "labelled_at_equal_truth": share(0.7),
                "bias": 0.1,
            },
            "position": {"labelled": share(0.5)},
        },
    }  # fmt: skip
    write_atomic(tmp_path / "cells" / "labels-0-facts.json", json.dumps(labels))
    for name, habit, coverage in (("sft-none", 0.9, 0.7), ("rounds3-facts", 0.3, 0.69), ("round1-facts", 0.6, 0.68)):
        for seed in (0, 1):
            cell = {"cooccurrence_errors": habit, "coverage": coverage, "claim_f1": 0.8, "utility": 1.0}
            write_atomic(tmp_path / "cells" / f"rounds-{seed}-{name}.json", json.dumps(cell))
    study.report(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "| facts | 90.0 | 80.0 | 50.0 | 60.0 | 50.0 | 70.0 | 10.0 | 50.0 | 1 |" in lines
    assert any(line.startswith("| rounds3 facts | 0.30 ± 0.00 | 33.3 ± 0.0 | 69.0 ± 0.0 | -1.0 ± 0.0") for line in lines)
    assert "three rounds minus one, facts, cooccurrence_errors: -0.300 ± 0.000 over 2 seeds" in lines
    last = json.loads(lines[-1])
    assert last["study"] == "feedback" and set(last["rounds"]) == {"sft-none", "rounds3-facts", "round1-facts"}


def test_report_of_a_single_seed_has_no_interval(study, tmp_path, capsys):
    for name in ("sft-none", "rounds3-facts", "round1-facts"):
        cell = {"cooccurrence_errors": 0.5, "coverage": 0.7, "claim_f1": 0.8, "utility": 1.0}
        write_atomic(tmp_path / "cells" / f"rounds-0-{name}.json", json.dumps(cell))
    study.report(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert "three rounds minus one, facts, utility: +0.000 over 1 seeds" in lines
    assert json.loads(lines[-1])["three_minus_one"]["facts"]["utility"]["half_width"] is None


def test_cells_run_at_tiny_sizes(study, load_study, tiny_vlm_path, tmp_path, monkeypatch):
    """The bundled model stands for SFT's; the second cell reads the labels of the first."""
    recipe = tmp_path / "dpo.yaml"
    recipe.write_text(
        yaml.safe_dump({"lora_r": 4, "max_steps": 1, "per_device_train_batch_size": 2, "num_sample_generations": 0})
    )
    sizes = ["--prompts", "2", "--num-generations", "4", "--selection-scenes", "1", "--eval-scenes", "1", "--recipe", str(recipe)]
    args = study.parse_arguments(["--out", str(tmp_path), "--seeds", "1", *sizes])
    experiment = load_study("common").Experiment(tmp_path, 0, data_overrides={"rl_scenes": 6})
    experiment.__dict__["sft_path"] = tiny_vlm_path
    run = partial(study.run_feedback, experiment)
    monkeypatch.setattr(study, "run_feedback", lambda _, *rest, **settings: run(*rest, balance_lengths=False, **settings))
    costs = study.measure_labels(experiment, "facts_costs", args)
    assert costs["costs"] and costs["agreement"]["pairs"]["clear"]["n"] >= 0 and costs["pairs"]["kept"] > 0
    assert (experiment.directory / "feedback_labels_facts" / "round_1" / "pairs.jsonl").is_file()
    measured = study.measure_rounds(experiment, "round1", "facts", args)
    assert {"cooccurrence_errors", "coverage"} <= measured.keys() and measured["rounds"][0]["feedback/answers"] == 24
