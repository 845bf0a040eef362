"""The bundled tiny model with two of its six layers, for tests of what a model is used for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from mmrlhf.files.bundled import folder

LAYERS = ("0", "5")
"""The first layer reads the embeddings and the last writes answers, so that these stay words."""


def save_shallow_vlm(target: Path) -> None:
    """Write the bundled checkpoint without its middle layers, which takes half the time to run."""
    source = folder("data") / "tiny_vlm"
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == int(LAYERS[-1]) + 1
    config["text_config"]["num_hidden_layers"] = len(LAYERS)
    (target / "config.json").write_text(json.dumps(config))
    weights = {}
    for name, weight in load_file(source / "model.safetensors").items():
        layer = re.search(r"language_model\.model\.layers\.(\d+)\.", name)
        if layer is None:
            weights[name] = weight
        elif layer[1] in LAYERS:
            weights[f"{name[: layer.start(1)]}{LAYERS.index(layer[1])}{name[layer.end(1) :]}"] = weight
    save_file(weights, target / "model.safetensors", {"format": "pt"})
