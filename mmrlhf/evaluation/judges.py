"""Judges: whoever answers a benchmark's questions about answers, behind one interface, with every judgment on file.

A judge takes `Ask`s and gives a `Reply` to each: an OpenAI-compatible endpoint, a model in this process, or rules that the benchmark file states.
Recorded judgments are replayed by key. A failure has no text and is never a verdict; it is asked again by the next call. No torch but for a
model in this process.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.config import EvalConfig
from mmrlhf.evaluation.benchmark import JudgeRequest, Task
from mmrlhf.evaluation.openai_client import (
    Endpoint,
    Reply,
    chat_message,
    is_url,
    make_endpoint,
    request_replies,
    resolve_model_name,
)
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.rows import read_json_objects
from mmrlhf.records import Example, InputError, Message

Judge = Callable[[Sequence[JudgeRequest]], Iterator[tuple[str, Reply]]]
"""Replies by key, in any order. It may leave some out (a budget) and may raise InputError (a server that is down)."""
Judgments = dict[str, dict[str, Any]]
"""Lines of judgments.jsonl by key."""
CHARS_PER_TOKEN = 4
"""Characters of a prompt to a token, for an estimate."""


def collect_judgments(
    module: ModuleType, task: Task, answers_by_id: Mapping[str, list[str]], config: EvalConfig
) -> tuple[Judgments, InputError | None]:
    """Judgments on what was said, replayed or asked for, and why the judge gave up before its end, if it did; the run's judgments.jsonl holds them.

    said: answers by the id of their example. What that file holds already is not asked again, unless it failed. Raises InputError, also where a
    judge gives up before it has replied at all.
    """
    judge_error = None
    requests = {request.key: request for request in module.judge_requests(answers_by_id, task)}
    judgments_path = Path(config.output_dir) / "judgments.jsonl"
    if config.recorded_judgments is not None:
        judgments = _replay_judgments(module, task, answers_by_id, requests, Path(config.recorded_judgments))
        write_atomic(judgments_path, "".join(json_line(judgments[key]) for key in requests if key in judgments))
        return judgments, None
    judgments = _latest_valid(read_jsonl(judgments_path), requests) if judgments_path.exists() else {}
    missing = [request for key, request in requests.items() if judgments.get(key, {}).get("status") != "ok"]
    if config.dry_run:
        print(estimate_cost(missing, config))
    elif config.judge is None:
        if missing:
            print(f"note: {len(missing)} answers have no judgment: give --judge, or --recorded_judgments FILE", file=sys.stderr)
    elif missing:
        judge, signature = _make_judge(module, task, answers_by_id, config)
        _check_same_judge(judgments, signature, judgments_path)
        judgments = {key: row for key, row in judgments.items() if row["status"] == "ok"}
        write_atomic(
            judgments_path, "".join(map(json_line, judgments.values()))
        )  # without what failed, or a killed run left torn
        with judgments_path.open("a", encoding="utf-8") as file:
            try:
                for key, reply in judge(missing):
                    judgments[key] = judgment_record(requests[key], reply, signature)
                    file.write(json_line(judgments[key]))
                    file.flush()
            except InputError as error:
                if not judgments:
                    raise
                judge_error = error
    return judgments, judge_error


def judgment_record(request: JudgeRequest, reply: Reply, signature: Mapping[str, str]) -> dict[str, Any]:
    """A line of judgments.jsonl. `text` is null unless the reply counts; what another model said stays in `reply`."""
    is_ok = reply.status == "ok"
    return {
        "key": request.key, **signature, "model": reply.model, "template_sha256": _sha256(request.template), "prompt": request.prompt,
        "images": [image.key for image in request.images], "text": reply.text if is_ok else None, **({} if is_ok else {"reply": reply.text}),
        "status": reply.status, "reason": reply.reason, "input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens,
        "attempts": reply.attempts, "seconds": reply.seconds,
    }  # fmt: skip


def estimate_cost(requests: Sequence[JudgeRequest], config: EvalConfig) -> str:
    """What it would take to judge, in words: calls, tokens of prompts (guessed from their length, pictures left out), most tokens of replies."""
    num_prompt_tokens, num_images = (
        sum(len(request.prompt) for request in requests) // CHARS_PER_TOKEN,
        sum(len(request.images) for request in requests),
    )
    return (
        f"dry run: {len(requests)} judgments to ask for, about {num_prompt_tokens} tokens of prompts"
        + (f" and {num_images} pictures" if num_images else "")
        + f", at most {len(requests) * config.judge_max_tokens} tokens of replies; nothing was asked"
    )


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- what is on file -------------------------------------------------------------------------------------------------


def _latest_valid(rows: Sequence[Mapping[str, Any]], requests: Mapping[str, JudgeRequest]) -> Judgments:
    """The last line of each key, where it is about what is asked now, as far as it says what it is about."""
    return {
        row["key"]: dict(row)
        for row in rows
        if row.get("key") in requests and row.get("prompt") in (None, requests[row["key"]].prompt)
    }


def _replay_judgments(
    module: ModuleType, task: Task, answers_by_id: Mapping[str, list[str]], requests: Mapping[str, JudgeRequest], path: Path
) -> Judgments:
    """Recorded judgments: a run's own, or what the benchmark file can read of other records (`read_judgments`)."""
    rows = read_json_objects(path)
    if all("key" in row.fields for row in rows):
        judgments = _latest_valid([row.fields for row in rows], requests)
        if num_stale := sum(row.fields["key"] in requests and row.fields["key"] not in judgments for row in rows):
            print(f"note: {num_stale} judgments of {path} are on other answers or prompts, and are left out", file=sys.stderr)
        return judgments
    if not hasattr(module, "read_judgments"):
        rows[0].require("key", "write the judgments.jsonl of a run")
    texts: Mapping[str, str | None] = module.read_judgments(rows, answers_by_id, task)
    signature = {"judge": "recorded", "requested": "recorded"}
    return {
        key: {"key": key, **signature, "model": None, "prompt": None, "text": text, "status": "empty" if text is None else "ok"}
        for key, text in texts.items()
        if key in requests
    }


def _check_same_judge(judgments: Judgments, signature: Mapping[str, str], judgments_path: Path) -> None:
    others = {(row["judge"], row["requested"]) for row in judgments.values() if row["status"] == "ok"} - {
        (signature["judge"], signature["requested"])
    }
    for judge, model in others:
        raise InputError(f"{judgments_path} holds judgments of {model} ({judge}): give another --out, or that judge")


# ---- judges ----------------------------------------------------------------------------------------------------------


def _make_judge(
    module: ModuleType, task: Task, answers_by_id: Mapping[str, list[str]], config: EvalConfig
) -> tuple[Judge, dict[str, str]]:
    """Whom --judge names, and how its judgments are signed."""
    assert config.judge is not None
    if config.judge == "rules":
        if not hasattr(module, "rule"):
            raise InputError("--judge rules: this benchmark states no rules: give an address or a model")
        return rule_judge(lambda request: module.rule(request.key, answers_by_id, task)), {
            "judge": "rules",
            "requested": f"rules of version {module.VERSION}",
        }
    if is_url(config.judge):
        endpoint = resolve_model_name(make_endpoint(config.judge, config.judge_model, config))
        return endpoint_judge(endpoint, config), {"judge": endpoint.display_url, "requested": endpoint.model}
    return local_judge(config.judge, config), {"judge": "in process", "requested": config.judge}


def rule_judge(rule: Callable[[JudgeRequest], str | None]) -> Judge:
    """A judge of a function; None is a failure."""

    def judge(requests: Sequence[JudgeRequest]) -> Iterator[tuple[str, Reply]]:
        for request in requests:
            text = rule(request)
            yield request.key, Reply(text, "ok") if text is not None else Reply(None, "empty", "the rules say nothing")

    return judge


def endpoint_judge(endpoint: Endpoint, config: EvalConfig) -> Judge:
    """A judge behind an address, greedy, within the budget of tokens."""

    def judge(requests: Sequence[JudgeRequest]) -> Iterator[tuple[str, Reply]]:
        chats = [(request.key, lambda request=request: [chat_message(request.prompt, request.images)]) for request in requests]
        sampling_params = {"temperature": 0, "max_tokens": config.judge_max_tokens}
        num_done = 0
        for key, reply in request_replies(endpoint, chats, sampling_params, max_total_tokens=config.judge_token_budget):
            num_done += 1
            yield key, reply
        if num_done < len(requests):
            print(
                f"note: the budget of {config.judge_token_budget} tokens is used up; {len(requests) - num_done} answers are not judged",
                file=sys.stderr,
            )

    return judge


def local_judge(model_name: str, config: EvalConfig) -> Judge:
    """A model in this process, greedy: a vision-language model, or one of language alone where no question has pictures. Raises InputError."""

    def judge(requests: Sequence[JudgeRequest]) -> Iterator[tuple[str, Reply]]:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        try:
            config_class = type(AutoConfig.from_pretrained(model_name))
        except (OSError, ValueError) as error:
            raise InputError(f"--judge {model_name} is neither an address nor a model ({str(error).splitlines()[0]})") from None
        generate_replies = _vlm_replies if config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else _lm_replies
        for request, text in generate_replies(model_name, requests, config):
            yield (
                request.key,
                Reply(text, "ok", model=model_name)
                if text.strip()
                else Reply(None, "empty", "the reply holds no text", model_name),
            )

    return judge


def _vlm_replies(model_name: str, requests: Sequence[JudgeRequest], config: EvalConfig) -> Iterator[tuple[JudgeRequest, str]]:
    from mmrlhf.engine.rollout import generate_batches
    from mmrlhf.engine.sampling import SamplingParams
    from mmrlhf.models.loading import load

    examples = [Example(request.key, request.images, (Message("user", request.prompt),)) for request in requests]
    requests_by_key = {request.key: request for request in requests}
    for example, texts in generate_batches(
        load(model_name, config.dtype, engine=config),
        examples,
        SamplingParams(config.judge_max_tokens, 0.0),
        batch_size=config.batch_size,
    ):
        yield requests_by_key[example.id], texts[0]


def _lm_replies(model_name: str, requests: Sequence[JudgeRequest], config: EvalConfig) -> Iterator[tuple[JudgeRequest, str]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if any(request.images for request in requests):
        raise InputError(
            f"--judge {model_name} cannot look at pictures, which this benchmark shows its judge: give a vision-language model"
        )
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=getattr(torch, config.dtype)).eval()
    for request in requests:
        messages = [{"role": "user", "content": request.prompt}]
        inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(
            model.device
        )
        with torch.no_grad():
            output_ids = model.generate(**inputs, max_new_tokens=config.judge_max_tokens, do_sample=False)
        yield request, tokenizer.decode(output_ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
