"""The commands as users type them: servers that are stopped and killed, a judge that is killed."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from mmrlhf.arena.ledger import Ledger
from mmrlhf.arena.votes import read_ballots
from mmrlhf.cli import main
from mmrlhf.labeling.store import Store
from tests.arena.conftest import Voter, kept
from tests.arena.test_judge import better, judging
from tests.arena.test_voting import by_quality
from tests.helpers.fake_server import scripted_server


def start(*arguments):
    """Start `mmrlhf arena` in a process of its own."""
    command = [sys.executable, "-m", "mmrlhf", "arena", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def line_of(process, pattern):
    for line in process.stdout:
        if match := re.search(pattern, line):
            return match[1]
    raise AssertionError(f"it ended without a line with {pattern}")


def stop(process, number):
    process.send_signal(number)
    process.stdout.close()
    return process.wait(timeout=30)


@pytest.fixture
def models(write_answers):
    return [
        f"{name}={write_answers(name, kept(name, 6, quality))}"
        for name, quality in (("one", "good"), ("two", "fair"), ("three", "poor"))
    ]


def ballots_of(path):
    return read_ballots(Store(path), Ledger(path))


def test_votes_outlive_kills_and_become_a_leaderboard(models, tmp_path, capsys):
    votes = tmp_path / "new folder" / "votes.db"
    process = start("serve", *models, "--output_file", votes, "--port", 0)
    with httpx2.Client(base_url=line_of(process, r"voting at (\S+)"), follow_redirects=True) as client:
        voter = Voter(client)
        for _ in range(5):
            assert voter.vote(("left", "right")[by_quality(*voter.answers)]).status_code == 200
        cookies = dict(client.cookies)
    stop(process, signal.SIGKILL)
    process = start("serve", "--output_file", votes, "--port", 0)
    with httpx2.Client(base_url=line_of(process, r"voting at (\S+)"), follow_redirects=True, cookies=cookies) as client:
        voter = Voter(client)
        voter.page = client.get("/").text
        assert voter.vote_for(by_quality) == 13
    assert stop(process, signal.SIGTERM) == 0
    assert len(ballots_of(votes).people) == 18
    assert main(["arena", "report", str(votes), "--out", str(tmp_path / "arena.html")]) == 0
    printed = capsys.readouterr().out
    assert "(18 votes on 6 questions by 1 person)" in printed and "one won every vote against the others (12)" in printed
    assert main(["arena", "export", str(votes), "--to", "rankings", "--output_file", str(tmp_path / "pairs.jsonl")]) == 0
    assert (tmp_path / "pairs.jsonl").read_text().count("\n") == 18
    for anonymous in ([], ["--anonymous"]):
        labels = tmp_path / f"labels{len(anonymous)}.jsonl"
        assert main(["arena", "export", str(votes), "--to", "labels", "--output_file", str(labels), *anonymous]) == 0
        text = labels.read_text()
        assert text.count("\n") == 18 and ("heron" in text) == (not anonymous)


def test_a_killed_judge_asks_nothing_twice(models, tmp_path):
    votes = tmp_path / "votes.db"

    def slowly(request):
        time.sleep(0.05)
        return judging(better)(request)

    with scripted_server(slowly) as server:
        process = start("judge", *models, "--output_file", votes, "--judge", server.url, "--endpoint_concurrency", 1)
        while len(server.requests) < 8:
            time.sleep(0.01)
        stop(process, signal.SIGKILL)
        num_kept = len(Ledger(votes).judgments())
        assert 5 <= num_kept < 36
        asked = len(server.requests)
        assert main(["arena", "judge", "--output_file", str(votes), "--judge", server.url]) == 0
        assert len(server.requests) - asked == 36 - num_kept
    assert len(ballots_of(votes).judges["stub"]) == 18
