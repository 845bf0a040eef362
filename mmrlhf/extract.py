"""`mmrlhf claims FILE`: what each answer of a file says about its picture, and what facts say of that."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrlhf import claims as extraction
from mmrlhf.facts import FactsFile, read_facts_file
from mmrlhf.growing import GrowingFile, state_of
from mmrlhf.records import Claim, InputError, Verdict
from mmrlhf.rows import Row, kind, opened
from mmrlhf.verify import by_facts

LINES_AT_A_TIME = 256
"""That reach the disk together."""


def extract(path: str, facts_file: str | None = None, out: str | None = None, lexicon_file: str | None = None) -> None:
    """Write a line of JSON for each line of a file, in order: to standard output, or to a file that appears when it is whole.

    A line is an answer, or a JSON object with the answer under `text` or `answer`. A killed command that writes a file goes on
    where it was. Raises InputError when the file, a line, the facts or the lexicon cannot be used.
    """
    words = extraction.lexicon(lexicon_file)
    facts = read_facts_file(facts_file) if facts_file is not None else None
    opened(Path(path)).close()
    if out is None:
        try:
            for _, line in _lines(path, facts, words, 0):
                sys.stdout.write(line)
            sys.stdout.flush()
        except BrokenPipeError:  # `| head` has seen enough
            sys.stderr.close()
        return
    if Path(out).exists() and Path(out).samefile(path):
        raise InputError(f"--out {out} is the file that is read: name another")
    file = GrowingFile(Path(out), ["claims", *map(state_of, (path, facts_file, lexicon_file)), extraction.VERSION], setting="out")
    waiting: list[str] = []
    number = file.done
    for number, line in _lines(path, facts, words, file.done):
        waiting.append(line)
        if len(waiting) == LINES_AT_A_TIME:
            file.add(waiting)
            waiting.clear()
            if sys.stderr.isatty():
                print(f"\r{number} lines", end="", file=sys.stderr)
    file.add(waiting)
    file.finish()
    print(f"{out}: {number} lines", file=sys.stderr)


def _lines(path: str, facts: FactsFile | None, words: extraction.Lexicon, done: int) -> Iterator[tuple[int, str]]:
    with opened(Path(path)) as file:
        for number, line in enumerate(file, 1):
            if number > done:
                yield number, json.dumps(_judged(f"{path}, line {number}", number, line, facts, words), ensure_ascii=False) + "\n"


def _judged(where: str, number: int, line: bytes, facts: FactsFile | None, words: extraction.Lexicon) -> dict[str, Any]:
    text, image = answer_of(where, number, line)
    found = extraction.claims(text, words)
    if facts is None:
        return {"text": text, "claims": [as_json(claim) for claim in found]}
    known = facts.of(image, number, where) if found else ()
    return {"text": text, "claims": [as_json(verdict.claim, verdict) for verdict in by_facts(found, known, words)]}


def answer_of(where: str, number: int, line: bytes) -> tuple[str, str | None]:
    """A line's answer and the name of its picture. Raises InputError for a line that is neither text nor a row with an answer."""
    try:
        content = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte {error.start}): write it as UTF-8") from None
    if not content.lstrip().startswith("{"):
        return content, None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content, None  # a sentence may begin with a brace
    row = Row(where, number, {name: field for name, field in value.items() if field is not None})
    text = row.fields[row.either("text", "answer", hint="a row has its answer there, or under `answer`")]
    row.text(text, "text")
    image = row.fields.get("image")
    if image is not None and not isinstance(image, str):
        row.fail(f"`image` must be text, not {kind(image)}")
    return text, image


def as_json(claim: Claim, verdict: Verdict | None = None) -> dict[str, Any]:
    """A claim as the command writes it: keys that it has no use for are absent."""
    found: dict[str, Any] = {"kind": claim.kind, "object": claim.subject}
    if claim.kind == "count":
        found["value"] = int(claim.value)
    elif claim.value:
        found["value"] = claim.value
    if claim.relation:
        found |= {"relation": claim.relation, "target": claim.target}
    if claim.category:
        found["category"] = claim.category
    found |= {"span": list(claim.span), "negated": claim.negated, "hedged": claim.hedged}
    if verdict is not None:
        found["verdict"] = verdict.value
        if verdict.evidence:
            found["evidence"] = verdict.evidence
    return found
