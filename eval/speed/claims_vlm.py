"""Claims a second that a model is asked about, all claims of a picture on one prompt, against a prompt for each claim.

    python eval/speed/claims_vlm.py [--shape llava-10m|CHECKPOINT] [--pictures 4] [--claims 8] [--rounds 3] [--seeds 1] [--out DIR]

Random weights in a shape of phases.py; all of them but the toy show 576 tokens a picture. Picture features are cached in both ways. fp32; the
process's own time on CPUs. Log-odds are compared. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from phases import LLAVAS, build, rows

from mmrlhf.claims import lexicon
from mmrlhf.files import write_whole
from mmrlhf.records import Claim
from mmrlhf.roles import Adapters, Role
from mmrlhf.verify import Said
from mmrlhf.verify.asking import Asking


def measure(given: argparse.Namespace, seed: int) -> dict[str, object]:
    torch.manual_seed(seed)
    asking = Asking(Role(Adapters(build(given.shape, "cpu", torch.float32)), None), lexicon())
    nouns = sorted(set(lexicon().category.values()))
    side = LLAVAS[given.shape][0] if given.shape in LLAVAS else 336
    claims = tuple(Claim("object", nouns[(7 * i) % len(nouns)]) for i in range(given.claims))
    shared = [Said(row.images, (), claims) for row in rows(given.pictures, side, 1000 * seed)]
    ways = {"shared": shared, "apart": [replace(s, claims=(c,)) for s in shared for c in s.claims]}
    found = {
        name: [x for odds in asking.log_odds(said) for x in odds] for name, said in ways.items()
    }  # warm-up, and the same numbers
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, said in ways.items():
            began = time.process_time()
            asking.log_odds(said)
            seconds[name].append(time.process_time() - began)
    number = given.pictures * given.claims
    rate = {name: number / statistics.median(times) for name, times in seconds.items()}
    print(
        f"shared {rate['shared']:.1f}, apart {rate['apart']:.1f} claims a second: {rate['shared'] / rate['apart']:.2f} x",
        flush=True,
    )
    gap = max(abs(a - b) for a, b in zip(found["shared"], found["apart"], strict=True))
    return {
        "seed": seed,
        "claims_per_s": rate,
        "speedup": rate["shared"] / rate["apart"],
        "largest_difference": gap,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llava-10m")
    for name, default in (("pictures", 4), ("claims", 8), ("rounds", 3), ("seeds", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", metavar="DIR", help="keeps each seed's figures, which are then not measured again")
    given = parser.parse_args()
    found = []
    for seed in range(given.seeds):
        kept = Path(given.out) / f"claims_vlm-{given.shape.replace('/', '_')}-{seed}.json" if given.out else None
        if kept is not None and kept.exists():
            found.append(json.loads(kept.read_text()))
            continue
        found.append(measure(given, seed))
        if kept is not None:
            write_whole(kept, json.dumps(found[-1]))
    speedup = statistics.median(float(str(f["speedup"])) for f in found)
    print(json.dumps({"shape": given.shape, "claims": given.claims, "speedup": speedup, "seeds": found}))


if __name__ == "__main__":
    main()
