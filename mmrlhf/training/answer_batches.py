"""Sample a round's answers in batches, on all processes, into a file that a killed run continues.

A batch in which something is not finite is left out: its answers keep their places in the file, so
that the next batches, and those of a killed run that continues, have the same prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from mmrlhf.config import FeedbackConfig, RFTConfig
from mmrlhf.engine.rollout import numbered_ids, prompts_from_examples, sample_completions
from mmrlhf.engine.sampling import SamplingParams, step_seed
from mmrlhf.models.adapters import Role
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.processes import Accelerator, broadcast_object_list, gather_object
from mmrlhf.records import Example, InputError
from mmrlhf.rewards.types import Sample
from mmrlhf.training.run import Run
from mmrlhf.training.sampled_answers import build_samples
from mmrlhf.training.shared_writer import SharedWriter
from mmrlhf.training.skipped_steps import MAX_IN_A_ROW, raise_on_all_processes

NOT_FINITE = "from a batch with non-finite values"
"""Why an answer is left out with its batch. It names neither row nor reward function: which of
several is found first depends on the number of processes, and the file does not."""


class Answer(Protocol):
    """A row of the file, with the index of its prompt among the examples and its answer's number.

    `unusable` is NOT_FINITE if it is left out.
    """

    @property
    def row(self) -> int: ...

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the row, `unusable` among them."""
        ...


AnyAnswer = TypeVar("AnyAnswer", bound=Answer)


def write_answers(
    config: RFTConfig | FeedbackConfig,
    run: Run,
    accelerator: Accelerator,
    writer: SharedWriter,
    policy: Role,
    examples: Sequence[Example],
    rows: Sequence[int],
    number: int,
    batch_size: int,
    to_answers: Callable[[Sequence[int], Sequence[Sample]], list[AnyAnswer]],
    left_out: Callable[[int, int], AnyAnswer],
    advice: str,
) -> None:
    """Sample answers to `examples[row]` of each row in round `number`, and write them.

    batch_size: prompts that are sampled and written together, over all processes; all answers to
    them are one group of the writer. to_answers: makes rows of the file from the rows and answers
    of this process. left_out: makes one without the answer, from its prompt's row and its number.
    advice: what to do if the run stops.

    Raises InputError at the third batch in a row that is left out, or if there are no others.
    """
    prompts = list(zip(rows, numbered_ids([examples[row].id for row in rows]), strict=True))  # repeated rows differ
    group_size = config.num_generations
    params = SamplingParams(
        config.response_length, config.temperature, config.top_p, config.top_k, config.min_new_tokens,
        seed=step_seed(config.seed, number),
    )  # fmt: skip

    def sample(share: Sequence[tuple[int, str]]) -> list[AnyAnswer]:
        share_examples = [examples[row] for row, _ in share]
        max_prompt_length = config.max_length - config.response_length
        built = prompts_from_examples(policy.vlm, share_examples, max_prompt_length, [prompt_id for _, prompt_id in share])
        with policy.active():
            completions = sample_completions(policy.vlm, built, group_size, params)
        samples = build_samples(share_examples, completions, group_size, config.response_length)
        return to_answers([row for row, _ in share for _ in range(group_size)], samples)

    in_a_row = _count_left_out(writer, batch_size * group_size)
    num_done = writer.num_done // group_size
    with run.progress(len(prompts), num_done, f"round {number}: sample") as progress_bar:
        for start in range(num_done, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            share = batch[accelerator.process_index :: accelerator.num_processes]
            answers: list[AnyAnswer] = []
            problem = ""
            try:
                with raise_on_all_processes():
                    answers = sample(share) if share else []
            except NotFiniteError as error:  # on all processes
                problem = str(error)
            answers = sorted(gather_object(answers), key=lambda answer: answer.row)
            in_a_row = in_a_row + 1 if problem else 0
            if in_a_row == min(MAX_IN_A_ROW, -(-len(prompts) // batch_size)):
                raise InputError(
                    f"round {number}: {in_a_row} batches in a row are not finite, the last because {problem}. {advice}"
                )
            if problem:
                run.print(f"note: the answers of a batch are left out: {problem}")
                answers = [left_out(row, index) for row, _ in batch for index in range(group_size)]
            writer.append([answer.to_dict() for answer in answers])
            progress_bar.advance(len(batch))
    writer.finish()


def _count_left_out(writer: SharedWriter, batch_answers: int) -> int:
    """Return how many batches in a row a killed run has left out before it was killed."""
    last_first = reversed(writer.read_done()[::batch_answers])
    count = len(list(itertools.takewhile(lambda row: row["unusable"] == NOT_FINITE, last_first)))
    return int(broadcast_object_list([count])[0])


def warn_of_left_out(run: Run, number: int, num_answers: int) -> None:
    """Warn that a round has `num_answers` answers less, if any."""
    if num_answers:
        rows = f"round_{number}/answers.jsonl has their rows"
        run.warn(number, "skipped_batch", f"{num_answers} answers are left out, {NOT_FINITE}: {rows}")
