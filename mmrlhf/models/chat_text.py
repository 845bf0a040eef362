"""Convert conversations to token ids, and token ids back to text.

The ids of a prompt and its answer come from one tokenization of the whole rendered conversation: a
tokenizer may mark the start of a text, or merge characters across a boundary. A model whose prompts
and answers cannot be separated in these ids is refused when it is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any, Literal

import torch
from torch import Tensor

from mmrlhf.models.chat_template import apply_chat_template, images_shown
from mmrlhf.models.control_tokens import MARKED, ControlTokens
from mmrlhf.records import InputError, Message

ANCHORS = ("\n", "a", ":")
"""Texts that a tokenizer does not merge with the next one; one of them works for any text."""
NO_THINKING = "{% set enable_thinking = false %}"
"""Prefix that turns thinking off in a chat template that supports it."""
PROBE_ANSWERS = ("A cat.", "Yes", "No", "The", "a", "1")
"""Beginnings of answers whose ids must be separable from those of the generation prompt."""


@dataclass(frozen=True)
class Continuation:
    """The tokens that follow a prompt in supervised fine-tuning."""

    num_messages: int
    """Number of the conversation's messages in the prompt."""
    num_images: int
    """Number of the conversation's images in the prompt."""
    token_ids: Tensor
    """[T], as the model reads them."""
    targets: Tensor
    """[T], the tokens to predict. They are `token_ids`, except where the template writes no end of
    turn: there the target is the end-of-sequence token."""
    is_learnt: Tensor
    """[T], the loss mask: 1 on the tokens of assistant turns and on their ends."""


@dataclass(frozen=True)
class _Span:
    """An assistant turn in a rendered conversation, in characters."""

    start: int
    end: int
    """The end of the answer, including its end token if the template writes one."""
    has_end_token: bool


class ChatText:
    """A processor's chat template and tokenizer, and the text that separates answers from prompts.

    `eos` are the ids that end an answer. Raises InputError, naming the model, if prompt and answer
    cannot be separated in its ids.
    """

    def __init__(self, processor: Any, name: str, eos: Sequence[int]):
        self.processor, self.tokenizer, self.name = processor, processor.tokenizer, name
        self.eos = tuple(eos)
        eos_texts = [str(token) for token in map(self.tokenizer.convert_ids_to_tokens, self.eos) if token]
        if not eos_texts:
            raise InputError(f"{name}: no token ends an answer: set eos_token in its tokenizer_config.json")
        self.control_tokens = ControlTokens(processor, eos_texts)
        self.end_pattern = re.compile(r"\s*(?:" + "|".join(map(re.escape, sorted(eos_texts, key=len, reverse=True))) + ")")
        self._owes_image_note = False
        """Whether a note that the template moves a turn's images before its text is still due."""
        self._trims_prompt = False
        """Whether white space at the end of the generation prompt goes to the answer, because the
        tokenizer would merge the two."""
        self._turn_gap = ""
        """White space that the template writes before an answer in place of its prompt's own:
        LLaVA-OneVision's writes "assistant \\n" in a turn and "assistant\\n" to begin one."""
        self.lead = ""
        """White space that the template writes before an answer."""
        self.tail = ""
        """White space that the template writes between an answer and its end token."""
        self.reply_start: list[int] = []
        """Tokens before both "Yes" and "No": those of `lead`, if it has tokens of its own."""
        self._learn_template()
        self._owes_image_note = self._moves_images_to_front()

    # ---- the template --------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], num_images: int, *, generation_prompt: bool, where: str | None = "") -> str:
        """Write a conversation in the chat template. Raises InputError if the template refuses
        it."""
        text = apply_chat_template(
            self.processor,
            [self.control_tokens.mark(m) for m in messages],
            num_images,
            generation_prompt=generation_prompt,
            name=self.name,
            where=where,
        )
        if self._owes_image_note and any(position for m in messages for position in m.image_positions):
            print(f"note: the chat template of {self.name} shows a turn's images before its text, whatever their place in it")
            self._owes_image_note = False  # once is enough
        return text.rstrip() if generation_prompt and self._trims_prompt else text

    def _learn_template(self) -> None:
        """Learn how the template writes an answer, without thinking if it supports that.

        Templates of models that think (Qwen3.5) open a thought in the generation prompt and write
        answers after an empty one, unless thinking is off. It is then off in the processor's
        template, and so in every saved model. Raises InputError as the class says.
        """
        template = self.processor.chat_template
        try:
            self._probe()
        except InputError as refusal:
            if not isinstance(template, str) or "enable_thinking" not in template:
                raise
            self.processor.chat_template = NO_THINKING + template
            try:
                self._probe()
            except InputError:
                self.processor.chat_template = template
                raise refusal from None
            print(
                f"note: {self.name} learns and gives answers without thinking first (enable_thinking is off in its chat template)"
            )

    def _probe(self) -> None:
        """Learn what the template writes around an answer. Raises InputError as the class says."""
        self._trims_prompt, self._turn_gap = False, ""
        question = Message("user", "What is this?")
        for answer in PROBE_ANSWERS:
            conversation = [question, Message("assistant", answer)]
            prompt = self.render([question], 0, generation_prompt=True, where=None)
            text = self.render(conversation, 0, generation_prompt=False, where=None)
            if "'type'" in text or '"type"' in text:
                raise InputError(
                    f"{self.name}: its chat template writes a turn's parts as code ({text[:60]!r}): it is for text only, use the "
                    "template of a vision-language model"
                )
            if not text.startswith(prompt) and text.startswith(prompt.rstrip()):
                self._turn_gap = self._white_space_at(text, len(prompt.rstrip()))
            text = self.align(prompt, text)
            self._check_turn(prompt, text, answer)
            if not self._trims_prompt and prompt != prompt.rstrip() and self._ids_after(prompt, text) is None:
                self._trims_prompt, prompt = True, prompt.rstrip()
            span = self._find_answer(prompt, text, answer, self.name)
            if self._ids_after(prompt, text[: span.end]) is None:
                raise InputError(
                    f"{self.name}: its tokenizer merges the end of the generation prompt ({prompt[-20:]!r}) with the answer, so "
                    "the tokens of an answer are unknown: use a template whose generation prompt ends in a token of its own"
                )
            start = text.index(answer, len(prompt))
            self.lead = text[len(prompt) : start]
            self.tail = self._white_space_at(text, start + len(answer)) if span.has_end_token else ""
        yes_ids, no_ids = (self.answer_token_ids([question], word, 0).tolist() for word in ("Yes", "No"))
        self.reply_start = [yes for yes, _ in takewhile(lambda pair: pair[0] == pair[1], zip(yes_ids, no_ids, strict=False))]

    def _moves_images_to_front(self) -> bool:
        try:
            between, in_front = (
                self.render([Message("user", "What is this?", (position,))], 1, generation_prompt=True).split()
                for position in (8, 0)
            )
        except InputError:
            return False
        return between == in_front

    def _check_turn(self, prompt: str, text: str, answer: str) -> None:
        """Raise InputError if there is more than white space between prompt, answer and end."""
        if not text.startswith(prompt) or answer not in text[len(prompt) :]:
            raise InputError(
                f"{self.name}: its chat template renders an assistant turn differently from its generation prompt, so the "
                "tokens of an answer are unknown: use a template whose generation prompt begins every assistant turn"
            )
        before, _, after = text[len(prompt) :].partition(answer)
        end = self.end_pattern.search(after)
        gaps = {
            "between its generation prompt and an answer": before,
            "between an answer and its end": after[: end.start()] if end else "",
        }
        for place, gap in gaps.items():
            if gap.strip():
                raise InputError(
                    f"{self.name}: its chat template writes {gap.strip()!r} {place}, which would be learnt as part of the answer: "
                    "use a template that writes only white space there"
                )

    def align(self, prompt: str, text: str) -> str:
        """Return `text` with the generation prompt's white space before the answer that follows it.

        Only white space may differ. An answer is learnt after the same tokens after which it is
        generated.
        """
        header = prompt.rstrip()
        if text.startswith(prompt) or not self._turn_gap or not text.startswith(header + self._turn_gap):
            return text
        return prompt + text[len(header + self._turn_gap) :]

    def _find_answer(self, prompt: str, text: str, answer: str, where: str) -> _Span:
        """Find an answer after its prompt. Raises InputError if the template has rewritten it."""
        body = answer.strip()
        start = len(prompt)
        while start < len(text) and text[start].isspace() and not (body and text.startswith(body, start)):
            start += 1
        if not text.startswith(prompt) or not text.startswith(body, start):
            raise InputError(
                f"{where}the chat template of {self.name} rewrites the answer, so its tokens are unknown: change the answer "
                f"({answer[:40]!r}) or drop the row"
            )
        end = start + len(body)
        trailing = answer[len(answer.rstrip()) :]
        if trailing and text.startswith(trailing, end):
            end += len(trailing)
        if match := self.end_pattern.match(text, end):
            return _Span(len(prompt), match.end(), True)
        return _Span(len(prompt), end, False)

    @staticmethod
    def _white_space_at(text: str, position: int) -> str:
        return text[position : len(text) - len(text[position:].lstrip())]

    # ---- token ids -----------------------------------------------------------------------------

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a rendered text; marked markup is not a control token."""
        first, *rest = MARKED.split(text)
        token_ids = list(self.tokenizer(first, add_special_tokens=add_special_tokens)["input_ids"])
        for i, piece in enumerate(rest):  # marked and other pieces in turns
            token_ids += self._encode_continued(piece, split_special_tokens=i % 2 == 0)
        return token_ids

    def _encode_continued(self, text: str, *, split_special_tokens: bool = False) -> list[int]:
        """Return the ids of a text that continues another, without a mark of its beginning.

        With `split_special_tokens`, special tokens in it are read as text.
        """
        for anchor in ANCHORS if text else ():
            anchor_ids, ids = (
                self.tokenizer(t, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"]
                for t in (anchor, anchor + text)
            )
            if ids[: len(anchor_ids)] == anchor_ids:
                return list(ids[len(anchor_ids) :])
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=split_special_tokens)["input_ids"])

    def _ids_after(self, prompt: str, text: str) -> list[int] | None:
        """Return the ids of `text` after those of `prompt`; None if it does not begin with them."""
        prompt_ids, ids = self.encode(prompt), self.encode(text)
        return ids[len(prompt_ids) :] if ids[: len(prompt_ids)] == prompt_ids else None

    def continuation_ids(self, prompt: str, text: str) -> list[int]:
        """Return the ids of `text` after its beginning `prompt`.

        If the tokenizer merges the two, which happens for a few beginnings of an answer (such as
        brackets), the rest is tokenized by itself, as it would be generated.
        """
        ids = self._ids_after(prompt, text)
        return self._encode_continued(text[len(prompt) :]) if ids is None else ids

    def answer_token_ids(
        self, messages: Sequence[Message], answer: str, num_images: int, following_turns: Sequence[Message] = (), row_id: str = ""
    ) -> Tensor:
        """Return the token ids [T] that follow the prompt if the model says `answer`.

        These are the answer and its end, or the answer, the template's end of turn, and
        `following_turns` up to the start of the reply to them. Raises InputError, naming the row,
        if a text holds a control token or the template refuses or rewrites it.
        """
        where = f"row {row_id}: " if row_id else ""
        turns = [Message("assistant", answer), *following_turns]
        self.control_tokens.check(turns, f"{where}an answer or what follows it")
        answer = self.control_tokens.mark(turns[0]).content
        prompt = self.render(messages, num_images, generation_prompt=True, where=where)
        text = self.render([*messages, *turns], num_images, generation_prompt=bool(following_turns), where=where)
        text = self.align(prompt, text)
        if following_turns:
            if not text.startswith(prompt):
                self._find_answer(prompt, text, answer, where)
            return torch.tensor([*self.continuation_ids(prompt, text), *self.reply_start], dtype=torch.long)
        span = self._find_answer(prompt, text, answer, where)
        ids = self.continuation_ids(prompt, text[: span.end])
        return torch.tensor(ids if span.has_end_token else [*ids, self.end_id], dtype=torch.long)

    def learnt_continuations(
        self, conversation: Sequence[Message], num_images: int, *, train_on: Literal["all", "last"], row_id: str = ""
    ) -> list[Continuation]:
        """Return the turns of a conversation to learn: all assistant turns after a user turn, or
        the last.

        The turns of one continuation share its prompt, which ends before the first of them. Another
        prompt begins where a user turn shows images, and where the ids of a turn cannot be
        separated from those of the previous turn. Raises InputError as `answer_token_ids` does.
        """
        where = f"row {row_id}: " if row_id else ""
        self.control_tokens.check(conversation, f"{where}a turn")
        conversation = [self.control_tokens.mark(message) for message in conversation]
        learnt = [
            i for i, m in enumerate(conversation) if m.role == "assistant" and i > 0 and conversation[i - 1].role == "user"
        ][0 if train_on == "all" else -1 :]
        continuations = []
        while learnt:
            first = learnt[0]
            group = [i for i in learnt if not any(m.image_positions for m in conversation[first:i])]
            continuation = None
            while continuation is None:  # a single turn always has one
                continuation = self._learn_turns(conversation, group, num_images, where)
                learnt_now, group = len(group), group[: len(group) // 2]
            continuations.append(continuation)
            learnt = learnt[learnt_now:]
        return continuations

    def _learn_turns(
        self, conversation: Sequence[Message], indices: Sequence[int], num_images: int, where: str
    ) -> Continuation | None:
        """Return one continuation with these assistant turns; None if they need several."""
        first, last = indices[0], indices[-1]

        def rendered(num_messages: int, *, generation_prompt: bool) -> str:
            messages = conversation[:num_messages]
            num_shown = images_shown(messages, conversation, num_images)
            return self.render(messages, num_shown, generation_prompt=generation_prompt, where=where)

        prompts = [rendered(i, generation_prompt=True) for i in indices]
        text = self.align(prompts[0], rendered(last + 1, generation_prompt=False))
        if len(indices) > 1 and not all(text.startswith(prompt) for prompt in prompts):
            return None  # earlier turns are written in another way than the last
        spans = [self._find_answer(p, text, conversation[i].content, where) for p, i in zip(prompts, indices, strict=True)]
        text = text[: spans[-1].end]
        token_ids = self.continuation_ids(prompts[0], text)
        ends_early = [not span.has_end_token for span in spans]
        if ends_early[-1]:
            token_ids = [*token_ids, self.end_id]
        targets, is_learnt = list(token_ids), [0] * len(token_ids)
        for span, needs_end in zip(spans, ends_early, strict=True):
            bounds = [0, len(token_ids)]
            if len(indices) > 1:
                start, end = (self._ids_after(prompts[0], text[:position]) for position in (span.start, span.end))
                if start is None or end is None or token_ids[: len(end)] != end or token_ids[: len(start)] != start:
                    return None  # the tokenizer merges the turn with its neighbours
                bounds = [len(start), len(end) + needs_end]
            is_learnt[slice(*bounds)] = [1] * (bounds[1] - bounds[0])
            if needs_end:
                targets[bounds[1] - 1] = self.end_id
        num_shown = images_shown(conversation[:first], conversation, num_images)
        return Continuation(first, num_shown, torch.tensor(token_ids), torch.tensor(targets), torch.tensor(is_learnt))

    @property
    def end_id(self) -> int:
        """The end token for a template that writes none."""
        token_id = self.tokenizer.eos_token_id
        return int(token_id) if token_id in self.eos else self.eos[0]

    def count_tokens(self, text: str) -> int:
        """Return the number of tokens of a text by itself."""
        return len(self.encode(text))

    @cached_property
    def _anchor(self) -> tuple[list[int], str]:
        """A word's ids and their text. Ids are decoded after it, as they would be after a
        prompt."""
        token_ids = self.encode("a")
        return token_ids, self._raw_decode(token_ids)

    def _raw_decode(self, token_ids: list[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def decode(self, token_ids: Tensor) -> str:
        """Return the text of an answer's token ids [T], without special tokens.

        The white space that the template writes around an answer is left out; the rest is kept.
        """
        # A decoder may strip the first space of a text, so the answer is decoded after a word.
        anchor_ids, anchor = self._anchor
        text = self._raw_decode(anchor_ids + token_ids.tolist())[len(anchor) :].removeprefix(self.lead)
        has_end = len(token_ids) > 0 and int(token_ids[-1]) in self.eos
        return text.removesuffix(self.tail) if has_end else text
