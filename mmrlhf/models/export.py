"""Write whole models and adapters so that other programs can load them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import CLIPVisionModel, SiglipVisionModel

from mmrlhf.files.atomic import atomic_folder, write_atomic
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

    Plain transformers and PEFT can load the folder as long as the base has not moved. If the folder
    will be renamed, `final_directory` is its name in the model card. Raises InputError for weights
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


def save_model(vlm: VLM, directory: Path) -> None:
    """Write a whole model with its processor and a model card, and replace an earlier one.

    It is written under a temporary name and renamed. Raises InputError for weights that are not
    finite.
    """
    with atomic_folder(directory) as folder:
        save_checkpoint(vlm, folder)
        text = "Trained with mmrlhf.\n\n" + _code(MODEL_LINES + "\n" + PIPELINE_LINES, directory)
        (folder / "README.md").write_text(_front_matter(vlm, "transformers", ()) + text, encoding="utf-8")


def save_checkpoint(vlm: VLM, directory: Path) -> None:
    """Write a model's weights and its processor, as both transformers and vLLM read them.

    Raises InputError for weights that are not finite.
    """
    state_dict = vlm.model.state_dict()
    check_finite(state_dict.items(), f"the model for {directory}", TRAIN_AGAIN)
    towers = [name for name, module in vlm.model.named_modules() if isinstance(module, CLIPVisionModel | SiglipVisionModel)]
    vlm.model.save_pretrained(directory, state_dict={_published_name(name, towers): t for name, t in state_dict.items()})
    vlm.processor.save_pretrained(directory)


def _published_name(name: str, towers: Sequence[str]) -> str:
    """Return a weight's name with `vision_model`, as in published CLIP and SigLIP towers.

    transformers 5 reads names with and without it, and writes them as it read them, or without it
    for a newly created model. vLLM reads only names with it.
    """
    for tower in towers:
        if name.startswith(f"{tower}.") and not name.startswith(f"{tower}.vision_model."):
            return f"{tower}.vision_model.{name.removeprefix(f'{tower}.')}"
    return name


def merge(adapters: Adapters, name: str) -> None:
    """Add an adapter to the weights of its base, and remove all adapters. Not for 4-bit weights.

    Afterwards only save the model: the feature cache is still that of the base. Raises InputError
    if it cannot be merged.
    """
    assert adapters.peft_model is not None
    try:
        adapters.vlm.model = adapters.peft_model.merge_and_unload(adapter_names=[name])
    except RuntimeError as error:  # lora_bias on layers without a bias
        raise InputError(f"the adapter cannot be merged ({str(error).rstrip('.')}): keep it as an adapter") from None


def _front_matter(vlm: VLM, library: str, tags: tuple[str, ...]) -> str:
    """Return the header of a model card. A base in a local folder has no name on the Hub."""
    base = "" if Path(vlm.name).is_dir() else f"base_model: {vlm.name}\n"
    tag_lines = "".join(f"- {tag}\n" for tag in ("mmrlhf", *tags))
    return f"---\n{base}library_name: {library}\npipeline_tag: image-text-to-text\ntags:\n{tag_lines}---\n\n"


def _code(lines: str, directory: Path) -> str:
    return f"```python\n{lines.format(directory=directory)}```\n"
