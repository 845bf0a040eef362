"""Prompts of two kinds, built together: conversations, and some cut before a text of an answer."""

from __future__ import annotations

from mmrlhf.models.answer_images import AnswerText
from mmrlhf.models.vlm import VLM, Conversation, Prompt
from mmrlhf.records import ImageSource


class PromptList:
    """The prompts of a batch: conversations, and conversations cut before one text of an answer."""

    def __init__(self, vlm: VLM, max_length: int) -> None:
        self.vlm, self.max_length, self.num_prompts = vlm, max_length, 0
        self._conversations: list[tuple[int, Conversation, int, str]] = []
        self._texts: list[tuple[int, AnswerText, tuple[ImageSource, ...], str]] = []

    def add_conversation(self, conversation: Conversation, max_prompt_length: int, row_id: str) -> int:
        """Add a prompt with its own limit, and return its number."""
        self._conversations.append((self.num_prompts, conversation, max_prompt_length, row_id))
        self.num_prompts += 1
        return self.num_prompts - 1

    def add_text(self, text: AnswerText, images: tuple[ImageSource, ...], row_id: str) -> int:
        """Add the prompt of a text of an answer, and return its number."""
        self._texts.append((self.num_prompts, text, images, row_id))
        self.num_prompts += 1
        return self.num_prompts - 1

    def build(self, *, with_ids: bool = True) -> list[Prompt]:
        """Return all prompts by their numbers, with the ids of their rows.

        Raises as `VLM.build_prompts` does.
        """
        prompts: dict[int, Prompt] = {}
        if self._conversations:
            numbers, conversations, limits, row_ids = (list(column) for column in zip(*self._conversations, strict=True))
            prompts |= zip(numbers, self.vlm.build_prompts(conversations, limits, row_ids if with_ids else None), strict=True)
        if self._texts:
            numbers, texts, images, row_ids = (list(column) for column in zip(*self._texts, strict=True))
            built = self.vlm.build_prompts_before(texts, images, self.max_length, row_ids)
            prompts |= zip(numbers, built, strict=True)
        return [prompts[number] for number in range(self.num_prompts)]
