"""`mmrlhf score`: what a reward model says of answers, as JSONL."""

from __future__ import annotations

from pathlib import Path

from mmrlhf.artefact import load_reward_model
from mmrlhf.config import ScoreConfig
from mmrlhf.facts import read_facts
from mmrlhf.formats import holds_preferences, read_examples, read_preferences
from mmrlhf.growing import GrowingFile, state_of
from mmrlhf.rewards import Group
from mmrlhf.run import json_line, progress


def score(config: ScoreConfig) -> Path:
    """Rows with an answer get `score`, preference pairs `score_chosen` and `score_rejected`. Killed, the same command continues."""
    sources = (config.reward_model_path, config.dataset_name, config.facts_file)
    out = GrowingFile(Path(config.output_file), [config, *map(state_of, sources)])
    facts = read_facts(config.facts_file) if config.facts_file else None
    where = (config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    rows: list = []
    names: tuple[str, ...]
    if holds_preferences(config.dataset_name, config.dataset_train_split):
        rows, names = list(read_preferences(*where)), ("score_chosen", "score_rejected")
        groups = [Group(r.images, r.prompt, (r.chosen, r.rejected), r.facts, r.id) for r in rows]
    else:
        rows, names = list(read_examples(*where, need_answer=True)), ("score",)
        groups = [Group(r.images, r.prompt, (r.answer or "",), r.facts, r.id) for r in rows]
    model = load_reward_model(config.reward_model_path, max_length=config.max_length, engine=config)
    with progress(len(groups), "score", start=out.done) as steps:
        for start in range(out.done, len(groups), config.batch_size):
            part = groups[start : start + config.batch_size]
            scored = zip(rows[start:], model.score(part), strict=False)
            out.add([json_line({"id": row.id, **dict(zip(names, scores, strict=True))}) for row, scores in scored])
            steps.advance(len(part))
    out.finish()
    return Path(config.output_file)
