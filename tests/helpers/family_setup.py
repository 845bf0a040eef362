"""A family's tiny checkpoint with rows, and the engine and naive runs that tests compare."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmrlhf.config import EngineConfig
from mmrlhf.engine import naive
from mmrlhf.engine.completions import Completions, pad_right
from mmrlhf.engine.rollout import prompts_from_examples
from mmrlhf.engine.scoring import hidden_states
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.loading import load
from mmrlhf.models.vlm import Prompt
from mmrlhf.records import Example, ImageSource, Message
from tests.helpers.tiny_models import build_checkpoint

IMAGE_REQUIRED = {"paligemma"}
"""Families with a processor that refuses a prompt without an image."""
TOLERANCE = {"float32": (1e-4, 1e-4, 1e-3), "bfloat16": (0.1, 0.1, 0.15)}
"""Largest allowed differences: log-probs in nats, values in standard deviations, gradients as a
share of a tensor's largest entry."""


def random_image(width: int, height: int, seed: int) -> ImageSource:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return ImageSource(data=file.getvalue())


IMAGE_A, IMAGE_B, IMAGE_C = random_image(56, 56, 0), random_image(120, 80, 1), random_image(60, 112, 2)
ANSWERS = ("A red circle.", "There is a blue square in the top left, and a red circle.", "No.", "Yes, a blue circle is there.")


def family_examples(family: str) -> list[Example]:
    """Build prompts of different lengths about one image, another one, two images, and none."""
    questions = [
        ("Describe the image.", (IMAGE_A,)),
        ("what colour is the red circle in the top left and the blue square", (IMAGE_B,)),
        ("Describe the image in detail.", (IMAGE_C, IMAGE_A)),
        ("what colour is a square", ()),
    ]
    return [
        Example(f"row-{i}", images, (Message("user", text),), answer)
        for i, ((text, images), answer) in enumerate(zip(questions, ANSWERS, strict=True))
        if images or family not in IMAGE_REQUIRED
    ]


class FamilySetup:
    """A family's checkpoint, loaded, with two adapters that change its outputs."""

    def __init__(
        self,
        family: str,
        directory: Path,
        dtype: str = "float32",
        device: str = "cpu",
        target_modules: str = "all-linear",
    ):
        self.family, self.directory = family, directory
        build_checkpoint(family, directory)
        self.vlm = load(str(directory), dtype, device)
        self.examples = family_examples(family)
        self.adapters = Adapters(self.vlm)
        for seed, name in enumerate(("policy", "value")):
            self.adapters.add(name, 4, 16, seed, target_modules)
            torch.manual_seed(seed)
            with torch.no_grad():
                for parameter in self.adapters.parameters(name).values():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        # Values of size 1, as those of a new critic.
        weight = torch.randn(self.vlm.hidden_size, generator=torch.Generator().manual_seed(3))
        self.head = scalar_head(weight.to(self.vlm.device) / self.vlm.hidden_size**0.5)

    def prompts(self) -> list[Prompt]:
        return prompts_from_examples(self.vlm, self.examples)

    def completions(self) -> Completions:
        """Build two answers to each prompt."""
        prompt_indices = [p for p in range(len(self.examples)) for _ in range(2)]
        token_ids = [
            self.vlm.answer_token_ids(self.examples[p].prompt, ANSWERS[i % 4], len(self.examples[p].images))
            for i, p in enumerate(prompt_indices)
        ]
        prompt_index_N = torch.tensor(prompt_indices, device=self.vlm.device)
        return Completions(self.prompts(), prompt_index_N, *pad_right(token_ids, 1, self.vlm.device))

    def naive_logps_and_values(self, row: int, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probs and values [T] of one answer."""
        vlm, example = self.vlm, self.examples[row]
        batch = naive.processor_inputs(vlm, vlm.build_prompts([(example.prompt, example.images)]))
        prompt_length = batch["input_ids"].shape[1]
        batch["input_ids"] = torch.cat([batch["input_ids"], token_ids[None]], 1)
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in batch:
                answer_types = torch.full_like(token_ids[None], int(self.family == "paligemma"))
                batch[name] = torch.cat([batch[name], answer_types], 1)
        if "cross_attention_mask" in batch:
            mask = batch["cross_attention_mask"]
            batch["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, len(token_ids), -1, -1)], 1)
        output = vlm.model(**batch, use_cache=False, output_hidden_states=True)
        logits = output.logits[0, prompt_length - 1 : -1].float()
        logits[:, vlm.suppressed_tokens] = float("-inf")
        hidden = vlm.model.base_model(**batch, use_cache=False).last_hidden_state[0, prompt_length - 1 : -1]
        return logits.log_softmax(-1).gather(1, token_ids[:, None])[:, 0], self.head(hidden.float())[:, 0]

    def pop_gradients(self, name: str = "policy") -> dict[str, torch.Tensor]:
        """Return an adapter's gradients where it has any, and clear those of all parameters."""
        gradients = {k: p.grad.clone() for k, p in self.adapters.parameters(name).items() if p.grad is not None}
        self.vlm.model.zero_grad()
        return gradients


def naive_run(f: FamilySetup) -> tuple[list[torch.Tensor], list[torch.Tensor], dict[str, torch.Tensor]]:
    """Return every answer's log-probs and values, and the gradients of the mean log-prob."""
    completions = f.completions()
    with f.adapters.use("policy"):
        answers = [
            f.naive_logps_and_values(int(p), token_ids[mask.bool()])
            for p, token_ids, mask in zip(completions.prompt_index_N, completions.token_ids_NT, completions.mask_NT, strict=True)
        ]
        (sum(answer_logps.sum() for answer_logps, _ in answers) / completions.mask_NT.sum()).backward()
    return [lp.detach() for lp, _ in answers], [values.detach() for _, values in answers], f.pop_gradients()


def engine_run(f: FamilySetup, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Do the same with the engine and a token budget; log-probs and values are [N, T]."""
    completions = f.completions()
    logps_NT, values_NT = (torch.zeros(completions.token_ids_NT.shape, device=f.vlm.device) for _ in range(2))
    f.vlm.budget.max_tokens = max_tokens
    for indices, hidden in hidden_states(Role(f.adapters, "policy"), completions):
        width = hidden.shape[1]
        token_ids, mask = completions.token_ids_NT[indices, :width], completions.mask_NT[indices, :width]
        micro_logps = f.vlm.token_logps(hidden, token_ids, mask)
        (micro_logps.sum() / completions.mask_NT.sum()).backward()
        logps_NT[indices, :width] = micro_logps.detach()
        values_NT[indices, :width] = f.head(hidden.float())[..., 0].detach()
    f.vlm.budget.max_tokens = EngineConfig().micro_batch_tokens
    return logps_NT, values_NT, f.pop_gradients()


def max_differences(f: FamilySetup, fast, naive) -> tuple[float, float, float]:
    """Return the largest differences in log-probs, values and gradients, in TOLERANCE's units."""
    (fast_logps, fast_values, fast_grads), (naive_logps, naive_values, naive_grads) = fast, naive
    mask = f.completions().mask_NT.bool()
    # torch's max is NaN if any gap is; Python's drops it.
    logp_gap = torch.stack([(fast_logps[i][mask[i]] - expected).abs().max() for i, expected in enumerate(naive_logps)]).max()
    value_gap = torch.stack([(fast_values[i][mask[i]] - expected).abs().max() for i, expected in enumerate(naive_values)]).max()
    assert set(fast_grads) == set(naive_grads)
    gradient_gap = torch.stack(
        [(fast_grads[k] - expected).abs().max() / expected.abs().max().clamp(min=1e-12) for k, expected in naive_grads.items()]
    ).max()
    return float(logp_gap), float(value_gap), float(gradient_gap)
