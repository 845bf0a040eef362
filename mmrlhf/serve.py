"""`mmrlhf serve RUN`: answer chat completions with a policy, and score answers with a reward model.

RUN is the folder of a training run, a checkpoint, or a reward model. Policy and reward model share
one copy of their base if they were trained on the same one. Requests that arrive together run in
one batch.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmrlhf.config import ServeConfig
from mmrlhf.config.loader import read_yaml, stage_of
from mmrlhf.engine.rollout import prompts_from_examples, sample_completions
from mmrlhf.files import stop_signals
from mmrlhf.files.stop_signals import Stopped
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.models.policy import check_is_adapter, check_same_base
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.serving.batches import BatchQueue
from mmrlhf.serving.http import Server, Service, new_completion
from mmrlhf.serving.requests import ChatRequest, parse_chat, parse_score
from mmrlhf.text.addresses import is_loopback

CHAT_PATH, SCORE_PATH = "/v1/chat/completions", "/score"


@dataclass(frozen=True)
class Models:
    """The served models. Either may be None."""

    policy: Role | None
    reward_model: RewardModel | None


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM, then answer waiting requests; a second signal ends the wait.

    Raises InputError if RUN or the reward model cannot be loaded, or the address cannot be used.
    """
    models = load_models(config)
    try:
        with serving(config, models) as server:
            _print_address(config, models, server)
            try:
                while True:  # a signal that another thread receives does not end a wait without a limit
                    time.sleep(1)
            except KeyboardInterrupt:
                pass
            again = f"Ctrl-C again, after {stop_signals.REPEAT_SECONDS:g} seconds, refuses them"
            _notify(f"stopping: answering the requests that wait ({again})")
    except KeyboardInterrupt as error:
        # The model is still running, and torch aborts an interpreter that ends meanwhile.
        with contextlib.suppress(KeyboardInterrupt):
            _notify("stopped: the requests that waited were refused")
        os._exit(error.exit_code if isinstance(error, Stopped) else 130)


def _print_address(config: ServeConfig, models: Models, server: Server) -> None:
    parts = [path for path, model in ((CHAT_PATH, models.policy), (SCORE_PATH, models.reward_model)) if model is not None]
    print(f"serving {config.model_name_or_path} at {address_of(server)}: {', '.join(parts)} (Ctrl-C stops)", flush=True)
    if server.service.token is not None:
        print(f"token: {server.service.token} (send the header Authorization: Bearer TOKEN)", flush=True)


def _notify(text: str) -> None:
    """Print a line, unless nobody reads it: Ctrl-C also ends the `tee` of `serve RUN | tee log`."""
    try:
        print(text, flush=True)
    except OSError:
        stop_signals.discard_output()


@contextlib.contextmanager
def serving(config: ServeConfig, models: Models) -> Iterator[Server]:
    """Serve in the background while the block runs; at its end, answer waiting requests.

    If a KeyboardInterrupt ends the block, or the wait, waiting requests are refused. Raises
    InputError if the address cannot be used.
    """
    queue = BatchQueue(lambda key, items: run_batch(models, config, key, items), config.batch_size, config.max_waiting)
    try:
        server = Server(config.host, config.port, make_service(config, models, queue))
    except OSError as error:
        raise InputError(
            f"cannot listen on {config.host}, port {config.port} ({error.strerror}): give another --host or --port"
        ) from None
    # Daemons: after a second Ctrl-C the model may still be running.
    worker = threading.Thread(target=queue.work, daemon=True)
    worker.start()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        try:
            yield server
        except Exception:  # a failure of the block is none of those who wait
            _drain(queue, worker)
            raise
        _drain(queue, worker)
    finally:  # also after a second Ctrl-C
        queue.abandon()
        server.shutdown()
        server.server_close()


def _drain(queue: BatchQueue, worker: threading.Thread) -> None:
    queue.close()
    while worker.is_alive():  # as above: a second signal must be noticed
        worker.join(1)


def address_of(server: Server) -> str:
    host, port = server.server_address[:2]
    return f"http://[{host!s}]:{port}" if ":" in str(host) else f"http://{host!s}:{port}"


# ---- models --------------------------------------------------------------------------------------


def load_models(config: ServeConfig) -> Models:
    """Load the policy and the reward model. Raises InputError if there is neither."""
    base, adapter_path, reward_model_path = resolve_run(config.model_name_or_path)
    config = with_pixels_of_run(config)
    if config.adapter_path is not None:
        adapter_path = config.adapter_path
    if config.reward_model_path is not None:
        reward_model_path = config.reward_model_path
    if base is None:
        assert reward_model_path is not None
        return Models(None, load_reward_model(reward_model_path, max_length=config.max_length, engine=config, pixels=config))
    if adapter_path is not None:
        check_is_adapter(Path(adapter_path))
    adapters = Adapters(load(base, config.dtype, engine=config, pixels=config))
    if adapter_path is not None:
        check_same_base(Path(adapter_path), adapters.vlm)
        adapters.load("policy", Path(adapter_path), trainable=False)
    reward_model = None
    if reward_model_path is not None:
        reward_model = load_reward_model(reward_model_path, adapters, config.max_length, engine=config, pixels=config)
    return Models(Role(adapters, None if adapter_path is None else "policy"), reward_model)


def resolve_run(name: str) -> tuple[str | None, str | None, str | None]:
    """Return the base, the adapter and the reward model of a run's folder.

    A checkpoint or a Hub id is a base; a reward model has no policy. Raises InputError for a run
    that has not finished.
    """
    path = Path(name)
    if (path / "reward.json").is_file():
        return None, None, name
    if not (path / "config.yaml").is_file():
        return name, None, None
    settings = read_yaml(path / "config.yaml")
    stage = stage_of(settings)
    if not (path / "finished.json").is_file():
        raise InputError(f"{name} is a run of {stage} that has not finished: finish it, or give a checkpoint")
    if stage in ("sft", "rft"):
        return str(path / "model"), None, None
    if stage in ("ppo", "dpo") or (stage == "feedback" and (path / "policy").is_dir()):
        return _base_of(path / "policy", str(settings["model_name_or_path"])), str(path / "policy"), None
    raise InputError(f"{name} is a run of {stage}, which has no model to serve: give a run of sft, reward, dpo, rft or ppo")


def with_pixels_of_run(config: ServeConfig) -> ServeConfig:
    """Return the settings with the pixel limits of RUN's training, if none are given."""
    path = Path(config.model_name_or_path, "config.yaml")
    settings = read_yaml(path) if path.is_file() else {}
    return replace(
        config,
        min_pixels=settings.get("min_pixels") if config.min_pixels is None else config.min_pixels,
        max_pixels=settings.get("max_pixels") if config.max_pixels is None else config.max_pixels,
    )


def _base_of(adapter: Path, name: str) -> str:
    """Return the base of a run's adapter, whose path is absolute, or its `name` in the settings."""
    try:
        base = str(json.loads((adapter / "base.json").read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, KeyError, TypeError):
        return name
    return base if Path(base).is_dir() or not Path(base).is_absolute() else name


# ---- requests ------------------------------------------------------------------------------------


def make_service(config: ServeConfig, models: Models, queue: BatchQueue) -> Service:
    """Return the server's functions. On other than local addresses it requires a token."""

    def chat(body: Any) -> dict[str, Any]:
        request = parse_chat(body, config.response_length)
        result: dict[str, Any] = queue.submit((CHAT_PATH, request.params, request.num_answers), request).result()
        return result

    def score(body: Any) -> dict[str, Any]:
        scores = queue.submit((SCORE_PATH,), parse_score(body)).result()
        return {"object": "scores", "model": config.reward_model_path or config.model_name_or_path, "scores": scores}

    post: dict[str, Callable[[Any], dict[str, Any]]] = {}
    absent = {}
    if models.policy is not None:
        post[CHAT_PATH] = chat
    else:
        absent[CHAT_PATH] = "this server has no policy: it serves a reward model"
    if models.reward_model is not None:
        post[SCORE_PATH] = score
    else:
        absent[SCORE_PATH] = "this server has no reward model: start it with --reward_model_path"
    listing: dict[str, Any] = {
        "object": "list",
        "data": [{"id": config.model_name_or_path, "object": "model", "owned_by": "mmrlhf"}],
    }

    def health() -> dict[str, Any]:
        queue.check_open()
        return {"status": "ok", "waiting": len(queue)}

    get: dict[str, Callable[[], dict[str, Any]]] = {"/v1/models": lambda: listing, "/health": health}
    return Service(post, get, absent, None if is_loopback(config.host) else secrets.token_urlsafe(24))


def run_batch(models: Models, config: ServeConfig, key: Hashable, items: Sequence[Any]) -> list[Any]:
    """Answer requests of one kind together. Raises InputError if one of them cannot be used."""
    if isinstance(items[0], AnswerGroup):
        assert models.reward_model is not None
        escape = models.reward_model.role.vlm.escape_control_tokens
        return models.reward_model.score([replace(group, answers=tuple(map(escape, group.answers))) for group in items])
    assert models.policy is not None
    return complete_chats(models.policy, config, items)


def complete_chats(policy: Role, config: ServeConfig, requests: Sequence[ChatRequest]) -> list[dict[str, Any]]:
    """Return a completion for each request; all have equal sampling settings."""
    n, params = requests[0].num_answers, requests[0].params
    # A seeded request's answers must not depend on the others: a repeated id gets other noise.
    groups = [requests] if len({r.example.id for r in requests}) == len(requests) else [[r] for r in requests]
    completions = []
    with policy.active():
        for group in groups:
            prompts = prompts_from_examples(
                policy.vlm, [request.example for request in group], config.max_length - params.max_tokens
            )
            sampled = sample_completions(policy.vlm, prompts, n, params)
            answers = list(zip(sampled.texts, sampled.finished_N.tolist(), strict=True))
            num_tokens = sampled.mask_NT.sum(1).int().tolist()
            for i, prompt in enumerate(prompts):
                own = slice(i * n, (i + 1) * n)
                tokens = sum(num_tokens[own])
                completions.append(new_completion(config.model_name_or_path, answers[own], len(prompt.token_ids), tokens))
    return completions
