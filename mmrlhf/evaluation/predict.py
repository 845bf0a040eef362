"""Answers to a benchmark's questions, from whoever is asked: a checkpoint, a server, or a reward model that prefers one of two.

torch is imported where a checkpoint is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from mmrlhf.config import EngineConfig, EvalConfig
from mmrlhf.evaluation.benchmark import Prediction, Task
from mmrlhf.evaluation.openai_client import endpoint_answers, is_url, make_endpoint, resolve_model_name
from mmrlhf.evaluation.prediction_files import read_predictions
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.files.resumable import file_signature
from mmrlhf.records import Example, InputError

if TYPE_CHECKING:
    from mmrlhf.models.vlm import VLM

ENGINE_FIELDS = tuple(EngineConfig.__dataclass_fields__)


class ModelCache:
    """The model that was asked last, for the next benchmark of a call: with it come the pictures that it has encoded."""

    def __init__(self) -> None:
        self._stack, self._key, self._vlm = ExitStack(), "", cast("VLM", None)

    def get_policy(self, config: EvalConfig) -> VLM:
        """The configuration's model, loaded if it is another than the last one."""
        key = json.dumps(
            [config.model_name_or_path, config.adapter_path, config.dtype, *(getattr(config, k) for k in ENGINE_FIELDS)]
        )
        if key != self._key:
            from mmrlhf.models.policy import load_policy

            self.close()
            self._vlm = self._stack.enter_context(
                load_policy(str(config.model_name_or_path), config.adapter_path, config.dtype, config)
            )
            self._key = key
        return self._vlm

    def close(self) -> None:
        """Let go of the model."""
        self._stack.close()
        self._key, self._vlm = "", cast("VLM", None)


class AnswerCache:
    """Answers of one model under one setting in a file of lines, for every benchmark and run that asks the same of the same pictures.

    The key is the prompt and the pictures' content (where answers are sampled, the row's id as well, which draws follow from); the file's name is
    the model, its adapter and how answers are generated.
    """

    def __init__(self, folder: str, subject: Sequence[Any]) -> None:
        """subject: everything but prompt and pictures that answers depend on. Raises InputError for a folder that cannot be written."""
        refuse_unwritable(Path(folder), "answer_cache_dir")
        digest = hashlib.sha256(json.dumps(subject, default=repr).encode()).hexdigest()[:16]
        self._path = Path(folder) / f"{digest}.jsonl"
        rows = read_jsonl(self._path) if self._path.exists() else []
        if rows and not self._path.read_bytes().endswith(b"\n"):  # a killed run left a line torn
            write_atomic(self._path, "".join(map(json_line, rows)))
        self.model_info: dict[str, Any] = next((r["about"] for r in rows if "about" in r), {})
        self._answers = {r["key"]: r["answers"] for r in rows if "key" in r}

    def get(self, example: Example, is_sampled: bool) -> list[str] | None:
        """What was answered, None if it was never asked."""
        return self._answers.get(self._key(example, is_sampled))

    def add(self, example: Example, answers: list[str], is_sampled: bool, model_info: dict[str, Any]) -> None:
        """Keep an answer."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        header = "" if self._path.exists() else json_line({"about": model_info})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(header + json_line({"key": self._key(example, is_sampled), "answers": answers}))

    @staticmethod
    def _key(example: Example, is_sampled: bool) -> str:
        content = [
            [[m.role, m.content] for m in example.prompt],
            [i.key for i in example.images],
            example.id if is_sampled else "",
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def open_predictions(
    module: ModuleType,
    task: Task,
    examples: Sequence[Example],
    config: EvalConfig,
    name: str,
    num_done: int,
    model_cache: ModelCache | None,
) -> Iterator[tuple[Iterator[tuple[Example, list[str]]], dict[str, Any]]]:
    """Answers as they come, and what a result says of whoever gives them: a reward model, a server, or a checkpoint."""
    if config.reward_model_path is not None:
        yield _reward_preferences(module, task, examples, config), {"reward_model": config.reward_model_path}
        return
    assert config.model_name_or_path is not None
    if is_url(config.model_name_or_path):
        endpoint = resolve_model_name(make_endpoint(config.model_name_or_path, config.served_model, config))
        sampling_params: dict[str, Any] = {
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_tokens": config.response_length,
        }
        if config.stop:
            sampling_params["stop"] = [config.stop]
        yield (
            endpoint_answers(endpoint, examples, sampling_params, config.num_generations, config.seed),
            {"endpoint": endpoint.display_url, "served_model": endpoint.model},
        )
        return
    own_cache = ModelCache()
    try:
        vlm = (model_cache or own_cache).get_policy(config)
        yield _model_answers(vlm, examples, config, name, num_done), _model_info(vlm)
    finally:
        own_cache.close()


def _reward_preferences(
    module: ModuleType, task: Task, examples: Sequence[Example], config: EvalConfig
) -> Iterator[tuple[Example, list[str]]]:
    """What a reward model prefers of each pair, in a judge's words."""
    from mmrlhf.rewards.checkpoint import load_reward_model
    from mmrlhf.rewards.reward_model import AnswerGroup

    model = load_reward_model(str(config.reward_model_path), engine=config)
    examples_by_id = {e.id: e for e in examples}
    pairs = [pair for pair in module.pairs(task) if pair.id in examples_by_id]
    for start in range(0, len(pairs), config.batch_size):
        batch = pairs[start : start + config.batch_size]
        groups = [AnswerGroup(p.images, p.prompt, (p.chosen, p.rejected), p.facts, p.id) for p in batch]
        for pair, scores in zip(batch, model.score(groups), strict=True):
            yield examples_by_id[pair.id], [module.preference_reply(examples_by_id[pair.id], *map(float, scores))]


def _model_answers(
    vlm: VLM, examples: Sequence[Example], config: EvalConfig, name: str, num_done: int
) -> Iterator[tuple[Example, list[str]]]:
    """Examples with their answers as they come; those of one picture stand together, so that it is encoded once."""
    from mmrlhf.engine.rollout import generate_batches
    from mmrlhf.engine.sampling import make_sampling_params
    from mmrlhf.report.progress import progress

    with progress(num_done + len(examples), f"eval {name}", start=num_done) as progress_bar:
        for example_and_answers in generate_batches(
            vlm, examples, make_sampling_params(config), batch_size=config.batch_size, num_generations=config.num_generations,
        ):  # fmt: skip
            progress_bar.advance()
            yield example_and_answers


def _model_info(vlm: VLM) -> dict[str, Any]:
    """What a result says of its model: hashes of weights and chat template."""
    template = getattr(vlm.tokenizer, "chat_template", None) or getattr(vlm.processor, "chat_template", None) or ""
    return {"model_sha256": vlm.fingerprint, "template_sha256": hashlib.sha256(json.dumps(template).encode()).hexdigest()}


def require_images(examples: Sequence[Example]) -> None:
    """All at once, before a model is loaded. Raises InputError."""
    paths = dict.fromkeys(i.path for e in examples for i in e.images if i.path is not None)
    missing = [p for p in paths if not Path(p).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} pictures are missing ({', '.join(missing)}): correct --image_folder or put them there"
        )


def prompt_key(example: Example) -> str:
    """What was asked, in twelve letters: the turns, and the pictures by name."""
    turns = [[m.role, m.content] for m in example.prompt]
    image_names = [Path(i.path).name if i.path is not None else i.key for i in example.images]
    return hashlib.sha256(json.dumps([turns, image_names]).encode()).hexdigest()[:12]


GENERATION_SETTINGS = (
    "temperature",
    "top_p",
    "top_k",
    "min_new_tokens",
    "stop",
    "num_generations",
    "response_length",
    "seed",
    "dtype",
)
"""Settings that answers depend on."""


def collect_predictions(
    name: str,
    version: str,
    module: ModuleType,
    task: Task,
    config: EvalConfig,
    hashes: Mapping[str, str],
    model_cache: ModelCache | None,
) -> tuple[list[Prediction], dict[str, Any]]:
    """The answers in their order, and where they come from. They are in predictions.jsonl afterwards."""
    folder = Path(config.output_dir)
    predictions_path = folder / "predictions.jsonl"
    subject: list[Any] = [name, version, dict(hashes)]
    if config.answers is not None:
        predictions, format_ = read_predictions(config.answers, module, task, config.format)
        source: dict[str, Any] = {
            "answers": {"path": config.answers, "format": format_},
            "model": config.model_name_or_path,
            "adapters": [],
            "generation": None,  # a file does not say how its answers came about
            "template_sha256": None,
        }
        claim_output_dir(folder, [*subject, file_signature(config.answers)])
        write_atomic(predictions_path, "".join(json_line({"id": g.id, "answers": g.answers}) for g in predictions))
        return predictions, source
    if config.reward_model_path is not None:
        if not hasattr(module, "pairs"):
            raise InputError(f"{name} is no benchmark of reward models: give --model DIR")
        if config.model_name_or_path is not None:
            raise InputError("--model and --reward_model_path were both given: give one")
    elif config.model_name_or_path is None:
        raise InputError("there is nothing to measure: give --model DIR, or --answers FILE to score answers that exist")
    settings = {key: getattr(config, key) for key in GENERATION_SETTINGS}
    subject += [file_signature(config.model_name_or_path), file_signature(config.adapter_path), settings]
    subject += (
        [file_signature(config.reward_model_path)]
        if config.reward_model_path
        else [config.served_model]
        if config.served_model
        else []
    )
    _check_same_subject(folder, subject)
    rows = [r for r in (read_jsonl(predictions_path) if predictions_path.exists() else []) if r["id"] in task.examples]
    prompt_keys = {id_: prompt_key(e) for id_, e in task.examples.items()}
    if changed_ids := [r["id"] for r in rows if r.get("key") != prompt_keys[r["id"]]]:
        raise InputError(
            f"{folder} holds answers to other prompts ({changed_ids[0]} and {len(changed_ids) - 1} more): give another --out"
        )
    answers = {r["id"]: r["answers"] for r in rows}
    missing = [e for e in task.examples.values() if e.id not in answers]
    model_info_path = folder / "model.json"
    if promptless_id := next((e.id for e in missing if not e.prompt), None):
        raise InputError(
            f"benchmark {name}: its data does not say how {promptless_id} is asked: add the file of its queries to --data"
        )
    require_images(missing)
    cache, cached_answers, is_sampled = None, {}, config.temperature > 0
    if config.answer_cache_dir and config.model_name_or_path and not is_url(config.model_name_or_path):
        cache = AnswerCache(config.answer_cache_dir, subject[3:])
        cached_answers = {e.id: hit for e in missing if (hit := cache.get(e, is_sampled)) is not None}
        answers, missing = answers | cached_answers, [e for e in missing if e.id not in cached_answers]

    def prediction_line(id_: str) -> str:
        return json_line({"id": id_, "answers": answers[id_], "key": prompt_keys[id_]})

    if missing:
        with open_predictions(module, task, missing, config, name, len(answers), model_cache) as (answer_stream, model_info):
            first_answers = list(islice(answer_stream, 1))  # nothing is written before model and pictures have proved usable
            answer_stream = chain(first_answers, answer_stream)
            claim_output_dir(folder, subject)
            write_atomic(model_info_path, json.dumps(model_info))
            write_atomic(predictions_path, "".join(map(prediction_line, answers)))  # without the line that a killed run left torn
            with predictions_path.open("a", encoding="utf-8") as file:
                for example, example_answers in answer_stream:
                    answers[example.id] = example_answers
                    file.write(prediction_line(example.id))
                    file.flush()
                    if cache is not None:
                        cache.add(example, example_answers, is_sampled, model_info)
    else:
        claim_output_dir(folder, subject)
        if cache is not None and cached_answers:
            write_atomic(model_info_path, json.dumps(cache.model_info))
            write_atomic(predictions_path, "".join(map(prediction_line, answers)))
    source = {
        "model": config.model_name_or_path, "adapters": [config.adapter_path] if config.adapter_path else [], "generation": settings,
        **(json.loads(model_info_path.read_text()) if model_info_path.exists() else {}),
    }  # fmt: skip
    return [Prediction(id_, answers.get(id_, [None])) for id_ in task.examples], source


def _check_same_subject(folder: Path, subject: Sequence[Any]) -> None:
    subject_path = folder / "run_key.json"
    if subject_path.exists() and json.loads(subject_path.read_text()) != json.loads(json.dumps(subject)):
        raise InputError(
            f"{folder} holds answers of another benchmark, data, model, adapter or generation setting: give another --out"
        )


def claim_output_dir(folder: Path, subject: Sequence[Any]) -> None:
    """Make the directory, with what its answers are of. Raises InputError when it holds others."""
    _check_same_subject(folder, subject)
    write_atomic(folder / "run_key.json", json.dumps(subject))
