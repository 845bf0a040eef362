"""What a data set holds, gathered record by record: numbers and fingerprints, no text and no picture."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections import Counter
from statistics import fmean

from mmrlhf.records import Example, ImageSource, Preference


class Summary:
    """Call `add` with each record, and read what it has counted.

    words: how long answers are, `chosen` and `rejected` of each preference whose best and worst answer are not tied, else `answer`.
    pictures: in how many rows each is, by its content. rows_alike: how often each prompt, answers and pictures came together.
    """

    def __init__(self) -> None:
        self.rows = self.preferences = self.tied = self.against_ranks = 0
        self.pictures: Counter[str] = Counter()
        self.rows_alike: Counter[bytes] = Counter()
        self.images: Counter[int] = Counter()
        self.answers: Counter[int] = Counter()
        self.hallucinated: Counter[bool | None] = Counter()
        self.words = {name: array("L") for name in ("chosen", "rejected", "answer")}
        self.facts = array("L")
        self.margins = array("d")

    def picture(self, source: ImageSource) -> str:
        """A picture's fingerprint, counted as seen even if its row turns out bad."""
        self.pictures[source.key] += 0
        return source.key

    def add(self, record: Example | Preference) -> None:
        """Count a record. Raises InputError when a picture's file cannot be read."""
        keys = [self.picture(source) for source in record.images]
        self.pictures.update(set(keys))
        self.rows += 1
        self.images[len(keys)] += 1
        self.facts.append(len(record.facts))
        if isinstance(record, Preference):
            texts = record.answers
            self._rank(record)
        else:
            texts = () if record.answer is None else (record.answer,)
            self.words["answer"].extend(len(text.split()) for text in texts)
        self.answers[len(texts)] += 1
        said = json.dumps([[(m.role, m.content) for m in record.prompt], sorted(texts), keys])
        self.rows_alike[hashlib.blake2b(said.encode(errors="replace"), digest_size=16).digest()] += 1

    def _rank(self, record: Preference) -> None:
        self.preferences += 1
        self.hallucinated[record.hallucinated] += 1
        found = record.comparisons
        self.tied += any(one.tie for one in found)
        self.against_ranks += any(one.margin is not None and one.margin < 0 and not one.tie for one in found)
        if record.ratings:
            self.margins.append(record.ratings[0] - record.ratings[-1])
        if record.ranks[0] != record.ranks[-1]:
            for name, text in (("chosen", record.chosen), ("rejected", record.rejected)):
                self.words[name].append(len(text.split()))

    def lines(self) -> dict[str, str]:
        """The short of it, for a table."""
        found = {"distinct pictures": f"{len(self.pictures)}"}
        found |= {f"{name}, mean words": f"{fmean(lengths):.1f}" for name, lengths in self.words.items() if lengths}
        having = [count for count in self.facts if count]
        return found | {"rows with facts": f"{len(having)} of {self.rows}, {fmean(having):.1f} each" if having else "none"}
