"""Live models: pairs come only when both sides are there, and failures are void votes."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mmrlhf.arena.kept_answers import read_answers_by_id
from mmrlhf.arena.ledger import Ledger
from mmrlhf.arena.live import LiveModel, MissingRowError, NoAnswerError, Producer, check_same_models
from mmrlhf.arena.page import report_arena
from mmrlhf.arena.serve import serving_arena
from mmrlhf.arena.votes import read_ballots
from mmrlhf.config import ArenaConfig, DPOConfig, SFTConfig
from mmrlhf.config.loader import save_config
from mmrlhf.labeling.database import StorageError
from mmrlhf.labeling.store import Store
from mmrlhf.models.export import save_policy
from mmrlhf.records import InputError
from tests.arena.conftest import Voter, kept, voter_at
from tests.arena.test_voting import app_of
from tests.helpers.fake_server import chat_completion, scripted_server
from tests.helpers.stages import save_start_adapter


@pytest.fixture
def questions(write_answers):
    """Return questions, and the path of a file that has them (with an answer that nobody reads)."""
    path = write_answers("questions", kept("questions"))
    return read_answers_by_id(path, None, "train"), path


@pytest.fixture
def produce(make_arena, questions, tmp_path):
    """Start a producer on models that are functions; it is closed when the test ends."""
    producers = []

    def start(asks, **settings):
        store, ledger = make_arena()
        config = ArenaConfig(output_file=str(store.path), **({"answer_timeout": 5.0, "ahead": 3} | settings))
        producers.append(Producer(store, ledger, questions[0], asks, config))
        return store, ledger, producers[-1]

    yield start
    for producer in producers:
        producer.close()


def wait_until(condition):
    """Look until a condition holds; only one that never does fails, on a busy machine too."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")


def answering(name, seconds=0.0):
    def ask(question):
        time.sleep(seconds)
        return f"{question.id} from number {sum(map(ord, name))}"

    return ask


def test_pairs_are_made_ahead_of_voters_and_no_further(produce):
    store, _, _ = produce({"a": answering("a"), "b": answering("b")})
    wait_until(lambda: len(store.task_entries()) == 3)
    time.sleep(0.7)
    assert len(store.task_entries()) == 3
    voter = voter_at(app_of(store))
    for _ in range(2):
        voter.vote("left")
    wait_until(lambda: len(store.task_entries()) == 5)


def test_a_pair_waits_for_its_slower_side(produce):
    """While one side thinks, nothing can be seen of the other."""
    go = threading.Event()

    def slow(question):
        go.wait(4)
        return "slow"

    store, ledger, _ = produce({"slow": slow, "fast": answering("fast")})
    time.sleep(0.5)
    assert store.task_entries() == [] and ledger.pairs() == {}
    go.set()
    wait_until(lambda: len(store.task_entries()) >= 1)
    assert set(store.task(1).models) == {"slow", "fast"}


def fails(question):
    raise RuntimeError("CUDA out of memory")


def hangs(question):
    time.sleep(1.0)
    return "late"


@pytest.mark.parametrize(
    ("ask", "reason"),
    [(fails, "CUDA out of memory"), (hangs, "no answer in 0.2 s"), (lambda question: " ", "an empty answer")],
)
def test_a_model_that_is_slow_dies_or_says_nothing_makes_void_votes(produce, ask, reason, capsys, monkeypatch):
    monkeypatch.setattr("mmrlhf.arena.live.FIRST_PAUSE", 0.01)
    store, ledger, producer = produce({"good": answering("good"), "bad": ask}, answer_timeout=0.2)
    wait_until(lambda: len(ledger.voids()) >= 1)
    void = ledger.voids()[0]
    assert void.failed == "bad" and void.reason == reason and store.task_entries() == []
    with pytest.raises(InputError, match="bad gave no answer"):
        producer.wait_for_a_pair()
    assert "void vote on" in capsys.readouterr().err
    assert read_ballots(store, ledger).people == {}  # and none counts


def test_models_that_work_go_on_while_another_rests(produce):
    store, ledger, _ = produce({"a": answering("a"), "dead": fails, "b": answering("b")}, ahead=6)
    wait_until(lambda: len(store.task_entries()) >= 6)
    assert {frozenset(store.task(entry.id).models) for entry in store.task_entries()} == {frozenset("ab")}
    assert {void.failed for void in ledger.voids()} == {"dead"}
    assert len(ledger.voids()) < 4  # it is left alone for longer and longer


def test_a_late_answer_of_a_void_pair_is_dropped(produce):
    first = threading.Event()

    def late_once(question):
        if not first.is_set():
            first.set()
            time.sleep(0.6)
            return "too late"
        return f"in time {question.id}"

    store, ledger, _ = produce({"late": late_once, "b": answering("b")}, answer_timeout=0.3)
    wait_until(lambda: len(store.task_entries()) >= 2)
    assert len(ledger.voids()) >= 1
    assert not any("too late" in answer for entry in store.task_entries() for answer in store.task(entry.id).answers)


def test_servers_answer_live_and_a_refusal_is_void(questions, tmp_path, capsys):
    """Two servers and a file of kept answers; one server refuses every third request."""
    count = iter(range(1000))

    def refusing(request):
        if next(count) % 3 == 0:
            return (400, {"error": {"message": "I refuse"}}, {})
        return (200, chat_completion(f"second says {len(json.dumps(request))}"), {})

    first = lambda request: (200, chat_completion(f"first says {len(json.dumps(request))}"), {})  # noqa: E731
    with scripted_server(first) as one, scripted_server(refusing) as two:
        models = f"alpha={one.url},beta={two.url}#stub,gamma={questions[1]}"
        config = ArenaConfig(output_file=str(tmp_path / "votes.db"), models=models, dataset_name=questions[1], port=0)
        with serving_arena(config) as running:
            import httpx2

            with httpx2.Client(base_url=running.url, follow_redirects=True, timeout=20) as client:
                voter, ledger = Voter(client), Ledger(tmp_path / "votes.db")
                voted = 0
                while voted < 6 or not any("beta" in (p.lower, p.upper) for pairs in ledger.pairs().values() for p in pairs):
                    if len(voter.answers) == 2:
                        assert not re.search("alpha|beta|gamma", voter.page)
                        voted += voter.vote("left").status_code == 200
                    else:
                        time.sleep(0.2)
                        voter.page = client.get("/").text
        with serving_arena(replace(config, models=f"alpha={one.url}/,beta={two.url}/#stub")):
            pass  # a slash at the end changes nothing
        for changed in (f"{one.url}#stub", f"{two.url}#other"):
            other = replace(config, models=f"alpha={one.url},beta={changed},gamma={questions[1]}")
            sentence = f"beta is {changed}, another server or model than in output_file, whose votes are counted by name"
            with pytest.raises(InputError, match=re.escape(sentence)), serving_arena(other):
                pass
    store, ledger = Store(tmp_path / "votes.db"), Ledger(tmp_path / "votes.db")
    assert all(void.failed == "beta" and "I refuse" in void.reason for void in ledger.voids())
    assert len(ledger.voids()) >= 1
    ballots = read_ballots(store, ledger)
    assert len(ballots.votes(ballots.people)) == voted
    assert {pair.category for pairs in ledger.pairs().values() for pair in pairs} <= {"count", "colour"}
    report_arena(str(store.path))
    assert "Void votes, because a model gave no answer: beta" in capsys.readouterr().out


def test_a_wrong_address_can_be_corrected_before_there_are_pairs(questions, tmp_path, monkeypatch):
    monkeypatch.setattr("mmrlhf.arena.live.FIRST_PAUSE", 0.01)
    config = ArenaConfig(output_file=str(tmp_path / "votes.db"), dataset_name=questions[1], ahead=1, port=0)
    with scripted_server(lambda request: (200, chat_completion("I see."), {})) as server:
        models = [f"a={url}#stub,b={questions[1]}" for url in ("http://127.0.0.1:1/v1", server.url)]
        with pytest.raises(InputError, match="a gave no answer"), serving_arena(replace(config, models=models[0])):
            pass
        with serving_arena(replace(config, models=models[1])) as running:
            assert set(running.store.task(1).models) == {"a", "b"}
        with pytest.raises(InputError, match="another server or model"), serving_arena(replace(config, models=models[0])):
            pass  # the name has a pair now


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ("f00d", "beef", "one has other weights than in output_file"),
        ("f00d", "http://a/v1#m", "one is http://a/v1#m, another source than in output_file"),
        ("http://a/v1#m", "f00d", "one is a model in this process, another source than in output_file"),
    ],
)
def test_a_changed_model_is_told_apart_by_its_kind(write_answers, make_arena, before, after, change):
    store, ledger = make_arena(*(write_answers(name, kept(name, 1)) for name in ("one", "two")))
    check_same_models(store, ledger, {"one": LiveModel(fails, before)})
    with pytest.raises(InputError, match=f"^{re.escape(change)}, whose votes are counted by name"):
        check_same_models(store, ledger, {"one": LiveModel(fails, after)})


def test_rows_that_a_file_lacks_are_left_out(produce):
    def of_half(question):
        if int(question.id[1:]) % 2:
            raise MissingRowError("x.jsonl has no answer to this row")
        return f"{question.id} from a file"

    store, ledger, _ = produce({"file": of_half, "a": answering("a")}, ahead=12)
    wait_until(lambda: len(store.task_entries()) == 6)
    assert ledger.voids() == []


def test_a_full_disk_loses_no_pair(produce, monkeypatch, capsys):
    """The first two pairs cannot be written; they are answered again once there is room."""
    add_pairs, failures = Ledger.add_pairs, iter(range(2))

    def full_at_first(ledger, *rest):
        if next(failures, None) is not None:
            raise StorageError("votes.db could not be written (database or disk is full)")
        return add_pairs(ledger, *rest)

    monkeypatch.setattr(Ledger, "add_pairs", full_at_first)
    monkeypatch.setattr("mmrlhf.arena.live.LONGEST_PAUSE", 0.01)
    store, ledger, _ = produce({"a": answering("a"), "b": answering("b")}, ahead=12)
    wait_until(lambda: len(store.task_entries()) == 12)
    assert capsys.readouterr().err.count("error: votes.db could not be written (database or disk is full): make room") == 2
    assert ledger.voids() == []


def test_who_stops_waits_for_no_model(produce):
    go = threading.Event()
    try:
        _, _, producer = produce({"a": answering("a"), "hangs": lambda question: go.wait() and "late"}, answer_timeout=3600.0)
        producer.close()  # comes back
    finally:
        go.set()


def test_questions_that_have_pairs_are_not_asked_again(produce, questions):
    store, ledger, producer = produce({"a": answering("a"), "b": answering("b")}, ahead=12)
    wait_until(lambda: len(store.task_entries()) == 12)
    producer.close()
    asked = []

    def remember(question):
        asked.append(question.id)
        raise NoAnswerError("asked again")

    again = Producer(store, ledger, questions[0], {"a": remember, "b": remember}, ArenaConfig(output_file="x", ahead=50))
    time.sleep(0.3)
    again.close()
    assert asked == []


def test_policies_on_disk_answer_live(questions, tiny_vlm_path, tmp_path):
    """The same model twice: each samples with a seed of its own."""
    config = ArenaConfig(
        output_file=str(tmp_path / "votes.db"), models=f"one={tiny_vlm_path},two={tiny_vlm_path}", dataset_name=questions[1],
        temperature=1.0, response_length=8, ahead=1, port=0,
    )  # fmt: skip
    with serving_arena(config) as running:
        task = running.store.task(1)
    assert set(task.models) == {"one", "two"} and len(set(task.answers)) == 2 and all(task.answers)


EXIT_SCRIPT = """
import sys, time
from mmrlhf.arena.serve import serving_arena
from mmrlhf.config import ArenaConfig
config = ArenaConfig(
    output_file=sys.argv[1], models=f"one={sys.argv[2]},two={sys.argv[2]}", dataset_name=sys.argv[3], response_length=200,
    temperature=1.0, ahead=1000, port=0,
)
with serving_arena(config):
    time.sleep(0.2)
print("closed")
"""


@pytest.mark.slow
def test_a_process_ends_while_policies_still_answer(questions, tiny_vlm_path, tmp_path):
    """torch aborts a process that ends while one of its threads computes."""
    command = [sys.executable, "-c", EXIT_SCRIPT, str(tmp_path / "votes.db"), tiny_vlm_path, str(questions[1])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("closed\n"), done.stderr[-3000:]


def test_an_adapter_answers_live_and_another_one_needs_another_name(questions, tiny_vlm_path, tmp_path):
    """Without its adapter, the run would answer as its base does, and no pair would be shown."""
    run = tmp_path / "dpo"
    adapters = save_start_adapter(tiny_vlm_path, run / "policy")
    save_config(DPOConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(run)), run / "config.yaml")
    (run / "finished.json").write_text("{}")
    config = ArenaConfig(
        output_file=str(tmp_path / "votes.db"), models=f"base={tiny_vlm_path},{run}", dataset_name=questions[1],
        temperature=0.0, response_length=8, ahead=1, port=0,
    )  # fmt: skip
    with serving_arena(config) as running:
        assert set(running.store.task(1).models) == {"base", "dpo"}
    with torch.no_grad():
        next(iter(adapters.parameters("start").values())).add_(0.01)
    shutil.rmtree(run / "policy")
    save_policy(adapters, "start", run / "policy")
    with pytest.raises(InputError, match=r"^dpo has other weights than in output_file"), serving_arena(config):
        pass


def test_a_run_answers_with_its_own_pixel_limits(questions, tiny_vlm_path, tmp_path):
    """Its base, whose images all have one size, refuses them."""
    run = tmp_path / "run"
    shutil.copytree(tiny_vlm_path, run / "model")
    save_config(SFTConfig(model_name_or_path="x", dataset_name="x", output_dir=str(run), max_pixels=784), run / "config.yaml")
    (run / "finished.json").write_text("{}")
    config = ArenaConfig(output_file=str(tmp_path / "votes.db"), models=f"a={run},b={run}", dataset_name=questions[1], port=0)
    with pytest.raises(InputError, match=r"max_pixels: the processor of model .* has no"), serving_arena(config):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": "a=http://127.0.0.1:1/v1,b=http://127.0.0.1:1/v1"}, "127.0.0.1:1/v1 cannot be reached"),
        ({"models": "a=no/such/model,b=no/such/model"}, "no/such/model"),
        ({"models": "a=http://127.0.0.1:1/v1,b=x.jsonl", "dataset_name": None}, "live models need questions"),
        ({"models": "a=http://127.0.0.1:1/v1#m,b=http://127.0.0.1:1/v1#m"}, "gave no answer"),
        ({"models": "a=no/such/model,b=no/such/model", "guidelines_file": "none.txt"}, "guidelines_file none.txt"),
    ],
)
def test_models_that_cannot_be_used_are_named(questions, tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr("mmrlhf.arena.live.FIRST_PAUSE", 0.01)
    config = {"output_file": str(tmp_path / "votes.db"), "dataset_name": questions[1], "port": 0} | settings
    with pytest.raises(InputError, match=re.escape(message)), serving_arena(ArenaConfig(**config)):
        pass


def test_the_pairs_left_are_those_of_the_voter_with_the_fewest(write_answers, make_arena):
    store, ledger = make_arena(*(write_answers(name, kept(name, 5)) for name in ("one", "two")))
    assert ledger.fewest_left(overlap=1) == 5  # nobody votes yet
    app = app_of(store, overlap=2)
    heron = voter_at(app, "heron")
    assert ledger.fewest_left(2) == 5
    heron.vote("left")
    heron.vote("tie", kind="skip")
    assert ledger.fewest_left(2) == 3 and ledger.fewest_left(1) == 3  # its vote, and its skip
    crane = voter_at(app, "crane")
    assert ledger.fewest_left(2) == 2  # crane may have one of them open
    crane.vote("right")
    assert ledger.fewest_left(2) == 2  # the first pair is full; heron has three, as before
    event = heron.client.get("/").text
    answer = re.search(r'name="answer" value="(\d+)"', event)[1]
    heron.client.post("/undo", data=heron.fields | {"answer": answer})
    assert ledger.fewest_left(2) == 3  # the skip is taken back


def test_a_policy_with_other_weights_needs_another_name(questions, tiny_vlm_path, vlm, tmp_path):
    other = shutil.copytree(tiny_vlm_path, tmp_path / "other")
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            parameter.mul_(1.01)
    vlm.model.save_pretrained(other)
    config = ArenaConfig(
        output_file=str(tmp_path / "votes.db"), models=f"one={tiny_vlm_path},two={tiny_vlm_path}", dataset_name=questions[1],
        temperature=1.0, response_length=8, ahead=1, port=0,
    )  # fmt: skip
    for _ in range(2):
        with serving_arena(config):
            pass
    with (
        pytest.raises(InputError, match=r"^two has other weights than in output_file, whose votes are counted by name"),
        serving_arena(replace(config, models=f"one={tiny_vlm_path},two={other}")),
    ):
        pass
