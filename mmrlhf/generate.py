"""`mmrlhf generate`: write the answers of a model, optionally with an adapter, as JSONL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mmrlhf.config import GenerateConfig
from mmrlhf.datasets import Records, read_examples, subset
from mmrlhf.datasets.write import text_with_placeholders
from mmrlhf.engine.rollout import check_answer_lengths, generate_batches
from mmrlhf.engine.sampling import make_sampling_params
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.inputs import inputs_of, rows_digest
from mmrlhf.files.jsonl import json_line
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.files.tables import dataset_folder
from mmrlhf.files.writing import writes
from mmrlhf.models.images import image_value
from mmrlhf.models.policy import load_policy
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Example, InputError
from mmrlhf.report.progress import progress
from mmrlhf.rewards.best_of_n import best_answers
from mmrlhf.rewards.checkpoint import load_reward_model, print_facts_note
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.training.row_checks import KeptChecks, Length, LengthsOf, group_length, usable_indices


@writes("output_file")
def generate(config: GenerateConfig, examples: Sequence[Example] | None = None) -> Path:
    """Write one line per answer (id, images, prompt, answer, facts) and return the file's path.

    With a reward model, the best answer to each prompt is written, with its score. The file appears
    once all answers are written. After a kill, the same call resumes. Raises InputError if the
    file holds answers that were made from other inputs.
    """
    if config.reward_model_path is not None and (config.num_generations == 1 or config.temperature == 0):
        raise InputError(
            "reward_model_path chooses the best of several answers: give --num_generations 16 (or another number) and "
            "--temperature 1, or score the answers with `mmrlhf score`"
        )
    check_answer_lengths(config.min_new_tokens, config.response_length)
    num_lines = 1 if config.reward_model_path is not None else config.num_generations  # of a prompt
    rows_file = Path(config.output_file).with_name(f".{Path(config.output_file).name}.rows.json")
    unsaved_checks: list[str] = []  # written with the first answers
    kept = None
    if examples is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        kept = KeptChecks(rows_file, lambda _, text: unsaved_checks.append(text))
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    examples = examples[: config.limit]
    inputs = inputs_of(config, ignored=("output_file", "batch_size", "image_folder"))
    inputs["images"] = {"path": "", "sha256": rows_digest(examples, images_only=isinstance(examples, Records))}
    num_embedded_bytes = sum(len(i.data) for e in examples for i in e.images if i.data is not None)
    if num_embedded_bytes:
        inputs["embedded images"] = "in the answers"  # mmrlhf 0.3 and earlier left them out
    writer = ResumableWriter(Path(config.output_file), inputs, num_lines)
    if writer.is_finished:
        writer.print_finished()
        return writer.path
    image_root = Path(config.image_folder or dataset_folder(config.dataset_name) or ".")
    if num_embedded_bytes:
        mib = 4 / 3 * num_lines * num_embedded_bytes / 2**20  # base64 writes 3 bytes as 4 characters
        print(f"note: images are embedded in {config.dataset_name}, and so in the answers: {mib:.1f} MiB")
    num_done = writer.num_done // num_lines
    with ExitStack() as stack:
        vlm = stack.enter_context(load_policy(config.model_name_or_path, config.adapter_path, config.dtype, config, config))
        reward_model = None
        if config.reward_model_path is not None:
            reward_model = load_reward_model(config.reward_model_path, max_length=config.max_length, engine=config, pixels=config)
            print_facts_note(config.reward_model_path, reward_model, examples)
        lengths, console = PromptLengths(vlm, config.max_pixels), Console(highlight=False)
        lengths_of = _lengths_of(config, lengths, reward_model)
        indices = usable_indices(examples, config, config.dataset_name, lengths_of, lengths, console, kept)
        examples = subset(examples, indices)
        progress_bar = stack.enter_context(progress(len(examples), "generate", start=num_done))
        for example, texts in generate_batches(
            vlm, examples, make_sampling_params(config), batch_size=config.batch_size, num_generations=config.num_generations,
            max_length=config.max_length, num_done=num_done,
        ):  # fmt: skip
            row = {
                "id": example.id,
                "images": [image_value(image, str(image_root), embed=False) for image in example.images],
                "prompt": [{"role": m.role, "content": text_with_placeholders(m)} for m in example.prompt],
            }
            fact_rows = [{"kind": f.kind, "text": f.text, "source": f.source} for f in example.facts]
            if reward_model is None:
                answers: list[dict[str, Any]] = [{"answer": text} for text in texts]
            else:
                ((text, score),) = best_answers(reward_model, [example], [texts])
                answers = [{"answer": text, "score": score}]
            writer.append([json_line({**row, **answer, "facts": fact_rows}) for answer in answers])
            if unsaved_checks:
                write_atomic(rows_file, unsaved_checks.pop())
            progress_bar.advance()
    writer.finish()
    rows_file.unlink(missing_ok=True)
    print(
        f"{config.output_file}: {len(examples) * num_lines} answers; image paths are relative to {image_root} "
        f"(--image_folder {image_root} to score them)"
    )
    return Path(config.output_file)


def _lengths_of(config: GenerateConfig, lengths: PromptLengths, reward_model: RewardModel | None) -> LengthsOf:
    """Return the lengths of a row: of its prompt, and of a reward model's input."""
    reward_lengths = PromptLengths(reward_model.role.vlm) if reward_model is not None else None

    def lengths_of(example: Example) -> Iterator[Length]:
        yield Length(lengths.count(example.prompt, example.images), lengths.limit(config.max_length))
        if reward_model is not None and reward_lengths is not None:
            group = AnswerGroup(example.images, example.prompt, ("",), example.facts, example.id)
            length = group_length(reward_model, reward_lengths, group)
            yield replace(length, num_tokens=length.num_tokens + config.response_length)

    return lengths_of
