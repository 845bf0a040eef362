"""Accumulate statistics of a dataset record by record: counts and hashes, no texts or images."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from mmrlhf.facts import split_scope
from mmrlhf.files.rows import preview
from mmrlhf.records import Example, ImageSource, Message, Preference
from mmrlhf.text.word_counts import count_words

MAX_FIELDS_NAMED = 8


def count_learnt_turns(example: Example) -> int:
    """Return how many assistant turns sft learns: those after a user turn, and the answer."""
    if example.answer is None:
        return 0
    followed_by = zip(example.prompt, example.prompt[1:], strict=False)
    return 1 + sum(turn.role == "user" and reply.role == "assistant" for turn, reply in followed_by)


def row_fingerprint(prompt: Sequence[Message], answers: Sequence[str], image_keys: Sequence[str]) -> bytes:
    """Return 16 bytes that stand for a prompt, its answers in any order and its images, by which
    repeated rows are found: of millions of rows the texts would fill the memory."""
    turns = [(turn.role, turn.content, *turn.image_positions) for turn in prompt]
    return _fingerprint(json.dumps([turns, sorted(answers), image_keys]))


def _fingerprint(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()


class DatasetSummary:
    """Counts over the records passed to `add`.

    rows_per_image: number of rows that show an image, by the hash of its content.
    row_fingerprints: number of rows with the same prompt, answers and images.
    ids: hashes of the rows' ids.
    word_counts: answer lengths in words; in preferences, those of the best (`chosen`) and the worst
        answer (`rejected`), unless the two are tied.
    unread_fields: number of rows with each field that the record does not use. num_learnt:
    assistant turns that sft learns, in the rows that end with one. num_against_ranks: preferences
    with a rating that contradicts its rank.
    """

    def __init__(self) -> None:
        self.num_rows = self.num_learnt = self.num_tied = self.num_against_ranks = 0
        self.rows_per_image: Counter[str] = Counter()
        self.row_fingerprints: Counter[bytes] = Counter()
        self.ids: set[bytes] = set()
        self.unread_fields: Counter[str] = Counter()
        self.images_per_row: Counter[int] = Counter()
        self.answers_per_row: Counter[int] = Counter()
        self.hallucinated: Counter[bool | None] = Counter()
        self.word_counts = {name: array("L") for name in ("chosen", "rejected", "answer")}
        self.facts_per_row = array("L")
        self.margins = array("d")

    def register_image(self, source: ImageSource) -> str:
        """Return an image's hash. The image counts as distinct even if its row is bad."""
        self.rows_per_image[source.key] += 0  # adds the key
        return source.key

    def add(self, record: Example | Preference) -> None:
        """Count a record. Raises InputError if an image file cannot be read."""
        keys = [self.register_image(source) for source in record.all_images]
        self.rows_per_image.update(set(keys))
        self.num_rows += 1
        self.images_per_row[len(keys)] += 1
        self.unread_fields.update(record.meta.keys())
        self.facts_per_row.append(len(split_scope(record.facts)[1]))
        if isinstance(record, Preference):
            texts = record.answers
            self._add_preference(record)
        else:
            texts = () if record.answer is None else (record.answer,)
            self.num_learnt += count_learnt_turns(record)
            self.word_counts["answer"].extend(map(count_words, texts))
        self.answers_per_row[len(texts)] += 1
        self.row_fingerprints[row_fingerprint(record.prompt, texts, keys)] += 1
        self.ids.add(_fingerprint(record.id))

    def _add_preference(self, record: Preference) -> None:
        self.hallucinated[record.hallucinated] += 1
        comparisons = record.comparisons
        self.num_tied += any(comparison.is_tie for comparison in comparisons)
        self.num_against_ranks += any(
            comparison.margin is not None and comparison.margin < 0 and not comparison.is_tie for comparison in comparisons
        )
        if record.ratings:
            self.margins.append(record.ratings[0] - record.ratings[-1])
        if record.ranks[0] != record.ranks[-1]:
            for name, text in (("chosen", record.chosen), ("rejected", record.rejected)):
                self.word_counts[name].append(count_words(text))

    def table_rows(self) -> dict[str, str]:
        """Return a short summary as rows of a table."""
        table = {"distinct images": f"{len(self.rows_per_image)}"}
        if num_repeated := self.num_rows - len(self.row_fingerprints):
            table["repeated rows"] = f"{num_repeated}: prompt, answers and images of an earlier row"
        if num_repeated := self.num_rows - len(self.ids):
            table["repeated ids"] = (
                f"{num_repeated}: facts of rows without image names are looked up by id: give each row its own"
            )
        table |= {f"{name}, mean words": f"{fmean(lengths):.1f}" for name, lengths in self.word_counts.items() if lengths}
        if self.num_learnt:
            num_answered = len(self.word_counts["answer"])
            table["answers that sft learns"] = f"{self.num_learnt} in {num_answered} rows (with --train_on last: {num_answered})"
        if self.unread_fields:
            names = [preview(name)[1:-1] for name, _ in self.unread_fields.most_common(MAX_FIELDS_NAMED)]
            more = ", ..." if len(self.unread_fields) > len(names) else ""
            table["fields that only reward functions see"] = ", ".join(names) + more
        nonzero_counts = [count for count in self.facts_per_row if count]
        if not nonzero_counts:
            return table | {"rows with facts": "none"}
        return table | {"rows with facts": f"{len(nonzero_counts)} of {self.num_rows}, {fmean(nonzero_counts):.1f} each"}
