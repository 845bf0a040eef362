"""Join the rows of an answer file to the examples that they answer.

A row may refer to an example by id, by question and image, or by its position in the file. If its
id and its question disagree, the question decides. Rows without an id of the data are joined by a
constant distance between their numbers and the examples' positions, or by order, but only if all
questions agree. All other rows are unknown. Notes count the rows that were not joined by an id.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from mmrlhf.evaluation.answer_rows import RowFacts, image_key
from mmrlhf.evaluation.row_matching import MIN_MATCH_RATE, ExampleIndex, Match, Target, best_match, match_by_id
from mmrlhf.files.rows import preview

MIN_MATCH_RATE_ONLY_SPLIT, MIN_MATCH_RATE_WITHOUT_SPLITS = 0.75, 0.5
"""Minimum share of rows that fit the questions if only one split is possible, or there are no
splits. Otherwise it is MIN_MATCH_RATE, since splits share half of their questions."""

OTHER_SPLIT = "another split"
"""Placeholder for the split of rows that do not belong to the only one in the data."""


class Joined(NamedTuple):
    """The ids of the examples that each row answers, and notes on how they were joined.

    A row has several ids if it names several splits, an id that no example has if it is unknown,
    and none if it does not identify its question.
    """

    ids: list[tuple[str, ...]]
    notes: dict[str, str]
    """Sentences by topic."""


def join_rows(
    rows: Sequence[RowFacts],
    targets: Sequence[Target],
    has_splits: bool = False,
    only_split: str | None = None,
) -> Joined:
    """Return the example of each row.

    targets: all examples in order; those with a split have ids that restart in every split.
    has_splits: whether rows may be of several splits, even if the targets are of one. only_split:
    the split of targets without a split, so that rows of other splits are unknown.
    """
    index = ExampleIndex(targets)
    report = _Report(rows, index)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for number, row in enumerate(rows):
        for split in row.splits or (None,):
            groups.setdefault((row.file if has_splits else "", split), []).append(number)
    found: dict[int, list[str]] = {}
    split_of: dict[int, str | None] = {}
    possible: dict[int, list[str]] = {}
    for (_, stated), numbers in groups.items():
        splits, default = _possible_splits(stated, only_split, index)
        assigned, block_splits = _assign(rows, numbers, splits, has_splits, index, report) if splits else ({}, {})
        for number in numbers:
            split_of[number] = block_splits.get(number, default)
            possible.setdefault(number, []).extend([block_splits[number]] if number in block_splits else splits)
            if number in assigned:
                found.setdefault(number, []).append(assigned[number])
    ids = []
    for number, row in enumerate(rows):
        known = tuple(dict.fromkeys(found.get(number, ())))
        unknown = None if known else _name_unknown(row, split_of[number])
        if unknown is not None and unknown in index.examples:
            unknown = f"{unknown}/{row.asked.strip()[:200] or 'unknown'}"
        ids.append(known or (() if unknown is None else (unknown,)))
    return Joined(ids, report.notes(ids, [possible[number] for number in range(len(rows))]))


def _name_unknown(row: RowFacts, split: str | None) -> str | None:
    """Return a name for a question that the data lacks; None without id and question."""
    own = row.id
    if own is None:
        question = row.asked.strip().split("\n")[0]
        own = "/".join(filter(None, (row.image, question))) if question else None
    return own if own is None or not split else f"{split}/{own}"


def _possible_splits(stated: str | None, only_split: str | None, index: ExampleIndex) -> tuple[list[str], str | None]:
    """Return the possible splits of rows with a stated split, and the split for unknown ids."""
    if list(index.by_split) != [""]:
        if stated is None:
            return list(index.by_split), None
        return ([stated] if stated in index.by_split else []), stated
    if stated is None or only_split is None or stated == only_split:
        return [""], ""
    return [], stated


# ---- several splits ------------------------------------------------------------------------------


def _assign(
    rows: Sequence[RowFacts], numbers: list[int], splits: list[str], has_splits: bool, index: ExampleIndex, report: _Report
) -> tuple[dict[int, str], dict[int, str]]:
    """Return the ids of rows in these splits, and the split of each row in a recognised block."""
    is_only = len(splits) == 1
    used: list[str] = []
    ids: dict[int, str] = {}
    split_of: dict[int, str] = {}
    rejected: list[list[int]] = []
    # Large blocks first, because their split is more certain.
    blocks = [numbers]
    if has_splits and any(rows[number].wordings for number in numbers):
        blocks = sorted(_blocks(rows, numbers, len(index.examples)), key=len, reverse=True)
    min_rate = MIN_MATCH_RATE
    if is_only and len(blocks) == 1:
        min_rate = MIN_MATCH_RATE_ONLY_SPLIT if has_splits else MIN_MATCH_RATE_WITHOUT_SPLITS
    for block in blocks:
        if not is_only and not any(rows[number].wordings for number in block):
            continue
        matches = {split: best_match(rows, block, split, index, min_rate) for split in splits}
        # Half of the questions are the same in all splits, so a block may fit several splits.
        sizes = {split: len(set(match.ids.values())) for split, match in matches.items() if match is not None}
        best = [split for split in sizes if sizes[split] == max(sizes.values())]
        if not is_only and max(sizes.values(), default=0) < len(block):
            runs = _segments(rows, block, splits, index, used)
            together = _disjoint(matches, used)
            num_together = sum(len(match.ids) for match in together.values())
            if num_together > max(len(runs), max(sizes.values(), default=0)):
                for split, part in together.items():
                    used.append(split)
                    ids |= part.ids
                    split_of |= dict.fromkeys(part.ids, split)
                    report.count_joined(part, split)
                continue
            if len(runs) > max(sizes.values(), default=0):
                ids |= runs
                used += {index.examples[id_].split for id_ in runs.values()}
                report.count_joined(Match(runs, 1.0, "order"), None)
                continue
        remaining = best if len(best) == 1 else [split for split in best if split not in used]
        if len(remaining) == 1:
            match = matches[remaining[0]]
            assert match is not None
            used.append(remaining[0])
            ids |= match.ids
            split_of |= dict.fromkeys(block, remaining[0])
            report.count_joined(match, remaining[0])
        elif best:
            report.leave_open(block)
        else:
            rejected.append(block)
    for block in rejected:
        if is_only and used:
            # Other blocks are of this split, so this one is of another.
            split_of |= dict.fromkeys(block, OTHER_SPLIT)
        elif is_only:
            trusted = match_by_id(rows, block, splits[0], index).ids
            ids |= {number: id_ for number, id_ in trusted.items() if not rows[number].wordings}
        report.reject(block, splits, is_other_split=is_only and bool(used))
    return ids, split_of


def _disjoint(matches: Mapping[str, Match | None], used: Sequence[str]) -> dict[str, Match]:
    """Return the matches of several unused splits if no row is in two of them, as where ids run on
    from split to split; else none."""
    found = {split: match for split, match in matches.items() if match is not None and split not in used}
    numbers = [number for match in found.values() for number in match.ids]
    return found if len(found) > 1 and len({*numbers}) == len(numbers) else {}


def _blocks(rows: Sequence[RowFacts], numbers: list[int], num_examples: int) -> list[list[int]]:
    """Cut rows where ids restart (at the block's first id, at an id with another question, or below
    the first after rising only), and where they leave a gap of more than all examples.

    A repeated id with the same question is a duplicate answer, and stays in its block.
    """
    blocks: list[list[int]] = []
    for cluster in _clusters(rows, numbers, num_examples):
        blocks.append([])
        question_of_id: dict[str, str] = {}
        is_repeating = len({rows[number].id for number in cluster}) < len(cluster)
        # First and last number of a block, None once a number falls, or where no id restarts.
        rising: list[int] | None = [] if is_repeating else None
        for number in cluster:
            row = rows[number]
            if row.id is not None:
                question = row.wordings[0] if row.wordings else ""
                is_first = row.id == next(iter(question_of_id), None)
                is_repeated = row.id in question_of_id and (is_first or question_of_id[row.id] != question)
                if is_repeated or (rising and row.number is not None and row.number < rising[0]):
                    blocks.append([])
                    question_of_id, rising = {}, [] if is_repeating else None
                question_of_id[row.id] = question
                if rising is not None and row.number is not None:
                    rising = [*rising[:1], row.number] if not rising or row.number > rising[-1] else None
            blocks[-1].append(number)
    return blocks


def _clusters(rows: Sequence[RowFacts], numbers: list[int], max_gap: int) -> list[list[int]]:
    """Group rows by ranges of ids, such as 1 to 3000 and 10000001 to 10003000."""
    ordered = sorted({value for number in numbers if (value := rows[number].number) is not None})
    starts = [after for before, after in pairwise(ordered) if after - before > max_gap]
    clusters: dict[int, list[int]] = {}
    for number in numbers:
        clusters.setdefault(bisect.bisect_right(starts, rows[number].number or 0), []).append(number)
    return list(clusters.values())


def _segments(
    rows: Sequence[RowFacts], block: list[int], splits: list[str], index: ExampleIndex, used: list[str]
) -> dict[int, str]:
    """Return ids for runs of rows with all questions of an unused split in order, and for a last,
    incomplete run."""
    ids: dict[int, str] = {}
    left = [split for split in splits if split not in used]
    start, follows_run = 0, True
    while start < len(block):
        fitting = []
        for split in left:
            targets = index.by_split[split][: len(block) - start]
            is_whole = len(targets) == len(index.by_split[split])
            if (is_whole or follows_run) and _agree_in_order(rows, islice(block, start, None), targets, index):
                fitting.append(split)
        follows_run = len(fitting) == 1
        if follows_run:
            targets = index.by_split[fitting[0]]
            left.remove(fitting[0])
            ids |= {number: target.id for number, target in zip(islice(block, start, None), targets, strict=False)}
            start += len(targets)
        else:
            start += 1
    return ids


def _agree_in_order(rows: Sequence[RowFacts], numbers: Iterable[int], targets: Iterable[Target], index: ExampleIndex) -> bool:
    return all(
        rows[number].wordings and index.agrees(rows[number], target) for number, target in zip(numbers, targets, strict=False)
    )


# ---- notes ---------------------------------------------------------------------------------------

SENTENCES = {
    "other id": "{n} rows have the id of another question, and their own question decides ({example})",
    "no such id": "{n} rows have an id that --data does not have, and are joined by their question ({example})",
    "distance": "{n} rows have ids at a constant distance from those of their questions, and are joined by that distance ({example})",
    "order": "{n} rows have no id of the data but its questions in its order, and are joined by order",
    "position": "{n} rows have nothing but numbers, one for each question of --data, and are joined by position ({example})",
    "question": "{n} rows name neither id nor image of the data, and are joined by their question",
    "other question": "{n} answers are to questions that --data does not have: is it another version?",
    "other split": "{n} answers are to questions of another split than --data",
    "unclear": "{n} rows have questions that --data has several times, and nothing tells which one they answer",
    "several splits": "{n} rows fit several splits, and nothing tells which: add `category` to them",
    "counted again": "{n} rows name several splits, and count in each of them",
    "some splits": "{n} rows name a split of --data that does not have their question, and count in the others that they name",
    "backwards": "{n} rows come after a row that --data has later, which matters where an official script goes by order",
}
"""Notes on rows that are not joined by their own id, in this order."""


class _Report:
    """Counts of rows that need a note on how they were joined."""

    def __init__(self, rows: Sequence[RowFacts], index: ExampleIndex) -> None:
        self._rows, self._index = rows, index
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._reasons: dict[int, str] = {}
        """Reasons why rows are unknown, other than their own question."""

    def count_joined(self, match: Match, split: str | None) -> None:
        """Count rows that were not joined by their own id."""
        for number, id_ in match.ids.items():
            row = self._rows[number]
            named = None if split is None else self._index.named(row, split)
            if named is not None and named.id == id_:
                continue
            kind = match.way
            if kind in ("id", "question"):
                is_image = self._index.has_known_image(row) and image_key(row.id or "") == row.image
                if row.id is not None and not row.is_position and not is_image:
                    kind = "no such id" if named is None else "other id"
                elif self._index.has_known_image(row):
                    continue
                else:
                    kind = "question"
            self._counts[kind] += 1
            names = (preview(str(name), 40)[1:-1] for name in (row.number if row.id is None else row.id, id_))
            self._examples.setdefault(kind, "as {}, which is {}".format(*names))

    def reject(self, block: Sequence[int], splits: Sequence[str], is_other_split: bool) -> None:
        """Note that a block's rows fit no split well enough."""
        if is_other_split:
            self._reasons |= dict.fromkeys(block, "other split")
            return
        asked = [self._rows[number] for number in block if self._rows[number].wordings]
        if any(self._index.named(row, split) or not self._index.candidates(row, split) for row in asked for split in splits):
            self._reasons |= dict.fromkeys(block, "other question")

    def leave_open(self, block: Sequence[int]) -> None:
        """Note that a block's rows fit several splits."""
        self._reasons |= dict.fromkeys(block, "several splits")

    def notes(self, ids: Sequence[tuple[str, ...]], possible_splits: Sequence[Sequence[str]]) -> dict[str, str]:
        """Return a sentence for each kind. possible_splits: those that each row may be about."""
        examples, positions = self._index.examples, self._index.positions
        for number, (row, row_ids, splits) in enumerate(zip(self._rows, ids, possible_splits, strict=True)):
            if row_ids and row_ids[0] in examples:
                self._counts["counted again"] += len(row_ids) > 1
                self._counts["some splits"] += len(row_ids) < sum(split in self._index.by_split for split in row.splits)
                continue
            reason = self._reasons.get(number)
            if reason is None and row.wordings:
                if any(self._index.candidates(row, split) for split in splits):
                    reason = "unclear"
                elif row.id is None or any(self._index.named(row, split) for split in splits):
                    reason = "other question"
            if reason is not None and row.wordings:
                self._counts[reason] += 1
        known = [id_ for row_ids in ids for id_ in row_ids if id_ in examples]
        last: dict[str, int] = {}
        for id_ in dict.fromkeys(known):
            split = examples[id_].split
            self._counts["backwards"] += positions[id_] < last.get(split, -1)
            last[split] = positions[id_]
        return {
            kind: text.format(n=self._counts[kind], example=self._examples.get(kind, ""))
            for kind, text in SENTENCES.items()
            if self._counts[kind]
        }
