"""Run every command, tiny and seeded, on the CPU in float32, to compare two revisions.

    python -m tests.revision_runs OUT_DIR

Must be started in the root of a revision. It uses that revision's own names: change this file
together with any name in it. `tests/compare_revisions.py` runs it in two revisions and compares the
files they write (JSON, JSONL, YAML, parquet, safetensors and text). Printed output is saved only
for commands that write no files.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
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
from mmrlhf.datasets import FORMATS
from mmrlhf.engine import naive
from mmrlhf.engine.prefill import prefill
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.records import Fact
from mmrlhf.verifiers import verify_against_facts
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from tests.helpers import fake_data, tiny_clip
from tests.helpers.family_setup import FamilySetup, engine_run, naive_run
from tests.helpers.tiny_models import FAMILIES

BASE_MODEL = "data/tiny_vlm"
SAMPLES = Path("data/samples")
PREFERENCE_FILES = (
    "trl_preference.jsonl", "trl_preference.parquet", "llava_rlhf_preference.json", "rlhf_v.parquet",
    "rlaif_v.jsonl", "mm_rlhf.jsonl", "vlfeedback.jsonl", "rankings.jsonl",
)  # fmt: skip
SCENES_LEXICON = "mmrlhf/scenes/lexicon.txt"
NUM_SCENES = 12
RULE_JUDGED_BENCHMARKS = ("hallusionbench", "haloquest", "object_halbench")
"""Benchmarks that rules can judge. Those that need a model as a judge run without one."""
COMMON_FACTS = (
    Fact("object", "brown dog"), Fact("count", "two people"), Fact("absent", "cat"), Fact("absent", "umbrella"),
    Fact("attribute", "red car"), Fact("relation", "dog on couch"), Fact("qa", "Is there a horse? No."),
)  # fmt: skip
"""Facts for every sentence; its other fact is the sentence before it, as a caption."""


# ---- helpers -------------------------------------------------------------------------------------


def run(*arguments: str, may_fail: bool = False, **settings: Any) -> int:
    """Run an mmrlhf command and return its exit code.

    `settings` become flags: `seed=7` is `--seed 7`. Exits if the command fails, unless `may_fail`.
    """
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    code = main([*arguments, *flags])
    if code and not may_fail:
        raise SystemExit(f"mmrlhf {' '.join([*arguments, *flags])} failed with exit code {code}")
    return code


def run_captured(*arguments: str, **settings: Any) -> list[str]:
    """Return a command's exit code and the lines it prints, without times and memory sizes."""
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
        code = run(*arguments, may_fail=True, **settings)
    # `gone` was the word for elapsed time in older revisions.
    lines = [line.rstrip() for line in output.getvalue().splitlines() if " gone, " not in line and " elapsed, " not in line]
    return [f"exit code {code}", *(re.sub(r"has [\d.]+ GiB", "has SOME GiB", line) for line in lines)]


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors by name; creates the folder. Copies them, as safetensors allows no sharing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path)


def find_shared_data() -> Path | None:
    """Return the folder of test data outside the repository, found as the tests find it."""
    path = Path(os.environ.get("MMRLHF_SHARED", Path(__file__).parents[2] / "shared"))
    return path.resolve() if path.is_dir() else None


def first_word(samples: Sequence[Any]) -> list[list[tuple[int, int, float]]]:
    """Reward the first word of each answer: a custom reward function on spans of characters."""
    return [[(0, len(sample.answer.split()[0]), 1.0)] if sample.answer.split() else [] for sample in samples]


# ---- training ------------------------------------------------------------------------------------


def train(out: Path, stage: str, name: str, **settings: Any) -> None:
    """Run a training stage for a few steps, by default on the tiny base model."""
    defaults = {"model_name_or_path": BASE_MODEL, "output_dir": out / name, "per_device_train_batch_size": 4, "lora_r": 4,
                "max_steps": 3, "learning_rate": 2e-3, "logging_steps": 1}  # fmt: skip
    run(stage, **{**defaults, **settings})


def run_sft(out: Path) -> None:
    """Fine-tune an adapter on scenes, and the full language model on the sample rows."""
    train(out, "sft", "sft", dataset_name=out / "scenes/sft.jsonl", warmup_steps=1)
    train(out, "sft", "sft_full", dataset_name=SAMPLES / "sft.jsonl", tuning="full", max_steps=1)


def run_reward(out: Path) -> None:
    """Train reward models: noisy facts with injected claims, facts after the answer, all losses."""
    pairs = out / "scenes/pairs.jsonl"
    noise = {"fact_dropout": 0.4, "fact_noise": 0.3, "injected_claim_rate": 0.5}
    train(out, "reward", "reward", dataset_name=pairs, eval_dataset_name=pairs, max_steps=3, **noise)
    train(out, "reward", "reward_after", dataset_name=pairs, facts_position="after", head_init="random",
          loss_type="bt_label_smoothing", facts_template="captions", max_facts_tokens=24)  # fmt: skip
    facts = {"facts_file": SAMPLES / "facts.jsonl", "max_steps": 1}
    train(out, "reward", "reward_margin", dataset_name=SAMPLES / "vlfeedback.jsonl", loss_type="bt_margin", facts="none", **facts)
    train(out, "reward", "reward_ties", dataset_name=SAMPLES / "rankings.jsonl", loss_type="rao_kupper", tuning="full", **facts)


def run_ppo(out: Path) -> None:
    """Train policies: with a critic and span rewards, with models as verifiers, with GRPO."""
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


# ---- inference -----------------------------------------------------------------------------------


def run_generate(out: Path) -> None:
    """Sample several answers with the policy's adapter, and decode greedily without it."""
    common = {"model_name_or_path": BASE_MODEL, "dataset_name": out / "scenes/prompts.jsonl", "response_length": 24}
    run("generate", **common, output_file=out / "generate/sampled.jsonl", adapter_path=out / "ppo/policy", temperature=1.0,
        top_p=0.9, top_k=40, num_generations=3, min_new_tokens=3, seed=7)  # fmt: skip
    run("generate", **common, output_file=out / "generate/greedy.jsonl", stop=".", batch_size=3)


def run_score(out: Path) -> None:
    """Score answers and pairs, evaluate the reward models, and choose the best of three answers."""
    model = {"reward_model_path": out / "reward"}
    scenes = {"image_folder": out / "scenes"}
    run("score", **model, **scenes, dataset_name=out / "generate/sampled.jsonl", output_file=out / "score/answers.jsonl")
    run("score", **model, **scenes, dataset_name=out / "scenes/pairs.jsonl", output_file=out / "score/pairs.jsonl")
    run("reward-eval", **model, dataset_name=out / "scenes/pairs.jsonl", output_dir=out / "reward_bench")
    run("reward-eval", reward_model_path=out / "reward_after", dataset_name=SAMPLES / "rankings.jsonl",
        facts_file=SAMPLES / "facts.jsonl", output_dir=out / "reward_bench_rankings")  # fmt: skip
    run("generate", model_name_or_path=BASE_MODEL, **model, dataset_name=out / "scenes/prompts.jsonl", num_generations=3,
        output_file=out / "score/best_of_n.jsonl", temperature=1.0, response_length=16, seed=0)  # fmt: skip


def run_calibrate(out: Path) -> None:
    """Calibrate the base model as a verifier; a random open_clip gets a calibration by hand."""
    rows = []
    for index in range(16):
        scene = scenes.generate_scene("selection", index, 0)
        # An arbitrary image: calibration does not need it to show the scene.
        fake_data.write_image(out / f"calibrate/{index}.png", index)
        present_shapes = {thing.shape for thing in scene.objects}
        facts = [{"kind": "object" if shape in present_shapes else "absent", "text": shape} for shape in scenes.vocabulary.SHAPES]
        rows.append({"image": f"{index}.png", "prompt": "?", "facts": facts})
    data = fake_data.write_jsonl(out / "calibrate/rows.jsonl", rows)
    common = {"dataset_name": data, "claim_source": "facts", "held_out": 0.4, "lexicon_file": SCENES_LEXICON}
    run("calibrate", "vlm", **common, model_name_or_path=BASE_MODEL, output_file=out / "calibrate/vlm.json")
    tiny_clip.save_tiny_clip(out / "clip")
    # Random weights rarely give a usable calibration: the output is saved even if this fails.
    refusal = run_captured("calibrate", "clip", **common, clip_model=out / "clip", output_file=out / "calibrate/clip.json")
    write_json(out / "calibrate/clip_refused.json", refusal)
    calibration = PlattScaling({"object": (1.0, 0.0), "attribute": (1.0, 0.0)})
    save_calibration(calibration, out / "clip/calibration.json", nouns=["ring", "star", "moon"])


def run_families(out: Path) -> None:
    """Save each model family's outputs for fixed rows, with and without prefix sharing."""
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as directory:
            fixture = FamilySetup(family, Path(directory))
            tensors = model_outputs(fixture)
            prompts = prompts_from_examples(fixture.vlm, fixture.examples)
            sampled = sample_completions(fixture.vlm, prompts, 2, SamplingParams(10, 0.8, 0.95, seed=3))
        tensors |= {"sampled/ids": sampled.token_ids_NT, "sampled/mask": sampled.mask_NT, "sampled/log_probs": sampled.logps_NT,
                    "sampled/entropy": sampled.entropy_NT, "sampled/ended": sampled.finished_N}  # fmt: skip
        write_tensors(out / f"families/{family}.safetensors", tensors)
        write_json(out / f"families/{family}.json", {"texts": sampled.texts, "share_prefix": fixture.vlm.engine.share_prefix})


def model_outputs(fixture: FamilySetup) -> dict[str, torch.Tensor]:
    """Return log-probs, values, gradients and hidden states of the engine and the naive path."""
    outputs: dict[str, torch.Tensor] = {}
    for name, micro_batch_tokens in (("shared", 100_000), ("shared_small", 1)):
        log_probs, values, gradients = engine_run(fixture, micro_batch_tokens)
        outputs |= {f"{name}/log_probs": log_probs, f"{name}/values": values}
        outputs |= {f"{name}/gradients/{key}": gradient for key, gradient in gradients.items()}
    log_probs, values, gradients = naive_run(fixture)
    outputs |= {f"naive/log_probs/{i}": tensor for i, tensor in enumerate(log_probs)}
    outputs |= {f"naive/values/{i}": tensor for i, tensor in enumerate(values)}
    outputs |= {f"naive/gradients/{key}": gradient for key, gradient in gradients.items()}
    completions = fixture.completions()
    prompts, tokens, mask = completions.prompts, completions.token_ids_NT, completions.mask_NT
    with torch.no_grad(), fixture.adapters.use("value"):
        outputs["shared/hidden"] = prefill(fixture.vlm, prompts).extend(completions.prompt_index_N, tokens, mask)
        outputs["plain/hidden"] = naive.hidden_states(fixture.vlm, prompts, completions.prompt_index_N.tolist(), tokens, mask)
    return outputs


# ---- claims and data -----------------------------------------------------------------------------


def run_claims(out: Path) -> None:
    """Extract the claims of the tests' labelled sentences, and verify them against facts."""
    for name in ("tuned", "fresh", "held_out"):
        path = Path(f"tests/claims/claims_{name}.jsonl")
        texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        run("claims", str(path), out=out / f"claims/{name}.jsonl")
        claims_per_text = [extract_claims(text) for text in texts]
        write_json(out / f"claims/{name}_fields.json", [[asdict(claim) for claim in claims] for claims in claims_per_text])
        captions = ["A dog and two cats on a red couch.", *texts[:-1]]
        verdicts = [
            [asdict(verdict) for verdict in verify_against_facts(claims, [*COMMON_FACTS, Fact("caption", caption)])]
            for claims, caption in zip(claims_per_text, captions, strict=True)
        ]
        write_json(out / f"claims/{name}_verdicts.json", verdicts)
    rows = [json.dumps({"text": fact["captions"][0] + " A cat and three dogs.", "image": fact["image"]})
            for fact in map(json.loads, (SAMPLES / "facts.jsonl").read_text(encoding="utf-8").splitlines())]  # fmt: skip
    (out / "claims/samples.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run("claims", str(out / "claims/samples.txt"), facts=SAMPLES / "facts.jsonl", out=out / "claims/samples.jsonl")


def run_data(out: Path) -> None:
    """Convert, count and check every sample file, and print the plan of each stage.

    Exit codes tell which formats cannot hold a file's rows.
    """
    facts = {"facts_file": SAMPLES / "facts.jsonl"}
    codes = {}
    for name in PREFERENCE_FILES:
        for to in FORMATS:
            for suffix in ("jsonl", "parquet"):
                file = out / f"convert/{name}/{to}.{suffix}"
                codes[f"{name} as {to}"] = run(
                    "data", "convert", str(SAMPLES / name), may_fail=True, to=to, output_file=file, **facts
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
    lines_by_file = {}
    for name in (*PREFERENCE_FILES, "sft.jsonl", "llava_rlhf_ppo.json"):
        run("data", "stats", str(SAMPLES / name), **facts, output_dir=out / f"stats/{name}")
        lines_by_file[name] = run_captured("data", "check", str(SAMPLES / name), **facts)
    write_json(out / "check.json", lines_by_file)
    stages = {"sft": {}, "reward": {}, "ppo": {"num_generations": 8}}
    plans = {stage: run_captured("plan", stage, model_name_or_path=BASE_MODEL, **settings) for stage, settings in stages.items()}
    write_json(out / "plan.json", plans)


def run_scenes(out: Path) -> None:
    """Write the scenes that later parts read, and prompts of which half deny every shape."""
    run("data", "scenes", output_dir=out / "scenes", rows=NUM_SCENES)
    rows = [json.loads(line) for line in (out / "scenes/prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    all_absent = [{"kind": "absent", "text": shape} for shape in scenes.vocabulary.SHAPES]
    fake_data.write_jsonl(
        out / "scenes/doubted.jsonl", [row | {"facts": all_absent} if i % 2 else row for i, row in enumerate(rows)]
    )


# ---- benchmarks ----------------------------------------------------------------------------------


def run_eval(out: Path) -> None:
    """Evaluate the base model on fake data of each benchmark, and compare two runs on scenes."""
    common = {"model_name_or_path": BASE_MODEL, "response_length": 16, "batch_size": 8}
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
    for name, write_dataset in fake_data.DATASET_WRITERS.items():
        data_dir = out / f"made_up/{name}"
        data_dir.mkdir(parents=True)
        settings = {**common, **write_dataset(data_dir), "output_dir": out / f"eval/{name}"}
        if name in RULE_JUDGED_BENCHMARKS:
            settings["judge"] = "rules"
        codes[name] = run("eval", name, may_fail=True, **settings)
    write_json(out / "eval/exit_codes.json", codes)


def parity_cases(shared: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return benchmark and settings, by name, of answers that official scripts have scored."""
    parity, data = shared / "parity", shared / "benchdata"
    cases: dict[str, tuple[str, dict[str, Any]]] = {}
    chair, captions = parity / "CHAIR/synthetic", data / "CHAIR"
    amber = parity / "AMBER/discriminative_exact/input.json"
    cases["amber"] = ("amber", {"answers": amber, "data": data / "AMBER"})
    for lineage in ("a", "b"):
        settings = {"data": chair / "annotations", "lineage": lineage}
        cases[f"chair_{lineage}"] = ("chair", {"answers": chair / "input.jsonl", **settings})
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
    """Score answers that official scripts have scored, if the shared test data is available."""
    shared = find_shared_data()
    if shared is None:
        print("note: skipping the parity cases, which need the shared test data (MMRLHF_SHARED)")
        return
    os.environ["NLTK_DATA"] = str(shared / "nltk_data")
    for name, (benchmark, settings) in parity_cases(shared).items():
        run("eval", benchmark, **settings, output_dir=out / f"parity/{name}")


PARTS: tuple[Callable[[Path], None], ...] = (
    run_scenes, run_claims, run_data, run_families, run_calibrate, run_sft, run_reward, run_ppo, run_generate, run_score, run_eval,
    run_parity,
)  # fmt: skip
"""The order matters: later parts read files that earlier ones write."""


def run_all(out: Path) -> None:
    """Run every part, and print its name when it is done."""
    torch.set_num_threads(1)
    for part in PARTS:
        part(out)
        print(f"{part.__name__}: done", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]).resolve())
