"""Every benchmark that compares, judges or pairs answers: on the small model with made-up data, and its rules by hand."""

import json
import random

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.records import InputError
from tests.helpers import fake_data


@pytest.fixture
def run(tmp_path):
    """A benchmark on made-up data and answers given by hand; what it says."""

    def scored(name, answers=None, options=None, **more):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        config = {**fake_data.DATASET_WRITERS[name](root), **more}
        if answers is not None:
            pairs = answers.items() if isinstance(answers, dict) else answers
            rows = [pair if isinstance(pair, dict) else {"id": pair[0], "answers": [pair[1]]} for pair in pairs]
            config["answers"] = str(fake_data.write_jsonl(tmp_path / "answers.jsonl", rows))
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        return evaluate(name, EvalConfig(output_dir=str(out), **config), options)

    return scored


def figure(result, name, mode="official"):
    found = result["metrics"][mode]
    for part in name.split("/"):
        found = found[part]
    return None if found is None else found["value"]


# ---- on the small model ----------------------------------------------------------------------------------------------

RULES = ("hallusionbench", "haloquest", "object_halbench")


@pytest.mark.parametrize("name", fake_data.DATASET_WRITERS)
def test_it_runs_on_the_small_model(run, base, tmp_path, name):
    options = {"subset": "hallucination"} if name == "mme" else None
    result = run(
        name, None, options, model_name_or_path=base, response_length=16, **({"judge": "rules"} if name in RULES else {})
    )
    assert result["n"] > 0 and result["counts"]["missing"] == 0
    assert result["mean_length"] > 0 and len(result["data_sha256"]) == 64
    judged = name in (*RULES, "mmhal_bench", "llava_bench")
    if name in RULES:
        assert result["counts"]["judge_errors"] == 0
        assert result["judge"]["requested"] == [f"rules of version {load_benchmark(name).VERSION}"]
    elif judged:
        assert figure(result, "score") is None  # nobody judged
    else:
        assert figure(result, load_benchmark(name).HEADLINE, "robust") >= 0


# ---- MME -------------------------------------------------------------------------------------------------------------


def test_mme_by_hand(run):
    said = {
        "existence/0.jpg/0": "Yes", "existence/0.jpg/1": "no",  # both right
        "existence/1.jpg/0": "The answer is yes", "existence/1.jpg/1": "No",  # `The ` is other to the script
        "color/0.png/0": "Yes", "color/0.png/1": "It is not", "color/1.png/0": "no", "color/1.png/1": "know",
    }  # fmt: skip
    result = run("mme", said)
    assert figure(result, "existence/score") == 75 + 50
    assert figure(result, "existence/score", "robust") == 100 + 100
    assert figure(result, "color/accuracy") == 50  # `know` has a no in its first four characters, `It i` has none
    assert figure(result, "color/accuracy", "robust") == 50 and result["counts"]["unparsed"] == 1
    assert figure(result, "score") is None and "count" in result["reasons"]["official"]["score"]
    assert figure(run("mme", said, {"subset": "hallucination"}), "score", "robust") is None


@pytest.mark.parametrize(
    ("answer", "said"), [("yes", "yes"), ("   yes", "other"), (" Yes.", "yes"), ("none", "no"), ("noyes", "no"), ("nyes", "yes"), ("", "other")]
)  # fmt: skip
def test_mme_looks_at_four_characters(answer, said):
    assert load_benchmark("mme").parse_official(answer) == said


def test_mme_scripts_crashes_are_reasons(run, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    good = "0.jpg\tIs it?\tYes\tYes\n0.jpg\tIs it not?\tNo\tno\n"
    (own / "existence.txt").write_text(good)
    (own / "count.txt").write_text(good + "1.jpg\tIs it?\tYes\tYes\n")
    (own / "color.txt").write_text(good.replace("\tno\n", "\tno\nbecause it is not\n"))
    result = evaluate("mme", EvalConfig(output_dir=str(tmp_path / "o"), answers=str(own)), {"subset": "hallucination"})
    assert figure(result, "existence/score") == 200
    reasons = result["reasons"]["official"]
    assert "odd number" in reasons["count"]["score"] and figure(result, "count/score", "robust") == 200
    assert "odd number" in reasons["color"]["score"] and figure(result, "color/score", "robust") == 200
    assert "FileNotFoundError" in reasons["position"]["score"]


def test_mme_is_the_same_in_whichever_form_its_answers_come(run, tmp_path):
    # of two pictures: one with blanks before its yes, which the script takes for neither, one all right, with a text after its no
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
        result = run("mme", rows)
        assert result["metrics"]["official"]["existence"] == official and result["counts"]["unknown_ids"] == 0


# ---- HallusionBench --------------------------------------------------------------------------------------------------

IDS = ["VD/map/0/0/0", "VD/map/0/0/1", "VD/map/0/1/0", "VD/map/0/1/1", "VS/ocr/0/0/0", "VS/ocr/0/1/0"]


def verdicts(tmp_path, *said):
    """Records of a judge: 0 wrong, 1 right, 2 unclear, in the order of `IDS`; edited figures are said to have the same answer."""
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    rows = [
        {**dict(zip(names, id_.split("/"), strict=True)), "gpt4v_output_gpt_check": str(v), "same": "1"}
        for id_, v in zip(IDS, said, strict=True)
    ]
    return str(fake_data.write_jsonl(tmp_path / "verdicts.jsonl", rows))


def test_hallusionbench_by_hand(run, tmp_path):
    # figure 0 all right; figure 1 one wrong; without a picture unclear, which is right; with it wrong
    result = run("hallusionbench", dict.fromkeys(IDS, "Yes"), recorded_judgments=verdicts(tmp_path, 1, 1, 1, 0, 2, 0))
    assert figure(result, "a_acc") == pytest.approx(100 * 4 / 6)
    assert figure(result, "q_acc") == pytest.approx(100 / 3)  # of three questions only the first is right everywhere
    assert figure(result, "f_acc") == pytest.approx(100 / 3)  # the figure without a picture is none
    assert (figure(result, "easy_acc"), figure(result, "hard_acc")) == (100, pytest.approx(100 / 3))
    assert figure(result, "consistency_wrong") == pytest.approx(100 / 3)
    # the edited map, with the same answer as the original, may be either's fault; the star is vision's, since nothing was claimed without it
    assert (figure(result, "lh"), figure(result, "vi"), figure(result, "mixed")) == (0, 50, 50)
    assert figure(result, "fp_ratio") == 0  # both errors are where yes is true
    # said yes: the right answers to yes and the wrong ones to no, 2 of 6; true: 4 of 6
    assert figure(result, "pct_diff") == pytest.approx(2 / 6 - 4 / 6)
    assert figure(result, "a_acc", "robust") == pytest.approx(100 * 4 / 6)  # yes to all


def test_hallusionbench_stops_where_its_script_does(run, tmp_path):
    perfect = run("hallusionbench", dict.fromkeys(IDS, "Yes"), recorded_judgments=verdicts(tmp_path, 1, 1, 1, 1, 1, 1))
    assert figure(perfect, "a_acc") == 100 and figure(perfect, "fp_ratio") is None
    assert "ZeroDivisionError" in perfect["reasons"]["official"]["pct_diff"]
    without = run(
        "hallusionbench", {i: "Yes" for i in IDS if i != "VD/map/0/0/0"}, recorded_judgments=verdicts(tmp_path, 1, 1, 1, 1, 1, 1)
    )
    assert "KeyError" in without["reasons"]["official"]["a_acc"] and figure(without, "a_acc", "robust") is not None
    unjudged = run("hallusionbench", dict.fromkeys(IDS, "Yes"))
    assert "6 answers have no judgment" in unjudged["reasons"]["official"]["a_acc"]
    repeated = run(
        "hallusionbench", [*((i, "Yes") for i in IDS), (IDS[0], "No")], recorded_judgments=verdicts(tmp_path, 1, 1, 1, 1, 1, 1)
    )
    assert "AssertionError" in repeated["reasons"]["official"]["a_acc"]


@pytest.mark.parametrize("swapped", [False, True])
def test_hallusionbench_takes_the_parts_of_an_id_from_a_sheet(run, swapped):
    # VLMEvalKit's names; the two questions on one star differ by their figure alone, which its picture does not tell
    parts = [id_.split("/") for id_ in IDS]
    names = ("category", "l2-category") if swapped else ("l2-category", "category")
    rows = [
        {**dict(zip((*names, "set_id", "figure_id", "question_id"), p, strict=True)), "question": "?", "prediction": "Yes"}
        for p in parts
    ]
    result = run("hallusionbench", rows)
    assert result["n"] == 6 and set(result["counts"].values()) == {0}
    assert figure(result, "a_acc", "robust") == pytest.approx(100 * 4 / 6)


def test_hallusionbench_reads_its_judge_as_its_script_does():
    module = load_benchmark("hallusionbench")
    said = {"not correct": 1, "CORRECT": 1, "Incorrect.": 0, "partially correct, but incorrect": 0, "": 2, "right": 2, None: None}
    assert {text: module._parse_verdict(text) for text in said} == said


# ---- ratings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "official", "robust"),
    [
        ("It is fine.\nRating: 5, very informative", 5, 5),
        ("**Rating**: 5", 0, 5),
        ("Rating:4", 0, 4),
        ("The rating is 3", 0, 3),
        ("Rating: 2 (not rating: 5)", 0, 5),
        ("Rating: 10", 1, None),
        ("No rating", 0, None),
        ("6", 0, 6),
        ("Rating: 6\nRating: 6", 6, 6),
    ],
)
def test_mmhal_ratings(reply, official, robust):
    module = load_benchmark("mmhal_bench")
    assert (module.parse_official_rating(reply), module.parse_rating(reply, 6)) == (official, robust)


def test_mmhal_by_hand(run, tmp_path, monkeypatch):
    answers = {f"p{i}": "A star." for i in range(8)}
    replies = ["Rating: 6", "Rating: 4", "Rating: 2", "Rating: 0", "Rating: 3", "no rating", "Rating: 5", "Rating: 1"]
    saved = tmp_path / "responses.json"
    saved.write_text(json.dumps([{"choices": [{"message": {"content": r}}]} for r in replies]))
    result = run("mmhal_bench", answers, recorded_judgments=str(saved))
    assert "asserts 96 answers" in result["reasons"]["official"]["score"]
    assert figure(result, "score", "robust") == 21 / 7 and figure(result, "hallucination_rate", "robust") == 3 / 7
    assert figure(result, "environment/score", "robust") is None and result["counts"]["unparsed"] == 1


def test_mmhal_of_96_by_position(run, tmp_path, monkeypatch):
    monkeypatch.setitem(fake_data.DATASET_WRITERS, "mmhal_bench", lambda root: fake_data.mmhal_bench(root, 96))
    saved = tmp_path / "responses.json"
    replies = ["Rating: 6" if i % 8 == 1 else "none" for i in range(96)]
    saved.write_text(json.dumps([{"choices": [{"message": {"content": r}}]} for r in replies]))
    result = run("mmhal_bench", {f"p{i}": "A star." for i in range(96)}, recorded_judgments=str(saved))
    assert figure(result, "score") == 6 / 8 and figure(result, "hallucination_rate") == 7 / 8
    assert figure(result, "adversarial/score") == 6 and figure(result, "attribute/score") == 0
    assert figure(result, "informativeness") == pytest.approx(100 * (3 / 8) / 3)
    assert figure(result, "score", "robust") == 6  # the others have no rating


def test_llava_bench_by_hand(run, tmp_path):
    reviews = ["8 4", "9, 7", "10 5\nBecause", "nothing", "8 8", "10 10"]
    path = fake_data.write_jsonl(
        tmp_path / "r.jsonl", [{"question_id": i, "content": r, "tuple": [0, 0]} for i, r in enumerate(reviews)]
    )
    result = run("llava_bench", {str(i): "A star." for i in range(6)}, recorded_judgments=str(path))
    # to the script, "9, 7" and "nothing" are -1 and -1: (4 - 1 + 5 - 1 + 8 + 10) / (8 - 1 + 10 - 1 + 8 + 10)
    assert figure(result, "score") == pytest.approx(100 * round(25 / 6, 3) / round(34 / 6, 3))
    assert figure(result, "score", "robust") == pytest.approx(100 * 34 / 45)
    assert figure(result, "conv/score") == pytest.approx(100 * 3 / 7) and result["counts"]["unparsed"] == 1


def test_llava_bench_asks_as_the_authors_do(run, tmp_path):
    module, root = load_benchmark("llava_bench"), tmp_path / "asked"
    root.mkdir()
    task = Task(**fake_data.llava_bench(root))
    task = Task(task.data, examples={e.id: e for e in module.load(task)})
    (ask,) = module.judge_requests({"0": ["A cat."]}, task)
    assert ask.prompt == (
        "[Context]\nA star.\n\nstar: [0, 0, 1, 1]\n\n[Question]\nWhat is it?\n\n[Assistant 1]\nA star.\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nA cat.\n\n[End of Assistant 2]\n\n[System]\nTwo numbers, please.\n\n"
    )


# ---- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "official", "robust"),
    [
        ("**Overall Judgment**: Answer 1 is better.", 1, 1),
        ("Therefore, Answer 2 is the better choice", 2, 2),
        ("Overall Judgment - Answer 3 is better", 3, None),
        ("Answer 2 is better.", None, 2),
        ("Overall Judgment: Both are equal", None, None),
        ("Overall Judgment: Answer 1 is clearly better", None, 1),
        ("Answer 1 is better at first. Overall Judgment: Answer 2 is slightly better", 2, 2),
    ],
)
def test_vl_rewardbench_replies(reply, official, robust):
    module = load_benchmark("vl_rewardbench")
    assert (module.official_choice(reply), module.robust_choice(reply)) == (official, robust)


def test_vl_rewardbench_by_hand(run):
    module = load_benchmark("vl_rewardbench")
    data = run("vl_rewardbench", {"VLFeedback-0/0": "?"})["data"]
    options = module.Options(votes=3)
    examples = {e.id: e for e in module.load(Task(data, options=options))}
    assert {e.meta["swapped"] for e in examples.values()} == {0, 1} and len(examples) == 9

    def better(e, right):
        first_is_best = not e.meta["swapped"]
        return f"Overall Judgment: Answer {1 if first_is_best == right else 2} is better."

    said = {i: better(e, right=not i.endswith("/2")) for i, e in examples.items()}  # two of three votes are right
    result = run("vl_rewardbench", said, {"votes": 3})
    assert figure(result, "accuracy", "robust") == figure(result, "k3/accuracy") == 100
    assert figure(result, "k9/agree_rate") == pytest.approx(1, abs=1e-5)  # the script divides by 3.000001
    wrong = run("vl_rewardbench", {i: better(e, right=i.endswith("/2")) for i, e in examples.items()}, {"votes": 3})
    assert figure(wrong, "accuracy", "robust") == figure(wrong, "k3/accuracy") == 0
    unread = run("vl_rewardbench", {i: "?" for i in examples}, {"votes": 3})
    assert "ZeroDivisionError" in unread["reasons"]["official"]["k1"]["accuracy"]
    assert figure(unread, "accuracy", "robust") == 0 and unread["counts"]["unparsed"] == 9


def test_multimodal_rewardbench_by_hand(run):
    said = {"math_1": "[[A]]", "code_1": "[[B]] and [[A]]", "pairs_1": "[[A]] no, [[B]]", "nocaps_1": "neither"}
    result = run("multimodal_rewardbench", said)
    coin = random.Random(123).random() < 0.5
    assert figure(result, "accuracy") == (3 + coin) / 4  # A is looked for first
    assert figure(result, "accuracy", "robust") == 2 / 4  # the last one counts
    assert result["metrics"]["official"]["reasoning/math"]["accuracy"]["value"] == 1
    assert result["metrics"]["robust"]["safety/bias"]["accuracy"]["value"] == 0


def test_scores_of_a_reward_model(run, tmp_path):
    scores = [("math_1", 2.0, 1.0), ("code_1", 0.0, 1.0), ("pairs_1", 3.0, -1.0), ("nocaps_1", 1.0, 1.0)]
    rows = [{"id": i, "score_chosen": a, "score_rejected": b} for i, a, b in scores]
    result = run("multimodal_rewardbench", rows)
    assert figure(result, "accuracy", "robust") == 2 / 4 and result["counts"]["unparsed"] == 1


# ---- others ----------------------------------------------------------------------------------------------------------


def test_dash_b_by_hand(run):
    result = run("dash_b", {"star/neg.png": "I do not know", "star/pos.png": "It is there. It is."})
    assert (figure(result, "tnr"), figure(result, "tpr")) == (1, 0)  # `know` has a no; nothing says yes
    assert figure(result, "accuracy") == 0.5 and figure(result, "harmonic_mean") == 0
    assert (figure(result, "tnr", "robust"), figure(result, "tpr", "robust")) == (0, 1)


def test_haloquest_by_hand(run, tmp_path):
    said = {"0": "There is no cat.", "1": "A dog"}
    result = run("haloquest", said, judge="rules")
    assert figure(result, "accuracy") == 50
    assert figure(result, "false_premises/accuracy") == 100 and figure(result, "real/accuracy") == 0


def test_object_halbench_by_hand(run):
    said = {"1": "A man walks two dogs and a wine glass stands by.", "2": "A kitten and no dog."}
    result = run("object_halbench", said, judge="rules")
    # man, dog, wine glass and kitten are named; the glass is not there; "no dog" names none
    assert figure(result, "response_rate", "robust") == 50 and figure(result, "mention_rate", "robust") == 25
    assert figure(result, "recall", "robust") == 100
    assert "spaCy" in result["reasons"]["official"]["response_rate"]


def test_object_halbench_reads_captions(run):
    rows = [{"image_id": 1, "caption": "A man walks a dog."}, {"image_id": 2, "caption": "A kitten by a wine glass."}]
    assert figure(run("object_halbench", rows, judge="rules"), "response_rate", "robust") == 50


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["dog", "wine glass"]', ["dog", "wine glass"]),
        ('Sure:\n```json\n["dog"]\n```', ["dog"]),
        ("[]", []),
        ("a dog", None),
        ("[1]", None),
    ],
)
def test_object_halbench_reads_lists(reply, names):
    assert load_benchmark("object_halbench").parse_object_list(reply) == names


def test_data_of_another_kind_is_refused_in_a_sentence(run, tmp_path):
    for name in fake_data.DATASET_WRITERS:
        other = tmp_path / f"{name}.other"
        other.write_text('[{"a": 1}]')
        with pytest.raises(InputError):
            run(name, {"x": "yes"}, data=str(other))


class ShortIsGood:
    """A reward model by the letter count."""

    def score(self, groups):
        return [[-float(len(answer)) for answer in group.answers] for group in groups]


@pytest.mark.parametrize("name", ["multimodal_rewardbench", "vl_rewardbench"])
def test_a_reward_model_is_asked_which_is_better(run, monkeypatch, name):
    monkeypatch.setattr("mmrlhf.rewards.checkpoint.load_reward_model", lambda path, engine: ShortIsGood())
    result = run(name, reward_model_path="rm")
    assert figure(result, "accuracy", "robust") == 0  # "A star." is the better one, and longer than "A cat."
    assert result["reward_model"] == "rm"
    with pytest.raises(InputError, match="no benchmark of reward models"):
        run("dash_b", reward_model_path="rm")
