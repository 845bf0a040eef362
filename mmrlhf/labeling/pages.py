"""Content of the pages: texts with visible control characters, answers in display order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmrlhf.claims import Lexicon
from mmrlhf.labeling.assignments import Progress, Shown
from mmrlhf.labeling.forms import FACT_KINDS, REASONS, VERDICTS, apply_corrections, claim_field, claims_of, words_of
from mmrlhf.labeling.sessions import consent_key
from mmrlhf.labeling.tasks import Task
from mmrlhf.labeling.typed_facts import phrase_of_claim
from mmrlhf.records import place_images
from mmrlhf.text.visible_text import visible

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Pages:
    """The pages of one server. All share a title, guidelines and a consent line.

    `lexicon` is used to extract the claims of answers.
    """

    title: str
    guidelines: str
    consent: str
    lexicon: Lexicon | None = None

    @cached_property
    def _environment(self) -> Environment:
        environment = Environment(
            loader=FileSystemLoader(FOLDER / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters["visible"] = visible
        environment.globals |= {"title": self.title, "guidelines": self.guidelines.strip()}
        environment.globals |= {"consent": self.consent, "consent_key": consent_key(self.consent)}
        return environment

    def _render(self, template: str, /, **context: Any) -> str:
        return self._environment.get_template(template).render(**context)

    def join(self, needs_token: bool, token: str = "", problem: str = "", name: str = "") -> str:
        """Return the page on which annotators sign in."""
        return self._render("join.html.j2", needs_token=needs_token, token=token, problem=problem, name=name, person=None)

    def ask_again(self, form_key: str, problem: str = "") -> str:
        """Return the page on which annotators accept a changed consent line."""
        return self._render("consent.html.j2", form_key=form_key, problem=problem, person=None)

    def message(self, heading: str, text: str) -> str:
        """Return a page with one message."""
        return self._render("message.html.j2", heading=heading, text=text, person=None)

    def nothing_left(self, person: Mapping[str, Any]) -> str:
        """Return the page for an annotator who has no task left."""
        return self._render("done.html.j2", person=person)

    def task(self, shown: Shown, person: Mapping[str, Any]) -> str:
        """Return the page of a task. It contains nothing that reveals a model, or the order of the
        answers in the file."""
        task = shown.task
        context: dict[str, Any] = {
            "mode": task.mode,
            "token": shown.token,
            "images": [f"/images/{image.expected_sha256}" for image in task.images],
            "turns": [turn for turn in _turns(task) if turn["text"].strip()],
            "answers": [{"letter": chr(65 + i), "text": task.answers[index]} for i, index in enumerate(shown.order)],
            "previous": json.dumps(_previous(shown, self.lexicon)),
            "person": person,
        }
        if task.mode == "claims":
            context |= _claims_context(visible(task.answers[0]), self.lexicon) | {"reasons": REASONS}
        elif task.mode == "facts":
            context |= {"fact_kinds": FACT_KINDS}
        return self._render(f"{task.mode}.html.j2", **context)


def _turns(task: Task) -> list[dict[str, str]]:
    """Return the turns of a prompt, with [picture 2] where the second image is, in the viewer's
    count. Images before all text need no place."""
    turns: list[dict[str, str]] = []
    number = 0
    for turn in place_images(task.prompt, len(task.images)):
        text, end = "", 0
        for position in turn.image_positions:
            number += 1
            text += turn.content[end:position]
            end = position
            if position or any(earlier["text"] for earlier in turns):
                before = " " if text and not text[-1].isspace() else ""
                text += f"{before}[picture {number}]{' ' if turn.content[end : end + 1].isalnum() else ''}"
        turns.append({"role": turn.role, "text": text + turn.content[end:]})
    return turns


def person_context(name: str, code: str, form_key: str, progress: Progress) -> dict[str, Any]:
    """Return an annotator's data on the pages."""
    total = progress.num_labels + progress.num_left
    return {
        "name": name,
        "code": code,
        "form_key": form_key,
        "done": progress.num_labels,
        "total": total,
        "pace": None if progress.pace is None else round(progress.pace),
        "last_answer": progress.last_answer,
    }


def _previous(shown: Shown, lexicon: Lexicon | None) -> dict[str, str]:
    """Return the annotator's own label, which they have taken back, as fields of the form."""
    label = shown.previous
    if label is None or label.get("kind") != "label":
        return {}
    fields = {"note": str(label["note"])} if "note" in label else {}
    if shown.task.mode == "pairwise":
        ranks = [label["ranks"][index] for index in shown.order]
        tie = "both_bad" if label.get("both_bad") else "tie"
        fields["choice"] = tie if ranks[0] == ranks[1] else "left" if ranks[0] < ranks[1] else "right"
        fields["strength"] = str(label.get("strength", 2))
    elif shown.task.mode == "ranking":
        fields |= {f"rank-{position}": str(label["ranks"][index]) for position, index in enumerate(shown.order)}
    elif shown.task.mode == "facts":
        fields |= {"facts": json.dumps(label["facts"])} | ({"complete": "yes"} if label["complete"] else {})
    else:
        text = visible(shown.task.answers[0])
        words = words_of(text)
        names = {(claim.kind, claim.span): claim_field(claim) for claim in claims_of(text, lexicon)}
        marks = [
            {**_word_range(words, (span["start"], span["end"])), "reason": span["reason"], "correction": span["correction"]}
            for span in label["spans"]
        ]
        verdicts = {verdict: value for value, verdict in VERDICTS.items()}
        fields["spans"] = json.dumps(marks)
        if label["corrected"] != apply_corrections(shown.task.answers[0], label["spans"]):
            fields["corrected"] = label["corrected"]
        for claim in label["claims"]:
            name = names.get((claim["kind"], tuple(claim["span"])))
            if name is not None:
                fields[name] = verdicts[claim["verdict"]]
    return fields


def _claims_context(text: str, lexicon: Lexicon | None) -> dict[str, Any]:
    """Return an answer as words with the text between them, and its claims with their words."""
    spans = words_of(text)
    words, position = [], 0
    for start, end in spans:
        words.append({"before": text[position:start], "text": text[start:end]})
        position = end
    claims: list[dict[str, Any]] = []
    for claim in claims_of(text, lexicon):
        words_of_claim = _word_range(spans, claim.span)
        if words_of_claim["last"] >= words_of_claim["first"]:  # else it is beyond the words that can be marked
            name, phrase = claim_field(claim), phrase_of_claim(claim)
            claims.append({"name": name, "kind": claim.kind, "text": phrase, "hedged": claim.hedged, **words_of_claim})
    return {"words": words, "rest": text[position:], "claims": claims}


def _word_range(words: list[tuple[int, int]], span: tuple[int, int]) -> dict[str, int]:
    """Return the first and the last word that a range of characters touches; last < first if
    none."""
    touched = [i for i, (start, end) in enumerate(words) if start < span[1] and end > span[0]]
    return {"first": touched[0], "last": touched[-1]} if touched else {"first": 0, "last": -1}
