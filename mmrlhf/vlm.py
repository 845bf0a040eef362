"""A vision-language model as the stages see it: conversations in, hidden states and log-probs out.

Any Hugging Face image-text-to-text model with `get_image_features` and `mm_encoder_outputs` fits (transformers 5.18 on).
The vision tower and the projector are frozen, so that a picture is encoded once and its features serve every role and epoch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from mmrlhf.images import open_image
from mmrlhf.records import ImageSource, InputError, Message

Conversation = tuple[Sequence[Message], tuple[ImageSource, ...]]


@dataclass(frozen=True)
class Features:
    """What the tower made of the pictures of one prompt: columns (projected features, then deepstack layers, if any) of
    units [tokens, dim], one unit a picture or tile."""

    columns: list[list[Tensor]]


@dataclass(frozen=True)
class Prompt:
    """A prompt ready for the model. `ids` [L]; `extras` the processor's other per-token rows [L]; `grid` what describes
    the pictures' layout to the positions [images, 3] (Qwen); `features` None for a prompt without pictures."""

    ids: Tensor
    extras: dict[str, Tensor]
    grid: Tensor | None
    features: Features | None


@dataclass
class VLM:
    """A model with its processor. `banned` are ids that must never be sampled (image placeholders and other control
    tokens, ids beyond the tokenizer); `eos` ends an answer."""

    name: str
    model: PreTrainedModel
    processor: Any
    banned: Tensor
    eos: tuple[int, ...]
    features: FeatureCache
    fingerprint: str = ""
    encoded_like: Any = None
    encodes: int = 0
    chunk: int = field(default=4096, repr=False)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    # ---- text ----------------------------------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], images: int, *, generation_prompt: bool) -> str:
        """The conversation in the model's chat template; the pictures stand before the first user text."""
        turns, placed = [], False
        for message in messages:
            content: list[dict[str, str]] = [{"type": "text", "text": message.content}]
            if message.role == "user" and not placed:
                content, placed = [{"type": "image"}] * images + content, True
            turns.append({"role": message.role, "content": content})
        return str(self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt))

    def answer_ids(self, messages: Sequence[Message], answer: str, images: int, then: Sequence[Message] = ()) -> Tensor:
        """Token ids [T] that follow the prompt when `answer` is said: the answer, the template's end of turn, and further
        turns up to the next generation prompt, if any."""
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

    def _cut_after_end(self, text: str) -> str:
        """White space that a template writes after the end-of-turn token is no part of an answer."""
        ends = [self.tokenizer.convert_ids_to_tokens(i) for i in self.eos]
        at = max((text.rfind(e) + len(e) for e in ends if e and e in text), default=0)
        return text[:at] if at else text + str(self.tokenizer.eos_token)

    def decode(self, ids: Tensor) -> str:
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True)).strip()

    # ---- prompts and pictures --------------------------------------------------------------------------------------

    def prompts(
        self, conversations: Sequence[Conversation], max_length: int | None = None, names: Sequence[str] | None = None
    ) -> list[Prompt]:
        """Prompts with their picture features; each distinct picture is encoded once while the cache holds it.

        Raises InputError for a prompt of more than `max_length` tokens (its name, or else its number, and its first picture are
        told): cutting it could cut through a picture.
        """
        texts = [self.render(messages, len(images), generation_prompt=True) for messages, images in conversations]
        pictures = [[open_image(i) for i in images] for _, images in conversations]
        batch = self._process(texts, pictures)
        mask = batch["attention_mask"].bool()
        grids, first = batch.get("image_grid_thw"), 0
        features = self._encode(batch, texts, pictures, [tuple(i.key for i in images) for _, images in conversations])
        prompts = []
        for i, keep in enumerate(mask):
            if max_length is not None and int(keep.sum()) > max_length:
                row = f"the prompt of row {names[i]}" if names else f"prompt {i + 1} of this batch"
                images = conversations[i][1]
                raise InputError(
                    f"{row}{f', on image {images[0].name},' if images else ''} has {int(keep.sum())} tokens with its images, more "
                    f"than the {max(0, max_length)} that max_length leaves it: raise max_length or drop the row; prompts are never cut"
                )
            count = len(pictures[i])
            grid = grids[first : first + count] if grids is not None and count else None
            first += count
            extras: dict[str, Tensor] = {k: batch[k][i][keep] for k in ("token_type_ids", "mm_token_type_ids") if k in batch}
            prompts.append(Prompt(batch["input_ids"][i][keep], extras, grid, features[i]))
        return prompts

    def _process(self, texts: list[str], pictures: list[list[Image.Image]]) -> dict[str, Tensor]:
        some = any(pictures)
        return dict(
            self.processor(
                text=texts, images=pictures if some else None, padding=True, padding_side="left", return_tensors="pt",
                add_special_tokens=not any(self.tokenizer.bos_token and t.startswith(self.tokenizer.bos_token) for t in texts),
            )
        )  # fmt: skip

    def _encode(
        self, batch: dict[str, Tensor], texts: list[str], pictures: list[list[Image.Image]], keys: list[tuple[str, ...]]
    ) -> list[Features | None]:
        """Features of each row's pictures. A row's pictures are one entry: some towers treat one picture and several
        differently (LLaVA-OneVision)."""
        # What is there is taken out first: new features may push it out of the cache.
        found = {k: hit for k in keys if k and (hit := self.features.get(k)) is not None}
        missing = {k: i for i, k in enumerate(keys) if k and k not in found}
        if missing:
            rows = list(missing.values())
            part = batch if len(rows) == len(texts) else self._process([texts[i] for i in rows], [pictures[i] for i in rows])
            base = self.model.base_model
            names = [k for k in inspect.signature(base.get_image_features).parameters if k in part]
            with torch.no_grad():
                tensors = {k: part[k].to(self.device) for k in names}
                tensors["pixel_values"] = tensors["pixel_values"].to(self.model.dtype)
                encoded = base.get_image_features(**tensors, return_dict=True)
            placeholders = (part["input_ids"] == self.model.config.image_token_id).sum(1).tolist()
            for key, slice_ in zip(missing, _split(encoded, placeholders), strict=True):
                found[key] = Features(slice_)
                self.features.put(key, found[key])
            self.encoded_like = (type(encoded), torch.is_tensor(encoded.pooler_output))
            self.encodes += sum(len(k) for k in missing)
        return [found[k] if k else None for k in keys]

    def join(self, prompts: Sequence[Prompt]) -> Any:
        """The encoder output that the model expects for a batch of prompts, or None without pictures."""
        columns = [p.features.columns for p in prompts if p.features]
        if not columns:
            return None
        kind, stacked = self.encoded_like
        pooled, *deep = ([u for c in columns for u in c[k]] for k in range(len(columns[0])))
        extra = {"deepstack_features": deep} if deep else {}
        return kind(pooler_output=torch.stack(pooled) if stacked else pooled, **extra)

    # ---- log-probs -------------------------------------------------------------------------------------------------

    def log_softmax(self, hidden_ND: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probs [N, V] of the next token, with the banned ids taken out: the distribution that is sampled from."""
        head = self.model.get_output_embeddings()
        logits = head(hidden_ND.to(head.weight.dtype)).float()
        cap = getattr(self.model.config.get_text_config(), "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
        return (logits / temperature).index_fill(-1, self.banned, float("-inf")).log_softmax(-1)

    def token_logps(self, hidden_NTD: Tensor, ids_NT: Tensor, mask_NT: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-prob and entropy [N, T] of each token, 0 on padding. Only real tokens reach the head, in chunks."""
        where = mask_NT.bool()
        hidden_MD, ids_M = hidden_NTD[where], ids_NT[where]
        logps, entropies = [], []
        for h, i in zip(hidden_MD.split(self.chunk), ids_M.split(self.chunk), strict=True):
            all_logps = self.log_softmax(h, temperature)
            logps.append(all_logps.gather(-1, i[:, None])[:, 0])
            with torch.no_grad():
                entropies.append(-(all_logps.exp() * all_logps.clamp(min=-1e4)).sum(-1))
        zeros = torch.zeros(ids_NT.shape, dtype=torch.float32, device=ids_NT.device)
        if not logps:
            return zeros, zeros
        return zeros.masked_scatter(where, torch.cat(logps)), zeros.masked_scatter(where, torch.cat(entropies))


class FeatureCache:
    """The most recently used picture features, within a byte budget."""

    def __init__(self, budget: int = 2 << 30):
        self.budget, self.bytes = budget, 0
        self._entries: OrderedDict[tuple[str, ...], tuple[Features, int]] = OrderedDict()

    def get(self, key: tuple[str, ...]) -> Features | None:
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: tuple[str, ...], features: Features) -> None:
        size = sum(u.numel() * u.element_size() for column in features.columns for u in column)
        self._entries[key] = (features, size)
        self.bytes += size
        while self.bytes > self.budget and len(self._entries) > 1:
            self.bytes -= self._entries.popitem(last=False)[1][1]


def _split(encoded: Any, counts: Sequence[int]) -> list[list[list[Tensor]]]:
    """Encoder output -> the columns of each row that has pictures, by its number of placeholders.

    Units are cloned: a view would keep the whole batch's output alive.
    """
    columns = [list(encoded.pooler_output)] + [list(f) for f in getattr(encoded, "deepstack_features", None) or []]
    keep = [i for i, unit in enumerate(columns[0]) if len(unit)]
    columns = [[column[i] for i in keep] for column in columns]
    rows, start = [], 0
    for count in counts:
        if not count:
            continue
        stop = start
        while count > 0 and stop < len(columns[0]):
            count -= len(columns[0][stop])
            stop += 1
        if count:
            raise InputError("the processor writes another number of image tokens than the model's tower gives: they do not fit")
        rows.append([[u.clone() for u in column[start:stop]] for column in columns])
        start = stop
    return rows


def load(name: str, dtype: str = "float32", device: torch.device | str | None = None) -> VLM:
    """A checkpoint directory or Hub id, frozen, in eval mode (dropout off); on the GPU where there is one, unless told otherwise.

    Raises InputError when it is not there or holds no image-text-to-text model.
    """
    _refuse_what_is_no_checkpoint(name)
    try:
        processor = AutoProcessor.from_pretrained(name)
        model, report = AutoModelForImageTextToText.from_pretrained(
            name, dtype=getattr(torch, dtype), use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
        there = "" if Path(name).is_dir() else "no such directory, and as a Hub id: "
        raise InputError(
            f"model {name} cannot be loaded ({there}{reason}): give the directory or Hub id of an image-text-to-text model"
        ) from None
    if wrong := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise InputError(
            f"model {name} lacks {len(wrong)} of its weights or has them in another shape, {wrong[0]} first: config.json and "
            "weights do not belong together, copy the checkpoint again"
        )
    if getattr(processor, "chat_template", None) is None:
        raise InputError(f"model {name} has no chat template: put a chat_template.jinja beside its config.json")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.requires_grad_(False).eval().to(device)
    tokenizer = processor.tokenizer
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    eos = _eos(model, tokenizer)
    banned = torch.tensor(_never_sample(model, tokenizer, eos), device=device)
    return VLM(name, model, processor, banned, tuple(sorted(eos)), FeatureCache(), fingerprint=fingerprint(model))


def _refuse_what_is_no_checkpoint(name: str) -> None:
    """What is given instead, most often: a path that is not there, or the directory of the run that made the model."""
    path = Path(name)
    if not path.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise InputError(f"model {name}: no such directory; give a checkpoint directory or a Hub id (owner/name)")
    elif not (path / "config.json").is_file():
        inside = path / "model"
        found = inside if (inside / "config.json").is_file() else "a checkpoint directory or a Hub id (owner/name)"
        raise InputError(f"model {name}: the directory holds no config.json; give {found}")


def fingerprint(model: PreTrainedModel) -> str:
    """A hash of every weight's name, shape and up to 64 of its values: which base an adapter belongs to."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().to(torch.bfloat16).float()
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def _eos(model: PreTrainedModel, tokenizer: Any) -> set[int]:
    found: set[int] = set()
    for value in (tokenizer.eos_token_id, model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id):
        found |= set(value) if isinstance(value, (list, tuple)) else {value}
    return {i for i in found if i is not None}


def _never_sample(model: PreTrainedModel, tokenizer: Any, eos: set[int]) -> list[int]:
    """Special added tokens, every id that a config names, and rows of the embedding beyond the tokenizer; minus each EOS.

    A sampled image placeholder would make the next forward fail, or silently read another picture's features.
    """
    ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for config in (model.config, model.config.get_text_config()):
        ids |= {v for k, v in vars(config).items() if k.endswith(("_token_id", "_token_index")) and type(v) is int}
    rows = model.get_output_embeddings().weight.shape[0]
    return sorted(i for i in (ids | set(range(len(tokenizer), rows))) - eos if 0 <= i < rows)
