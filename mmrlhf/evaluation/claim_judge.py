"""A verifier of claims that asks a judge behind an OpenAI-compatible server, one claim at a time.

The judge sees the images and a yes/no question about the claim, without its negation and without
the answer that contains it. Each reply is appended to a file, so that no question is asked twice,
even after a kill. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmrlhf.claims import Lexicon
from mmrlhf.evaluation.openai_client import Endpoint, Reply, chat_message, request_replies, resolve_model_name
from mmrlhf.files.jsonl import json_line, read_appended
from mmrlhf.records import Claim, ImageSource, InputError, Verdict
from mmrlhf.text.answer_parsing import parse_yes_no
from mmrlhf.verifiers.base import AnswerClaims, strip_negation, unknown_verdict
from mmrlhf.verifiers.verbalize import claim_question

INSTRUCTION = "Answer with yes or no."
MAX_EVIDENCE_CHARS = 200
"""Maximum number of characters of a reply that a verdict quotes."""


@dataclass
class ClaimJudge:
    """A judge as a verifier (`verifiers.base.Verifier`), whose replies are kept in the file `path`.

    If the endpoint has no model name, the only model of the server is asked.
    """

    endpoint: Endpoint
    lexicon: Lexicon
    path: Path
    max_tokens: int = 64
    _replies: dict[str, str | None] | None = field(default=None, init=False, repr=False)
    """Texts by the key of their question, None for a refusal, once the file is read."""

    def __call__(self, answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        """Return a verdict for each claim of each answer.

        A reply that is neither yes nor no, a question that the judge refuses or answers with no
        text at all, or an answer without images gives unknown verdicts. Raises InputError if the
        server cannot be reached, or questions remain without a reply; the replies are kept.
        """
        replies = self._ask(answers)
        return [[self._verdict(answer, claim, replies) for claim in answer.claims] for answer in answers]

    def _verdict(self, answer: AnswerClaims, claim: Claim, replies: dict[str, str | None]) -> Verdict:
        if not answer.images:
            return unknown_verdict(claim, "there is no image")
        question, is_negated = self._question(claim)
        text = replies[_key(answer.images, question, self.endpoint.model)]
        if text is None:
            return unknown_verdict(claim, f"{self.endpoint.model} refuses the question {question!r} about this image")
        said = parse_yes_no(text, question)
        evidence = f"{self.endpoint.model} says {' '.join(text.split())[:MAX_EVIDENCE_CHARS]!r} to {question!r}"
        if said is None:
            return unknown_verdict(claim, evidence)
        return Verdict(claim, "supported" if (said == "yes") != is_negated else "contradicted", evidence)

    def _question(self, claim: Claim) -> tuple[str, bool]:
        positive, is_negated = strip_negation(claim)
        return claim_question(positive, self.lexicon), is_negated

    def _ask(self, answers: Sequence[AnswerClaims]) -> dict[str, str | None]:
        """Return the replies to all questions, by their keys, after asking those that are new."""
        self.endpoint = resolve_model_name(self.endpoint)
        replies = self._read()
        questions: dict[str, tuple[str, tuple[ImageSource, ...]]] = {}
        for answer in answers:
            for claim in answer.claims if answer.images else ():
                question, _ = self._question(claim)
                if (key := _key(answer.images, question, self.endpoint.model)) not in replies:
                    questions[key] = question, answer.images
        if not questions:
            return replies
        # A chat is built when its turn comes: its images are read then.
        chats = [(key, lambda item=item: [chat_message(f"{item[0]} {INSTRUCTION}", item[1])]) for key, item in questions.items()]
        refusals: list[tuple[str, Reply]] = []
        failures: list[Reply] = []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            try:
                for key, reply in request_replies(self.endpoint, chats, {"temperature": 0, "max_tokens": self.max_tokens}):
                    if reply.is_refused:
                        refusals.append((key, reply))
                    elif reply.status != "ok" or reply.text is None:
                        failures.append(reply)
                    else:
                        replies[key] = reply.text
                        file.write(json_line(self._record(key, questions[key][0], reply)))
                        file.flush()
            finally:  # also if the first questions of this call were all refused, so that the next call passes them
                if replies:
                    replies |= {key: None for key, _ in refusals}
                    file.writelines(json_line(self._record(key, questions[key][0], reply)) for key, reply in refusals)
        if not replies:  # a server that refuses everything is the wrong one
            failures += [reply for _, reply in refusals]
        if replies and refusals:
            print(
                f"note: {self.endpoint.model} refuses {len(refusals)} of {len(questions)} questions (the last: "
                f"{refusals[-1][1].reason}); their claims are unknown. Without their lines in {self.path} they are asked again"
            )
        if failures:
            raise InputError(
                f"{self.endpoint.model} at {self.endpoint.display_url} gave no usable reply to {len(failures)} of {len(questions)} "
                f"questions (the last: {failures[-1].reason}): run the same command again, which asks only these"
            )
        return replies

    def _record(self, key: str, question: str, reply: Reply) -> dict[str, Any]:
        return {
            "key": key,
            "judge": self.endpoint.display_url,
            "model": self.endpoint.model,
            "question": question,
            "text": reply.text,
            **({"refused": reply.reason} if reply.text is None else {}),
            "input_tokens": reply.input_tokens,
            "output_tokens": reply.output_tokens,
        }

    def _read(self) -> dict[str, str | None]:
        if self._replies is None:
            rows = read_appended(self.path)
            self._replies = {str(row.get("key")): None if "refused" in row else str(row.get("text")) for row in rows}
        return self._replies


def _key(images: Sequence[ImageSource], question: str, model: str) -> str:
    """Return a hash of the images' content, the question and the judge's model."""
    return hashlib.sha256("\0".join([model, question, *(image.key for image in images)]).encode()).hexdigest()
