"""Match the nouns of a description to AMBER's annotated words, by official rules and by ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmrlhf.files.rows import read_json
from mmrlhf.records import Example, InputError
from mmrlhf.text import lemmatize

SIMILARITY_THRESHOLD = 0.8
"""Words with a greater similarity count as equal."""
DEFAULT_SIMILARITY = 0.3
"""Similarity of pairs that the user's table lacks."""
SimilarityTest = Callable[[str, str], bool]
"""Returns whether two words mean the same."""


class Vocabulary(NamedTuple):
    """AMBER's word lists."""

    relation: dict[str, list[str]]
    """The words that also stand for each annotated word."""
    words: frozenset[str]
    """All words that are compared; other nouns are ignored."""
    safe_words: frozenset[str]
    """Words that are never hallucinations."""


@functools.cache
def load_vocabulary(data: str) -> Vocabulary:
    """Read the word lists of AMBER's data folder. Raises InputError if one is missing."""
    relation = read_json(Path(data) / "relation.json")
    if not isinstance(relation, dict) or not all(isinstance(related, list) for related in relation.values()):
        raise InputError(f"{Path(data) / 'relation.json'} must hold a list of words for each word: give AMBER's file")
    path = Path(data) / "safe_words.txt"
    if not path.is_file():
        raise InputError(f"{path} does not exist: --data must be AMBER's data folder")
    safe_words = frozenset(line.split("\n")[0] for line in path.read_text(encoding="utf-8").splitlines())
    words = frozenset(relation) | {word for related in relation.values() for word in related}
    return Vocabulary(relation, words, safe_words)


@functools.cache
def similarity_test(table_path: str | None) -> SimilarityTest | None:
    """Return a test by the user's table, else by spaCy, or None if spaCy is not installed."""
    if table_path is not None:
        similarities = read_json(Path(table_path))
        if not isinstance(similarities, dict) or not all(isinstance(v, int | float) for v in similarities.values()):
            raise InputError(f'--similarity {table_path} must be a JSON object of "A|B": number')

        def is_similar(a: str, b: str) -> bool:
            similarity = similarities.get("|".join(sorted((a, b))), DEFAULT_SIMILARITY)
            return a == b or bool(similarity > SIMILARITY_THRESHOLD)

        return is_similar
    try:
        import spacy

        model = spacy.load("en_core_web_lg")
    except (ImportError, OSError):
        return None
    parse = functools.cache(model)
    return functools.cache(lambda a, b: bool(parse(a).similarity(parse(b)) > SIMILARITY_THRESHOLD))


def match_official(example: Example, answer: str, vocabulary: Vocabulary, is_similar: SimilarityTest) -> dict[str, Any]:
    """Count words as inference.py does.

    A noun covers only the first true word that it stands for, and related words are compared before
    the annotated words themselves.
    """
    nouns = [noun for noun in lemmatize.nouns(answer) if noun in vocabulary.words]

    def with_related(words: Sequence[str]) -> list[tuple[str, int]]:
        """Return the words to compare with, each with the index of its annotated word."""
        related = [(word, index) for index, annotated in enumerate(words) for word in vocabulary.relation[annotated]]
        return related + [(word, index) for index, word in enumerate(words)]

    truth, hallucinations = with_related(example.meta["truth"]), with_related(example.meta["hallu"])
    covered, cognition_hits, false_nouns = set(), set(), []
    for noun in nouns:
        if noun in vocabulary.safe_words:
            continue
        exact = next((index for word, index in truth if word == noun), None)
        if exact is not None:
            covered.add(exact)
            continue
        # The script looks for an equal and for a similar word and counts both, even for a noun that
        # is similar to a true word.
        cognition_hits.add(next((index for word, index in hallucinations if word == noun), None))
        cognition_hits.add(next((index for word, index in hallucinations if is_similar(noun, word)), None))
        similar = next((index for word, index in truth if is_similar(noun, word)), None)
        if similar is not None:
            covered.add(similar)
        else:
            false_nouns.append(noun)
    num_cognition = len(cognition_hits - {None})
    return {"nouns": len(nouns), "false": false_nouns, "covered": len(covered), "thought": num_cognition}


def match_robust(example: Example, answer: str, vocabulary: Vocabulary, is_similar: SimilarityTest) -> dict[str, Any]:
    """Count words by our rules.

    Nouns are in lower case, and safe words do not count at all. A noun covers the equal true word
    if there is one, else related words, else similar words.
    """
    nouns = [noun for noun in lemmatize.nouns(answer.lower()) if noun in vocabulary.words and noun not in vocabulary.safe_words]

    def matches(noun: str, words: Sequence[str]) -> set[int]:
        """Return the indices of the annotated words that a noun stands for."""
        equal = {index for index, word in enumerate(words) if word == noun}
        related = {index for index, word in enumerate(words) if noun in vocabulary.relation[word]}
        return equal or related or {index for index, word in enumerate(words) if is_similar(noun, word)}

    truth_matches = [matches(noun, example.meta["truth"]) for noun in nouns]
    false_nouns = [noun for noun, matched in zip(nouns, truth_matches, strict=True) if not matched]
    covered: set[int] = set().union(*truth_matches)
    cognition_hits: set[int] = set().union(*(matches(noun, example.meta["hallu"]) for noun in false_nouns))
    return {"nouns": len(nouns), "false": false_nouns, "covered": len(covered), "thought": len(cognition_hits)}
