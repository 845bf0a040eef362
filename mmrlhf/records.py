"""The records that every part of the package exchanges: examples, preferences, facts, claims.

All are frozen, and none holds tensors, so this module does not need torch. Records of tensors are
defined next to the code that creates them (`models.vlm.Prompt`, `engine.prefill.Prefix`,
`engine.completions.Completions`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

FileState = tuple[int, int, int, int]
"""Modification time, change time (both in nanoseconds), size in bytes, and inode of a file."""


class InputError(ValueError):
    """An error in the user's input.

    The message is one sentence that names the file, row and field, and says what to do. The command
    line prints it after `error:` and exits with 2, without a traceback.
    """


@dataclass(frozen=True)
class ImageSource:
    """An image that has not been opened: the path of its file, or its encoded bytes, never both.

    If `expected_sha256` is set, `read` raises once the file's content no longer has that hash.
    """

    path: str | None = None
    data: bytes | None = None
    expected_sha256: str | None = field(default=None, compare=False)
    recorded_name: str = field(default="", compare=False)
    """The data's file name for embedded bytes, under which facts may list the image; often none."""
    _digests: dict[FileState | None, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """sha256 of the content, by the file's state when it was hashed (None for bytes)."""

    @property
    def name(self) -> str:
        """Return the name of the image in messages."""
        return self.path if self.path is not None else f"<{len(self.data or b'')} bytes>"

    def read(self) -> bytes:
        """Return the encoded bytes.

        Raises InputError if the file is missing, cannot be read, or changed after it was pinned.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        try:
            data = Path(self.path).read_bytes()
        except FileNotFoundError:
            raise InputError(f"image {self.path} does not exist: correct the path or the image folder") from None
        except OSError as error:
            raise InputError(f"image {self.path} cannot be read ({error.strerror})") from None
        if self.expected_sha256 is not None and hashlib.sha256(data).hexdigest() != self.expected_sha256:
            raise InputError(f"image {self.name} changed while it was being used: run again when nothing writes to it")
        return data

    def pinned(self) -> ImageSource:
        """Return the same image with its current hash as `expected_sha256`."""
        if self.data is not None or self.expected_sha256 is not None:
            return self
        copy = replace(self, expected_sha256=self.key)
        copy._digests.update(self._digests)  # the copy need not hash the file again
        return copy

    @property
    def key(self) -> str:
        """Return the sha256 of the content; copies of an image under different names share it.

        A file is hashed again only if it has changed.
        """
        state = self._file_state()
        if state not in self._digests:
            self._digests[state] = self._digest()
        return self._digests[state]

    def _file_state(self) -> FileState | None:
        if self.path is None:
            return None
        try:
            stat_result = os.stat(self.path)
        except OSError:  # `read` reports it
            return None
        return stat_result.st_mtime_ns, stat_result.st_ctime_ns, stat_result.st_size, stat_result.st_ino

    def _digest(self) -> str:
        if self.path is not None:
            # Hash in blocks, because the file may have any size.
            with contextlib.suppress(OSError), open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(self.read()).hexdigest()


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation: its text, and the places of images in it.

    `image_positions` are offsets in `content`, in ascending order. A row's first images without a
    place in any turn are shown before its first user text.
    """

    role: Role
    content: str
    image_positions: tuple[int, ...] = field(default=(), repr=False)

    def parts(self) -> list[dict[str, str]]:
        """Return the turn as a chat template's parts: texts and images in the order they appear."""
        bounds = (0, *self.image_positions, len(self.content))
        parts: list[dict[str, str]] = []
        for start, end in itertools.pairwise(bounds):
            if end > start:
                parts.append({"type": "text", "text": self.content[start:end]})
            parts.append({"type": "image"})
        return parts[:-1] or [{"type": "text", "text": ""}]

    def to_dict(self) -> dict[str, Any]:
        """Return the turn's fields for a JSON file, without positions if it has none."""
        positions = {"image_positions": list(self.image_positions)} if self.image_positions else {}
        return {"role": self.role, "content": self.content, **positions}


def place_images(conversation: Sequence[Message], num_images: int) -> list[Message]:
    """Return a conversation with a place for all of its images."""
    num_unplaced = num_images - sum(len(message.image_positions) for message in conversation)
    messages = list(conversation)
    for i, message in enumerate(messages):
        if message.role == "user":
            messages[i] = replace(message, image_positions=(0,) * num_unplaced + message.image_positions)
            break
    return messages


FactKind = Literal["caption", "object", "attribute", "count", "relation", "ocr", "qa", "rationale", "absent", "scope"]


@dataclass(frozen=True)
class Fact:
    """A piece of evidence about one image. Claims that no fact covers are unknown, not false.

    A fact of kind `scope` marks its list as "complete" or "incomplete".

    `box` is x0, y0, x1, y1 from the top left corner, as fractions of the image's width and height.
    """

    kind: FactKind
    text: str
    source: str = ""
    confidence: float = 1.0
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Example:
    """A prompt about images, with a target answer (sft) or none (rollouts, generate, eval).

    `prompt` ends with a user turn. `meta` holds the row's other fields; no stage depends on them.
    """

    id: str
    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answer: str | None = None
    facts: tuple[Fact, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_images(self) -> tuple[ImageSource, ...]:
        """Return the prompt's images: an example has no others."""
        return self.images


@dataclass(frozen=True)
class PlacedImage:
    """An image inside an answer: `position` is an offset in the answer's text."""

    position: int
    source: ImageSource


def number_repeated(ids: Sequence[str], separator: str, first: int) -> list[str]:
    """Return unique ids: a repeated one gets the first number, from `first`, that no id has.

    With separator `-` and first 2, the second `a` becomes `a-2`.
    """
    taken, next_numbers, unique_ids = set(ids), dict[str, int](), []
    for row_id in ids:
        unique_id, number = row_id, next_numbers.get(row_id, first)
        while row_id in next_numbers and unique_id in taken:
            unique_id, number = f"{row_id}{separator}{number}", number + 1
        taken.add(unique_id)
        next_numbers[row_id] = number
        unique_ids.append(unique_id)
    return unique_ids


def answer_turn(text: str, images: Sequence[PlacedImage] = ()) -> Message:
    """Return an answer as the assistant's turn, with the places of the images inside it."""
    return Message("assistant", text, tuple(image.position for image in images))


@dataclass(frozen=True)
class Comparison:
    """Two answers of a preference, by their indices: `better` beats `worse` unless `is_tie`.

    `margin` is the difference of their ratings, in the annotators' units; None without ratings.
    """

    better: int
    worse: int
    is_tie: bool
    margin: float | None


@dataclass(frozen=True)
class Preference:
    """K answers to one prompt about the same images, best first, with their ranks.

    `prompt` ends with a user turn. `ranks` never decrease; equal ranks are a tie. `ratings`, if the
    annotators gave any, have one value per answer, and only their differences mean anything.
    `source` is the dataset the row originally came from; `hallucinated`: whether annotators saw
    false claims in the worst answer. `answer_images` are the images inside each answer, and empty
    if no answer has any.
    """

    id: str
    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    ratings: tuple[float, ...] = ()
    facts: tuple[Fact, ...] = ()
    source: str = ""
    hallucinated: bool | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    answer_images: tuple[tuple[PlacedImage, ...], ...] = field(default=(), repr=False)

    @classmethod
    def from_pair(
        cls, id: str, images: tuple[ImageSource, ...], prompt: tuple[Message, ...], chosen: str, rejected: str,
        facts: tuple[Fact, ...] = (), **kwargs: Any,
    ) -> Preference:  # fmt: skip
        """Build a preference for `chosen` over `rejected`."""
        return cls(id, images, prompt, (chosen, rejected), (1, 2), facts=facts, **kwargs)

    @property
    def chosen(self) -> str:
        return self.answers[0]

    @property
    def rejected(self) -> str:
        return self.answers[-1]

    def images_of(self, answer: int) -> tuple[PlacedImage, ...]:
        """Return the images inside an answer."""
        return self.answer_images[answer] if self.answer_images else ()

    @property
    def all_images(self) -> tuple[ImageSource, ...]:
        """Return the prompt's images and those inside the answers."""
        return (*self.images, *(image.source for images in self.answer_images for image in images))

    @property
    def comparisons(self) -> list[Comparison]:
        """Return all K (K - 1) / 2 comparisons."""
        pairs = []
        for better, worse in itertools.combinations(range(len(self.answers)), 2):
            margin = self.ratings[better] - self.ratings[worse] if self.ratings else None
            pairs.append(Comparison(better, worse, self.ranks[better] == self.ranks[worse], margin))
        return pairs


CLAIM_KINDS = ("object", "attribute", "count", "relation", "action")


@dataclass(frozen=True)
class Claim:
    """One atomic visual claim of an answer. Equal claims are equal records.

    `subject` is the object the claim is about, in the singular. `value` is the attribute or the
    number. A relation has its name in `relation` and its other object in `target`; claims of
    synthetic scenes have both in `value`. An action has the base of its verb in `relation`, with
    the verb's preposition (ride, look at), and its object in `target`. A `negated` claim denies
    something, a `hedged` one says that it may be true. `category` is the subject's COCO class, and
    `span` the range of characters of the answer that states the claim; equality ignores both.
    """

    kind: Literal["object", "attribute", "count", "relation", "action"]
    subject: str
    value: str = ""
    span: tuple[int, int] = field(default=(0, 0), compare=False)
    relation: str = ""
    target: str = ""
    negated: bool = False
    hedged: bool = False
    category: str = field(default="", compare=False)


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim, with its evidence.

    `probability` is the probability that the claim is true, None if it is unknown.
    """

    claim: Claim
    value: Literal["supported", "contradicted", "unknown"]
    evidence: str = ""
    probability: float | None = None
