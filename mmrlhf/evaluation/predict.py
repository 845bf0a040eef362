"""Answers to a benchmark's questions: from a checkpoint, a server, a reward model's preferences, or
a file.

torch is imported only where a checkpoint is loaded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmrlhf.config import EvalConfig
from mmrlhf.config.base import PixelConfig
from mmrlhf.evaluation.answer_cache import AnswerCache
from mmrlhf.evaluation.benchmark import Benchmark, Prediction, Task, text_sha256
from mmrlhf.evaluation.model_cache import ModelCache
from mmrlhf.evaluation.openai_client import display_name, endpoint_answers, is_url, make_endpoint, resolve_model_name
from mmrlhf.evaluation.prediction_files import read_predictions
from mmrlhf.files import lock
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.inputs import content_inputs, differences, image_digest, join_differences
from mmrlhf.files.jsonl import json_line, read_jsonl
from mmrlhf.records import Example, InputError

if TYPE_CHECKING:
    from mmrlhf.models.vlm import VLM

PIXEL_LIMITS = tuple(PixelConfig.__dataclass_fields__)
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
"""Settings that answers depend on. They are part of an output directory's run key."""
CHECKPOINT_SETTINGS = ("adapter_path", "top_k", "min_new_tokens")
"""Settings of answers that are not sent to a server. Settings of loading (dtype, pixel limits) are
allowed with a server, for a judge or the other models of a suite."""
AnswerStream = Iterator[tuple[Example, list[str]]]
"""Examples with their answers, in the order in which they are answered."""


def collect_predictions(
    benchmark: Benchmark,
    task: Task,
    config: EvalConfig,
    hashes: Mapping[str, str],
    model_cache: ModelCache | None,
) -> tuple[list[Prediction], dict[str, Any]]:
    """Return the answers, and the entries of result.json about their origin. They are in
    predictions.jsonl afterwards.

    Raises InputError if no model or file gives answers, or the output directory contains answers
    from another source.
    """
    run_key: dict[str, Any] = {"benchmark": benchmark.name, "version of the benchmark": benchmark.version}
    run_key |= {f"data file {name}": {"path": name, "sha256": sha256} for name, sha256 in hashes.items()}
    if config.answers is not None:
        return _import_answers(benchmark, task, config, run_key)
    _require_one_model(benchmark, config)
    return _generate_answers(benchmark, task, config, run_key, model_cache)


def _import_answers(
    benchmark: Benchmark, task: Task, config: EvalConfig, run_key: dict[str, Any]
) -> tuple[list[Prediction], dict[str, Any]]:
    """Read the user's file of answers, and write them to predictions.jsonl."""
    assert config.answers is not None
    predictions, format_, notes = read_predictions(config.answers, benchmark, task, config.format)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    output_dir = Path(config.output_dir)
    claim_output_dir(output_dir, run_key | _contents(config, "answers"))
    lines = [json_line({"id": prediction.id, "answers": prediction.answers}) for prediction in predictions]
    write_atomic(output_dir / "predictions.jsonl", "".join(lines))
    return predictions, {
        "answers": {"path": config.answers, "format": format_, "notes": notes},
        "model": display_name(config.model_name_or_path),
        "adapters": [],
        # A file does not say how its answers were generated.
        "generation": None,
        "template_sha256": None,
    }


def _require_one_model(benchmark: Benchmark, config: EvalConfig) -> None:
    if config.reward_model_path is None:
        if config.model_name_or_path is None:
            raise InputError("there is nothing to measure: give --model DIR, or --answers FILE to score existing answers")
        if is_url(config.model_name_or_path):
            _refuse_settings_of_checkpoints(config)
        return
    if not benchmark.has_pairs:
        raise InputError(f"{benchmark.name} is not a benchmark for reward models: give --model DIR")
    if config.model_name_or_path is not None:
        raise InputError("--model and --reward_model_path were both given: give one")


def _refuse_settings_of_checkpoints(config: EvalConfig) -> None:
    """Raise InputError for a setting that would not reach the server that answers."""
    for name in CHECKPOINT_SETTINGS:
        value = getattr(config, name)
        if value != EvalConfig.__dataclass_fields__[name].default:
            raise InputError(
                f"--{name} {value} cannot be sent to the server {display_name(config.model_name_or_path)}: "
                "set it where the server is started, and leave it out here"
            )


def _generate_answers(
    benchmark: Benchmark,
    task: Task,
    config: EvalConfig,
    run_key: dict[str, Any],
    model_cache: ModelCache | None,
) -> tuple[list[Prediction], dict[str, Any]]:
    """Answer what predictions.jsonl and the answer cache lack, writing each answer as it comes."""
    output_dir = Path(config.output_dir)
    model_info_path = output_dir / "model.json"
    settings = _generation_settings(config)
    generation_key = settings | _contents(config, "model_name_or_path", "adapter_path", "reward_model_path")
    if config.served_model:
        generation_key["served_model"] = config.served_model
    run_key = run_key | generation_key
    _check_same_run_key(output_dir, run_key)
    file = _PredictionsFile(output_dir, task)
    missing = [example for example in task.examples.values() if example.id not in file.answers]
    require_prompts(benchmark, missing)
    require_images(missing)

    cache, is_sampled, num_cached = None, config.temperature > 0, 0
    if config.answer_cache_dir and config.model_name_or_path and not is_url(config.model_name_or_path):
        cache = AnswerCache(config.answer_cache_dir, generation_key)
        cached = {e.id: hit for e in missing if (hit := cache.get(e, is_sampled)) is not None}
        missing = [example for example in missing if example.id not in cached]
        file.answers |= cached
        num_cached = len(cached)
    if missing:
        num_done = len(file.answers)
        with open_predictions(benchmark, task, missing, config, num_done, model_cache) as (stream, model_info):
            # Nothing is written before the first answer shows that model and images are usable.
            first_answers = list(islice(stream, 1))
            claim_output_dir(output_dir, run_key)
            write_atomic(model_info_path, json.dumps(model_info))
            for example, answers in file.append(chain(first_answers, stream)):
                if cache is not None:
                    cache.add(example, answers, is_sampled, model_info)
    else:
        claim_output_dir(output_dir, run_key)
        if cache is not None and num_cached:
            write_atomic(model_info_path, json.dumps(cache.model_info))
            file.rewrite()
    source = {
        "model": display_name(config.model_name_or_path),
        "adapters": [config.adapter_path] if config.adapter_path else [],
        "generation": settings,
        **(json.loads(model_info_path.read_text()) if model_info_path.exists() else {}),
    }
    return [Prediction(id_, file.answers.get(id_, [None])) for id_ in task.examples], source


def _generation_settings(config: EvalConfig) -> dict[str, Any]:
    """Return the settings that answers depend on; a pixel limit only if it is given, so that
    outputs made before the limits were recorded can be resumed and compared."""
    limits = {name: limit for name in PIXEL_LIMITS if (limit := getattr(config, name)) is not None}
    return {name: getattr(config, name) for name in GENERATION_SETTINGS} | limits


def _contents(config: EvalConfig, *names: str) -> dict[str, Any]:
    """Return settings that name files, with the hashes of files on this machine."""
    contents = content_inputs(config)
    return {name: contents.get(name, getattr(config, name)) for name in names}


class _PredictionsFile:
    """The answers in an output directory's predictions.jsonl, by id."""

    def __init__(self, output_dir: Path, task: Task) -> None:
        """Read the answers of an interrupted run.

        Raises InputError if they belong to other prompts than the task's, or to other images.
        """
        self._path = output_dir / "predictions.jsonl"
        self._prompt_keys = {id_: prompt_key(example) for id_, example in task.examples.items()}
        self._image_keys = {id_: _images_key(example) for id_, example in task.examples.items()}
        rows = read_jsonl(self._path) if self._path.exists() else []
        rows = [row for row in rows if row["id"] in task.examples]
        changed = [row["id"] for row in rows if row.get("key") != self._prompt_keys[row["id"]]]
        changed_images = [
            row["id"] for row in rows if self._image_keys[row["id"]] not in (None, row.get("images", self._image_keys[row["id"]]))
        ]
        if changed_images:
            raise InputError(
                f"{output_dir} holds answers about other images ({changed_images[0]} and {len(changed_images) - 1} more have "
                "changed since): give another --out"
            )
        if changed:
            raise InputError(
                f"{output_dir} holds answers to other prompts ({changed[0]} and {len(changed) - 1} more): give another --out"
            )
        self.answers: dict[str, list[str | None]] = {row["id"]: row["answers"] for row in rows}

    def rewrite(self) -> None:
        """Rewrite the file with cached answers, without an incomplete last line of a killed run."""
        write_atomic(self._path, "".join(map(self._line, self.answers)))

    def append(self, stream: AnswerStream) -> AnswerStream:
        """Write each answer to disk at once, and yield it."""
        self.rewrite()
        with self._path.open("a", encoding="utf-8") as file:
            for example, answers in stream:
                lock.check(self._path.with_name(".lock"), self._path.parent, "out")
                self.answers[example.id] = list(answers)
                file.write(self._line(example.id))
                file.flush()
                yield example, answers

    def _line(self, id_: str) -> str:
        row = {"id": id_, "answers": self.answers[id_], "key": self._prompt_keys[id_]}
        images = {"images": self._image_keys[id_]} if self._image_keys[id_] else {}
        return json_line(row | images)


def require_prompts(benchmark: Benchmark, examples: Sequence[Example]) -> None:
    """Raise InputError for an example without a question in the data."""
    without_prompt = next((example.id for example in examples if not example.prompt), None)
    if without_prompt is not None:
        raise InputError(
            f"benchmark {benchmark.name}: its data does not say how {without_prompt} is asked: "
            "add the file of its queries to --data"
        )


def require_images(examples: Sequence[Example]) -> None:
    """Raise InputError that names all missing images at once, before a model is loaded."""
    paths = dict.fromkeys(image.path for example in examples for image in example.images if image.path is not None)
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(paths)} images are missing ({', '.join(missing)}): correct --image_folder or put them there"
        )


def prompt_key(example: Example) -> str:
    """Return a hash of the question, in twelve hexadecimal digits: the turns, and the images by
    file name."""
    turns = [[turn.role, turn.content, *turn.image_positions] for turn in example.prompt]
    image_names = [Path(image.path).name if image.path is not None else image.key for image in example.images]
    return text_sha256(json.dumps([turns, image_names]))[:12]


def _images_key(example: Example) -> str | None:
    """Return a hash of an example's images, None without images or if one is missing."""
    digests = [image_digest(image) for image in example.images]
    return text_sha256("".join(map(str, digests)))[:12] if digests and None not in digests else None


def _check_same_run_key(output_dir: Path, run_key: Mapping[str, Any]) -> None:
    path = output_dir / "run_key.json"
    if not path.exists():
        return
    try:
        saved = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):  # damaged, or of an earlier version
        raise InputError(
            f"{path} does not say what the answers there are made from: remove {output_dir}, or give another --out"
        ) from None
    # The JSON round trip turns tuples into lists, as the file has them.
    if changes := differences(saved, json.loads(json.dumps(run_key))):
        raise InputError(f"{output_dir} holds answers made from other inputs, {join_differences(changes)}: give another --out")


def claim_output_dir(output_dir: Path, run_key: Mapping[str, Any]) -> None:
    """Record the inputs and settings of the answers in the output directory.

    Raises InputError if it contains answers from others.
    """
    _check_same_run_key(output_dir, run_key)
    output_dir.mkdir(parents=True, exist_ok=True)
    write_atomic(output_dir / "run_key.json", json.dumps(run_key))


# ---- who answers ---------------------------------------------------------------------------------


@contextmanager
def open_predictions(
    benchmark: Benchmark,
    task: Task,
    examples: Sequence[Example],
    config: EvalConfig,
    num_done: int,
    model_cache: ModelCache | None,
) -> Iterator[tuple[AnswerStream, dict[str, Any]]]:
    """Return the answers to these examples as an iterator, and a result's entries about the model
    that gives them.

    The model is the configuration's: a reward model, a server, or a checkpoint. num_done: examples
    that are already answered, for the progress bar.
    """
    if config.reward_model_path is not None:
        yield _reward_preferences(benchmark, task, examples, config), {"reward_model": config.reward_model_path}
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
        stream = endpoint_answers(endpoint, examples, sampling_params, config.num_generations, config.seed)
        yield stream, {"endpoint": endpoint.display_url, "served_model": endpoint.model}
        return
    own_cache = ModelCache()
    try:
        vlm = (model_cache or own_cache).get_policy(config)
        yield _model_answers(vlm, examples, config, benchmark.name, num_done), _model_info(vlm)
    finally:
        own_cache.close()


def _reward_preferences(benchmark: Benchmark, task: Task, examples: Sequence[Example], config: EvalConfig) -> AnswerStream:
    """Yield which answer of each pair a reward model prefers, in a judge's words."""
    from mmrlhf.rewards.checkpoint import load_reward_model
    from mmrlhf.rewards.reward_model import AnswerGroup

    model = load_reward_model(
        str(config.reward_model_path), engine=config, pixels=config, base_model_name_or_path=config.base_model_name_or_path
    )
    examples_by_id = {example.id: example for example in examples}
    pairs = [pair for pair in benchmark.pairs(task) if pair.id in examples_by_id]
    escape = model.role.vlm.escape_control_tokens  # models wrote these answers
    for start in range(0, len(pairs), config.batch_size):
        batch = pairs[start : start + config.batch_size]
        groups = [AnswerGroup(p.images, p.prompt, (escape(p.chosen), escape(p.rejected)), p.facts, p.id) for p in batch]
        for pair, (chosen, rejected) in zip(batch, model.score(groups), strict=True):
            example = examples_by_id[pair.id]
            yield example, [benchmark.preference_reply(example, float(chosen), float(rejected))]


def _model_answers(vlm: VLM, examples: Sequence[Example], config: EvalConfig, name: str, num_done: int) -> AnswerStream:
    """Yield the answers of a model in this process, batch by batch, with a progress bar."""
    from mmrlhf.engine.rollout import generate_batches
    from mmrlhf.engine.sampling import make_sampling_params
    from mmrlhf.report.progress import progress

    with progress(num_done + len(examples), f"eval {name}", start=num_done) as progress_bar:
        for example, answers in generate_batches(
            vlm,
            examples,
            make_sampling_params(config),
            batch_size=config.batch_size,
            num_generations=config.num_generations,
        ):
            progress_bar.advance()
            yield example, answers


def _model_info(vlm: VLM) -> dict[str, Any]:
    """Return a result's entries about its model: hashes of weights and chat template."""
    template = getattr(vlm.tokenizer, "chat_template", None) or getattr(vlm.processor, "chat_template", None) or ""
    return {"model_sha256": vlm.fingerprint, "template_sha256": text_sha256(json.dumps(template))}
