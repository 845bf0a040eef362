"""`mmrlhf score`: what a reward model says of answers, as JSONL."""

from __future__ import annotations

from pathlib import Path

from mmrlhf.config import ScoreConfig
from mmrlhf.facts import read_facts
from mmrlhf.formats import holds_pairs, read_examples, read_pairs
from mmrlhf.rewards import Group, load_reward_model
from mmrlhf.run import json_line, progress, refuse_output_file, write_whole


def score(config: ScoreConfig) -> Path:
    """Rows with an answer get `score`, preference pairs `score_chosen` and `score_rejected`."""
    refuse_output_file(Path(config.output_file))
    facts = read_facts(config.facts_file) if config.facts_file else None
    where = (config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    rows: list = []
    names: tuple[str, ...]
    if holds_pairs(config.dataset_name, config.dataset_train_split):
        rows, names = list(read_pairs(*where)), ("score_chosen", "score_rejected")
        groups = [Group(r.images, r.prompt, (r.chosen, r.rejected), r.facts, r.id) for r in rows]
    else:
        rows, names = list(read_examples(*where, need_answer=True)), ("score",)
        groups = [Group(r.images, r.prompt, (r.answer or "",), r.facts, r.id) for r in rows]
    model = load_reward_model(config.reward_model_path, max_length=config.max_length)
    lines = []
    with progress(len(groups), "score") as steps:
        for start in range(0, len(groups), config.batch_size):
            part = groups[start : start + config.batch_size]
            for row, scores in zip(rows[start:], model.score(part), strict=False):
                lines.append(json_line({"id": row.id, **dict(zip(names, scores, strict=True))}))
            steps.advance(len(part))
    write_whole(Path(config.output_file), "".join(lines))
    return Path(config.output_file)
