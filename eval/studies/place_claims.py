r"""Does a policy name fewer wrong places if the reward reads them?

    python eval/studies/claims.py --out runs/claims --seeds 4 5 6 --only places claims-sum \
        claims-alone
    python eval/studies/place_claims.py --out runs/claims --seeds 4 5 6

The policies of claims.py are trained on the same facts, which list places. The lexicon of
`claims-sum` and `claims-alone` reads no places, so a wrong one costs nothing; that of the two
`...-places` does. `claims-sum` pays as much for a right claim as a wrong one costs, `claims-alone`
a fifth. All, and the SFT model that they start from, answer requests to describe held-out scenes,
one sample at temperature 1 each, and the scene graph judges all claims, among them places such as
"a ring at the top left".
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Experiment, cached_result, format_mean, markdown_table, run_and_report, run_parallel
from facts_map import evaluation_rows

from mmrlhf import scenes
from mmrlhf.demo import data
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.evaluation.benchmark import Task, load_benchmark
from mmrlhf.models.policy import load_policy
from mmrlhf.records import Claim, Example, InputError
from mmrlhf.scenes.vocabulary import CELL_NAMES

POLICIES = ("sft", "claims-sum", "claims-sum-places", "claims-alone", "claims-alone-places")
COMPARED = (("claims-sum-places", "claims-sum"), ("claims-alone-places", "claims-alone"), ("claims-alone-places", "sft"))
SAMPLED = SamplingParams(data.RESPONSE_LENGTH, 1.0)
METRICS = ("places", "wrong_places", "wrong_share", "false_others", "claim_f1", "coverage", "mean_length")
PERCENT = ("wrong_share", "claim_f1", "coverage")


# ---- measuring -----------------------------------------------------------------------------------


def is_place(claim: Claim) -> bool:
    """Return whether a claim of the scene graph says where in the image an object is."""
    return claim.kind == "relation" and claim.value.removeprefix("at ") in CELL_NAMES


def count_places(rows: list[Example], answers: dict[str, list[str]]) -> dict[str, float]:
    """Return place claims and false claims per answer, and which share of place claims is false.

    The share is NaN if no answer names a place.
    """
    true, false, false_others = 0, 0, 0
    for row in rows:
        scene = scenes.generate_scene(row.meta["split"], row.meta["index"], load_benchmark("scenes").module.SEED)
        for text in answers[row.id]:
            verdicts = scenes.verify_answer(scene, text)
            true += sum(map(is_place, verdicts.true_claims))
            false += sum(map(is_place, verdicts.false_claims))
            false_others += sum(not is_place(claim) for claim in verdicts.false_claims)
    n = sum(len(answers[row.id]) for row in rows)
    share = false / (true + false) if true + false else float("nan")
    return {"places": (true + false) / n, "wrong_places": false / n, "wrong_share": share, "false_others": false_others / n}


def measure(experiment: Experiment, policy: str, kl_coef: float, num_scenes: int) -> dict[str, Any]:
    """Sample a policy's answers about held-out scenes of the seed, and count places.

    Raises InputError if claims.py has not trained the policy.
    """
    adapter = None
    if policy != "sft":
        run_dir = experiment.directory / f"ppo_{policy}_kl{kl_coef:g}"
        if not (run_dir / "finished.json").exists():
            raise InputError(f"{experiment.directory} has no {policy}: train it with claims.py --only {policy}")
        adapter = str(run_dir / "policy")
    rows = evaluation_rows("held_out", experiment.seed, num_scenes)
    with load_policy(experiment.sft_path, adapter) as vlm:
        answers = {e.id: texts for e, texts in generate_batches(vlm, rows, SAMPLED, batch_size=100)}
    benchmark = load_benchmark("scenes")
    (metrics,) = benchmark.module.by_split([{"id": r.id, **benchmark.score(r, answers[r.id], Task())} for r in rows]).values()
    return count_places(rows, answers) | {name: float(metrics[name]) for name in ("claim_f1", "coverage", "mean_length")}


def measure_world(kl_coef: float, num_scenes: int, experiment: Experiment) -> None:
    """Measure the policies of one seed."""
    torch.set_num_threads(1)
    for policy in POLICIES:
        compute = partial(measure, experiment, policy, kl_coef, num_scenes)
        cached_result(experiment.output_dir, f"places-{experiment.seed}-{policy}", compute)


# ---- tables --------------------------------------------------------------------------------------


def report(args: argparse.Namespace) -> None:
    """Print the policies' means over seeds, and their differences within a seed."""
    cells = {
        policy: [json.loads((args.out / "cells" / f"places-{seed}-{policy}.json").read_text()) for seed in args.seeds]
        for policy in POLICIES
    }
    rows = [(policy, *(format_mean([c[m] for c in cells[policy]], m in PERCENT) for m in METRICS)) for policy in POLICIES]
    for a, b in COMPARED:
        pairs = list(zip(cells[a], cells[b], strict=True))
        rows.append((f"{a} - {b}", *(format_mean([x[m] - y[m] for x, y in pairs], m in PERCENT, "+") for m in METRICS)))
    print(markdown_table(("policy", *METRICS), rows))
    means = {policy: {m: float(np.mean([c[m] for c in cells[policy]])) for m in METRICS} for policy in POLICIES}
    print("\n" + json.dumps({"study": "place_claims", "seeds": args.seeds, "means": means}))


# ---- command -------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of claims.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5, 6], metavar="SEED")
    parser.add_argument("--kl-coef", type=float, default=0.3, metavar="C")
    parser.add_argument("--scenes", type=int, default=1000, metavar="N", help="held-out scenes of a seed's own")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="seeds at a time, one core each")
    parser.add_argument("--analyse", action="store_true", help="run nothing, report what there is")
    args = parser.parse_args()
    experiments = [Experiment(args.out, seed) for seed in args.seeds]
    run_worlds = partial(measure_world, args.kl_coef, args.scenes)
    run_and_report(args, lambda _: run_parallel(experiments, run_worlds, args.workers), partial(report, args))


if __name__ == "__main__":
    main()
