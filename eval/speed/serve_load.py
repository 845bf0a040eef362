"""Ask `mmrlhf serve` for descriptions with many clients at once, and count what is lost.

    python eval/speed/serve_load.py [RUN] [--clients 16] [--seconds 60] [--tokens 64]

RUN is what `mmrlhf serve` takes: the bundled tiny model by default. The server is a process of its
own, the clients are threads of this one; each sends the next request when it has the answer to the
one before. The pictures are a few synthetic scenes. `lost` counts requests that got no answer with
status 200. Times are in seconds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx2
import numpy as np

from mmrlhf import scenes
from mmrlhf.files.bundled import folder

NUM_PICTURES = 8


@contextlib.contextmanager
def serve(run: str) -> Iterator[str]:
    """Start the server and yield its address; stop it as Ctrl-C does."""
    command = [sys.executable, "-m", "mmrlhf", "serve", run, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = re.search(r" at (http://[\d.:]+): ", server.stdout.readline())
        try:
            if address is None:
                raise RuntimeError("the server did not start")
            yield address[1]
        finally:
            server.send_signal(signal.SIGINT)


def request_bodies(num_tokens: int) -> list[dict[str, object]]:
    """Return a request for a description of each of a few scenes."""
    bodies = []
    for index in range(NUM_PICTURES):
        scene, rng = scenes.generate_scene("selection", index, 0), np.random.default_rng(index)
        url = "data:image/png;base64," + base64.b64encode(scene.image_source().read()).decode()
        question = {"type": "text", "text": scenes.description_question(scene, rng).text}
        content = [{"type": "image_url", "image_url": {"url": url}}, question]
        bodies.append({"messages": [{"role": "user", "content": content}], "max_tokens": num_tokens})
    return bodies


class Client:
    """Asks one question after the other, and notes how long each answer took."""

    def __init__(self, url: str, bodies: list[dict[str, object]], number: int) -> None:
        self._client = httpx2.Client(base_url=url, timeout=60, trust_env=False)
        self._bodies, self._number = bodies, number
        self.seconds: list[float] = []
        self.num_tokens = self.num_lost = 0

    def work(self, deadline: float) -> None:
        while time.perf_counter() < deadline:
            start = time.perf_counter()
            body = self._bodies[(self._number + len(self.seconds)) % len(self._bodies)]
            try:
                reply = self._client.post("/v1/chat/completions", json=body).raise_for_status()
            except httpx2.HTTPError:
                self.num_lost += 1
                continue
            self.seconds.append(time.perf_counter() - start)
            self.num_tokens += reply.json()["usage"]["completion_tokens"]


def measure(url: str, num_clients: int, seconds: float, num_tokens: int) -> dict[str, float]:
    clients = [Client(url, request_bodies(num_tokens), number) for number in range(num_clients)]
    start = time.perf_counter()
    threads = [threading.Thread(target=client.work, args=(start + seconds,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passed = time.perf_counter() - start
    times = np.concatenate([client.seconds for client in clients])
    return {
        "answers": len(times),
        "lost": sum(client.num_lost for client in clients),
        "seconds": passed,
        "tokens_per_answer": sum(client.num_tokens for client in clients) / max(1, len(times)),
        "median_s": float(np.median(times)),
        "p99_s": float(np.percentile(times, 99)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default=str(folder("data") / "tiny_vlm"))
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--tokens", type=int, default=64, help="most tokens of an answer")
    args = parser.parse_args()
    with serve(args.run) as url:
        print(json.dumps(measure(url, args.clients, args.seconds, args.tokens)))


if __name__ == "__main__":
    main()
