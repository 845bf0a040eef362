"""DeCapBench's score on five statements that can be counted with a pencil, from a judge's replies
and from the authors' records."""

import json

import pytest

from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import load_benchmark
from mmrlhf.records import InputError
from tests.helpers import fake_data
from tests.helpers.fake_server import chat_completion, scripted_server

STATEMENTS = ["There is a star.", "A star is there.", "It is blue.", "A moon shines.", "It looks festive."]
RELEVANCE = [1, 1, 1, 1, 0]
MATCHES = [0, 0, 1, None, 0]
TRUE = [1, 1, 0, 1, 1]
"""People made 4 statements. The first three of these match 0, 0 and 1, and the last matches 0 too.
The colour is wrong; the moon is true, but no person mentioned it."""
UNITS = [{"fact": fact, "relevance": relevance} for fact, relevance in zip(STATEMENTS, RELEVANCE, strict=True)]


def f1(precision, recall):
    return 2 * precision * recall / (precision + recall + 1e-8)


ALL = 4 / 5, 2 / 5  # four of five are true; 3 x 1/3 of the star and the moon, of 4 and the moon
OFFICIAL_RELEVANT = 3 / 4, (2 / 3 + 1) / 5  # the remark still takes its third of the star
ROBUST_RELEVANT = 3 / 4, 2 / 5
OFFICIAL_SCORE = 50 * (f1(*ALL) + f1(*OFFICIAL_RELEVANT))
ROBUST_SCORE = 50 * (f1(*ALL) + f1(*ROBUST_RELEVANT))


def reply_to(request, units=UNITS, matches=MATCHES, true=TRUE):
    """Reply as a judge does, by what the prompt asks for."""
    content = request["messages"][0]["content"]
    text = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
    if "matched_oracle_id" in text:
        reply = [{"fact": n, "matched_oracle_id": match} for n, match in enumerate(matches)]
    elif "verification" in text:
        reply = [{"fact": n, "verification": verdict} for n, verdict in enumerate(true)]
    else:
        reply = units
    return 200, chat_completion(f"Here it is:\n```json\n{json.dumps(reply)}\n```"), {}


def run(tmp_path, caption="A blue star under a moon.", options=None, **settings):
    data = fake_data.decapbench(tmp_path)
    answers = fake_data.write_jsonl(tmp_path / "captions.jsonl", [{"image_path": "0.png", "caption": caption}])
    return evaluate("decapbench", EvalConfig(answers=str(answers), output_dir=str(tmp_path / "out"), **data, **settings), options)


def value(result, name="score", mode="official"):
    metric = result["metrics"][mode][name]
    return None if metric is None else metric["value"]


def check_figures(result):
    assert value(result) == pytest.approx(OFFICIAL_SCORE, abs=1e-9) and value(result, mode="robust") == pytest.approx(
        ROBUST_SCORE
    )
    assert value(result, "precision") == pytest.approx(ALL[0]) and value(result, "recall") == pytest.approx(ALL[1])
    assert value(result, "recall_relevant") == pytest.approx(OFFICIAL_RELEVANT[1])
    assert value(result, "recall_relevant", "robust") == pytest.approx(ROBUST_RELEVANT[1])


def test_decapbench_asks_in_two_rounds_and_matches_hand_computation(tmp_path):
    with scripted_server(reply_to) as server:
        check_figures(run(tmp_path, judge=server.url))
        assert len(server.requests) == 3
        contents = [request["messages"][0]["content"] for request in server.requests]
        assert sum("image_url" in str(content) for content in contents) == 1  # the verdicts see the image
        check_figures(run(tmp_path, judge=server.url))  # nothing is asked again
        assert len(server.requests) == 3
    again = run(tmp_path, recorded_judgments=str(tmp_path / "out" / "judgments.jsonl"))
    check_figures(again)


def test_decapbench_asks_again_what_failed_and_what_follows(tmp_path):
    """First the verdicts fail, so there is no figure; then they alone are asked for."""

    def without_verdicts(request):
        return (400, {}, {}) if "verification" in str(request["messages"][0]["content"]) else reply_to(request)

    options = {"verify": "caption"}
    with scripted_server(without_verdicts) as server:
        result = run(tmp_path, judge=server.url, options=options)
        assert value(result) is None and "have no judgment" in result["reasons"]["official"]["score"]
        assert result["counts"]["judge_errors"] == 1 and value(result, mode="robust") is None
        server.script = [reply_to]
        num_requests = len(server.requests)
        check_figures(run(tmp_path, judge=server.url, options=options))
        assert len(server.requests) == num_requests + 1
        assert not any("image_url" in str(request["messages"][0]["content"]) for request in server.requests)


def test_decapbench_repeats_trials(tmp_path):
    with scripted_server(reply_to) as server:
        result = run(tmp_path, judge=server.url, options={"trials": 2})
        assert len(server.requests) == 5
    check_figures(result)


def official_record(**details):
    mapping = {fact: "None" if match is None else match for fact, match in zip(STATEMENTS, MATCHES, strict=True)}
    verdicts = [{"fact": fact, "verification": verdict} for fact, verdict in zip(STATEMENTS, TRUE, strict=True)]
    details = {"pred_atomic_facts": UNITS, "mappings_with_human": [mapping] * 3, "verified_results": [verdicts] * 3, **details}
    return {"image_path": "0.png", "caption": "A blue star.", "eval_details": details, "valid": True}


def test_decapbench_reads_the_records_of_the_authors_script(tmp_path):
    path = fake_data.write_jsonl(tmp_path / "records.jsonl", [official_record()])
    check_figures(run(tmp_path, recorded_judgments=str(path), options={"trials": 3}))


def test_decapbench_means_over_trials(tmp_path):
    """One of three verdicts denies everything: F1 0 in a third of the trials."""
    none_true = [{"fact": fact, "verification": 0} for fact in STATEMENTS]
    true = official_record()["eval_details"]["verified_results"][:2]
    path = fake_data.write_jsonl(tmp_path / "records.jsonl", [official_record(verified_results=[*true, none_true])])
    result = run(tmp_path, recorded_judgments=str(path), options={"trials": 3})
    assert value(result) == pytest.approx(OFFICIAL_SCORE * 2 / 3) and value(result, "precision") == pytest.approx(ALL[0] * 2 / 3)


@pytest.mark.parametrize(
    ("units", "official", "robust", "unparsed"),
    [
        ([], None, 0, 0),  # nothing is said: left out, and 0
        ([{"fact": STATEMENTS[0], "relevance": 0}], None, 50 * f1(1, 1 / 4), 0),  # a remark alone: the script divides by 0
        ([{"statement": "x"}], None, None, 1),
    ],
)
def test_decapbench_without_statements_about_the_image(tmp_path, units, official, robust, unparsed):
    with scripted_server(lambda request: reply_to(request, units, MATCHES[:1], TRUE[:1])) as server:
        result = run(tmp_path, judge=server.url)
    assert value(result) == official and result["counts"]["unparsed"] == unparsed
    assert value(result, mode="robust") == (None if robust is None else pytest.approx(robust))


def test_decapbench_refuses_data_without_statements(tmp_path):
    path = fake_data.write_jsonl(tmp_path / "f.jsonl", [{"image_name": "a", "oracle_caption": "b", "oracle_facts": []}])
    with pytest.raises(InputError, match="`oracle_facts` must be a list of texts"):
        evaluate("decapbench", EvalConfig(answers=str(path), data=str(path), output_dir=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("reply", "numbers"),
    [
        ('[{"fact": 0, "verification": 1}, {"fact": 1, "verification": 0}]', [1, 0]),
        ('[{"fact": "1.", "verification": true}, {"fact": "A cat.", "verification": "1"}]', [1, 1]),
        ('[{"fact": "A cat.", "verification": null}, {"fact": "A dog.", "verification": "None"}]', [None, None]),
        ('[{"fact": 0, "verification": 1}]', None),  # one is left out
        ("no list", None),
        ("[1, 2]", None),
        ("[" * 100_000 + "]" * 100_000, None),
        (None, None),
    ],
)
def test_parse_numbers_finds_statements_by_number_or_text(reply, numbers):
    module = load_benchmark("decapbench").module
    units = [module.Unit("A cat.", True), module.Unit("A dog.", True)]
    assert module.parse_numbers(reply, units, "verification") == numbers
