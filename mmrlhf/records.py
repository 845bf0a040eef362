"""The nouns of the project, one frozen record each. No torch here: a record is what a file says, not what a model sees.

Tensors have their own records beside the code that makes them (`vlm.Prompt`, `prefix.Prefix`, `rollout.Rollout`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal


class InputError(ValueError):
    """What the user gave cannot be used. The message is one sentence: file, row, field, and what to do.

    The command line prints it after `error:` and exits with 2, without a traceback.
    """


@dataclass(frozen=True)
class ImageSource:
    """A picture that has not been opened: a file's path, or its encoded bytes. Exactly one of the two is set.

    `content` is the sha256 of a file that must not have become another picture since.
    """

    path: str | None = None
    data: bytes | None = None
    expected_sha256: str | None = field(default=None, compare=False)

    @property
    def name(self) -> str:
        """How messages speak of it."""
        return self.path if self.path is not None else f"<{len(self.data or b'')} bytes>"

    def read(self) -> bytes:
        """The encoded bytes. Raises InputError when the file is not there, cannot be read, or is not what it was when it was pinned."""
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
        """The same picture, which is refused once its file holds another."""
        if self.data is not None or self.expected_sha256 is not None:
            return self
        copy = replace(self, expected_sha256=self.key)
        copy.__dict__["_seen"] = self.__dict__["_seen"]
        return copy

    @property
    def key(self) -> str:
        """sha256 of the content: two names of one picture are one picture. A file that has been written since is read again."""
        state = None
        if self.path is not None:
            with contextlib.suppress(OSError):  # `read` says what is wrong with it
                stat_result = os.stat(self.path)
                state = stat_result.st_mtime_ns, stat_result.st_ctime_ns, stat_result.st_size, stat_result.st_ino
        cached = self.__dict__.get("_seen")
        if cached is None or cached[0] != state:
            cached = state, self._digest()
            self.__dict__["_seen"] = cached
        return str(cached[1])

    def _digest(self) -> str:
        if self.path is not None:
            with contextlib.suppress(OSError), open(self.path, "rb") as file:  # in blocks: a path may lead to a file of any size
                return hashlib.file_digest(file, "sha256").hexdigest()
        return hashlib.sha256(self.read()).hexdigest()


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation, as text. The images of a row stand before its first user text."""

    role: Role
    content: str


FactKind = Literal["caption", "object", "attribute", "count", "relation", "ocr", "qa", "rationale", "absent"]


@dataclass(frozen=True)
class Fact:
    """A piece of evidence on one picture. What no fact lists is unknown, not contradicted.

    `box` is where it is, as shares of width and height from the top left corner: x0, y0, x1, y1.
    """

    kind: FactKind
    text: str
    source: str = ""
    confidence: float = 1.0
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Example:
    """A prompt on pictures, with the answer to learn (sft) or without one (rollouts, generate, eval).

    `prompt` ends with a user turn. `meta` holds whatever else the row said; no stage depends on it.
    """

    id: str
    images: tuple[ImageSource, ...]
    prompt: tuple[Message, ...]
    answer: str | None = None
    facts: tuple[Fact, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Two answers of a preference by their numbers: `better` is, or if `tie` they are as good. `margin` is by how much, in the
    annotators' units, None where nobody said."""

    better: int
    worse: int
    is_tie: bool
    margin: float | None


@dataclass(frozen=True)
class Preference:
    """K answers to one prompt on the same pictures, best first, and how they rank. `prompt` ends with a user turn.

    `ranks` never fall; equal ones are a tie. `ratings` are what annotators gave each answer, where they did: only differences
    mean anything. `source` is the data set the row once came from, `hallucinated` whether annotators saw false claims in the worst.
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

    @classmethod
    def from_pair(
        cls, id: str, images: tuple[ImageSource, ...], prompt: tuple[Message, ...], chosen: str, rejected: str,
        facts: tuple[Fact, ...] = (), **kwargs: Any,
    ) -> Preference:  # fmt: skip
        """Two answers, the first the better one."""
        return cls(id, images, prompt, (chosen, rejected), (1, 2), facts=facts, **kwargs)

    @property
    def chosen(self) -> str:
        return self.answers[0]

    @property
    def rejected(self) -> str:
        return self.answers[-1]

    @property
    def comparisons(self) -> list[Comparison]:
        """All K (K - 1) / 2 of them."""
        pairs = []
        for a, b in itertools.combinations(range(len(self.answers)), 2):
            margin = self.ratings[a] - self.ratings[b] if self.ratings else None
            pairs.append(Comparison(a, b, self.ranks[a] == self.ranks[b], margin))
        return pairs


@dataclass(frozen=True)
class Claim:
    """One visual claim of an answer, atomic, so that equal claims are equal records.

    `subject` is the thing it is about, in the singular. `value` is the attribute or the number; of a relation, `relation` is how and `target`
    to what (the rendered world's own reader has both in `value`). `negated` says that it is not so, `hedged` that it may be.
    `category` is the subject's class in COCO, and `span` the characters of the answer that make the claim; neither is part of equality.
    """

    kind: Literal["object", "attribute", "count", "relation"]
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
    """What a claim was found to be, with the evidence that decided it. `probability` is that the claim is true, None where nobody can say."""

    claim: Claim
    value: Literal["supported", "contradicted", "unknown"]
    evidence: str = ""
    probability: float | None = None
