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

from mmrlhf.benchmark import Ask, Task
from mmrlhf.config import EvalConfig
from mmrlhf.endpoint import Endpoint, Reply, ask_all, endpoint_of, is_address, message, named
from mmrlhf.files import write_whole
from mmrlhf.lines import json_line, read_jsonl
from mmrlhf.records import Example, InputError, Message
from mmrlhf.rows import objects

Judge = Callable[[Sequence[Ask]], Iterator[tuple[str, Reply]]]
"""Replies by key, in any order. It may leave some out (a budget) and may raise InputError (a server that is down)."""
Judgments = dict[str, dict[str, Any]]
"""Lines of judgments.jsonl by key."""
LETTERS = 4
"""Characters of a prompt to a token, for an estimate."""


def judged(
    module: ModuleType, task: Task, said: Mapping[str, list[str]], config: EvalConfig
) -> tuple[Judgments, InputError | None]:
    """Judgments on what was said, replayed or asked for, and why the judge gave up before its end, if it did; the run's judgments.jsonl holds them.

    said: answers by the id of their example. What that file holds already is not asked again, unless it failed. Raises InputError, also where a
    judge gives up before it has replied at all.
    """
    gave_up = None
    asks = {ask.key: ask for ask in module.ask(said, task)}
    kept = Path(config.output_dir) / "judgments.jsonl"
    if config.judgments is not None:
        found = _replayed(module, task, said, asks, Path(config.judgments))
        write_whole(kept, "".join(json_line(found[key]) for key in asks if key in found))
        return found, None
    found = _still_true(read_jsonl(kept), asks) if kept.exists() else {}
    missing = [ask for key, ask in asks.items() if found.get(key, {}).get("status") != "ok"]
    if config.dry_run:
        print(estimate(missing, config))
    elif config.judge is None:
        if missing:
            print(f"note: {len(missing)} answers have no judgment: give --judge, or --judgments FILE", file=sys.stderr)
    elif missing:
        judge, who = _judge(module, task, said, config)
        _refuse_another(found, who, kept)
        found = {key: row for key, row in found.items() if row["status"] == "ok"}
        write_whole(kept, "".join(map(json_line, found.values())))  # without what failed, or a killed run left torn
        with kept.open("a", encoding="utf-8") as file:
            try:
                for key, reply in judge(missing):
                    found[key] = record(asks[key], reply, who)
                    file.write(json_line(found[key]))
                    file.flush()
            except InputError as error:
                if not found:
                    raise
                gave_up = error
    return found, gave_up


def record(ask: Ask, reply: Reply, who: Mapping[str, str]) -> dict[str, Any]:
    """A line of judgments.jsonl. `text` is null unless the reply counts; what another model said stays in `reply`."""
    ok = reply.status == "ok"
    return {
        "key": ask.key, **who, "model": reply.model, "template_sha256": _sha(ask.template), "prompt": ask.prompt,
        "images": [image.key for image in ask.images], "text": reply.text if ok else None, **({} if ok else {"reply": reply.text}),
        "status": reply.status, "reason": reply.reason, "input_tokens": reply.input_tokens, "output_tokens": reply.output_tokens,
        "attempts": reply.attempts, "seconds": reply.seconds,
    }  # fmt: skip


def estimate(asks: Sequence[Ask], config: EvalConfig) -> str:
    """What it would take to judge, in words: calls, tokens of prompts (guessed from their length, pictures left out), most tokens of replies."""
    prompts, pictures = sum(len(ask.prompt) for ask in asks) // LETTERS, sum(len(ask.images) for ask in asks)
    return (
        f"dry run: {len(asks)} judgments to ask for, about {prompts} tokens of prompts"
        + (f" and {pictures} pictures" if pictures else "")
        + f", at most {len(asks) * config.judge_tokens} tokens of replies; nothing was asked"
    )


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- what is on file -------------------------------------------------------------------------------------------------


def _still_true(rows: Sequence[Mapping[str, Any]], asks: Mapping[str, Ask]) -> Judgments:
    """The last line of each key, where it is about what is asked now, as far as it says what it is about."""
    return {
        row["key"]: dict(row) for row in rows if row.get("key") in asks and row.get("prompt") in (None, asks[row["key"]].prompt)
    }


def _replayed(module: ModuleType, task: Task, said: Mapping[str, list[str]], asks: Mapping[str, Ask], path: Path) -> Judgments:
    """Recorded judgments: a run's own, or what the benchmark file can read of other records (`recorded`)."""
    rows = objects(path)
    if all("key" in row.fields for row in rows):
        found = _still_true([row.fields for row in rows], asks)
        if stale := sum(row.fields["key"] in asks and row.fields["key"] not in found for row in rows):
            print(f"note: {stale} judgments of {path} are on other answers or prompts, and are left out", file=sys.stderr)
        return found
    if not hasattr(module, "recorded"):
        rows[0].need("key", "write the judgments.jsonl of a run")
    texts: Mapping[str, str | None] = module.recorded(rows, said, task)
    who = {"judge": "recorded", "requested": "recorded"}
    return {
        key: {"key": key, **who, "model": None, "prompt": None, "text": text, "status": "empty" if text is None else "ok"}
        for key, text in texts.items()
        if key in asks
    }


def _refuse_another(found: Judgments, who: Mapping[str, str], kept: Path) -> None:
    others = {(row["judge"], row["requested"]) for row in found.values() if row["status"] == "ok"} - {
        (who["judge"], who["requested"])
    }
    for judge, model in others:
        raise InputError(f"{kept} holds judgments of {model} ({judge}): give another --out, or that judge")


# ---- judges ----------------------------------------------------------------------------------------------------------


def _judge(module: ModuleType, task: Task, said: Mapping[str, list[str]], config: EvalConfig) -> tuple[Judge, dict[str, str]]:
    """Whom --judge names, and how its judgments are signed."""
    assert config.judge is not None
    if config.judge == "rules":
        if not hasattr(module, "rule"):
            raise InputError("--judge rules: this benchmark states no rules: give an address or a model")
        return rules(lambda ask: module.rule(ask.key, said, task)), {
            "judge": "rules",
            "requested": f"rules of version {module.VERSION}",
        }
    if is_address(config.judge):
        place = named(endpoint_of(config.judge, config.judge_model, config))
        return behind(place, config), {"judge": place.shown, "requested": place.model}
    return in_process(config.judge, config), {"judge": "in process", "requested": config.judge}


def rules(rule: Callable[[Ask], str | None]) -> Judge:
    """A judge of a function; None is a failure."""

    def judge(asks: Sequence[Ask]) -> Iterator[tuple[str, Reply]]:
        for ask in asks:
            text = rule(ask)
            yield ask.key, Reply(text, "ok") if text is not None else Reply(None, "empty", "the rules say nothing")

    return judge


def behind(place: Endpoint, config: EvalConfig) -> Judge:
    """A judge behind an address, greedy, within the budget of tokens."""

    def judge(asks: Sequence[Ask]) -> Iterator[tuple[str, Reply]]:
        chats = [(ask.key, lambda ask=ask: [message(ask.prompt, ask.images)]) for ask in asks]
        how = {"temperature": 0, "max_tokens": config.judge_tokens}
        done = 0
        for key, reply in ask_all(place, chats, how, most_tokens=config.judge_budget):
            done += 1
            yield key, reply
        if done < len(asks):
            print(
                f"note: the budget of {config.judge_budget} tokens is used up; {len(asks) - done} answers are not judged",
                file=sys.stderr,
            )

    return judge


def in_process(name: str, config: EvalConfig) -> Judge:
    """A model in this process, greedy: a vision-language model, or one of language alone where no question has pictures. Raises InputError."""

    def judge(asks: Sequence[Ask]) -> Iterator[tuple[str, Reply]]:
        from transformers import AutoConfig
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

        try:
            kind = type(AutoConfig.from_pretrained(name))
        except (OSError, ValueError) as error:
            raise InputError(f"--judge {name} is neither an address nor a model ({str(error).splitlines()[0]})") from None
        answered = _looking if kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else _reading
        for ask, text in answered(name, asks, config):
            yield (
                ask.key,
                Reply(text, "ok", model=name) if text.strip() else Reply(None, "empty", "the reply holds no text", name),
            )

    return judge


def _looking(name: str, asks: Sequence[Ask], config: EvalConfig) -> Iterator[tuple[Ask, str]]:
    from mmrlhf.loading import load
    from mmrlhf.rollout import answer_all
    from mmrlhf.sampling import Sampling

    examples = [Example(ask.key, ask.images, (Message("user", ask.prompt),)) for ask in asks]
    by_key = {ask.key: ask for ask in asks}
    for example, texts in answer_all(
        load(name, config.dtype, engine=config), examples, Sampling(config.judge_tokens, 0.0), batch_size=config.batch_size
    ):
        yield by_key[example.id], texts[0]


def _reading(name: str, asks: Sequence[Ask], config: EvalConfig) -> Iterator[tuple[Ask, str]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if any(ask.images for ask in asks):
        raise InputError(
            f"--judge {name} cannot look at pictures, which this benchmark shows its judge: give a vision-language model"
        )
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, config.dtype)).eval()
    for ask in asks:
        chat = [{"role": "user", "content": ask.prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True).to(
            model.device
        )
        with torch.no_grad():
            out = model.generate(**ids, max_new_tokens=config.judge_tokens, do_sample=False)
        yield ask, tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
