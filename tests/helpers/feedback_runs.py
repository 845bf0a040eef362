"""Tiny runs of `mmrlhf feedback`."""

from pathlib import Path

import yaml

from mmrlhf import scenes
from mmrlhf.config import FeedbackConfig

LEXICON = str(Path(scenes.__file__).parent / "lexicon.txt")
TINY = {"lora_r": 4, "max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 2e-3, "save_steps": 1}
NO_SAMPLES = {"num_sample_generations": 0}


def feedback_config(model, output_dir, **settings):
    defaults = {
        "dataset_name": "x", "num_generations": 4, "response_length": 60, "batch_size": 2, "lexicon_file": LEXICON,
        "balance_lengths": False, "min_gap": 1.0, "num_sample_pairs": 4,
    }  # fmt: skip
    return FeedbackConfig(model_name_or_path=model, output_dir=str(output_dir), **{**defaults, **settings})


def write_recipe(folder, name, **settings):
    """Write a recipe of tiny training; return its path."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**TINY, **({} if name == "reward" else NO_SAMPLES), **settings}))
    return str(path)


def true_utility(example, answer):
    return scenes.utility(scenes.generate_scene("selection", int(example.id.split("-")[1]), 0), answer, 4.0)
