"""The interface of a vision-language model: conversations in, hidden states and log-probs out.

Mllama works, and so does any Hugging Face image-text-to-text model with `get_image_features` and
`mm_encoder_outputs` (transformers 5.18 and later). The base is frozen, so an image is encoded once,
and its features serve every epoch and every role without an adapter in tower or projector.

Shape suffixes: P prompts, Q queries, K keys, N rows, T answer tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from mmrlhf.models.answer_images import AnswerText
from mmrlhf.models.chat_text import ChatText
from mmrlhf.models.control_tokens import MARKED
from mmrlhf.models.device_errors import is_device_error
from mmrlhf.models.engine_state import EngineState
from mmrlhf.models.families import Family
from mmrlhf.models.image_features import ImageFeatures
from mmrlhf.models.images import open_image
from mmrlhf.models.micro_batch import Budget
from mmrlhf.models.vision_encoder import Encoder
from mmrlhf.records import ImageSource, InputError, Message

Conversation = tuple[Sequence[Message], tuple[ImageSource, ...]]
"""Messages up to the last user turn, and the images that the first user turn shows."""
PER_TOKEN_INPUTS = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""Outputs of a processor for each token of a prompt besides its id."""
MAX_LOGITS = 1 << 24
"""Maximum number of logits [tokens, vocabulary] that exist at once: 64 MiB in float32."""
MAX_LOGITS_GPU = 1 << 26
"""The same on a GPU, which less would not keep busy: 440 tokens with a vocabulary of 152,000."""


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for the model, with its sources."""

    token_ids: Tensor
    """[L], image placeholders included."""
    extras: dict[str, Tensor]
    """The processor's other per-token inputs [L, ...], see PER_TOKEN_INPUTS."""
    image_features: tuple[ImageFeatures, ...]
    """The encoded images, in order; only their layout if adapters change the features."""
    text: str
    """The conversation in the chat template, with one placeholder per image."""
    images: tuple[ImageSource, ...]
    id: str = ""
    """The id of the row that it belongs to. Sampling noise depends on it."""


@dataclass
class EncoderOutput(ModelOutput):
    """Image features in the form that a model's forward takes as `mm_encoder_outputs`."""

    pooler_output: Any = None
    deepstack_features: Any = None


@dataclass
class VLM:
    """A model with its processor and everything that the stages need from it."""

    name: str
    """The directory or Hub id that it was loaded from, for messages."""
    model: PreTrainedModel
    processor: Any
    suppressed_tokens: Tensor
    """Ids that must never be sampled: image placeholders and other control tokens, and rows of the
    embedding beyond the tokenizer."""
    eos: tuple[int, ...]
    """Ids that end an answer."""
    chat: ChatText
    """Its chat template and tokenizer."""
    encoder: Encoder
    budget: Budget
    engine: EngineState = field(default_factory=EngineState)
    dtype: str = "float32"
    """The precision it was loaded in: "float32", "bfloat16" or "nf4"."""
    fingerprint: str = ""
    """A hash of sampled weights (`fingerprints.fingerprint`)."""
    _extras_by_token_id: dict[str, dict[int, int]] | None = field(default=None, repr=False)
    """Per-token extras by token id, once prompts are known not to need the processor."""
    _needs_processor: bool = False
    """Whether `_learn_placeholders` has found that every prompt needs the processor."""

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
        """Number of images that the tower has encoded."""
        return self.encoder.cache.counters.encodes

    # ---- text ----------------------------------------------------------------------------------

    def apply_chat_template(self, messages: Sequence[Message], num_images: int, *, generation_prompt: bool) -> str:
        """Write a conversation in the model's chat template."""
        return self.chat.render(messages, num_images, generation_prompt=generation_prompt)

    def answer_token_ids(
        self, messages: Sequence[Message], answer: str, num_images: int, following_turns: Sequence[Message] = (), row_id: str = ""
    ) -> Tensor:
        """Return the token ids [T] that follow the prompt; see `ChatText.answer_token_ids`."""
        return self.chat.answer_token_ids(messages, answer, num_images, following_turns, row_id)

    def escape_control_tokens(self, text: str) -> str:
        """Break up each control token in a text that a model has written, with a space."""
        return self.chat.control_tokens.escape(text)

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text by itself."""
        return self.chat.count_tokens(text)

    def decode(self, token_ids: Tensor) -> str:
        """Return the text of an answer's token ids [T]; see `ChatText.decode`."""
        return self.chat.decode(token_ids)

    # ---- prompts and images --------------------------------------------------------------------

    def build_prompts(
        self,
        conversations: Sequence[Conversation],
        max_length: int | Sequence[int] | None = None,
        row_ids: Sequence[str] | None = None,
    ) -> list[Prompt]:
        """Build prompts with their image features, encoding only images that the cache lacks.

        `max_length` is one token limit for all prompts, or one for each. `row_ids` become the
        prompts' ids. Raises InputError, naming the row (or its number) and its first image, if a
        text holds a control token or a prompt is too long: cutting it could cut through an image.
        """
        conversations = [(messages, tuple(image.pinned() for image in images)) for messages, images in conversations]
        images = [row_images for _, row_images in conversations]
        limits = max_length if isinstance(max_length, Sequence) else [max_length] * len(conversations)
        places = [f"row {row_ids[i]}" if row_ids else f"prompt {i + 1} of this batch" for i in range(len(conversations))]
        texts = [
            self.chat.render(messages, len(row), generation_prompt=True, where=f"{place}: ")
            for place, (messages, row) in zip(places, conversations, strict=True)
        ]
        names = [
            (f"the prompt of {place}" if row_ids else place) + (f", on image {row[0].name}," if row else "")
            for place, row in zip(places, images, strict=True)
        ]
        for name, text, conversation in zip(names, texts, conversations, strict=True):
            self.check_control_tokens(name, text, conversation)
        return self._encode_prompts(texts, images, names, limits, row_ids)

    def build_prompts_before(
        self, texts: Sequence[AnswerText], images: Sequence[tuple[ImageSource, ...]], max_length: int, row_ids: Sequence[str]
    ) -> list[Prompt]:
        """Build the prompts that texts of answers continue, with the images before each text.

        Raises InputError for a prompt that is longer than `max_length` with its text.
        """
        shown = [tuple(i.pinned() for i in row[: text.num_images]) for text, row in zip(texts, images, strict=True)]
        names = [f"row {row_id} up to a text of an answer" for row_id in row_ids]
        limits = [max_length - len(text.token_ids) for text in texts]
        return self._encode_prompts([text.before for text in texts], shown, names, limits, row_ids)

    def _encode_prompts(
        self,
        texts: list[str],
        images: list[tuple[ImageSource, ...]],
        names: Sequence[str],
        limits: Sequence[int | None],
        row_ids: Sequence[str] | None,
    ) -> list[Prompt]:
        """Tokenize rendered prompts, and get their images' features."""
        image_features = self.encoder.get_prompt_features(images)
        prompts = []
        for i, (token_ids, extras) in enumerate(self._tokenize(texts, image_features, images)):
            self._check_length(names[i], len(token_ids), limits[i])
            row_id = row_ids[i] if row_ids else ""
            prompts.append(Prompt(token_ids, extras, image_features[i], texts[i], images[i], row_id))
        return prompts

    def check_control_tokens(self, name: str, text: str, conversation: Conversation) -> None:
        """Raise InputError for a control token in a message, or a wrong number of image tokens."""
        messages, images = conversation
        image_token = getattr(self.processor, "image_token", None)
        if image_token and text.count(image_token) != len(images):
            raise InputError(
                f"{name} would show the model {text.count(image_token)} images and has {len(images)}: "
                f"remove {image_token} from its text, or use a chat template that places images"
            )
        self.chat.control_tokens.check(messages, name)

    def _check_length(self, name: str, num_tokens: int, limit: int | None) -> None:
        """Raise InputError if a prompt exceeds its limit or the model's positions."""
        if limit is not None and num_tokens > limit:
            raise InputError(
                f"{name} has {num_tokens} tokens with its images, more than the {max(0, limit)} that max_length leaves it: "
                "raise max_length or drop the row; prompts are never cut"
            )
        max_positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if max_positions and num_tokens > max_positions:
            raise InputError(
                f"{name} has {num_tokens} tokens with its images, and the model has {max_positions} positions: drop the row"
            )

    def _tokenize(
        self, texts: list[str], image_features: list[tuple[ImageFeatures, ...]], images: list[tuple[ImageSource, ...]]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Return token ids and extras of each row.

        Uses the tokenizer alone once its output has matched the processor's.
        """
        if self._extras_by_token_id is None and not self._needs_processor:
            first_with_images = next((i for i, row in enumerate(image_features) if row), None)
            if first_with_images is not None:
                text = MARKED.sub("", texts[first_with_images])  # not every processor can read tags as text
                self._learn_placeholders(text, image_features[first_with_images], images[first_with_images])
        if self._extras_by_token_id is None:
            return [self._tokenize_with_processor(text, row) for text, row in zip(texts, images, strict=True)]
        return [
            self._expand_placeholders(text, row, self._extras_by_token_id)
            for text, row in zip(texts, image_features, strict=True)
        ]

    def _tokenize_with_processor(self, text: str, images: tuple[ImageSource, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokenize with the processor, which needs pixels even if the features are known."""
        try:
            batch, _ = self.encoder.process([text], [[open_image(i) for i in images]])
        except Exception as error:
            if isinstance(error, InputError) or is_device_error(error):
                raise
            raise InputError(f"{self.name}: its processor refuses a prompt with {len(images)} images ({error})") from None
        return batch["input_ids"][0].cpu(), {k: batch[k][0].cpu() for k in PER_TOKEN_INPUTS if k in batch}

    def _expand_placeholders(
        self, text: str, image_features: tuple[ImageFeatures, ...], extras_by_token_id: dict[str, dict[int, int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Tokenize without the processor, with its known text for each image's placeholder."""
        if image_features:
            first_segment, *segments = text.split(self.processor.image_token)
            expansions = [str(features.placeholder_text) for features in image_features]
            text = first_segment + "".join(e + segment for e, segment in zip(expansions, segments, strict=True))
        token_ids = self.tokenize_expanded(text)
        extras = {k: torch.tensor([by_id.get(i, 0) for i in token_ids]) for k, by_id in extras_by_token_id.items()}
        return torch.tensor(token_ids), extras

    def tokenize_expanded(self, text: str) -> list[int]:
        """Return the ids of a prompt whose image placeholders are written out."""
        bos = self.tokenizer.bos_token
        return self.chat.encode(text, add_special_tokens=not (bos and text.startswith(bos)))

    def _learn_placeholders(self, text: str, image_features: tuple[ImageFeatures, ...], images: tuple[ImageSource, ...]) -> None:
        """Tokenize one prompt both ways; unless they agree, every prompt needs the processor."""
        token_ids, extras = self._tokenize_with_processor(text, images)
        # One value per token id is enough if extras have one value per token and images have their
        # own ids.
        extras_by_token_id = {
            name: {i: value for i, value in zip(token_ids.tolist(), row.tolist(), strict=True) if value}
            for name, row in extras.items()
            if row.dim() == 1
        }
        if len(extras_by_token_id) == len(extras) and all(p.placeholder_text is not None for p in image_features):
            expanded_ids, expanded_extras = self._expand_placeholders(text, image_features, extras_by_token_id)
            if torch.equal(expanded_ids, token_ids) and all(torch.equal(expanded_extras[k], extras[k]) for k in extras):
                self._extras_by_token_id = extras_by_token_id
        self._needs_processor = self._extras_by_token_id is None

    def image_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return a batch's images as arguments of the model's forward; empty without images.

        Their features are those of the active adapter.
        """
        rows = [prompt.image_features for prompt in prompts]
        if self.encoder.lora_layers:
            rows = self.encoder.get_active_features([prompt.images for prompt in prompts])
        image_features = [features for row in rows for features in row]
        if not image_features:
            return {}
        if self.family.uses_cross_attention:
            return {"cross_attention_states": self._cross_attention_states(rows)}
        pooled, *deepstack = [[u for p in image_features for u in p.levels[k]] for k in range(len(image_features[0].levels))]
        output = EncoderOutput(torch.stack(pooled) if image_features[0].is_stacked else pooled, deepstack or None)
        return {"mm_encoder_outputs": {"image": output}}

    @staticmethod
    def _cross_attention_states(image_rows: Sequence[tuple[ImageFeatures, ...]]) -> Tensor:
        """Return Mllama's states [P, images x tiles x patches, D], each prompt's images in a row.

        Tokens before an image attend equally to all images of the row. Rows with fewer images
        repeat theirs, which keeps that mean; with the least common multiple of the counts, every
        row repeats a whole number of times. A row without images gets zeros, which add nothing.
        """
        num_images = math.lcm(*(len(row) for row in image_rows if row))
        blank = torch.zeros_like(next(features for row in image_rows for features in row).levels[0][0])
        rows = []
        for image_row in image_rows:
            states = [features.levels[0][0] for features in image_row]
            rows.append(torch.cat(states * (num_images // len(states)) if states else [blank] * num_images))
        return torch.stack(rows)

    def build_attention_mask(self, visible_PQK: Tensor) -> Tensor:
        """Turn the keys that each query sees (booleans) into an attention mask [P, 1, Q, K]."""
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            return visible_PQK[:, None]
        dtype = self.model.dtype
        return torch.zeros(visible_PQK.shape, dtype=dtype, device=visible_PQK.device).masked_fill(
            ~visible_PQK, torch.finfo(dtype).min
        )[:, None]

    # ---- log-probs -----------------------------------------------------------------------------

    def logits(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the float32 logits [N, V] to sample tokens from, -inf for suppressed ids."""
        head = self.model.get_output_embeddings()
        logits = head(hidden_ND.to(head.weight.dtype)).float()
        softcap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        return self.process_logits(logits, temperature)

    def process_logits(self, logits_NV: Tensor, temperature: float) -> Tensor:
        """Apply temperature and suppressed ids to the model's own logits."""
        if temperature != 1:
            logits_NV = logits_NV / temperature
        return logits_NV.index_fill(-1, self.suppressed_tokens, float("-inf"))

    def log_softmax(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the log-probs [N, V] of the next token."""
        return self.logits(hidden_ND, temperature).log_softmax(-1)

    def token_logps(
        self, hidden_NTD: Tensor, token_ids_NT: Tensor, mask_NT: Tensor, temperature: float = 1.0, min_tokens: int = 0
    ) -> Tensor:
        """Return the log-prob [N, T] of each token, 0 on padding.

        Column t of `hidden_NTD` predicts token t. No answer can end before `min_tokens`. Only real
        tokens reach the head, in chunks of MAX_LOGITS or MAX_LOGITS_GPU. With several chunks,
        backward recomputes each chunk's logits, so the batch's logits never all exist at once.
        """
        is_early_NT = (torch.arange(token_ids_NT.shape[1], device=token_ids_NT.device) < min_tokens).expand_as(token_ids_NT)
        max_logits = MAX_LOGITS_GPU if self.device.type == "cuda" else MAX_LOGITS
        chunk_size = max(1, max_logits // self.model.get_output_embeddings().weight.shape[0])
        eos_ids = torch.tensor(self.eos, device=token_ids_NT.device)

        def chunk_logps(hidden: Tensor, token_ids: Tensor, is_early: Tensor) -> Tensor:
            logits = self.logits(hidden, temperature)
            if min_tokens:
                end_penalty = torch.where(is_early, -torch.inf, 0.0)[:, None].expand(-1, len(eos_ids))
                logits = logits.index_add(-1, eos_ids, end_penalty)
            return -torch.nn.functional.cross_entropy(logits, token_ids, reduction="none")

        # The n real tokens of the flattened [N, T]. Selecting by index waits for the GPU once, by a
        # mask each time.
        real = mask_NT.flatten().nonzero().squeeze(1)
        hidden_chunks = hidden_NTD.flatten(0, 1).index_select(0, real).split(chunk_size)
        id_chunks, early_chunks = (t.flatten().index_select(0, real).split(chunk_size) for t in (token_ids_NT, is_early_NT))
        should_recompute = torch.is_grad_enabled() and len(hidden_chunks) > 1
        logps = []
        for chunk in zip(hidden_chunks, id_chunks, early_chunks, strict=True):
            if should_recompute:  # nothing in a chunk is random
                logps.append(checkpoint(chunk_logps, *chunk, use_reentrant=False, preserve_rng_state=False))
            else:
                logps.append(chunk_logps(*chunk))
        zeros = torch.zeros(token_ids_NT.numel(), dtype=torch.float32, device=token_ids_NT.device)
        return zeros.index_copy(0, real, torch.cat(logps)).view_as(token_ids_NT)
