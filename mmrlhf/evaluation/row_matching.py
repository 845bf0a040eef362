"""Find the examples that a block of rows answers: by id, by question and image, by a constant
distance between their numbers and the examples' positions, by order."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from mmrlhf.evaluation.answer_rows import RowFacts, fold

MIN_MATCH_RATE = 0.9
"""Minimum share of fitting rows if numbers at a constant distance are used as ids."""
MAX_VOTES = 2_000_000
"""Maximum number of pairs of a row and an example that are compared to find a distance."""
MIN_CHARS_INSIDE = 12
"""Minimum length of a question, in characters, that is searched for in a longer prompt."""


class Target(NamedTuple):
    """The fields of an example that rows may refer to. Empty texts are never compared."""

    id: str
    local_id: str
    """The id without its split."""
    question: str
    image: str
    split: str


class ExampleIndex:
    """Examples by split, id, question and image."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.examples = {target.id: target for target in targets}
        self.by_split: dict[str, list[Target]] = {}
        self.by_id: dict[tuple[str, str], Target] = {}
        self.positions: dict[str, int] = {}
        """Positions in their split, by id."""
        self.by_question: dict[tuple[str, str], list[Target]] = defaultdict(list)
        self.by_content: dict[tuple[str, str, str], list[Target]] = defaultdict(list)
        self.by_image: dict[tuple[str, str], list[Target]] = defaultdict(list)
        self.splits_with_questions = {target.split for target in targets if target.question}
        self.images = {target.image for target in targets if target.image}
        for target in targets:
            split = self.by_split.setdefault(target.split, [])
            self.positions[target.id] = len(split)
            split.append(target)
            self.by_id[target.split, target.local_id] = target
            self.by_question[target.split, target.question].append(target)
            self.by_content[target.split, target.question, target.image].append(target)
            self.by_image[target.split, target.image].append(target)

    def named(self, row: RowFacts, split: str) -> Target | None:
        """Return the example of a split that the row's id names."""
        return None if row.id is None else self.by_id.get((split, row.id))

    def has_known_image(self, row: RowFacts) -> bool:
        """Return whether the row names an image of the data. Some logs have their own names."""
        return row.image in self.images

    def agrees(self, row: RowFacts, target: Target) -> bool:
        """Return whether the row is compatible with an example."""
        if target.image and self.has_known_image(row) and row.image != target.image:
            return False
        if not row.wordings or not target.question or target.question in row.wordings:
            return True
        return len(target.question) >= MIN_CHARS_INSIDE and f" {target.question} " in f" {fold(row.asked)} "

    def is_blind(self, row: RowFacts, split: str) -> bool:
        """Return whether nothing in the row can be compared with a split's examples."""
        return not (row.wordings and split in self.splits_with_questions) and not self.has_known_image(row)

    def can_compare(self, row: RowFacts, target: Target) -> bool:
        """Return whether question or image of a row can be compared with the example's."""
        return bool((row.wordings and target.question) or (self.has_known_image(row) and target.image))

    def candidates(self, row: RowFacts, split: str) -> list[Target]:
        """Return the examples of a split with the row's question, and its image if it names one.

        Without a question, an image decides if it has only one example and the row names no other
        one.
        """
        if self.has_known_image(row) and not (row.wordings and split in self.splits_with_questions):
            of_image = self.by_image.get((split, row.image), [])
            is_number = row.id is None or row.is_position or row.number is not None
            return of_image if len(of_image) == 1 and is_number else []
        for wording in row.wordings:
            if self.has_known_image(row):
                found = self.by_content.get((split, wording, row.image), [])
            else:
                found = self.by_question.get((split, wording), [])
            if found:
                return found
        return []


# ---- ways of joining -----------------------------------------------------------------------------


class Match(NamedTuple):
    """Examples by row number, and how well a way of joining fits a block of rows."""

    ids: dict[int, str]
    rate: float
    way: str


def best_match(rows: Sequence[RowFacts], block: list[int], split: str, index: ExampleIndex, min_rate: float) -> Match | None:
    """Return the way of joining that finds the most examples, among those that fit; else None."""
    by_id = match_by_id(rows, block, split, index)
    if by_id.rate == 1 and len(by_id.ids) == len(block):
        return by_id
    others = (_by_content, _by_distance, _by_order, _by_position)
    ways = [by_id, *(way(rows, block, split, index) for way in others)]
    fitting = [way for way in ways if way is not None and way.ids and way.rate >= min_rate]
    return max(fitting, key=lambda way: len(set(way.ids.values())), default=None)


def match_by_id(rows: Sequence[RowFacts], block: list[int], split: str, index: ExampleIndex) -> Match:
    """Use ids unless something contradicts them; otherwise search for question and image.

    Rows with an id, and maybe an image, that the split lacks are left out of the rate: they are
    unknown in any case.
    """
    ids: dict[int, str] = {}
    num_counted = num_fitting = 0
    num_taken: Counter[tuple[str, ...]] = Counter()
    blind = [number for number in block if rows[number].is_position and index.is_blind(rows[number], split)]
    # A field that counts rows may be the benchmark's id, but not if some of its numbers are no ids.
    distrusted = set() if all(index.named(rows[number], split) for number in blind) else set(blind)
    for number in block:
        row = rows[number]
        named = None if number in distrusted else index.named(row, split)
        candidates = index.candidates(row, split)
        # The question of an id that the data lacks may be about an image that it lacks.
        may_be_elsewhere = row.id is None or row.is_position or named is not None
        if named is not None and index.agrees(row, named):
            ids[number] = named.id
        elif candidates and (index.has_known_image(row) or (len(candidates) == 1 and may_be_elsewhere)):
            # Questions that the data has twice are taken in turn.
            key = tuple(target.id for target in candidates)
            ids[number] = key[num_taken[key] % len(key)]
            num_taken[key] += 1
        # A question without an image is weak evidence.
        fits = number in ids and (ids[number] == (named and named.id) or index.has_known_image(row))
        if row.wordings and (fits or row.id is None or named is not None):
            num_counted += 1
            num_fitting += fits
    has_question = any(rows[number].wordings for number in block)
    return Match(ids, num_fitting / num_counted if num_counted else float(not has_question), "id")


def _by_content(rows: Sequence[RowFacts], block: list[int], split: str, index: ExampleIndex) -> Match | None:
    """Ignore ids: take the only example with a row's question, and its image if it names one."""
    with_question = [number for number in block if rows[number].wordings]
    candidates = {number: index.candidates(rows[number], split) for number in with_question}
    ids = {number: found[0].id for number, found in candidates.items() if len(found) == 1}
    return Match(ids, len(ids) / len(with_question), "question") if with_question else None


def _by_order(rows: Sequence[RowFacts], block: list[int], split: str, index: ExampleIndex) -> Match | None:
    """Take rows in order, if every one of them fits and no other place in the data fits an
    incomplete log."""
    targets = index.by_split[split]
    fitting_starts = (
        start
        for start in range(len(targets) - len(block) + 1)
        if all(
            index.can_compare(rows[number], target) and index.agrees(rows[number], target)
            for number, target in zip(block, islice(targets, start, None), strict=False)
        )
    )
    if next(fitting_starts, None) != 0 or next(fitting_starts, None) is not None:
        return None
    ids = {number: target.id for number, target in zip(block, targets, strict=False)}
    return Match(_without_guesses(ids, rows, split, index), 1.0, "order")


def _by_position(rows: Sequence[RowFacts], block: list[int], split: str, index: ExampleIndex) -> Match | None:
    """Use numbers from 0, or from 1, as positions, if there is one for each example and nothing
    else can be compared."""
    targets = index.by_split[split]
    numbers = {number: value for number in block if (value := rows[number].number) is not None}
    first = min(numbers.values(), default=-1)
    is_complete = first in (0, 1) and sorted(numbers.values()) == list(range(first, first + len(targets)))
    if len(numbers) < len(block) or not is_complete or not all(index.is_blind(rows[number], split) for number in block):
        return None
    return Match({number: targets[value - first].id for number, value in numbers.items()}, 1.0, "position")


def _by_distance(rows: Sequence[RowFacts], block: list[int], split: str, index: ExampleIndex) -> Match | None:
    """Search for a constant distance between the rows' numbers and their questions' ids or
    positions, as in ids that start at 0, or at 10000001 for the next split."""
    targets = index.by_split[split]
    by_position = dict(enumerate(targets))
    ways = [_at_distance(rows, block, split, by_position, index)]
    if all(target.local_id.isdecimal() and len(target.local_id) < 18 for target in targets):
        by_number = {int(target.local_id): target for target in targets}
        if len({number - position for position, number in enumerate(by_number)}) > 1:  # else it is the same
            ways.append(_at_distance(rows, block, split, by_number, index))
    return max((way for way in ways if way is not None), key=lambda way: len(way.ids), default=None)


def _at_distance(
    rows: Sequence[RowFacts], block: list[int], split: str, target_at: Mapping[int, Target], index: ExampleIndex
) -> Match | None:
    """Return a match if most rows have the question of the target at a constant distance."""
    place_of = {target.id: place for place, target in target_at.items()}
    numbers = {number: value for number in block if (value := rows[number].number) is not None}
    candidates = {number: index.candidates(rows[number], split) for number in numbers}
    votes: Counter[int] = Counter()
    num_votes = 0
    # Rare questions first, because they are most informative.
    for number in sorted(numbers, key=lambda number: len(candidates[number])):
        num_votes += len(candidates[number])
        if num_votes > MAX_VOTES:
            break
        votes.update(place_of[target.id] - numbers[number] for target in candidates[number])
    most = max(votes.values(), default=0)
    best = [distance for distance, count in votes.items() if count == most]
    if len(best) > 1:
        best = [distance for distance in (0, -1) if distance in best]  # places that begin at 0 or 1
    if not best or most < 2:
        return None
    placed = {n: target_at[value + best[0]] for n, value in numbers.items() if value + best[0] in target_at}
    ids = {n: target.id for n, target in placed.items() if index.can_compare(rows[n], target) and index.agrees(rows[n], target)}
    num_asked, num_placed = (sum(bool(rows[n].wordings) for n in some) for some in (numbers, placed))
    # The data may have only the first of these questions, and the rows may lack some of them.
    num_expected = max(num_placed, min(num_asked, len(target_at)))
    if len(ids) < MIN_MATCH_RATE * num_expected:
        return None
    return Match(_without_guesses(ids, rows, split, index), 1.0, "distance")


def _without_guesses(ids: dict[int, str], rows: Sequence[RowFacts], split: str, index: ExampleIndex) -> dict[int, str]:
    """Leave out rows of an incomplete log whose question the data has with an image and without.

    The log may lack exactly the questions without an image, and places tell nothing about that.
    """
    targets = index.by_split[split]
    if len(ids) >= len(targets):
        return ids
    asked_both_ways = {t.question for t in targets if t.image} & {t.question for t in targets if not t.image}
    return {
        number: id_
        for number, id_ in ids.items()
        if index.examples[id_].question not in asked_both_ways or index.has_known_image(rows[number])
    }
