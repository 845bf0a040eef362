"""Write the last lines of a command: the files that it wrote, and the command to run next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Closing = tuple[Mapping[Path, str], list[Path | str]]
"""A description of each written path, and the words of the next command; those in capitals are
placeholders for the user's own files."""


def _sft(config: Any) -> Closing:
    run = Path(config.output_dir)
    written = {run / "model": "the fine-tuned model, a checkpoint of transformers", run / "metrics.jsonl": "every step's metrics"}
    return written, ["reward", "--model", run / "model", "--data", "PAIRS", "--out", run.parent / "reward"]


def _reward(config: Any) -> Closing:
    run = Path(config.output_dir)
    written = {run: "the reward model", run / "metrics.jsonl": "every step's metrics"}
    held_out = ["--data", config.eval_dataset_name or "HELD_OUT_PAIRS"]
    facts = ["--facts_file", config.facts_file] if config.facts_file else []
    return written, ["reward-eval", "--reward_model_path", run, *held_out, *facts, "--out", f"{run}-eval"]


def _dpo(config: Any) -> Closing:
    run = Path(config.output_dir)
    written = {
        run / "policy": f"the policy, a LoRA adapter on {config.model_name_or_path}",
        run / "metrics.jsonl": "every step's metrics",
        run / "reference_logps.jsonl": "the reference's log-probs of the answers",
    }
    return written, ["report", run]


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _ppo(config: Any) -> Closing:
    run = Path(config.output_dir)
    finished = json.loads(text) if (text := _text_of(run / "finished.json")) else {}
    best = finished.get("best") or {}
    label = f"by {best['metric']}, {best['value']:.4g} at step {best['step']}" if best else ""
    is_best = bool(best) and finished.get("policy_step") == best["step"]
    policy = f"the best policy {label}" if is_best else "the policy" + " of the last step" * bool(best)
    written = {
        run / "policy": f"{policy}, a LoRA adapter on {config.model_name_or_path}",
        run / "best": f"the best policy {label}",
        run / "metrics.jsonl": "every step's metrics",
        run / "eval.jsonl": "the metrics of evaluations with their intervals",
        run / "samples.jsonl": "answers at logging steps",
        run / "ledger.jsonl": "the value of each reward function for every answer",
        run / "warnings.jsonl": "signs of reward hacking",
    }
    return written, ["report", run]


def _rft(config: Any) -> Closing:
    run, last = Path(config.output_dir), Path(config.output_dir) / f"round_{config.num_rounds}"
    written = {
        run / "model": f"the model after round {config.num_rounds}, a checkpoint of transformers",
        last / "sft.jsonl": "the answers that the last round learnt, rows of sft with their scores",
        last / "answers.jsonl": "all answers of the last round, with their rewards",
        run / "metrics.jsonl": "every round's metrics",
        run / "samples.jsonl": "some of the answers that each round learnt",
        run / "ledger.jsonl": "the value of each reward function for every answer",
        run / "warnings.jsonl": "signs of reward hacking",
    }
    return written, ["generate", "--model", run / "model", "--data", "HELD_OUT_PROMPTS", "--out", "answers.jsonl"]


def _generate(config: Any) -> Closing:
    images = Path(config.image_folder or Path(config.dataset_name).parent)
    score = ["score", "--reward_model_path", "REWARD_MODEL", "--data", config.output_file, "--image_folder", images]
    return {Path(config.output_file): "the answers"}, [*score, "--out", "scores.jsonl"]


def _score(config: Any) -> Closing:
    return {Path(config.output_file): "the scores"}, []


def _reward_eval(config: Any) -> Closing:
    out = Path(config.output_dir)
    written = {out / "report.html": "plots and tables", out / "result.json": "the numbers"}
    ppo = ["ppo", "--model", "MODEL", "--data", "PROMPTS", "--reward_model_path", config.reward_model_path]
    return written, [*ppo, "--out", Path(config.reward_model_path).parent / "ppo"]


CLOSINGS: dict[str, Callable[[Any], Closing]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "ppo": _ppo,
    "rft": _rft,
    "generate": _generate,
    "score": _score,
    "reward-eval": _reward_eval,
}


def closing_text(command: str, config: Any) -> str:
    """Return a line for each file that a command wrote, and the command to run next.

    Returns "" for commands that say it themselves, and if nothing was written.
    """
    if command not in CLOSINGS:
        return ""
    written, next_words = CLOSINGS[command](config)
    paths = {str(path): meaning for path, meaning in written.items() if path.exists()}
    if not paths:
        return ""
    width = max(map(len, paths))
    lines = ["wrote", *(f"  {path:<{width}}  {meaning}" for path, meaning in paths.items())]
    if next_words:
        lines.append(f"next: {shlex.join(['mmrlhf', *map(str, next_words)])}")
    return "\n".join(lines)
