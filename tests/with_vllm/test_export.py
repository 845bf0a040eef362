"""vLLM reads what is exported, and answers as transformers and PEFT do."""

from __future__ import annotations

import io
import json
import os
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from sys import executable
from typing import Any

import pytest
import torch
import transformers as hf
from PIL import Image

from mmrlhf.commands.export import export
from mmrlhf.config import ExportConfig, SFTConfig
from mmrlhf.models.policy import load_policy
from mmrlhf.sft import sft
from tests.helpers import vllm_greedy
from tests.helpers.family_setup import IMAGE_A, family_examples
from tests.helpers.stages import save_start_adapter
from tests.helpers.tiny_models import llava
from tests.helpers.tiny_parts import VISION_CONFIG, build_text_config

pytestmark = pytest.mark.engine
MAX_DIFFERENCE = 1e-3
"""Of log-probs, in nats."""


def vllm_python() -> str:
    """Return the Python that has vLLM: that of VLLM_PYTHON, or this one."""
    python = os.environ.get("VLLM_PYTHON") or (executable if find_spec("vllm") else "")
    if not python:
        pytest.skip("needs vLLM: set VLLM_PYTHON to the Python of an environment that has it")
    return python


def build_wide_llava(directory: Path) -> None:
    """Write a tiny LLaVA with heads of 32 numbers: vLLM takes no smaller ones on a CPU."""
    torch.manual_seed(0)
    processor, _ = llava()
    sizes = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    vision_sizes = VISION_CONFIG | {"hidden_size": 64, "intermediate_size": 128}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(image_size=56, patch_size=14, **vision_sizes),
        text_config=build_text_config(hf.LlamaConfig, processor.tokenizer, **sizes),
        image_token_index=processor.tokenizer.image_token_id,
        image_seq_length=16,
    )
    model = hf.LlavaForConditionalGeneration(config)
    settings = model.generation_config
    settings.pad_token_id, settings.bos_token_id, settings.eos_token_id = 1, 2, 3
    model.save_pretrained(directory)
    processor.save_pretrained(directory)


@torch.no_grad()
def logps_of(model, processor, image: Image.Image, text: str, answer_ids: list[int]) -> tuple[list[float], list[int]]:
    """Return an answer's log-probs, and the likeliest token at each place, without placeholders."""
    batch = processor(text=[text], images=[[image]], return_tensors="pt", add_special_tokens=False)
    prompt_length = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([answer_ids])], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    logits = model(**batch).logits[0, prompt_length - 1 : -1]
    logits[:, processor.tokenizer.image_token_id] -= 100.0
    logps = logits.log_softmax(-1)
    return logps.gather(1, torch.tensor(answer_ids)[:, None])[:, 0].tolist(), logits.argmax(-1).tolist()


PROMPT = "<s>user: <image>\ndescribe the image assistant: "


def greedy_in_vllm(model: str, adapters: Sequence[str | None], folder: Path) -> list[dict[str, Any]]:
    """Return vLLM's greedy answer to the prompt about IMAGE_A, and its log-probs, by adapter."""
    tokenizer = hf.AutoProcessor.from_pretrained(model).tokenizer
    (folder / "image.png").write_bytes(IMAGE_A.data)
    job = {
        "model": model,
        "adapters": list(adapters),
        "image": str(folder / "image.png"),
        "token_ids": tokenizer(PROMPT, add_special_tokens=False)["input_ids"],
        "banned": tokenizer.image_token_id,
    }
    command = [vllm_python(), str(vllm_greedy.__file__), json.dumps(job)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    assert line is not None, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(line.removeprefix("RESULT "))


def check_answer(model: str, adapter: str | None, result: dict[str, Any]) -> None:
    """Check that vLLM's greedy answer is that of transformers, with its log-probs."""
    processor = hf.AutoProcessor.from_pretrained(model)
    with load_policy(model, adapter) as vlm:
        image = Image.open(io.BytesIO(IMAGE_A.data))
        logps, likeliest = logps_of(vlm.model, processor, image, PROMPT, result["token_ids"])
    assert likeliest == result["token_ids"]
    assert max(abs(a - b) for a, b in zip(logps, result["logps"], strict=True)) < MAX_DIFFERENCE


def write_tuned_model(folder: Path) -> tuple[str, str]:
    """Take one step of `sft` with tuning full; return the base, and the model that it wrote."""
    build_wide_llava(folder / "base")
    settings = {"dataset_name": "x", "tuning": "full", "max_steps": 1, "learning_rate": 2e-3, "per_device_train_batch_size": 2}
    config = SFTConfig(model_name_or_path=str(folder / "base"), output_dir=str(folder / "run"), **settings)
    return str(folder / "base"), str(sft(config, family_examples("llava")))


def test_vllm_answers_as_transformers_does(tmp_path):
    vllm_python()  # skips without one
    base, whole, adapter = (str(tmp_path / name) for name in ("base", "whole", "adapter"))
    build_wide_llava(Path(base))
    export(ExportConfig(model_name_or_path=base, output_dir=whole))
    save_start_adapter(whole, tmp_path / "start")
    export(ExportConfig(model_name_or_path=whole, adapter_path=str(tmp_path / "start"), output_dir=adapter))
    results = greedy_in_vllm(whole, (None, adapter), tmp_path)
    for result, adapter_path in zip(results, (None, adapter), strict=True):
        check_answer(whole, adapter_path, result)
    assert abs(results[0]["logps"][0] - results[1]["logps"][0]) > 10 * MAX_DIFFERENCE  # the adapter was used


def test_vllm_loads_what_sft_writes_with_tuning_full(tmp_path):
    vllm_python()
    base, tuned = write_tuned_model(tmp_path)
    (result,) = greedy_in_vllm(tuned, (None,), tmp_path)
    check_answer(tuned, None, result)
    with pytest.raises(AssertionError):  # the step changed the answer, or its log-probs
        check_answer(base, None, result)
