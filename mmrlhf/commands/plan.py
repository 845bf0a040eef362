"""`mmrlhf plan STAGE`: estimate the memory of a training stage before anything is loaded.

The architecture is built on the meta device, without weights.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmrlhf.config import PPOConfig
from mmrlhf.models.image_features import GIB
from mmrlhf.models.sharding import check_can_be_sharded
from mmrlhf.training.memory import MemoryItem, build_meta_model, estimate_memory


def available_memory() -> tuple[int, str]:
    """Return the memory in bytes of the device that a stage would run on, and the device's name."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return int(properties.total_memory), str(properties.name)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "main memory (no GPU here)"


def _vllm_memory(config: PPOConfig, base: MemoryItem, gpu_bytes: int | None) -> MemoryItem:
    """Return the memory that vLLM takes in the trainer's process, on a GPU or in main memory."""
    if gpu_bytes is None:
        return MemoryItem("vLLM", base.num_bytes + GIB, "the base once more, and a cache of 1 GiB")
    share = config.vllm_gpu_memory_utilization
    calculation = f"vllm_gpu_memory_utilization: {share:g} x {gpu_bytes / GIB:.1f} GiB, its own base included"
    return MemoryItem("vLLM", int(share * gpu_bytes), calculation)


def print_memory_estimate(config: Any, num_shards: int = 1, gpu_memory_gib: int | None = None) -> list[MemoryItem]:
    """Print the estimate for a process and whether it fits, and return its items.

    `num_shards` processes split the base over them. `gpu_memory_gib` is the memory of a GPU of
    another machine. Raises InputError if the base cannot be read or split.
    """
    if num_shards > 1:
        check_can_be_sharded(config)
    items = estimate_memory(config, build_meta_model(config.model_name_or_path), num_shards=num_shards)
    available_bytes, device = (gpu_memory_gib * GIB, "the GPU") if gpu_memory_gib else available_memory()
    if isinstance(config, PPOConfig) and config.rollout_engine == "vllm":
        is_gpu = bool(gpu_memory_gib) or torch.cuda.is_available()
        items.append(_vllm_memory(config, items[0], available_bytes if is_gpu else None))
    total_bytes = sum(item.num_bytes for item in items)
    stage = type(config).__name__.removesuffix("Config").lower()
    processes = f", each of {num_shards} processes" if num_shards > 1 else ""
    table = Table(title=f"{config.model_name_or_path}, {stage}{processes}", title_justify="left")
    for name, justify in (("", "left"), ("GiB", "right"), ("counted as", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for item in items:
        table.add_row(item.name, f"{item.num_bytes / GIB:.2f}", item.calculation)
    table.add_section()
    table.add_row("total", f"{total_bytes / GIB:.2f}", "")
    console = Console(highlight=False)
    console.print(table)
    if total_bytes <= available_bytes:
        console.print(f"fits: {device} has {available_bytes / GIB:.1f} GiB", soft_wrap=True)
        return items
    largest = max(items, key=lambda item: item.num_bytes).name
    advice = {
        "base weights": "--dtype bfloat16 or nf4, or more processes that split it (--num_shards)",
        "gradients and AdamW": "--tuning lora, or a smaller --lora_r",
        "activations": "--activation_checkpointing, or a smaller --micro_batch_tokens",
        "vLLM": "a smaller --vllm_gpu_memory_utilization, or a vLLM server on another GPU",
    }.get(largest, "a smaller --micro_batch_tokens")
    console.print(
        f"does not fit: {device} has {available_bytes / GIB:.1f} GiB; the largest item is {largest}: try {advice}", soft_wrap=True
    )
    return items
