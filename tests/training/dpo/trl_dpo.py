"""Write what TRL's DPO computes for a few pairs, for the parity test of `mmrlhf dpo`.

    pip install trl peft pillow torchvision           # in an environment of its own
    python tests/training/dpo/trl_dpo.py                  # writes trl_dpo.safetensors beside it

The pairs are data/samples/trl_preference.jsonl, the model is data/tiny_vlm under an adapter whose
weights are a formula (`adapter_weight`). For each loss, the file holds TRL's loss and metrics (in
its metadata, as JSON) and the gradients of all adapter weights. float32, no dropout. Nothing of
mmrlhf is imported.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
OUTPUT = Path(__file__).with_suffix(".safetensors")
BETA = 0.3
LOSSES: dict[str, dict[str, object]] = {
    "sigmoid": {"loss_type": ["sigmoid"]},
    "sigmoid_norm": {"loss_type": ["sigmoid_norm"]},
    "ipo": {"loss_type": ["ipo"]},
    "hinge": {"loss_type": ["hinge"]},
    "robust": {"loss_type": ["robust"], "label_smoothing": 0.1},
    "mpo": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
}
METRICS = ("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")


def adapter_weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Return the values of an adapter's tensor `layers.N...lora_A|B`, from its name and shape."""
    phase = sum(map(ord, name))
    return 0.2 * torch.sin(1.7 * torch.arange(shape.numel(), dtype=torch.float64) + phase).float().reshape(shape)


def short_name(name: str) -> str:
    """Return a tensor's name from its layer on, without the adapter's name."""
    return name[name.index("layers.") :].replace(".default", "").replace(".policy", "")


def main() -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from PIL import Image
    from safetensors.torch import save_file
    from trl import DPOConfig, DPOTrainer

    samples = ROOT / "data" / "samples"
    rows = [json.loads(line) for line in (samples / "trl_preference.jsonl").read_text(encoding="utf-8").splitlines()]
    columns = [
        {
            "images": [Image.open(samples / image).convert("RGB") for image in row["images"]],
            **{name: row[name] for name in ("prompt", "chosen", "rejected")},
        }
        for row in rows
    ]
    tensors, results = {}, {}
    for name, settings in LOSSES.items():
        trainer = DPOTrainer(
            str(ROOT / "data" / "tiny_vlm"),
            args=DPOConfig(
                output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(rows), beta=BETA, report_to=[], bf16=False,
                use_cpu=True, gradient_checkpointing=False, max_length=None, model_init_kwargs={"dtype": torch.float32}, **settings,
            ),
            train_dataset=Dataset.from_list(columns),
            peft_config=LoraConfig(r=1, lora_alpha=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", task_type="CAUSAL_LM"),
        )  # fmt: skip
        model = trainer.model
        trained = {short_name(n): p for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for short, parameter in trained.items():
                parameter.copy_(adapter_weight(short, parameter.shape))
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        model.train()
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        logged = trainer._metrics["train"]
        results[name] = {"loss": loss.item(), **{metric: logged[metric][-1] for metric in METRICS}}
        tensors |= {f"{name}/{short}": p.grad.clone() for short, p in trained.items()}
        print(name, results[name], flush=True)
    metadata = {"trl": version("trl"), "torch": torch.__version__, "beta": str(BETA), "losses": json.dumps(LOSSES)}
    save_file(tensors, OUTPUT, metadata | {"results": json.dumps(results)})
    print(f"wrote {OUTPUT} ({OUTPUT.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
