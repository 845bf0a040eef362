"""`mmrlhf score`: score answers with a reward model, as JSONL."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mmrlhf.config import ScoreConfig
from mmrlhf.datasets import read_records
from mmrlhf.facts import read_facts
from mmrlhf.files.inputs import inputs_of, rows_digest
from mmrlhf.files.jsonl import json_line
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.files.writing import writes
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, Preference
from mmrlhf.report.progress import progress
from mmrlhf.rewards.checkpoint import load_reward_model, print_facts_note
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.training.row_checks import refuse_unusable


@writes("output_file")
def score(config: ScoreConfig) -> Path:
    """Write `score` for rows with an answer, `score_chosen` and `score_rejected` for pairs.

    Return the output file. If the command is killed, the same command resumes. Raises InputError if
    the file contains scores that were made from other inputs.
    """
    facts = read_facts(config.facts_file) if config.facts_file else None
    dataset_args = (config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    rows: Sequence[Example] | Sequence[Preference] = read_records(*dataset_args, require_answer=True)[: config.limit]
    score_keys = ("score_chosen", "score_rejected") if isinstance(rows[0], Preference) else ("score",)
    inputs = inputs_of(config, ignored=("output_file", "batch_size", "image_folder", "base_model_name_or_path"))
    inputs["images"] = {"path": "", "sha256": rows_digest(rows, images_only=True)}
    writer = ResumableWriter(Path(config.output_file), inputs)
    if writer.is_finished:
        writer.print_finished()
        return writer.path
    model = load_reward_model(
        config.reward_model_path,
        max_length=config.max_length,
        engine=config,
        pixels=config,
        base_model_name_or_path=config.base_model_name_or_path,
    )
    print_facts_note(config.reward_model_path, model, rows)
    console = Console(highlight=False)
    remaining_rows = rows[writer.num_done :]
    refuse_unusable(model, remaining_rows, lambda row: _to_answer_group(row, model.role.vlm), config.dataset_name, console)
    with progress(len(rows), "score", start=writer.num_done) as progress_bar:
        for start in range(writer.num_done, len(rows), config.batch_size):
            groups = [_to_answer_group(row, model.role.vlm) for row in rows[start : start + config.batch_size]]
            entries = [
                {"id": group.id, **dict(zip(score_keys, scores, strict=True))}
                for group, scores in zip(groups, model.score(groups), strict=True)
            ]
            writer.append([json_line(entry) for entry in entries])
            progress_bar.advance(len(groups))
    writer.finish()
    return Path(config.output_file)


def _to_answer_group(row: Example | Preference, vlm: VLM) -> AnswerGroup:
    """Return a row's answers; control tokens in an answer by a model are split."""
    if isinstance(row, Preference):
        answers: tuple[str, ...] = (row.chosen, row.rejected)
    else:
        answers = (vlm.escape_control_tokens(row.answer or ""),)
    return AnswerGroup(row.images, row.prompt, answers, row.facts, row.id)
