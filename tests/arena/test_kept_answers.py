"""Pairs from files of answers: joined by id, fit to be shown, evenly spread."""

import itertools
import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from PIL import Image

from mmrlhf.arena.kept_answers import (
    draw_order,
    make_pairs,
    make_task,
    parse_contestants,
    parse_words,
    read_answers_by_id,
    read_categories,
    why_unfit,
)
from mmrlhf.arena.ledger import question_key
from mmrlhf.arena.serve import judge_arena, read_kept_answers, serving_arena
from mmrlhf.arena.votes import read_ballots
from mmrlhf.config import ArenaConfig, ArenaJudgeConfig
from mmrlhf.records import Example, InputError, Message
from tests.arena.conftest import kept


def pairs_of(*paths, **settings):
    answers = {path.rpartition("/")[2].removesuffix(".jsonl"): read_answers_by_id(path, None, "train") for path in paths}
    return make_pairs(answers, **({"categories": {}, "identity_words": (), "rng": random.Random(0)} | settings))


def test_contestants_have_names_of_their_own():
    first, second, third = parse_contestants("runs/a/dpo.jsonl, base=Qwen/Qwen2-VL, http://localhost:1/v1#judge")
    assert (first.name, first.is_kept) == ("dpo", True)
    assert (second.name, second.source, second.is_kept) == ("base", "Qwen/Qwen2-VL", False)
    assert (third.name, third.source) == ("judge", "http://localhost:1/v1#judge")
    with pytest.raises(InputError, match="names no model: give NAME=SOURCE, or URL#MODEL"):
        parse_contestants("a.jsonl,http://user:secret@host/v1")  # an address is no name


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("a.jsonl", "compares two models or more"),
        ("a/x.jsonl,b/x.jsonl", "2 models are called x: give each a name"),
        ("a=,b.jsonl", "a= names no model"),
    ],
)
def test_contestants_that_cannot_be_told_apart_are_refused(models, message):
    with pytest.raises(InputError, match=message):
        parse_contestants(models)


def test_each_two_models_meet_on_each_question(write_answers):
    tasks, pairs = pairs_of(*(write_answers(name, kept(name)) for name in ("one", "three", "eleven")))
    assert len(tasks) == len({task.digest for task in tasks}) == 12 * 3
    assert {pair.category for pair in pairs} == {"count", "colour"}
    met = Counter((pair.question, frozenset((pair.lower, pair.upper))) for pair in pairs)
    assert set(met.values()) == {1} and len({models for _, models in met}) == 3
    for task, pair in zip(tasks, pairs, strict=True):
        assert task.models[task.answers.index(min(task.answers))] == pair.lower


def test_questions_and_models_are_evenly_spread():
    ids = [f"q{i}" for i in range(30)]
    order = list(draw_order(ids, 4, random.Random(1)))
    assert len(set(order)) == 30 * 6
    for start in range(0, 180, 30):
        assert {id_ for id_, _ in order[start : start + 30]} == set(ids)
    for start in range(0, 180, 6):
        assert {pair for _, pair in order[start : start + 6]} == set(itertools.combinations(range(4), 2))
    following = Counter((order[i][1], order[i + 1][1]) for i in range(29))
    assert max(following.values()) < 8  # what comes next does not follow from what came before


def test_what_cannot_be_voted_on_is_left_out_with_a_note(write_answers, capsys):
    first = write_answers("first", ["same", "a cat", "", "I am Llava, and see a dog", "a"])
    second = write_answers("second", ["same", "a dog", "a tree", "a dog", "b"][:4])
    tasks, _ = pairs_of(first, second, identity_words=("llava",))
    assert [task.name for task in tasks] == ["q1-1-2"]
    notes = capsys.readouterr().out
    assert "first.jsonl: 1 empty answers are left out" in notes and "2 pairs left out which only one of the models" in notes
    for reason in ("of equal answers", "in which an answer says who wrote it"):
        assert f"1 pairs left out {reason}" in notes


def test_a_vote_counts_for_all_models_that_gave_the_answer(write_answers, make_arena):
    """Two of three models say the same: one task, two pairs."""
    store, ledger = make_arena(*(write_answers(name, [text]) for name, text in (("a", "x"), ("b", "x"), ("c", "y"))))
    assert len(store.task_entries()) == 1
    ballots = read_ballots(store, ledger)
    (digest,) = ballots.tasks
    votes = ballots.votes({digest: [("heron", 1.0)]})
    winner = {"x": {"a", "b"}, "y": {"c"}}[ballots.tasks[digest].answers[0]]
    assert len(votes) == 2 and {vote.first if vote.score else vote.second for vote in votes} <= winner | {"c"}
    assert all((vote.first in winner) == bool(vote.score) for vote in votes)


def test_other_questions_under_one_id_are_refused(write_answers):
    first = write_answers("first", kept("first"))
    other_prompt = write_answers("second", kept("second"), prompt="Something else?")
    with pytest.raises(
        InputError, match="row q0 has another prompt or other images in the answers of second than in those of first"
    ):
        pairs_of(first, other_prompt)
    with pytest.raises(InputError, match="no two different answers to one row"):
        pairs_of(first, write_answers("copy", kept("first")))
    with pytest.raises(InputError, match="`category` must be text"):
        pairs_of(first, write_answers("second", kept("second"), category=3))


def test_categories_may_come_from_the_questions(write_answers, tmp_path):
    (tmp_path / "questions.jsonl").write_text('{"id": "q1", "category": "place"}\n')
    categories = read_categories(str(tmp_path / "questions.jsonl"))
    tasks, pairs = pairs_of(write_answers("a", kept("a")), write_answers("bb", kept("bb")), categories=categories)
    by_id = {task.name.partition("-")[0]: pair.category for task, pair in zip(tasks, pairs, strict=True)}
    assert by_id["q1"] == "place" and by_id["q2"] == "count"


def test_a_default_name_keeps_its_dots():
    named = [c.name for c in parse_contestants("Qwen/Qwen2.5-VL-3B-Instruct,runs/lr1.0,runs/lr1.5/,answers.v1.jsonl")]
    assert named == ["Qwen2.5-VL-3B-Instruct", "lr1.0", "lr1.5", "answers.v1"]


def test_identity_words_are_whole_words():
    for word, answer, is_said in (
        ("yi", "A man is lying on a bench.", False),
        ("phi", "An infographic", False),
        ("phi", "une affiche philosophique", False),
        ("gpt", "As GPT-4, I see a dog.", True),
        ("qwen", "I am **Qwen2.5-VL**.", True),
        ("qwen", "我是Qwen。", True),
        ("通义千问", "我是通义千问模型", True),
    ):
        task = make_task(Example("q", (), (Message("user", "What is it?"),)), ("a", "b"), (answer, "A dog"), "q")
        assert bool(why_unfit(task, [word])) is is_said, answer


def test_identity_words_are_read_alike_everywhere():
    assert parse_words("llava, qwen,") == ["llava", "qwen"] and parse_words(None) == [] == parse_words(" ,")


def test_the_key_of_a_question_is_what_it_asks():
    """Ids are row numbers by default: two files share them."""
    prompts = [(Message("user", text),) for text in ("What?", "Where?", "What?")]
    first, second, again = (question_key((), prompt) for prompt in prompts)
    assert first == again != second


def test_a_model_that_changed_needs_another_name(make_arena, write_answers):
    """More questions are welcome; another answer to a known one is another model's."""
    one, two = write_answers("one", kept("one", 4)), write_answers("two", kept("two", 4))
    store, _ = make_arena(one, two)
    config = ArenaConfig(output_file=str(store.path), models=f"{one},{two}", port=0)
    write_answers("one", kept("one", 6))
    write_answers("two", kept("two", 6))
    with serving_arena(config):
        assert len(store.task_entries()) == 6
    write_answers("two", [*kept("two", 5), "A circle."])
    for start in (lambda: serving_arena(config).__enter__(), lambda: judge_arena(judge_config(store, f"{one},{two}"))):
        with pytest.raises(InputError, match=r"^two has another answer to row .?q5.? than in output_file.*NEW_NAME=SOURCE"):
            start()
    live = replace(config, models=f"{one},{two},http://127.0.0.1:9/v1#m", dataset_name=one)
    with pytest.raises(InputError, match="two has another answer"):
        serving_arena(live).__enter__()
    with serving_arena(replace(config, models=f"{one},two_b={two}")):
        assert len(store.task_entries()) == 6 + 1  # the five equal answers share their tasks


def judge_config(store, models):
    return ArenaJudgeConfig(output_file=str(store.path), models=models, judge="http://127.0.0.1:9/v1", judge_model="j")


def test_rows_that_ask_the_same_are_one_question(make_arena, tmp_path):
    """Sampled answers to equal rows differ, which does not make them another model's."""
    prompt = [{"role": "user", "content": "What is it?"}]
    Image.new("RGB", (8, 6)).save(tmp_path / "x.png")
    for name in ("one", "two"):
        rows = [{"id": f"r{i}", "images": ["x.png"], "prompt": prompt, "answer": f"{name} {i}"} for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = ArenaConfig(
        output_file=str(tmp_path / "votes.db"), models=f"{tmp_path / 'one.jsonl'},{tmp_path / 'two.jsonl'}", port=0
    )
    for _ in range(2):
        with serving_arena(config) as running:
            assert len(running.store.task_entries()) == 2


def test_kept_answers_beside_live_questions_need_no_split(write_answers, tmp_path):
    config = ArenaConfig(output_file=str(tmp_path / "votes.db"), dataset_name="questions.json", dataset_train_split="test")
    (kept_file,) = parse_contestants(f"a={write_answers('a', ['x'])},b=http://localhost:1/v1")[:1]
    assert [example.answer for example in read_kept_answers([kept_file], config)["a"].values()] == ["x"]
