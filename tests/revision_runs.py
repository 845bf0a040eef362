"""What a comparison of two revisions runs: the commands, tiny and seeded, on the CPU in float32.

    python -m tests.revision_runs OUT_DIR

Start it in the root of a revision. It uses that revision's own names, so a change that renames
something edits this file as well. `tests/compare_revisions.py` runs it in two revisions and
compares what they wrote: JSON, JSONL, YAML, parquet, safetensors and text. What a command prints
is kept only where printing is all it does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from safetensors.torch import save_file

from mmrlhf import scenes
from mmrlhf.claims import extract_claims
from mmrlhf.cli import main
from mmrlhf.datasets import FORMATS, read_examples
from mmrlhf.engine import naive
from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.records import Fact
from mmrlhf.rewards.best_of_n import best_of_n
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.verifiers import verify_against_facts
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from tests.helpers import fake_data, tiny_clip
from tests.helpers.family_setup import FamilySetup, engine_run, naive_run
from tests.helpers.tiny_models import FAMILIES

BASE = "data/tiny_vlm"
SAMPLES = Path("data/samples")
PREFERENCES = (
    "trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json", "rlhf_v.parquet",
    "rlaif_v.jsonl", "mm_rlhf.jsonl", "vlfeedback.jsonl", "rankings.jsonl",
)  # fmt: skip
WORDS = "mmrlhf/scenes/lexicon.txt"
SCENES = 12
RULED = ("hallusionbench", "haloquest", "object_halbench")
"""Benchmarks whose judge may be rules; where only a model could judge, nothing does."""
KNOWN = (
    Fact("object", "brown dog"), Fact("count", "two people"), Fact("absent", "cat"), Fact("absent", "umbrella"),
    Fact("attribute", "red car"), Fact("relation", "dog on couch"), Fact("qa", "Is there a horse? No."),
)  # fmt: skip
"""Beside these, each sentence is judged by the sentence before it, as a caption of its picture."""


# ---- helpers -------------------------------------------------------------------------------------


def run(*words: str, may_refuse: bool = False, **fields: Any) -> int:
    """Run one command, its settings given as fields, and return its exit code."""
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    code = main([*words, *flags])
    if code and not may_refuse:
        raise SystemExit(f"mmrlhf {' '.join([*words, *flags])} gave exit code {code}")
    return code


def printed(*words: str, **fields: Any) -> list[str]:
    """Return a command's exit code and the lines it prints, without clocks and memory sizes."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        code = run(*words, may_refuse=True, **fields)
    lines = [line.rstrip() for line in said.getvalue().splitlines() if " gone, " not in line and " elapsed, " not in line]
    return [f"exit code {code}", *(re.sub(r"has [\d.]+ GiB", "has SOME GiB", line) for line in lines)]


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, with the folder it belongs to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors by name, each in memory of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def shared() -> Path | None:
    """Find the test data that is not part of the project, where the tests find it."""
    path = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[2] / "shared"))
    return path.resolve() if path.is_dir() else None


def first_word(samples: Sequence[Any]) -> list[list[tuple[int, int, float]]]:
    """Pay for an answer's first word: a term of the reward from a file, on a span of characters."""
    return [[(0, len(sample.answer.split()[0]), 1.0)] if sample.answer.split() else [] for sample in samples]


# ---- training ------------------------------------------------------------------------------------


def train(out: Path, stage: str, name: str, **fields: Any) -> None:
    """Run a training stage for a few steps on the world's base and its scenes."""
    common = {"model_name_or_path": BASE, "output_dir": out / name, "per_device_train_batch_size": 4, "lora_r": 4,
              "max_steps": 3, "learning_rate": 2e-3, "logging_steps": 1}  # fmt: skip
    run(stage, **{**common, **fields})


def run_sft(out: Path) -> None:
    """Fine-tune an adapter on scenes, and the whole language model on the sample rows."""
    train(out, "sft", "sft", dataset_name=out / "scenes/sft.jsonl", warmup_steps=1)
    train(out, "sft", "sft_full", dataset_name=SAMPLES / "sft.jsonl", tuning="full", max_steps=1)


def run_reward(out: Path) -> None:
    """Train reward models: damaged facts and planted claims, late facts, other losses."""
    pairs = out / "scenes/pairs.jsonl"
    damaged = {"fact_dropout": 0.4, "fact_noise": 0.3, "injected_claim_rate": 0.5}
    train(out, "reward", "reward", dataset_name=pairs, eval_dataset_name=pairs, max_steps=3, **damaged)
    train(out, "reward", "reward_after", dataset_name=pairs, facts_position="after", head_init="random",
          loss_type="bt_label_smoothing", facts_template="captions", max_facts_tokens=24)  # fmt: skip
    facts = {"facts_file": SAMPLES / "facts.jsonl", "max_steps": 1}
    train(out, "reward", "reward_margin", dataset_name=SAMPLES / "vlfeedback.jsonl", loss_type="bt_margin", facts="none", **facts)
    train(out, "reward", "reward_ties", dataset_name=SAMPLES / "rankings.jsonl", loss_type="rao_kupper", tuning="full", **facts)


def run_ppo(out: Path) -> None:
    """Train policies: with a critic and spans, with claims judged by models, without a critic."""
    prompts = {
        "dataset_name": out / "scenes/doubted.jsonl",
        "min_probe_detection_rate": 0,
        "num_generations": 2,
        "response_length": 24,
    }
    spans = f"{Path(__file__).relative_to(Path.cwd())}:first_word=0.2"
    terms = f"fact_rm=1, hallucination=-0.5, coverage=0.3, missing_eos=-1, length=-0.2, repetition=-1, {spans}"
    train(out, "ppo", "ppo", reward_model_path=out / "reward", reward_terms=terms, critic_sees_facts="true",
          whiten_rewards="true", monitor_verifiers="vlm", **prompts)  # fmt: skip
    train(out, "ppo", "ppo_ensemble", reward_model_path=f"{out / 'reward'},{out / 'reward_after'}", uncertainty_penalty=0.5,
          reward_terms="fact_rm=1, verifier_score=0.5, hallucination@facts+clip=-1, coverage@vlm=0.1", span_credit="last_token", max_steps=1,
          clip_model=out / "clip", vlm_calibration=out / "calibrate/vlm.json", **prompts)  # fmt: skip
    train(out, "ppo", "grpo", reward_model_path=out / "reward", advantage_estimator="grpo", min_new_tokens=2,
          reward_terms="fact_rm=1, hallucination=-1, missing_eos=-1", **{**prompts, "num_generations": 3})  # fmt: skip
    train(out, "ppo", "grpo_plain", advantage_estimator="grpo", share_prefix="off", max_steps=1, reward_terms="correctness=1, length=1",
          **{**prompts, "dataset_name": SAMPLES / "llava_rlhf_ppo.json"})  # fmt: skip


# ---- models asked --------------------------------------------------------------------------------


def run_generate(out: Path) -> None:
    """Sample several answers under the policy, and say one greedily without it."""
    common = {"model_name_or_path": BASE, "dataset_name": out / "scenes/prompts.jsonl", "response_length": 24}
    run("generate", **common, output_file=out / "generate/sampled.jsonl", adapter_path=out / "ppo/policy", temperature=1.0,
        top_p=0.9, top_k=40, num_generations=3, min_new_tokens=3, seed=7)  # fmt: skip
    run("generate", **common, output_file=out / "generate/greedy.jsonl", stop=".", batch_size=3)


def run_score(out: Path) -> None:
    """Score answers and pairs, measure the reward model, and choose the best of several answers."""
    model = {"reward_model_path": out / "reward"}
    scenes = {"image_folder": out / "scenes"}
    run("score", **model, **scenes, dataset_name=out / "generate/sampled.jsonl", output_file=out / "score/answers.jsonl")
    run("score", **model, **scenes, dataset_name=out / "scenes/pairs.jsonl", output_file=out / "score/pairs.jsonl")
    run("reward-eval", **model, dataset_name=out / "scenes/pairs.jsonl", output_dir=out / "reward_bench")
    run("reward-eval", reward_model_path=out / "reward_after", dataset_name=SAMPLES / "rankings.jsonl",
        facts_file=SAMPLES / "facts.jsonl", output_dir=out / "reward_bench_rankings")  # fmt: skip
    judge = load_reward_model(str(out / "reward"))
    rows = read_examples(str(out / "scenes/prompts.jsonl"))[:3]
    best = best_of_n(judge.role.vlm, judge, rows, 3, batch_size=3, response_length=16, seed=0)
    write_json(out / "score/best_of_n.json", [[example.id, text] for example, text in best])


def run_calibrate(out: Path) -> None:
    """Calibrate the base as a judge of claims; a random open_clip gets its numbers by hand."""
    rows = []
    for index in range(16):
        drawn = scenes.generate_scene("selection", index, 0)
        fake_data.write_image(out / f"calibrate/{index}.png", index)
        there = {thing.shape for thing in drawn.objects}
        facts = [{"kind": "object" if shape in there else "absent", "text": shape} for shape in scenes.vocabulary.SHAPES]
        rows.append({"image": f"{index}.png", "prompt": "?", "facts": facts})
    data = fake_data.write_jsonl(out / "calibrate/rows.jsonl", rows)
    common = {"dataset_name": data, "claim_source": "facts", "held_out": 0.4, "lexicon_file": WORDS}
    run("calibrate", "vlm", **common, model_name_or_path=BASE, output_file=out / "calibrate/vlm.json")
    tiny_clip.save_tiny_clip(out / "clip")
    refused = printed("calibrate", "clip", **common, clip_model=out / "clip", output_file=out / "calibrate/clip.json")
    write_json(out / "calibrate/clip_refused.json", refused)
    by_hand = PlattScaling({"object": (1.0, 0.0), "attribute": (1.0, 0.0)})
    save_calibration(by_hand, out / "clip/calibration.json", nouns=["ring", "star", "moon"])


def run_families(out: Path) -> None:
    """Dump what each model family says of fixed rows, with shared prompts and without."""
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            fixture = FamilySetup(family, Path(directory))
            tensors = paths_of(fixture)
            prompts = prompts_from_examples(fixture.vlm, fixture.examples)
            sampled = sample_completions(fixture.vlm, prompts, 2, SamplingParams(10, 0.8, 0.95, seed=3))
        tensors |= {"sampled/ids": sampled.token_ids_NT, "sampled/mask": sampled.mask_NT, "sampled/log_probs": sampled.logps_NT,
                    "sampled/entropy": sampled.entropy_NT, "sampled/ended": sampled.finished_N}  # fmt: skip
        write_tensors(out / f"families/{family}.safetensors", tensors)
        write_json(out / f"families/{family}.json", {"texts": sampled.texts, "share_prefix": fixture.vlm.engine.share_prefix})


def paths_of(fixture: FamilySetup) -> dict[str, torch.Tensor]:
    """Return log-probs, values, gradients and hidden states of both paths."""
    found: dict[str, torch.Tensor] = {}
    for name, tokens in (("shared", 100_000), ("shared_small", 1)):
        log_probs, values, gradients = engine_run(fixture, tokens)
        found |= {f"{name}/log_probs": log_probs, f"{name}/values": values}
        found |= {f"{name}/gradients/{key}": gradient for key, gradient in gradients.items()}
    log_probs, values, gradients = naive_run(fixture)
    found |= {f"naive/log_probs/{i}": tensor for i, tensor in enumerate(log_probs)}
    found |= {f"naive/values/{i}": tensor for i, tensor in enumerate(values)}
    found |= {f"naive/gradients/{key}": gradient for key, gradient in gradients.items()}
    given = fixture.completions()
    with torch.no_grad(), fixture.adapters.use("value"):
        found["shared/hidden"] = prefill(fixture.vlm, given.prompts).extend(
            given.prompt_index_N, given.token_ids_NT, given.mask_NT
        )
        rows = given.prompt_index_N.tolist()
        found["plain/hidden"] = naive.hidden_states(fixture.vlm, given.prompts, rows, given.token_ids_NT, given.mask_NT)
    return found


# ---- claims and data -----------------------------------------------------------------------------


def run_claims(out: Path) -> None:
    """Extract the claims of the sentences that the tests hold, and judge them by facts."""
    for name in ("tuned", "fresh", "held_out"):
        path = Path(f"tests/claims/claims_{name}.jsonl")
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        run("claims", str(path), out=out / f"claims/{name}.jsonl")
        found = [extract_claims(text) for text in texts]
        write_json(out / f"claims/{name}_fields.json", [[asdict(claim) for claim in of_one] for of_one in found])
        before = ["A dog and two cats on a red couch.", *texts]
        verdicts = [
            [asdict(verdict) for verdict in verify_against_facts(of_one, [*KNOWN, Fact("caption", caption)])]
            for of_one, caption in zip(found, before, strict=False)
        ]
        write_json(out / f"claims/{name}_verdicts.json", verdicts)
    rows = [json.dumps({"text": fact["captions"][0] + " A cat and three dogs.", "image": fact["image"]})
            for fact in map(json.loads, (SAMPLES / "facts.jsonl").read_text(encoding="utf-8").splitlines())]  # fmt: skip
    (out / "claims/samples.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run("claims", str(out / "claims/samples.txt"), facts=SAMPLES / "facts.jsonl", out=out / "claims/samples.jsonl")


def run_data(out: Path) -> None:
    """Convert, count and check every sample; formats that have no place for its rows are named."""
    facts = {"facts_file": SAMPLES / "facts.jsonl"}
    codes = {}
    for name in PREFERENCES:
        for to in FORMATS:
            for suffix in ("jsonl", "parquet"):
                file = out / f"convert/{name}/{to}.{suffix}"
                codes[f"{name} as {to}"] = run(
                    "data", "convert", str(SAMPLES / name), may_refuse=True, to=to, output_file=file, **facts
                )
    write_json(out / "convert/exit_codes.json", codes)
    run(
        "data",
        "convert",
        str(out / "scenes/pairs.jsonl"),
        "--balance_lengths",
        to="trl",
        output_file=out / "convert/balanced.jsonl",
    )
    checked = {}
    for name in (*PREFERENCES, "sft.jsonl", "llava_rlhf_ppo.json"):
        run("data", "stats", str(SAMPLES / name), **facts, output_dir=out / f"stats/{name}")
        checked[name] = printed("data", "check", str(SAMPLES / name), **facts)
    write_json(out / "check.json", checked)
    stages = {"sft": {}, "reward": {}, "ppo": {"num_generations": 8}}
    write_json(
        out / "plan.json", {stage: printed("plan", stage, model_name_or_path=BASE, **how) for stage, how in stages.items()}
    )


def run_scenes(out: Path) -> None:
    """Draw the scenes that the other parts read; half of the prompts get facts that deny all."""
    run("data", "scenes", output_dir=out / "scenes", rows=SCENES)
    rows = [json.loads(line) for line in (out / "scenes/prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    nothing = [{"kind": "absent", "text": shape} for shape in scenes.vocabulary.SHAPES]
    fake_data.write_jsonl(
        out / "scenes/doubted.jsonl", [row | {"facts": nothing} if i % 2 else row for i, row in enumerate(rows)]
    )


# ---- benchmarks ----------------------------------------------------------------------------------


def run_eval(out: Path) -> None:
    """Ask the base about made-up data of each benchmark, and compare two runs on scenes."""
    common = {"model_name_or_path": BASE, "response_length": 16, "batch_size": 8}
    for seed in (0, 1):
        run(
            "eval",
            "scenes",
            **common,
            limit=6,
            temperature=1.0,
            num_generations=2,
            seed=seed,
            output_dir=out / f"eval/scenes_{seed}",
        )
    run("compare", str(out / "eval/scenes_0"), str(out / "eval/scenes_1"), "--force", out=out / "eval/compare")
    codes = {}
    for name, make in fake_data.DATASET_WRITERS.items():
        (data := out / f"made_up/{name}").mkdir(parents=True)
        how = {**common, **make(data), "output_dir": out / f"eval/{name}", **({"judge": "rules"} if name in RULED else {})}
        codes[name] = run("eval", name, may_refuse=True, **how)
    write_json(out / "eval/exit_codes.json", codes)


def parity_cases(place: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the answers of which official figures are known: benchmark and settings by name."""
    parity, data = place / "parity", place / "benchdata"
    cases: dict[str, tuple[str, dict[str, Any]]] = {}
    chair, captions = parity / "CHAIR/synthetic", data / "CHAIR"
    amber = parity / "AMBER/discriminative_exact/input.json"
    cases["amber"] = ("amber", {"answers": amber, "data": data / "AMBER"})
    for lineage in ("a", "b"):
        known = {"data": chair / "annotations", "lineage": lineage}
        cases[f"chair_{lineage}"] = ("chair", {"answers": chair / "input.jsonl", **known})
        cases[f"chair_{lineage}_real"] = ("chair", {"answers": captions / "opera_captions/minigpt4_greedy.jsonl", "lineage": lineage,
                                                    "data": captions / "coco_gt_objects_opera_lessismore.json"})  # fmt: skip
    cases["chair_unknown"] = (
        "chair",
        {"answers": chair / "input_unknown_image.jsonl", "data": chair / "annotations", "lineage": "a"},
    )
    for case in ("adversarial_clean", "adversarial_odd", "degenerate_all_no", "degenerate_shorter_than_labels"):
        split = "popular" if case.startswith("degenerate") else "adversarial"
        file = data / f"POPE/coco_pope_{split}.json"
        cases[f"pope_{case}"] = ("pope", {"answers": parity / f"POPE/{case}/input.jsonl", "data": file})
    mix = parity / "HallusionBench/mix"
    for judgments in ("judge_log", "official_verdicts"):
        cases[f"hallusionbench_{judgments}"] = ("hallusionbench", {
            "answers": mix / "input.jsonl", "recorded_judgments": mix / f"{judgments}.jsonl",
            "data": data / "HallusionBench/HallusionBench.json"})  # fmt: skip
    cases["mme"] = ("mme", {"answers": data / "MME/LaVIN_answers"})
    cases["llava_bench"] = ("llava_bench", {"answers": parity / "LLaVABench/input_review.jsonl"})
    cases["vl_rewardbench"] = ("vl_rewardbench", {"answers": parity / "VLRewardBench/input.jsonl"})
    cases["dash_b"] = ("dash_b", {"answers": data / "DASH-B/Paligemma-3b_answers.json"})
    cases["multimodal_rewardbench"] = ("multimodal_rewardbench", {"answers": data / "MultimodalRewardBench/example.jsonl"})
    return cases


def run_parity(out: Path) -> None:
    """Score the answers of which official figures are known, where that test data lies."""
    if (place := shared()) is None:
        print("note: the parity cases are left out: they need the shared test data (MMRLHF_SHARED)")
        return
    os.environ["NLTK_DATA"] = str(place / "nltk_data")
    for name, (benchmark, settings) in parity_cases(place).items():
        run("eval", benchmark, **settings, output_dir=out / f"parity/{name}")


PARTS: tuple[Callable[[Path], None], ...] = (
    run_scenes, run_claims, run_data, run_families, run_calibrate, run_sft, run_reward, run_ppo, run_generate, run_score, run_eval,
    run_parity,
)  # fmt: skip
"""In this order: later parts read what earlier ones wrote."""


def run_all(out: Path) -> None:
    """Run every part, and say how long each took."""
    torch.set_num_threads(1)
    for part in PARTS:
        began = time.monotonic()
        part(out)
        print(f"{part.__name__}: {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]).resolve())
