"""The commands as users type them, also while people work."""

import contextlib
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import httpx2 as httpx
import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.cli import main
from mmrlhf.config import LabelConfig
from mmrlhf.label import add_tasks, serve_labels, serving_labels
from mmrlhf.labeling.forms import claim_field, claims_of
from mmrlhf.labeling.store import Store
from mmrlhf.records import InputError
from tests.helpers.annotators import come_in
from tests.labeling.conftest import Person, assign, pairs, standing


class Server:
    """`mmrlhf label serve` in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "mmrlhf", "label", "serve", *map(str, arguments), "--port", "0"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.process = subprocess.Popen(command, cwd=Path(__file__).parents[2], **streams)
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if match := re.search(r"labelling at (\S+)", line):
                self.url = match[1]
                return
        raise AssertionError("the server did not start")

    def stop(self, number):
        """Send a signal; return the exit code once the process has ended, and keep its output."""
        self.process.send_signal(number)
        self.lines += self.process.stdout.readlines()
        return self.process.wait(timeout=30)


@pytest.mark.slow
def test_stopped_by_a_signal_it_ends_well_and_leaves_one_file(write_rows, tmp_path):
    server = Server(write_rows(*pairs(2)), "--output_file", tmp_path / "labels.db")
    httpx.get(server.url).raise_for_status()
    assert server.stop(signal.SIGTERM) == 0
    assert "Traceback" not in "".join(server.lines)
    assert {path.name for path in tmp_path.iterdir()} == {"labels.db", "red.png", "rows.jsonl"}
    assert (tmp_path / "labels.db").stat().st_mode & 0o077 == 0  # for its owner alone


def test_tasks_are_added_while_people_work_and_one_server_at_a_time(write_rows, tmp_path):
    config = LabelConfig(dataset_name=write_rows(*pairs(1)), output_file=str(tmp_path / "labels.db"), port=0)
    with serving_labels(config) as server:
        with httpx.Client(base_url=server.url, follow_redirects=True) as client:
            page = come_in(client).text
            form = dict(re.findall(r'name="(form_key|token)" value="([^"]+)"', page))
            assert "Nothing is left" in client.post("/answer", data=form | {"kind": "skip"}).text
            more = write_rows({"id": "more", "prompt": "More?", "answers": ["a", "b"]}, name="more.jsonl")
            add_tasks([more, write_rows(*pairs(1))], config.output_file)
            assert "More?" in client.get("/").text
        command = [sys.executable, "-m", "mmrlhf", "label", "serve", "--output_file", config.output_file, "--port", "0"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
        assert second.returncode == 2 and "is being written by another command" in second.stderr


def test_labels_are_exported_and_reported_while_people_work(write_rows, tmp_path, capsys):
    config = LabelConfig(dataset_name=write_rows(*pairs(3)), output_file=str(tmp_path / "labels.db"), port=0)
    output, page_file = tmp_path / "pairs.jsonl", tmp_path / "page.html"
    with serving_labels(config) as server, httpx.Client(base_url=server.url, follow_redirects=True) as client:
        page = come_in(client).text
        for number in (1, 2):
            form = dict(re.findall(r'name="(form_key|token)" value="([^"]+)"', page)) | {"choice": "left", "strength": "2"}
            page = client.post("/answer", data=form).text
            assert f"Question {number}?" in page
            arguments = ["label", "export", config.output_file, "--to", "trl", "--output_file", str(output)]
            assert main(arguments) == 0 and len(output.read_text().splitlines()) == number
            assert main(["label", "report", config.output_file, "--out", str(page_file)]) == 0
            assert f"{number} labels of {number} of 3 tasks by 1 annotators" in capsys.readouterr().out
            assert "heron" in page_file.read_text()


def test_elsewhere_a_token_is_printed_and_stays(write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("mmrlhf.label.socket.gethostname", lambda: "localhost")
    config = LabelConfig(dataset_name=write_rows(*pairs(1)), output_file=str(tmp_path / "labels.db"), port=0, host="0.0.0.0")
    with serving_labels(config) as server:
        token = server.access_token
        assert token and len(token) > 20
        assert server.url.startswith("http://localhost:")  # 0.0.0.0 is no address that others could open
        with httpx.Client(base_url=server.url) as client:
            reply = come_in(client)
            assert reply.status_code == 403 and "not the token of this server" in reply.text
    with serving_labels(config) as server:
        assert server.access_token == token


def test_a_lexicon_is_kept_for_claims_facts_and_uncertainty(write_rows, tmp_path):
    (tmp_path / "words.txt").write_text("[objects]\ntriangle\n")
    rates = {"object": {"J": {"value": 0.75}}}
    (tmp_path / "result.json").write_text(json.dumps({"policy": {"detection": {"with facts": rates}}}))
    report = str(tmp_path / "result.json")
    rows = write_rows({"answers": ["Here is a triangle."]}, {"prompt": "Facts?"})
    later = LabelConfig(output_file=str(tmp_path / "labels.db"), port=0, overlap=2)
    first = replace(later, dataset_name=rows, reward_eval_file=report, lexicon_file=str(tmp_path / "words.txt"))
    for number, config in enumerate((first, later)):
        with serving_labels(config) as server, httpx.Client(base_url=server.url, follow_redirects=True) as client:
            page = come_in(client, f"heron {number}").text
            assert 'name="claim-' in page
            form = {"form_key": re.search(r'name="form_key" value="([^"]+)"', page)[1], "sentence": "A triangle."}
            assert client.post("/facts", data=form).json() == {"facts": [{"kind": "object", "text": "triangle"}]}
    with contextlib.closing(Store(first.output_file)) as store:
        add_tasks(
            [write_rows({"prompt": "More?", "answers": ["A triangle."]}, name="more.jsonl")],
            first.output_file,
            reward_eval_file=report,
        )
        assert [entry.uncertainty for entry in store.task_entries()] == [0.25, None, 0.25]  # 1 - J
    without = LabelConfig(dataset_name=rows, output_file=str(tmp_path / "without.db"), port=0)
    with serving_labels(without) as server, httpx.Client(base_url=server.url, follow_redirects=True) as client:
        assert 'name="claim-' not in come_in(client).text


def test_a_verdict_stays_with_its_claim_when_the_lexicon_changes(make_store, make_app, tmp_path):
    (tmp_path / "words.txt").write_text("[objects]\ntriangle\n")
    store = make_store([{"answers": ["Here is a triangle and a dog."], "mode": "claims"}])
    person = Person(make_app(store, lexicon=load_lexicon(str(tmp_path / "words.txt"))))
    assert len(re.findall(r'name="(claim-\w+)" value="true"', person.page)) == 2  # a triangle, and a dog
    of_the_dog = claim_field(claims_of("Here is a triangle and a dog.")[0])
    person.label(**{of_the_dog: "false"})  # as from a page or a draft before the lexicon, where it is the first claim
    ((_, _, label),) = standing(store)
    assert [(claim["subject"], claim["verdict"]) for claim in label["claims"]] == [("dog", "contradicted")]
    undone = person.undo()
    assert undone.status_code == 200 and f"{of_the_dog}&#34;: &#34;false" in person.page


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"gold_file": "none.jsonl"}, "none.jsonl does not exist"),
        ({"gold_file": "{}/gold.jsonl", "mode": "claims"}, "a gold question of claims needs one answer"),
        ({"scores_file": "{}/scores.jsonl"}, "scores_file or reward_eval_file says nothing of these rows"),
        ({"scores_file": "{}/scores.jsonl", "reward_eval_file": "{}/scores.jsonl"}, "leave one of them out"),
        ({"reward_eval_file": "{}/scores.jsonl"}, "scores.jsonl has no J by kind of claim: write it with"),
        ({"order": "uncertainty"}, "no task has an uncertainty: give scores_file or reward_eval_file"),
        ({"order": "uncertainty", "gold_file": "{}/gold.jsonl"}, "no task has an uncertainty"),
        ({"lexicon_file": "{}/none.txt"}, "none.txt does not exist: correct the path"),
        ({"host": "192.0.2.1"}, "cannot listen on 192.0.2.1"),
    ],
)
def test_a_start_that_fails_leaves_nothing_behind(write_rows, tmp_path, settings, problem):
    rows = write_rows(*pairs(1))
    write_rows({"chosen": "a", "rejected": "b", "uncertainty": 1}, name="gold.jsonl")
    write_rows({"id": "other", "score_chosen": 1, "score_rejected": 0}, name="scores.jsonl")
    before = set(tmp_path.iterdir())
    settings = {name: value.format(tmp_path) for name, value in settings.items()}
    config = LabelConfig(dataset_name=rows, output_file=str(tmp_path / "new" / "labels.db"), port=0, **settings)
    with pytest.raises(InputError, match=problem), serving_labels(config):
        pass
    assert set(tmp_path.iterdir()) == before


def test_order_uncertainty_goes_by_what_the_file_has(write_rows, tmp_path):
    path = str(tmp_path / "labels.db")
    with serving_labels(
        LabelConfig(dataset_name=write_rows({"answers": ["a", "b"], "uncertainty": 1}), output_file=path, port=0)
    ):
        pass
    with serving_labels(LabelConfig(output_file=path, port=0, order="uncertainty")) as server:
        assert [entry.uncertainty for entry in server.store.task_entries()] == [1.0]


def test_an_empty_file_is_filled_and_a_damaged_one_explained(write_rows, tmp_path):
    (tmp_path / "labels.db").touch()
    config = LabelConfig(dataset_name=write_rows(*pairs(1)), output_file=str(tmp_path / "labels.db"), port=0)
    without_tasks = replace(config, dataset_name=None)
    with pytest.raises(InputError, match="has no tasks: give rows"), serving_labels(without_tasks):
        pass
    with pytest.raises(InputError, match="no task has an uncertainty"), serving_labels(replace(config, order="uncertainty")):
        pass
    with serving_labels(config) as server:
        assert len(server.store.task_entries()) == 1
    header = (tmp_path / "labels.db").read_bytes()[:4096]  # the first page, with which the file opens
    (tmp_path / "labels.db").write_bytes(header + b"\xff" * 65536)
    lexicon = tmp_path / "words.txt"
    lexicon.write_text("[objects]\ntriangle\n")
    for damaged in (config, replace(config, order="uncertainty", lexicon_file=str(lexicon))):
        with pytest.raises(InputError, match=r"could not be read .*: make room, or give another --"), serving_labels(damaged):
            pass


def test_tasks_are_added_without_the_lexicon_if_no_claims_rank_them(make_store, write_rows, tmp_path):
    store = make_store(pairs(1))
    store.set_setting("lexicon_file", str(tmp_path / "gone.txt"))
    more = write_rows({"prompt": "More?", "answers": ["a", "b"]}, name="more.jsonl")
    add_tasks([more], str(store.path))
    assert len(store.task_entries()) == 2
    with pytest.raises(InputError, match=r"gone\.txt does not exist"):
        add_tasks([more], str(store.path), reward_eval_file=str(tmp_path / "result.json"))


def test_names_may_have_spaces_after_commas(write_rows, tmp_path, capsys):
    rows = write_rows(*pairs(1))
    gold = [write_rows({"prompt": name, "chosen": "a", "rejected": "b"}, name=f"{name}.jsonl") for name in "gh"]
    config = LabelConfig(dataset_name=rows, output_file=str(tmp_path / "labels.db"), port=0, gold_file=", ".join(gold))
    with serving_labels(config) as server:
        assert [entry.is_gold for entry in server.store.task_entries()] == [False, True, True]
    assert "labels.db: 3 new tasks" in capsys.readouterr().out


def test_labels_of_the_lead_are_gold_questions_for_others(make_store, write_rows, tmp_path, capsys):
    """In every mode, as `label export --to labels` writes them; the same answers are right."""
    rows = [{"prompt": "Pair?", "answers": ["a", "b"]}, {"prompt": "Rank?", "answers": ["a", "b", "c"]}]
    rows += [{"prompt": "Claims?", "answers": ["A red cup."]}, {"prompt": "Facts?"}]
    answers = {
        "Claims?": {"spans": [{"start": 2, "end": 5, "text": "red", "reason": "attribute", "correction": ""}], "claims": [],
                    "corrected": "A cup."},
        "Facts?": {"facts": [{"kind": "object", "text": "cup"}], "complete": True},
    }  # fmt: skip

    def label_all(store, name):
        work, annotator = assign(store, gold_every=1), store.add_annotator(name, "code", 0.0, "yes")
        while (shown := work.current(annotator)) is not None:
            texts = shown.task.answers
            by_text = {"ranks": [1 + sorted(texts, key="bca01234".find).index(text) for text in texts]}
            work.submit(annotator, shown, "label", answers.get(shown.task.prompt[0].content, by_text))

    label_all(make_store(rows, name="lead.db"), "lead")
    gold = tmp_path / "gold.jsonl"
    assert main(["label", "export", str(tmp_path / "lead.db"), "--to", "labels", "--output_file", str(gold)]) == 0
    store = make_store([{"prompt": "Pair?", "id": f"other {n}", "answers": [f"{n}", "b"]} for n in range(5)])
    assert main(["label", "add", "--gold_file", str(gold), "--output_file", str(store.path)]) == 0
    assert "labels.db: 4 new tasks" in capsys.readouterr().out
    label_all(store, "heron")
    assert main(["label", "report", str(store.path)]) == 0
    printed = capsys.readouterr().out
    assert "5 labels of 5 of 5 tasks by 1 annotators, and 4 of gold questions" in printed and "100% of 4" in printed


@pytest.mark.parametrize(("mode", "loaded"), [("pairwise", []), ("claims", ["dog"]), ("facts", ["dog"])])
def test_what_pages_need_is_loaded_before_the_first_one(write_rows, tmp_path, monkeypatch, mode, loaded):
    """While the package for plurals loads, a server answers nobody."""
    nouns = []
    monkeypatch.setattr("mmrlhf.label.pluralize", nouns.append)
    rows = write_rows({"mode": mode, "answers": {"pairwise": ["a", "b"], "claims": ["a"], "facts": []}[mode]})
    with serving_labels(LabelConfig(dataset_name=rows, output_file=str(tmp_path / "labels.db"), port=0)):
        assert nouns == loaded


def test_a_server_that_ends_by_itself_says_so(write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    config = LabelConfig(dataset_name=write_rows(*pairs(1)), output_file=str(tmp_path / "labels.db"), port=0)
    with pytest.raises(InputError, match="ended by itself"):
        serve_labels(config)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["serve", "--output_file", "{}/l.db"], "has no tasks: give rows"),
        (["serve", "none.jsonl", "--output_file", "{}/l.db"], "none.jsonl does not exist"),
        (["serve", "--output_file", "{}/l.db", "--guidelines_file", "none.txt"], "guidelines_file none.txt"),
        (["serve", "--output_file", "{}/l.db", "--order", "best"], "order"),
        (["add", "rows.jsonl", "--output_file", "{}/l.db"], "does not exist: give the file that `mmrlhf label serve` writes"),
        (["add", "--output_file", "{}/l.db"], "there is nothing to add: give rows to label, or --gold_file"),
        (["export", "{}/l.db", "--to", "trl", "--output_file", "{}/o.jsonl"], "does not exist"),
        (["report", "{}/l.db"], "does not exist"),
        (["labels"], "mmrlhf label has no command labels"),
    ],
)
def test_mistakes_get_a_sentence(arguments, problem, tmp_path, capsys):
    assert main(["label", *(argument.format(tmp_path) for argument in arguments)]) == 2
    assert problem in capsys.readouterr().err


def test_a_full_disk_gets_a_sentence(make_store, write_rows, monkeypatch):
    store = make_store(pairs(1))
    rows = write_rows(*({"id": n, "prompt": f"{n}", "answers": ["a" * 500, "b" * 500]} for n in range(200)))
    opened = Store.__init__

    def open_small(self, path, **kwargs):
        opened(self, path, **kwargs)
        self._database.execute(f"PRAGMA max_page_count = {self._database.execute('PRAGMA page_count')[0][0]}")

    monkeypatch.setattr(Store, "__init__", open_small)
    with pytest.raises(InputError, match=r"could not be written \(database or disk is full\): make room"):
        add_tasks([rows], str(store.path))
    assert len(store.task_entries()) == 1


def test_a_bad_row_adds_nothing(make_store, write_rows):
    store = make_store(pairs(1))
    with pytest.raises(InputError, match="line 2"):
        add_tasks([write_rows({"id": "new", "answers": ["a", "b"]}, {"answers": 3})], str(store.path))
    assert len(store.task_entries()) == 1


def test_from_the_page_to_a_reward_model(tiny_vlm_path, tmp_path):
    """Labels go into training as they are exported; the file says what the annotator said."""
    from mmrlhf.reward_model import train_reward_model
    from mmrlhf.scenes import export_dataset
    from tests.helpers.stages import reward_config

    export_dataset(str(tmp_path), 12)
    config = LabelConfig(dataset_name=str(tmp_path / "pairs.jsonl"), output_file=str(tmp_path / "labels.db"), port=0)
    chosen = []
    with serving_labels(config) as server, httpx.Client(base_url=server.url, follow_redirects=True, timeout=60) as client:
        page = come_in(client).text
        while "Nothing is left" not in page:
            chosen.append(re.findall(r'<div class="text" dir="auto">(.*?)</div>', page)[0])
            form = dict(re.findall(r'name="(form_key|token)" value="([^"]+)"', page))
            page = client.post("/answer", data=form | {"choice": "left", "strength": "3"}).text
    output = tmp_path / "labelled.jsonl"
    assert main(["label", "export", config.output_file, "--to", "trl", "--output_file", str(output)]) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["chosen"][0]["content"][0]["text"] for row in rows] == chosen and all(row["facts"] for row in rows)
    config = reward_config(tiny_vlm_path, tmp_path / "reward", max_steps=2, image_folder=str(tmp_path / "images"))
    assert (train_reward_model(replace(config, dataset_name=str(output))) / "reward.json").is_file()
