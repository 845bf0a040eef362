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

from mmrlhf.budget import Budget
from mmrlhf.encoder import Encoder
from mmrlhf.features import Picture
from mmrlhf.images import open_image
from mmrlhf.records import ImageSource, InputError, Message

Conversation = tuple[Sequence[Message], tuple[ImageSource, ...]]
PER_TOKEN = ("token_type_ids", "mm_token_type_ids", "cross_attention_mask")
"""What else than ids a processor may return for each token of a prompt."""
LOGITS = 1 << 24
"""Most logits [tokens, vocabulary] that exist at a time, in float32: 64 MiB."""


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for the model. `ids` [L]; `extras` the processor's other per-token rows [L, ...]; `pictures` encoded, in order;
    `text` and `images` what it was made of."""

    ids: Tensor
    extras: dict[str, Tensor]
    pictures: tuple[Picture, ...]
    text: str
    images: tuple[ImageSource, ...]


@dataclass
class EncoderOutput(ModelOutput):
    """Picture features in the shape in which models take them."""

    pooler_output: Any = None
    deepstack_features: Any = None


@dataclass
class VLM:
    """A model with its processor. `banned` are ids that must never be sampled (image placeholders and other control
    tokens, ids beyond the tokenizer); `eos` ends an answer; `budget` is how much runs at a time; `prefix` says whether prompts are run once for all answers
    ("auto": not decided yet, `prefix.py`), `stems` whether what prompts have in common is (`stems.py`), `packs` whether answers to a prompt may share a
    sequence, `captures` whether they are sampled in fixed shapes, as a CUDA graph, `agreed_on_text` whether the two ways were compared on a prompt
    without pictures; `dtype` as it was loaded."""

    name: str
    model: PreTrainedModel
    processor: Any
    banned: Tensor
    eos: tuple[int, ...]
    encoder: Encoder
    budget: Budget
    prefix: Literal["auto", "on", "off"] = "auto"
    packs: bool = False
    captures: bool = False
    agreed_on_text: bool = False
    stems: Literal["auto", "on", "off"] = "auto"
    dtype: str = "float32"
    fingerprint: str = ""
    _types: dict[str, dict[int, int]] | None = field(default=None, repr=False)
    """Per-token extras by token id, where prompts can be written without the processor; unknown (None) at first."""
    _by_processor: bool = False

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
    def encodes(self) -> int:
        """Pictures that the tower has encoded."""
        return self.encoder.cache.count.encodes

    # ---- text ----------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], images: int, *, generation_prompt: bool) -> str:
        """The conversation in the model's chat template; the pictures stand before the first user text."""
        return render(self.processor, messages, images, generation_prompt=generation_prompt)

    def answer_ids(
        self, messages: Sequence[Message], answer: str, images: int, then: Sequence[Message] = (), name: str = ""
    ) -> Tensor:
        """Token ids [T] that follow the prompt when `answer` is said: the answer, the template's end of turn, and further
        turns up to the next generation prompt, if any. Raises InputError, naming the row, for a text that holds a control token."""
        for text in (answer, *(m.content for m in then)):
            if found := self._control.search(text):
                raise InputError(
                    f"{f'row {name}: ' if name else ''}an answer or what follows it holds {found[0]}, which the model takes for a control "
                    "token: remove it from the text"
                )
        prompt = self.render(messages, images, generation_prompt=True)
        whole = self.render([*messages, Message("assistant", answer), *then], images, generation_prompt=bool(then))
        if not whole.startswith(prompt):
            raise InputError(
                f"{self.name}: its chat template renders an assistant turn differently from its generation prompt, so "
                "the tokens of an answer cannot be told; use a template whose generation prompt begins every assistant turn"
            )
        text = whole[len(prompt) :]
        if not then:
            text = self._cut_after_end(text)
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.long)

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """What no text may hold: special tokens that stand for pictures or turns. Marks such as <s>, which texts have, too, are let through."""
        marks = {
            str(t)
            for name in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")
            if (t := getattr(self.tokenizer, f"{name}_token", None))
        }
        tokens = {str(t) for i, t in self.tokenizer.added_tokens_decoder.items() if t.special and i in set(self.banned.tolist())}
        tokens |= {t for n in ("image_token", "video_token") if isinstance(t := getattr(self.processor, n, None), str)}
        return re.compile("|".join(map(re.escape, sorted(tokens - marks, key=len, reverse=True))) or r"(?!)")

    def harmless(self, text: str) -> str:
        """A text that a model has written, with whatever it spells like a control token broken up."""
        return self._control.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def _cut_after_end(self, text: str) -> str:
        """White space that a template writes after the end-of-turn token is no part of an answer."""
        ends = [self.tokenizer.convert_ids_to_tokens(i) for i in self.eos]
        at = max((text.rfind(e) + len(e) for e in ends if e and e in text), default=0)
        return text[:at] if at else text + str(self.tokenizer.eos_token)

    def count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()

    # ---- prompts and pictures --------------------------------------------------------------------------------------

    def prompts(
        self,
        conversations: Sequence[Conversation],
        max_length: int | Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[Prompt]:
        """Prompts with their picture features; each distinct picture is encoded once while the cache holds it.

        Raises InputError for a prompt of more than `max_length` tokens, one limit for all or one for each (its name, or else its
        number, and its first picture are told): cutting it could cut through a picture.
        """
        conversations = [(messages, tuple(image.pinned() for image in images)) for messages, images in conversations]
        limits = max_length if isinstance(max_length, Sequence) else [max_length] * len(conversations)
        texts = [self.render(messages, len(images), generation_prompt=True) for messages, images in conversations]

        def row(i: int) -> str:
            images = conversations[i][1]
            name = f"the prompt of row {names[i]}" if names else f"prompt {i + 1} of this batch"
            return f"{name}{f', on image {images[0].name},' if images else ''}"

        token = getattr(self.processor, "image_token", None)
        for i, (text, (messages, images)) in enumerate(zip(texts, conversations, strict=True)):
            found = [f[0] for m in messages if (f := self._control.search(m.content)) and f[0] != token]
            if found:
                raise InputError(f"{row(i)} holds {found[0]}, which the model takes for a control token: remove it from its text")
            if token and text.count(token) != len(images):
                raise InputError(
                    f"{row(i)} would show the model {text.count(token)} pictures and has {len(images)}: remove {token} from its text, "
                    "or use a chat template that places pictures"
                )
        pictures = self.encoder.pictures([images for _, images in conversations])
        prompts = []
        for i, (ids, extras) in enumerate(self._tokens(texts, pictures, [images for _, images in conversations])):
            if (limit := limits[i]) is not None and len(ids) > limit:
                raise InputError(
                    f"{row(i)} has {len(ids)} tokens with its images, more than the {max(0, limit)} that max_length leaves it: "
                    "raise max_length or drop the row; prompts are never cut"
                )
            if (most := getattr(self.model.config.get_text_config(), "max_position_embeddings", None)) and len(ids) > most:
                raise InputError(
                    f"{row(i)} has {len(ids)} tokens with its images, and the model has {most} positions: drop the row"
                )
            prompts.append(Prompt(ids, extras, pictures[i], texts[i], conversations[i][1]))
        return prompts

    def _tokens(
        self, texts: list[str], pictures: list[tuple[Picture, ...]], images: list[tuple[ImageSource, ...]]
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """Ids and per-token extras of each row: by the tokenizer alone, once that has been seen to give what the processor gives."""
        if self._types is None and not self._by_processor:
            seen = next((i for i, row in enumerate(pictures) if row), None)
            if seen is not None:
                self._learn(texts[seen], pictures[seen], images[seen])
        if self._types is None:
            return [self._processed(text, row) for text, row in zip(texts, images, strict=True)]
        return [self._spelled(text, row, self._types) for text, row in zip(texts, pictures, strict=True)]

    def _processed(self, text: str, images: tuple[ImageSource, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """By the processor, which wants pixels even of pictures whose features are known."""
        try:
            batch, _ = self.encoder.process([text], [[open_image(i) for i in images]])
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self.name}: its processor refuses a prompt with {len(images)} pictures ({error})") from None
        return batch["input_ids"][0].cpu(), {k: batch[k][0].cpu() for k in PER_TOKEN if k in batch}

    def _spelled(
        self, text: str, pictures: tuple[Picture, ...], types: dict[str, dict[int, int]]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """By the tokenizer, each placeholder replaced by what the processor once wrote for its picture."""
        if pictures:
            pieces = text.split(self.processor.image_token)
            text = pieces[0] + "".join(str(p.text) + piece for p, piece in zip(pictures, pieces[1:], strict=True))
        bos = self.tokenizer.bos_token
        ids = self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)))["input_ids"]
        extras = {k: torch.tensor([by_id.get(i, 0) for i in ids]) for k, by_id in types.items()}
        return torch.tensor(ids), extras

    def _learn(self, text: str, pictures: tuple[Picture, ...], images: tuple[ImageSource, ...]) -> None:
        """Write one prompt both ways; unless they agree, the processor is asked for every prompt (PaliGemma, Mllama)."""
        ids, extras = self._processed(text, images)
        types = {
            k: {i: t for i, t in zip(ids.tolist(), row.tolist(), strict=True) if t} for k, row in extras.items() if row.dim() == 1
        }
        if len(types) == len(extras) and all(p.text is not None for p in pictures):
            mine, my_extras = self._spelled(text, pictures, types)
            if torch.equal(mine, ids) and all(torch.equal(my_extras[k], extras[k]) for k in extras):
                self._types = types
        self._by_processor = self._types is None

    def join(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The pictures of a batch of prompts as the model's forward takes them; empty without pictures."""
        pictures = [picture for prompt in prompts for picture in prompt.pictures]
        if not pictures:
            return {}
        if self.encoder.mllama:
            # Tokens in front of a picture look at all of them alike: a row's pictures are repeated whole to be as many as another's,
            # so that their mean stays. Those of a row without any are zeros, which add nothing.
            most = math.lcm(*(len(p.pictures) for p in prompts if p.pictures))
            blank = torch.zeros_like(pictures[0].columns[0][0])
            rows = [[p.columns[0][0] for p in prompt.pictures] * (most // max(1, len(prompt.pictures))) for prompt in prompts]
            return {"cross_attention_states": torch.stack([torch.cat(row or [blank] * most) for row in rows])}
        pooled, *deep = [[u for p in pictures for u in p.columns[k]] for k in range(len(pictures[0].columns))]
        output = EncoderOutput(torch.stack(pooled) if pictures[0].stacked else pooled, deep or None)
        return {"mm_encoder_outputs": {"image": output}}

    def mask(self, sees_PQK: Tensor) -> Tensor:
        """Which keys each query sees [P, queries, keys], as the model's attention takes it."""
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            return sees_PQK[:, None]
        dtype = self.model.dtype
        return torch.zeros(sees_PQK.shape, dtype=dtype, device=sees_PQK.device).masked_fill(~sees_PQK, torch.finfo(dtype).min)[
            :, None
        ]

    # ---- log-probs -------------------------------------------------------------------------------------------------

    def logits(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Logits [N, V] of the next token in float32, -inf for banned ids: of the distribution that is sampled from."""
        head = self.model.get_output_embeddings()
        logits = head(hidden_ND.to(head.weight.dtype)).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return self.logits_of(logits, temperature)

    def logits_of(self, logits_NV: Tensor, temperature: float) -> Tensor:
        """What the model's own logits become before anything is drawn from them."""
        return (logits_NV / temperature if temperature != 1 else logits_NV).index_fill(-1, self.banned, float("-inf"))

    def log_softmax(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probs [N, V] of the next token."""
        return self.logits(hidden_ND, temperature).log_softmax(-1)

    def token_logps(
        self, hidden_NTD: Tensor, ids_NT: Tensor, mask_NT: Tensor, temperature: float = 1.0, min_tokens: int = 0
    ) -> Tensor:
        """Log-prob [N, T] of each token, 0 on padding; no answer could end before `min_tokens`. Only real tokens reach the head, in
        chunks; where there are several, backward makes each chunk's logits anew, so that those of the batch never exist together."""
        where = mask_NT.bool()
        early_NT = (torch.arange(ids_NT.shape[1], device=ids_NT.device) < min_tokens).expand_as(where)
        chunk = max(1, LOGITS // self.model.get_output_embeddings().weight.shape[0])
        ends = torch.tensor(self.eos, device=ids_NT.device)

        def logps(hidden: Tensor, ids: Tensor, early: Tensor) -> Tensor:
            logits = self.logits(hidden, temperature)
            if min_tokens:
                logits = logits.index_add(-1, ends, torch.where(early, -torch.inf, 0.0)[:, None].expand(-1, len(ends)))
            return -torch.nn.functional.cross_entropy(logits, ids, reduction="none")

        parts = list(zip(*(t[where].split(chunk) for t in (hidden_NTD, ids_NT, early_NT)), strict=True))
        again = torch.is_grad_enabled() and len(parts) > 1
        found = [checkpoint(logps, *part, use_reentrant=False) if again else logps(*part) for part in parts]
        zeros = torch.zeros(ids_NT.shape, dtype=torch.float32, device=ids_NT.device)
        return zeros.masked_scatter(where, torch.cat(found)) if int(where.sum()) else zeros


def render(processor: Any, messages: Sequence[Message], images: int, *, generation_prompt: bool) -> str:
    """A conversation in a processor's chat template; the pictures stand before the first user text."""
    turns, placed = [], False
    for message in messages:
        content: list[dict[str, str]] = [{"type": "text", "text": message.content}]
        if message.role == "user" and not placed:
            content, placed = [{"type": "image"}] * images + content, True
        turns.append({"role": message.role, "content": content})
    return str(processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))
