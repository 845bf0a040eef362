"""Write the last lines of a command: the files that it wrote, and the command to run next."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.files.tables import dataset_folder

Closing = tuple[Mapping[Path, str], list[Path | str]]
"""A description of each written path, and the words of the next command; those in capitals are
placeholders for the user's own files."""


def _logs(config: Any) -> dict[Path, str]:
    """Return the existing files that training stages write in addition to their result."""
    run = Path(config.output_dir)
    return {
        run / "report.html": "curves, fixed prompts over steps and warnings; it opens offline",
        run / "metrics.jsonl": "every step's metrics",
        run / "eval.jsonl": "the metrics of evaluations with their intervals",
        run / "samples.jsonl": "answers along the way",
        run / "ledger.jsonl": "the value of each reward function for every answer",
        run / "warnings.jsonl": "what may go wrong unnoticed, such as reward hacking",
        run / "tensorboard": f"points for `tensorboard --logdir {shlex.quote(str(run))}`",
    }


def _best(config: Any, kind: str, last: str) -> tuple[str, str]:
    """Return the name of a stage's result, which may be the `last` or the best one, and the name of
    the best one."""
    finished = json.loads(text) if (text := _text_of(Path(config.output_dir) / "finished.json")) else {}
    best = finished.get("best") or {}
    label = f"the best {kind} by {best['metric']}, {best['value']:.4g} at step {best['step']}" if best else f"the best {kind}"
    is_best = bool(best) and finished.get("policy_step") == best["step"]
    return label if is_best else last + " of the last step" * bool(best), label


def _image_folder(config: Any) -> list[Path | str]:
    """Return the flag of the folder to which image paths are relative; rows of the Hub have none,
    as their images are embedded."""
    folder = config.image_folder or dataset_folder(config.dataset_name)
    return ["--image_folder", folder] if folder else []


def _sft(config: Any) -> Closing:
    run = Path(config.output_dir)
    model, best = _best(config, "adapter", "the fine-tuned model")
    model = model.replace("adapter", "model")
    written = {run / "model": f"{model}, a checkpoint of transformers", run / "best": best, **_logs(config)}
    return written, ["reward", "--model", run / "model", "--data", "PAIRS", "--out", run.parent / "reward"]


def _reward(config: Any) -> Closing:
    run = Path(config.output_dir)
    written = {run: "the reward model", **_logs(config)}
    held_out = ["--data", config.eval_dataset_name or "HELD_OUT_PAIRS"]
    facts = ["--facts_file", config.facts_file] if config.facts_file else []
    return written, ["reward-eval", "--reward_model_path", run, *held_out, *facts, "--out", f"{run}-eval"]


def _policy(config: Any) -> dict[Path, str]:
    run = Path(config.output_dir)
    policy, best = _best(config, "policy", "the policy")
    return {run / "policy": f"{policy}, a LoRA adapter on {config.model_name_or_path}", run / "best": best}


def _dpo(config: Any) -> Closing:
    run = Path(config.output_dir)
    logps = {run / "reference_logps.jsonl": "the reference's log-probs of the answers"}
    return {**_policy(config), **_logs(config), **logps}, ["report", run]


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _ppo(config: Any) -> Closing:
    return {**_policy(config), **_logs(config)}, ["report", config.output_dir]


def _rft(config: Any) -> Closing:
    run, last = Path(config.output_dir), Path(config.output_dir) / f"round_{config.num_rounds}"
    model, _ = _best(config, "model", f"the model after round {config.num_rounds}")
    written = {
        run / "model": f"{model.replace('at step', 'after round')}, a checkpoint of transformers",
        last / "sft.jsonl": "the answers that the last round learnt, rows of sft with their scores",
        last / "answers.jsonl": "all answers of the last round, with their rewards",
        **_logs(config),
        run / "metrics.jsonl": "every round's metrics",
    }
    return written, ["generate", "--model", run / "model", "--data", "HELD_OUT_PROMPTS", "--out", "answers.jsonl"]


def _feedback(config: Any) -> Closing:
    run = Path(config.output_dir)
    last = run / f"round_{config.num_rounds}"
    written = {
        last / "report.html": "pairs with the verdicts on their claims, what was dropped, biases; it opens offline",
        last / "pairs.jsonl": "the pairs, which reward and dpo read as they are",
        last / "dropped.jsonl": "every comparison that is no pair, with the reason",
        last / "scores.jsonl": "supported and contradicted claims, precision, coverage and utility of every answer",
        last / "labels.json": "counts, biases and, where there is truth, agreement",
        run / "policy": f"the best policy of the last round, a LoRA adapter on {config.model_name_or_path}",
        run / "report.html": "every round's metrics as curves; it opens offline",
        run / "metrics.jsonl": "every round's metrics",
    }
    if config.algorithm != "none":
        policy = ["--model", config.model_name_or_path, "--adapter_path", run / "policy"]
        return written, ["generate", *policy, "--data", "HELD_OUT_PROMPTS", "--out", "answers.jsonl"]
    dpo = ["dpo", "--model", config.model_name_or_path, "--data", last / "pairs.jsonl", *_image_folder(config)]
    return written, [*dpo, "--out", run.parent / "dpo"]


def _generate(config: Any) -> Closing:
    score = ["score", "--reward_model_path", "REWARD_MODEL", "--data", config.output_file, *_image_folder(config)]
    return {Path(config.output_file): "the answers"}, [*score, "--out", "scores.jsonl"]


def _score(config: Any) -> Closing:
    return {Path(config.output_file): "the scores"}, []


def _reward_eval(config: Any) -> Closing:
    out = Path(config.output_dir)
    written = {out / "report.html": "plots and tables", out / "result.json": "the numbers"}
    ppo = ["ppo", "--model", "MODEL", "--data", "PROMPTS"]
    models = [path.strip() for path in (config.reward_model_path or "").split(",") if path.strip()]
    if models:
        ppo += ["--reward_model_path", ", ".join(models)]
    for name in ("reward_terms", "unknown_claim_costs", "uncertainty_penalty"):  # the reward that was measured
        value = getattr(config, name)
        if value != type(config).__dataclass_fields__[name].default:
            ppo += [f"--{name}", value]
    return written, [*ppo, "--out", (Path(models[0]) if models else out).parent / "ppo"]


CLOSINGS: dict[str, Callable[[Any], Closing]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "ppo": _ppo,
    "rft": _rft,
    "feedback": _feedback,
    "generate": _generate,
    "score": _score,
    "reward-eval": _reward_eval,
}


def closing_text(command: str, config: Any) -> str:
    """Return a line for each file that a command wrote, and the command to run next.

    Returns "" for commands that print this themselves, and if nothing was written.
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
