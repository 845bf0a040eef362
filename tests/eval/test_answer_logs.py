"""Answer files in the forms that other programs write, on data that a reader can count."""

import json

import pytest

from tests.helpers import fake_data
from tests.helpers.pope_files import PHRASE, pope_log, pope_samples
from tests.helpers.results import metric_value, notes_of, robust_value

# ---- POPE ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [0, 4, 10_000_000])
def test_pope_scores_each_split_of_a_log_that_runs_on(score, pope, distance):
    rows = pope_log("adversarial", "popular", "random", distance=distance)
    result = score("pope", rows, pope)
    for mode in ("official", "robust"):
        assert metric_value(result, "adversarial/f1", mode) == metric_value(result, "popular/f1", mode) == 1
        assert metric_value(result, "random/f1", mode) == 0.8  # TP 2, FP 1
        assert metric_value(result, "random/yes_ratio", mode) == 0.75
    assert result["counts"]["unknown_ids"] == result["counts"]["missing"] == 0
    assert bool(notes_of(result)) == (distance > 0)
    # it broke off in the last split
    result = score("pope", rows[:10], pope)
    assert robust_value(result, "random/accuracy") == metric_value(result, "random/accuracy", "official") == 1
    assert result["counts"]["missing"] == 2 and "cover 10 of 12 questions" in notes_of(result)


def test_pope_sheet_counts_a_row_in_every_split_it_names(score, pope):
    rows = [
        {"index": 0, "question": "Is there a dog in the image?", "category": "adversarial,popular,random"},
        {"index": 1, "question": "Is there a chair in the image?", "category": "adversarial"},
        {"index": 2, "question": "Is there a car in the image?", "category": "popular"},
        {"index": 3, "question": "Is there a zebra in the image?", "category": "random"},
    ]
    sheet = [
        {**row, "answer": "x", "image_path": f"{i}.jpg", "prediction": "Yes" if row["index"] in (0, 3) else "No"}
        for i in range(2)
        for row in rows
    ]
    for row in sheet:
        row["image_path"] = f"COCO_val2014_{int(row['image_path'][0]):012d}.jpg"
    result = score("pope", sheet, pope, suffix=".tsv")
    for mode in ("official", "robust"):
        assert [metric_value(result, f"{split}/f1", mode) for split in ("adversarial", "popular")] == [1, 1]
        assert metric_value(result, "random/f1", mode) == pytest.approx(2 / 3)  # yes to all
    assert result["n"] == 12 and "2 rows name several splits" in notes_of(result)
    # one split alone takes its rows
    result = score("pope", sheet, pope / "coco_pope_random.json", suffix=".tsv")
    assert (
        result["n"] == 4
        and result["counts"]["unknown_ids"] == 4
        and metric_value(result, "f1", "official") == pytest.approx(2 / 3)
    )


def test_pope_reads_lmms_eval_samples_without_doc(score, pope):
    rows = pope_samples("adversarial", "popular", "random")
    for order in (rows, rows[::2] + rows[1::2]):  # from one process, and gathered from two
        result = score("pope", order, pope)
        assert result["answers"]["format"] == "lmms-eval" and result["counts"]["unknown_ids"] == 0
        assert metric_value(result, "random/f1", "official") == robust_value(result, "random/f1") == 0.8
        assert metric_value(result, "popular/f1", "official") == 1
    alone = score("pope", pope_samples("popular"), pope / "coco_pope_popular.json")
    assert metric_value(alone, "f1", "official") == 0.8 and alone["n"] == 4
    # a log of all splits, scored on one: the others' answers are no lines of its file
    one = score("pope", rows, pope / "coco_pope_popular.json")
    assert metric_value(one, "f1", "official") == robust_value(one, "f1") == 1 and one["counts"]["unknown_ids"] == 8
    assert "8 answers are to questions of another split" in notes_of(one)


def test_pope_reads_the_authors_form_by_order(score, pope):
    # POPE's own answer files have neither ids nor images
    rows = [
        {"question": row["prompt"].split("\n")[0].lower(), "answer": row["text"]}
        for row in pope_log("adversarial", "popular", "random")
    ]
    result = score("pope", rows, pope)
    assert metric_value(result, "random/f1", "official") == robust_value(result, "random/f1") == 0.8 and result["n"] == 12
    assert "12 rows have no id of the data but its questions in its order" in notes_of(result)
    result = score("pope", rows[8:11], pope / "coco_pope_random.json")
    assert result["n"] == 3 and metric_value(result, "f1", "official") == 1


# ---- AMBER ---------------------------------------------------------------------------------------

NOUNS = ("dog", "cat", "bus")


@pytest.fixture
def amber(tmp_path):
    """Return six yes/no questions, ids 3 to 8, no for even ids; each noun is on two images."""
    folder = tmp_path / "AMBER"
    folder.mkdir()
    annotations = [
        {"id": 1, "type": "generative", "truth": [], "hallu": []},
        {"id": 2, "type": "generative", "truth": [], "hallu": []},
    ]
    annotations += [{"id": n, "type": "discriminative-hallucination", "truth": ("no", "yes")[n % 2]} for n in range(3, 9)]
    queries = [{"id": n, "image": f"AMBER_{n}.jpg", "query": "Describe this image."} for n in (1, 2)]
    queries += [{"id": n, "image": f"AMBER_{1 + (n > 5)}.jpg", "query": f"Is there a {NOUNS[n % 3]}?"} for n in range(3, 9)]
    (folder / "annotations.json").write_text(json.dumps(annotations))
    (folder / "query_all.json").write_text(json.dumps(queries))
    (folder / "relation.json").write_text("{}")
    (folder / "safe_words.txt").write_text("")
    return folder


def amber_answer(n):
    return {"query": f"Is there a {NOUNS[n % 3]}?", "image": f"AMBER_{1 + (n > 5)}.jpg", "reply": ("No", "Yes")[n % 2]}


AMBER_FORMS = {
    "official": lambda n, a: {"id": n, "response": a["reply"]},
    "zero-based": lambda n, a: {"question_id": n - 1, "prompt": a["query"], "text": a["reply"]},
    "from the first question": lambda n, a: {"question_id": n - 3, "prompt": a["query"], "text": a["reply"]},
    "other ids, with images": lambda n, a: {"question_id": 9 - n, "image": a["image"], "prompt": a["query"] + PHRASE, "text": a["reply"]},
    "sheet": lambda n, a: {"index": n - 3, "question": a["query"], "answer": "x", "category": "discriminative-hallucination",
                           "image_path": a["image"], "prediction": a["reply"]},
    "lmms-eval": lambda n, a: {"doc_id": n - 1, "input": a["query"], "filtered_resps": [a["reply"]], "amber_chair": {"chair_num": 1}},
}  # fmt: skip


@pytest.mark.parametrize("form", AMBER_FORMS)
def test_amber_question_decides_against_id(score, amber, form):
    rows = [AMBER_FORMS[form](n, amber_answer(n)) for n in range(3, 9)]
    result = score("amber", rows, amber, suffix=".tsv" if form == "sheet" else ".jsonl")
    assert result["n"] == 6 and robust_value(result, "existence_accuracy") == 100
    assert result["counts"]["missing"] == result["counts"]["unknown_ids"] == 0
    says_more = form in ("zero-based", "from the first question", "other ids, with images", "lmms-eval")
    assert bool(notes_of(result)) == says_more


def test_amber_says_what_the_script_does_with_other_cases(score, amber, capsys):
    rows = [
        {"id": 3, "response": "YES"},
        {"id": 4, "response": "no"},
        {"id": 5, "response": "Yes."},
        {"id": 7, "response": "Yes"},
    ]
    result = score("amber", rows, amber)
    assert robust_value(result, "existence_accuracy") == 100 and metric_value(result, "existence_accuracy", "official") < 26
    assert "3 replies say yes or no, but not exactly `Yes` or `No`" in capsys.readouterr().err


# ---- HallusionBench ------------------------------------------------------------------------------

PARTS = ("category", "subcategory", "set_id", "figure_id", "question_id")


@pytest.fixture
def hallusion(tmp_path):
    """Return six questions. Two are no: the blue star on its first figure and the red star on its
    second; one is asked with and without its image."""
    folder = tmp_path / "H"
    folder.mkdir()
    return fake_data.hallusionbench(folder)["data"]


def hallusion_forms():
    """Return answers in several forms, all right but the last."""
    rows = fake_data.hallusionbench_rows()
    answers = ["Yes" if row["gt_answer"] == "1" else "No" for row in rows[:-1]] + ["No"]
    both = list(zip(rows, answers, strict=True))
    with_image = [(row, a) for row, a in both if row["filename"]]
    underscored = {id(row): "_".join(row[name] for name in PARTS) for row in rows}
    return {
        "official": [{**row, "model_prediction": a} for row, a in both],
        "LLaVA's ids": [{"question_id": underscored[id(row)], "prompt": row["question"] + PHRASE, "text": a} for row, a in both],
        "numbers": [{"question_id": n, "prompt": row["question"], "text": a} for n, (row, a) in enumerate(both)],
        "order": [{"answer_id": f"x{n}", "prompt": row["question"], "text": a} for n, (row, a) in enumerate(both)],
        "sheet": [
            {"index": f"hb_{underscored[id(row)]}", "question": row["question"], "answer": "x", "category": row["category"],
             "l2-category": f"{row['category']}_{row['subcategory']}", "prediction": a}
            for row, a in with_image
        ],
        "sheet of other spelling": [
            {"index": f"HB_{underscored[id(row)]}".replace("_", "-"), "question": row["question"], "prediction": a} for row, a in with_image
        ],
        "lmms-eval": [
            {"doc_id": n, "input": row["question"], "filtered_resps": [a], "aAcc": {**row, "filename": "x", "model_prediction": a}}
            for n, (row, a) in enumerate(with_image)
        ],
    }  # fmt: skip


@pytest.mark.parametrize("form", hallusion_forms())
def test_hallusionbench_reads_other_programs_rows(score, hallusion, form):
    rows = hallusion_forms()[form]
    result = score("hallusionbench", rows, hallusion, suffix=".tsv" if "sheet" in form else ".jsonl")
    assert result["n"] == len(rows) and result["counts"]["unknown_ids"] == result["counts"]["duplicate"] == 0
    assert robust_value(result, "a_acc") == pytest.approx(100 * (len(rows) - 1) / len(rows))
    assert robust_value(result, "f_acc") == pytest.approx(100 * 2 / 3)  # the last answer is wrong, on its own figure


def test_hallusionbench_does_not_guess_between_figures(score, hallusion):
    # Neither image nor id: the star has a question with and without it, its colour two figures.
    rows = [{"question": "Is there a star?", "prediction": "No"}, {"question": "Is the star red?", "prediction": "No"}]
    result = score("hallusionbench", rows, hallusion, suffix=".tsv")
    assert result["n"] == 0 and result["counts"]["unknown_ids"] == 2
    assert "2 rows have questions that --data has several times" in notes_of(result)
    assert "2 answers have ids that --data lacks" in notes_of(result)


# ---- MMHal-Bench and others ----------------------------------------------------------------------


@pytest.fixture
def mmhal(tmp_path):
    """Return eight questions, three of them the same."""
    questions = ["What is it?", "How many?", "Describe it.", "Describe it.", "Who?", "Describe it.", "Where?", "When?"]
    rows = [
        {"question_type": "attribute", "image_id": f"p{n}", "image_src": f"http://host/{n}_o.jpg", "image_content": ["Star"],
         "question": question, "gt_answer": "A star.", "model_answer": ""}
        for n, question in enumerate(questions)
    ]  # fmt: skip
    (tmp_path / "m.json").write_text(json.dumps(rows))
    return tmp_path / "m.json"


MMHAL_FORMS = {
    "LLaVA's log": lambda n, row: {"question_id": n, "prompt": row["question"], "text": f"It is {n}."},
    "order": lambda n, row: {"question_id": f"q{n}", "prompt": f"<image>\n{row['question']}", "text": f"It is {n}."},
    "official": lambda n, row: {**row, "model_answer": f"It is {n}."},
    "image address": lambda n, row: {"image_src": row["image_src"], "question": row["question"], "response": f"It is {n}."},
    "image file": lambda n, row: {"image": f"images/{n}_o.jpg", "prompt": row["question"], "answer": f"It is {n}."},
}


@pytest.mark.parametrize("form", MMHAL_FORMS)
@pytest.mark.parametrize("wrapper", [None, "answers", "data"])
def test_mmhal_bench_reads_logs_and_wrappers(score, mmhal, form, wrapper, tmp_path):
    rows = [MMHAL_FORMS[form](n, row) for n, row in enumerate(json.loads(mmhal.read_text()))]
    result = score("mmhal_bench", {wrapper: rows} if wrapper else rows, mmhal, suffix=".json")
    assert result["n"] == 8 and result["counts"]["missing"] == 0
    lines = [json.loads(line) for line in next(tmp_path.glob("out*/predictions.jsonl")).read_text().splitlines()]
    assert [(line["id"], line["answers"]) for line in lines] == [(f"p{n}", [f"It is {n}."]) for n in range(8)]
    assert bool(notes_of(result)) == (form in ("LLaVA's log", "order"))


def test_mmhal_bench_takes_bare_numbers_only_if_they_are_complete(score, mmhal):
    rows = [{"question_id": n, "text": "It is."} for n in range(8)]
    result = score("mmhal_bench", rows, mmhal)
    assert result["n"] == 8 and "8 rows have nothing but numbers" in notes_of(result)
    result = score("mmhal_bench", rows[:7], mmhal)
    assert result["n"] == 0 and "7 answers have ids that --data lacks" in notes_of(result)


def test_dash_b_and_haloquest_read_plain_rows(score, tmp_path):
    dash = fake_data.dash_b(tmp_path)["data"]
    asked = "Can you see a star in this image? Please answer only with yes or no."
    rows = [
        {"question_id": n, "image": name, "prompt": asked, "text": reply}
        for n, (name, reply) in enumerate((("pos.png", "Yes"), ("neg.png", "No")))
    ]
    assert robust_value(score("dash_b", rows, dash), "accuracy") == 1
    other = [{"img_id": "pos.png", "object_name": "moon", "gt": "yes", "response": "yes"}]
    assert score("dash_b", other, dash)["counts"]["unknown_ids"] == 1  # the image alone does not tell
    (tmp_path / "halo").mkdir()
    halo = fake_data.haloquest(tmp_path / "halo")["data"]
    for rows in (
        [{"image_name": "1.png", "question": "What is it?", "response": "A star."}],
        [{"image": "x/1.png", "prompt": "What is it?", "output": "A star."}],
        [
            {"question_id": 1, "prompt": "What colour is the cat?", "text": "There is no cat"},
            {"question_id": 2, "prompt": "What is it?", "text": "A star"},
        ],
    ):
        result = score("haloquest", rows, halo, judge="rules")
        assert result["n"] == len(rows) and robust_value(result, "accuracy") == 100


MME_FORMS = {
    "LLaVA's log": lambda n, row: {"question_id": f"{row['task']}/{row['image']}", "prompt": row["stem"] + PHRASE, "text": row["reply"]},
    "lmms-eval": lambda n, row: {
        "doc_id": n, "input": row["stem"] + PHRASE, "filtered_resps": [row["reply"]],
        "mme_perception_score": {"question_id": f"{row['task']}/{row['image']}", "category": row["task"], "score": 1.0},
    },
    "sheet": lambda n, row: {
        "index": n, "category": row["task"], "image_path": f"{row['task']}/{row['image']}", "question": f"{row['stem']} Please answer yes or no.",
        "prediction": row["reply"],
    },
}  # fmt: skip


@pytest.mark.parametrize("form", MME_FORMS)
def test_mme_reads_logs_by_image_and_question(score, tmp_path, form):
    # the release has two blanks before some instructions; both pictures have the same questions
    folder = tmp_path / "MME"
    folder.mkdir()
    rows = [
        {"task": "existence", "image": f"{i}.jpg", "stem": f"Is there a {noun}?", "reply": reply}
        for i in range(2)
        for noun, reply in (("star", "Yes"), ("cat", "No"))
    ]
    lines = "".join(f"{row['image']}\t{row['stem']}  Please answer yes or no.\t{row['reply']}\n" for row in rows)
    answers = [MME_FORMS[form](n, row) for n, row in enumerate(rows)]
    for text in (lines, "\ufeff" + lines):  # an editor may have put a mark in front
        (folder / "existence.txt").write_text(text)
        result = score("mme", answers, folder, suffix=".tsv" if form == "sheet" else ".jsonl")
        assert robust_value(result, "existence/score") == metric_value(result, "existence/score", "official") == 200
        assert not result["answers"]["notes"]


# ---- files ---------------------------------------------------------------------------------------
