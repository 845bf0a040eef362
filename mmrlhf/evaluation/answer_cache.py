"""Keep a model's answers between benchmarks and runs, so that no question is asked twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.benchmark import text_sha256
from mmrlhf.files.atomic import refuse_unwritable
from mmrlhf.files.jsonl import json_line, read_appended
from mmrlhf.records import Example


class AnswerCache:
    """Answers of one model under one setting, in a JSONL file that all benchmarks and runs share.

    The key of an answer is its prompt and the content of its images; for sampled answers also the
    example's id, which seeds them. The name of the file is a hash of the model, its adapter and the
    generation settings.
    """

    def __init__(self, folder: str, generation_key: Mapping[str, Any]) -> None:
        """Read the file. Raises InputError if the folder cannot be written to.

        generation_key: everything that answers depend on besides prompt and images.
        """
        refuse_unwritable(Path(folder), "answer_cache_dir")
        digest = text_sha256(json.dumps(generation_key, default=repr))[:16]
        self._path = Path(folder) / f"{digest}.jsonl"
        rows = read_appended(self._path)
        self.model_info: dict[str, Any] = next((row["about"] for row in rows if "about" in row), {})
        self._answers: dict[str, list[str | None]] = {row["key"]: row["answers"] for row in rows if "key" in row}

    def get(self, example: Example, is_sampled: bool) -> list[str | None] | None:
        """Return the answers to an example, None if it has not been asked."""
        return self._answers.get(self._key(example, is_sampled))

    def add(self, example: Example, answers: list[str], is_sampled: bool, model_info: dict[str, Any]) -> None:
        """Append the answers to an example to the file."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        header = "" if self._path.exists() else json_line({"about": model_info})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(header + json_line({"key": self._key(example, is_sampled), "answers": answers}))

    @staticmethod
    def _key(example: Example, is_sampled: bool) -> str:
        turns = [[turn.role, turn.content, *turn.image_positions] for turn in example.prompt]
        image_keys = [image.key for image in example.images]
        return text_sha256(json.dumps([turns, image_keys, example.id if is_sampled else ""]))
