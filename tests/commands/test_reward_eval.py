"""reward-eval measures a trained reward model and resumes; its metrics match hand computation."""

import dataclasses
import json

import pytest

from mmrlhf.commands.reward_eval import reward_eval
from mmrlhf.commands.reward_eval_page import findings, table_rows
from mmrlhf.commands.reward_metrics import accuracy, accuracy_difference, compute_metrics, length_bin, probe_metrics
from mmrlhf.config import RewardConfig, RewardEvalConfig
from mmrlhf.records import ImageSource, InputError, Preference
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.probes import Probe
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from tests.report.test_page import ParsedPage


def make_pair(id_, better, worse, **fields):
    return Preference.from_pair(id_, (), (), better, worse, **fields)


def with_false_answer(example, source=""):
    """Build a pair of an example's answer and a false one."""
    false_answer = "There is a pink ring. That makes nine objects."
    return Preference.from_pair(
        example.id, example.images, example.prompt, example.answer, false_answer, example.facts, source=source
    )


def test_reward_eval_metrics_match_hand_computation():
    rows = [
        make_pair("a", "one two three four", "one", source="x", hallucinated=True),
        make_pair("b", "one", "one two three four", source="x", hallucinated=False),
        make_pair("c", "one two", "two one", source="y"),
        Preference("d", (), (), ("p", "q"), (1, 1)),
    ]
    scores = [[2.0, 0.0], [0.0, 1.0], [1.0, 0.5], [0.1, 0.2]]
    metrics = compute_metrics(rows, scores, 1.0)
    assert metrics["accuracy"]["value"] == pytest.approx(2 / 3) and metrics["accuracy"]["n"] == 3
    assert {name: group["value"] for name, group in metrics["by_source"].items()} == {"x": 0.5, "y": 1.0}
    assert {name: group["value"] for name, group in metrics["by_hallucinated"].items()} == {"no": 0.0, "unknown": 1.0, "yes": 1.0}
    assert {name: group["value"] for name, group in metrics["by_length"].items()} == {
        "1 much shorter": 0.0,
        "3 as long": 1.0,
        "5 much longer": 1.0,
    }
    assert metrics["ties"] == pytest.approx({"n": 1, "mean_gap": 0.1, "mean_gap_of_others": 3.5 / 3, "auroc": 1.0})
    assert accuracy(rows, [[1.0, 1.0]] * 4)["value"] == 0.0  # equal scores are wrong
    assert length_bin("杯" * 25, "杯杯杯") == "5 much longer"  # without blanks, characters are words
    assert length_bin("a b c d e f g h i j", "a b c d e f g h i") == "4 longer"


def test_probes_of_one_image_count_once():
    """Two images, one of them always right: nine probes of each say no more than one."""
    groups = [AnswerGroup((ImageSource(name),), (), ("x",), (), str(i)) for i, name in enumerate("ab" * 9)]
    probes = [Probe("object", group, "false", "true") for group in groups]
    rates = probe_metrics(probes, [[1.0, 0.0, 1.0], [1.0, 2.0, 1.0]] * 9)["object"]
    assert rates["false_lowers"] == {"value": 0.5, "low": 0.0, "high": 1.0, "n": 18}
    assert rates["false_below_true"] == rates["false_lowers"] and rates["true_lowers"]["value"] == 0.0


def test_accuracies_of_the_same_rows_are_compared_in_pairs():
    rows = [make_pair(str(i), "x", "y") for i in range(40)] + [Preference("tie", (), (), ("p", "q"), (1, 1))]
    own = [[1.0, 0.0] if i < 30 else [0.0, 1.0] for i in range(41)]
    blind = [[1.0, 0.0] if i < 20 else [0.0, 1.0] for i in range(41)]
    difference = accuracy_difference(rows, own, blind)
    assert difference["value"] == 0.25  # 10 of 40 pairs
    # Paired: they differ where the own picture is right, so the standard error is that of 10 of 40.
    assert difference["low"] == pytest.approx(0.25 - 1.96 * (0.25 * 0.75 / 40) ** 0.5, abs=0.03)
    assert accuracy_difference(rows[-1:], own[-1:], blind[-1:]) is None


def test_a_model_that_does_not_need_the_picture_is_named():
    quiet = {"calibration": {"ece": 0.1, "ece_uncalibrated": 0.1}, "ties": None, "probe": {}}
    curve = {"own": {"value": 0.6}, "another row's": {"value": 0.58}}
    blind = {**quiet, "picture_curve": curve, "picture_gain": {"value": 0.02, "low": -0.01, "high": 0.05}}
    assert findings(blind)[-1] == (
        "With another row's picture it is right in 58%, with the right one in 60% of the same comparisons "
        "(difference 0.02, -0.01 to 0.05): it is not shown to look at the picture."
    )
    assert "picture" not in findings({**blind, "picture_gain": {"value": 0.02, "low": 0.01, "high": 0.03}})[-1]


def test_reward_eval_writes_results_and_resumes(tiny_vlm_path, examples, tmp_path, capsys, monkeypatch):
    rows = [with_false_answer(example, source="scenes") for example in examples]
    rows.append(dataclasses.replace(rows[0], id="tie", ranks=(1, 1)))
    reward_config = RewardConfig(
        model_name_or_path=tiny_vlm_path,
        dataset_name="x",
        output_dir=str(tmp_path / "reward"),
        learning_rate=2e-3,
        lora_r=4,
        per_device_train_batch_size=6,
        max_steps=4,
        injected_claim_rate=0.3,
        fact_noise=0.1,
    )
    path = train_reward_model(reward_config, rows[:-1], rows[:-1])
    metadata = json.loads((path / "reward.json").read_text())
    assert set(metadata["probes"]) <= {"object", "attribute", "count", "relation"} and metadata["temperature"] > 0
    config = RewardEvalConfig(
        reward_model_path=str(path), dataset_name="x", output_dir=str(tmp_path / "bench"), probes=6, batch_size=4
    )
    score = RewardModel.score
    batch_sizes = []

    def interrupt_sixth_call(self, groups):
        batch_sizes.append(len(groups))
        if len(batch_sizes) == 6:
            raise KeyboardInterrupt
        return score(self, groups)

    monkeypatch.setattr(RewardModel, "score", interrupt_sixth_call)
    with pytest.raises(KeyboardInterrupt):
        reward_eval(config, rows)
    num_calls = len(batch_sizes)
    result = reward_eval(config, rows)
    assert batch_sizes[num_calls + 1] < 13  # finished scores are not computed again
    assert (tmp_path / "bench" / "scores" / "as_given.jsonl").is_file()
    assert result["n"] == 13 and result["accuracy"]["n"] == 12 and result["ties"]["n"] == 1
    assert set(result["facts_curve"]) == {
        "as given",
        "75% left",
        "50% left",
        "25% left",
        "0% left",
        "another image's",
        "contradicted",
    }
    assert json.loads((tmp_path / "bench" / "result.json").read_text()) == json.loads(json.dumps(result))
    page = ParsedPage((tmp_path / "bench" / "report.html").read_text(encoding="utf-8"))
    assert "prefers the better answer in" in page.text and "length label correlation" in page.text
    assert page.ids_of_sections() == ["plots", "lengths", "tables"] and page.num_unfolded_tables == 0
    assert "Expected calibration error" in capsys.readouterr().out
    labels = [row[0].strip() for row in table_rows(result)]
    assert {"with all facts", "with 75% of the facts", "without facts", "with another image's facts"} < set(labels)
    nothing = "No hallucinations were injected: no row has facts about objects"
    assert any(sentence.startswith(nothing) for sentence in findings(result | {"probe": {}}))
    with pytest.raises(InputError, match="has ties only"):
        reward_eval(dataclasses.replace(config, output_dir=str(tmp_path / "ties")), [rows[-1]])


def test_reward_eval_refuses_other_rows_and_has_nothing_to_do_for_the_same(tiny_vlm_path, examples, tmp_path, capsys):
    rows = [with_false_answer(example) for example in examples[:6]]
    reward_config = RewardConfig(
        model_name_or_path=tiny_vlm_path,
        dataset_name="x",
        output_dir=str(tmp_path / "r"),
        learning_rate=2e-3,
        lora_r=4,
        per_device_train_batch_size=6,
        max_steps=1,
    )
    path = train_reward_model(reward_config, rows)
    data = tmp_path / "rows.jsonl"
    config = RewardEvalConfig(
        reward_model_path=str(path), dataset_name=str(data), output_dir=str(tmp_path / "bench"), probes=0, batch_size=4
    )
    data.write_text("first")
    first = reward_eval(config, rows)
    capsys.readouterr()
    assert reward_eval(config, rows) == json.loads(json.dumps(first))
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'bench'} is finished, nothing to do: the result is {tmp_path}/bench/result.json\n"
    )
    flipped = [dataclasses.replace(row, answers=row.answers[::-1]) for row in rows]
    with pytest.raises(InputError, match="other inputs, rows"):
        reward_eval(config, flipped)
    data.write_text("flipped")
    with pytest.raises(InputError, match=r"other inputs, dataset_name \(.*rows.jsonl has changed since\)"):
        reward_eval(config, rows)
