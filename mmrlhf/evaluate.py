"""`mmrlhf eval NAME`: a benchmark as files, predictions.jsonl -> judgments.jsonl -> scores.jsonl + result.json.

Each is made from those before it and continued where it ends; only the first needs a model, and none of the others torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any

from mmrlhf.answer_files import read_answers
from mmrlhf.asking import AnswerCache, Loaded, answering, key_of, refuse_missing_pictures
from mmrlhf.benchmark import Given, Task, load_benchmark, of_data, options_of, stated
from mmrlhf.config import EvalConfig
from mmrlhf.endpoint import is_address
from mmrlhf.files import refuse_unwritable, write_whole
from mmrlhf.growing import state_of
from mmrlhf.intervals import Counted, figures, nested
from mmrlhf.judges import judged
from mmrlhf.lines import json_line, plain, read_jsonl
from mmrlhf.records import Example, InputError
from mmrlhf.settings import load
from mmrlhf.suites import Planned, expand, suite_of

GENERATION = ("temperature", "top_p", "top_k", "min_new_tokens", "stop", "num_generations", "response_length", "seed", "dtype")
"""Settings that answers depend on."""
PACKAGES = ("mmrlhf", "torch", "transformers", "peft", "numpy", "nltk", "spacy")
SCHEMA = 1


def evaluate(
    benchmark: str, config: EvalConfig, options: Mapping[str, Any] | None = None, loaded: Loaded | None = None
) -> dict[str, Any]:
    """Run a benchmark, or score answers with it, and return what result.json says. What an earlier call has done is not done again.

    options: the benchmark's own (`{"lineage": "a"}`). loaded: where the model is kept for the next call. Raises InputError; when a judge has given
    up, after what it has said and what it has not are in result.json.
    """
    if config.judgments is not None and not (config.answers or config.model_name_or_path or config.reward_model_path):
        config = replace(config, answers=config.judgments)  # records of some scripts hold the answers, too
    module = load_benchmark(benchmark)
    card = stated(module, benchmark)
    if config.judgments is not None and not hasattr(module, "ask"):
        raise InputError(f"--judgments {config.judgments}: {benchmark} asks no judge: leave it out")
    task, hashes = _opened(benchmark, module, config, options or {})
    folder = Path(config.output_dir)
    refuse_unwritable(folder, "output_dir")
    try:
        given, source = _given(benchmark, card["VERSION"], module, task, config, hashes, loaded)
        gave_up = None
        if hasattr(module, "ask"):
            replies, gave_up = _judged(module, task, given, config)
            task = replace(task, replies=replies)
        rows = scores(module, task, given)
        write_whole(folder / "scores.jsonl", "".join(map(json_line, rows)))
        result = {"benchmark": benchmark, **_result(module, card, task, config, hashes, rows), **source}
        if config.strict:
            if gave_up:
                raise gave_up
            _refuse_incomplete(result["counts"])
        write_whole(folder / "result.json", json.dumps(plain(result), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError):  # a library's, not the system's on a file
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(f"{folder} is on a full disk: make room; the same command goes on from what is written") from None
        raise InputError(
            f"{error.filename or folder}: {error.strerror}: correct it or give another --out; the same command goes on from what is written"
        ) from None
    _print(result)
    if gave_up:
        raise gave_up
    return result


def evaluate_all(
    benchmarks: Mapping[str, Mapping[str, Any]], models: Mapping[str, Mapping[str, Any]], output_dir: str, **common: Any
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every benchmark on every model, as a suite has them: settings and options by benchmark (`{"chair": {"data": ..., "lineage": "a"}}`), by model
    (`{"tuned": {"model": ..., "adapter": ...}}`), and of all. Gives results by model and benchmark. Raises InputError."""
    suite = suite_of(benchmarks, models, common)
    return run_all(expand(suite, {"output_dir": output_dir}, {}, lambda values: load(EvalConfig, None, values)))


def run_all(runs: Sequence[Planned]) -> dict[str, dict[str, dict[str, Any]]]:
    """Planned runs one after another, a model loaded once for those that follow on it; results by model and benchmark."""
    loaded = Loaded()
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in runs:
        if len(runs) > 1:
            print(f"{run.benchmark}: {run.config.output_dir}")
        found.setdefault(run.model, {})[run.benchmark] = evaluate(run.benchmark, run.config, run.options, loaded)
    loaded.close()
    return found


def _opened(name: str, module: ModuleType, config: EvalConfig, options: Mapping[str, Any]) -> tuple[Task, dict[str, str]]:
    """The task with its examples, and the hashes of its data."""
    task = Task(config.data, config.image_folder, config.answers, options_of(module, options), config.limit, config.seed)
    try:
        examples: Sequence[Example] = module.load(task)
        hashes = of_data(module, task)
    except FileNotFoundError as error:
        raise InputError(f"benchmark {name}: its data {error.filename} does not exist: correct --data") from None
    by_id = {e.id: e for e in examples}
    if len(by_id) < len(examples):
        raise InputError(
            f"benchmark {name}: {len(examples) - len(by_id)} examples share an id with another: load must give each its own"
        )
    known: Mapping[str, str] = getattr(module, "KNOWN", {})
    for file, digest in hashes.items():
        if known and digest not in known:
            versions = ", ".join(dict.fromkeys(known.values()))
            print(f"note: {file} (sha256 {digest[:12]}) is no version that is known; known are {versions}", file=sys.stderr)
    return replace(task, examples=by_id), hashes


# ---- answers ---------------------------------------------------------------------------------------------------------


def _given(
    name: str, version: str, module: ModuleType, task: Task, config: EvalConfig, hashes: Mapping[str, str], loaded: Loaded | None
) -> tuple[list[Given], dict[str, Any]]:
    """The answers in their order, and where they come from. They are in predictions.jsonl afterwards."""
    folder = Path(config.output_dir)
    kept = folder / "predictions.jsonl"
    subject: list[Any] = [name, version, dict(hashes)]
    if config.answers is not None:
        given, format_ = read_answers(config.answers, module, task, config.format)
        source: dict[str, Any] = {
            "answers": {"path": config.answers, "format": format_},
            "model": config.model_name_or_path,
            "adapters": [],
            "generation": None,  # a file does not say how its answers came about
            "template_sha256": None,
        }
        _begin(folder, [*subject, state_of(config.answers)])
        write_whole(kept, "".join(json_line({"id": g.id, "answers": g.answers}) for g in given))
        return given, source
    if config.reward_model_path is not None:
        if not hasattr(module, "pairs"):
            raise InputError(f"{name} is no benchmark of reward models: give --model DIR")
        if config.model_name_or_path is not None:
            raise InputError("--model and --reward_model_path were both given: give one")
    elif config.model_name_or_path is None:
        raise InputError("there is nothing to measure: give --model DIR, or --answers FILE to score answers that exist")
    settings = {key: getattr(config, key) for key in GENERATION}
    subject += [state_of(config.model_name_or_path), state_of(config.adapter_path), settings]
    subject += (
        [state_of(config.reward_model_path)] if config.reward_model_path else [config.served_model] if config.served_model else []
    )
    _refuse_another(folder, subject)
    rows = [r for r in (read_jsonl(kept) if kept.exists() else []) if r["id"] in task.examples]
    asked = {id_: key_of(e) for id_, e in task.examples.items()}
    if changed := [r["id"] for r in rows if r.get("key") != asked[r["id"]]]:
        raise InputError(
            f"{folder} holds answers to other prompts ({changed[0]} and {len(changed) - 1} more): give another --out"
        )
    answers = {r["id"]: r["answers"] for r in rows}
    missing = [e for e in task.examples.values() if e.id not in answers]
    card = folder / "model.json"
    if silent := next((e.id for e in missing if not e.prompt), None):
        raise InputError(f"benchmark {name}: its data does not say how {silent} is asked: add the file of its queries to --data")
    refuse_missing_pictures(missing)
    cache, cached, sampled = None, {}, config.temperature > 0
    if config.answer_cache_dir and config.model_name_or_path and not is_address(config.model_name_or_path):
        cache = AnswerCache(config.answer_cache_dir, subject[3:])
        cached = {e.id: found for e in missing if (found := cache.get(e, sampled)) is not None}
        answers, missing = answers | cached, [e for e in missing if e.id not in cached]

    def line(id_: str) -> str:
        return json_line({"id": id_, "answers": answers[id_], "key": asked[id_]})

    if missing:
        with answering(module, task, missing, config, name, len(answers), loaded) as (coming, about):
            begun = list(islice(coming, 1))  # nothing is written before model and pictures have proved usable
            coming = chain(begun, coming)
            _begin(folder, subject)
            write_whole(card, json.dumps(about))
            write_whole(kept, "".join(map(line, answers)))  # without the line that a killed run left torn
            with kept.open("a", encoding="utf-8") as file:
                for example, texts in coming:
                    answers[example.id] = texts
                    file.write(line(example.id))
                    file.flush()
                    if cache is not None:
                        cache.add(example, texts, sampled, about)
    else:
        _begin(folder, subject)
        if cache is not None and cached:
            write_whole(card, json.dumps(cache.about))
            write_whole(kept, "".join(map(line, answers)))
    source = {
        "model": config.model_name_or_path, "adapters": [config.adapter_path] if config.adapter_path else [], "generation": settings,
        **(json.loads(card.read_text()) if card.exists() else {}),
    }  # fmt: skip
    return [Given(id_, answers.get(id_, [None])) for id_ in task.examples], source


def _refuse_another(folder: Path, subject: Sequence[Any]) -> None:
    known = folder / "subject.json"
    if known.exists() and json.loads(known.read_text()) != json.loads(json.dumps(subject)):
        raise InputError(
            f"{folder} holds answers of another benchmark, data, model, adapter or generation setting: give another --out"
        )


def _begin(folder: Path, subject: Sequence[Any]) -> None:
    """Make the directory, with what its answers are of. Raises InputError when it holds others."""
    _refuse_another(folder, subject)
    write_whole(folder / "subject.json", json.dumps(subject))


# ---- judgments -------------------------------------------------------------------------------------------------------


def _judged(
    module: ModuleType, task: Task, given: Sequence[Given], config: EvalConfig
) -> tuple[dict[str, dict[str, Any]], InputError | None]:
    """Replies to what the benchmark asks a judge, by key, and why it gave up; of an example that is answered twice, about the first answers."""
    said: dict[str, list[str]] = {}
    for g in given:
        if g.id in task.examples and g.answers and None not in g.answers:
            said.setdefault(g.id, [a for a in g.answers if a is not None])
    return judged(module, task, said, config)


# ---- scores ----------------------------------------------------------------------------------------------------------


def scores(module: ModuleType, task: Task, given: Sequence[Given]) -> list[dict[str, Any]]:
    """A row for each answer in the order they were given: id, status, answers, and what `score` says of those that can be scored.

    status: ok; duplicate (an earlier row answers the same); unknown (no such id); null (no answer).
    """
    rows, seen = [], set()
    for g in given:
        example = task.examples.get(g.id)
        status = (
            "unknown"
            if example is None
            else "null"
            if None in g.answers or not g.answers
            else "duplicate"
            if g.id in seen
            else "ok"
        )
        row: dict[str, Any] = {"id": g.id, "status": status, "answers": g.answers}
        if example is not None and status in ("ok", "duplicate"):
            row |= module.score(example, g.answers, task)
            seen.add(g.id)
        rows.append(row)
    return rows


def measured(module: ModuleType, task: Task, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics by mode with their intervals, nested by part, and the reasons for those that have no value."""
    metrics: dict[str, Any] = {"official": {}, "robust": {}}
    reasons: dict[str, Any] = {"official": {}, "robust": {}}
    for mode, found in module.aggregate(rows, task).items():
        if isinstance(found, Counted):
            flat, why = figures(found, task.seed)
            metrics[mode], reasons[mode] = nested(flat), nested(why)
        else:
            metrics[mode] = found
    return metrics, reasons


def _result(
    module: ModuleType, card: Mapping[str, str], task: Task, config: EvalConfig, hashes: Mapping[str, str], rows: list[dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    metrics, reasons = measured(module, task, rows)
    scored = [r for r in rows if r["status"] == "ok"]
    said = [r["said"] for r in scored if r.get("said") in ("yes", "no")]
    texts = [a for r in scored for a in r["answers"]]
    digest = next(iter(hashes.values())) if len(hashes) == 1 else _sha(json.dumps(sorted(hashes.items()))) if hashes else None
    known: Mapping[str, str] = getattr(module, "KNOWN", {})
    return {
        "schema": SCHEMA, "version": card["VERSION"], "license": card["LICENSE"], "headline": card["HEADLINE"],
        "direction": card["DIRECTION"], "cluster": card["CLUSTER"],
        "data": task.data, "data_sha256": digest, "files": dict(hashes), "data_version": {f: known.get(h) for f, h in hashes.items()},
        "image_folder": task.image_folder, "limit": task.limit, "seed": task.seed, "options": vars(task.options) if task.options is not None else {},
        "n": len(scored), "examples": len(task.examples), "metrics": metrics, "reasons": reasons, "counts": _counts(module, task, rows),
        "yes_ratio": said.count("yes") / len(said) if said else None,
        "mean_length": sum(len(t.split()) for t in texts) / len(texts) if texts else None,
        "prompt_sha256": _sha(json.dumps(sorted(key_of(e) for e in task.examples.values()))),
        "judge": _judge(task), "packages": _packages(),
    }  # fmt: skip


def _counts(module: ModuleType, task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What is wrong with answers. A part of which nothing was answered is not missing: its metrics are null, with that reason."""
    answered = {r["id"] for r in rows if r["status"] == "ok"}
    parts = {task.examples[i].meta.get("part") for i in answered}
    wanted = [e.id for e in task.examples.values() if e.meta.get("part") in parts] if getattr(module, "COMPLETE", True) else []
    tally: Callable[[str], int] = [r["status"] for r in rows].count
    return {
        "missing": sum(i not in answered for i in wanted),
        "unknown_ids": tally("unknown"),
        "duplicate": tally("duplicate"),
        "null": tally("null"),
        "unparsed": sum(bool(r.get("unparsed")) for r in rows if r["status"] == "ok"),
        "judge_errors": sum(reply.get("status", "ok") != "ok" for reply in task.replies.values()),
    }


def _refuse_incomplete(counts: Mapping[str, int]) -> None:
    bad = {
        "missing": "missing",
        "unknown_ids": "of unknown ids",
        "duplicate": "repeated",
        "null": "null",
        "judge_errors": "not judged",
    }
    found = [f"{counts[key]} are {words}" for key, words in bad.items() if counts[key]]
    if found:
        raise InputError(f"--strict: of the answers {', '.join(found)}: complete and correct them, or leave --strict out")


def _judge(task: Task) -> dict[str, Any] | None:
    if not task.replies:
        return None
    names = {
        key: sorted({str(r[key]) for r in task.replies.values() if r.get(key)})
        for key in ("requested", "model", "template_sha256")
    }
    return {"models": names["model"], "requested": names["requested"], "templates": names["template_sha256"]}


def _packages() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _print(result: Mapping[str, Any]) -> None:
    for mode, metrics in result["metrics"].items():
        flat = {k: v for k, v in metrics.items() if v is None or "value" in v}
        parts = {k: v for k, v in metrics.items() if k not in flat}
        for part, values in {**({"": flat} if flat else {}), **parts}.items():
            shown = [
                f"{name} none" if v is None else f"{name} {v['value']:.4g} [{v['low']:.4g}, {v['high']:.4g}]"
                for name, v in values.items() if v is None or "value" in v
            ]  # fmt: skip
            print(f"{mode} {part}".rstrip(), "  ".join(shown))
        for why in dict.fromkeys(_leaves(result["reasons"].get(mode, {}))):
            print(f"{mode}: none where {why}")
    print(f"answered {result['n']} of {result['examples']}")
    print("counts", "  ".join(f"{k} {v}" for k, v in result["counts"].items()))


def _leaves(reasons: Any) -> Iterator[str]:
    if isinstance(reasons, Mapping):
        for inner in reasons.values():
            yield from _leaves(inner)
    else:
        yield str(reasons)


def scored(
    module: ModuleType, examples: Sequence[Example], predictions: Mapping[str, list[str]], folder: Path | None, seed: int
) -> dict[str, Any]:
    """Figures by split of answers to scenes, for the demo and the studies; rows go to scores.jsonl when a folder is given."""
    task = Task(seed=seed)
    rows = [{"id": e.id, **module.score(e, predictions[e.id], task)} for e in examples]
    if folder is not None:
        write_whole(folder / "scores.jsonl", "".join(map(json_line, rows)))
    return dict(module.by_split(rows, seed))
