"""LLM judges: they answer a benchmark's questions about answers, behind one interface, and every
judgment is saved.

A judge takes `JudgeRequest`s and gives a `Reply` to each. It is an OpenAI-compatible endpoint, a
model in this process, or the rules of the benchmark; recorded judgments are replayed by key. A
failure has no text and never becomes a verdict; the next call asks again. Only a model in this
process imports torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmrlhf.config import EvalConfig
from mmrlhf.evaluation.benchmark import AnswersById, Benchmark, JudgeRequest, ScoreRow, Task, first_valid, text_sha256
from mmrlhf.evaluation.openai_client import (
    Endpoint,
    Reply,
    chat_message,
    is_url,
    make_endpoint,
    request_replies,
    resolve_model_name,
)
from mmrlhf.files import lock
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.rows import read_json_objects
from mmrlhf.records import Example, InputError, Message
from mmrlhf.text.printable import first_line

Judge = Callable[[Sequence[JudgeRequest]], Iterator[tuple[str, Reply]]]
"""Yields replies by key, in any order.

It may leave some out (a token budget), or raise InputError (a server is down).
"""
Judgments = dict[str, dict[str, Any]]
"""Lines of judgments.jsonl by key."""
CHARS_PER_TOKEN = 4
"""Characters of a prompt per token, for an estimate."""


def collect_judgments(
    benchmark: Benchmark, task: Task, answers_by_id: AnswersById, config: EvalConfig
) -> tuple[Judgments, InputError | None]:
    """Return the judgments on these answers, and the error at which the judge gave up, if any.

    They are in judgments.jsonl afterwards. Judgments that are already there are not requested
    again, unless they failed. A benchmark whose questions follow from earlier replies is asked for
    its requests once for each of its `judge_rounds`. Raises InputError, also if the judge gives up
    before its first reply.
    """
    path = Path(config.output_dir) / "judgments.jsonl"
    if config.recorded_judgments is not None:
        requests, judgments = _replay_judgments(benchmark, task, answers_by_id, Path(config.recorded_judgments))
        write_atomic(path, "".join(json_line(judgments[key]) for key in requests if key in judgments))
        return judgments, None
    judgments = {}
    for _ in range(benchmark.judge_rounds):
        judgments, has_asked, error = _ask_judge(benchmark, task, answers_by_id, config, path)
        if error is not None or not has_asked:
            return judgments, error
    return judgments, None


def count_unjudged(benchmark: Benchmark, task: Task, rows: Sequence[ScoreRow]) -> int:
    """Return how many judgments of these answers are missing or failed."""
    if not benchmark.uses_judge:
        return 0
    answers_by_id = {row["id"]: row["answers"] for row in first_valid(rows)}
    requests = benchmark.judge_requests(answers_by_id, task)
    return sum(task.replies.get(request.key, {}).get("status") != "ok" for request in requests)


def _ask_judge(
    benchmark: Benchmark, task: Task, answers_by_id: AnswersById, config: EvalConfig, path: Path
) -> tuple[Judgments, bool, InputError | None]:
    """Request all missing judgments whose requests follow from the saved replies.

    Returns the judgments, whether any was requested, and the error at which the judge gave up.
    """
    requests, judgments = _known_judgments(benchmark, task, answers_by_id, read_jsonl(path) if path.exists() else [])
    missing = [request for key, request in requests.items() if judgments.get(key, {}).get("status") != "ok"]
    if config.dry_run:
        print(estimate_cost(missing, config))
        return judgments, False, None
    if not missing:
        return judgments, False, None
    if config.judge is None:
        print(f"note: {len(missing)} answers have no judgment: give --judge, or --recorded_judgments FILE", file=sys.stderr)
        return judgments, False, None
    judge, signature = _make_judge(benchmark, replace(task, replies=judgments), answers_by_id, config)
    _check_same_judge(judgments, signature, path)
    # Failures are requested again. Rewriting the file also drops an incomplete last line of a
    # killed run.
    judgments = {key: row for key, row in judgments.items() if row["status"] == "ok"}
    write_atomic(path, "".join(map(json_line, judgments.values())))
    with path.open("a", encoding="utf-8") as file:
        try:
            for key, reply in judge(missing):
                lock.check(path.with_name(".lock"), path.parent, "out")
                judgments[key] = judgment_record(requests[key], reply, signature)
                file.write(json_line(judgments[key]))
                file.flush()
        except InputError as error:
            if not judgments:
                raise
            return judgments, True, error
    return judgments, True, None


def _known_judgments(
    benchmark: Benchmark, task: Task, answers_by_id: AnswersById, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, JudgeRequest], Judgments]:
    """Return the requests that follow from the saved judgments, and their judgments."""
    judgments: Judgments = {}
    requests: dict[str, JudgeRequest] = {}
    for _ in range(benchmark.judge_rounds):
        task = replace(task, replies=judgments)
        requests = {request.key: request for request in benchmark.judge_requests(answers_by_id, task)}
        judgments = _latest_valid(rows, requests)
    return requests, judgments


def judgment_record(request: JudgeRequest, reply: Reply, signature: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of judgments.jsonl.

    `text` is null unless the reply counts; the reply of a wrong model is kept in `reply`.
    """
    is_ok = reply.status == "ok"
    return {
        "key": request.key,
        **signature,
        "model": reply.model,
        "template_sha256": text_sha256(request.template),
        "prompt": request.prompt,
        "images": [image.key for image in request.images],
        "text": reply.text if is_ok else None,
        **({} if is_ok else {"reply": reply.text}),
        "status": reply.status,
        "reason": reply.reason,
        "input_tokens": reply.input_tokens,
        "output_tokens": reply.output_tokens,
        "attempts": reply.attempts,
        "seconds": reply.seconds,
    }


def estimate_cost(requests: Sequence[JudgeRequest], config: EvalConfig) -> str:
    """Describe what the requests would cost: calls, prompt tokens (guessed from length, without
    images), reply tokens."""
    num_prompt_tokens = sum(len(request.prompt) for request in requests) // CHARS_PER_TOKEN
    num_images = sum(len(request.images) for request in requests)
    return (
        f"dry run: {len(requests)} judgments to ask for, about {num_prompt_tokens} tokens of prompts"
        + (f" and {num_images} images" if num_images else "")
        + f", at most {len(requests) * config.judge_max_tokens} tokens of replies; nothing was asked"
    )


# ---- judgments on file ---------------------------------------------------------------------------


def _latest_valid(rows: Sequence[Mapping[str, Any]], requests: Mapping[str, JudgeRequest]) -> Judgments:
    """Return the last row of each requested key, leaving out rows whose prompt or images are not
    the requested ones."""
    return {row["key"]: dict(row) for row in rows if row.get("key") in requests and _answers(row, requests[row["key"]])}


def _answers(row: Mapping[str, Any], request: JudgeRequest) -> bool:
    """Return whether a saved judgment is about this prompt and these images, as far as recorded."""
    if row.get("prompt") not in (None, request.prompt):
        return False
    return row.get("images") is None or row["images"] == [image.key for image in request.images]


def _replay_judgments(
    benchmark: Benchmark, task: Task, answers_by_id: AnswersById, path: Path
) -> tuple[dict[str, JudgeRequest], Judgments]:
    """Return the requests, and recorded judgments: a run's own, or what the benchmark reads from
    other records (`read_judgments`)."""
    rows = read_json_objects(path)
    if not all("key" in row.fields for row in rows):
        foreign_rows = [
            {
                "key": key,
                "judge": "recorded",
                "requested": "recorded",
                "model": None,
                "prompt": None,
                "text": text,
                "status": "empty" if text is None else "ok",
            }
            for key, text in benchmark.read_judgments(rows, answers_by_id, task).items()
        ]
        return _known_judgments(benchmark, task, answers_by_id, foreign_rows)
    requests, judgments = _known_judgments(benchmark, task, answers_by_id, [row.fields for row in rows])
    num_stale = sum(row.fields["key"] in requests and row.fields["key"] not in judgments for row in rows)
    if num_stale:
        print(
            f"note: {num_stale} judgments of {path} are about other answers or prompts, and are left out",
            file=sys.stderr,
        )
    return requests, judgments


def _check_same_judge(judgments: Judgments, signature: Mapping[str, Any], path: Path) -> None:
    for row in judgments.values():
        is_same = (row["judge"], row["requested"]) == (signature["judge"], signature["requested"])
        if row["status"] != "ok":
            continue
        if not is_same:
            raise InputError(f"{path} holds judgments of {row['requested']} ({row['judge']}): give another --out, or that judge")
        limit = row.get("max_tokens")  # earlier versions did not keep it
        if limit not in (None, signature.get("max_tokens")):
            raise InputError(
                f"{path} holds judgments of at most {limit} tokens: give another --out, or --judge_max_tokens {limit}"
            )


# ---- judges --------------------------------------------------------------------------------------


def _make_judge(benchmark: Benchmark, task: Task, answers_by_id: AnswersById, config: EvalConfig) -> tuple[Judge, dict[str, Any]]:
    """Return the judge given as --judge, and the name that its judgments record."""
    assert config.judge is not None
    if config.judge == "rules":
        if not benchmark.has_rules:
            raise InputError("--judge rules: this benchmark has no rules: give a server or a model")
        signature: dict[str, Any] = {"judge": "rules", "requested": f"rules of version {benchmark.version}"}
        return rule_judge(lambda request: benchmark.rule(request.key, answers_by_id, task)), signature
    if is_url(config.judge):
        endpoint = resolve_model_name(make_endpoint(config.judge, config.judge_model, config))
        signature = {"judge": endpoint.display_url, "requested": endpoint.model, "max_tokens": config.judge_max_tokens}
        return endpoint_judge(endpoint, config), signature
    signature = {"judge": "in process", "requested": config.judge, "max_tokens": config.judge_max_tokens}
    return local_judge(config.judge, config), signature


def rule_judge(rule: Callable[[JudgeRequest], str | None]) -> Judge:
    """Return a judge that applies a function; None is a failure."""

    def judge(requests: Sequence[JudgeRequest]) -> Iterator[tuple[str, Reply]]:
        for request in requests:
            text = rule(request)
            yield request.key, _text_reply(text, "the rules give no verdict")

    return judge


def endpoint_judge(endpoint: Endpoint, config: EvalConfig) -> Judge:
    """Return a judge behind an endpoint, with greedy decoding, within the token budget."""

    def judge(requests: Sequence[JudgeRequest]) -> Iterator[tuple[str, Reply]]:
        # A chat is built only when it is sent, because this reads its images.
        chats = [(request.key, lambda request=request: [chat_message(request.prompt, request.images)]) for request in requests]
        sampling_params = {"temperature": 0, "max_tokens": config.judge_max_tokens}
        num_done = 0
        for key, reply in request_replies(endpoint, chats, sampling_params, max_total_tokens=config.judge_token_budget):
            num_done += 1
            yield key, reply
        if num_done < len(requests):
            print(
                f"note: the budget of {config.judge_token_budget} tokens is used up; "
                f"{len(requests) - num_done} answers are not judged",
                file=sys.stderr,
            )

    return judge


def local_judge(model_name: str, config: EvalConfig) -> Judge:
    """Return a judge in this process, with greedy decoding: a VLM, or a text-only LM if no request
    has images.

    The judge raises InputError if the model cannot be found.
    """

    def judge(requests: Sequence[JudgeRequest]) -> Iterator[tuple[str, Reply]]:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        try:
            config_class = type(AutoConfig.from_pretrained(model_name))
        except (OSError, ValueError) as error:
            raise InputError(f"--judge {model_name} is neither a server URL nor a model ({first_line(error)})") from None
        is_vlm = config_class in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        for request, text in (_vlm_replies if is_vlm else _lm_replies)(model_name, requests, config):
            yield request.key, _text_reply(text if text.strip() else None, "the reply holds no text", model_name)

    return judge


def _text_reply(text: str | None, reason: str, model: str | None = None) -> Reply:
    """Return a reply with this text, or, without one, a failure with this reason."""
    return Reply(None, "empty", reason, model) if text is None else Reply(text, "ok", model=model)


def _vlm_replies(model_name: str, requests: Sequence[JudgeRequest], config: EvalConfig) -> Iterator[tuple[JudgeRequest, str]]:
    from mmrlhf.engine.rollout import generate_batches
    from mmrlhf.engine.sampling import SamplingParams
    from mmrlhf.models.loading import load

    vlm = load(model_name, config.dtype, engine=config, pixels=config)
    # A prompt quotes answers, which may contain control tokens written by a model.
    examples = [
        Example(request.key, request.images, (Message("user", vlm.escape_control_tokens(request.prompt)),))
        for request in requests
    ]
    requests_by_key = {request.key: request for request in requests}
    sampling_params = SamplingParams(config.judge_max_tokens, 0.0)
    for example, texts in generate_batches(vlm, examples, sampling_params, batch_size=config.batch_size):
        yield requests_by_key[example.id], texts[0]


def _lm_replies(model_name: str, requests: Sequence[JudgeRequest], config: EvalConfig) -> Iterator[tuple[JudgeRequest, str]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mmrlhf.models.control_tokens import ControlTokens

    if config.dtype == "nf4":
        raise InputError(
            f"--judge {model_name} reads text only, and dtype nf4 loads vision-language models: give --dtype bfloat16"
        )
    if any(request.images for request in requests):
        raise InputError(
            f"--judge {model_name} cannot see images, which this benchmark shows its judge: give a vision-language model"
        )
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    dtype, device = getattr(torch, config.dtype), "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype, use_safetensors=True).eval().to(device)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise InputError(f"--judge {model_name} cannot be loaded ({reason}): give a checkpoint in safetensors") from None
    control_tokens = ControlTokens(SimpleNamespace(tokenizer=tokenizer), ())
    for request in requests:
        # An answer that it quotes could end the turn, and reply in the judge's place.
        chat = [{"role": "user", "content": control_tokens.escape(request.prompt)}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        inputs = inputs.to(model.device)
        with torch.no_grad():
            token_ids = model.generate(**inputs, max_new_tokens=config.judge_max_tokens, do_sample=False)
        prompt_length = inputs["input_ids"].shape[1]
        yield request, tokenizer.decode(token_ids[0, prompt_length:], skip_special_tokens=True)
