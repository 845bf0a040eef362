"""The page of training runs: self-contained, escaped, and complete while a run still writes."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from mmrlhf.cli import main
from mmrlhf.records import InputError
from mmrlhf.report.live_page import LivePage
from mmrlhf.report.runs import describe_run, read_run, write_runs_page
from tests.report.test_page import ParsedPage


@pytest.fixture
def make_run(tmp_path):
    """Return a function that writes a run directory of PPO with some steps."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")

    def make(name: str, num_steps: int = 20, **settings: object):
        run = tmp_path / name
        run.mkdir(parents=True)
        lines = [f"{key}: {value}" for key, value in {"reward_terms": "fact_rm=1", "seed": 0, **settings}.items()]
        (run / "config.yaml").write_text("\n".join(lines) + "\n")
        steps = range(1, num_steps + 1)
        metrics = [{"step": s, "objective/scores": s / 10, "objective/kl": 0.5, "other/metric": 1.0} for s in steps]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics) + '{"step": 21, "obj')
        image = str(tmp_path / "a.png")
        sample = {"step": 2, "id": "r1", "prompt": "What is <it>?", "answer": "A <b>cup</b>.", "score": 0.5, "images": [image]}
        (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
        ledger = [{"step": s, "id": "r1", "answer": f"Answer {s}.", "total": 0.1} for s in (1, 2, 4)]
        ledger.append({"step": 1, "id": "never sampled", "answer": "Hidden.", "total": 0.1})
        (run / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
        (run / "warnings.jsonl").write_text(json.dumps({"step": 3, "warning": "length & <reward> correlate"}) + "\n")
        return run

    return make


def test_write_runs_page_of_one_run(make_run):
    run = make_run("ppo")
    page = write_runs_page([str(run)])
    assert page == run / "report.html" and write_runs_page([str(run)]) == page  # written again
    source = page.read_text(encoding="utf-8")
    parsed = ParsedPage(source)
    assert parsed.ids_of_sections() == ["warnings", "curves", "answers", "settings"]
    assert "<b>cup" not in source and "<script" not in source and "http" not in source.replace("http://www.w3.org", "")
    # The sample of step 2, and the ledger's answers to the same prompt at other steps.
    assert parsed.text.index("Answer 1.") < parsed.text.index("A <b>cup</b>.") < parsed.text.index("Answer 4.")
    assert "Answer 2." not in parsed.text and "Hidden." not in parsed.text
    assert source.count("data:image/jpeg;base64,") == 1
    assert "ppo: 20 steps, not finished; reward 0.15 to 1.95, KL 0.50 to 0.50; 1 warning." in parsed.text
    assert "1 more metrics" in parsed.text and parsed.num_unfolded_tables == 0
    assert len(parsed.ids) == len(set(parsed.ids))


def test_write_runs_page_shows_fixed_prompts_apart_from_sampled_answers(make_run):
    run = make_run("ppo")
    (run / "images").mkdir()
    Image.new("RGB", (20, 20), "blue").save(run / "images/b.jpg")
    fixed = {"id": "r1", "prompt": "What is it?", "fixed": True, "images": ["images/b.jpg"], "reference": "A mug."}
    rows = [{"step": s, **fixed, "answer": f"Greedy {s}."} for s in (0, 10, 20)]
    pair = {"id": "r2", "prompt": "Which?", "fixed": True, "answer": "Alike.", "images": []}
    rows += [{"step": s, **pair, "score": s / 10} for s in (0, 10)]
    with open(run / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    source = write_runs_page([str(run)]).read_text(encoding="utf-8")
    parsed = ParsedPage(source)
    assert parsed.ids_of_sections() == ["warnings", "curves", "fixed", "answers", "settings"]
    sampled = parsed.text.index("sampled answers")
    assert parsed.text.index("Greedy 0.") < parsed.text.index("Greedy 20.") < sampled < parsed.text.index("Answer 1.")
    assert (
        "Reference: A mug." in parsed.text and parsed.text.count("Alike.") == 1 and "step 0: 0.00; step 10: 1.00" in parsed.text
    )
    assert source.count("data:image/jpeg;base64,") == 2


def test_live_page_is_reloaded_until_the_run_is_finished(make_run, live_pages, monkeypatch):
    run = make_run("ppo")
    assert LivePage(run).refresh() == "" and not (run / "report.html").exists()  # too soon after its start
    monkeypatch.setattr("mmrlhf.report.live_page.FIRST_SECONDS", 0.0)
    page = LivePage(run)
    assert page.refresh() == "" and 'http-equiv="refresh"' in (run / "report.html").read_text(encoding="utf-8")
    assert "1 more metrics are in metrics.jsonl" in (run / "report.html").read_text(encoding="utf-8")
    (run / "report.html").unlink()
    assert page.refresh() == "" and not (run / "report.html").exists()  # too soon
    (run / "finished.json").write_text("{}")
    assert page.refresh(is_final=True) == "" and "20 steps, finished" in (run / "report.html").read_text(encoding="utf-8")
    assert 'http-equiv="refresh"' not in (run / "report.html").read_text(encoding="utf-8")
    assert LivePage(run / "missing").refresh() == ""  # no step yet


def test_write_runs_page_draws_several_runs_together(make_run, tmp_path, monkeypatch):
    runs = [make_run("x/ppo"), make_run("y/ppo", seed=1)]
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, runs)]) == 0
    parsed = ParsedPage((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "2 runs" in parsed.text and all(f"{run} (ppo): 20 steps" in parsed.text for run in runs)  # equal names: paths
    assert parsed.text.index("seed") < parsed.text.index("reward_terms")  # settings that differ come first
    assert parsed.text.count("seed differs") == 1


def test_write_runs_page_refuses_what_is_no_run(make_run, tmp_path):
    with pytest.raises(InputError, match="is not a training run with metrics"):
        write_runs_page([str(tmp_path)])
    run = make_run("empty", num_steps=0)
    with pytest.raises(InputError, match="has no step yet"):
        write_runs_page([str(run)])


def test_describe_run_of_other_stages(make_run):
    run = make_run("r")
    (run / "config.yaml").write_text("loss_type: bradley_terry\n")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0, "accuracy": null}\n{"step": 2, "loss": 0.25, "accuracy": 1.0}\n')
    (run / "finished.json").write_text("{}")
    (run / "warnings.jsonl").unlink()
    assert describe_run(read_run(run, "r")) == "r (reward): 2 steps, finished; loss 1.00 to 0.25, accuracy 1.00; no warnings."


def test_page_of_a_single_round_of_rft(make_run):
    run = make_run("r", num_steps=1, num_rounds=1)
    assert describe_run(read_run(run, "r")) == "r (rft): 1 round, not finished; reward 0.10, KL 0.50; 1 warning."


def test_page_of_reward_has_fixed_pairs(make_run):
    run = make_run("r")
    (run / "config.yaml").write_text("loss_type: bradley_terry\n")
    pair = {"step": 0, "id": "r2 chosen", "prompt": "Which?", "fixed": True, "answer": "Alike.", "images": [], "score": 0.5}
    (run / "samples.jsonl").write_text(json.dumps(pair) + "\n")
    text = ParsedPage(write_runs_page([str(run)]).read_text(encoding="utf-8")).text
    assert "Fixed pairs, the better answer first" in text and "greedily" not in text


def test_write_runs_page_survives_odd_rows(make_run):
    run = make_run("odd$x_{")
    odd = [None, "text", {"step": "2"}, {"step": 3}, {"step": 4, "id": [1], "images": 5, "answer": {"a": 1}, "score": "high"}]
    odd += [{"step": 5, "id": "r1", "images": [None], "prompt": ["<i>"], "score": 1e999, "$\\frac{": 2.0, "nested": {"a": 1}}]
    odd += [
        {"step": 6, "id": "\ud800", "answer": "\ud800", "warning": "\ud800", "loss": s * 1e308, "kl": 10**400} for s in (1, -1)
    ]
    for name in ("metrics", "samples", "ledger", "warnings"):
        with open(run / f"{name}.jsonl", "a", encoding="utf-8") as file:
            file.write("\n" + "".join(json.dumps(row) + "\n" for row in odd))
        with open(run / f"{name}.jsonl", "ab") as file:
            file.write(b'\xff{"step": 7}\n')
    (run / "pages").mkdir()
    page = write_runs_page([str(run)], str(run / "pages"))
    assert page == run / "pages/report.html"
    source = page.read_text(encoding="utf-8")
    assert "<i>" not in source and "$\\frac{" in source
    ParsedPage(source)
