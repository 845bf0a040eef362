"""`mmrlhf claims` writes one line per input line, matches facts by name or row, and resumes."""

import json
import tracemalloc

import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.cli import main
from mmrlhf.commands import claims as claims_module
from mmrlhf.commands.claim_inputs import read_located_answers


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_extract_claims(tmp_path, content, *flags, facts=None):
    """Run the command; return its exit code and the rows of its output file, None without one."""
    (tmp_path / "in.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    if facts is not None:
        (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
        flags = (*flags, "--facts", str(tmp_path / "facts.jsonl"))
    out = tmp_path / "out.jsonl"
    code = main(["claims", str(tmp_path / "in.txt"), "--out", str(out), *flags])
    return code, read_rows(out) if out.exists() else None


def test_extract_claims_writes_one_row_per_line(tmp_path):
    lines = [
        "Two dogs.",
        "",
        json.dumps({"text": "A cat.", "image": "a.jpg", "more": 1}),
        json.dumps({"id": 3, "answer": "No\ndog."}),
        "{a brace}",
    ]
    code, entries = run_extract_claims(tmp_path, "\n".join(lines) + "\n")
    assert code == 0 and [entry["text"] for entry in entries] == ["Two dogs.", "", "A cat.", "No\ndog.", "{a brace}"]
    assert [set(entry) - {"text", "claims"} for entry in entries] == [set(), set(), set(), {"id"}, set()]
    assert entries[0]["claims"] == [
        {"kind": "object", "object": "dog", "category": "dog", "span": [4, 8], "negated": False, "hedged": False},
        {"kind": "count", "object": "dog", "value": 2, "category": "dog", "span": [0, 8], "negated": False, "hedged": False},
    ]
    assert entries[1]["claims"] == []


def test_extract_claims_keys_depend_on_kind(tmp_path):
    _, entries = run_extract_claims(tmp_path, "A brown lamp on a couch.")
    common_keys = {"kind", "object", "span", "negated", "hedged"}
    lamp_claims = [claim for claim in entries[0]["claims"] if claim["object"] == "lamp"]
    assert {claim["kind"]: set(claim) - common_keys for claim in lamp_claims} == {
        "object": set(),
        "attribute": {"value"},
        "relation": {"relation", "target"},
    }


def test_extract_claims_accepts_bom_and_crlf(tmp_path):
    code, entries = run_extract_claims(tmp_path, b"\xef\xbb\xbfA dog.\r\nA caf\xc3\xa9 table.\r\n")
    assert code == 0 and [row["text"] for row in entries] == ["A dog.", "A café table."]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A dog.\nA \xff cat.\n", "in.txt, line 2: not UTF-8 (byte 2): write it as UTF-8"),
        ('{"txt": "A dog."}', "in.txt, line 1: `text` is missing: rename `txt` to it"),
        ('{"text": 3}', "in.txt, line 1: `text` must be text, not a number"),
        ('{"answer": 3}', "in.txt, line 1: `answer` must be text, not a number"),
        ('{"text": "A dog.", "image": 3}', "in.txt, line 1: `image` must be text, not a number"),
        ('{"text": "A \\ud800 dog."}', "in.txt, line 1: `text` is not valid Unicode: remove the unpaired surrogate"),
    ],
)
def test_extract_claims_refuses_unusable_lines(tmp_path, capsys, content, message):
    code, entries = run_extract_claims(tmp_path, content)
    assert code == 2 and entries is None and message in capsys.readouterr().err


def test_extract_claims_matches_facts_by_image(tmp_path, capsys):
    facts = [{"image": "b.jpg", "objects": [["cat", 2, None, None]]}, {"image": "a.jpg", "absent": ["dog"]}]
    rows = [{"text": "A dog.", "image": "dir/a.jpg"}, {"text": "A cat.", "image": "c.jpg"}]
    _, entries = run_extract_claims(tmp_path, "\n".join(map(json.dumps, rows)), facts=facts)
    claims = [entry["claims"][0] for entry in entries]
    assert [claim["verdict"] for claim in claims] == ["contradicted", "unknown"]
    assert claims[0]["evidence"] == "absent: dog (facts.jsonl)" and "evidence" not in claims[1]
    assert "facts.jsonl has no facts about the images of 1 of 2 answers" in capsys.readouterr().err
    (tmp_path / "out.jsonl").unlink()
    code, entries = run_extract_claims(tmp_path, "A dog.\n", facts=facts)  # row 1 of the facts is another image
    assert code == 2 and entries is None and "line 1: `image` is missing, and" in capsys.readouterr().err


def test_extract_claims_judges_answers_of_generate_by_their_images(tmp_path):
    """The facts are in another order than the answers, and there are two answers to each prompt."""
    facts = [{"image": "dogs.jpg", "absent": ["bus"]}, {"image": "buses.jpg", "objects": [["bus", 2, None]]}]
    rows = [
        {"id": "r1", "images": ["coco/buses.jpg"], "prompt": [], "answer": f"{n} buses.", "facts": []} for n in ("Two", "Three")
    ]
    rows.append({"id": "r2", "images": ["coco/dogs.jpg"], "prompt": [], "answer": "A bus.", "facts": []})
    code, entries = run_extract_claims(tmp_path, "\n".join(map(json.dumps, rows)), facts=facts)
    assert code == 0 and [entry["id"] for entry in entries] == ["r1", "r1", "r2"]
    verdicts = [[claim["verdict"] for claim in entry["claims"]] for entry in entries]
    assert verdicts == [["supported", "supported"], ["supported", "contradicted"], ["contradicted"]]


def read_texts(tmp_path, name, content):
    """Run the command on a file of this name; return its exit code and the texts of its rows."""
    (tmp_path / name).write_text(content)
    code = main(["claims", str(tmp_path / name), "--out", str(tmp_path / "out.jsonl")])
    rows = read_rows(tmp_path / "out.jsonl") if code == 0 else []
    (tmp_path / "out.jsonl").unlink(missing_ok=True)
    return code, [row["text"] for row in rows]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.txt", "rows"])
@pytest.mark.parametrize("indent", [None, 2])
def test_extract_claims_reads_a_json_list(tmp_path, name, indent):
    rows = [{"answer": "A dog."}, "A cat.", {"answers": ["One cup.", None, "Two cups."]}]
    assert read_texts(tmp_path, name, json.dumps(rows, indent=indent)) == (0, ["A dog.", "A cat.", "One cup.", "", "Two cups."])


def test_false_rates_count_an_absent_object_once(tmp_path, capsys):
    """As `hallucination` charges it: that there is a red dog on the table is one false claim."""
    answers, facts = tmp_path / "answers.jsonl", tmp_path / "facts.jsonl"
    answers.write_text('{"image": "a.png", "text": "A red dog on a table and a blue cup."}\n')
    known = [("absent", "dog"), ("object", "table"), ("object", "blue cup")]
    facts.write_text(json.dumps({"image": "a.png", "facts": [{"kind": kind, "text": text} for kind, text in known]}) + "\n")
    claims_module.extract(str(answers), str(facts), str(tmp_path / "out.jsonl"))
    rates = capsys.readouterr().err.partition("of ppo): ")[2].strip()
    assert rates == "object=0.33, attribute=0"  # dog, table, cup; blue, but neither red nor on


def test_claims_are_read_back_as_written():
    for claim in extract_claims("Two red cups may be on a table. There is no dog."):
        assert claims_module.claim_from_json(claims_module.claim_to_json(claim)) == claim


@pytest.mark.parametrize(
    "row",
    [
        {"id": "1", "answers": ["A dog."], "key": "k"},
        {"question_id": 1, "prompt": "What?", "text": "A dog."},
        {"text": "Is there a dog?", "answer": "A dog."},
        {"image_id": 1, "caption": "A dog."},
        {"question": "What?", "response": "A dog."},
        {"index": 1, "prediction": "A dog."},
        {"doc_id": 1, "doc": {"image": "a.jpg"}, "filtered_resps": ["A dog."], "resps": [["A dog. "]]},
        {"images": ["a.jpg"], "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A dog."}]},
        {"id": 1, "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]},
        {"custom_id": "1", "response": {"body": {"choices": [{"message": {"role": "assistant", "content": "A dog."}}]}}},
    ],
)
def test_extract_claims_reads_the_usual_names_of_answers(tmp_path, row):
    assert read_texts(tmp_path, "a.jsonl", json.dumps(row)) == (0, ["A dog."])
    assert read_texts(tmp_path, "a.json", json.dumps(row, indent=1)) == (0, ["A dog."])


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_extract_claims_reads_sheets(tmp_path, suffix):
    mark = "\t" if suffix == "tsv" else ","
    rows = [["index", "image_path", "prediction"], ["7", "a.jpg", '"A dog, a cat."'], ["8", "b.jpg", "A cat."]]
    (tmp_path / f"a.{suffix}").write_text("\n".join(map(mark.join, rows)) + "\n")
    (tmp_path / "facts.jsonl").write_text(json.dumps({"image": "b.jpg", "absent": ["cat"]}))
    command = ["claims", str(tmp_path / f"a.{suffix}"), "--facts", str(tmp_path / "facts.jsonl"), "--out", str(tmp_path / "o")]
    assert main(command) == 0
    entries = read_rows(tmp_path / "o")
    assert [(entry["id"], entry["text"]) for entry in entries] == [("7", "A dog, a cat."), ("8", "A cat.")]
    assert [[claim["verdict"] for claim in entry["claims"]] for entry in entries] == [["unknown", "unknown"], ["contradicted"]]


@pytest.mark.parametrize("name", ["a.json", "a.txt"])
def test_extract_claims_reads_rows_inside_an_object(tmp_path, name):
    rows = [{"image_id": 42, "caption": "A dog."}, {"image_id": 43, "caption": "A cat."}]
    assert read_texts(tmp_path, name, json.dumps({"overall": {}, "sentences": rows}, indent=1)) == (0, ["A dog.", "A cat."])
    assert read_texts(tmp_path, name, json.dumps({"answers": rows}, indent=1)) == (0, ["A dog.", "A cat."])
    by_number = {"imgToEval": {str(number): row for number, row in enumerate(rows)}}
    assert read_texts(tmp_path, name, json.dumps(by_number, indent=1)) == (0, ["A dog.", "A cat."])
    assert read_texts(tmp_path, name, json.dumps(rows[0], indent=1)) == (0, ["A dog."])


DOG, CAT = {"role": "assistant", "content": "A dog."}, {"role": "assistant", "content": "A cat."}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "A dog.", "rejected": "A cat."},
        {"chosen": [DOG], "rejected": [CAT]},
        {"conversations": [], "chosen": {"from": "gpt", "value": "A dog."}, "rejected": {"from": "gpt", "value": "A cat."}},
        {"preferred_output": [DOG], "non_preferred_output": [CAT]},
        {"query": "What?", "response": "A dog.", "rejected_response": "A cat."},
        {"messages": [{"role": "user", "content": "What?"}, DOG], "rejected_response": "A cat."},
        {"messages": [DOG], "rejected_messages": [CAT]},
        {"outputs": ["A dog.", "A cat."]},
    ],
)
def test_extract_claims_reads_both_answers_of_a_pair(tmp_path, row):
    assert read_texts(tmp_path, "a.jsonl", json.dumps(row)) == (0, ["A dog.", "A cat."])


def test_extract_claims_finds_facts_by_image_id(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps({"42": ["A dog on grass."], "43": ["A cow."]}))
    rows = [{"image_id": 42, "caption": "A dog."}, {"image_id": 43, "caption": "A dog."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert main(["claims", str(tmp_path / "a.json"), "--facts", str(tmp_path / "facts.json"), "--out", str(tmp_path / "o")]) == 0
    assert [entry["claims"][0]["verdict"] for entry in read_rows(tmp_path / "o")] == ["supported", "unknown"]


def test_extract_claims_reads_a_map_of_images(tmp_path):
    (tmp_path / "map.json").write_text(json.dumps({"a.jpg": "A dog.", "b.jpg": "A dog."}, indent=1))
    (tmp_path / "facts.json").write_text(json.dumps({"b.jpg": ["A dog on grass."], "a.jpg": ["A cat."]}))
    command = ["claims", str(tmp_path / "map.json"), "--facts", str(tmp_path / "facts.json"), "--out", str(tmp_path / "o")]
    assert main(command) == 0
    assert [row["claims"][0]["verdict"] for row in read_rows(tmp_path / "o")] == ["unknown", "supported"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '[{"answer": "A dog."}', "a.json: not JSON"),
        ("a.txt", '[{"answer": "A dog."}\n', "a.txt: not JSON"),
        ("a.txt", 'A dog.\n{"answer": "A cat."\n', "a.txt, line 2: not JSON"),
        ("a.jsonl", "A dog.\n", "a.jsonl, line 1: not JSON"),
        ("a.jsonl", '{"answers": "A dog."}', "line 1: `answers` must be a list of texts, not text"),
        ("a.jsonl", '{"answers": [3]}', "line 1: `answers` must be text, not a number"),
        ("a.jsonl", '{"answer": "A dog.", "images": [3]}', "line 1: `images` must be names of images, not a number"),
        ("a.jsonl", '{"chosen": "A dog."}', "line 1: `text` is missing: put the answer"),
        ("a.jsonl", '{"chosen": "A dog.", "rejected": 3}', "line 1: `rejected` must be text, not a number"),
        ("a.json", "[3]", "a.json, row 1: a row must be an object with fields, not a number"),
        ("a.json", "[]", "a.json has no rows"),
    ],
)
def test_extract_claims_never_reads_broken_rows_as_prose(tmp_path, capsys, name, content, message):
    assert read_texts(tmp_path, name, content) == (2, [])
    assert message in capsys.readouterr().err


def test_extract_claims_reads_prose_with_brackets(tmp_path):
    prose = ["[1] A dog.", "{a brace}", "[A cat] sits."]
    assert read_texts(tmp_path, "a.txt", "\n".join(prose)) == (0, prose)


def test_extract_claims_matches_unnamed_facts_by_row(tmp_path, capsys):
    facts = [{"absent": ["dog"]}, {"captions": ["A dog."]}]
    code, entries = run_extract_claims(tmp_path, "A dog.\nA dog.", facts=facts)
    assert code == 0 and [row["claims"][0]["verdict"] for row in entries] == ["contradicted", "supported"]
    (tmp_path / "out.jsonl").unlink()
    code, entries = run_extract_claims(tmp_path, "A dog.\n\nA dog.", facts=facts)
    error = capsys.readouterr().err
    assert code == 2 and entries is None and "line 3: " in error and "has only 2 rows" in error


@pytest.mark.parametrize("field", ["file_name", "image_path", "img_path", "image_id"])
def test_extract_claims_never_joins_facts_that_name_their_image_by_row(tmp_path, field):
    facts = [{field: "a", "absent": ["dog"]}, {field: "b", "captions": ["A dog."]}]
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    (tmp_path / "in.jsonl").write_text("\n".join(json.dumps({"image": f"{name}.jpg", "text": "A dog."}) for name in "ba"))
    assert (
        main(["claims", str(tmp_path / "in.jsonl"), "--facts", str(tmp_path / "facts.jsonl"), "--out", str(tmp_path / "o")]) == 0
    )
    assert [row["claims"][0]["verdict"] for row in read_rows(tmp_path / "o")] == ["supported", "contradicted"]


def test_extract_claims_map_of_facts_needs_image_names(tmp_path, capsys):
    (tmp_path / "captions.json").write_text(json.dumps({"a.jpg": ["A dog."]}))
    (tmp_path / "in.txt").write_text("A dog.\n")
    assert main(["claims", str(tmp_path / "in.txt"), "--facts", str(tmp_path / "captions.json")]) == 2
    assert "line 1: `image` is missing, and" in capsys.readouterr().err


def test_extract_claims_resumes_after_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_module, "LINES_PER_WRITE", 2)
    content = "\n".join(f"{n} dogs." for n in range(2, 9))
    uninterrupted = run_extract_claims(tmp_path, content)[1]
    (tmp_path / "out.jsonl").unlink()
    command = ["claims", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.jsonl")]
    extract_claims = claims_module.extract_claims
    extracted_texts = []

    def interrupt_after_five(text, lexicon):
        if len(extracted_texts) == 5:
            raise KeyboardInterrupt
        extracted_texts.append(text)
        return extract_claims(text, lexicon)

    def record(text, lexicon):
        extracted_texts.append(text)
        return extract_claims(text, lexicon)

    monkeypatch.setattr(claims_module, "extract_claims", interrupt_after_five)
    assert main(command) == 130 and not (tmp_path / "out.jsonl").exists()
    monkeypatch.setattr(claims_module, "extract_claims", record)
    assert main(command) == 0 and read_rows(tmp_path / "out.jsonl") == uninterrupted
    assert extracted_texts[5:] == ["6 dogs.", "7 dogs.", "8 dogs."]  # two writes of two lines were kept


def test_extract_claims_writes_to_stdout_and_refuses_bad_paths(tmp_path, capsys):
    (tmp_path / "in.txt").write_text("A dog.\n")
    assert main(["claims", str(tmp_path / "in.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["claims"][0]["object"] == "dog"
    assert main(["claims", str(tmp_path / "in.txt"), "--out", str(tmp_path / "in.txt")]) == 2
    assert main(["claims", str(tmp_path / "in.txt"), "--out", str(tmp_path)]) == 2
    assert main(["claims", str(tmp_path / "none.txt")]) == 2
    assert capsys.readouterr().err.count("error: ") == 3


def test_extract_claims_says_how_many_claims_there_are(tmp_path, capsys):
    answers, facts = tmp_path / "answers.jsonl", tmp_path / "facts.jsonl"
    answers.write_text('{"image": "a.png", "text": "A dog and a cat."}\n{"image": "b.png", "text": "A boat."}\n')
    facts.write_text('{"image": "a.png", "facts": [{"kind": "object", "text": "dog"}, {"kind": "absent", "text": "cat"}]}\n')
    claims_module.extract(str(answers), str(facts), str(tmp_path / "out.jsonl"))
    assert "out.jsonl: 2 answers, 3 claims: 1 supported, 1 contradicted, 1 unknown" in capsys.readouterr().err
    pairs = tmp_path / "pairs.jsonl"
    chosen = json.dumps([{"role": "assistant", "content": "A dog and a cat."}])
    pairs.write_text(f'{{"image": "a.png", "prompt": "?", "chosen": {chosen}, "rejected": "No cat and perhaps a cat."}}\n')
    claims_module.extract(str(pairs), str(facts), str(tmp_path / "pairs_out.jsonl"))
    # Of the two claims that are decided, neither negated nor hedged, one is false.
    assert "false rates of decided claims (--unknown_claim_costs of ppo): object=0.5\n" in capsys.readouterr().err
    claims_module.extract(str(answers), output_file=str(tmp_path / "claims.jsonl"))
    assert capsys.readouterr().err.endswith("claims.jsonl: 2 answers, 3 claims\n")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Describe", "predict": "A dog sits.", "label": "A cat."},
        {"question": "What is it?", "answer": "A cat.", "prediction": "A dog sits."},
        {"image": "a.jpg", "caption": ["A dog sits."]},
    ],
)
def test_claims_of_usual_rows_are_of_the_prediction(tmp_path, row):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert [answer.text for answer in read_located_answers(str(tmp_path / "rows.jsonl"))] == ["A dog sits."]


def test_extract_claims_names_all_bad_rows_before_it_writes(tmp_path, capsys):
    rows = ['{"answer": 3}', '{"answer": "A dog."}', "{", '{"answer": 4}', '{"answers": "A dog."}']
    assert read_texts(tmp_path, "a.jsonl", "\n".join(rows)) == (2, [])
    error = capsys.readouterr().err
    assert "a.jsonl: 4 rows cannot be used: 2 rows: `answer` must be text, not a number (line 1, line 4); " in error
    assert "not JSON" in error and "(line 3)" in error and "`answers` must be a list of texts, not text (line 5)" in error
    text = 'A dog.\n{"answer": 3}\nA cat.\n{"a": 1}\n'
    assert read_texts(tmp_path, "a.txt", text) == (2, [])
    assert "a.txt: 2 rows cannot be used: `answer` must be text, not a number (line 2); " in capsys.readouterr().err
    unnamed = [{"answer": "A dog."}, {"answer": "A cat.", "image": "a.jpg"}, {"answer": "A cow."}]
    code, entries = run_extract_claims(tmp_path, "\n".join(map(json.dumps, unnamed)), facts=[{"image": "a.jpg", "ocr": ["x"]}])
    error = capsys.readouterr().err
    assert (code, entries) == (2, None) and "in.txt: 2 rows cannot be used: 2 rows: `image` is missing" in error


@pytest.mark.parametrize("flags", [("--facts", "--out", "--lexicon"), ("--facts_file", "--output_file", "--lexicon_file")])
def test_extract_claims_takes_short_and_long_flags(tmp_path, flags):
    (tmp_path / "a.jsonl").write_text('{"image": "a.jpg", "answer": "A zorb."}\n')
    (tmp_path / "facts.jsonl").write_text('{"image": "a.jpg", "objects": ["zorb"]}\n')
    (tmp_path / "words.txt").write_text("[objects]\nzorb\n")
    values = [str(tmp_path / name) for name in ("facts.jsonl", "out.jsonl", "words.txt")]
    arguments = [argument for pair in zip(flags, values, strict=True) for argument in pair]
    assert main(["claims", str(tmp_path / "a.jsonl"), *arguments]) == 0
    (row,) = read_rows(tmp_path / "out.jsonl")
    assert [(claim["object"], claim["verdict"]) for claim in row["claims"]] == [("zorb", "supported")]


def test_the_last_line_is_counted_without_holding_the_file(tmp_path):
    claim = {"kind": "object", "object": "cat", "span": [0, 1], "negated": False, "hedged": False, "verdict": "supported"}
    path = tmp_path / "out.jsonl"
    path.write_text((json.dumps({"text": "A cat.", "claims": [claim] * 10}) + "\n") * 200)
    tracemalloc.start()
    assert claims_module.describe_claims(path).startswith("200 answers, 2000 claims: 2000 supported, 0 contradicted, 0 unknown")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size  # all rows in memory take several times the file
