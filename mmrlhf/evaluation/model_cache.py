"""Keep a loaded model between benchmarks, so that consecutive ones load it only once."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

from mmrlhf.config import EngineConfig, EvalConfig
from mmrlhf.config.base import PixelConfig

if TYPE_CHECKING:
    from mmrlhf.models.vlm import VLM

LOADING_FIELDS = (*EngineConfig.__dataclass_fields__, *PixelConfig.__dataclass_fields__)
"""Settings with which a model is loaded, besides its files and its dtype."""


class ModelCache:
    """Keeps the last model, with its encoded images, for the next benchmark of the same call."""

    def __init__(self) -> None:
        self._stack, self._key, self._vlm = ExitStack(), "", cast("VLM", None)

    def get_policy(self, config: EvalConfig) -> VLM:
        """Return the configuration's model.

        Load it if it is not the last one, which is closed first.
        """
        settings = [getattr(config, name) for name in LOADING_FIELDS]
        key = json.dumps([config.model_name_or_path, config.adapter_path, config.dtype, *settings])
        if key != self._key:
            from mmrlhf.models.policy import load_policy

            self.close()
            policy = load_policy(str(config.model_name_or_path), config.adapter_path, config.dtype, config, config)
            self._vlm = self._stack.enter_context(policy)
            self._key = key
        return self._vlm

    def close(self) -> None:
        """Release the model."""
        self._stack.close()
        self._key, self._vlm = "", cast("VLM", None)
