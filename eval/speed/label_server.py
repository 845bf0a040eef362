"""Time the annotators' page with many at once, and kill the server to see what is lost.

    python eval/speed/label_server.py [--tasks 10000] [--annotators 8] [--labels 200] [--kills 50]

The server is `mmrlhf label serve` in a process of its own, the annotators are threads of this one,
without pauses between labels. Of ten actions of theirs, one is a skip and one an undo, which are
counted apart. `save` is the time from sending a label until it is acknowledged, `round_trip` until
the next task's page has come too, in milliseconds. With `--kills`, the server is then killed
(SIGKILL) at random moments while annotators work, and started again: every annotator must go on
after the last kill, every acknowledged label, skip and undo must be in the file, and no annotator
may have two labels of a task. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import numpy as np
from PIL import Image

from mmrlhf.labeling.results import read_labels
from mmrlhf.labeling.store import Store

GO_ON_SECONDS = 60
"""How long annotators may take for an action after the last kill."""


def write_tasks(folder: Path, num_tasks: int) -> Path:
    """Write pairs of answers about a few images, and return the file's path."""
    for index in range(8):
        Image.new("RGB", (640, 480), (30 * index, 90, 160)).save(folder / f"{index}.png")
    rows = (
        {
            "id": f"row {index}",
            "images": [f"{index % 8}.png"],
            "prompt": f"Describe the picture ({index}).",
            "answers": [f"A red cup stands on a table ({index}).", f"Two dogs run on a beach with a ball ({index})."],
        }
        for index in range(num_tasks)
    )
    path = folder / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class ServerProcess:
    """`mmrlhf label serve` on a port that stays the same when it is started again."""

    def __init__(self, tasks: Path, labels: Path) -> None:
        self._command = [sys.executable, "-m", "mmrlhf", "label", "serve", "--output_file", str(labels)]
        self._tasks = [str(tasks)]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self._command += ["--port", str(port)]
        self.url = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and return once the server listens."""
        self._process = subprocess.Popen(self._command + self._tasks, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("labelling at"):
                self._tasks = []  # they are in the file of labels now
                return
        raise RuntimeError("the server did not start")

    def stop(self, number: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait()


class Annotator:
    """Does one task after the other, and notes what was acknowledged.

    Of ten actions, one skips the task, and one takes the last answer back, so that its task comes
    again.
    """

    def __init__(self, url: str, name: str) -> None:
        self._client = httpx.Client(base_url=url, follow_redirects=True, timeout=20)
        self.name = name
        self.acknowledged: list[tuple[str, str]] = []
        """Tokens of labels and skips, with their kind."""
        self.acknowledged_undos: list[int] = []
        """Answers that were taken back."""
        self.save_ms: dict[str, list[float]] = {"label": [], "skip": [], "undo": []}
        self.round_trip_ms: list[float] = []
        self._num_actions = 0
        self._page = ""

    @property
    def num_acknowledged(self) -> int:
        return len(self.acknowledged) + len(self.acknowledged_undos)

    def join(self) -> None:
        self._look()
        line = dict(re.findall(r'name="(consent_line)" value="([^"]+)"', self._page))
        reply = self._client.post("/join", data={**line, "name": self.name, "consent": "yes"})
        self._page = reply.raise_for_status().text

    def act(self) -> bool:
        """Do the next action; return whether there was a task."""
        if not self._page:
            self._look()
        fields = dict(re.findall(r'name="(form_key|token|answer)" value="([^"]+)"', self._page))
        if "token" not in fields:
            return False
        self._num_actions += 1
        kind = {5: "skip", 0: "undo"}.get(self._num_actions % 10, "label")
        kind = "label" if kind == "undo" and "answer" not in fields else kind
        start = time.perf_counter()
        # What is acknowledged is noted before the next page, during which the server may be killed.
        if kind == "undo":
            reply = self._send(kind, "/undo", {"form_key": fields["form_key"], "answer": fields["answer"]})
            if not reply["note"]:  # else it was taken back before a crash, without our knowing
                self.acknowledged_undos.append(int(fields["answer"]))
        else:
            label = {"choice": random.choice(("left", "right", "tie")), "strength": "2"} if kind == "label" else {}
            form = {"form_key": fields["form_key"], "token": fields["token"], "kind": kind, "seconds": "1"}
            self._send(kind, "/answer", form | label)
            self.acknowledged.append((fields["token"], kind))
        self._look()
        if kind == "label":
            self.round_trip_ms.append(1000 * (time.perf_counter() - start))
        return True

    def _send(self, kind: str, path: str, form: dict[str, str]) -> dict[str, str]:
        """Send a form, and return the reply."""
        start = time.perf_counter()
        reply = self._client.post(path, data=form, headers={"Accept": "application/json"})
        reply.raise_for_status()
        self.save_ms[kind].append(1000 * (time.perf_counter() - start))
        return reply.json()

    def _look(self) -> None:
        """Get the next task's page."""
        self._page = ""
        self._page = self._client.get("/").raise_for_status().text

    def work(self, num_labels: int) -> None:
        while len(self.round_trip_ms) < num_labels and self.act():
            pass

    def work_through_crashes(self, stop: threading.Event) -> None:
        """Work until told to stop; ask again for the page while the server is away."""
        while not stop.is_set():
            try:
                if not self.act():
                    return
            except httpx.TransportError:  # not a refusal, which ends the work
                self._page = ""
                time.sleep(0.02)


def measure(annotators: list[Annotator], num_labels: int) -> dict[str, float | None]:
    for annotator in annotators:
        annotator.join()
    threads = [threading.Thread(target=annotator.work, args=(num_labels,)) for annotator in annotators]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - start
    save, skip, undo = (
        np.concatenate([annotator.save_ms[kind] for annotator in annotators]) for kind in ("label", "skip", "undo")
    )
    round_trip = np.concatenate([annotator.round_trip_ms for annotator in annotators])
    return {
        "labels": len(save),
        "labels_per_s": len(save) / passed,
        "save_median_ms": float(np.median(save)),
        "save_p95_ms": float(np.percentile(save, 95)),
        "round_trip_median_ms": float(np.median(round_trip)),
        "round_trip_p95_ms": float(np.percentile(round_trip, 95)),
        "skips": len(skip),
        "undos": len(undo),
        "undo_median_ms": float(np.median(undo)) if len(undo) else None,
    }


def crash(server: ServerProcess, annotators: list[Annotator], num_kills: int, seed: int) -> None:
    """Kill the server at random moments while annotators work, who go on after the last start.

    Raises RuntimeError if somebody does not.
    """
    rng, stop = random.Random(seed), threading.Event()
    with ThreadPoolExecutor(len(annotators)) as pool:
        ends = [pool.submit(annotator.work_through_crashes, stop) for annotator in annotators]
        try:
            for kill in range(num_kills):
                time.sleep(rng.uniform(0.05, 0.6))
                server.stop(signal.SIGKILL)
                server.start()
                print(f"\rkilled {kill + 1} times", end="", file=sys.stderr, flush=True)
            counts = [annotator.num_acknowledged for annotator in annotators]
            deadline = time.monotonic() + GO_ON_SECONDS
            while any(annotator.num_acknowledged == count for annotator, count in zip(annotators, counts, strict=True)):
                if time.monotonic() > deadline or any(end.done() for end in ends):
                    break
                time.sleep(0.02)
        finally:
            stop.set()
    for end in ends:
        end.result()  # raises what ended an annotator's work
    if any(annotator.num_acknowledged == count for annotator, count in zip(annotators, counts, strict=True)):
        raise RuntimeError("an annotator did nothing after the last kill: give more --tasks, or look at the server")
    print(file=sys.stderr)


def count_losses(labels: Path, annotators: list[Annotator]) -> dict[str, int]:
    """Compare what was acknowledged with what is in the file."""
    with contextlib.closing(Store(labels)) as store:
        events = list(store.events())
        standing = Counter((label.annotator, label.task_id) for label in read_labels(store).labels)
    in_file = {(event.token, event.kind) for event in events}
    undone = {event.target for event in events if event.kind == "undo"}
    acknowledged = [answer for annotator in annotators for answer in annotator.acknowledged]
    acknowledged_undos = [answer for annotator in annotators for answer in annotator.acknowledged_undos]
    kinds = Counter(kind for _, kind in acknowledged)
    return {
        "acknowledged": kinds["label"],
        "acknowledged_skips": kinds["skip"],
        "acknowledged_undos": len(acknowledged_undos),
        "in_file": sum(event.kind == "label" for event in events),
        "lost": sum(answer not in in_file for answer in acknowledged),
        "lost_undos": sum(answer not in undone for answer in acknowledged_undos),
        "doubled": sum(count > 1 for count in standing.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--annotators", type=int, default=8)
    parser.add_argument("--labels", type=int, default=200, help="labels of each annotator that are timed")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.db"
        server = ServerProcess(write_tasks(Path(folder), args.tasks), labels)
        start = time.perf_counter()
        server.start()
        result: dict[str, float | None] = {"start_s": time.perf_counter() - start}
        annotators = [Annotator(server.url, f"annotator {number}") for number in range(args.annotators)]
        try:
            result |= measure(annotators, args.labels)
            if args.kills:
                crash(server, annotators, args.kills, args.seed)
        finally:
            server.stop()
        result |= count_losses(labels, annotators) | {"kills": args.kills}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
