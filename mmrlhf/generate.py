"""`mmrlhf generate`: write the answers of a model, optionally under a PPO adapter, as JSONL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console

from mmrlhf.config import GenerateConfig
from mmrlhf.datasets import Records, read_examples
from mmrlhf.datasets.write import text_with_placeholders
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import make_sampling_params
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.inputs import inputs_of, rows_digest
from mmrlhf.files.jsonl import json_line
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.files.writing import writes
from mmrlhf.models.policy import load_policy
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Example
from mmrlhf.report.progress import progress
from mmrlhf.training.row_checks import KeptChecks, Length, usable_rows


@writes("output_file")
def generate(config: GenerateConfig, examples: Sequence[Example] | None = None) -> Path:
    """Write one line per answer (id, images, prompt, answer, facts) and return the file's path.

    The file appears once all answers are written. After a kill, the same call resumes. Raises
    InputError if the file holds answers that were made from other inputs.
    """
    rows_file = Path(config.output_file).with_name(f".{Path(config.output_file).name}.rows.json")
    unsaved_checks: list[str] = []  # written with the first answers
    kept = None
    if examples is None:
        kept = KeptChecks(rows_file, lambda _, text: unsaved_checks.append(text))
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder)
    examples = examples[: config.limit]
    inputs = inputs_of(config, ignored=("output_file", "batch_size", "image_folder"))
    inputs["images"] = {"path": "", "sha256": rows_digest(examples, images_only=isinstance(examples, Records))}
    writer = ResumableWriter(Path(config.output_file), inputs, config.num_generations)
    if writer.is_finished:
        writer.print_finished()
        return writer.path
    image_root = Path(config.image_folder or Path(config.dataset_name).parent)
    embedded_ids = [e.id for e in examples if any(i.path is None for i in e.images)]
    if embedded_ids:
        print(
            f"note: the images of {len(embedded_ids)} rows are embedded in {config.dataset_name}; "
            "their answers are written without images"
        )
    num_done = writer.num_done // config.num_generations
    with ExitStack() as stack:
        vlm = stack.enter_context(load_policy(config.model_name_or_path, config.adapter_path, config.dtype, config))
        lengths = PromptLengths(vlm, config.max_pixels)
        examples = usable_rows(
            examples,
            config,
            config.dataset_name,
            lambda example: [Length(lengths.count(example.prompt, example.images), lengths.limit(config.max_length))],
            lengths,
            Console(highlight=False),
            kept,
        )
        progress_bar = stack.enter_context(progress(len(examples), "generate", start=num_done))
        for example, texts in generate_batches(
            vlm, examples[num_done:], make_sampling_params(config), batch_size=config.batch_size, num_generations=config.num_generations,
            max_length=config.max_length,
        ):  # fmt: skip
            row = {
                "id": example.id,
                "images": [os.path.relpath(i.path, image_root) for i in example.images if i.path is not None],
                "prompt": [{"role": m.role, "content": text_with_placeholders(m)} for m in example.prompt],
            }
            facts = [{"kind": f.kind, "text": f.text, "source": f.source} for f in example.facts]
            writer.append([json_line({**row, "answer": text, "facts": facts}) for text in texts])
            if unsaved_checks:
                write_atomic(rows_file, unsaved_checks.pop())
            progress_bar.advance()
    writer.finish()
    rows_file.unlink(missing_ok=True)
    print(
        f"{config.output_file}: {len(examples) * config.num_generations} answers; image paths are relative to {image_root} "
        f"(--image_folder {image_root} to score them)"
    )
    return Path(config.output_file)
