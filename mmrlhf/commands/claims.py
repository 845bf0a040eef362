"""`mmrlhf claims FILE`: extract the claims of each answer, and verify them against facts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmrlhf.claims import VERSION, Lexicon, extract_claims, load_lexicon
from mmrlhf.facts import FactsFile, read_facts_file
from mmrlhf.files.resumable import ResumableWriter, file_signature
from mmrlhf.files.rows import Row, open_binary, type_name
from mmrlhf.records import Claim, InputError, Verdict
from mmrlhf.verifiers import verify_against_facts

LINES_PER_WRITE = 256
"""Number of lines that are written to disk together."""


def extract(path: str, facts_file: str | None = None, out: str | None = None, lexicon_file: str | None = None) -> None:
    """Write one line of JSON for each line of a file, in order, to standard output or a file.

    A line is an answer, or a JSON object with the answer under `text` or `answer`. An output file
    appears when it is complete; if the command is killed, the same command resumes. Raises
    InputError if the file, a line, the facts or the lexicon cannot be used.
    """
    lexicon = load_lexicon(lexicon_file)
    facts = read_facts_file(facts_file) if facts_file is not None else None
    open_binary(Path(path)).close()
    if out is None:
        _write_to_stdout(path, facts, lexicon)
        return
    if Path(out).exists() and Path(out).samefile(path):
        raise InputError(f"--out {out} is the input file: name another")
    file = ResumableWriter(Path(out), ["claims", *map(file_signature, (path, facts_file, lexicon_file)), VERSION], setting="out")
    pending_lines: list[str] = []
    line_number = file.num_done
    for line_number, line in _output_lines(path, facts, lexicon, file.num_done):
        pending_lines.append(line)
        if len(pending_lines) == LINES_PER_WRITE:
            file.append(pending_lines)
            pending_lines.clear()
            if sys.stderr.isatty():
                print(f"\r{line_number} lines", end="", file=sys.stderr)
    file.append(pending_lines)
    file.finish()
    print(f"{out}: {line_number} lines", file=sys.stderr)


def _write_to_stdout(path: str, facts: FactsFile | None, lexicon: Lexicon) -> None:
    try:
        for _, line in _output_lines(path, facts, lexicon, 0):
            sys.stdout.write(line)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `| head`, has exited
        sys.stderr.close()


def _output_lines(path: str, facts_file: FactsFile | None, lexicon: Lexicon, num_done: int) -> Iterator[tuple[int, str]]:
    """Yield the number and the output line of each input line after the first `num_done`."""
    with open_binary(Path(path)) as file:
        for line_number, line in enumerate(file, 1):
            if line_number <= num_done:
                continue
            entry = _process_line(f"{path}, line {line_number}", line_number, line, facts_file, lexicon)
            yield line_number, json.dumps(entry, ensure_ascii=False) + "\n"


def _process_line(location: str, line_number: int, line: bytes, facts_file: FactsFile | None, lexicon: Lexicon) -> dict[str, Any]:
    text, image = read_answer(location, line_number, line)
    extracted = extract_claims(text, lexicon)
    if facts_file is None:
        return {"text": text, "claims": [claim_to_json(claim) for claim in extracted]}
    known_facts = facts_file.lookup(image, line_number, location) if extracted else ()
    verdicts = verify_against_facts(extracted, known_facts, lexicon)
    return {"text": text, "claims": [claim_to_json(verdict.claim, verdict) for verdict in verdicts]}


def read_answer(location: str, line_number: int, line: bytes) -> tuple[str, str | None]:
    """Return the answer in a line, and the name of its image if the line gives one.

    Raises InputError for a line that is neither text nor a row with an answer.
    """
    try:
        content = line.decode("utf-8-sig" if line_number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: not UTF-8 (byte {error.start}): write it as UTF-8") from None
    if not content.lstrip().startswith("{"):
        return content, None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return content, None  # a sentence may begin with a brace
    row = Row(location, line_number, {name: field for name, field in value.items() if field is not None})
    name = row.require_any("text", "answer", hint="put the answer of the row there, or under `answer`")
    text = row.fields[name]
    row.require_text(text, name)
    image = row.fields.get("image")
    if image is not None and not isinstance(image, str):
        row.fail(f"`image` must be text, not {type_name(image)}")
    return text, image


def claim_to_json(claim: Claim, verdict: Verdict | None = None) -> dict[str, Any]:
    """Return a claim as a JSON object, without keys that do not apply to its kind."""
    entry: dict[str, Any] = {"kind": claim.kind, "object": claim.subject}
    if claim.kind == "count":
        entry["value"] = int(claim.value)
    elif claim.value:
        entry["value"] = claim.value
    if claim.relation:
        entry |= {"relation": claim.relation, "target": claim.target}
    if claim.category:
        entry["category"] = claim.category
    entry |= {"span": list(claim.span), "negated": claim.negated, "hedged": claim.hedged}
    if verdict is not None:
        entry["verdict"] = verdict.value
        if verdict.evidence:
            entry["evidence"] = verdict.evidence
    return entry
