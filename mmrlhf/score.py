"""`mmrlhf score`: what a reward model says of answers, as JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmrlhf.artefact import load_reward_model
from mmrlhf.config import ScoreConfig
from mmrlhf.facts import read_facts
from mmrlhf.formats import holds_preferences, read_examples, read_preferences
from mmrlhf.growing import GrowingFile, state_of
from mmrlhf.records import Example, Preference
from mmrlhf.rewards import Group
from mmrlhf.run import json_line, progress


def score(config: ScoreConfig) -> Path:
    """Rows with an answer get `score`, preference pairs `score_chosen` and `score_rejected`. Killed, the same command continues."""
    sources = (config.reward_model_path, config.dataset_name, config.facts_file)
    out = GrowingFile(Path(config.output_file), [config, *map(state_of, sources)])
    facts = read_facts(config.facts_file) if config.facts_file else None
    where = (config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    rows: Sequence[Example] | Sequence[Preference]
    names: tuple[str, ...]
    if holds_preferences(config.dataset_name, config.dataset_train_split):
        rows, names = read_preferences(*where), ("score_chosen", "score_rejected")
    else:
        rows, names = read_examples(*where, need_answer=True), ("score",)
    model = load_reward_model(config.reward_model_path, max_length=config.max_length, engine=config)
    with progress(len(rows), "score", start=out.done) as steps:
        for start in range(out.done, len(rows), config.batch_size):
            part = [_group(row) for row in rows[start : start + config.batch_size]]
            scored = zip(part, model.score(part), strict=True)
            out.add([json_line({"id": group.id, **dict(zip(names, scores, strict=True))}) for group, scores in scored])
            steps.advance(len(part))
    out.finish()
    return Path(config.output_file)


def _group(row: Example | Preference) -> Group:
    answers = (row.chosen, row.rejected) if isinstance(row, Preference) else (row.answer or "",)
    return Group(row.images, row.prompt, answers, row.facts, row.id)
