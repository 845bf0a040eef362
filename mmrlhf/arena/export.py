"""Write votes as preferences, which `mmrlhf reward` and `dpo` read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmrlhf.arena.serve import open_votes
from mmrlhf.arena.votes import Ballots, read_ballots
from mmrlhf.commands.convert import check_target, write_records
from mmrlhf.config.loader import suggestion
from mmrlhf.labeling.export import common_folder, export_labels
from mmrlhf.records import InputError, Preference


def export_arena(
    votes_file: str, target_format: str, output_file: str, judge: str | None = None, is_anonymous: bool = False
) -> None:
    """Write people's votes, or those of a judge, in a format of `mmrlhf data convert`.

    Raises InputError if there are none, or the file cannot be written.
    """
    if judge is None:
        export_labels(votes_file, target_format, output_file, is_anonymous)
        return
    check_target(target_format, Path(output_file), [votes_file])
    with open_votes(Path(votes_file)) as (store, ledger):
        ballots = read_ballots(store, ledger)
    if judge not in ballots.judges:
        known = suggestion(judge, list(ballots.judges)) if ballots.judges else "have one vote with `mmrlhf arena judge`"
        raise InputError(f"{votes_file} has no judge {judge}: {known}")
    records = list(judge_preferences(ballots, judge))
    if not records:
        raise InputError(f"{votes_file}: {judge} has no verdict in both orders yet: run `mmrlhf arena judge` again")
    image_root = common_folder(image for record in records for image in record.images)
    write_records(records, votes_file, target_format, Path(output_file), image_root)


def judge_preferences(ballots: Ballots, judge: str) -> Iterator[Preference]:
    """Yield a judge's preferences, a record for each pair that it judged in both orders."""
    for digest, judged in ballots.judges[judge].items():
        task, ((_, score),) = ballots.tasks[digest], judged
        answers = task.answers if score >= 0.5 else (task.answers[1], task.answers[0])
        ranks = (1, 1) if score == 0.5 else (1, 2)
        yield Preference(task.name, task.images, task.prompt, answers, ranks, facts=task.facts)
