"""How the engine runs a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class EngineState:
    """How the engine runs a model, and the results of its self-checks so far.

    Set from the configuration at load; a check narrows it on the first prompts of a run
    (`prefill.is_verified`, `shared_prefix.is_supported`) and never widens it again.
    """

    share_prefix: Literal["auto", "on", "off"] = "auto"
    """Whether a prompt is prefilled once for all of its answers. "auto": not checked yet. "off":
    every answer runs with its whole prompt, on the naive path."""
    supports_packing: bool = False
    """Whether several answers to a prompt may share a masked sequence (`kv_cache`)."""
    use_cuda_graphs: bool = False
    """Whether decode steps have fixed shapes, so that they can be captured as a CUDA graph."""
    is_verified_on_text: bool = False
    """Whether the check has passed on a prompt without images. `share_prefix` stays "auto" until a
    prompt with images has been checked."""
    share_prefix_across_prompts: Literal["auto", "on", "off"] = "auto"
    """Whether the common prefix of several prompts is prefilled once (`shared_prefix`)."""
