"""Compare extracted claims with people's labels in FaithScore (Jing et al. 2024).

    python eval/studies/faithscore.py annotation.jsonl
                                      [--context caps_boxes_coco2014_val_80.jsonl [--absent]]

annotation.jsonl is the authors' (bcdnlp/FAITHSCORE): 180 answers of VLMs about 30 of
COCO's images, cut into parts that describe the image or not (`stage 1`), and the atomic facts of
the first, each labelled true or false by people (`stage 2`). In the file, 1 marks a part that
describes and a fact that is true; the authors' README says the opposite, but what COCO's boxes list
is a 1 (see `--context`).

Extraction: `recall` is the share of atomic facts whose claims are also extracted from the answer,
by the most specific kind of claim in them; facts without any claim are counted as unread.
`precision` is the share of an answer's claims, in the parts that describe, that an atomic fact
makes too. `elsewhere` are claims in parts that do not describe: what a reward would pay for without
a label.

Verdicts: with --context, the captions and boxes of LLaVA-Bench on the same images, each fact is
verified against captions and COCO's objects with boxes and numbers; with --absent, also against the
classes without a box, although the image shows some of them. The table has verdicts by people's
label.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common import markdown_table

from mmrlhf.claims import Lexicon, extract_claims, load_lexicon
from mmrlhf.facts.parse import count_fact, parse_box, parse_fact_fields
from mmrlhf.files.rows import Row, read_json_objects, type_name
from mmrlhf.metrics.intervals import wilson
from mmrlhf.records import CLAIM_KINDS, Claim, Fact
from mmrlhf.text.coco_objects import object_by_synonym
from mmrlhf.verifiers import verify_against_facts

SPECIFICITY = ("object", "count", "attribute", "relation", "action")
"""Kinds of claim, the most common ones first."""
VERDICTS = ("supported", "contradicted", "unknown")


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer, the spans of its parts that describe the image, and people's labels of its
    facts."""

    image: str
    text: str
    described: tuple[tuple[int, int], ...]
    facts: Mapping[str, bool]


def read_annotations(path: Path) -> list[LabelledAnswer]:
    """Read the authors' file. Raises InputError for a row in another form."""
    answers = []
    for row in read_json_objects(path):
        text = row.require_text(row.require("answer"), "answer")
        parts, facts = (_labels(row, name) for name in ("stage 1", "stage 2"))
        spans, position = [], 0
        for part, describes in parts.items():
            start = text.find(part.strip(), position)
            position = position if start < 0 else start + len(part.strip())
            if describes and start >= 0:
                spans.append((start, position))
        answers.append(LabelledAnswer(str(row.require("id")), text, tuple(spans), facts))
    return answers


def _labels(row: Row, name: str) -> dict[str, bool]:
    value = row.require(name)
    if not isinstance(value, dict) or not all(label in (0, 1) for label in value.values()):
        row.fail(f"`{name}` must map texts to 0 or 1, not be {type_name(value)}")
    return {text: label == 1 for text, label in value.items()}


def read_context(path: Path, with_absent: bool) -> dict[str, tuple[Fact, ...]]:
    """Return facts by image, from a file of captions and boxes as LLaVA-Bench has it.

    with_absent: whether classes without a box count as absent.
    """
    facts = {}
    for row in read_json_objects(path):
        counts = Counter(str(instance["category"]) for instance in row.fields.get("instances", ()))
        classes = dict.fromkeys(object_by_synonym().values())
        fields = {
            "captions": row.require("captions"),
            "absent": [name for name in classes if with_absent and name not in counts],
        }
        listed = [
            Fact("object", str(instance["category"]), path.name, box=parse_box(row, instance["bbox"], "bbox"))
            for instance in row.fields.get("instances", ())
        ]
        counted = [count_fact(count, name, path.name) for name, count in counts.items()]
        others = parse_fact_fields(Row(row.location, row.number, fields), path.name)
        facts[Path(str(row.require("image"))).stem] = (*listed, *counted, *others)
    return facts


def distinct_claims(claims: Iterable[Claim]) -> set[Claim]:
    """Return claims without hedges, in which equal statements may differ."""
    return {replace(claim, hedged=False) for claim in claims}


def main_claims(fact: str, lexicon: Lexicon) -> list[Claim]:
    """Return the claims of a fact that are of its most specific kind."""
    claims = extract_claims(fact, lexicon)
    kind = max((claim.kind for claim in claims), key=SPECIFICITY.index, default=None)
    return [claim for claim in claims if claim.kind == kind]


# ---- figures -------------------------------------------------------------------------------------


def measure_extraction(answers: Sequence[LabelledAnswer], lexicon: Lexicon) -> dict[str, Any]:
    """Return recall and precision by kind as [hits, all], and the numbers of unread facts and of
    claims outside the parts that describe."""
    recall: dict[str, list[int]] = {kind: [0, 0] for kind in SPECIFICITY}
    precision: dict[str, list[int]] = {kind: [0, 0] for kind in SPECIFICITY}
    num_unread = num_elsewhere = 0
    for answer in answers:
        claims = extract_claims(answer.text, lexicon)
        claimed = distinct_claims(claims)
        labelled: set[Claim] = set()
        for fact in answer.facts:
            labelled |= distinct_claims(extract_claims(fact, lexicon))
            main = distinct_claims(main_claims(fact, lexicon))
            num_unread += not main
            if main:
                counts = recall[next(iter(main)).kind]
                counts[0] += main <= claimed
                counts[1] += 1
        for claim in claims:
            if not any(start <= claim.span[0] < end for start, end in answer.described):
                num_elsewhere += 1
                continue
            precision[claim.kind][0] += distinct_claims([claim]) <= labelled
            precision[claim.kind][1] += 1
    return {"recall": recall, "precision": precision, "unread": num_unread, "elsewhere": num_elsewhere}


def measure_verdicts(
    answers: Sequence[LabelledAnswer], facts_by_image: Mapping[str, tuple[Fact, ...]], lexicon: Lexicon
) -> dict[str, dict[str, dict[str, int]]]:
    """Return verdicts on the facts' main claims, by kind, label (`true`, `false`) and verdict.

    A fact is contradicted if one of its claims is, and supported if all are.
    """
    counts = {kind: {label: dict.fromkeys(VERDICTS, 0) for label in ("true", "false")} for kind in SPECIFICITY}
    for answer in answers:
        known = facts_by_image.get(answer.image, ())
        for fact, is_true in answer.facts.items():
            verdicts = verify_against_facts(main_claims(fact, lexicon), known, lexicon)
            if not verdicts:
                continue
            values = {verdict.value for verdict in verdicts}
            value = "contradicted" if "contradicted" in values else values.pop() if len(values) == 1 else "unknown"
            counts[verdicts[0].claim.kind]["true" if is_true else "false"][value] += 1
    return counts


def _share(hits: int, total: int) -> str:
    if not total:
        return "-"
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.1f} ({100 * low:.0f}-{100 * high:.0f}) of {total}"


def report(extraction: Mapping[str, Any], verdicts: Mapping[str, Any] | None) -> str:
    """Return the figures as Markdown."""
    rows = [[kind, *(_share(*extraction[name][kind]) for name in ("recall", "precision"))] for kind in SPECIFICITY]
    text = markdown_table(["", "recall of facts", "precision of claims"], rows)
    text += f"\n\n{extraction['unread']} facts hold no claim; {extraction['elsewhere']} claims are in parts that do not describe."
    if verdicts is None:
        return text
    rows = []
    for kind in SPECIFICITY:
        for label in ("true", "false"):
            counts = verdicts[kind][label]
            rows.append(
                [kind, label, *(str(counts[value]) for value in VERDICTS), _share(counts["contradicted"], sum(counts.values()))]
            )
    return f"{text}\n\n{markdown_table(['', 'people say', *VERDICTS, 'contradicted, %'], rows)}"


def main() -> None:
    """Print the figures as Markdown, and on a last line as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", type=Path)
    parser.add_argument("--context", type=Path)
    parser.add_argument("--absent", action="store_true")
    args = parser.parse_args()
    assert set(SPECIFICITY) == set(CLAIM_KINDS)
    lexicon = load_lexicon()
    answers = read_annotations(args.annotations)
    extraction = measure_extraction(answers, lexicon)
    verdicts = measure_verdicts(answers, read_context(args.context, args.absent), lexicon) if args.context else None
    print(report(extraction, verdicts))
    print(json.dumps({"extraction": extraction, "verdicts": verdicts}))


if __name__ == "__main__":
    main()
