"""AMBER on annotations that a reader can count.

Every word is a noun: what NLTK finds is tested with its data (test_parity_amber).
"""

import json

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.records import InputError

ANNOTATIONS = [
    {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["cat"]},
    {"id": 2, "type": "generative", "truth": ["dog"], "hallu": ["cat", "ball"]},
    {"id": 3, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 4, "type": "discriminative-hallucination", "truth": "no"},
    {"id": 5, "type": "discriminative-attribute-state", "truth": "yes"},
    {"id": 6, "type": "discriminative-attribute-number", "truth": "no"},
    {"id": 7, "type": "relation", "truth": "yes"},
]
RELATION = {"dog": ["puppy"], "grass": ["ground"], "cat": ["kitten"], "ball": [], "tree": [], "orange": []}


@pytest.fixture(autouse=True)
def every_word_is_a_noun(monkeypatch):
    """Every word is a noun."""
    monkeypatch.setattr("mmrlhf.text.lemmatize.nouns", str.split)


@pytest.fixture
def amber_dir(tmp_path):
    amber_dir = tmp_path / "AMBER"
    amber_dir.mkdir()
    (amber_dir / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    (amber_dir / "relation.json").write_text(json.dumps(RELATION))
    (amber_dir / "safe_words.txt").write_text("orange\n")
    return amber_dir


def evaluate_amber(amber_dir, responses, table=None, **settings):
    answers = amber_dir.parent / "answers.json"
    rows = responses if isinstance(responses, list) else [{"id": i, "response": r} for i, r in responses.items()]
    answers.write_text(json.dumps(rows))
    (amber_dir.parent / "table.json").write_text(json.dumps(table or {}))
    out = amber_dir.parent / f"out{len(list(amber_dir.parent.iterdir()))}"
    config = EvalConfig(answers=str(answers), data=str(amber_dir), output_dir=str(out), **settings)
    return evaluate("amber", config, {"similarity": str(amber_dir.parent / "table.json")})


def metric_value(result, name, mode="official"):
    return result["metrics"][mode][name]["value"]


def test_amber_generative_metrics_match_hand_computation(amber_dir):
    # unicorn is no word of AMBER's; orange never counts but is a noun; puppy covers dog; kitten is
    # a cognition hit; tree is in no list
    result = evaluate_amber(amber_dir, {1: "unicorn puppy orange tree", 2: "dog kitten"})
    assert metric_value(result, "chair") == pytest.approx(100 * 2 / 5.001) and metric_value(result, "cover") == pytest.approx(
        100 * 2 / 3.001
    )
    assert metric_value(result, "cog") == pytest.approx(100 * 1 / 3.001) and metric_value(result, "hal") == pytest.approx(100 - 0)
    low = 100 * 2 / (2 + 3.8415)  # Wilson: n / (n + z²) for n of n = 2 images
    assert result["metrics"]["robust"]["hal"] == {"value": 100, "low": pytest.approx(low, abs=1e-2), "high": pytest.approx(100)}
    assert result["metrics"]["official"]["accuracy"] is None and result["metrics"]["official"]["amber_score"] is None
    assert "discriminative" in result["reasons"]["official"]["amber_score"] and result["counts"]["missing"] == 0
    assert metric_value(result, "chair", "robust") == 50  # of puppy, tree, dog, kitten: tree and kitten


def test_amber_similarity_must_exceed_threshold(amber_dir):
    response = {1: "tree", 2: ""}
    above, equal = (
        evaluate_amber(amber_dir, response, {"grass|tree": 0.81}),
        evaluate_amber(amber_dir, response, {"grass|tree": 0.8}),
    )
    assert metric_value(above, "chair") == 0 and metric_value(above, "cover") == pytest.approx(100 / 3.001)
    assert metric_value(equal, "chair") == pytest.approx(100 / 1.001) and metric_value(equal, "cover") == 0
    assert metric_value(equal, "hal") == pytest.approx(100 - 100 / 2.001)  # an empty description is clean


def test_amber_official_cog_counts_word_similar_to_truth(amber_dir):
    result = evaluate_amber(amber_dir, {1: "tree"}, {"cat|tree": 0.9, "dog|tree": 0.9})
    assert metric_value(result, "chair") == 0 and metric_value(result, "cog") == pytest.approx(100 / 1.001)
    assert metric_value(result, "cog", "robust") == 0


def test_amber_official_is_case_sensitive_robust_is_not(amber_dir):
    result = evaluate_amber(amber_dir, {1: "Dog"})
    assert metric_value(result, "cover") == 0 and metric_value(result, "cover", "robust") == 50


def test_amber_discriminative_metrics_match_hand_computation(amber_dir):
    result = evaluate_amber(amber_dir, {3: "No", 4: "Yes", 5: "No", 6: "no.", 7: "Yes"})
    # official: right are 3 and 7; said no: 3, 5; is no: 3, 4, 6
    assert metric_value(result, "accuracy") == pytest.approx(100 * 2 / 5.001) and metric_value(
        result, "precision"
    ) == pytest.approx(100 * 1 / 2.001)
    assert metric_value(result, "recall") == pytest.approx(100 * 1 / 3.001)
    # of rounded values, 50.0 and 33.3; of existence 99.9 and 50.0
    assert metric_value(result, "f1") == pytest.approx(2 * 0.5 * 0.333 / (0.5 + 0.333 + 0.0001) * 100, abs=1e-9)
    assert metric_value(result, "existence_f1") == pytest.approx(2 * 0.999 * 0.5 / (0.999 + 0.5 + 0.001) * 100, abs=1e-9)
    assert result["metrics"]["official"]["attribute_accuracy"]["high"] > 50  # none of two is right
    assert metric_value(result, "attribute_accuracy") == 0 and metric_value(result, "attribute_accuracy", "robust") == 50
    assert result["metrics"]["official"]["action_f1"] is None and metric_value(result, "f1", "robust") == pytest.approx(
        100 * 2 * 2 / (3 + 3)
    )


def test_amber_score_averages_generative_and_discriminative(amber_dir):
    result = evaluate_amber(amber_dir, {1: "dog tree", 3: "No"})
    assert metric_value(result, "amber_score", "robust") == (100 - 50 + 100) / 2


def test_amber_unknown_and_duplicate_ids(amber_dir):
    result = evaluate_amber(amber_dir, [{"id": 3, "response": "No"}, {"id": 99, "response": "No"}])
    assert (
        "IndexError on id 99" in result["reasons"]["official"]["accuracy"] and metric_value(result, "accuracy", "robust") == 100
    )
    assert result["counts"]["unknown_ids"] == 1 and result["counts"]["missing"] == 1
    result = evaluate_amber(amber_dir, [{"id": 3, "response": "No"}, {"id": 3, "response": "Yes"}])
    assert metric_value(result, "accuracy") == pytest.approx(100 / 2.001) and metric_value(result, "accuracy", "robust") == 100
    result = evaluate_amber(amber_dir, [{"id": 1, "response": None}, {"id": 3, "response": "No"}])
    assert "TypeError on the response of id 1" in result["reasons"]["official"]["accuracy"]


def test_amber_repeated_question_takes_its_ids_in_order(amber_dir):
    queries = [{"id": i, "image": "AMBER_9.jpg", "query": "Is there a cat?"} for i in (3, 4)]
    (amber_dir / "query_all.json").write_text(json.dumps(queries))
    sheet = [
        {"index": i, "image_path": "AMBER_9.jpg", "question": "Is there a cat?", "prediction": p}
        for i, p in enumerate(["No", "Yes"])
    ]
    result = evaluate_amber(amber_dir, sheet)
    assert (result["counts"]["duplicate"], result["counts"]["missing"], result["n"]) == (0, 0, 2)
    assert metric_value(result, "accuracy", "robust") == 50
    assert evaluate_amber(amber_dir, sheet * 2)["counts"]["duplicate"] == 2


@pytest.mark.parametrize(
    ("limit", "ids"), [(None, "1234567"), (3, "135"), (5, "13567"), (6, "123567"), (7, "1234567"), (20, "1234567")]
)
def test_amber_limit_keeps_a_share_of_each_part(amber_dir, limit, ids):
    """A prefix of AMBER's file has descriptions only, and so no f1 and no amber_score."""
    benchmark = load_benchmark("amber")
    examples = benchmark.load(Task(str(amber_dir), options=benchmark.options_type(), limit=limit))
    assert "".join(example.id for example in examples) == ids


def test_amber_limit_keeps_parts_in_proportion(amber_dir):
    rows = [ANNOTATIONS[0] | {"id": i} for i in range(10)] + [ANNOTATIONS[2] | {"id": i} for i in range(10, 40)]
    (amber_dir / "annotations.json").write_text(json.dumps(rows))
    benchmark = load_benchmark("amber")
    examples = benchmark.load(Task(str(amber_dir), options=benchmark.options_type(), limit=8))
    assert [example.id for example in examples] == ["0", "1", "10", "11", "12", "13", "14", "15"]


def test_amber_incomplete_data_is_refused(amber_dir, tiny_vlm_path):
    with pytest.raises(InputError, match="does not say how 1 is asked"):
        evaluate(
            "amber", EvalConfig(model_name_or_path=tiny_vlm_path, data=str(amber_dir), output_dir=str(amber_dir.parent / "o"))
        )
    (amber_dir / "annotations.json").write_text(json.dumps([ANNOTATIONS[0] | {"truth": ["unicorn"]}]))
    with pytest.raises(InputError, match=r"row 1: unicorn is not in relation\.json"):
        evaluate_amber(amber_dir, {1: "dog"})
    (amber_dir / "safe_words.txt").unlink()
    with pytest.raises(InputError, match=r"safe_words\.txt does not exist"):
        evaluate_amber(amber_dir, {1: "dog"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotations.json", {"a": 1}, "annotations.json must hold a list of annotations"),
        ("query_all.json", [{"query": "Is it?"}], "query_all.json must hold a list of queries, each with an id"),
        ("relation.json", ["dog"], "relation.json must hold a list of words for each word"),
    ],
)
def test_amber_files_of_another_shape_are_refused(amber_dir, name, content, message):
    (amber_dir / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_benchmark("amber").load(Task(str(amber_dir), options=load_benchmark("amber").options_type()))


def test_amber_malformed_similarity_table_is_refused(amber_dir):
    with pytest.raises(InputError, match="must be a JSON object"):
        evaluate_amber(amber_dir, {1: "tree"}, {"a|b": "much"})
