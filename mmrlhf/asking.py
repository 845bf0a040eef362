"""Answers to a benchmark's questions, from whoever is asked: a checkpoint, a server, or a reward model that prefers one of two.

torch is imported where a checkpoint is loaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from mmrlhf.benchmark import Task
from mmrlhf.config import EngineConfig, EvalConfig
from mmrlhf.endpoint import answers_of, endpoint_of, is_address, named
from mmrlhf.records import Example, InputError

if TYPE_CHECKING:
    from mmrlhf.vlm import VLM

ENGINE = tuple(EngineConfig.__dataclass_fields__)


class Loaded:
    """The model that was asked last, for the next benchmark of a call: with it come the pictures that it has encoded."""

    def __init__(self) -> None:
        self._stack, self._key, self._vlm = ExitStack(), "", cast("VLM", None)

    def policy(self, config: EvalConfig) -> VLM:
        """The configuration's model, loaded if it is another than the last one."""
        key = json.dumps([config.model_name_or_path, config.adapter_path, config.dtype, *(getattr(config, k) for k in ENGINE)])
        if key != self._key:
            from mmrlhf.generate import policy

            self.close()
            self._vlm = self._stack.enter_context(
                policy(str(config.model_name_or_path), config.adapter_path, config.dtype, config)
            )
            self._key = key
        return self._vlm

    def close(self) -> None:
        """Let go of the model."""
        self._stack.close()
        self._key, self._vlm = "", cast("VLM", None)


@contextmanager
def answering(
    module: ModuleType, task: Task, examples: Sequence[Example], config: EvalConfig, name: str, done: int, loaded: Loaded | None
) -> Iterator[tuple[Iterator[tuple[Example, list[str]]], dict[str, Any]]]:
    """Answers as they come, and what a result says of whoever gives them: a reward model, a server, or a checkpoint."""
    if config.reward_model_path is not None:
        yield _preferring(module, task, examples, config), {"reward_model": config.reward_model_path}
        return
    assert config.model_name_or_path is not None
    if is_address(config.model_name_or_path):
        place = named(endpoint_of(config.model_name_or_path, config.served_model, config))
        how: dict[str, Any] = {"temperature": config.temperature, "top_p": config.top_p, "max_tokens": config.response_length}
        if config.stop:
            how["stop"] = [config.stop]
        yield (
            answers_of(place, examples, how, config.num_generations, config.seed),
            {"endpoint": place.shown, "served_model": place.model},
        )
        return
    own = Loaded()
    try:
        vlm = (loaded or own).policy(config)
        yield _predict(vlm, examples, config, name, done), _of_model(vlm)
    finally:
        own.close()


def _preferring(
    module: ModuleType, task: Task, examples: Sequence[Example], config: EvalConfig
) -> Iterator[tuple[Example, list[str]]]:
    """What a reward model prefers of each pair, in a judge's words."""
    from mmrlhf.artefact import load_reward_model
    from mmrlhf.rewards import Group

    model = load_reward_model(str(config.reward_model_path), engine=config)
    wanted = {e.id: e for e in examples}
    pairs = [pair for pair in module.pairs(task) if pair.id in wanted]
    for start in range(0, len(pairs), config.batch_size):
        part = pairs[start : start + config.batch_size]
        groups = [Group(p.images, p.prompt, (p.chosen, p.rejected), p.facts, p.id) for p in part]
        for pair, scores in zip(part, model.score(groups), strict=True):
            yield wanted[pair.id], [module.preferred(wanted[pair.id], *map(float, scores))]


def _predict(
    vlm: VLM, examples: Sequence[Example], config: EvalConfig, name: str, done: int
) -> Iterator[tuple[Example, list[str]]]:
    """Examples with their answers as they come; those of one picture stand together, so that it is encoded once."""
    from mmrlhf.generate import sampling
    from mmrlhf.rollout import answer_all
    from mmrlhf.run import progress

    with progress(done + len(examples), f"eval {name}", start=done) as steps:
        for pair in answer_all(
            vlm, examples, sampling(config), batch_size=config.batch_size, num_generations=config.num_generations, seed=config.seed,
        ):  # fmt: skip
            steps.advance()
            yield pair


def _of_model(vlm: VLM) -> dict[str, Any]:
    """What a result says of its model: hashes of weights and chat template."""
    template = getattr(vlm.tokenizer, "chat_template", None) or getattr(vlm.processor, "chat_template", None) or ""
    return {"model_sha256": vlm.fingerprint, "template_sha256": hashlib.sha256(json.dumps(template).encode()).hexdigest()}


def refuse_missing_pictures(examples: Sequence[Example]) -> None:
    """All at once, before a model is loaded. Raises InputError."""
    paths = dict.fromkeys(i.path for e in examples for i in e.images if i.path is not None)
    absent = [p for p in paths if not Path(p).is_file()]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(paths)} pictures are missing ({', '.join(absent)}): correct --image_folder or put them there"
        )


def key_of(example: Example) -> str:
    """What was asked, in twelve letters: the turns, and the pictures by name."""
    said = [[m.role, m.content] for m in example.prompt]
    pictures = [Path(i.path).name if i.path is not None else i.key for i in example.images]
    return hashlib.sha256(json.dumps([said, pictures]).encode()).hexdigest()[:12]
