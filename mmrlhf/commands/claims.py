"""`mmrlhf claims FILE`: extract the claims of each answer, and verify them against facts."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.claims import VERSION, Lexicon, extract_claims, load_lexicon
from mmrlhf.commands.claim_inputs import Answer, read_located_answers
from mmrlhf.facts import FactsFile, read_facts_file
from mmrlhf.files.inputs import content_digest
from mmrlhf.files.jsonl import iter_jsonl
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.files.row_errors import RowErrors
from mmrlhf.files.rows import open_binary
from mmrlhf.files.writing import writing
from mmrlhf.records import Claim, Fact, InputError, Verdict
from mmrlhf.rewards.false_rates import false_rates
from mmrlhf.verifiers import verify_against_facts

LINES_PER_WRITE = 256
"""Number of lines that are written to disk together."""


def extract(path: str, facts_file: str | None = None, output_file: str | None = None, lexicon_file: str | None = None) -> None:
    """Write one line of JSON for each answer of a file, in order, to standard output or a file.

    `claim_inputs.read_located_answers` describes the possible content of the file. An output file
    appears when it is complete; if the command is killed, the same command resumes. Raises
    InputError if the file, rows, the facts or the lexicon cannot be used, before anything is
    written.
    """
    lexicon = load_lexicon(lexicon_file)
    facts = FactsJoin(read_facts_file(facts_file)) if facts_file is not None else None
    open_binary(Path(path)).close()
    if os.path.isfile(path):  # a pipe can be read once only
        _refuse_bad_rows(path, facts)
    if output_file is None:
        _write_to_stdout(path, facts, lexicon)
    else:
        named_files = {"FILE": path, "facts": facts_file, "lexicon": lexicon_file}
        inputs = {k: file and {"path": file, "sha256": content_digest(file)} for k, file in named_files.items()}
        with writing(Path(output_file)):
            _write_to_file(path, facts, lexicon, Path(output_file), inputs | {"version of the reader": VERSION})
    if facts is not None:
        facts.print_notes()


def _refuse_bad_rows(path: str, facts: FactsJoin | None) -> None:
    """Raise one InputError about all rows that cannot be read, or joined with facts."""
    errors = RowErrors()
    for answer in read_located_answers(path, errors):
        try:
            if facts is not None:
                facts.facts_file.lookup(answer.images, answer.id, answer.number, answer.location)
        except InputError as error:
            errors.add(answer.location.rpartition(", ")[2], str(error), answer.location)
    if errors.count == 1:
        raise InputError(errors.groups[0].first_error)
    if errors.count:
        raise InputError(f"{path}: {errors.count} rows cannot be used: {errors.summary()}")


def _write_to_file(path: str, facts: FactsJoin | None, lexicon: Lexicon, out: Path, inputs: Mapping[str, Any]) -> None:
    file = ResumableWriter(out, inputs, setting="output_file")
    if file.is_finished:
        file.print_finished()
        return
    pending_lines: list[str] = []
    count = file.num_done
    for count, line in _output_lines(path, facts, lexicon, file.num_done):
        pending_lines.append(line)
        if len(pending_lines) == LINES_PER_WRITE:
            file.append(pending_lines)
            pending_lines.clear()
            if sys.stderr.isatty():
                print(f"\r{count} answers", end="", file=sys.stderr)
    file.append(pending_lines)
    file.finish()
    print(f"{out}: {describe_claims(out)}", file=sys.stderr)


def describe_claims(path: Path) -> str:
    """Return the numbers of answers, claims and verdicts in a written file.

    Also the false rates by kind, in the form of ppo's unknown_claim_costs.
    """
    num_answers, counts = 0, Counter[str]()

    def count_verdicts() -> Iterator[list[Verdict]]:
        """Yield each answer's verdicts and count them: the file may be larger than memory."""
        nonlocal num_answers
        for row in iter_jsonl(path):
            num_answers += 1
            counts.update(claim.get("verdict", "") for claim in row["claims"])
            yield [Verdict(claim_from_json(claim), claim["verdict"]) for claim in row["claims"] if "verdict" in claim]

    rates = ", ".join(f"{kind}={rate:.2g}" for kind, rate in false_rates(count_verdicts()).items())
    text = f"{num_answers} answers, {counts.total()} claims"
    if not counts or "" in counts:
        return text
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("supported", "contradicted", "unknown"))
    return f"{text}: {verdicts}" + (f"\nfalse rates of decided claims (--unknown_claim_costs of ppo): {rates}" if rates else "")


def _write_to_stdout(path: str, facts: FactsJoin | None, lexicon: Lexicon) -> None:
    try:
        for _, line in _output_lines(path, facts, lexicon, 0):
            sys.stdout.write(line)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `| head`, has exited
        sys.stderr.close()


def _output_lines(path: str, facts: FactsJoin | None, lexicon: Lexicon, num_done: int) -> Iterator[tuple[int, str]]:
    """Yield the number and the output line of each answer after the first `num_done`."""
    for number, answer in enumerate(read_located_answers(path), 1):
        known_facts = facts.lookup(answer) if facts is not None else None
        if number > num_done:
            yield number, json.dumps(_answer_entry(answer, known_facts, lexicon), ensure_ascii=False) + "\n"


def _answer_entry(answer: Answer, known_facts: tuple[Fact, ...] | None, lexicon: Lexicon) -> dict[str, Any]:
    """Return an answer's output line, with verdicts if its image has facts."""
    entry = ({} if answer.id is None else {"id": answer.id}) | {"text": answer.text}
    extracted = extract_claims(answer.text, lexicon)
    if known_facts is None:
        return entry | {"claims": [claim_to_json(claim) for claim in extracted]}
    verdicts = verify_against_facts(extracted, known_facts, lexicon)
    return entry | {"claims": [claim_to_json(verdict.claim, verdict) for verdict in verdicts]}


@dataclass
class FactsJoin:
    """A file of facts, with counts of how answers were joined to it."""

    facts_file: FactsFile
    num_answers: int = 0
    num_by_row: int = 0
    num_without: int = 0

    def lookup(self, answer: Answer) -> tuple[Fact, ...]:
        """Return the facts of an answer's images, and count how they were joined.

        Raises InputError if nothing identifies the answer's facts.
        """
        facts, is_by_row = self.facts_file.lookup(answer.images, answer.id, answer.number, answer.location)
        self.num_answers += 1
        self.num_by_row += is_by_row
        self.num_without += not facts
        return facts

    def print_notes(self) -> None:
        """Report on standard error how many answers have no facts, or were joined by row."""
        path = self.facts_file.path
        if self.num_by_row:
            num_rows = len(self.facts_file.by_row)
            print(
                f"note: {self.num_by_row} answers were joined with the {num_rows} rows of {path} by row number", file=sys.stderr
            )
        if self.num_without:
            print(
                f"note: {path} has no facts about the images of {self.num_without} of {self.num_answers} answers: their claims are unknown",
                file=sys.stderr,
            )


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


def claim_from_json(entry: Mapping[str, Any]) -> Claim:
    """Return the claim from the output of `claim_to_json`."""
    subject, value, relation, target = (str(entry.get(key, "")) for key in ("object", "value", "relation", "target"))
    negated, hedged = bool(entry.get("negated")), bool(entry.get("hedged"))
    return Claim(entry["kind"], subject, value, tuple(entry["span"]), relation, target, negated, hedged)
