"""The stages together: from files to scores, on photos, and over two processes."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from mmrlhf.commands.score import score
from mmrlhf.config import GenerateConfig, PPOConfig, RewardConfig, ScoreConfig, SFTConfig
from mmrlhf.files.bundled import folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.generate import generate
from mmrlhf.models.export import merge
from mmrlhf.models.loading import load
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.sft import sft
from mmrlhf.training.memory import estimate_memory
from tests.helpers.stages import ppo_config, reward_config, save_start_adapter
from tests.helpers.tiny_models import build_checkpoint

SAMPLES = folder("data") / "samples"


def test_generate_refuses_adapter_of_another_base(tiny_vlm_path, examples, reward_dir, tmp_path):
    other = sft(SFTConfig(model_name_or_path=tiny_vlm_path, dataset_name="x", output_dir=str(tmp_path / "o"), tuning="full", max_steps=1,
                          learning_rate=1e-2, per_device_train_batch_size=2), examples)  # fmt: skip
    policy = ppo(ppo_config(tiny_vlm_path, reward_dir, tmp_path / "p", max_steps=1), examples)
    with pytest.raises(InputError, match="was trained on"):
        generate(
            GenerateConfig(
                model_name_or_path=str(other), adapter_path=str(policy), dataset_name="x", output_file=str(tmp_path / "a")
            ),
            examples,
        )
    # A reward model, however, may have its own base, because it receives images and text.
    ppo(ppo_config(str(other), reward_dir, tmp_path / "q", max_steps=1), examples)


def test_every_stage_starts_from_an_adapter(tiny_vlm_path, examples, pairs, tmp_path):
    """At a learning rate of nearly 0, what each stage writes is the adapter it started from."""
    adapters = save_start_adapter(tiny_vlm_path, tmp_path / "start")
    start = load_file(tmp_path / "start" / "adapter_model.safetensors")
    merge(adapters, "start")
    merged = adapters.vlm.model.state_dict()
    settings = {
        "model_name_or_path": tiny_vlm_path, "dataset_name": "x", "adapter_path": str(tmp_path / "start"), "max_steps": 1,
        "learning_rate": 1e-12, "per_device_train_batch_size": 2,
    }  # fmt: skip

    model_dir = sft(SFTConfig(**settings, output_dir=str(tmp_path / "sft")), examples)
    written = load(str(model_dir)).model.state_dict()
    assert max((written[name] - merged[name]).abs().max() for name in merged) < 1e-6

    reward_dir = train_reward_model(RewardConfig(**settings, output_dir=str(tmp_path / "reward")), pairs)
    for directory in (reward_dir, ppo(ppo_config(reward_model=reward_dir, model=tiny_vlm_path, output_dir=tmp_path / "ppo",
                                                 adapter_path=str(tmp_path / "start"), max_steps=2, learning_rate=1e-12), examples)):  # fmt: skip
        tensors = load_file(directory / "adapter_model.safetensors")
        assert set(tensors) == set(start) and max((tensors[k] - start[k]).abs().max() for k in start) < 1e-6
    # The reference is the base under the adapter too, so there is no KL to it.
    assert all(abs(row["objective/kl"]) < 1e-4 for row in read_jsonl(tmp_path / "ppo" / "metrics.jsonl")[1:])

    with pytest.raises(InputError, match="adapter_path is for tuning lora: merge it first"):
        sft(SFTConfig(**settings, output_dir=str(tmp_path / "full"), tuning="full"), examples)
    with pytest.raises(InputError, match="is a reward model, which scores answers"):
        sft(SFTConfig(**settings | {"adapter_path": str(reward_dir)}, output_dir=str(tmp_path / "other")), examples)
    with pytest.raises(InputError, match="was trained on"):
        sft(SFTConfig(**settings | {"model_name_or_path": str(model_dir)}, output_dir=str(tmp_path / "other")), examples)


def test_a_base_that_has_moved_is_the_same_base(tiny_vlm_path, examples, pairs, tmp_path):
    """Fingerprints are compared, not paths."""
    shutil.copytree(tiny_vlm_path, tmp_path / "base")
    reward_dir = train_reward_model(reward_config(str(tmp_path / "base"), tmp_path / "reward", max_steps=1), pairs)
    (tmp_path / "base").rename(tmp_path / "moved")
    moved = str(tmp_path / "moved")
    data, settings = tmp_path / "rows.jsonl", {"reward_model_path": str(reward_dir), "dataset_name": str(tmp_path / "rows.jsonl")}
    (tmp_path / "a.png").write_bytes(examples[0].images[0].read())
    data.write_text('{"prompt": "What is here?", "images": ["a.png"], "answer": "A star."}\n')
    with pytest.raises(InputError, match=r"if it has moved, give --base_model_name_or_path, or write its place as `base`"):
        score(ScoreConfig(**settings, output_file=str(tmp_path / "scores.jsonl")))
    score(ScoreConfig(**settings, output_file=str(tmp_path / "scores.jsonl"), base_model_name_or_path=moved))
    with pytest.raises(InputError, match="was trained on a different base"):
        build_checkpoint("llava", tmp_path / "other")
        other = {"base_model_name_or_path": str(tmp_path / "other"), "output_file": str(tmp_path / "other.jsonl")}
        score(ScoreConfig(**settings, **other))
    ppo(ppo_config(moved, reward_dir, tmp_path / "ppo", max_steps=1), examples)
    # A reward model whose own base is nowhere: loading refuses it, and the estimate does not.
    plan = estimate_memory(ppo_config(tiny_vlm_path, reward_dir, tmp_path, dtype="bfloat16"), load(moved).model)
    assert [item.num_bytes for item in plan if item.name.startswith("base of")] == [0]


def test_stages_run_from_files_to_scores(tiny_vlm_path, tmp_path):
    """Stages read data files: LLaVA-RLHF's rows, with facts in a separate file."""
    common = {
        "model_name_or_path": tiny_vlm_path,
        "image_folder": str(SAMPLES),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "lora_r": 4,
    }
    facts = str(SAMPLES / "image_to_caption.json")
    reward_dir = train_reward_model(
        RewardConfig(
            dataset_name=str(SAMPLES / "llava_rlhf_preference.json"), facts_file=facts, output_dir=str(tmp_path / "r"), **common
        )
    )
    policy = ppo(PPOConfig(dataset_name=str(SAMPLES / "llava_rlhf_ppo.json"), facts_file=facts, output_dir=str(tmp_path / "p"),
                           reward_model_path=str(reward_dir), num_generations=2, response_length=8, **common))  # fmt: skip
    out = generate(GenerateConfig(model_name_or_path=tiny_vlm_path, adapter_path=str(policy), dataset_name=str(SAMPLES / "llava_rlhf_ppo.json"),
                                  image_folder=str(SAMPLES), output_file=str(tmp_path / "answers.jsonl"), response_length=8))  # fmt: skip
    rows = read_jsonl(out)
    assert rows and all(r["answer"] and r["images"] for r in rows)
    scores = read_jsonl(score(ScoreConfig(reward_model_path=str(reward_dir), dataset_name=str(out), image_folder=str(SAMPLES),
                                          output_file=str(tmp_path / "scores.jsonl"))))  # fmt: skip
    assert len(scores) == len(rows) and all(isinstance(s["score"], float) for s in scores)


def test_stages_run_on_photos_with_llava_shaped_checkpoint(shared_data, tmp_path):
    """A LLaVA-shaped checkpoint with 576 image tokens, on photos."""
    subprocess.run([sys.executable, shared_data / "speed" / "tiny_llava.py", tmp_path / "llava"], check=True, capture_output=True)
    common = {"model_name_or_path": str(tmp_path / "llava"), "image_folder": str(shared_data / "photos"), "max_steps": 1,
              "per_device_train_batch_size": 2, "lora_r": 4}  # fmt: skip
    reward_dir = train_reward_model(RewardConfig(dataset_name=str(shared_data / "photos" / "pairs.jsonl"), facts_file=str(shared_data / "photos" / "facts.jsonl"),
                                  output_dir=str(tmp_path / "r"), **common))  # fmt: skip
    ppo(PPOConfig(dataset_name=str(shared_data / "photos" / "pairs.jsonl"), facts_file=str(shared_data / "photos" / "facts.jsonl"),
                  output_dir=str(tmp_path / "p"), reward_model_path=str(reward_dir), num_generations=2, response_length=6, min_probe_detection_rate=0, **common))  # fmt: skip
    row = read_jsonl(tmp_path / "p" / "metrics.jsonl")[1]
    assert abs(row["objective/kl"]) < 1e-4 and abs(row["val/ratio_first"] - 1) < 1e-4
    assert json.loads((tmp_path / "r" / "reward.json").read_text())["base"] == str(tmp_path / "llava")


@pytest.mark.slow
def test_stages_on_two_processes_train_as_one(bundled_vlm_path, tmp_path):
    """Two processes log what a single one does, also with a share of the base in each.

    ppo's minibatches are the same groups of prompts, and a row that is on both processes gets the
    draws that its two occurrences get on one. `grpo` was stopped on two, and resumed on two and on
    one. In float32, ten steps of ppo agree up to rounding.
    """
    out = _run_forked(bundled_vlm_path, tmp_path / "out", "exact", "traces")
    stages = ("sft", "reward", "dpo", "ppo")
    one = _logged(out / "one", *stages, "grpo")
    assert [row.get("skipped_steps", 0) for row in one["grpo"]][-1] == 1
    assert any(row.get("dynamic_sampling/replaced") for row in one["grpo"])
    _assert_same_metrics(one, _logged(out / "two", *stages, "grpo"), rel=1e-9, abs=1e-12)
    _assert_same_metrics(one, _logged(out / "moved", "grpo"), rel=1e-9, abs=1e-12)
    evaluated = read_jsonl(out / "one" / "grpo" / "eval.jsonl")
    assert sorted({row["step"] for row in evaluated}) == [0, 3, 5]
    finished = {run: json.loads((out / run / "grpo" / "finished.json").read_text()) for run in ("one", "two", "moved")}
    for run, result in finished.items():
        assert read_jsonl(out / run / "grpo" / "eval.jsonl") == evaluated, run
        assert result["best"]["step"] == finished["one"]["best"]["step"] > 0, run
    # The processes of a step sample for a different number of tokens.
    assert any(first != second for first, second in _longest_answers(out / "one" / "ppo"))
    _assert_same_metrics(one, _logged(out / "shards", *stages), rel=1e-9, abs=1e-12)
    trace = _logged(out / "one32", *stages)
    assert {stage: rows[-1]["step"] for stage, rows in trace.items()} == {"sft": 4, "reward": 4, "dpo": 4, "ppo": 10}
    # A KL and a margin are small differences of log-probs of ten nats and more.
    _assert_same_metrics(trace, _logged(out / "two32", *stages), rel=1e-5, abs=5e-6)


@pytest.mark.slow
def test_two_processes_write_the_files_of_one_and_neither_outlives_the_other(bundled_vlm_path, tmp_path):
    """Each process samples its share of a batch; at the end of the data one of them has no row.

    If one is killed, the other stops with a sentence, whatever it was computing.
    """
    out = _run_forked(bundled_vlm_path, tmp_path / "out", "sampled", "lost")
    for name in (
        "rft/round_1/answers.jsonl",
        *(f"feedback/round_1/{name}.jsonl" for name in ("answers", "verdicts", "scores", "pairs")),
    ):
        one, two = ((out / run / name).read_bytes() for run in ("sampled1", "sampled2"))
        assert one == two and one, name
    for stage in ("sft", "reward", "dpo", "ppo", "rft"):
        sentence = (out / "lost" / stage).read_text()
        assert sentence.startswith("process 0 stops, because another one has stopped or does not answer"), stage


def _run_forked(base, out, *parts):
    """Run parts of `helpers.forked_stages` with one thread per process; return their folder."""
    subprocess.run(
        [sys.executable, "-m", "tests.helpers.forked_stages", base, str(out), ",".join(parts)],
        check=True, capture_output=True, timeout=900, cwd=folder("data").parent,
        env=os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return out


def _logged(run, *stages):
    return {stage: read_jsonl(run / stage / "metrics.jsonl") for stage in stages}


def _longest_answers(run):
    """Return, for each step, the words of the longest answer of each of two processes.

    A step has four rows with two answers each, and every other row belongs to the same process.
    """
    words = [len(row["answer"].split()) for row in read_jsonl(run / "ledger.jsonl")]
    return [
        [max(words[start + i] for i in (first, first + 1, first + 4, first + 5)) for first in (0, 2)]
        for start in range(0, len(words), 8)
    ]


def _assert_same_metrics(logged, other_logged, **tolerance):
    """Compare all metrics but times and memory.

    With a folder of features, as in `grpo`, an image is encoded once by all processes together; the
    count begins again when the run is resumed after step 3.
    """
    for stage, other_rows in other_logged.items():
        for row, other_row in zip(logged[stage], other_rows, strict=True):
            counts_encodes = stage == "grpo" and row["step"] <= 3
            left_out = ("time", "eps", "memory/", *(() if counts_encodes else ("image_encodes",)))
            for name in (name for name in row.keys() | other_row.keys() if not name.startswith(left_out)):
                assert row[name] == pytest.approx(other_row[name], **tolerance), (stage, row["step"], name)


def test_generate_writes_the_best_of_n_answers(tiny_vlm_path, examples, reward_dir, tmp_path):
    settings = {
        "model_name_or_path": tiny_vlm_path,
        "dataset_name": "x",
        "response_length": 12,
        "num_generations": 3,
        "temperature": 1.0,
    }
    every = generate(GenerateConfig(**settings, output_file=str(tmp_path / "all.jsonl")), examples[:2])
    best = generate(
        GenerateConfig(**settings, output_file=str(tmp_path / "best.jsonl"), reward_model_path=str(reward_dir)), examples[:2]
    )
    answers, chosen = read_jsonl(every), read_jsonl(best)
    assert [row["id"] for row in chosen] == [example.id for example in examples[:2]]
    for i, row in enumerate(chosen):
        group = AnswerGroup(
            examples[i].images, examples[i].prompt, tuple(a["answer"] for a in answers[3 * i : 3 * i + 3]), examples[i].facts
        )
        (scores,) = load_reward_model(str(reward_dir)).score([group])
        assert row["answer"] == group.answers[scores.index(max(scores))] and row["score"] == pytest.approx(max(scores), abs=1e-4)
    with pytest.raises(InputError, match="chooses the best of several answers: give --num_generations"):
        generate(
            GenerateConfig(**{**settings, "num_generations": 1}, output_file="x", reward_model_path=str(reward_dir)), examples
        )
