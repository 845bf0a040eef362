"""Benchmarks that compare, judge or pair answers: on the tiny VLM with fake data, and by hand."""

import json

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.records import InputError
from tests.helpers import fake_data
from tests.helpers.results import metric_value

# ---- on the tiny VLM -----------------------------------------------------------------------------

RULE_JUDGED = ("hallusionbench", "haloquest", "object_halbench", "hallucinogen")


@pytest.mark.parametrize("name", fake_data.DATASET_WRITERS)
def test_evaluate_runs_benchmark_on_tiny_model(run_benchmark, tiny_vlm_path, tmp_path, name):
    options = {"subset": "hallucination"} if name == "mme" else None
    settings = {"judge": "rules"} if name in RULE_JUDGED else {}
    result = run_benchmark(name, None, options, model_name_or_path=tiny_vlm_path, response_length=16, **settings)
    assert result["n"] > 0 and result["counts"]["missing"] == 0
    assert result["mean_length"] > 0 and len(result["data_sha256"]) == 64
    judged = name in (*RULE_JUDGED, "mmhal_bench", "llava_bench", "decapbench")
    if name in RULE_JUDGED:
        assert result["counts"]["judge_errors"] == 0
        assert result["judge"]["requested"] == [f"rules of version {load_benchmark(name).version}"]
    elif judged:
        assert metric_value(result, "score") is None  # there is no judge
    else:
        assert metric_value(result, load_benchmark(name).headline, "robust") >= 0


# ---- MME -----------------------------------------------------------------------------------------


def test_mme_metrics_match_hand_computation(run_benchmark):
    said = {
        "existence/0.jpg/0": "Yes", "existence/0.jpg/1": "no",  # both right
        "existence/1.jpg/0": "The answer is yes", "existence/1.jpg/1": "No",  # `The ` is other to the script
        "color/0.png/0": "Yes", "color/0.png/1": "It is not", "color/1.png/0": "no", "color/1.png/1": "know",
    }  # fmt: skip
    result = run_benchmark("mme", said)
    assert metric_value(result, "existence/score") == 75 + 50
    assert metric_value(result, "existence/score", "robust") == 100 + 100
    assert metric_value(result, "color/accuracy") == 50  # `know` has a no in its first four characters, `It i` has none
    assert metric_value(result, "color/accuracy", "robust") == 50 and result["counts"]["unparsed"] == 1
    del said["existence/1.jpg/1"]
    one_answer = run_benchmark("mme", said)
    assert metric_value(one_answer, "existence/accuracy", "robust") == 100
    assert metric_value(one_answer, "existence/accuracy_plus", "robust") == 50  # the other image has one answer
    assert metric_value(result, "score") is None and "count" in result["reasons"]["official"]["score"]
    assert metric_value(run_benchmark("mme", said, {"subset": "hallucination"}), "score", "robust") is None


@pytest.mark.parametrize(
    ("answer", "said"), [("yes", "yes"), ("   yes", "other"), (" Yes.", "yes"), ("none", "no"), ("noyes", "no"), ("nyes", "yes"), ("", "other")]
)  # fmt: skip
def test_mme_parse_official_reads_four_characters(answer, said):
    assert load_benchmark("mme").module.parse_official(answer) == said


def test_mme_official_crash_becomes_a_reason(run_benchmark, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    good = "0.jpg\tIs it?\tYes\tYes\n0.jpg\tIs it not?\tNo\tno\n"
    (own / "existence.txt").write_text(good)
    (own / "count.txt").write_text(good + "1.jpg\tIs it?\tYes\tYes\n")
    (own / "color.txt").write_text(good.replace("\tno\n", "\tno\nbecause it is not\n"))
    result = evaluate("mme", EvalConfig(output_dir=str(tmp_path / "o"), answers=str(own)), {"subset": "hallucination"})
    assert metric_value(result, "existence/score") == 200
    reasons = result["reasons"]["official"]
    assert "odd number" in reasons["count"]["score"] and metric_value(result, "count/score", "robust") == 150
    assert "odd number" in reasons["color"]["score"] and metric_value(result, "color/score", "robust") == 200
    assert "FileNotFoundError" in reasons["position"]["score"]


def test_mme_metrics_do_not_depend_on_answer_format(run_benchmark, tmp_path):
    # of two pictures: one with blanks before its yes, which the script takes for neither, one all
    # right, with a text after its no
    said = [
        ("0.jpg", "star", "Yes", "  yes"),
        ("0.jpg", "cat", "No", "No"),
        ("1.jpg", "star", "Yes", "Yes"),
        ("1.jpg", "cat", "No", "no\tcat"),
    ]
    own = tmp_path / "own"
    own.mkdir()
    asked = "Is there a {}? Please answer yes or no."
    text = "".join(f"{p}\t{asked.format(w)}\t{label}\t{a.replace(chr(9), ' ')}\n" for p, w, label, a in said)
    (own / "existence.txt").write_text(text)
    official = evaluate("mme", EvalConfig(output_dir=str(tmp_path / "o"), answers=str(own)))["metrics"]["official"]["existence"]
    assert official["score"]["value"] == 75 + 50
    mixed = [said[i] for i in (3, 0, 1, 2)]  # neighbours are of different pictures
    log = [{"doc_id": i, "doc": {"question_id": f"existence/{p}", "question": asked.format(w), "category": "existence"}, "resps": [[a]]}
           for i, (p, w, _, a) in enumerate(mixed)]  # fmt: skip
    predictions = [{"id": f"existence/{p}/{int(w == 'cat')}", "answers": [a]} for p, w, _, a in mixed]
    for rows in (log, predictions):
        result = run_benchmark("mme", rows)
        assert result["metrics"]["official"]["existence"] == official and result["counts"]["unknown_ids"] == 0


# ---- HallusionBench ------------------------------------------------------------------------------

QUESTION_IDS = ["VD/map/0/0/0", "VD/map/0/0/1", "VD/map/0/1/0", "VD/map/0/1/1", "VS/ocr/0/0/0", "VS/ocr/0/1/0"]


def write_verdicts(tmp_path, *verdicts):
    """Write a judge's records: 0 wrong, 1 right, 2 unclear, in the order of QUESTION_IDS.

    Answers on edited figures agree with the original's.
    """
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    rows = [
        {**dict(zip(names, id_.split("/"), strict=True)), "gpt4v_output_gpt_check": str(v), "same": "1"}
        for id_, v in zip(QUESTION_IDS, verdicts, strict=True)
    ]
    return str(fake_data.write_jsonl(tmp_path / "verdicts.jsonl", rows))


def test_hallusionbench_metrics_match_hand_computation(run_benchmark, tmp_path):
    # figure 0 all right; figure 1 one wrong; without a picture unclear, which is right; with it
    # wrong
    result = run_benchmark(
        "hallusionbench", dict.fromkeys(QUESTION_IDS, "Yes"), recorded_judgments=write_verdicts(tmp_path, 1, 1, 1, 0, 2, 0)
    )
    assert metric_value(result, "a_acc") == pytest.approx(100 * 4 / 6)
    assert metric_value(result, "q_acc") == pytest.approx(100 / 3)  # of three questions only the first is right everywhere
    assert metric_value(result, "f_acc") == pytest.approx(100 / 3)  # the figure without a picture is none
    assert (metric_value(result, "easy_acc"), metric_value(result, "hard_acc")) == (100, pytest.approx(100 / 3))
    assert metric_value(result, "consistency_wrong") == pytest.approx(100 / 3)
    # the edited map, with the same answer as the original, may be either's fault; the star is
    # vision's, since nothing was claimed without it
    assert (metric_value(result, "lh"), metric_value(result, "vi"), metric_value(result, "mixed")) == (0, 50, 50)
    assert metric_value(result, "fp_ratio") == 0  # both errors are where yes is true
    # said yes: the right answers to yes and the wrong ones to no, 2 of 6; true: 4 of 6
    assert metric_value(result, "pct_diff") == pytest.approx(2 / 6 - 4 / 6)
    assert metric_value(result, "a_acc", "robust") == pytest.approx(100 * 4 / 6)  # yes to all


def test_hallusionbench_official_is_null_where_script_fails(run_benchmark, tmp_path):
    perfect = run_benchmark(
        "hallusionbench", dict.fromkeys(QUESTION_IDS, "Yes"), recorded_judgments=write_verdicts(tmp_path, 1, 1, 1, 1, 1, 1)
    )
    assert metric_value(perfect, "a_acc") == 100 and metric_value(perfect, "fp_ratio") is None
    assert "ZeroDivisionError" in perfect["reasons"]["official"]["pct_diff"]
    without = run_benchmark(
        "hallusionbench",
        {i: "Yes" for i in QUESTION_IDS if i != "VD/map/0/0/0"},
        recorded_judgments=write_verdicts(tmp_path, 1, 1, 1, 1, 1, 1),
    )
    assert "KeyError" in without["reasons"]["official"]["a_acc"] and metric_value(without, "a_acc", "robust") is not None
    unjudged = run_benchmark("hallusionbench", dict.fromkeys(QUESTION_IDS, "Yes"))
    assert "6 answers have no judgment" in unjudged["reasons"]["official"]["a_acc"]
    repeated = run_benchmark(
        "hallusionbench",
        [*((i, "Yes") for i in QUESTION_IDS), (QUESTION_IDS[0], "No")],
        recorded_judgments=write_verdicts(tmp_path, 1, 1, 1, 1, 1, 1),
    )
    assert "AssertionError" in repeated["reasons"]["official"]["a_acc"]


@pytest.mark.parametrize("swapped", [False, True])
def test_hallusionbench_builds_ids_from_sheet_columns(run_benchmark, swapped):
    # VLMEvalKit's names; the two questions on one star differ by their figure alone, which its
    # picture does not tell
    parts = [id_.split("/") for id_ in QUESTION_IDS]
    names = ("category", "l2-category") if swapped else ("l2-category", "category")
    rows = [
        {**dict(zip((*names, "set_id", "figure_id", "question_id"), p, strict=True)), "question": "?", "prediction": "Yes"}
        for p in parts
    ]
    result = run_benchmark("hallusionbench", rows)
    assert result["n"] == 6 and set(result["counts"].values()) == {0}
    assert metric_value(result, "a_acc", "robust") == pytest.approx(100 * 4 / 6)


def test_hallusionbench_parses_verdicts_like_official_script():
    module = load_benchmark("hallusionbench").module
    said = {"not correct": 1, "CORRECT": 1, "Incorrect.": 0, "partially correct, but incorrect": 0, "": 2, "right": 2, None: None}
    assert {text: module._parse_verdict(text) for text in said} == said


@pytest.mark.parametrize(
    ("reply", "is_right"),
    [
        ("Correct.", True),
        ("It is not only correct but complete.", True),
        ("It does not name the dog, but is correct.", True),
        ("not incorrect", True),
        ("Not at all correct", False),
        ("It cannot be considered correct.", False),
        ("The answer can't be called correct.", False),
        ("hardly correct", False),
        ("It is not in conflict with the correct answer.", True),
        ("The answer does not contradict the correct answer. Verdict: correct", True),
        ("It is not in line with the reference: incorrect", False),
        ("not partially correct", False),
        ("partially correct", None),
        ("correct or incorrect", None),
    ],
)
def test_haloquest_parses_verdicts(reply, is_right):
    assert load_benchmark("haloquest").module.parse_verdict(reply) is is_right


# ---- ratings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "official", "robust"),
    [
        ("It is fine.\nRating: 5, very informative", 5, 5),
        ("**Rating**: 5", 0, 5),
        ("Rating:4", 0, 4),
        ("The rating is 3", 0, 3),
        ("Rating: 2 (not rating: 5)", 0, 2),
        ("Rating: 10", 1, None),
        ("No rating", 0, None),
        ("6", 0, 6),
        ("Rating: 6\nRating: 6", 6, 6),
    ],
)
def test_mmhal_bench_parses_ratings(reply, official, robust):
    module = load_benchmark("mmhal_bench").module
    assert (module.parse_official_rating(reply), module.parse_rating(reply, 6)) == (official, robust)


def test_mmhal_bench_metrics_match_hand_computation(run_benchmark, tmp_path, monkeypatch):
    answers = {f"p{i}": "A star." for i in range(8)}
    replies = ["Rating: 6", "Rating: 4", "Rating: 2", "Rating: 0", "Rating: 3", "no rating", "Rating: 5", "Rating: 1"]
    saved = tmp_path / "responses.json"
    saved.write_text(json.dumps([{"choices": [{"message": {"content": r}}]} for r in replies]))
    result = run_benchmark("mmhal_bench", answers, recorded_judgments=str(saved))
    assert "asserts 96 answers" in result["reasons"]["official"]["score"]
    assert metric_value(result, "score", "robust") == 21 / 7 and metric_value(result, "hallucination_rate", "robust") == 3 / 7
    assert metric_value(result, "environment/score", "robust") is None and result["counts"]["unparsed"] == 1
    # the script goes through the answers as they come, here the last two first
    saved.write_text(json.dumps([{"choices": [{"message": {"content": r}}]} for r in replies[:5:-1]]))
    result = run_benchmark("mmhal_bench", {"p7": "A star.", "p6": "A star."}, recorded_judgments=str(saved))
    assert metric_value(result, "other/score", "robust") == 1 and metric_value(result, "holistic/score", "robust") == 5


def test_mmhal_bench_official_types_go_by_position(run_benchmark, tmp_path, monkeypatch):
    monkeypatch.setitem(fake_data.DATASET_WRITERS, "mmhal_bench", lambda root: fake_data.mmhal_bench(root, 96))
    saved = tmp_path / "responses.json"
    replies = ["Rating: 6" if i % 8 == 1 else "none" for i in range(96)]
    saved.write_text(json.dumps([{"choices": [{"message": {"content": r}}]} for r in replies]))
    result = run_benchmark("mmhal_bench", {f"p{i}": "A star." for i in range(96)}, recorded_judgments=str(saved))
    assert metric_value(result, "score") == 6 / 8 and metric_value(result, "hallucination_rate") == 7 / 8
    rate = result["metrics"]["robust"]["hallucination_rate"]
    assert rate == pytest.approx({"value": 0, "low": 0, "high": 3.8415 / (12 + 3.8415)}, abs=1e-4)  # Wilson: 0 of 12
    assert metric_value(result, "adversarial/score") == 6 and metric_value(result, "attribute/score") == 0
    assert metric_value(result, "informativeness") == pytest.approx(100 * (3 / 8) / 3)
    assert metric_value(result, "score", "robust") == 6  # the others have no rating


def test_llava_bench_metrics_match_hand_computation(run_benchmark, tmp_path):
    reviews = ["8 4", "9, 7", "10 5\nBecause", "nothing", "8 8", "10 10"]
    path = fake_data.write_jsonl(
        tmp_path / "r.jsonl", [{"question_id": i, "content": r, "tuple": [0, 0]} for i, r in enumerate(reviews)]
    )
    result = run_benchmark("llava_bench", {str(i): "A star." for i in range(6)}, recorded_judgments=str(path))
    # to the script, "9, 7" and "nothing" are -1 and -1: (4 - 1 + 5 - 1 + 8 + 10) / (8 - 1 + 10 - 1
    # + 8 + 10)
    assert metric_value(result, "score") == pytest.approx(100 * round(25 / 6, 3) / round(34 / 6, 3))
    assert metric_value(result, "score", "robust") == pytest.approx(100 * 34 / 45)
    assert metric_value(result, "conv/score") == pytest.approx(100 * 3 / 7) and result["counts"]["unparsed"] == 1


def test_llava_bench_judge_prompt_matches_the_authors(run_benchmark, tmp_path):
    benchmark, root = load_benchmark("llava_bench"), tmp_path / "asked"
    root.mkdir()
    task = Task(**fake_data.llava_bench(root))
    task = Task(task.data, examples={e.id: e for e in benchmark.load(task)})
    (ask,) = benchmark.judge_requests({"0": ["A cat."]}, task)
    assert ask.prompt == (
        "[Context]\nA star.\n\nstar: [0, 0, 1, 1]\n\n[Question]\nWhat is it?\n\n[Assistant 1]\nA star.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nA cat.\n\n[End of Assistant 2]\n\n[System]\nTwo numbers, please.\n\n"
    )


@pytest.mark.parametrize("caption", ["A star.\nIt is red.", ["A star.", "It is red."]])
def test_llava_bench_asks_by_the_rules_of_its_images(tmp_path, caption):
    rules = {f"{prefix}conv": {"role": "Assistant", "prompt": f"Rule {prefix}conv."} for prefix in ("", "llava_bench_")}
    fake_data.write_jsonl(
        tmp_path / "questions.jsonl", [{"question_id": 0, "image": "0.jpg", "text": "What is it?", "category": "conv"}]
    )
    fake_data.write_jsonl(tmp_path / "answers_gpt4.jsonl", [{"question_id": 0, "text": "A star."}])
    fake_data.write_jsonl(tmp_path / "context.jsonl", [{"image": "0.jpg", "caption": caption}])
    (tmp_path / "rule.json").write_text(json.dumps(rules))
    benchmark, task = load_benchmark("llava_bench"), Task(str(tmp_path))
    task = Task(task.data, examples={e.id: e for e in benchmark.load(task)})
    (ask,) = benchmark.judge_requests({"0": ["A cat."]}, task)
    assert ask.prompt.startswith("[Context]\nA star.\nIt is red.\n\n[Question]")
    assert ask.prompt.endswith("[System]\nRule llava_bench_conv.\n\n")
    (tmp_path / "rule.json").write_text(json.dumps({"conv": rules["conv"], "llava_bench_conv": {"prompt": "Rule."}}))
    with pytest.raises(InputError, match=r"rule.json has no rule llava_bench_conv with role and prompt"):
        list(benchmark.judge_requests({"0": ["A cat."]}, task))
    fake_data.write_jsonl(tmp_path / "context.jsonl", [{"image": "0.jpg", "caption": caption, "instances": ["star"]}])
    with pytest.raises(InputError, match=r"context.jsonl line 1: `instances` must be a list of objects with category and bbox"):
        benchmark.load(task)


@pytest.mark.parametrize("name", ["tuple", "score", "scores"])
def test_llava_bench_reads_reviews_by_the_names_of_their_ratings(tmp_path, capsys, name):
    """Means 8.5 and 7.5 without the unread review; 5.333 and 4.667 with its -1 and -1."""
    ratings = [[9.0, 7.0], [-1, -1], [8.0, 8.0]]
    rows = [{"question_id": number, name: pair} for number, pair in enumerate(ratings)]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = evaluate("llava_bench", EvalConfig(answers=str(tmp_path / "r.jsonl"), output_dir=str(tmp_path / "out")))
    assert metric_value(result, "score", "robust") == pytest.approx(7.5 / 8.5 * 100)
    assert metric_value(result, "score") == pytest.approx(4.667 / 5.333 * 100)
    assert "1 reviews give no ratings" in capsys.readouterr().err


@pytest.mark.parametrize("pair", [8, [8], [8, "9"], "8 9", None])
def test_llava_bench_refuses_reviews_without_two_ratings(tmp_path, pair):
    (tmp_path / "r.jsonl").write_text(json.dumps({"question_id": 0, "score": pair}))
    with pytest.raises(InputError, match=r"r.jsonl line 1: `score` must be two numbers"):
        evaluate("llava_bench", EvalConfig(answers=str(tmp_path / "r.jsonl"), output_dir=str(tmp_path / "out")))


# ---- others --------------------------------------------------------------------------------------


def test_dash_b_limits_each_kind_and_refuses_other_shapes(tmp_path):
    for kind in ("neg", "pos"):
        (tmp_path / f"dash_benchmark_{kind}.json").write_text(json.dumps({"coco": {"star": ["0.png", "1.png"]}}))
    examples = load_benchmark("dash_b").load(Task(str(tmp_path), limit=1))
    assert [example.meta["label"] for example in examples] == ["no", "yes"]
    (tmp_path / "dash_benchmark_neg.json").write_text(json.dumps({"s": {"cat": 5}}))
    with pytest.raises(InputError, match=r"dash_benchmark_neg.json: cat of s must be a list of images"):
        load_benchmark("dash_b").load(Task(str(tmp_path)))


def test_dash_b_metrics_match_hand_computation(run_benchmark):
    result = run_benchmark("dash_b", {"star/neg.png": "I do not know", "star/pos.png": "It is there. It is."})
    assert (metric_value(result, "tnr"), metric_value(result, "tpr")) == (1, 0)  # `know` has a no; nothing says yes
    assert metric_value(result, "accuracy") == 0.5 and metric_value(result, "harmonic_mean") == 0
    assert (metric_value(result, "tnr", "robust"), metric_value(result, "tpr", "robust")) == (0, 1)


def test_haloquest_metrics_match_hand_computation(run_benchmark, tmp_path):
    said = {"0": "There is no cat.", "1": "A dog"}
    result = run_benchmark("haloquest", said, judge="rules")
    assert metric_value(result, "accuracy") == 50
    assert metric_value(result, "false_premises/accuracy") == 100 and metric_value(result, "real/accuracy") == 0


def test_object_halbench_metrics_match_hand_computation(run_benchmark):
    said = {"1": "A man walks two dogs and a wine glass stands by.", "2": "A kitten and no dog."}
    result = run_benchmark("object_halbench", said, judge="rules")
    # man, dog, wine glass and kitten are named; the glass is not there; "no dog" names none
    assert metric_value(result, "response_rate", "robust") == 50 and metric_value(result, "mention_rate", "robust") == 25
    assert metric_value(result, "recall", "robust") == 100
    assert result["metrics"]["robust"]["recall"]["low"] == pytest.approx(34.24, abs=0.01)  # Wilson, 2 of 2 images
    assert "spaCy" in result["reasons"]["official"]["response_rate"]


def test_object_halbench_reads_captions(run_benchmark):
    rows = [{"image_id": 1, "caption": "A man walks a dog."}, {"image_id": 2, "caption": "A kitten by a wine glass."}]
    assert metric_value(run_benchmark("object_halbench", rows, judge="rules"), "response_rate", "robust") == 50


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["dog", "wine glass"]', ["dog", "wine glass"]),
        ('Sure:\n```json\n["dog"]\n```', ["dog"]),
        ("[]", []),
        ('Here:\n[\n  "dog",\n  "wine glass"\n]\nDone.', ["dog", "wine glass"]),
        ('<think>\n```json\n["cat"]\n```\n</think>\n["dog"]', ["dog"]),
        ('["cat"]\nno, better:\n["dog"]', ["dog"]),
        ("[" * 100_000 + "]", None),
        ("a dog", None),
        ("[1]", None),
    ],
)
def test_object_halbench_parses_object_lists(reply, names):
    assert load_benchmark("object_halbench").module.parse_object_list(reply) == names


@pytest.mark.parametrize("content", ['[{"a": 1}]', '{"a": 1}', "[1]", "5", "null", '{"s": {"cat": 5}}'])
def test_benchmarks_refuse_foreign_data(run_benchmark, tmp_path, content):
    for name in fake_data.DATASET_WRITERS:
        other = tmp_path / f"{name}.other"
        other.write_text(content)
        with pytest.raises(InputError):
            run_benchmark(name, {"x": "yes"}, data=str(other))


def test_object_halbench_prompts_name_images_by_their_ids(tmp_path):
    (tmp_path / "gt.json").write_text(json.dumps({"photo_12.jpg": ["dog"], "12": ["cat"]}))
    prompts = fake_data.write_jsonl(tmp_path / "p.jsonl", [{"image": "photo_12.jpg", "question": "What is it?"}])
    benchmark = load_benchmark("object_halbench")
    options = benchmark.options_type(prompts=str(prompts))
    (example,) = benchmark.load(Task(str(tmp_path / "gt.json"), options=options))
    assert example.id == "photo_12.jpg"
