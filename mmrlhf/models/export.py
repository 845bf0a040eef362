"""Write whole models and adapters so that other programs can load them by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mmrlhf.files.atomic import write_atomic
from mmrlhf.models.adapters import Adapters, absolute_name
from mmrlhf.models.finite import check_finite
from mmrlhf.models.vlm import VLM
from mmrlhf.records import InputError

ADAPTER_LINES = """from peft import AutoPeftModel
from transformers import AutoProcessor

model = AutoPeftModel.from_pretrained("{directory}", dtype="auto")
processor = AutoProcessor.from_pretrained("{directory}")
"""
MOVED_BASE_LINES = """from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("WHERE_THE_BASE_IS", dtype="auto")
model = PeftModel.from_pretrained(base, "{directory}")
"""
MODEL_LINES = """from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("{directory}", dtype="auto")
processor = AutoProcessor.from_pretrained("{directory}")
"""
PIPELINE_LINES = """from transformers import pipeline

pipe = pipeline("image-text-to-text", model="{directory}")
"""


TRAIN_AGAIN = "nothing is written, train it again with a lower learning rate"


def save_policy(adapters: Adapters, name: str, directory: Path, final_directory: Path | None = None) -> None:
    """Write an adapter, the name of its base, the processor and a model card.

    The folder loads in plain transformers and PEFT as long as the base is where it was. If it will
    be renamed, `final_directory` is what the model card calls it. Raises InputError for weights
    that are not finite.
    """
    vlm = adapters.vlm
    check_finite(adapters.parameters(name).items(), f"the adapter for {directory}", TRAIN_AGAIN)
    adapters.save(name, directory)
    base_name = absolute_name(vlm.name)
    base = {"base": base_name, "base_fingerprint": vlm.fingerprint, "dtype": vlm.dtype}
    write_atomic(directory / "base.json", json.dumps(base))
    vlm.processor.save_pretrained(directory)
    text = (
        f"A LoRA adapter on `{base_name}`, trained with mmrlhf.\n\n"
        + _code(ADAPTER_LINES + "\n" + PIPELINE_LINES, final_directory or directory)
        + "\nIf the base has moved:\n\n"
        + _code(MOVED_BASE_LINES, final_directory or directory)
    )
    write_atomic(directory / "README.md", _front_matter(vlm, "peft", ("lora",)) + text)


def save_model(vlm: VLM, directory: Path, *, made_from: str = "") -> None:
    """Write a whole model with its processor and a model card, and replace an earlier one.

    It is written under a temporary name and renamed. `made_from` is the card's note on what was
    merged. Raises InputError for weights that are not finite.
    """
    check_finite(vlm.model.state_dict().items(), f"the model for {directory}", TRAIN_AGAIN)
    temporary_dir = directory.with_name(f".{directory.name}")
    shutil.rmtree(temporary_dir, ignore_errors=True)
    vlm.model.save_pretrained(temporary_dir)
    vlm.processor.save_pretrained(temporary_dir)
    text = f"Trained with mmrlhf{made_from}.\n\n" + _code(MODEL_LINES + "\n" + PIPELINE_LINES, directory)
    (temporary_dir / "README.md").write_text(_front_matter(vlm, "transformers", ()) + text, encoding="utf-8")
    shutil.rmtree(directory, ignore_errors=True)
    temporary_dir.rename(directory)


def merge(adapters: Adapters, name: str) -> None:
    """Add an adapter to the weights of its base, and remove all adapters. Not for 4-bit weights.

    The model is then only to be saved: the feature cache is still that of the base.
    Raises InputError if it cannot be merged.
    """
    assert adapters.peft_model is not None
    try:
        adapters.vlm.model = adapters.peft_model.merge_and_unload(adapter_names=[name])
    except RuntimeError as error:  # lora_bias on layers without a bias
        raise InputError(f"the adapter cannot be merged ({str(error).rstrip('.')}): keep it as an adapter") from None


def _front_matter(vlm: VLM, library: str, tags: tuple[str, ...]) -> str:
    """Return the head of a model card. A base that is a local path has no name on the Hub."""
    base = "" if Path(vlm.name).is_dir() else f"base_model: {vlm.name}\n"
    tag_lines = "".join(f"- {tag}\n" for tag in ("mmrlhf", *tags))
    return f"---\n{base}library_name: {library}\npipeline_tag: image-text-to-text\ntags:\n{tag_lines}---\n\n"


def _code(lines: str, directory: Path) -> str:
    return f"```python\n{lines.format(directory=directory)}```\n"
