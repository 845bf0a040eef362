"""Benchmarks that ask which of two answers is better: VL-RewardBench, Multimodal RewardBench."""

import json
import random
from types import SimpleNamespace

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.records import InputError
from tests.helpers.fake_data import write_jsonl
from tests.helpers.results import metric_value, notes_of, robust_value


@pytest.mark.parametrize(
    ("reply", "official", "robust"),
    [
        ("**Overall Judgment**: Answer 1 is better.", 1, 1),
        ("Therefore, Answer 2 is the better choice", 2, 2),
        ("Overall Judgment - Answer 3 is better", 3, None),
        ("Answer 2 is better.", None, 2),
        ("Overall Judgment: Both are equal", None, None),
        ("Overall Judgment: Answer 1 is clearly better", None, 1),
        ("Answer 2 is superior.", None, 2),
        ("Answer 1 is worse than Answer 2.", None, 2),
        ("I prefer Answer 1 to Answer 2.", None, 1),
        ("Overall, Answer 2 is the preferred one.", None, 2),
        ("Answer 1 is not better than Answer 2.", None, None),
        ("Answer 2 is better than Answer 1.", None, 2),
        ("Answer 1 is shorter.\n**Overall Judgement:** Answer 2", None, 2),
        ("Overall Judgment: Answer 1 and Answer 2 are equally good.", None, None),
        ("I would choose Answer 2.", None, 2),
        ("Answer 1 is better at first. Overall Judgment: Answer 2 is slightly better", 2, 2),
    ],
)
def test_vl_rewardbench_parses_choices(reply, official, robust):
    module = load_benchmark("vl_rewardbench").module
    assert (module.official_choice(reply), module.robust_choice(reply)) == (official, robust)


def test_vl_rewardbench_reads_long_runs_of_blanks_and_dashes():
    module = load_benchmark("vl_rewardbench").module
    run = f"Therefore{' ' * 20_000}{'-' * 3_000}"
    assert module.official_choice(run) is None and module.official_choice(f"{run} Answer 2 is   the better") == 2
    assert module.official_choice("Overall  Judgment: Answer 1 is better") is None  # cal.py wants one blank


def test_vl_rewardbench_metrics_match_hand_computation(run_benchmark):
    benchmark = load_benchmark("vl_rewardbench")
    data = run_benchmark("vl_rewardbench", {"VLFeedback-0/0": "?"})["data"]
    options = benchmark.options_type(votes=3)
    examples = {e.id: e for e in benchmark.load(Task(data, options=options))}
    assert {e.meta["swapped"] for e in examples.values()} == {0, 1} and len(examples) == 9

    def better(e, right):
        first_is_best = not e.meta["swapped"]
        return f"Overall Judgment: Answer {1 if first_is_best == right else 2} is better."

    replies = {i: better(e, right=not i.endswith("/2")) for i, e in examples.items()}  # two of three votes are right
    result = run_benchmark("vl_rewardbench", replies, {"votes": 3})
    assert metric_value(result, "accuracy", "robust") == metric_value(result, "k3/accuracy") == 100
    assert metric_value(result, "k9/agree_rate") == pytest.approx(1, abs=1e-5)  # the script divides by 3.000001
    wrong = run_benchmark("vl_rewardbench", {i: better(e, right=i.endswith("/2")) for i, e in examples.items()}, {"votes": 3})
    assert metric_value(wrong, "accuracy", "robust") == metric_value(wrong, "k3/accuracy") == 0
    unread = run_benchmark("vl_rewardbench", {i: "?" for i in examples}, {"votes": 3})
    assert "ZeroDivisionError" in unread["reasons"]["official"]["k1"]["accuracy"]
    assert metric_value(unread, "accuracy", "robust") == 0 and unread["counts"]["unparsed"] == 9


def vl_pair(answers, **fields):
    return {"id": "mathverse_1", "query": "What is shown?", "response": [f"{a} car." for a in answers], **fields}


def test_vl_rewardbench_tells_pairs_that_share_an_id_apart(run_benchmark, tmp_path, capsys):
    """One pair has three right votes, the other two wrong ones and a right one: 1 of 2 pairs."""
    votes = [vl_pair(["red", "blue"], ranking=[0, 1])] * 3 + [vl_pair(["old", "new"], ranking=[0, 1])] * 3
    rows = [
        vote | {"meta": {"random_number": 0, "filter_choice": f"Overall Judgment: Answer {choice} is better."}}
        for vote, choice in zip(votes, (1, 1, 1, 2, 2, 1), strict=True)
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = EvalConfig(answers=str(tmp_path / "results.jsonl"), output_dir=str(tmp_path / "out"))
    result = evaluate("vl_rewardbench", config)
    assert metric_value(result, "reasoning", "robust") == 50 and metric_value(result, "k3/agree_rate") == pytest.approx(
        0.5, abs=1e-5
    )
    assert "1 ids name several pairs" in capsys.readouterr().err
    data = [vl_pair(pair, human_ranking=[0, 1]) for pair in (["red", "blue"], ["old", "new"], ["red", "blue"])]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, data)))
    benchmark = load_benchmark("vl_rewardbench")
    examples = benchmark.load(Task(str(tmp_path / "data.jsonl"), options=benchmark.options_type(votes=2)))
    assert len({example.id for example in examples}) == len(examples) == 4
    assert all(example.id.startswith("mathverse_1~") and benchmark.categories(example) == ["reasoning"] for example in examples)
    assert "1 rows of" in capsys.readouterr().err


@pytest.mark.parametrize("field", [{"response": ["red", 3]}, {"human_ranking": [None, 1]}, {"human_ranking": {"0": 1}}])
def test_vl_rewardbench_refuses_pairs_that_are_none(tmp_path, field):
    write_jsonl(tmp_path / "data.jsonl", [vl_pair(["red", "blue"], human_ranking=[0, 1]) | field])
    with pytest.raises(InputError, match=r"data.jsonl line 1: a pair needs two responses that are texts, and a ranking"):
        load_benchmark("vl_rewardbench").load(Task(str(tmp_path / "data.jsonl")))


LMMS_EVAL_PROMPT = "Compare.\n\nQuestion: {}\n\nAnswer 1: {}\n\nAnswer 2: {}\n\nPlease evaluate both answers by:\n1. Accuracy"


@pytest.mark.parametrize("has_doc", [False, True])
def test_vl_rewardbench_reads_logs_of_harnesses_in_their_order(score, tmp_path, has_doc):
    """They swap answers whose lengths add up to an odd number. Two of three votes are right.

    Two pairs share their id, which only the prompt tells apart.
    """
    pairs = [vl_pair(["red", "blue"]), vl_pair(["old", "new"]), vl_pair(["a" * 5000, "b"], query="How long?")]
    if has_doc:
        pairs = [pair | {"id": f"mathverse_{n}"} for n, pair in enumerate(pairs)]
    data = write_jsonl(tmp_path / "data.jsonl", [pair | {"human_ranking": [0, 1]} for pair in pairs])
    rows = []
    for n, (pair, is_swapped) in enumerate(zip(pairs, (True, False, True), strict=True)):
        assert sum(map(len, pair["response"])) % 2 == is_swapped
        shown = pair["response"][:: -1 if is_swapped else 1]
        better = 2 if is_swapped else 1  # the ranking prefers the first of the data
        reply = f"Overall Judgment: Answer {better if n != 1 else 3 - better} is better."
        asked = (
            {"doc": pair} if has_doc else {"vlreward_score": {"question_id": pair["id"], "category": "reasoning", "score": 1.0}}
        )
        row = {"doc_id": n, "input": LMMS_EVAL_PROMPT.format(pair["query"], *shown), "target": "", "filtered_resps": [reply]}
        rows.append(row | asked)
    result = score("vl_rewardbench", rows[::-1], data)
    assert result["n"] == 3 and robust_value(result, "reasoning") == pytest.approx(200 / 3)
    rows[0]["input"] = LMMS_EVAL_PROMPT.format(pairs[0]["query"], *pairs[0]["response"])
    if not has_doc:  # not in lmms-eval's order: nothing says which is which
        result = score("vl_rewardbench", rows, data)
        assert result["n"] == 2 and "1 answers have ids that --data lacks" in notes_of(result)
        sheet = [
            {"index": n, "question": pair["query"], "response": str(pair["response"]), "prediction": row["filtered_resps"][0]}
            for n, (pair, row) in enumerate(zip(pairs, rows, strict=True))
        ]
        result = score("vl_rewardbench", sheet[::-1], data, suffix=".tsv")
        assert result["n"] == 3 and robust_value(result, "reasoning") == pytest.approx(200 / 3)


def test_multimodal_rewardbench_metrics_match_hand_computation(run_benchmark):
    replies = {"math_1": "[[A]]", "code_1": "[[B]] and [[A]]", "pairs_1": "[[A]] no, [[B]]", "nocaps_1": "neither"}
    result = run_benchmark("multimodal_rewardbench", replies)
    coin = random.Random(123).random() < 0.5
    assert metric_value(result, "accuracy") == (3 + coin) / 4  # A is looked for first
    assert metric_value(result, "accuracy", "robust") == 2 / 4  # the last one counts
    assert result["metrics"]["official"]["reasoning/math"]["accuracy"]["value"] == 1
    assert result["metrics"]["robust"]["safety/bias"]["accuracy"]["value"] == 0


def test_multimodal_rewardbench_tells_comparisons_that_share_an_id_apart(tmp_path, capsys):
    """Two comparisons have one ID and other labels, and one is answered twice: 2 of 3 right."""
    rows = [
        {"ID": "math_1", "Label": "A", "Meta": {"Category": "reasoning", "Text": "1 + 1?"}, "output": "[[A]]"},
        {"ID": "math_1", "Label": "B", "Meta": {"Category": "reasoning", "Text": "2 + 2?"}, "output": "[[B]]"},
        {"ID": "math_2", "Label": "B", "Meta": {"Category": "reasoning", "Text": "3 + 3?"}, "output": "[[A]]"},
        {"ID": "math_2", "Label": "B", "Meta": {"Category": "reasoning", "Text": "3 + 3?"}, "output": "[[B]]"},
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluate("multimodal_rewardbench", EvalConfig(answers=str(tmp_path / "r.jsonl"), output_dir=str(tmp_path / "out")))
    assert metric_value(result, "accuracy", "robust") == pytest.approx(2 / 3) and metric_value(result, "accuracy") == 3 / 4
    error = capsys.readouterr().err
    assert "1 IDs name several comparisons" in error and "1 answers are to a question that an earlier row answers" in error
    data = [{"ID": "a", "Better": "Output1", "Category": "safety", "Text": t, "Output1": "x", "Output2": "y"} for t in "pqp"]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, data)))
    examples = load_benchmark("multimodal_rewardbench").load(Task(str(tmp_path / "d.jsonl")))
    assert len(examples) == len({example.id for example in examples}) == 2 and "1 rows of" in capsys.readouterr().err


def test_multimodal_rewardbench_reads_reward_scores(run_benchmark, tmp_path):
    scores = [("math_1", 2.0, 1.0), ("code_1", 0.0, 1.0), ("pairs_1", 3.0, -1.0), ("nocaps_1", 1.0, 1.0)]
    rows = [{"id": i, "score_chosen": a, "score_rejected": b} for i, a, b in scores]
    result = run_benchmark("multimodal_rewardbench", rows)
    assert metric_value(result, "accuracy", "robust") == 2 / 4 and result["counts"]["unparsed"] == 1


@pytest.mark.parametrize("score", [float("nan"), float("inf"), None, "high", True])
def test_multimodal_rewardbench_refuses_scores_that_are_no_numbers(run_benchmark, score):
    with pytest.raises(InputError, match=r"`score_chosen` must be a finite number, not .*: score the pair again"):
        run_benchmark("multimodal_rewardbench", [{"id": "math_1", "score_chosen": score, "score_rejected": 1.0}])


@pytest.mark.parametrize("name", ["multimodal_rewardbench", "vl_rewardbench"])
def test_a_reward_that_is_not_a_number_prefers_neither(run_benchmark, monkeypatch, name):
    model = SimpleNamespace(role=ShortAnswerReward.role, score=lambda groups: [[float("nan"), 1.0] for _ in groups])
    monkeypatch.setattr("mmrlhf.rewards.checkpoint.load_reward_model", lambda path, **settings: model)
    result = run_benchmark(name, reward_model_path="rm")
    assert metric_value(result, "accuracy", "robust") == 0 and result["counts"]["unparsed"] == result["n"]


class ShortAnswerReward:
    """A reward model that prefers the shorter answer, with a tokenizer without control tokens."""

    role = SimpleNamespace(vlm=SimpleNamespace(escape_control_tokens=str))

    def score(self, groups):
        return [[-float(len(answer)) for answer in group.answers] for group in groups]


@pytest.mark.parametrize("name", ["multimodal_rewardbench", "vl_rewardbench"])
def test_reward_preferences_answers_preference_benchmarks(run_benchmark, monkeypatch, name):
    monkeypatch.setattr("mmrlhf.rewards.checkpoint.load_reward_model", lambda path, **settings: ShortAnswerReward())
    result = run_benchmark(name, reward_model_path="rm")
    assert metric_value(result, "accuracy", "robust") == 0  # "A star." is the better one, and longer than "A cat."
    assert result["reward_model"] == "rm"
    with pytest.raises(InputError, match="not a benchmark for reward models"):
        run_benchmark("dash_b", reward_model_path="rm")
