"""`mmrlhf plan STAGE`: what a stage will hold in memory, before anything is loaded: the architecture is built on the meta device."""

from __future__ import annotations

import os
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from mmrlhf.features import GIB
from mmrlhf.memory import Item, architecture, plan


def memory_there() -> tuple[int, str]:
    """Bytes of the device that a stage would run on, and its name."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return int(found.total_memory), str(found.name)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "main memory (no GPU here)"


def show(config: Any) -> list[Item]:
    """Print the plan and whether it fits; returns it."""
    items = plan(config, architecture(config.model_name_or_path))
    total, (there, device) = sum(item.bytes for item in items), memory_there()
    table = Table(
        title=f"{config.model_name_or_path}, {type(config).__name__.removesuffix('Config').lower()}", title_justify="left"
    )
    for name, justify in (("", "left"), ("GiB", "right"), ("counted as", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for item in items:
        table.add_row(item.name, f"{item.bytes / GIB:.2f}", item.how)
    table.add_section()
    table.add_row("in all", f"{total / GIB:.2f}", "")
    console = Console(highlight=False)
    console.print(table)
    if total <= there:
        console.print(f"fits: {device} has {there / GIB:.1f} GiB", soft_wrap=True)
    else:
        largest = max(items, key=lambda item: item.bytes).name
        advice = {
            "base weights": "--dtype bfloat16 or nf4",
            "gradients and AdamW": "--train lora, or a smaller --lora_r",
            "activations": "--activation_checkpointing, or a smaller --micro_batch_tokens",
        }.get(largest, "a smaller --micro_batch_tokens")
        console.print(f"does not fit: {device} has {there / GIB:.1f} GiB; the most is {largest}: {advice}", soft_wrap=True)
    return items
