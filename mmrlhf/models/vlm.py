"""A vision-language model as the stages see it: conversations in, hidden states and log-probs out.

Any Hugging Face image-text-to-text model with `get_image_features` and `mm_encoder_outputs` fits (transformers 5.18 on), and Mllama.
The vision tower and the projector are frozen, so that a picture is encoded once and its features serve every role and epoch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mmrlhf.models.families import Family
from mmrlhf.models.image_features import ImageFeatures
from mmrlhf.models.images import open_image
from mmrlhf.models.micro_batch import Budget
from mmrlhf.models.vision_encoder import Encoder
from mmrlhf.records import ImageSource, InputError, Message

Conversation = tuple[Sequence[Message], tuple[ImageSource, ...]]
PER_TOKEN_INPUTS = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""What else than ids a processor may return for each token of a prompt."""
MAX_LOGITS = 1 << 24
"""Most logits [tokens, vocabulary] that exist at a time, in float32: 64 MiB."""


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for the model. `ids` [L]; `extras` the processor's other per-token rows [L, ...]; `pictures` encoded, in order;
    `text` and `images` what it was made of."""

    token_ids: Tensor
    extras: dict[str, Tensor]
    image_features: tuple[ImageFeatures, ...]
    text: str
    images: tuple[ImageSource, ...]
    id: str = ""


@dataclass
class EncoderOutput(ModelOutput):
    """Picture features in the shape in which models take them."""

    pooler_output: Any = None
    deepstack_features: Any = None


@dataclass
class EngineState:
    """How the engine runs a model, and what its self-checks have settled so far.

    Set from the configuration at load; a check narrows it on the first prompts of a run
    (`prefill.is_verified`, `shared_prefix.is_supported`) and never widens it again.
    """

    share_prefix: Literal["auto", "on", "off"] = "auto"
    """Whether a prompt is prefilled once for all of its answers. "auto": not checked yet. "off": every
    answer runs with its whole prompt, on the naive path."""
    supports_packing: bool = False
    """Whether several answers to a prompt may share a sequence behind a mask (`kv_cache`)."""
    use_cuda_graphs: bool = False
    """Whether decode steps have fixed shapes, so that they can be captured as a CUDA graph."""
    is_verified_on_text: bool = False
    """Whether the check has passed on a prompt without images. A prompt with images is still to come, so
    `share_prefix` remains "auto"."""
    share_prefix_across_prompts: Literal["auto", "on", "off"] = "auto"
    """Whether what several prompts have in common is prefilled once (`shared_prefix`)."""


@dataclass
class VLM:
    """A model with its processor and everything that the stages ask of it."""

    name: str
    """The directory or Hub id that it was loaded from, for messages."""
    model: PreTrainedModel
    processor: Any
    suppressed_tokens: Tensor
    """Ids that must never be sampled: image placeholders and other control tokens, and rows of the
    embedding beyond the tokenizer."""
    eos: tuple[int, ...]
    """Ids that end an answer."""
    encoder: Encoder
    budget: Budget
    engine: EngineState = field(default_factory=EngineState)
    dtype: str = "float32"
    """The precision it was loaded in: "float32", "bfloat16" or "nf4"."""
    fingerprint: str = ""
    """A hash of sampled weights (`vision_encoder.fingerprint`)."""
    _extras_by_token_id: dict[str, dict[int, int]] | None = field(default=None, repr=False)
    """Per-token extras by token id, once prompts are known to be writable without the processor."""
    _needs_processor: bool = False
    """Whether `_learn_placeholders` has found that they are not."""

    @property
    def family(self) -> Family:
        """The quirks of its model family."""
        return self.encoder.family

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def image_encodes(self) -> int:
        """Pictures that the tower has encoded."""
        return self.encoder.cache.counters.encodes

    # ---- text ----------------------------------------------------------------------------------------------------

    def apply_chat_template(self, messages: Sequence[Message], num_images: int, *, generation_prompt: bool) -> str:
        """The conversation in the model's chat template; the pictures stand before the first user text."""
        return apply_chat_template(self.processor, messages, num_images, generation_prompt=generation_prompt)

    def answer_token_ids(
        self, messages: Sequence[Message], answer: str, num_images: int, following_turns: Sequence[Message] = (), row_id: str = ""
    ) -> Tensor:
        """Token ids [T] that follow the prompt when `answer` is said: the answer, the template's end of turn, and further
        turns up to the next generation prompt, if any. Raises InputError, naming the row, for a text that holds a control token."""
        for text in (answer, *(m.content for m in following_turns)):
            if match := self._control_token_pattern.search(text):
                raise InputError(
                    f"{f'row {row_id}: ' if row_id else ''}an answer or what follows it holds {match[0]}, which the model takes for a control "
                    "token: remove it from the text"
                )
        prompt = self.apply_chat_template(messages, num_images, generation_prompt=True)
        full_text = self.apply_chat_template(
            [*messages, Message("assistant", answer), *following_turns], num_images, generation_prompt=bool(following_turns)
        )
        if not full_text.startswith(prompt):
            raise InputError(
                f"{self.name}: its chat template renders an assistant turn differently from its generation prompt, so "
                "the tokens of an answer cannot be told; use a template whose generation prompt begins every assistant turn"
            )
        text = full_text[len(prompt) :]
        if not following_turns:
            text = self._truncate_after_end(text)
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)

    @cached_property
    def _control_token_pattern(self) -> re.Pattern[str]:
        """What no text may hold: special tokens that stand for pictures or turns. Marks such as <s>, which texts have, too, are let through."""
        allowed_tokens = {
            str(t)
            for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
            if (t := getattr(self.tokenizer, f"{name}_token", None))
        }
        tokens = {
            str(t)
            for i, t in self.tokenizer.added_tokens_decoder.items()
            if t.special and i in set(self.suppressed_tokens.tolist())
        }
        tokens |= {t for n in ("image_token", "video_token") if isinstance(t := getattr(self.processor, n, None), str)}
        return re.compile("|".join(map(re.escape, sorted(tokens - allowed_tokens, key=len, reverse=True))) or r"(?!)")

    def escape_control_tokens(self, text: str) -> str:
        """A text that a model has written, with whatever it spells like a control token broken up."""
        return self._control_token_pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)

    def _truncate_after_end(self, text: str) -> str:
        """White space that a template writes after the end-of-turn token is no part of an answer."""
        end_tokens = [self.tokenizer.convert_ids_to_tokens(i) for i in self.eos]
        end = max((text.rfind(e) + len(e) for e in end_tokens if e and e in text), default=0)
        return text[:end] if end else text + str(self.tokenizer.eos_token)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Tensor) -> str:
        return str(self.tokenizer.decode(token_ids.tolist(), skip_special_tokens=True)).strip()

    # ---- prompts and pictures --------------------------------------------------------------------------------------

    def build_prompts(
        self,
        conversations: Sequence[Conversation],
        max_length: int | Sequence[int] | None = None,
        row_ids: Sequence[str] | None = None,
    ) -> list[Prompt]:
        """Prompts with their picture features; each distinct picture is encoded once while the cache holds it.

        Raises InputError for a prompt of more than `max_length` tokens, one limit for all or one for each (its name, or else its
        number, and its first picture are told): cutting it could cut through a picture.
        """
        conversations = [(messages, tuple(image.pinned() for image in images)) for messages, images in conversations]
        limits = max_length if isinstance(max_length, Sequence) else [max_length] * len(conversations)
        texts = [self.apply_chat_template(messages, len(images), generation_prompt=True) for messages, images in conversations]

        def describe_row(i: int) -> str:
            images = conversations[i][1]
            name = f"the prompt of row {row_ids[i]}" if row_ids else f"prompt {i + 1} of this batch"
            return f"{name}{f', on image {images[0].name},' if images else ''}"

        image_token = getattr(self.processor, "image_token", None)
        for i, (text, (messages, images)) in enumerate(zip(texts, conversations, strict=True)):
            control_tokens = [
                match[0] for m in messages if (match := self._control_token_pattern.search(m.content)) and match[0] != image_token
            ]
            if control_tokens:
                raise InputError(
                    f"{describe_row(i)} holds {control_tokens[0]}, which the model takes for a control token: remove it from its text"
                )
            if image_token and text.count(image_token) != len(images):
                raise InputError(
                    f"{describe_row(i)} would show the model {text.count(image_token)} pictures and has {len(images)}: remove {image_token} from its text, "
                    "or use a chat template that places pictures"
                )
        image_features = self.encoder.get_features([images for _, images in conversations])
        prompts = []
        for i, (token_ids, extras) in enumerate(self._tokenize(texts, image_features, [images for _, images in conversations])):
            if (limit := limits[i]) is not None and len(token_ids) > limit:
                raise InputError(
                    f"{describe_row(i)} has {len(token_ids)} tokens with its images, more than the {max(0, limit)} that max_length leaves it: "
                    "raise max_length or drop the row; prompts are never cut"
                )
            if (max_positions := getattr(self.model.config.get_text_config(), "max_position_embeddings", None)) and len(
                token_ids
            ) > max_positions:
                raise InputError(
                    f"{describe_row(i)} has {len(token_ids)} tokens with its images, and the model has {max_positions} positions: drop the row"
                )
            prompts.append(
                Prompt(token_ids, extras, image_features[i], texts[i], conversations[i][1], row_ids[i] if row_ids else "")
            )
        return prompts

    def _tokenize(
        self, texts: list[str], image_features: list[tuple[ImageFeatures, ...]], images: list[tuple[ImageSource, ...]]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Ids and per-token extras of each row: by the tokenizer alone, once that has been seen to give what the processor gives."""
        if self._extras_by_token_id is None and not self._needs_processor:
            first_with_images = next((i for i, row in enumerate(image_features) if row), None)
            if first_with_images is not None:
                self._learn_placeholders(texts[first_with_images], image_features[first_with_images], images[first_with_images])
        if self._extras_by_token_id is None:
            return [self._tokenize_with_processor(text, row) for text, row in zip(texts, images, strict=True)]
        return [
            self._expand_placeholders(text, row, self._extras_by_token_id)
            for text, row in zip(texts, image_features, strict=True)
        ]

    def _tokenize_with_processor(self, text: str, images: tuple[ImageSource, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """By the processor, which wants pixels even of pictures whose features are known."""
        try:
            batch, _ = self.encoder.process([text], [[open_image(i) for i in images]])
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.name}: its processor refuses a prompt with {len(images)} pictures ({error})") from None
        return batch["input_ids"][0].cpu(), {k: batch[k][0].cpu() for k in PER_TOKEN_INPUTS if k in batch}

    def _expand_placeholders(
        self, text: str, image_features: tuple[ImageFeatures, ...], extras_by_token_id: dict[str, dict[int, int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By the tokenizer, each placeholder replaced by what the processor once wrote for its picture."""
        if image_features:
            segments = text.split(self.processor.image_token)
            text = segments[0] + "".join(
                str(p.placeholder_text) + segment for p, segment in zip(image_features, segments[1:], strict=True)
            )
        bos = self.tokenizer.bos_token
        token_ids = self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
        extras = {k: torch.tensor([by_id.get(i, 0) for i in token_ids]) for k, by_id in extras_by_token_id.items()}
        return torch.tensor(token_ids), extras

    def _learn_placeholders(self, text: str, image_features: tuple[ImageFeatures, ...], images: tuple[ImageSource, ...]) -> None:
        """Write one prompt both ways; unless they agree, the processor is asked for every prompt (PaliGemma, Mllama)."""
        token_ids, extras = self._tokenize_with_processor(text, images)
        extras_by_token_id = {
            k: {i: t for i, t in zip(token_ids.tolist(), row.tolist(), strict=True) if t}
            for k, row in extras.items()
            if row.dim() == 1
        }
        if len(extras_by_token_id) == len(extras) and all(p.placeholder_text is not None for p in image_features):
            expanded_ids, expanded_extras = self._expand_placeholders(text, image_features, extras_by_token_id)
            if torch.equal(expanded_ids, token_ids) and all(torch.equal(expanded_extras[k], extras[k]) for k in extras):
                self._extras_by_token_id = extras_by_token_id
        self._needs_processor = self._extras_by_token_id is None

    def image_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The pictures of a batch of prompts as the model's forward takes them; empty without pictures."""
        image_features = [features for prompt in prompts for features in prompt.image_features]
        if not image_features:
            return {}
        if self.family.uses_cross_attention:
            # Tokens in front of a picture look at all of them alike: a row's pictures are repeated whole to be as many as another's,
            # so that their mean stays. Those of a row without any are zeros, which add nothing.
            num_images = math.lcm(*(len(p.image_features) for p in prompts if p.image_features))
            blank = torch.zeros_like(image_features[0].levels[0][0])
            states_per_prompt = [
                [p.levels[0][0] for p in prompt.image_features] * (num_images // max(1, len(prompt.image_features)))
                for prompt in prompts
            ]
            return {
                "cross_attention_states": torch.stack([torch.cat(states or [blank] * num_images) for states in states_per_prompt])
            }
        pooled, *deepstack = [[u for p in image_features for u in p.levels[k]] for k in range(len(image_features[0].levels))]
        output = EncoderOutput(torch.stack(pooled) if image_features[0].is_stacked else pooled, deepstack or None)
        return {"mm_encoder_outputs": {"image": output}}

    def build_attention_mask(self, visible_PQK: Tensor) -> Tensor:
        """Which keys each query sees [P, queries, keys], as the model's attention takes it."""
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            return visible_PQK[:, None]
        dtype = self.model.dtype
        return torch.zeros(visible_PQK.shape, dtype=dtype, device=visible_PQK.device).masked_fill(
            ~visible_PQK, torch.finfo(dtype).min
        )[:, None]

    # ---- log-probs -------------------------------------------------------------------------------------------------

    def logits(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits [N, V] of the next token in float32, -inf for banned ids: of the distribution that is sampled from."""
        head = self.model.get_output_embeddings()
        logits = head(hidden_ND.to(head.weight.dtype)).float()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        return self.process_logits(logits, temperature)

    def process_logits(self, logits_NV: Tensor, temperature: float) -> Tensor:
        """What the model's own logits become before anything is drawn from them."""
        return (logits_NV / temperature if temperature != 1 else logits_NV).index_fill(-1, self.suppressed_tokens, float("-inf"))

    def log_softmax(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probs [N, V] of the next token."""
        return self.logits(hidden_ND, temperature).log_softmax(-1)

    def token_logps(
        self, hidden_NTD: Tensor, token_ids_NT: Tensor, mask_NT: Tensor, temperature: float = 1.0, min_tokens: int = 0
    ) -> Tensor:
        """Log-prob [N, T] of each token, 0 on padding; no answer could end before `min_tokens`. Only real tokens reach the head, in
        chunks; where there are several, backward makes each chunk's logits anew, so that those of the batch never exist together."""
        is_token_NT = mask_NT.bool()
        is_early_NT = (torch.arange(token_ids_NT.shape[1], device=token_ids_NT.device) < min_tokens).expand_as(is_token_NT)
        chunk_size = max(1, MAX_LOGITS // self.model.get_output_embeddings().weight.shape[0])
        eos_ids = torch.tensor(self.eos, device=token_ids_NT.device)

        def logps(hidden: Tensor, token_ids: Tensor, is_early: Tensor) -> Tensor:
            logits = self.logits(hidden, temperature)
            if min_tokens:
                logits = logits.index_add(-1, eos_ids, torch.where(is_early, -torch.inf, 0.0)[:, None].expand(-1, len(eos_ids)))
            return -torch.nn.functional.cross_entropy(logits, token_ids, reduction="none")

        chunks = list(zip(*(t[is_token_NT].split(chunk_size) for t in (hidden_NTD, token_ids_NT, is_early_NT)), strict=True))
        should_recompute = torch.is_grad_enabled() and len(chunks) > 1
        chunk_logps = [
            checkpoint(logps, *chunk_inputs, use_reentrant=False) if should_recompute else logps(*chunk_inputs)
            for chunk_inputs in chunks
        ]
        zeros = torch.zeros(token_ids_NT.shape, dtype=torch.float32, device=token_ids_NT.device)
        return zeros.masked_scatter(is_token_NT, torch.cat(chunk_logps)) if int(is_token_NT.sum()) else zeros


def apply_chat_template(processor: Any, messages: Sequence[Message], num_images: int, *, generation_prompt: bool) -> str:
    """A conversation in a processor's chat template; the pictures stand before the first user text."""
    turns, images_placed = [], False
    for message in messages:
        content: list[dict[str, str]] = [{"type": "text", "text": message.content}]
        if message.role == "user" and not images_placed:
            content, images_placed = [{"type": "image"}] * num_images + content, True
        turns.append({"role": message.role, "content": content})
    return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))
