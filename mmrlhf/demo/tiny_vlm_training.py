"""Training stages of the tiny VLM: vision on words, and the language model on conversations.

Stages run in one process, or in several processes of one thread each that share each batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from rich import print as rich_print
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mmrlhf import scenes
from mmrlhf.demo.tiny_vlm_data import NUM_IMAGE_TOKENS, OBJECT_LABEL_SIZES, Sample, SampleBatches

BatchLoss = Callable[..., tuple[Tensor, str]]
"""Maps a batch's tensors to the loss, and to metrics as text."""


def _learning_rate(step: int, num_steps: int, peak_lr: float) -> float:
    """Return the learning rate: 50 steps of warmup, then cosine decay to 2% of the peak."""
    warmup = min(1.0, (step + 1) / 50)
    cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return peak_lr * warmup * (0.02 + 0.98 * cosine)


def _train_stage(
    stage_name: str,
    batches: Iterable[list[tuple[Tensor, ...]]],
    num_steps: int,
    parameters: list[nn.Parameter],
    peak_lr: float,
    compute_loss: BatchLoss,
) -> None:
    """Train with Muon (Jordan et al. 2024) on matrices and AdamW on heads, norms and biases.

    A batch is a list of micro-batches, and its gradient is the mean of theirs. The printed metrics
    are those of the last one. The word embedding is small enough to count as a matrix.
    """
    matrices = [p for p in parameters if p.ndim == 2 and min(p.shape) > 16 and max(p.shape) <= 512]
    other_parameters = [p for p in parameters if all(p is not m for m in matrices)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=peak_lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other_parameters, lr=peak_lr, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    start_time = time.time()
    for step, batch in enumerate(batches):
        for group in (g for o in optimizers for g in o.param_groups):
            group["lr"] = _learning_rate(step, num_steps, peak_lr)
        for p in parameters:
            p.grad = None
        for micro_batch in batch:
            loss, metrics_text = compute_loss(*micro_batch)
            (loss / len(batch)).backward()
        _average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        if _process_index() == 0 and (step % 25 == 0 or step + 1 == num_steps):
            elapsed = time.time() - start_time
            remaining = elapsed / (step + 1) * (num_steps - step - 1)
            rich_print(
                f"{stage_name} {step:5d}/{num_steps}  loss {loss.item():.4f}  {metrics_text}  "
                f"{elapsed:5.0f} s  {remaining:5.0f} s to go",
                flush=True,
            )


def _process_index() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _num_processes() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _average_gradients(parameters: list[nn.Parameter]) -> None:
    """Average gradients over processes. A missing one, as in the claim head, counts as 0."""
    if _num_processes() == 1:
        return
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    for p, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad = (gradient / _num_processes()).view_as(p)


def _preprocess(processor: LlavaProcessor, pixels: Tensor) -> Tensor:
    """Normalise images [N, S, S, 3] (uint8) to [N, 3, S, S] as the image processor does."""
    image_processor = processor.image_processor
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (image_processor.image_mean, image_processor.image_std))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std


def _word_token_counts(processor: LlavaProcessor, words: Iterable[str]) -> Tensor:
    """Return token counts [N, V] of each word as it occurs within a sentence (after a space)."""
    tokenizer = processor.tokenizer
    token_ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return torch.stack([nn.functional.one_hot(torch.tensor(i), len(tokenizer)).sum(0).float() for i in token_ids])


LOGIT_SCALE = 4.0
"""Factor from the dot product of a patch and a word to a logit. At 4, features get about the same
norm as embeddings."""


def train_vision(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pixels: Tensor,
    targets: Tensor,
    seed: int,
    num_steps: int,
    dtype: torch.dtype,
    parameters: list[nn.Parameter],
    batch_size: int = 128,
) -> None:
    """Train tower or projector (`parameters`) to move patches near words.

    As in CLIP, a patch's features are pulled towards the embeddings of the words for its shape,
    colour, size, pattern and cell, and away from those of other words. The cell is needed because a
    language model with rotary positions cannot address a patch by its place unless the features
    contain the place. With words rather than classes as targets, the language model reads the image
    like text, and learns to look ten times faster.

    pixels: [N, S, S, 3] (uint8). targets: [N, 9, 4], shape, colour, size and pattern of each cell.
    """
    word_groups = [
        [*scenes.SHAPES, "nothing"], [*scenes.COLOURS], [*scenes.SIZES], [*scenes.PATTERNS], [*scenes.CELL_NAMES],
    ]  # fmt: skip
    group_sizes = [len(group) for group in word_groups]
    token_counts = _word_token_counts(processor, [word for group in word_groups for word in group])
    word_embeddings = token_counts @ model.get_input_embeddings().weight.detach()

    def compute_loss(images: Tensor, labels: Tensor) -> tuple[Tensor, str]:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            patch_features = _patch_features(model, images)
        logits = (LOGIT_SCALE * patch_features.float() @ word_embeddings.T).split(group_sizes, -1)
        losses = [
            nn.functional.cross_entropy(group_logits.flatten(0, 1), labels[..., k].flatten(), ignore_index=-100)
            for k, group_logits in enumerate(logits)
        ]
        is_object = labels[..., 1] >= 0
        is_correct = [group_logits.argmax(-1) == labels[..., k] for k, group_logits in enumerate(logits)]
        accuracies = [correct[is_object].float().mean().item() for correct in is_correct]
        return torch.stack(losses).sum(), "shape {:.3f} colour {:.3f} size {:.3f} pattern {:.3f} place {:.3f}".format(*accuracies)

    torch.manual_seed(seed)
    batches = _tower_batches(processor, pixels, targets, num_steps, batch_size)
    _train_stage("vision", batches, num_steps, parameters, 1e-3, compute_loss)


def _tower_batches(
    processor: LlavaProcessor, pixels: Tensor, targets: Tensor, num_steps: int, batch_size: int
) -> Iterator[list[tuple[Tensor, ...]]]:
    """Yield one micro-batch: images [B, 3, S, S], labels [B, 9, 5] (targets and the cell itself).

    B is this process's share of `batch_size`. Half of the images are mirrored, and all are shifted
    by up to two pixels, because the tower sees each image several times and would learn its noise.
    """
    cell_indices = torch.arange(NUM_IMAGE_TOKENS)[None, :, None]
    num_epochs = num_steps * batch_size // len(pixels) + 1
    order = torch.cat([torch.randperm(len(pixels)) for _ in range(num_epochs)])
    for batch_indices in order[: num_steps * batch_size].split(batch_size):
        indices = batch_indices[_process_index() :: _num_processes()]
        images, labels = pixels[indices], targets[indices]
        is_mirrored = torch.rand(len(indices)) < 0.5
        images[is_mirrored] = images[is_mirrored].flip(2)
        labels[is_mirrored] = labels[is_mirrored].view(-1, 3, 3, labels.shape[-1]).flip(2).flatten(1, 2)
        images = images.roll(tuple(torch.randint(-2, 3, (2,)).tolist()), (1, 2))
        labels = torch.cat([labels, cell_indices.expand(len(indices), -1, -1)], -1)
        yield [(_preprocess(processor, images), labels)]


def _patch_features(model: LlavaForConditionalGeneration, images: Tensor) -> Tensor:
    """Return projected features [N, patches, D] of images [N, 3, S, S]."""
    # Position 0 is CLIP's class token.
    return model.model.multi_modal_projector(model.model.vision_tower(pixel_values=images).last_hidden_state[:, 1:])


OBJECT_LAYER, CLAIM_LAYER = 3, 5
"""Indices of the hidden states that the auxiliary heads read."""


class AuxiliaryHeads(nn.Module):
    """Heads that read a claim's last token while the language model is trained; then discarded.

    A yes/no reply to a review can only combine what lower layers have computed, and its loss alone
    does not teach them to do so: a model of this size then looks for a claim's words in the facts,
    and never learns which object they belong to. `objects` predicts the object's true appearance,
    so that the model learns to find it in the facts; `claims`, two layers above, predicts whether
    the claim is true.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.objects = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, sum(OBJECT_LABEL_SIZES)))
        self.claims = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, len(scenes.CLAIM_KINDS)))


def object_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    """Return the mean cross-entropy of labels [N, 5], and the share predicted right.

    logits: [N, sum of `OBJECT_LABEL_SIZES`]. Labels of -100 do not count.
    """
    is_labelled = labels >= 0
    parts = list(zip(logits.float().split(OBJECT_LABEL_SIZES, -1), labels.T, strict=True))
    total = sum(nn.functional.cross_entropy(part, part_labels, ignore_index=-100, reduction="sum") for part, part_labels in parts)
    num_right = sum((part.argmax(-1) == part_labels).sum().item() for part, part_labels in parts)
    count = max(1, int(is_labelled.sum()))
    return torch.as_tensor(total) / count, num_right / count


def claim_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, float, float]:
    """Return the binary cross-entropy of labels [N, 4], and the recall of true and of false claims.

    Labels of NaN do not count. True and false claims have the same total weight, because fewer are
    false.
    """
    is_labelled = ~labels.isnan()
    logits, labels = logits.float()[is_labelled], labels[is_labelled]
    is_true, is_false = labels > 0.5, labels < 0.5
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    weights = is_true / is_true.sum().clamp(min=1) + is_false / is_false.sum().clamp(min=1)
    recall_true, recall_false = (((logits > 0) == is_true)[group].float().mean().item() for group in (is_true, is_false))
    return (weights * losses).sum() / weights.sum().clamp(min=1), recall_true, recall_false


def train_language_model(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pixels: Tensor,
    seed: int,
    make_sample: Callable[[scenes.Scene, np.random.Generator], Sample],
    heads: AuxiliaryHeads,
    num_steps: int,
    batch_size: int,
    peak_lr: float,
    dtype: torch.dtype,
    stream: int = 0,
) -> None:
    """Train the language model on conversations, some of them about images, with frozen vision.

    Auxiliary heads learn only from rows with facts first, so they do not learn to check claims
    against images.
    """
    torch.manual_seed(seed)
    backbone = model.model
    parameters = [*backbone.language_model.parameters(), *heads.parameters()]
    with torch.no_grad():
        image_features = torch.cat([_patch_features(model, _preprocess(processor, p)) for p in pixels.split(500)])
    # On a CPU the fused kernel's backward pass takes half of a step for rows this short.
    model.set_attn_implementation("eager")

    def compute_loss(
        image_indices: Tensor, input_ids: Tensor, labels: Tensor, claim_labels: Tensor, object_labels: Tensor
    ) -> tuple[Tensor, str]:
        inputs_embeds = backbone.get_input_embeddings()(input_ids)
        is_image_token = (input_ids == model.config.image_token_id)[..., None]
        has_image = is_image_token[..., 0].any(-1)
        inputs_embeds = inputs_embeds.masked_scatter(is_image_token, image_features[image_indices[has_image]])
        attention_mask = (input_ids != processor.tokenizer.pad_token_id).long()
        loss_mask = labels[:, 1:] >= 0
        has_claim = ~claim_labels.isnan().all(-1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = backbone.language_model(
                inputs_embeds=inputs_embeds, attention_mask=attention_mask, output_hidden_states=True
            )
            # Select positions before the heads: most of them have no loss.
            logits = model.lm_head(outputs.last_hidden_state[:, :-1][loss_mask])
            object_logits = heads.objects(outputs.hidden_states[OBJECT_LAYER][has_claim])
            claim_logits = heads.claims(outputs.hidden_states[CLAIM_LAYER][has_claim])
        lm = nn.functional.cross_entropy(logits.float(), labels[:, 1:][loss_mask])
        objects, object_accuracy = object_loss(object_logits, object_labels[has_claim])
        claims, recall_true, recall_false = claim_loss(claim_logits, claim_labels[has_claim])
        return lm + objects + claims, (
            f"lm {lm.item():.3f} objects {objects.item():.3f} ({object_accuracy:.3f} right) "
            f"claims {claims.item():.3f} recall true {recall_true:.3f} false {recall_false:.3f}"
        )

    share = batch_size // _num_processes()
    dataset = SampleBatches(
        processor.tokenizer, make_sample, len(pixels), num_steps, share, seed, stream, _process_index(), _num_processes()
    )
    batches = DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=8)
    _train_stage("language", batches, num_steps, parameters, peak_lr, compute_loss)
